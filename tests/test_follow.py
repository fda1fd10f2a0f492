"""covers: markets that stay collected until they resolve, and outcomes that are what the exchange says, exactly."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from conftest import JumpingClock, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

MINUTE, DAY = 60.0, 86_400.0
Outcome = dict[str, Any]


@pytest.fixture
def next_run(exchange: FakePolymarket, collector: ac.AsyncCollector, clock: JumpingClock) -> Callable[[], Any]:
    """Return what makes the next run, a quarter of an hour after the one before."""

    async def run() -> ac.CollectionResult:
        exchange.arrivals.clear()
        clock.elapsed_s += 15 * MINUTE
        return await collector.collect_all()

    return run


def first(exchange: FakePolymarket) -> FakeMarket:
    return next(iter(exchange.markets.values()))


def outcome(database: Path, market: FakeMarket) -> Outcome:
    query = "SELECT resolved, resolution_outcome, closed_at FROM markets WHERE market_id = ?"
    return rows(database, query, market.id)[0]


def open_still() -> Outcome:
    return {"resolved": 0, "resolution_outcome": None, "closed_at": None}


def ended(word: str) -> Outcome:
    return {"resolved": 1, "resolution_outcome": word, "closed_at": "2026-11-22 14:20:04"}


def runs_of(database: Path, market: FakeMarket) -> list[int]:
    found = rows(database, "SELECT run_id FROM snapshots WHERE market_id = ? ORDER BY run_id", market.id)
    return [row["run_id"] for row in found]


async def test_a_market_that_drops_under_the_threshold_stays_collected(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    quiet, silent = list(exchange.markets.values())[:2]
    await next_run()
    exchange.change(quiet, volume_24h=99.0)
    exchange.change(silent, volume_24h=None)
    for _ in range(150):
        exchange.add_market(volume_24h=500.0)
    result = await next_run()
    assert (result["markets"], result["status"]) == (60, "complete")
    by_id = [arrival for arrival in exchange.asked("/markets/keyset") if arrival.query.startswith("id=")]
    assert len(by_id) == 1
    exchange.change(quiet, volume_24h=200_000.0)
    assert (await next_run())["markets"] == 60
    assert runs_of(database, quiet) == runs_of(database, silent) == [1, 2, 3]


async def test_on_the_last_page_of_the_listing_it_costs_no_request(
    exchange: FakePolymarket, next_run: Callable[[], Any]
) -> None:
    await next_run()
    exchange.change(first(exchange), volume_24h=99.0)
    result = await next_run()
    assert (result["markets"], result["requests"]) == (60, 2)


async def test_without_follow_it_is_forgotten(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    collector = make_collector(follow=False)
    await collector.collect_all()
    exchange.change(first(exchange), volume_24h=99.0)
    for _ in range(150):
        exchange.add_market(volume_24h=500.0)
    result = await collector.collect_all()
    assert (result["markets"], result["requests"]) == (59, 2)


@pytest.mark.parametrize(
    ("prices", "on_clob", "word"),
    [
        (("1", "0"), None, "Lakers"),
        (("0", "1"), None, "Celtics"),
        (("1.0", "0.0"), None, "Lakers"),
        (("0.5", "0.5"), -1, "split"),
        (("0.5", "0.5"), 0, "Lakers"),
        (("0", "0"), 1, "Celtics"),
        (("0.9995", "0.0005"), 0, "Lakers"),
        (("0", "0"), -1, None),
        (("0.9995", "0.0005"), -1, None),
        (("1", "1"), -1, None),
    ],
)
async def test_a_closed_market_gets_the_outcome_that_the_exchange_names(
    exchange: FakePolymarket,
    collector: ac.AsyncCollector,
    prices: tuple[str, str],
    on_clob: int | None,  # who has won there; -1: nobody; None: must not be asked
    word: str | None,
) -> None:
    market = first(exchange)
    exchange.change(market, outcomes=("Lakers", "Celtics"))
    await collector.collect_all()
    exchange.close(market, *prices, winner=on_clob)
    result = await collector.collect_all()
    assert outcome(collector.settings.db_path, market) == (ended(word) if word else open_still())
    assert (result["markets"], result["stats"]["errors"], result["status"]) == (59, 0, "complete")
    assert len(exchange.asked(f"/markets/{market.condition_id}")) == (on_clob is not None)


@pytest.mark.parametrize("tokens", ["[]", '["1"]', '["1", "2", "3"]', None])
async def test_a_closed_market_without_two_tokens_ends_no_run(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path, tokens: str | None
) -> None:
    market = first(exchange)
    await next_run()
    exchange.close(market, "1", "0")

    def spoil(page: dict[str, Any]) -> dict[str, Any]:
        for sent in page["markets"]:
            if sent["id"] == market.id:
                sent["clobTokenIds"] = tokens
        return page

    exchange.fail_next("/markets/keyset", times=math.inf, mutate=spoil)
    result = await next_run()
    assert (result["markets"], result["status"]) == (59, "complete")
    assert outcome(database, market) == ended(market.outcomes[0])


async def test_a_resolved_market_is_not_asked_for_again_within_a_day(
    exchange: FakePolymarket, next_run: Callable[[], Any]
) -> None:
    await next_run()
    exchange.close(first(exchange), "1", "0")
    assert (await next_run())["requests"] == 5  # listing, its other end, still open?, closed?, books
    assert (await next_run())["requests"] == 3


async def test_what_stays_undecided_is_asked_for_at_growing_distances(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path, clock: JumpingClock
) -> None:
    market = first(exchange)
    await next_run()
    exchange.close(market, "0", "0")
    asked = []
    for number in range(30):
        await next_run()
        if exchange.asked(f"/markets/{market.condition_id}"):
            asked.append(number)
    assert asked == [0, 1, 5, 21]
    for days in (0.7, 2.7, 7, 7):  # 16 and 64 hours, and from then on a week
        clock.elapsed_s += days * DAY - 15 * MINUTE
        await next_run()
        assert exchange.asked(f"/markets/{market.condition_id}")
    exchange.close(market, "0", "1")
    clock.elapsed_s += 7 * DAY
    await next_run()
    assert outcome(database, market) == ended(market.outcomes[1])


async def test_ten_thousand_undecided_markets_cost_nothing_in_between(
    exchange: FakePolymarket, next_run: Callable[[], Any]
) -> None:
    await next_run()
    for market in exchange.markets.values():
        exchange.close(market, "0", "0", on_clob=False)
    newcomer = exchange.add_market(volume_24h=200_000.0)
    for _ in range(3):
        await next_run()
    result = await next_run()
    assert (result["markets"], result["requests"], newcomer.closed) == (1, 3, False)


async def test_a_market_that_has_disappeared_is_undecided(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    market = first(exchange)
    await next_run()
    exchange.remove(market)
    result = await next_run()
    assert (outcome(database, market), result["status"]) == (open_still(), "complete")
    assert "neither among the open markets nor among the closed" in result["reason"]


async def test_a_market_that_was_absent_for_a_while_is_collected_again_within_an_hour(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    market = first(exchange)
    await next_run()
    exchange.remove(market)
    for _ in range(20):
        await next_run()
    exchange.markets[market.id] = market
    exchange.change(market, volume_24h=5.0)
    for _ in range(150):
        exchange.add_market(volume_24h=500.0)
    for _ in range(4):
        await next_run()
    assert len(runs_of(database, market)) >= 2


async def test_a_market_that_is_listed_and_not_active_is_not_lost_silently(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    market = first(exchange)
    await next_run()
    exchange.change(market, active=False)
    result = await next_run()
    assert result["stats"]["errors"] == 1
    exchange.change(market, active=True)
    await next_run()
    assert len(runs_of(database, market)) == 2


async def test_a_listing_that_breaks_off_costs_the_followed_nothing(
    exchange: FakePolymarket, next_run: Callable[[], Any]
) -> None:
    await next_run()
    exchange.change(first(exchange), volume_24h=5.0)
    exchange.fail_next("/markets/keyset", status=404)
    result = await next_run()
    assert (result["markets"], result["status"]) == (60, "partial")


async def test_a_market_that_reopens_is_collected_again(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    market = first(exchange)
    await next_run()
    exchange.close(market, "1", "0")
    await next_run()
    assert outcome(database, market) == ended(market.outcomes[0])
    exchange.change(market, closed=False, closed_time=None, changes={})
    await next_run()
    assert outcome(database, market) == open_still()
    assert runs_of(database, market) == [1, 3]


async def test_a_market_that_closes_during_a_run_keeps_its_last_state(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    market = first(exchange)

    def close_meanwhile(page: dict[str, Any]) -> dict[str, Any]:
        exchange.close(market, "1", "0")
        return page

    exchange.fail_next("/markets/keyset", mutate=close_meanwhile)
    result = await next_run()
    assert (result["markets"], result["books_missing"]) == (60, 1)
    await next_run()
    assert outcome(database, market) == ended(market.outcomes[0])


async def test_while_the_clob_is_down_gammas_word_is_taken_and_the_rest_is_said(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    clear, unclear = list(exchange.markets.values())[:2]
    await next_run()
    exchange.close(clear, "1", "0")
    exchange.close(unclear, "0", "0", winner=0)
    exchange.fail_next(f"/clob/markets/{unclear.condition_id}", status=503, times=4)
    await next_run()
    assert outcome(database, clear) == ended(clear.outcomes[0])
    assert outcome(database, unclear) == open_still()
    (failure,) = rows(database, "SELECT market_id, stage, reason FROM failures")
    assert (failure["market_id"], failure["stage"]) == (unclear.id, "outcome")
    assert "HTTP 503" in failure["reason"]
    await next_run()
    assert outcome(database, unclear) == ended(unclear.outcomes[0])


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500, "times": 9},
        {"status": 403},
        {"status": 404},
        {"mutate": lambda market: market | {"closed": False}},
        {"mutate": lambda market: market | {"tokens": [{"token_id": "1", "winner": False}]}},
        {"mutate": lambda market: market | {"tokens": [token | {"winner": None} for token in market["tokens"]]}},
    ],
)
async def test_a_split_is_believed_only_of_a_clob_that_names_nobody(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path, trouble: dict[str, Any]
) -> None:
    market = next(iter(exchange.markets.values()))
    await next_run()
    exchange.close(market, "0.5", "0.5", winner=0)
    exchange.fail_next(f"/clob/markets/{market.condition_id}", **trouble)
    await next_run()
    assert outcome(database, market) == open_still()
    exchange.heal()
    await next_run()
    assert outcome(database, market) == ended(market.outcomes[0])


async def test_a_listing_that_fails_for_a_moment_costs_no_market_that_is_known(
    exchange: FakePolymarket, next_run: Callable[[], Any], database: Path
) -> None:
    await next_run()
    exchange.fail_next("/markets/keyset", status=503, times=4)  # the listing and its retries
    await next_run()
    saved = [(row["status"], row["snapshots_saved"]) for row in rows(database, "SELECT * FROM runs ORDER BY run_id")]
    assert saved == [("complete", 60), ("partial", 60)]


@pytest.mark.slow
async def test_five_thousand_followed_markets_cost_a_request_a_hundred(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock
) -> None:
    for _ in range(4_940):
        exchange.add_market(volume_24h=200_000.0)
    collector = make_collector()
    collector.gamma_limiter.max_requests = collector.clob_limiter.max_requests = 1_000
    await collector.collect_all()
    for market in list(exchange.markets.values())[:100]:
        exchange.close(market, "1", "0")
    for market in list(exchange.markets.values())[100:]:
        exchange.change(market, volume_24h=5.0)
    exchange.arrivals.clear()
    clock.elapsed_s += 15 * MINUTE
    result = await collector.collect_all()
    by_id = [arrival for arrival in exchange.asked("/markets/keyset") if arrival.query.startswith("id=")]
    assert result["markets"] == 4_900
    still_open = sum("closed=false" in arrival.query for arrival in by_id)
    assert (still_open, len(by_id) - still_open) == (49, 1)
    assert max(len(arrival.query) for arrival in by_id) < 6_000
    assert len(exchange.asked("/books")) == math.ceil(2 * 4_900 / 500)


async def test_of_the_whole_exchange_only_the_closed_are_asked_for_again(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    collector = make_collector(min_volume=0)
    market = first(exchange)
    await collector.collect_all()
    exchange.close(market, "0", "1")
    exchange.arrivals.clear()
    clock.elapsed_s += 15 * MINUTE
    await collector.collect_all()
    assert sum("closed=true" in arrival.query for arrival in exchange.asked("/markets/keyset")) == 1
    assert outcome(database, market) == ended(market.outcomes[1])


histories = st.lists(
    st.tuples(
        st.sampled_from(("complete", "partial", "failed")),
        st.booleans(),  # whether the run follows
        st.sets(st.sampled_from("abc")),  # the markets that it stored
        st.lists(st.tuples(st.none() | st.sampled_from("abc"), st.sampled_from(("down", "late"))), max_size=3),
    ),
    max_size=9,
)


def true_gaps(history: list[tuple[str, bool, set[str], list[tuple[str | None, str]]]]) -> list[dict[str, Any]]:
    """Return the gaps of *history*, computed the plain way."""
    gaps = []
    for market in "abc":
        stored = [number for number, (_, _, markets, _) in enumerate(history, 1) if market in markets]
        for last, following in zip(stored, [*stored[1:], None], strict=False):
            missed = [number for number in range(last + 1, following or len(history) + 1) if history[number - 1][1]]
            reasons = {reason for number in missed for name, reason in history[number - 1][3] if name in {None, market}}
            if missed:
                gaps.append({"market_id": market, "until": following, "run_ids": missed, "reasons": sorted(reasons)})
    return gaps


@given(history=histories)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_gaps_are_the_runs_that_should_have_stored_a_market_and_did_not(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[tuple[str, bool, set[str], list[tuple[str | None, str]]]],
) -> None:
    path = tmp_path_factory.mktemp("gaps") / "file.db"
    async with ac.Database.open(path) as database:
        execute = database._connection.execute
        await execute("BEGIN")
        for market in "abc":
            await execute("INSERT INTO markets (market_id, followed) VALUES (?, 1)", (market,))
        for number, (status, follows, markets, failures) in enumerate(history, 1):
            run = (number, f"2026-11-22 14:{number:02d}:00", status, follows)
            await execute("INSERT INTO runs (run_id, started_at, status, follow) VALUES (?, ?, ?, ?)", run)
            for market in markets:
                row = (market, run[1], number)
                await execute("INSERT INTO snapshots (market_id, timestamp, run_id) VALUES (?, ?, ?)", row)
            for failure in failures:
                await execute(
                    "INSERT INTO failures (run_id, market_id, stage, reason) VALUES (?, ?, 'book', ?)",
                    (number, *failure),
                )
        await execute("INSERT INTO seen SELECT market_id, max(timestamp), max(id) FROM snapshots GROUP BY market_id")
        await execute("COMMIT")
    columns = "market_id, CAST(substr(until, 15, 2) AS INTEGER) AS until, run_ids, reasons"
    found = rows(path, f"SELECT {columns} FROM gaps ORDER BY market_id, since")  # noqa: S608
    assert [row | {key: json.loads(row[key]) for key in ("run_ids", "reasons")} for row in found] == true_gaps(history)
