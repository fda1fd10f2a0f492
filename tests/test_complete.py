"""covers: when a run is complete: the end of a listing, an answer and a batch are proven, and nothing is missing."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from conftest import JumpingClock, rows
from truth import (
    COLLECTOR,
    assert_no_untruth,
    assert_true,
    command,
    failures,
    last_run,
    stored_rows,
    true_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

    from async_collector import AsyncCollector, CollectionResult

MINUTE, DAY = 60.0, 86_400.0


def crowd(exchange: FakePolymarket, markets: int, **changes: Any) -> list[FakeMarket]:  # noqa: ANN401
    """Open so many more markets, all over the default threshold unless *changes* says otherwise."""
    return [exchange.add_market(**({"volume_24h": 200_000.0 + number} | changes)) for number in range(markets)]


def make_odd(exchange: FakePolymarket, **oddities: Any) -> None:  # noqa: ANN401
    for name, value in oddities.items():
        setattr(exchange.odd, name, value)


def assert_unfinished(result: CollectionResult, database: Path) -> None:
    """Fail unless the run says, to the caller and in the file, that its listing has not been read to its end."""
    assert result["status"] == "partial"
    assert last_run(database)["status"] == "partial"
    assert [row for row in failures(database) if row["stage"] == "list"], "the reason stands in failures"


# --- the end of a listing (300 markets over the threshold)

UNFINISHED: dict[str, dict[str, Any]] = {
    "a full page that names no next one": {"cursor_key": None},
    "a full page whose cursor has another name": {"cursor_key": "nextCursor"},
    "a smaller full page that names no next one": {"page_size": 60, "cursor_key": None},
    "an empty page that names a next one": {"empty_page": 2},
    "an empty page in the middle": {"empty_page": 2, "empty_page_leads_on": False},
    "an empty page at last": {"empty_page": 3, "empty_page_leads_on": False},
    "half of each page": {"withheld": 50},
    "all but one of each page": {"withheld": 1},
}


@pytest.mark.parametrize("quiet", [0, 150], ids=["all over the threshold", "some under it"])
@pytest.mark.parametrize("name", UNFINISHED)
async def test_a_listing_by_volume_that_was_not_read_to_its_end_is_not_complete(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, name: str, quiet: int
) -> None:
    crowd(exchange, 240)
    crowd(exchange, quiet, volume_24h=50.0)
    make_odd(exchange, **UNFINISHED[name])
    result = await make_collector(follow=False).collect_all()
    assert len(stored_rows(database)) < 300, "otherwise nothing was cut off"
    assert_unfinished(result, database)
    assert_no_untruth(database, exchange)


@pytest.mark.parametrize("name", UNFINISHED)
async def test_a_listing_that_does_not_cover_the_exchange_is_not_complete(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, name: str
) -> None:
    """What is not sent is in no slice, and not in the walk by id that takes over."""
    crowd(exchange, 340)
    make_odd(exchange, **UNFINISHED[name])
    result = await make_collector(min_volume=0).collect_all()
    if len(stored_rows(database)) < 400:
        assert_unfinished(result, database)
    assert_no_untruth(database, exchange)


async def test_the_exit_code_says_that_a_listing_was_cut_off(exchange: FakePolymarket, database: Path) -> None:
    crowd(exchange, 240)
    exchange.odd.cursor_key = None
    done = await command(exchange, COLLECTOR, "--db", str(database), "--quiet")
    assert done.code in {65, 75}
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("min_volume", [0, 100_000])
@pytest.mark.parametrize("page_size", [50, 60])
async def test_an_exchange_with_smaller_pages_is_read_to_its_end(
    exchange: FakePolymarket,
    make_collector: Callable[..., AsyncCollector],
    database: Path,
    page_size: int,
    min_volume: float,
) -> None:
    crowd(exchange, 240)
    exchange.odd.page_size = page_size
    result = await make_collector(min_volume=min_volume).collect_all()
    assert result["status"] == "complete"
    assert_true(database, exchange.markets.values())


@pytest.mark.parametrize("over", [1, 99, 100, 101, 200, 250])
@pytest.mark.parametrize("quiet", [0, 5])
async def test_a_listing_that_ends_where_it_ends_is_complete_for_one_request_more_at_most(
    exchange: FakePolymarket,
    make_collector: Callable[..., AsyncCollector],
    database: Path,
    over: int,
    quiet: int,
) -> None:
    """A listing of exactly 100 is a full page and an empty one; the other end of the listing agrees."""
    for market in list(exchange.markets.values())[over:]:
        exchange.remove(market)
    crowd(exchange, over - len(exchange.markets))
    wanted = list(exchange.markets.values())
    crowd(exchange, quiet, volume_24h=50.0)
    result = await make_collector().collect_all()
    assert (result["status"], result["stats"]["errors"]) == ("complete", 0)
    assert_true(database, wanted)
    pages = (over + quiet) // 100 + 1
    assert len(exchange.asked("/markets/keyset")) <= pages + 1


async def test_known_markets_that_a_full_walk_does_not_see_are_asked_for_by_id(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    crowd(exchange, 340)
    collector = make_collector(min_volume=0)
    assert (await collector.collect_all())["status"] == "complete"
    clock.elapsed_s += DAY + MINUTE  # the next run makes a full walk
    exchange.odd.withheld = 50
    await collector.collect_all()
    assert_true(database, exchange.markets.values())
    exchange.odd.withheld = 0
    clock.elapsed_s += 15 * MINUTE
    assert (await collector.collect_all())["status"] == "complete"
    assert_true(database, exchange.markets.values())


async def test_what_a_cut_off_walk_has_not_seen_is_not_forgotten(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    crowd(exchange, 340)
    exchange.odd.cursor_key = None
    collector = make_collector(min_volume=0)
    assert_unfinished(await collector.collect_all(), database)
    exchange.odd.cursor_key = "next_cursor"
    clock.elapsed_s += 15 * MINUTE
    assert (await collector.collect_all())["status"] == "complete"
    assert_true(database, exchange.markets.values())


# --- answers by id


async def test_an_answer_by_ids_that_names_a_next_page_is_read_on(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    crowd(exchange, 340)
    collector = make_collector(min_volume=0)
    await collector.collect_all()
    clock.elapsed_s += 15 * MINUTE
    exchange.odd.ids_page_size = 60
    exchange.arrivals.clear()
    result = await collector.collect_all()
    assert (result["status"], result["stats"]["errors"]) == ("complete", 0)
    assert_true(database, exchange.markets.values())
    assert len(exchange.asked("/markets/keyset")) <= 2 + 2 * 4  # the newest, and two pages for each 100


async def test_followed_markets_on_the_second_page_of_an_answer_are_collected(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    quiet = crowd(exchange, 100)
    collector = make_collector()
    await collector.collect_all()
    for market in quiet:
        exchange.change(market, volume_24h=50.0)
    crowd(exchange, 150, volume_24h=60.0)
    clock.elapsed_s += 15 * MINUTE
    exchange.odd.ids_page_size = 60
    result = await collector.collect_all()
    assert (result["status"], result["stats"]["errors"]) == ("complete", 0)
    assert_true(database, [market for market in exchange.markets.values() if market.volume_24h != 60.0])


@pytest.mark.parametrize(("lost", "status"), [(2, "complete"), (6, "partial")])
async def test_what_is_neither_open_nor_closed_is_listed_and_not_stored(
    exchange: FakePolymarket,
    collector: AsyncCollector,
    database: Path,
    clock: JumpingClock,
    lost: int,
    status: str,
) -> None:
    """2 of 60 are within the 5 % that may be missing, 6 are not."""
    await collector.collect_all()
    for market in list(exchange.markets.values())[:lost]:
        exchange.remove(market)
    clock.elapsed_s += 15 * MINUTE
    result = await collector.collect_all()
    assert (result["stats"]["markets_fetched"], result["markets"], result["status"]) == (60, 60 - lost, status)
    assert last_run(database)["markets_listed"] == 60


async def test_a_market_that_is_neither_active_nor_closed_is_said_to_be_so(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    await collector.collect_all()
    market = next(iter(exchange.markets.values()))
    exchange.change(market, active=False)
    clock.elapsed_s += 15 * MINUTE
    await collector.collect_all()
    reasons = [row["reason"] for row in failures(database) if row["market_id"] == market.id]
    assert len(reasons) <= 1
    assert not [reason for reason in reasons if "neither among" in reason], "it was among the answers"
    assert [reason for reason in reasons if "active" in reason]


# --- batches


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("faults", [1, 3])
async def test_one_token_costs_its_own_book_only(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, status: int, faults: int
) -> None:
    """Whoever halves a batch of 500 down to the one token at fault asks about 2 x log2(500) times."""
    crowd(exchange, 190)
    ill = list(exchange.markets.values())[37::71][:faults]
    exchange.odd.poisoned = {market.tokens[0]: status for market in ill}
    result = await collector.collect_all()
    assert (result["snapshots"], result["books_missing"]) == (250, faults)
    assert sorted(row["market_id"] for row in failures(database)) == sorted(market.id for market in ill)
    wanted = {market.id: true_row(market, "no" if market in ill else "yes no") for market in exchange.markets.values()}
    assert stored_rows(database) == wanted
    first_attempts = len(exchange.asked("/books")) - result["stats"]["retries"]
    assert first_attempts <= faults * 2 * math.ceil(math.log2(500)) + 2


async def test_batches_that_are_too_slow_are_made_smaller(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path
) -> None:
    crowd(exchange, 440)
    exchange.odd.tokens_in_time = 100
    result = await make_collector(workers=2).collect_all()
    assert (result["status"], result["books_missing"], failures(database)) == ("complete", 0, [])
    assert_true(database, exchange.markets.values())
    assert len(exchange.asked("/books")) <= 80


@pytest.mark.parametrize("status", [400, 500])
async def test_an_outage_does_not_become_a_storm(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, status: int
) -> None:
    crowd(exchange, 1_440)
    exchange.fail_next("/books", status=status, times=math.inf)
    result = await collector.collect_all()
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 1_500, 1_500)
    assert len(exchange.asked("/books")) <= 60
    wanted = {market.id: true_row(market, "") for market in exchange.markets.values()}
    assert stored_rows(database) == wanted


@pytest.mark.parametrize("status", [400, 500, 504])
async def test_one_id_costs_its_own_market_only(
    exchange: FakePolymarket,
    make_collector: Callable[..., AsyncCollector],
    database: Path,
    clock: JumpingClock,
    status: int,
) -> None:
    crowd(exchange, 340)
    collector = make_collector(min_volume=0)
    await collector.collect_all()
    clock.elapsed_s += 15 * MINUTE
    ill = list(exchange.markets.values())[250]  # not on the page of the newest, and not on that of the walk by id
    exchange.odd.poisoned = {ill.id: status}
    exchange.arrivals.clear()
    result = await collector.collect_all()
    assert_true(database, [market for market in exchange.markets.values() if market is not ill])
    assert [row["market_id"] for row in failures(database)] == [ill.id]
    first_attempts = len(exchange.asked("/markets/keyset")) - result["stats"]["retries"]
    assert first_attempts <= 6 + 2 * math.ceil(math.log2(100)) + 2


# --- an order that wavers


@pytest.mark.parametrize("waver", [0.01, 0.1])
async def test_a_listing_whose_order_wavers_is_read_until_it_has_fallen_below_the_threshold_for_good(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, waver: float
) -> None:
    """The index that a listing is ordered by lags the volume that it shows by up to a tenth."""
    for number in range(400):
        exchange.add_market(volume_24h=10_000.0 - number)  # so alike that a page may end higher than it begins
    for number in range(400):
        exchange.add_market(volume_24h=round(9_500.0 * 0.97**number, 6))
    exchange.odd.waver = waver
    result = await make_collector(min_volume=500).collect_all()
    assert (result["status"], result["drift"], result["stats"]["errors"]) == ("complete", None, 0)
    assert_true(database, [market for market in exchange.markets.values() if (market.volume_24h or 0) >= 500])
    assert len(exchange.asked("/markets/keyset")) <= 8


# --- a deadline


@pytest.mark.slow
async def test_under_a_deadline_those_longest_without_a_snapshot_come_first(
    exchange: FakePolymarket,
    make_collector: Callable[..., AsyncCollector],
    database: Path,
    clock: JumpingClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each run has the time for more than half of the followed markets: none is missed twice in a row."""
    monkeypatch.setenv("CLOB_RATE_LIMIT", "1")
    crowd(exchange, 1_940)
    await make_collector().collect_all()
    for market in exchange.markets.values():
        exchange.change(market, volume_24h=50.0)
    loud = crowd(exchange, 10)
    known = set(exchange.markets) - {market.id for market in loud}
    collector = make_collector(run_timeout=6, workers=1)  # on this clock the waits of many add up, in any order
    missed: list[set[str]] = []
    for _ in range(4):
        clock.elapsed_s += 15 * MINUTE
        result = await collector.collect_all()
        assert result["status"] == "partial"
        query = "SELECT market_id FROM snapshots WHERE run_id = ? AND book_time IS NOT NULL"
        missed.append(known - {row["market_id"] for row in rows(database, query, result["run_id"])})
        assert len(known) * 0.1 < len(missed[-1]) < len(known) * 0.5
    assert [len(before & after) for before, after in pairwise(missed)][1:] == [0, 0]


# --- a sudden fall


@pytest.mark.parametrize(("left", "status"), [(160, "complete"), (149, "partial")])
@pytest.mark.parametrize("min_volume", [0, 100_000])
async def test_a_listing_of_less_than_half_of_the_last_complete_run_is_not_believed(
    exchange: FakePolymarket,
    make_collector: Callable[..., AsyncCollector],
    database: Path,
    clock: JumpingClock,
    left: int,
    status: str,
    min_volume: float,
) -> None:
    crowd(exchange, 240)
    collector = make_collector(min_volume=min_volume, follow=False)
    assert (await collector.collect_all())["status"] == "complete"
    for market in list(exchange.markets.values())[left:]:
        exchange.remove(market) if min_volume == 0 else exchange.close(market, "1", "0")
    clock.elapsed_s += DAY + MINUTE
    result = await collector.collect_all()
    assert result["status"] == status
    assert_true(database, [market for market in exchange.markets.values() if not market.closed])
    if status == "partial":
        (failure,) = [row for row in failures(database) if row["stage"] == "list"]
        assert str(left) in failure["reason"]
        assert "300" in failure["reason"]


async def test_a_run_with_another_selection_is_no_sudden_fall(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    crowd(exchange, 240, volume_24h=150_000.0)
    loud = crowd(exchange, 20, volume_24h=2_000_000.0)
    await make_collector(follow=False).collect_all()
    clock.elapsed_s += 15 * MINUTE
    result = await make_collector(follow=False, min_volume=1_000_000).collect_all()
    assert (result["status"], failures(database)) == ("complete", [])
    assert_true(database, loud)
    assert rows(database, "SELECT status FROM runs") == [{"status": "complete"}] * 2


async def test_an_outage_is_waited_for_also_where_a_host_takes_few_tokens_at_a_time(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path
) -> None:
    """Pieces that are small because the host takes no more are tried again like any other request."""
    for _ in range(540):
        exchange.add_market(volume_24h=200_000.0)
    exchange.odd.most_tokens = 300
    exchange.fail_next("/books", status=400, body=b'{"error":"Payload exceeds the limit"}')
    exchange.fail_next("/books", status=503, times=3)
    result = await collector.collect_all()
    assert (result["status"], result["books_missing"]) == ("complete", 0)
    assert failures(database) == []
