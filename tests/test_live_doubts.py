"""covers: collector-live where the exchange says what cannot be, or what can be meant in two ways."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from conftest import rows
from fake_live import TrueTrade
from live_truth import Truth, following, live, text
from test_live_faults import bid, busy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

AHEAD_MS = 3_000_000  # what is no day ahead, but no delay either


async def soon(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds, while the test's clock stands still."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.002)


async def test_a_change_from_the_future_hides_none_that_comes_after_it(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        entry = {"asset_id": four[0].tokens[0], "price": "0.41", "size": "6", "side": "BUY", "hash": "odd"}
        frame = {"event_type": "price_change", "market": four[0].condition_id, "price_changes": [entry]}
        future_ms = four[0].book_ms + AHEAD_MS
        exchange.live.say(json.dumps(frame | {"timestamp": str(future_ms)}))
        sent = exchange.live.changes[-1]._replace(market_id=four[0].id, time_ms=future_ms)
        exchange.live.changes.append(sent)
        await f.received()
        await f.pass_(live.KEPT_S * 2)
        for size in range(50, 60):
            bid(exchange, four[0], size)
            bid(exchange, four[1], size)
            await f.pass_(10)
        truth.assert_stored(path)
        await f.verified()
        await f.verified()
        last = bid(exchange, four[0], 61)
        await f.received()
        assert rows(path, "SELECT timestamp FROM book_changes WHERE size = 61") == [{"timestamp": text(last)}]
        assert {market_id for market_id, _ in f.gaps()} == {four[0].id}
    truth.assert_stored(path)


async def test_a_message_from_the_future_moves_no_gap(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        exchange.live.say(json.dumps({"event_type": "best_bid_ask", "timestamp": str(four[0].book_ms + AHEAD_MS)}))
        await f.received()
        await f.verified()
        connections = exchange.live.connections
        exchange.live.odd.is_mute = True
        for market in four:
            bid(exchange, market, 7)
        await exchange.live.drop()
        exchange.live.odd.is_mute = False
        await f.until(lambda: exchange.live.connections > connections)
        await f.opened(4)
        await f.received()
    truth.assert_stored(path)


async def test_books_from_behind_verify_nothing_that_came_after_them(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        market = four[0]
        await f.verified()
        book = json.loads(exchange.book(market.tokens[0]) or "")
        old = {key: book[key] for key in ("timestamp", "bids", "asks")}
        exchange.change(market, book_changes=(old, {}))
        exchange.live.odd.omitted = 1
        bid(exchange, market, 7)
        bid(exchange, market, 8)
        exchange.now = lambda: time.time() + 5
        bid(exchange, market, 9)
        bid(exchange, four[1], 9)
        await f.verified()
        exchange.live.change(market, ("bid", "0.40", "1"))
        exchange.live.odd.omitted = 1
        exchange.live.change(market, ("bid", "0.39", "1"))
        exchange.change(market, book_changes=({}, {}))
        await f.verified()
        await f.verified()
    truth.assert_stored(path)


async def test_the_gap_of_a_market_that_ended_unheard_reaches_to_its_end(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
    missed_ms = bid(exchange, four[3], 12)
    exchange.close(four[3], "1", "0", winner=0)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        await f.until(lambda: len(f.markets) == 3)
        await f.received()
        assert [until >= text(missed_ms) for until, market_id in f.gaps("until, market_id") if market_id == four[3].id]
    truth.assert_stored(path)


async def test_a_market_that_came_after_a_kill_has_no_gap_from_before_it(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
    with closing(sqlite3.connect(path)) as connection:  # as a kill leaves it
        connection.execute("DELETE FROM live_gaps")
        connection.execute("UPDATE streams SET reason = NULL, ended_at = NULL, verified_at = '2026-01-02 03:04:05.678'")
        connection.commit()
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        new = exchange.add_market(event_slug="cup", active=True, bids=(("0.38", "1"),), asks=(("0.44", "1"),))
        await f.anchored()
        await f.opened(5)
        await f.received()
        sinces = f.gaps("market_id, since")
        assert {since for market_id, since in sinces if market_id != new.id} == {"2026-01-02 03:04:05.678"}
        assert [since for market_id, since in sinces if market_id == new.id and since < "2026-01-03"] == []


async def test_a_trade_that_is_announced_after_the_end_of_its_market_is_stored(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        market = four[0]
        exchange.live.settle(market)
        await f.received()
        trade = TrueTrade(market.id, market.book_ms, "YES", "BUY", 0.42, 1.0, "0x1")
        exchange.live.trades.append(trade)
        message = {"event_type": "last_trade_price", "market": market.condition_id, "asset_id": market.tokens[0]}
        message |= {"price": "0.42", "size": "1", "side": "BUY", "timestamp": str(trade.time_ms)}
        exchange.live.say(json.dumps(message | {"transaction_hash": "0x1"}))
        await f.received()
        await f.until(lambda: len(f.markets) == 3)
        await f.received()
    truth.assert_stored(path)


async def test_a_frame_that_names_an_unknown_market_may_be_of_one_whose_address_is_unknown(
    exchange: FakePolymarket,
    four: list[FakeMarket],
    path: Path,
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        f.markets[four[0].id].condition_id = None
        exchange.live.say('{"event_type":"price_change","market":"0xothers","timestamp":"yesterday"}')
        exchange.live.say('{"event_type":"market_resolved"}')
        await f.received()
        assert f.gaps() == [(four[0].id, "a frame could not be read")]
        assert not f.live._settled


async def test_a_transaction_that_waits_does_not_end_a_connection_without_its_gaps(
    exchange: FakePolymarket,
    four: list[FakeMarket],
    path: Path,
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        await f.received()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            bid(exchange, four[0], 21)
            await soon(lambda: f.live.store.waiting)
            saving = asyncio.create_task(f.live.store.save())
            await asyncio.sleep(0.1)  # it waits for the other now
            await exchange.live.drop()
            await soon(lambda: f.live.store.streams[0].reason)
            other.execute("COMMIT")
            assert await saving
            (ended,) = rows(path, "SELECT reason FROM streams WHERE stream_id = 1")
            assert ended["reason"] is None or len(f.gaps()) == 4, "a kill now must not look like an end"
