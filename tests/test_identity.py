"""covers: a market stays the market it was: its tokens, their order, its book, and an outcome that may be corrected."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from conftest import JumpingClock, rows
from truth import assert_true, failures, last_run, stored_rows, true_row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

    from async_collector import AsyncCollector, CollectionResult

    Run = Callable[..., Awaitable[CollectionResult]]

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
IDENTITY = "market_id, condition_id, token_id_yes, token_id_no, outcome_yes, outcome_no, question"


@pytest.fixture
def next_run(exchange: FakePolymarket, collector: AsyncCollector, clock: JumpingClock) -> Run:
    """Return what makes the next run, a quarter of an hour after the one before or later."""

    async def run(later_s: float = 15 * MINUTE) -> CollectionResult:
        exchange.arrivals.clear()
        clock.elapsed_s += later_s
        return await collector.collect_all()

    return run


@pytest.fixture
def market(exchange: FakePolymarket) -> FakeMarket:
    """A market with a book on both sides."""
    return next(market for market in exchange.markets.values() if market.bids and market.asks and market.last_trade)


def identity(database: Path, market: FakeMarket) -> dict[str, Any]:
    return rows(database, f"SELECT {IDENTITY} FROM markets WHERE market_id = ?", market.id)[0]  # noqa: S608


def outcome(database: Path, market: FakeMarket) -> tuple[int, str | None]:
    (row,) = rows(database, "SELECT resolved, resolution_outcome FROM markets WHERE market_id = ?", market.id)
    return row["resolved"], row["resolution_outcome"]


def reasons(database: Path, market: FakeMarket) -> list[str]:
    return [row["reason"] for row in failures(database) if row["market_id"] == market.id]


# --- tokens and their order


async def test_prices_are_mapped_by_token_when_the_order_of_the_outcomes_changes(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    await next_run()
    named, before = identity(database, market), stored_rows(database)
    exchange.swap_sides(market)
    result = await next_run()
    assert (result["status"], failures(database)) == ("complete", [])
    assert identity(database, market) == named
    after = stored_rows(database)
    trade = after[market.id].pop("last_trade_price")
    assert trade in {None, before[market.id].pop("last_trade_price")}
    assert after == before
    exchange.change(market, volume_24h=50.0)  # the same through the answers by id
    for _ in range(150):
        exchange.add_market(volume_24h=60.0)
    await next_run()
    assert stored_rows(database)[market.id]["best_bid_yes"] == before[market.id]["best_bid_yes"]


async def test_without_books_gammas_prices_are_mapped_by_token_too(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    exchange.change(market, gamma_price=0.175, has_books=False)
    await next_run()
    exchange.swap_sides(market)
    await next_run()
    prices = rows(database, "SELECT price_yes, price_no FROM snapshots WHERE market_id = ? ORDER BY id", market.id)
    assert prices == [{"price_yes": 0.175, "price_no": 0.825}] * 2


@pytest.mark.parametrize("prices", [("1", "0"), ("0", "1")])
async def test_the_outcome_of_a_market_whose_order_changed_is_the_winners_own_word(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket, prices: tuple[str, str]
) -> None:
    exchange.change(market, outcomes=("Lakers", "Celtics"))
    await next_run()
    exchange.swap_sides(market)
    exchange.close(market, *prices)
    await next_run()
    assert outcome(database, market) == (1, "Celtics" if prices[0] == "1" else "Lakers")
    assert identity(database, market)["outcome_yes"] == "Lakers"


@pytest.mark.parametrize(
    "names",
    [("condition_id", "tokens", "question"), ("condition_id",), ("tokens",)],
    ids=["another market", "another condition", "other tokens"],
)
async def test_another_market_under_the_same_id_is_refused_and_both_are_named(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket, names: tuple[str, ...]
) -> None:
    await next_run()
    named, before = identity(database, market), (market.condition_id, *market.tokens)
    exchange.replace(market, *names)
    for _ in range(2):  # and is refused the next time as well
        result = await next_run()
        assert (result["stats"]["markets_fetched"], result["snapshots"]) == (60, 59)
        assert identity(database, market) == named
        assert_true(database, [other for other in exchange.markets.values() if other is not market])
        (reason,) = reasons(database, market)
        changed = {
            old: new for old, new in zip(before, (market.condition_id, *market.tokens), strict=True) if old != new
        }
        assert any(old in reason and new in reason for old, new in changed.items())


async def test_a_question_may_be_reworded(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    await next_run()
    exchange.replace(market, "question")
    result = await next_run()
    assert (result["status"], failures(database)) == ("complete", [])
    assert identity(database, market)["question"] == market.question
    assert_true(database, exchange.markets.values())


async def test_what_an_older_file_does_not_know_of_a_market_is_learnt(
    exchange: FakePolymarket,
    next_run: Run,
    database: Path,
    market: FakeMarket,
    write: Callable[..., None],
) -> None:
    await next_run()
    named = identity(database, market)
    unknown = "condition_id = NULL, token_id_yes = NULL, token_id_no = '', outcome_yes = NULL, outcome_no = NULL"
    write(f"UPDATE markets SET {unknown} WHERE market_id = '{market.id}'")  # noqa: S608
    result = await next_run()
    assert (result["status"], failures(database)) == ("complete", [])
    assert identity(database, market) == named
    assert_true(database, exchange.markets.values())


# --- books


@pytest.mark.parametrize("side", [0, 1], ids=["yes", "no"])
async def test_the_book_of_another_market_is_refused(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket, side: int
) -> None:
    other = list(exchange.markets.values())[-1]
    wrong: list[dict[str, Any]] = [{}, {}]
    wrong[side] = {"market": other.condition_id}
    exchange.change(market, book_changes=tuple(wrong))
    result = await next_run()
    assert (result["snapshots"], result["books_missing"]) == (60, 1)
    assert stored_rows(database)[market.id] == true_row(market, ("no", "yes")[side])
    (reason,) = reasons(database, market)
    assert other.condition_id in reason
    assert [row["market_id"] for row in failures(database)] == [market.id]


async def test_a_book_is_taken_where_gamma_names_no_condition(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    exchange.change(market, changes={"conditionId": ""})
    assert (await next_run())["status"] == "complete"
    assert_true(database, exchange.markets.values())
    assert identity(database, market)["condition_id"] is None


# --- outcomes that are corrected


async def test_an_outcome_is_looked_at_again_one_and_seven_days_after_the_close(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    """The markets close at 14:20; a look costs one request for 100 of them."""
    await next_run()
    exchange.close(market, "1", "0")
    await next_run()
    assert outcome(database, market) == (1, market.outcomes[0])
    asked: list[tuple[float, bool]] = []
    for later_s in (HOUR, 20 * HOUR, 5 * HOUR, HOUR, 4 * DAY, 3 * DAY, HOUR, 30 * DAY):
        await next_run(later_s)
        asked.append((later_s, f"id={market.id}" in " ".join(one.query for one in exchange.asked("/markets/keyset"))))
    assert [looked for _, looked in asked] == [False, False, True, False, False, True, False, False]
    assert failures(database) == []


async def test_the_time_of_an_outcome_is_when_that_outcome_was_stored(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    """So that it changes with the outcome alone: not when it is looked at again, and it goes when the market opens."""
    stored_at = "SELECT outcome_stored_at FROM markets WHERE market_id = ?"
    await next_run()
    exchange.close(market, "1", "0")
    times: list[str] = []
    for prices in (("1", "0"), ("1", "0"), ("0", "1")):
        exchange.close(market, *prices)
        await next_run(DAY + HOUR if times else HOUR)
        times.append(rows(database, stored_at, market.id)[0]["outcome_stored_at"])
    runs = [row["started_at"] for row in rows(database, "SELECT started_at FROM runs ORDER BY run_id")]
    assert times == [runs[1], runs[1], runs[1]]
    await next_run(6 * DAY)
    runs = [row["started_at"] for row in rows(database, "SELECT started_at FROM runs ORDER BY run_id")]
    assert rows(database, stored_at, market.id) == [{"outcome_stored_at": runs[4]}]


async def test_an_outcome_is_looked_at_again_once_where_nobody_says_when_the_market_closed(
    exchange: FakePolymarket, next_run: Run, market: FakeMarket
) -> None:
    def undated(page: dict[str, Any]) -> dict[str, Any]:
        for sent in page["markets"]:
            sent.pop("closedTime", None)
        return page

    await next_run()
    exchange.close(market, "1", "0")
    exchange.fail_next("/markets/keyset", times=math.inf, mutate=undated)
    await next_run()
    looked: list[bool] = []
    for later_s in (HOUR, DAY, HOUR, DAY, 7 * DAY, 30 * DAY):
        await next_run(later_s)
        looked.append(f"id={market.id}" in " ".join(one.query for one in exchange.asked("/markets/keyset")))
    assert looked == [False, True, False, False, False, False]


@pytest.mark.parametrize("prices", [("0", "1"), ("0.5", "0.5")])
@pytest.mark.parametrize("later_s", [DAY + HOUR, 7 * DAY + HOUR])
async def test_an_outcome_that_is_corrected_is_stored_and_recorded(
    exchange: FakePolymarket,
    next_run: Run,
    database: Path,
    market: FakeMarket,
    later_s: float,
    prices: tuple[str, str],
) -> None:
    await next_run()
    exchange.close(market, "1", "0")
    await next_run()
    if later_s > 2 * DAY:
        await next_run(DAY + HOUR)
        later_s -= DAY
    exchange.close(market, *prices)
    result = await next_run(later_s)
    corrected = "split" if prices[0] == "0.5" else market.outcomes[1]
    assert outcome(database, market) == (1, corrected)
    (row,) = failures(database)
    assert (row["market_id"], row["stage"]) == (market.id, "outcome")
    assert market.outcomes[0] in row["reason"]
    assert corrected in row["reason"]
    assert result["status"] == "complete"


async def test_looks_at_resolved_markets_are_made_100_at_a_time(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    ended = [exchange.add_market(volume_24h=200_000.0) for _ in range(150)]
    await next_run()
    for market in ended:
        exchange.close(market, "1", "0")
    await next_run()
    assert all(outcome(database, market)[0] for market in ended)
    await next_run(DAY + HOUR)
    by_id = [arrival for arrival in exchange.asked("/markets/keyset") if "id=" in arrival.query]
    assert len(by_id) == 2


async def test_a_resolved_market_that_is_open_again_is_collected_again_whatever_it_trades(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    for _ in range(150):
        exchange.add_market(volume_24h=60.0)
    await next_run()
    exchange.close(market, "1", "0")
    await next_run()
    exchange.reopen(market, volume_24h=50.0)
    await next_run(DAY + HOUR)
    await next_run()
    assert outcome(database, market) == (0, None)
    assert stored_rows(database)[market.id] == true_row(market)
    assert last_run(database)["status"] == "complete"


# --- disputes

HISTORIES: list[tuple[list[str], bool]] = [
    (["proposed", "disputed"], False),
    (["proposed", "disputed", "proposed", "disputed"], False),
    (["disputed"], False),
    (["proposed", "disputed", "proposed"], True),
    (["proposed", "disputed", "resolved"], True),
    (["proposed"], True),
    ([], True),
]


@pytest.mark.parametrize("newest", [True, False], ids=["status and history", "history alone"])
@pytest.mark.parametrize(("history", "is_decided"), HISTORIES)
async def test_a_market_is_undecided_while_its_newest_status_is_disputed(
    exchange: FakePolymarket,
    next_run: Run,
    database: Path,
    market: FakeMarket,
    history: list[str],
    is_decided: bool,  # noqa: FBT001
    newest: bool,  # noqa: FBT001
) -> None:
    await next_run()
    said: dict[str, Any] = {"umaResolutionStatuses": json.dumps(history)}
    if newest and history:
        said["umaResolutionStatus"] = history[-1]
    exchange.change(market, changes=said)
    exchange.close(market, "1", "0")
    await next_run()
    assert outcome(database, market) == ((1, market.outcomes[0]) if is_decided else (0, None))
    assert failures(database) == []


async def test_a_dispute_that_is_decided_the_other_way_is_stored_as_it_was_decided(
    exchange: FakePolymarket, next_run: Run, database: Path, market: FakeMarket
) -> None:
    await next_run()
    exchange.change(market, changes={"umaResolutionStatus": "disputed", "umaResolutionStatuses": '["disputed"]'})
    exchange.close(market, "1", "0")
    await next_run()
    said = {"umaResolutionStatus": "resolved", "umaResolutionStatuses": '["proposed", "disputed", "resolved"]'}
    exchange.change(market, changes=said)
    exchange.close(market, "0", "1")
    await next_run(DAY)
    assert outcome(database, market) == (1, market.outcomes[1])
    assert failures(database) == []
