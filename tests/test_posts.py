"""covers: posts on X: read once, paid for once, stored whole, and never at the cost of the markets."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

SEARCH = "/search/recent"
POSTS = "SELECT * FROM tweets ORDER BY tweet_id"


@pytest.fixture
def _token(exchange: FakePolymarket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open X to the collectors of this test."""
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", exchange.token)


def asked(exchange: FakePolymarket, name: str) -> list[str]:
    """Return what each search so far has had as parameter *name*."""
    found = []
    for arrival in exchange.asked(SEARCH):
        values = [pair.partition("=")[2] for pair in arrival.query.split("&") if pair.startswith(f"{name}=")]
        found.append(values[0] if values else "")
    return found


def traces(error: BaseException) -> list[str]:
    """Return the traceback of *error* with the local variables of everybody but the test."""
    assert error.__traceback__
    whole = traceback.TracebackException(type(error), error, error.__traceback__.tb_next, capture_locals=True)
    return list(whole.format())


@pytest.mark.usefixtures("_token")
async def test_a_post_is_stored_as_it_was_sent(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    link = f"https://polymarket.com/event/{market.event_slug}/{market.slug}?tid=5"
    linked = exchange.say("free money \N{ROCKET}", links=[link], likes=5, reposts=3, replies=2)
    other = exchange.say("kalshi &amp; co", author=7_000_009, created_at="2026-11-22T12:59:59.999Z")
    result = await collector.collect_all()
    first, second = rows(database, POSTS)
    assert first == {
        "tweet_id": linked.id,
        "timestamp": "2026-11-22 14:14:00",
        "text": "free money \N{ROCKET} https://t.co/00000000000",
        "author_username": None,
        "author_id": "7000001",
        "likes": 5,
        "retweets": 3,
        "replies": 2,
        "engagement_score": 13,
        "sentiment_score": 0.5,
        "market_id": market.id,
        "keywords": f"polymarket.com/event/{market.event_slug}/{market.slug}",
        "created_at": "2026-11-22 14:15:00",
        "run_id": 1,
        "lang": "en",
        "links": json.dumps([link]),
    }
    assert (second["tweet_id"], second["text"], second["timestamp"]) == (other.id, other.text, "2026-11-22 12:59:59")
    assert (second["market_id"], second["keywords"], second["links"]) == (None, None, None)
    assert (second["author_id"], second["sentiment_score"], second["engagement_score"]) == ("7000009", 0.0, 0)
    assert (result["tweets"], result["stats"]["tweets_fetched"], result["tweets_reason"]) == (2, 2, None)
    (run,) = rows(database, "SELECT status, tweets, newest_tweet_id, tweets_complete, errors FROM runs")
    assert run == {
        "status": "complete",
        "tweets": 2,
        "newest_tweet_id": other.id,
        "tweets_complete": 1,
        "errors": 0,
    }


@pytest.mark.usefixtures("_token")
async def test_over_many_runs_every_post_is_stored_once_and_paid_for_once(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    for number in range(6):
        for _ in range(7 * number):
            exchange.say(f"prediction market, day {len(exchange.posts)}")
        await make_collector().collect_all()  # a new one each time, as cron does
        clock.elapsed_s += 900
    assert [post.times_sent for post in exchange.posts] == [1] * 105
    assert [row["tweet_id"] for row in rows(database, POSTS)] == [post.id for post in exchange.posts]
    assert [row["tweets"] for row in rows(database, "SELECT tweets FROM runs")] == [0, 7, 14, 21, 28, 35]
    newest = [exchange.posts[7 * n * (n + 1) // 2 - 1].id for n in range(1, 5)]
    assert asked(exchange, "since_id") == ["", "", *newest]


@pytest.mark.usefixtures("_token")
@pytest.mark.parametrize(
    ("budget", "sizes"),
    [(10, ["10"]), (99, ["99"]), (100, ["100"]), (105, ["95", "10"]), (119, ["100", "19"]), (200, ["100", "100"])],
)
async def test_no_run_reads_more_posts_than_it_may(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    budget: int,
    sizes: list[str],
) -> None:
    for _ in range(201):
        exchange.say("kalshi")
    result = await make_collector(twitter_max_posts=budget).collect_all()
    assert sum(post.times_sent for post in exchange.posts) == budget == result["stats"]["tweets_fetched"]
    assert [row["tweet_id"] for row in rows(database, POSTS)] == [post.id for post in exchange.posts[-budget:]]
    assert asked(exchange, "max_results") == sizes
    assert rows(database, "SELECT tweets_complete, newest_tweet_id FROM runs") == [
        {"tweets_complete": 0, "newest_tweet_id": exchange.posts[-1].id}
    ]


@pytest.mark.usefixtures("_token")
async def test_pages_go_on_until_nothing_new(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(150):
        exchange.say("kalshi")
    await make_collector(twitter_max_posts=1_000).collect_all()
    assert len(exchange.asked(SEARCH)) == 2
    assert rows(database, "SELECT count(*) AS posts, tweets_complete FROM tweets JOIN runs USING (run_id)") == [
        {"posts": 150, "tweets_complete": 1}
    ]


@pytest.mark.usefixtures("_token")
async def test_a_page_that_leads_nowhere_ends_the_search(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    exchange.fail_next(SEARCH, times=9, mutate=lambda _: {"meta": {"result_count": 0, "next_token": "b7"}})
    result = await collector.collect_all()
    assert (len(exchange.asked(SEARCH)), result["tweets"]) == (1, 0)


@pytest.mark.usefixtures("_token")
async def test_what_comes_beside_posts_is_a_failure_and_the_posts_are_kept(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    exchange.say("kalshi")
    exchange.say("polymarket.com")
    problem = {"title": "Not Found Error", "detail": "Could not find user", "type": "about:blank"}

    def spoil(page: dict[str, Any]) -> dict[str, Any]:
        page["data"][0]["text"] = 17
        return page | {"errors": [problem]}

    exchange.fail_next(SEARCH, mutate=spoil)
    result = await collector.collect_all()
    assert [row["text"] for row in rows(database, POSTS)] == ["kalshi"]
    assert [(row["stage"], row["reason"]) for row in rows(database, "SELECT * FROM failures")] == [
        ("posts", "Expected `str`, got `int` - at `$.text`"),
        ("posts", "X left something out: Could not find user"),
    ]
    assert (result["status"], result["reason"]) == ("complete", None)
    assert result["tweets_reason"] == "Expected `str`, got `int` - at `$.text`"


@pytest.mark.usefixtures("_token")
async def test_an_odd_figure_costs_no_post(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    exchange.say("kalshi")

    def spoil(page: dict[str, Any]) -> dict[str, Any]:
        page["data"][0] |= {
            "public_metrics": {"like_count": "many", "retweet_count": "2", "reply_count": 1},
            "lang": "",
        }
        return page

    exchange.fail_next(SEARCH, mutate=spoil)
    result = await collector.collect_all()
    assert rows(database, "SELECT text, likes, retweets, replies, engagement_score, lang FROM tweets") == [
        {"text": "kalshi", "likes": None, "retweets": 2, "replies": 1, "engagement_score": None, "lang": None}
    ]
    assert result["tweets_reason"] == "left out, for it cannot be read: like_count of 1 posts"


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"status": 401}, 'HTTP 401: \'{"error": "scripted"}\'; check TWITTER_BEARER_TOKEN'),
    ({"status": 402, "body": b'{"title":"CreditsDepleted"}'}, "CreditsDepleted\"}'; the credits are used up"),
    ({"status": 403}, 'HTTP 403: \'{"error": "scripted"}\'; the account may not search'),
    ({"status": 429, "times": 9}, 'HTTP 429: \'{"error": "Too Many Requests"}\'; X is asked again when'),
    ({"status": 503, "times": 9}, 'HTTP 503: \'{"error": "scripted"}\'; the next run goes on'),
    ({"disconnect": True}, "; the next run goes on"),
    ({"cut": True}, "; the next run goes on"),
    ({"body": b"<html>"}, "no JSON but application/octet-stream: "),
    ({"body": b'{"data": []}'}, "Object missing required field `meta`"),
    ({"body": b'{"error": "what"}', "times": 9}, "HTTP 200, and the error 'what'"),
    (
        {"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}, "body": b""},
        "HTTP 302: refusing a redirect to 'http://127.0.0.1:1/'",
    ),
]


@pytest.mark.usefixtures("_token")
@pytest.mark.parametrize(("fault", "reason"), FAULTS)
async def test_the_markets_are_the_same_whatever_x_does(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    tmp_path: Path,
    fault: dict[str, Any],
    reason: str,
) -> None:
    exchange.say("kalshi")
    good, bad = tmp_path / "good.db", tmp_path / "bad.db"
    await make_collector(db_path=good).collect_all()
    exchange.fail_next(SEARCH, **fault)
    result = await make_collector(db_path=bad).collect_all()
    for query in ("SELECT * FROM snapshots ORDER BY market_id", "SELECT * FROM markets ORDER BY market_id"):
        stored = [
            {key: value for key, value in row.items() if key not in {"id", "timestamp", "first_seen"}}
            for path in (good, bad)
            for row in rows(path, query)
        ]
        assert stored[:60] == stored[60:]
    assert (result["status"], result["snapshots"], result["tweets"], result["reason"]) == ("complete", 60, 0, None)
    (failure,) = rows(bad, "SELECT * FROM failures")
    assert (failure["market_id"], failure["stage"], failure["reason"]) == (None, "posts", result["tweets_reason"])
    assert reason in failure["reason"]


@pytest.mark.usefixtures("_token")
@pytest.mark.parametrize("fault", [{"disconnect": True}, {"cut": True}, {"body": b'{"data":['}, {"status": 429}])
async def test_an_answer_that_may_have_been_paid_for_is_not_asked_for_again(
    exchange: FakePolymarket, collector: ac.AsyncCollector, fault: dict[str, Any]
) -> None:
    exchange.say("kalshi")
    exchange.fail_next(SEARCH, **fault)
    await collector.collect_all()
    assert len(exchange.asked(SEARCH)) == 1
    assert (await collector.collect_all())["tweets"] == 1  # the next run has them


@pytest.mark.usefixtures("_token")
async def test_a_hanging_x_is_given_up_after_the_timeout(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    exchange.fail_next(SEARCH, hang=True, times=9)
    result = await make_collector(timeout=0.2, workers=1).collect_all()
    assert (result["status"], result["snapshots"], len(exchange.asked(SEARCH))) == ("complete", 60, 1)
    assert "no complete answer within 0.2 s" in str(result["tweets_reason"])


@pytest.mark.usefixtures("_token")
async def test_a_refusal_that_costs_nothing_is_tried_again(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    exchange.say("kalshi")
    exchange.fail_next(SEARCH, status=503, times=2)
    assert (await collector.collect_all())["tweets"] == 1


@pytest.mark.usefixtures("_token")
async def test_a_used_up_quota_is_left_alone_until_it_is_reset(
    exchange: FakePolymarket, collector: ac.AsyncCollector, clock: JumpingClock
) -> None:
    exchange.searches_left = 2
    exchange.searches_reset_at = 1_795_356_900 + 300  # five minutes after the server's 14:15
    results = []
    for _ in range(4):
        exchange.say("kalshi")
        results.append(await collector.collect_all())
        clock.elapsed_s += 60
    assert [result["tweets"] for result in results] == [1, 1, 0, 0]
    assert len(exchange.asked(SEARCH)) == 2
    assert "its quota is used up for 240 s more" in str(results[2]["tweets_reason"])
    exchange.searches_left = 450
    clock.elapsed_s += 120
    assert (await collector.collect_all())["tweets"] == 2


@pytest.mark.usefixtures("_token")
async def test_a_search_that_is_a_week_behind_begins_anew_and_says_so(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    exchange.say("kalshi")
    await collector.collect_all()
    exchange.oldest_since_id = exchange.say("a week later: kalshi").number
    exchange.say("kalshi!")
    await collector.collect_all()
    assert [row["text"] for row in rows(database, POSTS)] == ["kalshi", "a week later: kalshi", "kalshi!"]
    assert [row["tweets_complete"] for row in rows(database, "SELECT * FROM runs")] == [1, 0]


@pytest.mark.usefixtures("_token")
async def test_a_page_is_stored_with_the_place_where_the_next_search_begins(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(150):
        exchange.say("kalshi")
    exchange.fail_next(SEARCH)  # the first page is good
    exchange.fail_next(SEARCH, hang=True)
    stored = asyncio.Event()

    def look(_: ac.Progress) -> None:
        if rows(database, POSTS):
            stored.set()

    running = asyncio.create_task(make_collector(twitter_max_posts=200, progress=look).collect_all())
    await asyncio.wait_for(exchange.until_asked(SEARCH, 2), 30)
    await asyncio.wait_for(stored.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    exchange.say("one more")
    result = await make_collector(twitter_max_posts=200).collect_all()
    assert result["tweets"] == 1
    assert max(post.times_sent for post in exchange.posts) == 1
    assert [row["tweets_complete"] for row in rows(database, "SELECT tweets_complete FROM runs")] == [0, 1]


@pytest.mark.usefixtures("_token")
async def test_what_a_failed_later_page_held_is_said_to_be_left_out(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(150):
        exchange.say("kalshi")
    exchange.fail_next(SEARCH)  # the first page is good
    exchange.fail_next(SEARCH, disconnect=True)
    result = await make_collector(twitter_max_posts=200).collect_all()
    assert result["tweets"] == 100
    assert str(result["tweets_reason"]).endswith("; older posts are left out")
    assert rows(database, "SELECT tweets_complete FROM runs") == [{"tweets_complete": 0}]


@pytest.mark.usefixtures("_token")
async def test_an_odd_user_costs_no_post(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    exchange.say("kalshi")
    odd = {"includes": {"users": [{"id": "1", "username": 5}]}, "errors": [{"title": 5}]}
    exchange.fail_next(SEARCH, mutate=lambda page: page | odd)
    result = await collector.collect_all()
    assert result["tweets"] == 1
    assert result["tweets_reason"] == "X left something out: something that is not understood"
    assert [row["author_username"] for row in rows(database, POSTS)] == [None]


@pytest.mark.usefixtures("_token")
async def test_user_names_are_bought_only_if_asked_for(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchange.say("kalshi", author=7_000_003)
    await make_collector().collect_all()
    assert exchange.authors_sent == 0
    monkeypatch.setenv("TWITTER_USERNAMES", "1")
    exchange.say("kalshi", author=7_000_004)
    await make_collector().collect_all()
    assert exchange.authors_sent == 1
    names = [(row["author_id"], row["author_username"]) for row in rows(database, POSTS)]
    assert names == [("7000003", None), ("7000004", "user7000004")]


async def test_without_a_token_nothing_is_asked_and_one_line_says_so(
    exchange: FakePolymarket,
    collector: ac.AsyncCollector,
    database: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ac._log_once.cache_clear()
    exchange.say("kalshi")
    with caplog.at_level(logging.INFO):
        results = [await collector.collect_all() for _ in range(2)]
    assert exchange.asked(SEARCH) == []
    assert [record.message for record in caplog.records if "TWITTER" in record.message] == [
        "posts on X are not read: TWITTER_BEARER_TOKEN is not set"
    ]
    assert [(result["status"], result["tweets_reason"], result["stats"]["errors"]) for result in results] == [
        ("complete", None, 0)
    ] * 2
    assert rows(database, "SELECT DISTINCT tweets_complete FROM runs") == [{"tweets_complete": None}]


async def first_page(collector: ac.AsyncCollector, network: ac.Network) -> object:
    host = ac.HttpHost(collector.settings.twitter, collector.twitter_limiter, network)
    return await host.fetch(ac.Request(ac.SEARCH_PATH), ac.decode_posts)


@pytest.mark.usefixtures("_token")
async def test_the_token_shows_up_nowhere(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    echo = json.dumps({"detail": f"Bearer {exchange.token} is bad"}).encode()
    told = [repr(collector.settings), repr(collector.settings.twitter), str(collector.settings)]
    exchange.say(f"I found a token: {exchange.token}")
    with caplog.at_level(1):
        await collector.collect_all()
        for fault in ({"status": 401, "body": echo}, {"status": 302, "headers": {"Location": f"/?{exchange.token}"}}):
            exchange.fail_next(SEARCH, **fault)
            await collector.collect_all()
        exchange.fail_next(SEARCH, status=400, body=echo)
        async with collector.connect() as (network, _):
            with pytest.raises(ac.RequestRejectedError) as caught:
                await first_page(collector, network)
        told += traces(caught.value)
    stored = b"".join(path.read_bytes() for path in database.parent.iterdir())
    assert exchange.token not in "\n".join([*told, caplog.text, *map(repr, caplog.records)])
    assert exchange.token.encode() not in stored
    assert "I found a token: ***" in rows(database, POSTS)[0]["text"]


async def test_a_host_that_repeats_the_token_in_what_is_no_http_shows_it_to_nobody(
    exchange: FakePolymarket, monkeypatch: pytest.MonkeyPatch, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 what " + head)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", exchange.token)
    monkeypatch.setenv("TWITTER_API", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    collector = make_collector()
    async with server, collector.connect() as (network, _):
        with pytest.raises(ac.NetworkError) as caught:
            await first_page(collector, network)
    told = traces(caught.value)
    assert exchange.token not in "\n".join(told)


@pytest.mark.usefixtures("_token")
async def test_a_run_that_is_stopped_while_only_x_is_outstanding_is_complete(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    stored = asyncio.Event()
    exchange.fail_next(SEARCH, hang=True)
    running = asyncio.create_task(make_collector(progress=lambda _: stored.set()).collect_all())
    await asyncio.wait_for(stored.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert rows(database, "SELECT status, snapshots_saved FROM runs") == [{"status": "complete", "snapshots_saved": 60}]


@pytest.mark.usefixtures("_token")
async def test_nobody_waits_for_x(exchange: FakePolymarket, collector: ac.AsyncCollector, clock: JumpingClock) -> None:
    exchange.fail_next(SEARCH, status=503, retry_after=50, times=9)
    await collector.collect_all()
    assert (len(exchange.asked(SEARCH)), clock.slept) == (1, [])


@pytest.mark.usefixtures("_token")
async def test_posts_that_are_not_understood_are_not_bought_again(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(30):
        exchange.say("kalshi")

    def spoil(page: dict[str, Any]) -> dict[str, Any]:
        del page["meta"]["newest_id"]
        return page | {"data": [post | {"text": 1} if post["id"][-2:] > "20" else post for post in page["data"]]}

    exchange.fail_next(SEARCH, times=9, mutate=spoil)
    results = [await make_collector().collect_all() for _ in range(2)]
    good = [post.id for post in exchange.posts if post.id[-2:] <= "20"]
    assert [row["tweet_id"] for row in rows(database, POSTS)] == good
    assert [result["tweets"] for result in results] == [len(good), 0]
    assert sum(post.times_sent - 1 for post in exchange.posts) < 5  # those that are newer than the newest good one
    assert rows(database, "SELECT tweets_complete FROM runs WHERE run_id = 1") == [{"tweets_complete": 0}]


async def test_a_failing_x_is_no_reason_for_a_gap(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: JumpingClock,
) -> None:
    await make_collector().collect_all()
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", "wrong")
    exchange.fail_next("/markets/keyset", status=404, times=99)
    clock.elapsed_s += 900
    with pytest.raises(ac.RequestRejectedError):
        await make_collector().collect_all()
    exchange.heal()
    clock.elapsed_s += 900
    await make_collector().collect_all()
    (reasons,) = {row["reasons"] for row in rows(database, "SELECT reasons FROM gaps")}
    assert "HTTP 404" in reasons
    assert "search" not in reasons


# --- hype signals


def heard(path: Path, **columns: object) -> None:
    """Store a post as another program would."""
    connection = sqlite3.connect(path)
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    with connection:
        connection.execute(f"INSERT INTO tweets ({names}) VALUES ({marks})", [*columns.values()])  # noqa: S608
    connection.close()


async def test_posts_of_the_last_hour_become_a_signal_whoever_has_stored_them(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    await collector.collect_all()
    market, other = list(exchange.markets)[:2]
    said = [
        ("a", "2026-11-22 13:15:00", "u1", 100, 1.0),  # an hour and some seconds ago
        ("b", "2026-11-22 12:15:00", "u1", 100, 1.0),  # too long ago
        ("c", "2026-11-22 13:15:02", "u1", 1, 0.5),
        ("d", "2026-11-22 14:00:00", "u1", 2, -0.25),
        ("e", "2026-11-22 14:15:01", "u2", 4, None),
        ("f", "2026-11-22 14:15:02", "u3", 100, 1.0),  # later than the run
    ]
    for tweet_id, timestamp, author, likes, sentiment in said:
        heard(
            database,
            tweet_id=tweet_id,
            timestamp=timestamp,
            author_id=author,
            likes=likes,
            retweets=10,
            replies=None,
            sentiment_score=sentiment,
            market_id=market,
        )
    heard(database, tweet_id="g", timestamp="2026-11-22 14:10:00", market_id=other)
    heard(database, tweet_id="h", timestamp="2026-11-22 14:10:00")
    await collector.collect_all()
    first, second = rows(database, "SELECT * FROM hype_signals ORDER BY market_id")
    score = first.pop("hype_score")
    assert first == {
        "id": first["id"],
        "market_id": market,
        "timestamp": "2026-11-22 14:15:01",
        "tweet_count": 3,
        "total_engagement": 67,
        "avg_sentiment": 0.125,
        "unique_users": 2,
        "velocity": 2.0,
        "run_id": 2,
    }
    assert score == ac.hype_score(tweet_count=3, total_engagement=67, avg_sentiment=0.125, unique_users=2, velocity=2.0)
    assert (second["market_id"], second["tweet_count"], second["unique_users"]) == (other, 1, 1)
    assert (second["avg_sentiment"], second["total_engagement"], second["velocity"]) == (None, 0, 1.0)


@pytest.mark.usefixtures("_token")
async def test_posts_are_matched_to_the_markets_of_the_run_and_again_while_they_are_fresh(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    exchange.say("Will Zaphod Beeblebrox become president of the galaxy? I say yes, polymarket!", replies=3)
    exchange.say("kalshi is nice")
    await make_collector().collect_all()
    assert rows(database, "SELECT * FROM hype_signals") == []
    market = exchange.add_market(question="Zaphod Beeblebrox president of the galaxy?", volume_24h=200_000.0)
    clock.elapsed_s += 900
    await make_collector().collect_all()
    about = [(row["market_id"], row["keywords"]) for row in rows(database, POSTS)]
    assert about == [(market.id, "beeblebrox, galaxy, president, zaphod"), (None, None)]
    (signal,) = rows(database, "SELECT market_id, tweet_count, total_engagement, velocity FROM hype_signals")
    assert signal == {"market_id": market.id, "tweet_count": 1, "total_engagement": 3, "velocity": 1.0}


@pytest.mark.usefixtures("_token")
async def test_posts_are_matched_however_old_they_are_when_they_are_read(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    link = f"https://polymarket.com/event/{market.event_slug}/{market.slug}"
    for minute in ("12:30", "14:10"):
        exchange.say("look", created_at=f"2026-11-22T{minute}:00.000Z", links=[link])
    exchange.say("look", created_at="2026-11-22T13:10:00.000Z", links=[link])
    await collector.collect_all()
    assert rows(database, "SELECT DISTINCT market_id FROM tweets") == [{"market_id": market.id}]
    (signal,) = rows(database, "SELECT tweet_count, velocity FROM hype_signals")
    assert signal == {"tweet_count": 1, "velocity": -0.5}


@pytest.mark.parametrize(
    "columns",
    [
        {"likes": -100},
        {"likes": 2**62, "retweets": 2**62},
        {"likes": "many", "sentiment_score": "positive"},
        {"likes": "12abc"},
        {"likes": b"12"},
        {"likes": float("inf"), "sentiment_score": float("-inf")},
        {"sentiment_score": 80},
    ],
)
async def test_odd_rows_of_other_programs_stay_within_the_ranges_and_cost_the_run_nothing(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, columns: dict[str, Any]
) -> None:
    await collector.collect_all()
    market = next(iter(exchange.markets))
    for tweet_id in ("1", "2", "3"):
        heard(database, tweet_id=tweet_id, timestamp="2026-11-22 14:14:00", market_id=market, **columns)
    heard(database, tweet_id="4", timestamp="2026-11-22T14:14:00.000Z", market_id=market, **columns)  # not our form
    assert (await collector.collect_all())["status"] == "complete"
    (signal,) = rows(database, "SELECT * FROM hype_signals")
    assert signal["tweet_count"] == 3
    assert 0 <= signal["total_engagement"] <= 12 * 10**12
    if isinstance(columns.get("likes"), str | bytes):
        assert signal["total_engagement"] == 0  # no value is invented
    assert signal["avg_sentiment"] is None or -1 <= signal["avg_sentiment"] <= 1
    assert 0 <= signal["hype_score"] <= 100
