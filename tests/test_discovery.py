"""covers: the whole exchange: every open market, found from both ends at once, and again by what runs have listed."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows
from fake_polymarket import encoded_cursor, unix_time

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


def asked_for(exchange: FakePolymarket) -> Counter[str]:
    """Return how many pages were asked for, by way of listing."""
    ways = {"id=": "known", "order=startDate": "slices", "start_date_min": "slices", "order=id&ascending=true": "walk"}
    return Counter(
        next((way for sign, way in ways.items() if arrival.query.startswith(sign)), "newest")
        for arrival in exchange.asked(KEYSET)
    )


def state(path: Path) -> dict[str, Any]:
    (row,) = rows(path, "SELECT * FROM walk")
    return row


async def test_the_first_run_lists_by_start_date_in_slices_side_by_side(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    exchange.latency_s = 0.02
    await everything.collect_all()
    assert stored_ids(database, 1) == open_ids(exchange)
    assert asked_for(exchange)["slices"] <= 16
    assert asked_for(exchange).keys() == {"slices", "walk"}
    assert exchange.most_in_flight > 2
    (run,) = rows(database, "SELECT listing, status, full_walk_at FROM runs")
    assert run == {"listing": "full", "status": "complete", "full_walk_at": None}
    assert (state(database)["unread"], state(database)["listed_at"]) == (None, "2026-11-22 14:15:00")
    assert len(rows(database, "SELECT market_id FROM listed_ids")) == 1_000


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


async def test_a_listing_that_is_refused_is_made_good_by_another(
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
    assert (result["markets"] < 1_000, result["status"]) == (True, "partial")
    assert "markets that start from" in reasons(database)[0]
    assert "the listing repeats itself" in reasons(database)[1]
    assert len(exchange.asked(KEYSET)) <= 16
    assert (await everything.collect_all())["status"] == "partial"
    assert walks(database) == [("full", "partial")] * 2, "an unfinished listing is no ground for a shorter one"


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
    assert asked_for(exchange) == {"known": 10, "newest": 3, "walk": 1}
    assert result["requests"] == 14 + math.ceil(1_150 / 250)


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
    (failure,) = rows(database, "SELECT reason FROM failures WHERE stage = 'outcome'")
    assert "of 1000 that are known" in failure["reason"]
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


async def test_a_listing_is_made_anew_where_none_has_come_through_for_two_days(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    for _ in range(340):
        exchange.add_market()
    everything = in_no_hurry(make_collector(min_volume=0))
    for elapsed_s in (0, 900, 2 * DAY_S - 10, 2 * DAY_S + 10, 2 * DAY_S + 900):
        clock.elapsed_s = elapsed_s
        await everything.collect_all()
    assert [listing for listing, _ in walks(database)] == ["full", "known", "known", "full", "known"]
    assert state(database)["listed_at"] == "2026-11-24 14:15:10"


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
    """Let markets appear and close, and placeholders come to life."""
    for market in chance.sample(list(exchange.markets.values()), 40):
        exchange.change(market, closed=market.active, active=True, has_books=True)
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


# --- an exchange that does not list by start date


@pytest.mark.parametrize(
    ("oddity", "more"), [({"ignores_start_dates": True}, 40), ({"refused_orders": frozenset({"startDate"})}, 2)]
)
async def test_an_exchange_that_does_not_list_by_start_date_is_walked_by_id(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path, oddity: dict[str, Any], more: int
) -> None:
    for name, value in oddity.items():
        setattr(exchange.odd, name, value)
    result = await everything.collect_all()
    assert (stored_ids(database, 1), result["status"]) == (open_ids(exchange), "complete")
    assert asked_for(exchange)["slices"] <= more
    assert asked_for(exchange)["walk"] == 10 + 1  # ten full pages and an empty one
    (reason,) = reasons(database)
    assert reason.startswith("the exchange is walked by id, for it cannot be listed by start date: ")
    (run,) = rows(database, "SELECT listing, full_walk_at FROM runs")
    assert run == {"listing": "full", "full_walk_at": "2026-11-22 14:15:00"}
    await everything.collect_all()
    assert (walks(database)[1], stored_ids(database, 2)) == (("known", "complete"), open_ids(exchange))


async def test_a_market_without_a_start_date_is_found_by_the_first_walk_by_id_if_no_listing_by_date_has_it(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    exchange.odd.drops_undated = True
    late = exchange.add_market(start_date=None)
    for market in list(exchange.markets.values())[100:700]:
        exchange.change(market, closed=True)
    undated = list(exchange.markets.values())[750]
    exchange.change(undated, start_date=None)
    dated = set(open_ids(exchange)) - {late.id, undated.id}
    notes: list[str] = []
    for run in range(1, 26):
        result = await everything.collect_all()
        notes += result["notes"]
        assert result["status"] == "complete"
        assert dated - {"500030"} <= set(stored_ids(database, run))
        clock.elapsed_s += 900
        if set(stored_ids(database, run)) == set(open_ids(exchange)):
            break
    assert stored_ids(database, run) == open_ids(exchange)
    assert notes
    assert set(notes) == {"the walk by id has found 1 markets that no other listing has"}


async def test_markets_whose_date_moves_or_that_reopen_are_found_by_the_walk_by_id(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    chance = random.Random(1)
    asleep = list(exchange.markets.values())[300::97]
    for market in asleep:
        exchange.change(market, closed=True)

    def move_dates(page: dict[str, Any]) -> dict[str, Any]:
        for market in chance.sample(list(exchange.markets.values()), 20):
            exchange.change(market, start_date=chance.choice(list(exchange.markets.values())).start_date)
        return page

    exchange.fail_next(KEYSET, times=14, mutate=move_dates)
    await everything.collect_all()
    for market in asleep:
        exchange.change(market, closed=False)
    for run in range(2, 26):
        clock.elapsed_s += 900
        assert (await everything.collect_all())["status"] == "complete"
        if stored_ids(database, run) == open_ids(exchange):
            break
    assert stored_ids(database, run) == open_ids(exchange)


# --- the walk by id, and runs that are too short


async def test_a_walk_by_id_goes_on_from_run_to_run_and_begins_anew_a_day_after_its_end(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    for _ in range(240):
        exchange.add_market()
    everything = in_no_hurry(make_collector(min_volume=0))
    last_ids, ends = [], []
    for elapsed_s in (0, 900, 1_800, 2_700, 3_600, DAY_S, DAY_S + 4_500):
        clock.elapsed_s = elapsed_s
        exchange.arrivals.clear()
        await everything.collect_all()
        last_ids.append(state(database)["last_id"])
        ends.append(rows(database, "SELECT full_walk_at FROM runs ORDER BY run_id DESC LIMIT 1")[0]["full_walk_at"])
    assert last_ids == [500_300, 500_600, 500_900, 0, 0, 0, 500_300]
    assert ends == [None] * 3 + ["2026-11-22 15:00:00"] * 4
    assert [status for _, status in walks(database)] == ["complete"] * 7


async def test_a_walk_by_id_whose_cursor_is_refused_begins_anew(
    exchange: FakePolymarket,
    everything: ac.AsyncCollector,
    database: Path,
    clock: JumpingClock,
    write: Callable[[str], None],
) -> None:
    await everything.collect_all()
    write("UPDATE walk SET cursor = 'stale', last_id = 500900")
    clock.elapsed_s += 900
    assert (await everything.collect_all())["status"] == "complete"
    assert (state(database)["began"], state(database)["last_id"]) == ("2026-11-22 14:30:00", 500_300)
    assert (reasons(database), exchange.unknown) == ([], [])


@pytest.mark.parametrize("oddity", ["the first page again", "an empty page"])
async def test_a_walk_by_id_whose_cursor_leads_to_what_cannot_follow_begins_anew(
    everything: ac.AsyncCollector,
    database: Path,
    clock: JumpingClock,
    write: Callable[[str], None],
    oddity: str,
) -> None:
    await everything.collect_all()
    before = 1.0 if oddity == "the first page again" else 1e9
    write(f"UPDATE walk SET last_id = 500901, cursor = '{encoded_cursor((before, before))}'")  # noqa: S608  ours
    clock.elapsed_s += 900
    assert (await everything.collect_all())["status"] == "complete"
    assert state(database)["began"] == "2026-11-22 14:30:00"
    assert state(database)["last_id"] in {0, 500_300}, "as far as it came before all the rest was done"
    assert reasons(database) == []


@pytest.mark.parametrize("status", [403, 503])
async def test_an_exchange_that_does_not_answer_costs_no_walk_by_id_its_place(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path, clock: JumpingClock, status: int
) -> None:
    await everything.collect_all()
    place = state(database)
    clock.elapsed_s += 900
    exchange.fail_next(KEYSET, status=status, times=math.inf)
    with pytest.raises(ac.ApiError):
        await everything.collect_all()
    assert state(database) == place
    exchange.heal()
    clock.elapsed_s += 900
    assert (await everything.collect_all())["status"] == "complete"
    assert state(database)["began"] == place["began"]
    assert state(database)["last_id"] > place["last_id"]


async def test_no_run_waits_for_ever_for_the_turn_of_the_walk_by_id(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    """Whatever ends the others, a refusal or that all is done, the walk that waits for its turn learns of it."""
    exchange.odd.refused_orders = frozenset({"startDate"})
    exchange.fail_next(KEYSET, delay_s=0)  # the walk is the first to ask, has its page at once, and waits
    exchange.fail_next(KEYSET, delay_s=0.2, times=2)  # the refusals come afterwards
    async with asyncio.timeout(60):
        first = await everything.collect_all()
        second = await everything.collect_all()
    assert [result["markets"] for result in (first, second)] == [1_000, 1_000]
    assert state(database)["cursor"] is None, "the refusal made the first run walk to the end"


async def test_only_what_the_exchange_says_is_closed_is_taken_out(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    """Where the filter is ignored, the answer to a question for closed markets has open ones."""
    await everything.collect_all()
    lost = list(exchange.markets.values())[500:510]
    ids = {market.id for market in lost}
    kept: list[dict[str, Any]] = []

    def hide(page: dict[str, Any]) -> dict[str, Any]:
        shown = [market for market in page["markets"] if market["id"] not in ids]
        kept.extend(market for market in page["markets"] if market["id"] in ids)
        return page | {"markets": shown if shown or not kept else kept[: len(ids)]}

    clock.elapsed_s += 900
    exchange.fail_next(KEYSET, times=math.inf, mutate=hide)
    await everything.collect_all()
    listed = {str(row["market_id"]) for row in rows(database, "SELECT market_id FROM listed_ids")}
    assert ids <= listed


async def test_a_walk_by_id_that_hangs_delays_no_run(
    exchange: FakePolymarket, everything: ac.AsyncCollector, database: Path
) -> None:
    await everything.collect_all()
    exchange.fail_next(KEYSET, hang=True)  # the walk is the first to ask
    async with asyncio.timeout(60):
        result = await everything.collect_all()
    assert (result["status"], result["markets"]) == ("complete", 1_000)
    assert state(database)["last_id"] == 500_300, "the next run asks again"


async def test_runs_that_are_too_short_get_further_each_time_and_end_with_everything(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    clock: JumpingClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the clock of the test that is time for 5 to 9 pages in each run, those of known markets among them."""
    monkeypatch.setenv("GAMMA_RATE_LIMIT", "3")
    for _ in range(1_140):
        exchange.add_market()
    known: list[int] = []
    while not known or known[-1] < 1_200:
        assert (await make_collector(min_volume=0, run_timeout=4, workers=40).collect_all())["status"] == "partial"
        known.append(len(rows(database, "SELECT market_id FROM markets")))
        clock.elapsed_s += 900
    assert known == sorted(set(known)), "each run knows more than the one before"
    result = await make_collector(min_volume=0, run_timeout=20, workers=40).collect_all()
    assert (result["status"], result["markets"]) == ("complete", 1_200)


async def test_a_walk_that_is_due_costs_no_known_market_its_snapshot(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    clock: JumpingClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GAMMA_RATE_LIMIT", "2")
    for _ in range(440):
        exchange.add_market()
    for elapsed_s in (0, 900, DAY_S + 1_800):
        clock.elapsed_s = elapsed_s
        result = await make_collector(min_volume=0, run_timeout=9 if elapsed_s else 60).collect_all()
        assert (result["status"], result["markets"]) == ("complete", 500)
    assert state(database)["began"], "the walk is under way"


async def test_ids_are_stored_with_their_batch_and_taken_out_when_the_exchange_says_closed(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    """A run that is killed has stored the ids of its batches: its successor asks for them."""
    for _ in range(440):
        exchange.add_market()
    placeholder = exchange.add_market(active=False, has_books=False)
    without: list[int] = []

    def compare(_: ac.Progress) -> None:
        with sqlite3.connect(database) as connection:
            query = "SELECT count(*) FROM snapshots WHERE market_id NOT IN (SELECT market_id FROM listed_ids)"
            without.extend(connection.execute(query).fetchone())
        connection.close()

    everything = in_no_hurry(make_collector(min_volume=0, progress=compare))
    await everything.collect_all()
    assert without == [0] * len(without)
    assert len(without) >= 2
    gone, closed = list(exchange.markets.values())[:2]
    exchange.remove(gone)
    exchange.close(closed, "1", "0")
    exchange.close(placeholder)
    clock.elapsed_s += 900
    await everything.collect_all()
    listed = {str(row["market_id"]) for row in rows(database, "SELECT market_id FROM listed_ids")}
    assert listed == set(open_ids(exchange)) | {gone.id}, "nothing is concluded from absence"


async def test_what_is_unread_stands_in_the_file_as_start_dates(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GAMMA_RATE_LIMIT", "2")
    for _ in range(940):
        exchange.add_market()
    shares: list[float | None] = []
    collector = make_collector(
        min_volume=0, run_timeout=5, progress=lambda progress: shares.append(progress.share_read)
    )
    await collector.collect_all()
    unread = json.loads(state(database)["unread"])
    oldest = min(unix_time(market.start_date) or math.inf for market in exchange.markets.values())
    assert state(database)["oldest"] == int(oldest)
    assert unread == sorted(unread)
    assert unread[-1][1] > 2 * 10**9, "what starts from now on"
    known = {row["market_id"] for row in rows(database, "SELECT market_id FROM listed_ids")}
    for market in exchange.markets.values():
        start = unix_time(market.start_date)
        is_unread = start is None or any(low <= start < end for low, end in unread)
        assert is_unread or market.number in known
    newest = max(unix_time(market.start_date) or 0 for market in exchange.markets.values())
    share = 1 - sum(min(end, newest) - low for low, end in unread) / (newest - oldest)
    assert 0.05 < share < 0.95
    assert shares[-1] == pytest.approx(share, abs=0.2)
