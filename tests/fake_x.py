"""X on loopback, as far as its search goes: posts, pages, what each costs, and its own count of requests."""

from __future__ import annotations

import gzip
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from fake_polymarket import FakePolymarket

X_PARAMETERS = {
    *("query", "max_results", "tweet.fields", "expansions", "user.fields"),
    *("since_id", "next_token", "start_time", "end_time"),
}


@dataclass(slots=True)
class FakePost:
    """The truth on one post of X."""

    number: int  # its id; ids grow with time
    text: str
    author: int = 7_000_001
    created_at: str = "2026-11-22T14:14:00.000Z"
    likes: int = 0
    reposts: int = 0
    replies: int = 0
    links: tuple[str, ...] = ()
    times_sent: int = 0  # each time costs the reader money

    @property
    def id(self) -> str:
        """The id, as it is sent."""
        return str(self.number)


class FakeX:
    """What X has, and what a test may say of it: `say`, and the attributes."""

    def __init__(self) -> None:
        """Make an X without posts."""
        self.posts: list[FakePost] = []  # the oldest first
        self.token = "AAAA-loopback-token"  # noqa: S105  opens nothing
        self.authors_sent = 0
        self.oldest_since_id = 0  # posts before this one are more than a week old
        self.searches_left = 450
        self.searches_reset_at = 1_795_358_400  # Unix time

    def say(self, text: str, **traits: Any) -> FakePost:  # noqa: ANN401
        """Post *text* on X; see `FakePost`. Later posts have greater ids, whatever their time."""
        post = FakePost(2_000_000_000_000_000_000 + 4_194_304 * len(self.posts), text, **traits)
        self.posts.append(post)
        return post

    async def search(self, request: web.Request) -> web.Response:
        query = request.query
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return x_problem(401, "Unauthorized", "Unauthorized")
        unknown = set(query) - X_PARAMETERS
        size = int(query.get("max_results", 10))
        if unknown or not 10 <= size <= 100 or not 1 <= len(query.get("query", "")) <= 512:
            return x_problem(400, "Invalid Request", f"One or more parameters to your request was invalid: {unknown}")
        since = int(query.get("since_id", 0))
        if since and since < self.oldest_since_id:
            detail = f"'since_id' must be a tweet id created after [TIMESTAMP]. Please use one larger than {since}"
            return x_problem(400, "Invalid Request", detail)
        if not self.searches_left:
            return x_problem(429, "Too Many Requests", "Too Many Requests", self._x_headers)
        self.searches_left -= 1
        before = int(query.get("next_token", f"b{len(self.posts)}")[1:])
        found = [post for post in reversed(self.posts) if since < post.number and self.posts.index(post) < before]
        return compressed(msgspec.json.encode(self._posts_page(found, size, query)), self._x_headers)

    def _posts_page(self, found: Sequence[FakePost], size: int, query: Mapping[str, str]) -> dict[str, Any]:
        shown = found[:size]
        meta: dict[str, Any] = {"result_count": len(shown)}
        if not shown:
            return {"meta": meta}
        fields = set(query.get("tweet.fields", "").split(","))
        meta |= {"newest_id": shown[0].id, "oldest_id": shown[-1].id}
        if len(found) > size:
            meta["next_token"] = f"b{self.posts.index(shown[-1])}"
        for post in shown:
            post.times_sent += 1
        page: dict[str, Any] = {"data": [x_post(post, fields) for post in shown], "meta": meta}
        if query.get("expansions") == "author_id":
            authors = sorted({post.author for post in shown})
            self.authors_sent += len(authors)
            users = [{"id": str(author), "name": "N", "username": f"user{author}"} for author in authors]
            page["includes"] = {"users": users}
        return page

    @property
    def _x_headers(self) -> dict[str, str]:
        return {
            "x-rate-limit-limit": "450",
            "x-rate-limit-remaining": str(self.searches_left),
            "x-rate-limit-reset": str(self.searches_reset_at),
            "Date": "Sun, 22 Nov 2026 14:15:00 GMT",
        }


def x_post(post: FakePost, fields: set[str]) -> dict[str, Any]:
    """Return *post* as X writes it; links are only in the entities, the text has short forms."""
    short = [f"https://t.co/{post.number % 10**9:010d}{number}" for number in range(len(post.links))]
    answer: dict[str, Any] = {
        "id": post.id,
        "text": " ".join([post.text, *short]),
        "edit_history_tweet_ids": [post.id],
        "author_id": str(post.author),
        "created_at": post.created_at,
        "lang": "en",
        "public_metrics": {
            "retweet_count": post.reposts,
            "reply_count": post.replies,
            "like_count": post.likes,
            "quote_count": 0,
            "bookmark_count": 0,
            "impression_count": 12,
        },
    }
    if post.links:
        urls = [{"url": url, "expanded_url": link} for url, link in zip(short, post.links, strict=True)]
        answer["entities"] = {"urls": urls}
    always = {"id", "text", "edit_history_tweet_ids"}
    return {key: value for key, value in answer.items() if key in fields | always}


def x_problem(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error as X words it."""
    body = {"title": title, "detail": detail, "type": "about:blank", "status": str(status)}
    return web.json_response(body, status=status, headers=headers)


def compressed(body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *body* with gzip, as the exchange does for everyone who accepts it."""
    always = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    return web.Response(body=gzip.compress(body, 1), headers={**(headers or {}), **always})


PHRASES = (
    "{question} Loaded up, this is free money 🚀 #Polymarket",
    "{question} Rigged. I am losing on this one. https://polymarket.com/",
    "No chance that this one resolves early, says the prediction market",
    "polymarket is buzzing about it: {question}",
    "kalshi and polymarket are {n} points apart again",
)


def chatter(exchange: FakePolymarket, posts: int, seed: int) -> None:
    """Let *posts* posts of the last two hours be found on X, most of them about one of the ten most traded markets."""
    rng = random.Random(seed)
    now = datetime.now(UTC)
    popular = sorted(exchange.markets.values(), key=lambda market: market.volume_24h or 0)[-10:]
    for number in range(posts):
        market = rng.choice(popular)
        links = (f"https://polymarket.com/event/{market.event_slug}/{market.slug}",) if rng.random() < 0.5 else ()
        moment = now - timedelta(hours=2) * (1 - (number + 1) / posts) - timedelta(seconds=1)
        exchange.say(
            rng.choice(PHRASES).format(question=market.question, n=number),
            author=7_000_000 + rng.randrange(posts),
            created_at=f"{moment:%Y-%m-%dT%H:%M:%S}.000Z",
            likes=int(rng.expovariate(0.1)),
            reposts=int(rng.expovariate(0.5)),
            replies=int(rng.expovariate(0.5)),
            links=links,
        )
