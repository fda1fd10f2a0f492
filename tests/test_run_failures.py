"""covers: what one bad market, book, request or page costs a run, and what is recorded of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows
from truth import by_id, failures, stored_markets, stored_snapshots, true_snapshot, without_books

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket


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
    database.touch()
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
    database.touch()
    for market in exchange.markets.values():
        exchange.change(market, changes={"question": ["what?"]})
    with pytest.raises(ac.MalformedResponseError, match="60 of 60 open markets have no `question`"):
        await collector.collect_all()
    assert stored_markets(database) == []


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
