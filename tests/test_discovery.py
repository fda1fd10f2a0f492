"""covers: the whole exchange: every open market, found from both ends at once, and again by what runs have listed."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

KEYSET = "/markets/keyset"
DAY_S = 86_400


@pytest.fixture
def everything(exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]) -> ac.AsyncCollector:
    """A collector of every open market of `exchange`, which has 1,000 of them."""
    for _ in range(940):
        exchange.add_market()
    return in_no_hurry(make_collector(min_volume=0))


def in_no_hurry(collector: ac.AsyncCollector) -> ac.AsyncCollector:
    """Lift the limits, so that the clock of the test stands still."""
    collector.gamma_limiter.max_requests = collector.clob_limiter.max_requests = 100_000
    return collector


def open_ids(exchange: FakePolymarket) -> list[str]:
    return sorted(market.id for market in exchange.markets.values() if market.active and not market.closed)


def stored_ids(path: Path, run_id: int) -> list[str]:
    found = rows(path, "SELECT market_id FROM snapshots WHERE run_id = ? ORDER BY market_id", run_id)
    return [row["market_id"] for row in found]


def walks(path: Path) -> list[tuple[str, str]]:
    return [(row["listing"], row["status"]) for row in rows(path, "SELECT listing, status FROM runs ORDER BY run_id")]


def reasons(path: Path) -> list[str]:
    return [row["reason"] for row in rows(path, "SELECT reason FROM failures WHERE stage = 'list' ORDER BY rowid")]


async def test_two_walks_meet_in_the_middle(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    exchange.latency_s = 0.02
    await everything.collect_all()
    assert stored_ids(database, 1) == open_ids(exchange)
    asked = exchange.asked(KEYSET)
    assert len(asked) <= 12
    upwards = sum("ascending=true" in arrival.query for arrival in asked)
    assert 4 <= upwards <= 7
    (run,) = rows(database, "SELECT listing, status, started_at, full_walk_at FROM runs")
    assert run == {"listing": "full", "status": "complete"} | dict.fromkeys(
        ("started_at", "full_walk_at"), "2026-11-22 14:15:00"
    )


@pytest.mark.parametrize("seed", range(4))
async def test_markets_that_come_and_go_meanwhile_move_no_other(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path, seed: int
) -> None:
    chance = random.Random(seed)
    before = set(open_ids(exchange))
    closed: set[str] = set()

    def churn(page: dict[str, Any]) -> dict[str, Any]:
        for _ in range(chance.randrange(30)):
            market = chance.choice(list(exchange.markets.values()))
            exchange.change(market, closed=True)
            closed.add(market.id)
        for _ in range(chance.randrange(30)):
            exchange.add_market()
        return page

    exchange.fail_next(KEYSET, times=math.inf, mutate=churn)
    result = await everything.collect_all()
    stored = stored_ids(database, 1)
    assert result["stats"]["markets_fetched"] == len(stored) == len(set(stored))
    assert before - closed <= set(stored) <= exchange.markets.keys()
    assert walks(database)[0][0] == "full"


async def test_a_walk_that_breaks_off_is_made_good_by_the_other(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    exchange.fail_next(KEYSET, status=404)
    result = await everything.collect_all()
    assert stored_ids(database, 1) == open_ids(exchange)
    assert (result["status"], result["stats"]["errors"]) == ("complete", 1)
    assert "HTTP 404" in reasons(database)[0]


async def test_a_first_page_for_ever_is_not_taken_for_everything(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    """A wrong cursor name is answered with the first page again; one project took 100 markets for 410,196."""
    exchange.odd.forgets_cursors = True
    result = await everything.collect_all()
    assert (result["markets"], result["status"]) == (200, "partial")
    assert all("the listing repeats itself" in reason for reason in reasons(database))
    assert len(exchange.asked(KEYSET)) == 4
    assert (await everything.collect_all())["status"] == "partial"
    assert walks(database) == [("full", "partial")] * 2, "an unfinished walk is no ground for a shorter one"


async def test_an_order_that_is_not_kept_is_not_taken_for_everything(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    database.touch()
    exchange.fail_next(KEYSET, times=math.inf, mutate=lambda page: page | {"markets": page["markets"][::-1]})
    with pytest.raises(ac.MalformedResponseError, match="the listing is not in the order of id"):
        await everything.collect_all()
    assert stored_ids(database, 1) == []


async def test_a_later_run_walks_the_newest_and_asks_for_the_known_by_id(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    await everything.collect_all()
    exchange.arrivals.clear()
    for _ in range(150):
        exchange.add_market()
    result = await everything.collect_all()
    assert stored_ids(database, 2) == open_ids(exchange)
    assert walks(database) == [("full", "complete"), ("known", "complete")]
    asked = exchange.asked(KEYSET)
    by_id = [arrival for arrival in asked if arrival.query.startswith("id=")]
    assert (len(by_id), len(asked) - len(by_id)) == (10, 3)
    assert result["requests"] == 13 + math.ceil(1_150 / 250)


@pytest.mark.slow
async def test_a_walk_over_the_newest_that_breaks_off_leaves_no_hole(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    """What it has seen of the newest must not be taken for known ground: behind it there are more."""
    await everything.collect_all()
    for _ in range(600):
        exchange.add_market()
    pages = 0

    def break_fourth(page: dict[str, Any]) -> dict[str, Any]:
        nonlocal pages
        pages += "next_cursor" in page and page["markets"][0]["id"] > page["markets"][-1]["id"]
        return page if pages < 4 else {"error": "broken"}

    exchange.fail_next(KEYSET, times=math.inf, mutate=break_fourth)
    assert (await everything.collect_all())["status"] == "partial"
    exchange.heal()
    assert (await everything.collect_all())["status"] == "complete"
    assert stored_ids(database, 3) == open_ids(exchange)


async def test_known_markets_that_are_all_gone_at_once_are_not_believed(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    await everything.collect_all()

    def only_listings(page: dict[str, Any]) -> dict[str, Any]:
        return (
            page if "next_cursor" in page and page["markets"][0]["id"] > page["markets"][-1]["id"] else {"markets": []}
        )

    exchange.fail_next(KEYSET, times=math.inf, mutate=only_listings)
    result = await everything.collect_all()
    assert result["status"] == "partial"
    assert "of 1000 that are known" in (result["reason"] or "")
    asked_in_vain = rows(database, "SELECT count(*) AS n FROM markets WHERE outcome_asked > 0")
    assert asked_in_vain == [{"n": 0}], "nothing is concluded from absence"


async def test_known_ground_may_be_reached_after_all_known_markets_are_listed(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    await everything.collect_all()
    exchange.fail_next(KEYSET, delay_s=0.3)  # the first page of the walk; the others overtake it
    assert (await everything.collect_all())["status"] == "complete"
    assert reasons(database) == []


async def test_a_full_walk_dated_in_the_future_is_no_reason_to_make_none(
    everything: ac.AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    clock.set_forward_s = 30 * DAY_S
    await everything.collect_all()
    clock.set_forward_s = 0
    await everything.collect_all()
    assert [listing for listing, _ in walks(database)] == ["full", "full"]


async def test_known_markets_are_asked_for_in_parallel(exchange: FakePolymarket, everything: ac.AsyncCollector) -> None:
    await everything.collect_all()
    exchange.latency_s = 0.1
    exchange.most_in_flight = 0
    await everything.collect_all()
    assert exchange.most_in_flight == 10


@pytest.mark.slow
async def test_a_full_walk_is_made_once_a_day(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    for elapsed_s in (0, 900, DAY_S - 10, DAY_S + 10, DAY_S + 900):
        clock.elapsed_s = elapsed_s
        await everything.collect_all()
    assert [listing for listing, _ in walks(database)] == ["full", "known", "known", "full", "known"]
    assert len({row["full_walk_at"] for row in rows(database, "SELECT full_walk_at FROM runs")}) == 2
    assert exchange.url


@pytest.mark.slow
async def test_a_job_with_a_threshold_needs_no_walk_and_disturbs_none(
    everything: ac.AsyncCollector, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    await everything.collect_all()
    await in_no_hurry(make_collector(min_volume=100_000)).collect_all()
    await everything.collect_all()
    assert walks(database) == [("full", "complete"), ("top", "complete"), ("known", "complete")]
    listed = rows(database, "SELECT snapshots_saved FROM runs WHERE listing != 'top'")
    assert listed == [{"snapshots_saved": 1_000}] * 2


async def test_known_markets_that_cannot_be_listed_are_recorded_and_come_back(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    await everything.collect_all()
    first, last = open_ids(exchange)[0], open_ids(exchange)[99]

    def refuse(page: dict[str, Any]) -> dict[str, Any]:
        return {"error": "not these"} if first <= page["markets"][0]["id"] <= last else page

    exchange.fail_next(KEYSET, times=math.inf, mutate=refuse)
    second = await everything.collect_all()
    assert (second["markets"], second["status"]) == (900, "partial")
    failed = rows(database, "SELECT market_id, markets FROM failures WHERE run_id = 2 AND stage = 'list'")
    assert failed == [{"market_id": None, "markets": 100}]
    exchange.heal()
    third = await everything.collect_all()
    assert (third["markets"], third["status"]) == (1_000, "complete")


def change_something(exchange: FakePolymarket, chance: random.Random) -> None:
    """Let markets appear, close, reopen, and placeholders come to life."""
    for market in chance.sample(list(exchange.markets.values()), 40):
        exchange.change(market, closed=not market.closed, active=True, has_books=True)
    for _ in range(chance.randrange(150)):
        exchange.add_market(active=chance.random() < 0.8)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_both_kinds_of_run_store_the_same_rows(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    tmp_path: Path,
    seed: int,
) -> None:
    for _ in range(340):
        exchange.add_market()
    everything = in_no_hurry(make_collector(min_volume=0))
    chance = random.Random(seed)
    shown = ", ".join(field for field in ac.Snapshot._fields if field not in {"run_id", "timestamp"})
    for number in range(1, 6):
        fresh = in_no_hurry(ac.AsyncCollector(tmp_path / f"fresh-{number}.db", min_volume=0))
        (await asyncio.gather(everything.collect_all(), fresh.collect_all()))
        query = f"SELECT {shown} FROM snapshots WHERE run_id = ? ORDER BY market_id"  # noqa: S608
        cold = rows(fresh.settings.db_path, query, 1)
        assert rows(database, query, number) == cold
        assert [row["market_id"] for row in cold] == open_ids(exchange)
        change_something(exchange, chance)
    assert [listing for listing, _ in walks(database)] == ["full"] + ["known"] * 4


@pytest.mark.slow
async def test_a_listing_runs_no_further_ahead_than_a_few_batches(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], write: Callable[[str], None]
) -> None:
    """Memory does not grow with the exchange: where the file is slow, the listing waits."""
    await make_collector().collect_all()
    write("""
        CREATE TRIGGER slow AFTER INSERT ON snapshots BEGIN
            SELECT count(*) FROM (
                WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 4000)
                SELECT n FROM numbers
            );
        END;
    """)
    for _ in range(4_000):
        exchange.add_market(volume_24h=1e6)
    ahead: list[int] = []
    collector = in_no_hurry(
        make_collector(workers=1, progress=lambda progress: ahead.append(progress.listed - progress.stored))
    )
    assert (await collector.collect_all())["status"] == "complete"
    assert max(ahead) <= 8 * 250, "of 4,060: filling, waiting, asked for, handed over, waiting, being stored"
