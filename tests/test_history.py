"""covers: collector-history: past prices and trades are stored as they were served, each once, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import re
import runpy
import signal
import sqlite3
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows
from fake_data_api import DAY_S, FakePast, signed_cursor
from test_docs import first_cells, section
from truth import command, start, variables

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket
    from truth import Done

SCRIPT: dict[str, Any] = runpy.run_path(str(PROJECT / "collector-history.py"), run_name="script")
PRICES = "SELECT market_id, width, strftime('%s', timestamp) + 0 AS time, price FROM past_prices"
TRADES = """
    SELECT market_id, strftime('%s', timestamp) + 0 AS time, outcome, side, price, size, wallet, transaction_hash
    FROM trades
"""
SETTLED_S = 600
HISTORY = "collector-history.py"
DATA = (PROJECT / "docs/data.md").read_text()
OPERATIONS = (PROJECT / "docs/operations.md").read_text()


class Situation:
    """An exchange whose time a test sets, and a file that a collector has filled with its markets."""

    def __init__(self, exchange: FakePolymarket, database: Path) -> None:
        self.exchange = exchange
        self.database = database
        self.time = time.time() // 300 * 300 + 60
        exchange.now = lambda: self.time

    def lived(self, days: float, *, ago: float = 0, trades: int = 0, market: FakeMarket | None = None) -> FakeMarket:
        """Return a market whose prices began *ago* + *days* days ago; it has resolved where they ended *ago*."""
        chosen = market or next(m for m in self.exchange.markets.values() if m.number not in self.exchange.data._pasts)
        ended = self.time - ago * DAY_S if ago else None
        self.exchange.data._pasts[chosen.number] = FakePast(self.time - (ago + days) * DAY_S, ended, ended and 1.0)
        if trades:
            self.exchange.data.make_trades(chosen, trades)
        return chosen

    def resolve(self, market: FakeMarket, column: str = "closed_at") -> None:
        """Store that *market* has ended, and when: in *column* of `markets`."""
        ended = ac.sql_time_of(self.exchange.data.past_of(market).ended)
        with sqlite3.connect(self.database) as connection:
            change = f"UPDATE markets SET resolved = 1, {column} = ? WHERE market_id = ?"  # noqa: S608
            connection.execute(change, (ended, market.id))
        connection.close()

    async def run(self, *args: str, markets: Sequence[FakeMarket] = (), **env: str) -> Done:
        """Run the command for *markets*, as fast as it can."""
        names = [word for market in markets for word in ("--market", market.id)]
        env.setdefault("DATA_RATE_LIMIT", "1000")
        words = ("--db", str(self.database), *names, *args)
        return await command(self.exchange, HISTORY, *words, **env)  # type: ignore[arg-type]

    def asked(self) -> int:
        """Return how many requests the Data API has had since this was asked the last time."""
        count = sum("/data/" in arrival.path for arrival in self.exchange.arrivals)
        self.exchange.arrivals.clear()
        return count

    def true_prices(self, market: FakeMarket) -> Counter[tuple[Any, ...]]:
        """Return the rows that `past_prices` should have of *market*."""
        return Counter(
            (market.id, width, point.timestamp, point.price)
            for width, since in ((10_800, 0.0), (300, self.time - 60 * DAY_S))
            for point in self.exchange.data.buckets(market, width, since, self.time)
            if point.timestamp + width <= self.time - SETTLED_S
        )

    def true_trades(self, market: FakeMarket) -> Counter[tuple[Any, ...]]:
        """Return the rows that `trades` should have of *market*, with their multiplicity."""
        return Counter(
            (market.id, t.timestamp, ("YES", "NO")[t.side], t.taker, t.price, t.size, t.wallet, t.transaction_hash)
            for t in self.exchange.data.past_of(market).trades
        )

    def stored(self, query: str) -> Counter[tuple[Any, ...]]:
        """Return the stored rows."""
        return Counter(tuple(row.values()) for row in rows(self.database, query))

    def assert_true(self, *markets: FakeMarket, trades: bool = True) -> None:
        """Fail unless exactly what was served of *markets* is stored, each row once."""
        prices = sum((self.true_prices(market) for market in markets), Counter[tuple[Any, ...]]())
        fills = sum((self.true_trades(market) for market in markets), Counter[tuple[Any, ...]]())
        assert self.stored(PRICES) == prices
        assert self.stored(TRADES) == (fills if trades else {})
        everything = "market_id, timestamp, outcome, side, price, size, wallet, transaction_hash, occurrence"
        twice = f"SELECT 1 FROM trades GROUP BY {everything} HAVING count(*) > 1"  # noqa: S608
        assert rows(self.database, twice) == []


@pytest.fixture
async def past(exchange: FakePolymarket, database: Path, collector: ac.AsyncCollector) -> Situation:
    """A file with the markets of an exchange, and what is known of their past."""
    await collector.collect_all()
    exchange.arrivals.clear()
    return Situation(exchange, database)


async def test_what_was_served_is_stored_once_and_a_second_run_stores_nothing(past: Situation) -> None:
    markets = [
        past.lived(40, trades=2_500),
        past.lived(0.05, trades=3),
        past.lived(3, ago=70, trades=40),
        past.lived(1_300, ago=1),
        past.lived(1, ago=59.5),
    ]
    done = await past.run("--trades", "--json", markets=markets)
    assert (done.code, done.err) == (0, "")
    past.assert_true(*markets)
    result = json.loads(done.out)
    assert result["prices"] == past.stored(PRICES).total()
    assert result["trades"] == past.stored(TRADES).total() == 2_543
    assert (result["done"], result["without_trades"], result["requests"]) == (5, 2, past.asked())
    before = rows(past.database, "SELECT * FROM past_prices"), rows(past.database, "SELECT * FROM trades")
    done = await past.run("--trades", "--json", markets=markets)
    assert (done.code, json.loads(done.out)["trades"], json.loads(done.out)["prices"]) == (0, 0, 0)
    assert past.asked() <= 3 * 5
    assert before == (rows(past.database, "SELECT * FROM past_prices"), rows(past.database, "SELECT * FROM trades"))


async def test_no_payout_and_no_unfinished_price_is_stored(past: Situation) -> None:
    market, over = past.lived(0.4), past.lived(0.5, ago=1)
    await past.run(markets=[market, over])
    widths = rows(past.database, "SELECT DISTINCT width FROM past_prices ORDER BY width")
    assert [row["width"] for row in widths] == [300, 10_800]
    past.assert_true(market, over, trades=False)


async def test_a_payout_is_taken_for_none_where_it_stands_after_now(past: Situation) -> None:
    """At the end of a bucket that is not over: neither stored nor a fault."""
    market = past.lived(5, ago=0.01)

    def later(answer: Any) -> Any:  # noqa: ANN401
        answer["data"][-1]["timestamp"] = int(past.time) + 9_000
        return answer

    past.exchange.fail_next("/prices-history", mutate=later)
    assert (await past.run(markets=[market])).code == 0
    past.assert_true(market, trades=False)


async def test_a_run_goes_on_where_the_last_one_has_ended(past: Situation) -> None:
    market = past.lived(30)
    await past.run(markets=[market])
    for pause_s in (500, 5 * DAY_S, 40 * DAY_S):
        past.time += pause_s
        past.exchange.arrivals.clear()
        assert (await past.run(markets=[market])).code == 0
        assert past.asked() <= 2 + pause_s // (15 * DAY_S)
    since = past.time - 75.1 * DAY_S  # whatever has expired meanwhile is there
    stored = past.stored(PRICES)
    assert stored.total() == len(stored)
    assert {row for row in stored if row[1] == 300} == {
        (market.id, 300, point.timestamp, point.price)
        for point in past.exchange.data.buckets(market, 300, since, past.time)
        if point.timestamp + 300 <= past.time - SETTLED_S
    }


@pytest.mark.parametrize("column", ["closed_at", "outcome_stored_at"])
async def test_a_resolved_market_is_not_asked_again(past: Situation, column: str) -> None:
    market = past.lived(20, ago=2, trades=30)
    past.resolve(market, column)
    await past.run("--trades", markets=[market])
    past.assert_true(market)
    past.asked()
    done = await past.run("--trades", "--json", markets=[market])
    assert (done.code, past.asked(), json.loads(done.out)["done"]) == (0, 0, 1)


@pytest.mark.parametrize("hours", [0.3, 4])
async def test_a_market_that_closed_just_before_a_run_is_asked_once_more(past: Situation, hours: float) -> None:
    market = past.lived(2, ago=hours / 24)
    past.resolve(market)
    await past.run(markets=[market])
    past.time += DAY_S
    await past.run(markets=[market])
    past.assert_true(market, trades=False)
    past.time += DAY_S
    past.asked()
    assert (await past.run(markets=[market])).code == 0
    assert past.asked() == 0


async def test_trades_that_come_between_two_runs_are_stored(past: Situation) -> None:
    """Equal to the newest one in all columns, in the same second, a minute late, and many new ones."""
    market = past.lived(5, trades=1_200)
    await past.run("--trades", "--no-prices", markets=[market])
    newest = past.exchange.data.past_of(market).trades[-1]
    past.exchange.data.add_trade(market, like=newest)
    past.exchange.data.add_trade(market, newest.timestamp)
    past.exchange.data.add_trade(market, newest.timestamp - 60)
    past.time += 400
    for number in range(1_100):
        past.exchange.data.add_trade(market, int(past.time) - 300 + number // 10)
    done = await past.run("--trades", "--no-prices", "--json", markets=[market])
    assert json.loads(done.out)["trades"] == 1_103
    assert past.stored(TRADES) == past.true_trades(market)


async def test_equal_trades_are_counted_over_the_end_of_a_page(past: Situation) -> None:
    """A page has 1,000: the second in the middle of which it ends is stored whole, and so is one of 2,500 trades."""
    market = past.lived(1)
    first = past.exchange.data.add_trade(market, int(past.time) - 1_000)
    for count, moment in ((2_500, 900), (990, 800), (30, 700), (985, 600)):
        like = past.exchange.data.add_trade(market, int(past.time) - moment)
        for _ in range(count - 1):
            past.exchange.data.add_trade(market, like=like)
    await past.run("--trades", "--no-prices", markets=[market])
    assert past.stored(TRADES) == past.true_trades(market)
    assert past.true_trades(market).total() == 4_506
    past.exchange.data.add_trade(market, like=first)
    past.time += 400
    await past.run("--trades", "--no-prices", markets=[market])
    assert past.stored(TRADES) == past.true_trades(market)


async def begun(past: Situation, market: FakeMarket) -> None:
    """Begin a walk over the trades of *market*, and kill it after its second page."""
    arguments = ("--db", str(past.database), "--market", market.id, "--trades", "--no-prices")
    process = await start(past.exchange, HISTORY, *arguments, DATA_RATE_LIMIT="5")
    await past.exchange.until_asked("/trades", 3)
    process.kill()
    await process.communicate()
    past.time += 301


async def test_a_cursor_that_is_refused_begins_the_walk_anew(past: Situation) -> None:
    market = past.lived(3, trades=4_500)
    await begun(past, market)
    past.exchange.data.cursor_key = "2"
    done = await past.run("--trades", "--no-prices", markets=[market])
    assert (done.code, done.err) == (0, "")
    assert past.stored(TRADES) == past.true_trades(market)
    assert rows(past.database, "SELECT top, cursor FROM past_done") == [{"top": None, "cursor": None}]


async def test_a_cursor_that_leads_to_nothing_begins_the_walk_anew(past: Situation) -> None:
    market = past.lived(3, trades=4_500)
    await begun(past, market)
    assert rows(past.database, "SELECT 1 AS one FROM past_done WHERE cursor IS NOT NULL") == [{"one": 1}]
    past.exchange.fail_next("/trades", mutate=lambda answer: with_page(has_more=False)({**answer, "data": []}))
    assert (await past.run("--trades", "--no-prices", markets=[market])).code == 0
    assert past.stored(TRADES) == past.true_trades(market)


@pytest.mark.parametrize("shown", [0, 100])
async def test_trades_that_end_before_what_is_stored_are_a_failure(past: Situation, shown: int) -> None:
    past.time -= 2 * DAY_S
    market = past.lived(3, trades=500)
    await past.run("--trades", "--no-prices", markets=[market])
    past.time += 2 * DAY_S
    for number in range(2_000):
        past.exchange.data.add_trade(market, int(past.time) - DAY_S + number * 20)
    short = with_page(has_more=False)
    past.exchange.fail_next("/trades", mutate=lambda answer: short({**answer, "data": answer["data"][:shown]}))
    done = await past.run("--trades", "--no-prices", markets=[market])
    assert (done.code, "end before the newest one that is stored" in done.err) == (65, True)
    past.time += 301
    assert (await past.run("--trades", "--no-prices", markets=[market])).code == 0
    assert past.stored(TRADES) == past.true_trades(market)


async def test_a_market_whose_trades_are_all_older_than_three_years_has_none(past: Situation) -> None:
    """The exchange does not send them any more."""
    market = past.lived(1_200, trades=40)
    await past.run("--trades", "--no-prices", markets=[market])
    past.time += 3.1 * 365 * DAY_S
    done = await past.run("--trades", "--no-prices", "--json", markets=[market])
    assert (done.code, json.loads(done.out)["without_trades"]) == (0, 1)


def with_data(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Any], Any]:
    """Return what changes the elements of an answer in place."""

    def mutate(answer: Any) -> Any:  # noqa: ANN401
        change(answer["data"])
        return answer

    return mutate


def with_page(**page: object) -> Callable[[Any], Any]:
    """Return what changes what follows a page."""
    return lambda answer: {**answer, "pagination": answer["pagination"] | page}


def each(**values: object) -> Callable[[list[dict[str, Any]]], object]:
    """Return what puts *values* into the element in the middle."""
    return lambda data: data[len(data) // 2].update(values)


BAD_PRICES: dict[str, dict[str, Any]] = {
    "cut": {"cut": True, "times": 9},
    "unsorted": {"mutate": with_data(lambda data: data.reverse())},
    "one out of order": {"mutate": with_data(lambda data: data.insert(0, data.pop()))},
    "twice": {"mutate": with_data(lambda data: data.insert(3, data[3]))},
    "above 1": {"mutate": with_data(each(price=1.01))},
    "below 0": {"mutate": with_data(each(price=-0.001))},
    "no number": {"mutate": with_data(each(price="NaN"))},
    "null": {"mutate": with_data(each(price=None))},
    "milliseconds": {"mutate": with_data(each(timestamp=1_790_000_000_000))},
    "in the future": {"mutate": with_data(lambda data: data[-1].update(timestamp=data[-1]["timestamp"] + 90_000))},
    "another width": {"mutate": with_data(lambda data: [point.update(resolution_seconds=60) for point in data])},
    "empty": {"mutate": lambda answer: {**answer, "data": []}},
    "no data": {"mutate": lambda answer: {"pagination": answer["pagination"]}},
    "an error that is a 200": {"body": b'{"error":"Too Many Requests"}', "times": 9},
    "empty and going on": {"mutate": lambda answer: with_page(has_more=True, next_cursor="a")({**answer, "data": []})},
    "going on without a cursor": {"mutate": with_page(has_more=True)},
    "without a date": {"body": b'{"data":[],"pagination":{"has_more":false}}', "headers": {"Date": ""}},
    "500": {"status": 500, "times": 9},
    "429": {"status": 429, "times": 9},
    "400": {"status": 400},
}


@pytest.mark.parametrize("width", [10_800, 300])
@pytest.mark.parametrize("case", BAD_PRICES)
async def test_bad_prices_are_a_failure_and_nothing_of_the_window_is_stored(
    past: Situation, case: str, width: int
) -> None:
    market = past.lived(10)
    if width == 300:
        past.exchange.fail_next("/prices-history", delay_s=0)  # a fault that is none, for the whole life
    past.exchange.fail_next("/prices-history", **BAD_PRICES[case])
    done = await past.run("--max-retries", "0", markets=[market])
    assert done.code in {65, 69, 75}
    assert f"collector-history: {market.id}: prices: " in done.err
    stored = past.stored(PRICES)
    assert {row[1] for row in stored} == ({10_800} if width == 300 else set())
    assert stored <= past.true_prices(market)
    past.exchange.heal()
    past.time += 301
    assert (await past.run(markets=[market])).code == 0
    past.assert_true(market, trades=False)


BAD_TRADES: dict[str, dict[str, Any]] = {
    "cut": {"cut": True, "times": 9},
    "oldest first": {"mutate": with_data(lambda data: data.reverse())},
    "one out of order": {"mutate": with_data(lambda data: data.append(data.pop(0)))},
    "above 1": {"mutate": with_data(each(price=1.5))},
    "a negative size": {"mutate": with_data(each(size=-1))},
    "another side": {"mutate": with_data(each(side="MERGE"))},
    "another token": {"mutate": with_data(each(token_id="1"))},
    "another market": {"mutate": with_data(each(condition_id="0x1"))},
    "in the future": {"mutate": with_data(lambda data: data[0].update(timestamp=data[0]["timestamp"] + 90_000))},
    "without a hash": {"mutate": with_data(lambda data: data[3].pop("transaction_hash"))},
    "empty and going on": {"mutate": lambda answer: {**answer, "data": []}},
    "500": {"status": 500, "times": 9},
    "429": {"status": 429, "times": 9},
}


@pytest.mark.parametrize("case", BAD_TRADES)
async def test_bad_trades_are_a_failure_and_nothing_of_the_page_is_stored(past: Situation, case: str) -> None:
    market = past.lived(10, trades=2_500)
    past.exchange.fail_next("/trades", delay_s=0)
    past.exchange.fail_next("/trades", **BAD_TRADES[case])
    done = await past.run("--max-retries", "0", "--trades", "--no-prices", markets=[market])
    assert done.code in {65, 69, 75}
    assert f"collector-history: {market.id}: trades: " in done.err
    assert past.stored(TRADES) <= past.true_trades(market)
    assert past.stored(TRADES).total() <= 1_000
    past.exchange.heal()
    past.time += 301
    assert (await past.run("--trades", "--no-prices", markets=[market])).code == 0
    assert past.stored(TRADES) == past.true_trades(market)


async def test_trades_that_never_end_are_a_failure(past: Situation) -> None:
    """Pages of one second, each with another cursor, and pages that lead to themselves."""
    market = past.lived(10, trades=2_500)
    data = past.exchange.data
    pages = itertools.count(1)

    def endless(answer: Any) -> Any:  # noqa: ANN401
        moment = answer["data"][0]["timestamp"]
        cursor = signed_cursor(data.cursor_key, "trades", 1_000, moment, 10**20 - next(pages))
        return with_page(has_more=True, next_cursor=cursor)({**answer, "data": answer["data"][:1] * 1_000})

    past.exchange.fail_next("/trades", times=math.inf, mutate=endless)
    done = await past.run("--trades", "--no-prices", markets=[market])
    assert (done.code, past.stored(TRADES)) == (65, {}), done
    assert "trades are of the second" in done.err
    past.exchange.heal()
    repeated = signed_cursor(data.cursor_key, "trades", 1_000, 10**10, 1)
    past.time += 301
    past.exchange.fail_next("/trades", times=math.inf, mutate=with_page(has_more=True, next_cursor=repeated))
    done = await past.run("--trades", "--no-prices", markets=[market])
    assert done.code == 65
    assert past.stored(TRADES) <= past.true_trades(market)


async def test_an_empty_window_costs_itself_alone_and_is_asked_for_again(past: Situation) -> None:
    market = past.lived(58)
    past.exchange.fail_next("/prices-history", times=2, delay_s=0)
    past.exchange.fail_next("/prices-history", mutate=lambda answer: {**answer, "data": []})
    done = await past.run(markets=[market])
    assert (done.code, past.asked()) == (65, 5)
    assert "no prices of 300 s came from" in done.err
    missing = past.true_prices(market) - past.stored(PRICES)
    assert max(row[2] for row in missing) - min(row[2] for row in missing) < 15 * DAY_S
    assert missing.total() > 4_000
    past.time += 301
    assert (await past.run(markets=[market])).code == 0
    past.assert_true(market, trades=False)


async def test_an_empty_window_of_the_last_hours_is_asked_for_again(past: Situation) -> None:
    """No coarse price can tell yet whether there are fine ones."""
    past.time -= 2 * 3_600
    market = past.lived(2)
    await past.run(markets=[market])
    past.time += 2 * 3_600
    past.exchange.fail_next("/prices-history", delay_s=0)
    past.exchange.fail_next("/prices-history", mutate=lambda answer: {**answer, "data": []})
    assert (await past.run(markets=[market])).code == 0
    assert past.true_prices(market) != past.stored(PRICES)
    past.time += 301
    assert (await past.run(markets=[market])).code == 0
    past.assert_true(market, trades=False)


async def test_a_time_without_prices_is_no_failure(past: Situation) -> None:
    market = past.lived(50)
    past.exchange.data.past_of(market).quiet = (past.time - 45 * DAY_S, past.time - 3 * DAY_S)
    assert (await past.run(markets=[market])).code == 0
    past.assert_true(market, trades=False)
    past.asked()
    assert (await past.run(markets=[market])).code == 0
    assert past.asked() <= 2


async def test_what_the_exchange_does_not_know_is_said_and_asked_for_again(past: Situation) -> None:
    """An empty answer is no proof: neither to an unknown token nor to one whose market is new."""
    known, unknown = past.lived(2), past.lived(-1)
    done = await past.run("--trades", markets=[known, unknown])
    assert done.code == 65
    assert done.err.endswith(f"{unknown.id}: prices: {past.exchange.url}/data: the exchange sends no prices of it\n")
    past.assert_true(known)
    past.asked()
    past.exchange.data.past_of(unknown).born = past.time - DAY_S
    past.time += 301
    assert (await past.run(markets=[unknown])).code == 0
    assert past.true_prices(unknown) <= past.stored(PRICES)


async def test_the_time_that_counts_is_the_exchanges(past: Situation) -> None:
    """A clock of this machine that is ten minutes ahead, or ten days behind, makes no price final."""
    for skew_s in (-600, 10 * DAY_S):
        past.time = time.time() // 300 * 300 + 61 + skew_s
        market = past.lived(2)
        assert (await past.run(markets=[market])).code == 0
        assert past.stored(f"{PRICES} WHERE market_id = {market.id}") == past.true_prices(market)


async def test_names_choose_among_the_markets_of_the_file(past: Situation, collector: ac.AsyncCollector) -> None:
    exchange = past.exchange
    exchange.add_event("who-wins-the-cup", 2, tags=("Chess",), volume_24h=200_000.0)
    exchange.add_windows("btc-up-or-down-5m", time.time() + 900, 3)
    for market in exchange.markets.values():
        exchange.change(market, volume_24h=market.volume_24h or 300_000.0)
    await collector.collect_all()
    unfollowed = exchange.add_market(volume_24h=5.0)
    with sqlite3.connect(past.database) as connection:
        columns = (unfollowed.id, unfollowed.slug, *unfollowed.tokens, unfollowed.condition_id)
        connection.execute(
            "INSERT INTO markets (market_id, slug, token_id_yes, token_id_no, condition_id) VALUES (?, ?, ?, ?, ?)",
            columns,
        )
    connection.close()
    for market in exchange.markets.values():
        past.lived(0.01, market=market)
    one = next(iter(exchange.markets.values()))

    async def chosen(*args: str) -> set[str]:
        with sqlite3.connect(past.database) as connection:
            connection.executescript("DELETE FROM past_prices; DELETE FROM past_done")
        connection.close()
        done = await past.run(*args)
        assert done.code == 0, done
        return {row["market_id"] for row in rows(past.database, "SELECT market_id FROM past_done")}

    cup = {market.id for market in exchange.markets_of(exchange.events["who-wins-the-cup"])}
    windows = {market.id for market in exchange.markets.values() if market.event_slug.startswith("btc-")}
    assert await chosen("--event", "who-wins-the-cup") == cup
    assert await chosen("--tag", "chess", "--market", one.slug) == cup | {one.id}
    assert await chosen("--series", "btc-up-or-down-5m") == windows
    assert len(windows) == 3
    followed = {row["market_id"] for row in rows(past.database, "SELECT market_id FROM markets WHERE followed = 1")}
    assert await chosen() == followed
    assert await chosen("--all") == followed | {unfollowed.id}
    done = await past.run("--market", "no-such-market", "--market", one.id)
    assert done.code == 75
    assert "no-such-market: name: the file has no market" in done.err
    for args in (("--market", "no-such-market"), ("--tag", "no-such-tag"), ("--series", "no-such-series")):
        assert (await past.run(*args)).code == 78


async def test_a_series_without_an_end_is_a_failure(past: Situation, collector: ac.AsyncCollector) -> None:
    past.exchange.add_windows("btc-up-or-down-5m", time.time() + 900, 3)
    await collector.collect_all()
    past.exchange.fail_next("/events/keyset", times=math.inf, body=b'{"events":[],"next_cursor":"again"}')
    done = await past.run("--series", "btc-up-or-down-5m", GAMMA_RATE_LIMIT="1000")
    assert (done.code, "the series 'btc-up-or-down-5m' does not end" in done.err) == (65, True)


async def test_what_cannot_work_is_refused(past: Situation, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.executescript("CREATE TABLE markets (market_id); CREATE TABLE snapshots (id)")
    connection.close()
    assert (await past.run("--no-prices")).code == 2
    assert (await past.run(DATA_API="ftp://host")).code == 78
    assert (await past.run(DATA_RATE_LIMIT="0")).code == 78
    for name in ("old.db", "none.db"):
        done = await command(past.exchange, HISTORY, "--db", str(tmp_path / name))
        assert (done.code, name in done.err) == (74, True)
    assert not (tmp_path / "none.db").exists()
    assert past.asked() == 0


def test_every_option_and_variable_is_in_the_docs() -> None:
    actions = [action for action in SCRIPT["build_parser"]()._actions if action.dest != "help"]
    documented = first_cells("The past", OPERATIONS)
    assert documented[len(actions) :] == list(SCRIPT["ENVIRONMENT"])
    assert documented[: len(actions)] == [f"{a.option_strings[0]} {a.metavar or ''}".strip() for a in actions]
    for action in actions:
        if isinstance(action.default, int) and action.metavar and action.default:
            assert f"| `{action.option_strings[0]} {action.metavar}` | {action.default} |" in OPERATIONS
    for name, default in SCRIPT["ENVIRONMENT"].items():
        assert re.search(rf"^\| `{name}` \| `?{re.escape(default)}`? \|", OPERATIONS, re.MULTILINE)


async def test_the_queries_of_the_docs_say_what_was_served(past: Situation) -> None:
    market = past.lived(8, ago=1, trades=400)
    assert (await past.run("--trades", markets=[market])).code == 0
    ended = past.exchange.data.past_of(market).ended or 0.0
    past.resolve(market)
    with sqlite3.connect(past.database) as connection:
        connection.execute("DELETE FROM snapshots WHERE market_id <> ?", (market.id,))
    connection.close()
    text = section("Queries on the past", DATA).replace("will-rate-market-500006", market.slug)
    path, hours, before = (rows(past.database, query) for query in re.findall(r"```sql\n(.*?)```", text, re.DOTALL))
    ours = [r["time"] for r in rows(past.database, "SELECT strftime('%s', timestamp) + 0 AS time FROM snapshots")]
    fine = [row for row in past.true_prices(market) if row[1] == 300 and not {row[2] // 300} & {t // 300 for t in ours}]
    assert [(row["price"], row["source"]) for row in path if row["width"] == 300] == [(r[3], "exchange") for r in fine]
    assert {row["source"] for row in path} == {"book", "exchange"}
    trades = past.exchange.data.past_of(market).trades
    assert sum(row["trades"] for row in hours) == 400
    assert sum(row["volume_usd"] for row in hours) == pytest.approx(sum(t.price * t.size for t in trades))
    for_yes = [t for t in trades if (t.side == 0) == (t.taker == "BUY")]
    assert sum(row["bought_yes"] for row in hours) == pytest.approx(sum(t.size for t in for_yes))
    assert sum(row["sold_yes"] + row["bought_yes"] for row in hours) == pytest.approx(sum(t.size for t in trades))
    ((only,),) = [before]
    for column, pause_s in (("an_hour_before", 3_600), ("a_day_before", DAY_S)):
        assert only[column] == max((r[2], r[3]) for r in fine if r[2] + 300 <= int(ended) - pause_s)[1]


async def test_the_help_names_variables_and_exit_codes(past: Situation) -> None:
    text = (await past.run("--help")).out
    for word in (*SCRIPT["ENVIRONMENT"], "POLYMARKET_DB", "examples:", "65", "69", "74", "75", "78", "130"):
        assert word in text


async def test_a_file_that_is_held_is_waited_for(past: Situation) -> None:
    market = past.lived(1, trades=30)
    with ac.locked(past.database):
        run = asyncio.ensure_future(past.run("--trades", markets=[market]))
        await past.exchange.until_asked("/prices-history")
        await asyncio.sleep(0.5)
        assert past.stored(PRICES) == {}
    assert (await run).code == 0
    past.assert_true(market)


async def test_a_file_that_another_program_writes_to_holds_up_no_answer(past: Situation) -> None:
    """Each attempt to store waits for SQLite; meanwhile answers come within their second."""
    markets = [past.lived(1) for _ in range(6)]
    other = sqlite3.connect(past.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    run = asyncio.ensure_future(past.run("--timeout", "1", "--max-retries", "0", markets=markets))
    await past.exchange.until_asked("/prices-history", 6)
    await asyncio.sleep(3)
    other.execute("ROLLBACK")
    other.close()
    assert (await run)[::2] == (0, "")
    past.assert_true(*markets, trades=False)


async def test_a_file_that_stays_held_is_75(past: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPT["main"].__globals__, "PATIENCE_S", 0.3)
    with SCRIPT["Store"].open(past.database) as store:
        with ac.locked(past.database), pytest.raises(ac.DatabaseBusy, match="in use by process") as caught:
            await store.save(SCRIPT["save_prices"], "1", 300, [(1_790_000_000, 0.5)], 1_790_000_000)
        assert caught.value.exit_code == 75
        assert past.stored(PRICES) == {}


async def test_two_at_once_store_everything_once(past: Situation) -> None:
    markets = [past.lived(2, trades=1_500) for _ in range(4)]
    for done in await asyncio.gather(*(past.run("--trades", markets=markets) for _ in range(2))):
        assert done.code == 0, done
    past.assert_true(*markets)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_with_what_is_stored(past: Situation, number: signal.Signals) -> None:
    market = past.lived(3, trades=9_000)
    arguments = ("--db", str(past.database), "--market", market.id, "--trades")
    process = await start(past.exchange, HISTORY, *arguments, DATA_RATE_LIMIT="4")
    await past.exchange.until_asked("/trades", 3)
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (128 + number, b"")
    stored = past.stored(TRADES)
    assert out.decode().startswith("Interrupted. The past of 0 of 1 markets is stored\n")
    assert f"new trades      {stored.total()}\n" in out.decode()
    assert stored <= past.true_trades(market)
    assert (await past.run("--trades", markets=[market])).code == 0
    past.assert_true(market)


FULL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def test_a_full_disk_is_74_and_what_was_stored_stays(past: Situation) -> None:
    market = past.lived(50, trades=2_000)
    room = str(past.database.stat().st_size + 400_000)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FULL_DISK, room, str(PROJECT / "collector-history.py")),
        *("--db", str(past.database), "--market", market.id, "--trades"),
        env=variables(past.exchange, {"DATA_RATE_LIMIT": "1000", "PYTHONDONTWRITEBYTECODE": "1"}),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode == 74
    assert f"{past.database}: cannot store the past" in err.decode()
    assert past.stored(PRICES) <= past.true_prices(market)
    assert (await past.run("--trades", markets=[market])).code == 0
    past.assert_true(market)


@pytest.mark.slow
async def test_killed_at_random_moments_it_stores_everything_once(past: Situation) -> None:
    """Six kills; prices of both widths, and trades, of 16 markets."""
    rng = random.Random(7)
    markets = [past.lived(rng.choice((0.2, 5, 33, 61)), trades=rng.randrange(2_500)) for _ in range(16)]
    names = [word for market in markets for word in ("--market", market.id)]
    for _ in range(6):
        process = await start(
            past.exchange,
            HISTORY,
            *("--db", str(past.database), "--trades", *names),
            DATA_RATE_LIMIT="60",
        )
        before = len(past.exchange.asked("-history"))
        await past.exchange.until_asked("-history", before + rng.randrange(2, 7))
        await asyncio.sleep(rng.random() / 20)
        process.kill()
        await process.communicate()
    done = await past.run("--trades", markets=markets)
    assert (done.code, done.err) == (0, "")
    past.assert_true(*markets)
    assert rows(past.database, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


@pytest.mark.slow
async def test_it_keeps_the_rate_and_uses_it(past: Situation) -> None:
    """16 markets take 80 requests: 20 a second, whatever the latency."""
    past.exchange.latency_s = 0.3
    markets = [past.lived(90) for _ in range(16)]
    done = await past.run("--quiet", markets=markets, DATA_RATE_LIMIT="20")
    assert (done.code, done.out, done.err) == (0, "", "")
    times = [arrival.time for arrival in past.exchange.asked("/prices-history")]
    assert len(times) == 80
    assert max(times) - min(times) > 79 / 20 - 1
    assert past.exchange.most_in_flight >= 5


@pytest.mark.slow
async def test_the_trades_of_a_large_market_need_little_memory(past: Situation) -> None:
    market = past.lived(30, trades=40_000)
    code = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024); sys.exit(code)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, sys.executable, str(PROJECT / "collector-history.py"), "--quiet"),
        *("--db", str(past.database), "--market", market.id, "--trades"),
        env=variables(past.exchange, {"DATA_RATE_LIMIT": "1000"}),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert float(out) < 100
    past.assert_true(market)


async def test_a_collector_beside_it_misses_nothing(
    past: Situation, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    markets = [past.lived(20, trades=500) for _ in range(8)]
    run = asyncio.ensure_future(past.run("--trades", markets=markets))
    await past.exchange.until_asked("/prices-history")
    collected = 0
    while not run.done():
        result = await make_collector().collect_all()
        collected += result["status"] == "complete" and result["snapshots"] == 60
        await asyncio.sleep(0.3)  # a schedule leaves the file alone between two runs
        assert collected == result["run_id"] - 1
    assert (await run).code == 0
    assert collected > 1
    past.assert_true(*markets)


def test_a_price_path_has_our_prices_and_the_exchanges_between(tmp_path: Path) -> None:
    """The finer of two, and neither where a snapshot with a book lies in the bucket."""
    connection = sqlite3.connect(tmp_path / "path.db")
    connection.executescript(ac.SCHEMA)
    connection.executescript("""
        INSERT INTO markets (market_id) VALUES ('1'), ('2');
        INSERT INTO past_prices (market_id, width, timestamp, price, fetched_at) VALUES
            ('1', 10800, '2026-11-01 00:00:00', 0.1, ''), ('1', 10800, '2026-11-01 03:00:00', 0.2, ''),
            ('1', 10800, '2026-11-01 06:00:00', 0.3, ''), ('1', 300, '2026-11-01 03:05:00', 0.21, ''),
            ('1', 300, '2026-11-01 09:00:00', 0.4, ''), ('2', 300, '2026-11-01 09:00:00', 0.5, '');
        INSERT INTO snapshots (market_id, timestamp, price_yes, book_time) VALUES
            ('1', '2026-11-01 08:59:59', 0.31, '2026-11-01 08:59:58.000'),
            ('1', '2026-11-01 09:05:00', 0.41, NULL), ('1', '2026-11-01 09:05:01', 0.42, '2026-11-01 08:59:58.000');
    """)
    path = "SELECT substr(timestamp, 12), price, source, width FROM price_path WHERE market_id = ? ORDER BY timestamp"
    assert connection.execute(path, ["1"]).fetchall() == [
        ("00:00:00", 0.1, "exchange", 10800),
        ("03:05:00", 0.21, "exchange", 300),
        ("08:59:59", 0.31, "book", None),
        ("09:00:00", 0.4, "exchange", 300),
        ("09:05:01", 0.42, "book", None),
    ]
    connection.close()
