"""A run from end to end against the stand-in: every stored value is one that it really sent."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import sqlite3
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from conftest import JumpingClock, rows

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

T0 = "2026-11-22 14:15:00"


def level(value: tuple[str, str] | None) -> tuple[float | None, float | None]:
    return (float(value[0]), float(value[1])) if value else (None, None)


def opposite(value: tuple[str, str] | None) -> tuple[float | None, float | None]:
    return (round(1 - float(value[0]), 3), float(value[1])) if value else (None, None)


def true_snapshot(market: FakeMarket, run_id: int = 1, timestamp: str = T0) -> dict[str, Any]:
    """Return the row that *market* must have, from the stand-in's truth alone."""
    (bid_yes, bid_size_yes), (ask_yes, ask_size_yes) = level(market.best_bid), level(market.best_ask)
    (bid_no, bid_size_no), (ask_no, ask_size_no) = opposite(market.best_ask), opposite(market.best_bid)
    price = ((bid_yes or 0) + (1 if ask_yes is None else ask_yes)) / 2
    moment = datetime.fromtimestamp(market.book_ms // 1000, tz=UTC)
    return {
        "market_id": market.id,
        "timestamp": timestamp,
        "price_yes": pytest.approx(price),
        "price_no": pytest.approx(1 - price),
        "volume_24h": market.volume_24h,
        "liquidity": market.liquidity,
        "best_bid_yes": bid_yes,
        "best_ask_yes": ask_yes,
        "best_bid_no": bid_no,
        "best_ask_no": ask_no,
        "spread": None if bid_yes is None or ask_yes is None else pytest.approx(ask_yes - bid_yes),
        "run_id": run_id,
        "last_trade_price": float(market.last_trade) if market.last_trade else None,
        "book_time": f"{moment:%Y-%m-%d %H:%M:%S}.{market.book_ms % 1000:03d}",
        "bid_size_yes": bid_size_yes,
        "ask_size_yes": ask_size_yes,
        "bid_size_no": bid_size_no,
        "ask_size_no": ask_size_no,
    }


def without_books(market: FakeMarket, run_id: int = 1) -> dict[str, Any]:
    """Return the row of a market whose books cannot be had: Gamma's fields, and NULL for the rest."""
    price = market.gamma_price
    known = {
        "market_id": market.id,
        "timestamp": T0,
        "price_yes": price,
        "price_no": None if price is None else pytest.approx(1 - price),
        "volume_24h": market.volume_24h,
        "liquidity": market.liquidity,
        "run_id": run_id,
        "last_trade_price": float(market.last_trade) if market.last_trade else None,
    }
    return dict.fromkeys(ac.Snapshot._fields) | known


def true_market(market: FakeMarket) -> dict[str, Any]:
    """Return the row of `markets` that *market* must have."""
    topics = {
        "Sports": "Sports",
        "Crypto": "Crypto",
        "Trump": "Politics",
        "Fed Rates": "Economy",
        "OpenAI": "Tech",
        "Music": "Culture",
        "Weekly": None,
    }
    return {
        "market_id": market.id,
        "slug": market.slug,
        "question": market.question,
        "description": market.description,
        "category": topics.get(market.tags[0], market.tags[0]),
        "token_id_yes": market.tokens[0],
        "token_id_no": market.tokens[1],
        "start_time": market.start_date[:19].replace("T", " "),
        "end_time": market.end_date and market.end_date[:19].replace("T", " "),
        "condition_id": market.condition_id,
        "event_slug": market.event_slug,
        "outcome_yes": market.outcomes[0],
        "outcome_no": market.outcomes[1],
        "tags": "[" + ",".join(f'"{tag}"' for tag in market.tags) + "]",
        "first_seen": T0,
    }


def stored_snapshots(path: Path, run_id: int = 1) -> list[dict[str, Any]]:
    columns = ", ".join(ac.Snapshot._fields)
    return rows(path, f"SELECT {columns} FROM snapshots WHERE run_id = ? ORDER BY market_id", run_id)  # noqa: S608


def stored_markets(path: Path) -> list[dict[str, Any]]:
    return rows(path, f"SELECT {', '.join(ac.Market._fields)} FROM markets ORDER BY market_id")  # noqa: S608


def by_id(markets: list[FakeMarket]) -> list[FakeMarket]:
    return sorted(markets, key=lambda market: market.id)


def failures(path: Path) -> list[dict[str, Any]]:
    return rows(path, "SELECT * FROM failures ORDER BY market_id")


async def test_every_column_of_thousands_of_markets_is_right(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(2_940):
        exchange.add_market()
    for _ in range(30):
        exchange.add_market(active=False, gamma_price=None, has_books=False)
    collector = make_collector(min_volume=0)
    collector.gamma_limiter.max_requests = 1_000  # so that the clock stands still
    result = await collector.collect_all()
    markets = by_id([market for market in exchange.markets.values() if market.active])
    assert len(markets) == 3_000
    sides = {(bool(market.bids), bool(market.asks)) for market in markets}
    assert sides == {(True, True), (True, False), (False, True), (False, False)}, "the truth has every kind of book"
    assert stored_snapshots(database) == [true_snapshot(market) for market in markets]
    assert stored_markets(database) == [true_market(market) for market in markets]
    assert failures(database) == []
    assert (result["markets"], result["snapshots"], result["status"]) == (3_000, 3_000, "complete")
    assert len(exchange.asked("/books")) == 12


@pytest.mark.parametrize("over", [1, 60, 99, 100, 101, 250, 251])
async def test_the_default_job_asks_no_more_than_it_must(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, over: int
) -> None:
    """M markets over the threshold: ceil((M + 1) / 100) pages, one more at most, and ceil(2 M / 500) times books."""
    for number, market in enumerate(exchange.markets.values()):
        exchange.change(market, volume_24h=200_000.0 if number < over else 99_999.9)
    for _ in range(over - 60):
        exchange.add_market(volume_24h=100_000.0)
    for _ in range(120):
        exchange.add_market(volume_24h=5.0)
    result = await collector.collect_all()
    wanted = [market for market in exchange.markets.values() if (market.volume_24h or 0) >= 100_000]
    assert stored_snapshots(database) == [true_snapshot(market) for market in by_id(wanted)]
    assert result["markets"] == over
    assert len(exchange.asked("/markets/keyset")) <= math.ceil((over + 1) / 100) + 1
    assert len(exchange.asked("/books")) == math.ceil(2 * over / 500)
    assert result["requests"] == len(exchange.arrivals)


async def test_a_run_leaves_its_account(exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path) -> None:
    exchange.fail_next("/books", status=500)
    exchange.fail_next("/markets/keyset", status=429)
    result = await collector.collect_all()
    (run,) = rows(database, "SELECT * FROM runs")
    assert run == {
        "run_id": 1,
        "started_at": T0,
        "finished_at": "2026-11-22 14:15:02",
        "status": "complete",
        "markets_listed": 60,
        "snapshots_saved": 60,
        "books_missing": 0,
        "tweets": 0,
        "requests": 5,
        "retries": 2,
        "rate_limit_hits": 1,
        "errors": 0,
        "listing": "top",
        "full_walk_at": None,
        "follow": 1,
        "duration": 2.0,
        "min_volume": 100_000.0,
        "version": ac.__version__,
        "newest_tweet_id": None,
        "tweets_complete": None,
        "selection": None,
        "depth": None,
        "books_saved": 60,
        "books_unchanged": 0,
        "unmirrored": 0,
    }
    assert result == {
        "markets": 60,
        "snapshots": 60,
        "tweets": 0,
        "duration": 2.0,
        "stats": {
            "markets_fetched": 60,
            "snapshots_saved": 60,
            "tweets_fetched": 0,
            "errors": 0,
            "retries": 2,
            "rate_limit_hits": 1,
        },
        "run_id": 1,
        "status": "complete",
        "books_missing": 0,
        "books_saved": 60,
        "books_unchanged": 0,
        "unmirrored": 0,
        "reason": None,
        "drift": None,
        "tweets_reason": None,
        "notes": [],
        "requests": 5,
        "database": str(database),
    }


async def test_two_runs_in_a_row_are_two_rows_per_market(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    await collector.collect_all()
    second = await collector.collect_all()
    markets = by_id(list(exchange.markets.values()))
    assert second["snapshots"] == 60
    assert stored_snapshots(database, 1) == [true_snapshot(market, 1) for market in markets]
    later = "2026-11-22 14:15:01"  # the second run waited for a second of its own
    assert stored_snapshots(database, 2) == [true_snapshot(market, 2, later) for market in markets]
    assert rows(database, "SELECT count(*) AS n, count(DISTINCT first_seen) AS firsts FROM markets") == [
        {"n": 60, "firsts": 1}
    ]


async def test_one_bad_market_never_costs_its_page(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    bad, *good = exchange.markets.values()
    exchange.change(bad, changes={"clobTokenIds": "[1"})
    result = await collector.collect_all()
    assert stored_snapshots(database) == [true_snapshot(market) for market in by_id(good)]
    (failure,) = failures(database)
    assert (failure["run_id"], failure["market_id"], failure["stage"]) == (1, bad.id, "list")
    assert "$.clobTokenIds" in failure["reason"]
    assert (result["stats"]["markets_fetched"], result["stats"]["errors"], result["status"]) == (60, 1, "complete")


async def test_a_market_without_books_keeps_gammas_fields_and_is_recorded(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    bare, *others = exchange.markets.values()
    exchange.change(bare, has_books=False)
    result = await collector.collect_all()
    expected = [without_books(bare), *(true_snapshot(market) for market in others)]
    assert stored_snapshots(database) == sorted(expected, key=lambda row: str(row["market_id"]))
    assert [(row["market_id"], row["stage"], row["reason"]) for row in failures(database)] == [
        (bare.id, "book", "YES and NO: the exchange has no book")
    ]
    assert (result["books_missing"], result["status"]) == (1, "complete")


async def test_a_bad_level_costs_itself_only_and_is_recorded(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    market = next(market for market in exchange.markets.values() if market.bids and market.asks)

    def spoil(books: list[dict[str, Any]]) -> list[dict[str, Any]]:
        bids = next(book for book in books if book["asset_id"] == market.tokens[1])["bids"]
        bids[:0] = [{"price": "1.5", "size": "1"}, {"price": "0.999", "size": "-1"}]
        return books

    exchange.fail_next("/books", mutate=spoil)
    result = await collector.collect_all()
    assert stored_snapshots(database) == [true_snapshot(market) for market in by_id(list(exchange.markets.values()))]
    assert [(row["market_id"], row["stage"], row["reason"]) for row in failures(database)] == [
        (market.id, "book", "left out, for it cannot be read: bids (2)")
    ]
    assert (result["status"], result["books_missing"], result["reason"]) == ("complete", 0, None)


async def test_a_bad_book_costs_its_side_only(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    market = next(market for market in exchange.markets.values() if market.bids and market.asks)

    def spoil(books: list[dict[str, Any]]) -> list[dict[str, Any]]:
        next(book for book in books if book["asset_id"] == market.tokens[1])["bids"] = "none"
        return books

    exchange.fail_next("/books", mutate=spoil)
    await collector.collect_all()
    (row,) = [row for row in stored_snapshots(database) if row["market_id"] == market.id]
    no_side = dict.fromkeys(("best_bid_no", "best_ask_no", "bid_size_no", "ask_size_no"))
    assert row == true_snapshot(market) | no_side
    assert [row["reason"] for row in failures(database)] == ["NO: Expected `array`, got `str` - at `$.bids`"]


async def test_what_most_markets_lack_is_one_failure_and_said_to_be_a_change(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their rows are stored all the same."""
    for number, market in enumerate(exchange.markets.values()):
        changes = {"endDate": 1_795_000_000} if number < 31 else {"closedTime": 7} if number < 33 else {}
        exchange.change(market, changes=changes)
    result = await collector.collect_all()
    assert (result["snapshots"], result["status"], result["stats"]["errors"]) == (60, "complete", 1)
    assert result["drift"] == "`endDate` of 31 of 60 markets cannot be read"
    assert [(row["market_id"], row["stage"], row["reason"]) for row in failures(database)] == [
        (None, "list", "left out, for it cannot be read: endDate")
    ]
    assert caplog.messages.count("left out, for it cannot be read: endDate of 31 markets, closedTime of 2 markets") == 1


async def test_a_market_whose_volume_cannot_be_read_is_not_taken_for_a_quiet_one(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    exchange.change(market, changes={"volume24hr": "1,234,567.8"})
    result = await collector.collect_all()
    assert result["stats"]["markets_fetched"] == 60
    expected = true_snapshot(market) | {"volume_24h": None}
    assert [row for row in stored_snapshots(database) if row["market_id"] == market.id] == [expected]


async def test_a_market_that_takes_no_orders_needs_no_book(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    for market in exchange.markets.values():
        exchange.change(market, has_books=False, accepting_orders=False)
    result = await collector.collect_all()
    assert (result["snapshots"], result["books_missing"], result["status"]) == (60, 0, "complete")
    assert failures(database) == []


async def test_one_failed_batch_never_costs_the_run(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(440):
        exchange.add_market(volume_24h=200_000.0)
    exchange.fail_next("/books", status=400, body=b'{"error":"Invalid payload"}', times=3)
    result = await make_collector(workers=1).collect_all()
    stored = stored_snapshots(database)
    bare = [row for row in stored if row["book_time"] is None]
    assert (len(stored), len(bare)) == (500, 250)
    truth = exchange.markets
    assert bare == [without_books(truth[row["market_id"]]) for row in bare]
    full = [row for row in stored if row["book_time"] is not None]
    assert full == [true_snapshot(truth[row["market_id"]]) for row in full]
    reason = f'YES and NO: {exchange.url}/clob/books: HTTP 400: \'{{"error":"Invalid payload"}}\''
    assert {row["reason"] for row in failures(database)} == {reason}
    assert result["reason"] == reason
    assert [(row["market_id"], row["markets"]) for row in failures(database)] == [(None, 250)]
    assert (result["books_missing"], result["status"]) == (250, "partial")


async def test_a_listing_that_breaks_off_keeps_what_it_had(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    for _ in range(240):
        exchange.add_market(volume_24h=200_000.0)

    pages = 0

    def break_third(page: dict[str, Any]) -> dict[str, Any]:
        nonlocal pages
        pages += 1
        return page if pages < 3 else {"rows": []}

    exchange.fail_next("/markets/keyset", times=9, mutate=break_third)
    result = await collector.collect_all()
    assert (result["markets"], result["status"]) == (200, "partial")
    (failure,) = failures(database)
    assert (failure["market_id"], failure["stage"]) == (None, "list")
    assert "Object missing required field `markets`" in failure["reason"]


async def test_nothing_listed_is_an_error_and_a_failed_run(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    exchange.fail_next("/markets/keyset", status=503, times=math.inf)
    with pytest.raises(ac.ServerError, match="/gamma/markets/keyset: HTTP 503"):
        await collector.collect_all()
    (run,) = rows(database, "SELECT status, snapshots_saved, errors, requests, retries FROM runs")
    assert run == {"status": "failed", "snapshots_saved": 0, "errors": 1, "requests": 4, "retries": 3}
    exchange.heal()
    assert (await collector.collect_all())["status"] == "complete"


async def test_a_changed_shape_stores_nothing(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    for market in exchange.markets.values():
        exchange.change(market, changes={"question": ["what?"]})
    with pytest.raises(ac.MalformedResponseError, match="60 of 60 open markets have no `question`"):
        await collector.collect_all()
    assert stored_markets(database) == []


async def test_a_threshold_above_everything_is_a_complete_run_of_nothing(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    assert exchange.url
    result = await make_collector(min_volume=1e12).collect_all()
    assert (result["markets"], result["status"]) == (0, "complete")


async def test_a_market_that_comes_twice_is_stored_once(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    """In the order of volume a market can move from one page to the next during the walk."""
    for _ in range(90):
        exchange.add_market(volume_24h=200_000.0)

    def repeat_last(page: dict[str, Any]) -> dict[str, Any]:
        return page | {"markets": [page["markets"][-1], *page["markets"]]}

    exchange.fail_next("/markets/keyset", times=9, mutate=repeat_last)
    result = await collector.collect_all()
    assert (result["markets"], result["stats"]["errors"]) == (150, 0)
    assert len(stored_snapshots(database)) == 150


async def test_requests_in_flight_are_bounded_by_workers(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    for _ in range(2_940):
        exchange.add_market()
    exchange.latency_s = 0.02
    exchange.fail_next("/books", delay_s=0.2, times=5)
    collector = make_collector(min_volume=0, workers=3)
    collector.gamma_limiter.max_requests = 1_000
    await collector.collect_all()
    assert exchange.most_in_flight == 3


async def test_progress_is_told_after_every_batch(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    for _ in range(240):
        exchange.add_market(volume_24h=200_000.0)
    told: list[ac.Progress] = []
    await make_collector(progress=told.append).collect_all()
    assert len(told) == 2
    assert told[-1] == ac.Progress(listed=300, stored=300, errors=0, all_listed=True)


async def test_a_cancelled_run_is_marked_and_the_next_one_works(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    exchange.fail_next("/books", hang=True)
    running = asyncio.ensure_future(collector.collect_all())
    await exchange.until_asked("/books")
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["failed"]
    assert (await collector.collect_all())["status"] == "complete"


async def test_a_bug_in_a_hook_ends_the_run_as_itself(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(240):
        exchange.add_market(volume_24h=200_000.0)

    def broken(_: ac.Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await make_collector(progress=broken).collect_all()
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["partial"]


async def test_a_second_collector_is_turned_away_while_the_first_one_works(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    exchange.fail_next("/books", delay_s=ac.LOCK_WAIT_S + 1)
    results = await asyncio.gather(*(make_collector().collect_all() for _ in range(3)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["DatabaseBusy", "DatabaseBusy", "dict"]


@pytest.mark.slow
async def test_neither_host_is_asked_faster_than_its_limit(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    for _ in range(3_000):
        exchange.add_market()
    collector = make_collector(min_volume=0, workers=50)
    collector.gamma_limiter = ac.RateLimiter(9, 0.5)
    collector.clob_limiter = ac.RateLimiter(3, 0.5)
    assert (await collector.collect_all())["status"] == "complete"
    assert len(exchange.asked("/markets/keyset")) >= 31
    assert len(exchange.asked("/books")) == 13
    assert exchange.asked("/books")[-1].time - exchange.asked("/books")[0].time > 1.8
    assert exchange.busiest("/markets/keyset", 0.3) <= 9  # with room for a busy machine
    assert exchange.busiest("/books", 0.3) <= 3


@pytest.mark.slow
async def test_after_a_429_nobody_asks_that_host_until_the_pause_is_over(
    exchange: FakePolymarket, database: Path
) -> None:
    for _ in range(1_940):
        exchange.add_market()
    exchange.fail_next("/books", status=429, retry_after=1)
    collector = ac.AsyncCollector(database, min_volume=0, workers=2)
    collector.gamma_limiter.max_requests = collector.clob_limiter.max_requests = 1_000
    assert (await collector.collect_all())["status"] == "complete"
    first, *later = [arrival.time for arrival in exchange.asked("/books")]
    assert len(later) == 8
    assert all(time < first + 0.2 or time >= first + 1 for time in later)
    assert sum(time < first + 0.2 for time in later) <= 1, "only what was under way already"


async def test_a_run_that_was_killed_in_this_second_costs_the_next_one_nothing(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    await collector.collect_all()
    connection = sqlite3.connect(database)
    connection.execute("UPDATE runs SET status = 'running', finished_at = NULL")
    connection.commit()
    connection.close()
    assert (await collector.collect_all())["snapshots"] == len(exchange.markets)
    assert failures(database) == []


async def test_a_cancelled_run_has_counted_what_it_stored(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(940):
        exchange.add_market()
    told: list[ac.Progress] = []
    running = asyncio.ensure_future(make_collector(min_volume=0, progress=told.append).collect_all())
    for wakeups in range(100_000):
        await asyncio.sleep(0)
        if wakeups % 50 == 0 and database.exists() and rows(database, "PRAGMA user_version") != [{"user_version": 0}]:
            stored = rows(database, "SELECT count(*) AS n FROM snapshots")[0]["n"]
            if stored > (told[-1].stored if told else 0):  # committed, and not yet told
                break
    running.cancel()
    await asyncio.wait([running])
    (run,) = rows(database, "SELECT status, snapshots_saved, errors FROM runs")
    (stored_rows,) = rows(database, "SELECT count(*) AS n FROM snapshots")
    assert run == {"status": "partial", "snapshots_saved": stored_rows["n"], "errors": 0}


@pytest.mark.parametrize(
    ("odd", "complaint"),
    [
        ({"volume24hr": None}, "the listing has no volume24hr"),
        ({"active": None}, "missing required field `active`"),
        ({"id": "x"}, "matching regex"),
    ],
)
async def test_a_key_that_has_gone_is_not_taken_for_an_empty_exchange(
    exchange: FakePolymarket, collector: ac.AsyncCollector, odd: dict[str, object], complaint: str
) -> None:
    (key,) = odd
    for market in exchange.markets.values():
        exchange.change(market, **({"without": (key,)} if odd[key] is None else {"changes": odd}))
    with pytest.raises(ac.MalformedResponseError, match=complaint):
        await collector.collect_all()


async def test_an_order_that_is_not_kept_is_noticed(exchange: FakePolymarket, collector: ac.AsyncCollector) -> None:
    exchange.fail_next("/markets/keyset", mutate=lambda page: {"markets": page["markets"][::-1]})
    with pytest.raises(ac.MalformedResponseError, match="not in the order of volume24hr"):
        await collector.collect_all()


async def test_markets_without_a_volume_come_after_the_others(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    for _ in range(40):
        exchange.add_market(volume_24h=200_000.0)
    for _ in range(150):
        exchange.add_market(volume_24h=None)
    result = await collector.collect_all()
    assert (result["markets"], result["status"]) == (100, "complete")


async def test_a_run_that_is_stopped_at_its_very_end_is_marked_as_what_it_is(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    def stop(progress: ac.Progress) -> None:
        if progress.all_listed and progress.stored == 60:
            asyncio.get_running_loop().call_later(0.001, running.cancel)

    assert exchange.url
    running = asyncio.ensure_future(make_collector(min_volume=0, progress=stop).collect_all())
    await asyncio.wait([running])
    (run,) = rows(database, "SELECT status, snapshots_saved, markets_listed, finished_at IS NULL AS open FROM runs")
    assert run["snapshots_saved"] == run["markets_listed"] == 60
    assert run["status"] in {"complete", "partial"}
    assert not run["open"]


async def test_bad_markets_that_do_not_matter_are_no_failures(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    for number in range(5):
        exchange.add_market(volume_24h=5.0 + number, changes={"clobTokenIds": "[1"})
        exchange.add_market(volume_24h=9e9, active=False, changes={"clobTokenIds": "[1"})
    result = await collector.collect_all()
    assert (result["stats"]["markets_fetched"], result["status"], failures(database)) == (60, "complete", [])


async def test_half_of_a_halved_request_may_fail_alone(exchange: FakePolymarket, collector: ac.AsyncCollector) -> None:
    exchange.fail_next("/books", status=413)
    exchange.fail_next("/books")
    exchange.fail_next("/books", status=403)
    result = await collector.collect_all()
    assert (result["books_missing"], result["status"]) == (30, "partial")


async def test_a_refused_request_for_books_is_a_failure_of_markets_that_take_no_orders_too(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    for market in exchange.markets.values():
        exchange.change(market, accepting_orders=False)
    exchange.fail_next("/books", status=400, times=3)
    result = await collector.collect_all()
    assert (result["books_missing"], result["status"], len(failures(database))) == (60, "partial", 1)


def test_the_limiters_can_be_replaced(make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock) -> None:
    collector = make_collector()
    collector.gamma_limiter = ac.RateLimiter(3, clock=clock)
    collector.clob_limiter.max_requests = 7
    assert (collector.gamma_limiter.max_requests, collector.clob_limiter.max_requests) == (3, 7)


async def test_a_clock_that_jumps_within_a_run_changes_no_duration_and_loses_no_row(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    for _ in range(940):
        exchange.add_market(volume_24h=200_000.0)

    def jump(books: list[Any]) -> list[Any]:
        clock.set_forward_s = -3_600.0 if clock.set_forward_s else 3_600.0
        return books

    exchange.fail_next("/books", times=9, mutate=jump)
    result = await make_collector().collect_all()
    assert (result["status"], result["snapshots"]) == ("complete", 1_000)
    assert 0 <= result["duration"] < 3
    hours = {row["hour"] for row in rows(database, "SELECT DISTINCT substr(timestamp, 1, 13) AS hour FROM snapshots")}
    assert hours == {"2026-11-22 13", "2026-11-22 15"}


async def test_a_program_may_collect_in_threads_of_its_own_and_keeps_its_signals_and_its_log(
    exchange: FakePolymarket, tmp_path: Path
) -> None:
    assert exchange.url
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    loggers = list(logging.getLogger().handlers)

    def collect(name: str) -> int:
        return asyncio.run(ac.AsyncCollector(tmp_path / name).collect_all())["snapshots"]

    assert await asyncio.gather(*(asyncio.to_thread(collect, f"{number}.db") for number in range(3))) == [60] * 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert logging.getLogger().handlers == loggers


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process is of Unix")
@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/St_Johns"])
async def test_times_are_utc_wherever_the_computer_is(
    exchange: FakePolymarket, database: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    assert exchange.url
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        await ac.AsyncCollector(database).collect_all()
    time.tzset()
    for row in rows(database, "SELECT strftime('%s', started_at) AS moment FROM runs"):
        assert abs(int(row["moment"]) - time.time()) < 30
