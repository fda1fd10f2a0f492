"""A Polymarket and an X on loopback: their behaviour, their quirks, their limits, and faults on demand.

As a command it runs another command against itself, so that anyone without a network sees the collector work:

    python tests/fake_polymarket.py --markets 1000 --latency-ms 80 async-collector --min-volume 0

For tests it is a server to be started with `async with FakePolymarket(...)`. Everything follows from the seed, and
`FakePolymarket.markets` is the truth that stored rows are compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import bisect
import gzip
import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from multidict import MultiMapping

PAGE_SIZE = 100
MAX_TOKENS = 500
MAX_URL = 8_000
SORT_FIELDS = {"id", "volume24hr", "volumeNum", "liquidityNum", "endDate", "startDate"}
# per sliding 10 s: https://docs.polymarket.com/api-reference/rate-limits
DOCUMENTED_LIMITS = {"/gamma/markets": 300, "/clob/books": 500, "/clob/book": 1500}
LIMIT_WINDOW_S = 10.0

WORDS = (
    "the market will resolve to yes if a credible report confirms that this event happened before noon eastern time "
    "otherwise it resolves to no primary source consensus of reporting official information from election season "
    "championship price close candle bitcoin ethereum president senate league final quarter earnings rate decision"
).split()
TOPICS = (
    ("Sports", "Games", "NBA"),
    ("Crypto", "Crypto Prices", "Bitcoin"),
    ("Trump", "Politics", "Senate"),
    ("Fed Rates", "Economy"),
    ("OpenAI", "Tech"),
    ("Music", "Culture"),
    ("Weekly",),
)
OUTCOMES = (("Yes", "No"),) * 7 + (("Up", "Down"), ("Over", "Under"), ("Lakers", "Celtics"))

Levels = tuple[tuple[str, str], ...]  # (price, size), both as they are sent
SortKey = tuple[float, int]  # the value of the field that a listing is ordered by, and the market's id


@dataclass(slots=True)
class FakeMarket:
    """The truth on one market."""

    number: int  # Gamma's id
    condition_id: str
    tokens: tuple[str, str]
    outcomes: tuple[str, str]
    question: str
    slug: str
    event_slug: str
    description: str
    tags: tuple[str, ...]
    start_date: str
    end_date: str | None
    volume_24h: float | None
    liquidity: float | None
    last_trade: str  # "" before the first trade
    book_ms: int
    bids: Levels  # of YES, best last; NO mirrors it
    asks: Levels
    has_books: bool = True
    active: bool = True
    closed: bool = False
    accepting_orders: bool = True
    gamma_price: float | None = 0.5  # outcomePrices[0]; None leaves the key out
    closed_time: str | None = None
    on_clob: bool = True  # whether the CLOB knows it
    winner: int | None = None  # the side that the CLOB says has won
    changes: dict[str, Any] = field(default_factory=dict)  # keys to overwrite in Gamma's answer
    without: tuple[str, ...] = ()  # keys to leave out of Gamma's answer

    @property
    def id(self) -> str:
        """Gamma's id, as it is sent."""
        return str(self.number)

    @property
    def best_bid(self) -> tuple[str, str] | None:
        """Price and size of the highest bid for YES."""
        return max(self.bids, key=lambda level: float(level[0]), default=None)

    @property
    def best_ask(self) -> tuple[str, str] | None:
        """Price and size of the lowest ask for YES."""
        return min(self.asks, key=lambda level: float(level[0]), default=None)


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


def mirrored(levels: Levels) -> Levels:
    """Return the other token's side: whoever bids p for YES asks 1 - p for NO."""
    return tuple((f"{1 - float(price):.3f}", size) for price, size in levels)


@cache
def shared_parts(seed: int) -> tuple[list[str], list[tuple[Levels, Levels]]]:
    """Return texts and books (bids, asks) that markets share, so that 150,000 of them are made in seconds."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=60 + 2 * number)) + ".\n\nIt's “final”." for number in range(64)]
    return texts, [made_book(rng, middle) for middle in range(1, 1000, 2)]


def made_book(rng: random.Random, middle: int) -> tuple[Levels, Levels]:
    """Return bids and asks around *middle* thousandths, the best level last as the exchange sends them."""
    depth = rng.randrange(30, 60)
    bids = range(middle - rng.randrange(1, 4), 0, -1)[:depth]
    asks = range(middle + rng.randrange(3), 1000)[:depth]

    def levels(prices: range) -> Levels:
        return tuple((f"{p / 1000:.3f}", f"{rng.randrange(5, 10**7) / 100:g}") for p in reversed(prices))

    return levels(bids), levels(asks)


class Maker:
    """Makes markets from a seed."""

    def __init__(self, seed: int) -> None:
        """Begin at the beginning of what *seed* gives."""
        self._rng = random.Random(seed)
        self._texts, self._books = shared_parts(seed)

    def market(self, number: int) -> FakeMarket:
        """Return a market of id *number*, odd in one of the ways in which real ones are."""
        rng = self._rng
        bids, asks = rng.choice(self._books)
        kind = rng.random()
        if kind < 0.06:
            bids = ()
        elif kind < 0.1:
            asks = ()
        elif kind < 0.12:
            bids, asks = (), ()
        start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(20_000_000))
        new = kind > 0.92
        slug = f"will-{rng.choice(WORDS)}-{rng.choice(WORDS)}-{number}"
        market = FakeMarket(
            number=number,
            condition_id=f"0x{rng.getrandbits(256):064x}",
            tokens=(str(rng.getrandbits(255) + 2**254), str(rng.getrandbits(255) + 2**254)),
            outcomes=rng.choice(OUTCOMES),
            question=f"Will {rng.choice(WORDS)} {rng.choice(WORDS)} {rng.choice(WORDS)} happen by day {number}?",
            slug=slug,
            event_slug=f"event-{number // 3}",
            description=rng.choice(self._texts),
            tags=rng.choice(TOPICS),
            start_date=f"{start:%Y-%m-%dT%H:%M:%S}{rng.choice(('', '.9', '.987', '.987654'))}Z",
            end_date=None if kind > 0.99 else f"{start + timedelta(days=200):%Y-%m-%dT%H:%M:%SZ}",
            volume_24h=None if new else round(math.exp(rng.uniform(0, 16)), 6),
            liquidity=None if new else round(math.exp(rng.uniform(2, 14)), 5),
            last_trade="" if new else f"{rng.randrange(1, 1000) / 1000:.3f}",
            book_ms=1_790_000_000_000 + rng.randrange(10**9),
            bids=bids,
            asks=asks,
        )
        bid, ask = market.best_bid, market.best_ask
        price = ((float(bid[0]) if bid else 0) + (float(ask[0]) if ask else 1)) / 2
        market.gamma_price = round(price if kind < 0.8 else price / 2, 6)  # Gamma's can be five minutes old
        return market


@dataclass(slots=True)
class Fault:
    """What happens to the next requests for a path instead of an answer."""

    status: int = 200
    times: float = 1  # math.inf: for ever
    body: bytes | None = None  # None: the documented body of the status, or the true answer of a 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang: bool = False  # never answer
    disconnect: bool = False  # close the connection without an answer
    cut: bool = False  # promise the whole answer, send half of it
    mutate: Callable[[Any], Any] | None = None  # change the decoded true answer


@dataclass(slots=True)
class Arrival:
    """A request as the server saw it."""

    path: str
    query: str
    time: float  # monotonic
    tokens: int = 0  # asked for, where there are any
    status: int = 0  # of the answer; 0 until there is one


ARRIVAL = web.RequestKey("arrival", Arrival)


class FakePolymarket:
    """The exchange on loopback: Gamma under /gamma, the CLOB under /clob.

    Args:
        markets: how many open markets there are at the start.
        seed: everything follows from it.
        latency_s: before each answer.
        limits: requests per 10 s and path prefix; more get a 429.
        placeholders: how many markets that never opened are listed among them.
    """

    def __init__(
        self,
        markets: int = 60,
        *,
        seed: int = 1,
        latency_s: float = 0.0,
        limits: Mapping[str, int] | None = None,
        placeholders: int = 0,
    ) -> None:
        """Make the markets; nothing listens yet."""
        self._maker = Maker(seed)
        self.latency_s = latency_s
        self.limits = dict(limits or {})
        self.markets: dict[str, FakeMarket] = {}
        self._by_token: dict[str, tuple[FakeMarket, int]] = {}
        self.arrivals: list[Arrival] = []
        self.most_tokens = MAX_TOKENS  # in one request for books
        self.forgets_cursors = False  # a cursor is answered with the first page, as a wrong name for it is
        self._arrived = asyncio.Event()
        self.in_flight = 0
        self.most_in_flight = 0
        self.posts: list[FakePost] = []  # the oldest first
        self.token = "AAAA-loopback-token"  # noqa: S105  opens nothing
        self.authors_sent = 0
        self.oldest_since_id = 0  # posts before this one are more than a week old
        self.searches_left = 450
        self.searches_reset_at = 1_795_358_400  # Unix time
        self.unknown: list[str] = []  # requests that the real exchange does not have, and our own bugs
        self._faults: dict[str, deque[Fault]] = {}
        self._windows: dict[str, deque[float]] = {}
        self._sorted: dict[tuple[str, bool, bool], tuple[list[SortKey], list[FakeMarket]]] = {}
        self._pages: dict[str, bytes] = {}
        self._levels: dict[tuple[Levels, bool], msgspec.Raw] = {}
        self._next_number = 500_000
        self._runner: web.AppRunner | None = None
        self.url = ""
        for _ in range(markets):
            self.add_market()
        for _ in range(placeholders):
            self.add_market(active=False, gamma_price=None, has_books=False, volume_24h=None)

    # --- the script of a test

    def add_market(self, **changes: Any) -> FakeMarket:  # noqa: ANN401
        """Open a new market; ids grow with time."""
        self._next_number += 1 + self._next_number % 3
        market = self._maker.market(self._next_number)
        self.change(market, **changes)
        self.markets[market.id] = market
        for side, token in enumerate(market.tokens):
            self._by_token[token] = (market, side)
        return market

    def close(self, market: FakeMarket, *prices: str, **changes: Any) -> None:  # noqa: ANN401
        """Close *market* with *prices* as Gamma writes them."""
        changes["changes"] = market.changes | {"outcomePrices": json.dumps(prices)}
        self.change(market, closed=True, closed_time="2026-11-22 14:20:04+00", **changes)

    def remove(self, market: FakeMarket) -> None:
        """Let *market* disappear without a trace."""
        del self.markets[market.id]
        self.change(market)

    def change(self, market: FakeMarket, **changes: Any) -> None:  # noqa: ANN401
        """Set attributes of *market*, and forget what was rendered."""
        for name, value in changes.items():
            setattr(market, name, value)
        self._sorted.clear()
        self._pages.clear()

    def say(self, text: str, **traits: Any) -> FakePost:  # noqa: ANN401
        """Post *text* on X; see `FakePost`. Later posts have greater ids, whatever their time."""
        post = FakePost(2_000_000_000_000_000_000 + 4_194_304 * len(self.posts), text, **traits)
        self.posts.append(post)
        return post

    def fail_next(self, path: str, **fault: Any) -> None:  # noqa: ANN401
        """Let the next requests whose path ends with *path* fail; see `Fault`. *retry_after* sets that header."""
        if (retry_after := fault.pop("retry_after", None)) is not None:
            fault["headers"] = {"Retry-After": str(retry_after)}
        self._faults.setdefault(path, deque()).append(Fault(**fault))

    def heal(self) -> None:
        """Forget the faults that are still to come."""
        self._faults.clear()

    async def until_asked(self, path: str, times: int = 1) -> None:
        """Wait until *path* has been asked for so often."""
        while len(self.asked(path)) < times:
            self._arrived.clear()
            await self._arrived.wait()

    def asked(self, path: str) -> list[Arrival]:
        """Return the requests for *path* so far."""
        return [arrival for arrival in self.arrivals if arrival.path.endswith(path)]

    def busiest(self, path: str, window_s: float) -> int:
        """Return how many requests for *path* arrived at most within any *window_s* seconds."""
        times = sorted(arrival.time for arrival in self.asked(path))
        return max((bisect.bisect_left(times, start + window_s) - n for n, start in enumerate(times)), default=0)

    # --- life

    async def __aenter__(self) -> Self:
        """Listen on a free port of 127.0.0.1."""
        app = web.Application(middlewares=[self._middleware], client_max_size=2**20)
        app.router.add_get("/gamma/markets/keyset", self._keyset)
        app.router.add_get("/clob/book", self._book)
        app.router.add_get("/clob/markets/{condition_id}", self._clob_market)
        app.router.add_post("/clob/books", self._books)
        app.router.add_get("/x/2/tweets/search/recent", self._search)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a collector here."""
        return {
            "GAMMA_API": f"{self.url}/gamma",
            "CLOB_API": f"{self.url}/clob",
            "TWITTER_API": f"{self.url}/x",
            "TWITTER_BEARER_TOKEN": self.token if self.posts else "",
            "NO_PROXY": "127.0.0.1",
        }

    # --- every request

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        arrival = Arrival(request.path, request.query_string, time.monotonic())
        self.arrivals.append(arrival)
        self._arrived.set()
        request[ARRIVAL] = arrival
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            response = await self._respond(request, handler)
            arrival.status = response.status
            if self.latency_s:
                await asyncio.sleep(arrival.time + self.latency_s - time.monotonic())
        finally:
            self.in_flight -= 1
        return response

    async def _respond(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        fault = self._fault_for(request.path)
        if not self._admit(request.path, request[ARRIVAL].time):
            return problem(429, {"error": "Too Many Requests"})
        if fault:
            return await self._failing(fault, request, handler)
        return await self._answer(request, handler)

    async def _answer(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.Response:
        if len(request.path_qs) > MAX_URL:
            return web.Response(status=414)
        try:
            response: web.Response = await handler(request)
        except ConnectionError:  # whoever asked has gone
            raise
        except Exception as error:
            self.unknown.append(f"{request.method} {request.path_qs}: {error!r}")
            raise
        return response

    def _admit(self, path: str, now: float) -> bool:
        for prefix, limit in self.limits.items():
            if path == prefix or path.startswith(prefix + "/"):
                window = self._windows.setdefault(prefix, deque())
                while window and window[0] <= now - LIMIT_WINDOW_S:
                    window.popleft()
                if len(window) >= limit:
                    return False
                window.append(now)
        return True

    def _fault_for(self, path: str) -> Fault | None:
        for suffix, faults in self._faults.items():
            if path.endswith(suffix) and faults:
                fault = faults[0]
                fault.times -= 1
                if fault.times <= 0:
                    faults.popleft()
                return fault
        return None

    async def _failing(
        self, fault: Fault, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        await asyncio.sleep(fault.delay_s)
        if fault.hang:
            await asyncio.sleep(3600)
        if fault.disconnect and request.transport:
            request.transport.close()
        if fault.body is not None:
            return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        if fault.status != 200:
            error = {"error": "Too Many Requests"} if fault.status == 429 else {"error": "scripted"}
            return problem(fault.status, error, fault.headers)
        response = await self._answer(request, handler)
        body = gzip.decompress(response.body) if isinstance(response.body, bytes) else b""
        if fault.mutate:
            return web.Response(body=msgspec.json.encode(fault.mutate(msgspec.json.decode(body))))
        if fault.cut:
            half = web.StreamResponse(headers={"Content-Length": str(len(body)), "Content-Type": "application/json"})
            await half.prepare(request)
            await half.write(body[: len(body) // 2])
            if request.transport:
                request.transport.close()
            return half
        return response

    # --- Gamma

    async def _keyset(self, request: web.Request) -> web.Response:
        query = request.query
        if "offset" in query:
            return problem(422, {"type": "validation error", "error": "offset is not allowed on keyset endpoints"})
        if query.get("order", "id") not in SORT_FIELDS:
            return problem(422, {"type": "validation error", "error": "order fields are not valid"})
        try:
            after = decoded_cursor(query["after_cursor"]) if "after_cursor" in query else None
            after = None if self.forgets_cursors else after
        except ValueError:
            return problem(422, {"type": "validation error", "error": "invalid cursor"})
        if request.query_string not in self._pages:
            self._pages[request.query_string] = self._render_page(query, after)
        return compressed(self._pages[request.query_string])

    def _render_page(self, query: MultiMapping[str], after: SortKey | None) -> bytes:
        limit = min(int(query.get("limit", 20)), PAGE_SIZE)
        order = query.get("order", "id")
        ascending = query.get("ascending", "true") == "true"
        closed = query.get("closed") == "true"
        keys, markets = self._listing(order, ascending=ascending, closed=closed)
        if ids := query.getall("id", []):
            found = [self.markets[id_] for id_ in ids if id_ in self.markets]
            rows = sorted((self._key(market, order, ascending=ascending), market.number) for market in found)
            markets = [market for _, number in rows if (market := self.markets[str(number)]).closed == closed]
            keys = [self._key(market, order, ascending=ascending) for market in markets]
        first = bisect.bisect_right(keys, after) if after else 0
        shown = markets[first : first + limit]
        with_tags = query.get("include_tag") == "true"
        page: dict[str, Any] = {"markets": [self.gamma_market(market, with_tags=with_tags) for market in shown]}
        if len(shown) == limit:
            page["next_cursor"] = encoded_cursor(keys[first + limit - 1])
        return msgspec.json.encode(page)

    def _listing(self, order: str, *, ascending: bool, closed: bool) -> tuple[list[SortKey], list[FakeMarket]]:
        """Return the sort keys and the markets of a listing, kept until a market changes."""
        name = (order, ascending, closed)
        if name not in self._sorted:
            rows = sorted(
                (self._key(market, order, ascending=ascending), market.number)
                for market in self.markets.values()
                if market.closed == closed
            )
            self._sorted[name] = ([key for key, _ in rows], [self.markets[str(number)] for _, number in rows])
        return self._sorted[name]

    def _key(self, market: FakeMarket, order: str, *, ascending: bool) -> SortKey:
        value = float(market.number) if order == "id" else market.volume_24h or 0.0
        return (value, market.number) if ascending else (-value, -market.number)

    def gamma_market(self, market: FakeMarket, *, with_tags: bool) -> dict[str, Any]:
        """Return *market* as Gamma writes it: JSON in strings, numbers in strings, absent keys instead of nulls."""
        bid, ask = market.best_bid, market.best_ask
        price = market.gamma_price
        answer: dict[str, Any] = {
            "id": market.id,
            "question": market.question,
            "conditionId": market.condition_id,
            "slug": market.slug,
            "resolutionSource": "",
            "endDate": market.end_date,
            "startDate": market.start_date,
            "image": f"https://polymarket-upload.s3.us-east-2.amazonaws.com/{market.slug}.png",
            "icon": f"https://polymarket-upload.s3.us-east-2.amazonaws.com/{market.slug}.png",
            "description": market.description,
            "outcomes": json.dumps(market.outcomes),
            "outcomePrices": None if price is None else json.dumps([f"{price:g}", f"{1 - price:.6g}"]),
            "volume": None if market.volume_24h is None else str(market.volume_24h * 9),
            "active": market.active,
            "closed": market.closed,
            "marketMakerAddress": "",
            "createdAt": market.start_date,
            "updatedAt": market.start_date,
            "closedTime": market.closed_time,
            "new": False,
            "featured": False,
            "archived": False,
            "restricted": True,
            "questionID": market.condition_id,
            "enableOrderBook": True,
            "orderPriceMinTickSize": 0.001,
            "orderMinSize": 5,
            "volumeNum": None if market.volume_24h is None else market.volume_24h * 9,
            "liquidity": None if market.liquidity is None else str(market.liquidity),
            "liquidityNum": market.liquidity,
            "volume24hr": market.volume_24h,
            "volume24hrClob": market.volume_24h,
            "clobTokenIds": json.dumps(market.tokens),
            "umaBond": "500",
            "umaReward": "5",
            "acceptingOrders": market.accepting_orders,
            "negRisk": False,
            "events": [
                {
                    "id": str(market.number // 3),
                    "ticker": market.event_slug,
                    "slug": market.event_slug,
                    "title": market.question,
                    "description": market.description,
                    "startDate": market.start_date,
                    "active": True,
                    "closed": False,
                    "liquidity": 62165011.94307,
                    "volume": 396524399.69236,
                    "openInterest": 0,
                    "competitive": 0.8509608092126719,
                    "enableOrderBook": True,
                    "commentCount": 2583,
                }
            ],
            "ready": False,
            "funded": False,
            "cyom": False,
            "competitive": 0.85,
            "approved": True,
            "rewardsMinSize": 200,
            "rewardsMaxSpread": 3.5,
            "spread": None if ask is None else round(float(ask[0]) - (float(bid[0]) if bid else 0), 6),
            "lastTradePrice": float(market.last_trade) if market.last_trade else None,
            "bestBid": float(bid[0]) if bid else None,
            "bestAsk": float(ask[0]) if ask else None,
            "clearBookOnStart": True,
            "umaResolutionStatuses": "[]",
            "feesEnabled": False,
            "version": "v1",
        }
        if with_tags:
            answer["tags"] = [
                {"id": str(number), "label": label, "slug": label.lower().replace(" ", "-"), "forceShow": False}
                for number, label in enumerate(market.tags)
            ]
        answer |= market.changes
        return {key: value for key, value in answer.items() if value is not None and key not in market.without}

    # --- CLOB

    async def _book(self, request: web.Request) -> web.Response:
        request[ARRIVAL].tokens = 1
        token = request.query.get("token_id", "")
        if not token.isdigit():
            return problem(400, {"error": "Invalid token id"})
        book = self.book(token)
        if book is None:
            return problem(404, {"error": "No orderbook exists for the requested token id"})
        return compressed(book)

    async def _clob_market(self, request: web.Request) -> web.Response:
        wanted = request.match_info["condition_id"]
        market = next((market for market in self.markets.values() if market.condition_id == wanted), None)
        if market is None or not market.on_clob:
            return problem(404, {"error": "market not found"})
        tokens = [
            {"token_id": token, "outcome": outcome, "price": 0.5, "winner": market.winner == side}
            for side, (token, outcome) in enumerate(zip(market.tokens, market.outcomes, strict=True))
        ]
        answer = {"condition_id": wanted, "closed": market.closed, "active": True, "tokens": tokens}
        return compressed(msgspec.json.encode(answer))

    async def _books(self, request: web.Request) -> web.Response:
        try:
            tokens = [entry["token_id"] for entry in msgspec.json.decode(await request.read())]
        except (msgspec.DecodeError, TypeError, KeyError):
            return problem(400, {"error": "Invalid payload"})
        request[ARRIVAL].tokens = len(tokens)
        if len(tokens) > self.most_tokens:
            return problem(400, {"error": "Payload exceeds the limit"})
        books = [book for token in sorted(tokens) if (book := self.book(token)) is not None]  # not in the order asked
        return compressed(b"[" + b",".join(books) + b"]")

    def book(self, token: str) -> bytes | None:
        """Return the book of *token* as the CLOB writes it, or None if there is none."""
        market, side = self._by_token.get(token, (None, 0))
        if market is None or market.closed or not market.has_books:
            return None
        bids, asks = (market.bids, market.asks) if side == 0 else (market.asks, market.bids)
        book = {
            "market": market.condition_id,
            "asset_id": token,
            "timestamp": str(market.book_ms),
            "hash": "",
            "bids": self._rendered(bids, mirror=side == 1),
            "asks": self._rendered(asks, mirror=side == 1),
            "min_order_size": "5",
            "tick_size": "0.001",
            "neg_risk": False,
            "last_trade_price": market.last_trade,
        }
        book["hash"] = hashlib.sha1(msgspec.json.encode(book), usedforsecurity=False).hexdigest()
        return msgspec.json.encode(book)

    def _rendered(self, levels: Levels, *, mirror: bool) -> msgspec.Raw:
        """Return one side of a book as bytes, which many markets share."""
        key = (levels, mirror)
        if key not in self._levels:
            shown = mirrored(levels) if mirror else levels
            rows = [{"price": price, "size": size} for price, size in shown]
            self._levels[key] = msgspec.Raw(msgspec.json.encode(rows))
        return self._levels[key]

    # --- X

    async def _search(self, request: web.Request) -> web.Response:
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


X_PARAMETERS = {
    *("query", "max_results", "tweet.fields", "expansions", "user.fields"),
    *("since_id", "next_token", "start_time", "end_time"),
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


def problem(status: int, body: Mapping[str, str], headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error as the exchange words it."""
    return web.json_response(body, status=status, headers=headers)


def compressed(body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *body* with gzip, as the exchange does for everyone who accepts it."""
    always = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    return web.Response(body=gzip.compress(body, 1), headers={**(headers or {}), **always})


def encoded_cursor(key: SortKey) -> str:
    """Return the opaque cursor that continues after *key*."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def decoded_cursor(cursor: str) -> SortKey:
    """Return the key that a cursor stands for; anything else is a ValueError."""
    value, number = json.loads(base64.urlsafe_b64decode(cursor))
    return float(value), int(number)


# --- the command

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


async def serve(exchange: FakePolymarket, command: Sequence[str]) -> int:
    """Run *command* against *exchange* and return its exit code; signals are the command's business."""
    loop = asyncio.get_running_loop()
    async with exchange:
        env = {"POLYMARKET_DB": "stand_in.db"} | os.environ | exchange.environment  # not among real markets
        child = await asyncio.create_subprocess_exec(*command, env=env)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal sends it to the child as well
        loop.add_signal_handler(signal.SIGTERM, child.terminate)
        code = await child.wait()
    return code if code >= 0 else 128 - code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command against a new exchange and return the command's exit code."""
    parser = argparse.ArgumentParser(description="Run COMMAND against a Polymarket on loopback.")
    parser.add_argument("--markets", type=int, default=400, metavar="N", help="open markets (400)")
    parser.add_argument("--latency-ms", type=float, default=0, metavar="MS", help="before each answer (0)")
    parser.add_argument("--posts", type=int, default=0, metavar="N", help="on X, and a token that opens it (0)")
    parser.add_argument("--limits", choices=("documented", "none"), default="documented", help="(documented)")
    parser.add_argument("--seed", type=int, default=1, help="everything follows from it (1)")
    parser.add_argument("--report", action="store_true", help="say at the end what was asked and what was refused")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND...")
    args = parser.parse_args(argv)
    if not args.command:
        parser.error("a command is missing")
    exchange = FakePolymarket(
        args.markets,
        seed=args.seed,
        latency_s=args.latency_ms / 1000,
        limits=DOCUMENTED_LIMITS if args.limits == "documented" else None,
        placeholders=args.markets // 100,
    )
    chatter(exchange, args.posts, args.seed)
    try:
        code = asyncio.run(serve(exchange, args.command))
    except OSError as error:
        parser.error(f"cannot run {args.command[0]}: {error}")
    if args.report:
        refused = sum(arrival.status == 429 for arrival in exchange.arrivals)
        paths = Counter(arrival.path for arrival in exchange.arrivals)
        print(f"stand-in: {dict(paths)}, {refused} refused", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
