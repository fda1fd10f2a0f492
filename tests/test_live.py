"""covers: collector-live on a good day: what it asks for, what it stores, how a book is rebuilt, how markets end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from conftest import rows
from live_truth import ASKS, BIDS, Truth, following, live

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from fake_polymarket import FakeMarket, FakePolymarket


async def test_every_change_and_trade_is_stored_as_it_was_sent(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    first, second, _ = cup
    truth = Truth(exchange, cup)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        began_ms = int(time.time() * 1_000)
        exchange.live.change(first, ("bid", "0.41", "3"))
        exchange.live.change(second, ("ask", "0.42", "0"), ("ask", "0.425", "5"), ("bid", "0.38", "0"))  # a burst
        exchange.live.trade(first, size="30", book=True)
        exchange.live.trade(second, outcome="NO", size="1")
        await f.received()
        found = rows(path, "SELECT market_id, side, price, size, stream_id FROM book_changes ORDER BY change_id")
        assert [tuple(row.values()) for row in found] == [
            (first.id, "bid", 0.41, 3.0, 1),
            *((second.id, *level, 1) for level in (("ask", 0.42, 0.0), ("ask", 0.425, 5.0), ("bid", 0.38, 0.0))),
            (first.id, "ask", 0.42, 0.25, 1),
            (second.id, "ask", 0.425, 4.0, 1),
        ]
        query = "SELECT market_id, outcome, side, price, size, stream_id FROM live_trades ORDER BY trade_id"
        assert [tuple(row.values()) for row in rows(path, query)] == [
            (first.id, "YES", "BUY", 0.42, 30.0, 1),
            (second.id, "NO", "SELL", 0.575, 1.0, 1),
        ]
        lags = rows(path, "SELECT min(lag_ms) AS least, max(lag_ms) AS most FROM book_changes")[0]
        assert -100 <= lags["least"] <= lags["most"] < 20_000
        assert f.gaps() == []
        assert truth.assert_rebuilt(path, [began_ms - 1, *(one.time_ms for one in exchange.live.changes)]) == 0
    truth.assert_stored(path)
    stream = rows(path, "SELECT tokens, changes, trades, repeated, reason FROM streams")
    assert stream == [{"tokens": 6, "changes": 6, "trades": 2, "repeated": 0, "reason": "stopped"}]
    assert f.gaps("market_id, until, reason") == [(market.id, None, "stopped") for market in cup]


async def test_both_tokens_of_200_markets_are_asked_for_in_frames_of_100(exchange: FakePolymarket, path: Path) -> None:
    markets = exchange.markets_of(exchange.add_event("large", 103, active=True))
    async with following(exchange, path, events=["large"]) as f:
        await f.opened(103)
        frames = exchange.live.received
        assert [frame.get("type", frame.get("operation")) for frame in frames] == ["market", "subscribe", "market"]
        assert [len(frame["assets_ids"]) for frame in frames] == [100, 100, 6]
        assert all(frame["custom_feature_enabled"] for frame in frames)
        asked = [token for frame in frames for token in frame["assets_ids"]]
        assert sorted(asked) == sorted(token for market in markets for token in market.tokens)
        await f.pass_(live.PING_EVERY_S * 5)
        assert len(exchange.live.listeners) == 2, "PING was answered"


async def test_a_repeated_message_is_counted_and_not_stored(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, cup)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        exchange.live.odd.repeats = True
        for size in ("5", "3", "5"):
            exchange.live.change(cup[0], ("bid", "0.41", size))
        exchange.live.odd.repeats, exchange.live.odd.repeats_late = False, True
        for size in ("4", "2", "4"):  # each is sent again after the next one
            exchange.live.change(cup[0], ("bid", "0.405", size))
        await f.received()
        assert truth.assert_rebuilt(path, [cup[0].book_ms]) == 0
        await f.verified()
        assert f.gaps() == []
    truth.assert_stored(path)
    assert rows(path, "SELECT changes, repeated FROM streams") == [{"changes": 6, "repeated": 6}]


async def test_a_trade_that_is_announced_twice_is_stored_once(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        said = (
            f'{{"market":"{cup[0].condition_id}","asset_id":"{cup[0].tokens[1]}","price":".58","size":"2","side":"SELL"'
        )
        for _ in range(2):
            exchange.live.say(said + ',"timestamp":"1796067781750","event_type":"last_trade_price"}')
        exchange.live.say(said + ',"timestamp":"1796067781751","event_type":"last_trade_price"}')
        await f.received()
    found = rows(path, "SELECT timestamp, outcome, price, size, transaction_hash FROM live_trades")
    assert [tuple(row.values()) for row in found] == [
        ("2026-11-30 19:43:01.750", "NO", 0.58, 2.0, None),
        ("2026-11-30 19:43:01.751", "NO", 0.58, 2.0, None),
    ]
    assert rows(path, "SELECT repeated FROM streams") == [{"repeated": 1}]


async def test_what_is_no_change_is_no_row_and_no_gap(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exchange.live.odd.is_early = True
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        for answer in ("PONG", "NO NEW ASSETS", "INVALID MESSAGE", "INVALID OPERATION", "[]", "[]\n"):
            exchange.live.say(answer)
        for _ in range(2):
            exchange.live.say('{"event_type":"moon_phase","market":"0x1","timestamp":"1796067781750"}')
        exchange.live.say('{"event_type":"new_market","market":"0x1","timestamp":"soon","assets_ids":7}')
        exchange.live.tick_size(cup[0])
        await f.verified()
        assert f.gaps() == []
    assert rows(path, "SELECT * FROM book_changes") == []
    assert [record.message for record in caplog.records if "moon_phase" in record.message] == [
        "messages of the unknown type 'moon_phase' are not stored"
    ]


async def test_empty_sides_and_an_entry_of_no_alone(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = Truth(exchange, cup)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        for price, _ in cup[0].bids:
            exchange.live.change(cup[0], ("bid", price, "0"))
        await f.received()
        assert truth.assert_rebuilt(path, [cup[0].book_ms]) == 0
        assert "mirror" not in caplog.text
        exchange.live.odd.no_only = True
        exchange.live.change(cup[1], ("bid", "0.41", "9"))
        await f.received()
        assert f"market {cup[1].id}: NO does not mirror YES; only YES is stored" in caplog.text
        await f.verified()  # the change was never said of YES
        assert [market_id for market_id, _ in f.gaps()] == [cup[1].id]
    truth.assert_stored(path)


async def test_a_new_market_is_followed_and_a_settled_one_is_not_asked_for_again(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, cup)
    async with following(exchange, path, every_s=60, events=["cup"]) as f:
        await f.opened(3)
        exchange.live.settle(cup[0])
        await f.until(lambda: cup[0].id not in f.markets)
        exchange.add_market(event_slug="cup", active=True, bids=BIDS, asks=ASKS)
        await f.opened(3)
        exchange.live.settle(cup[1], announced=False)
        await f.until(lambda: cup[1].id not in f.markets)
        await f.received()
        assert f.gaps("market_id, reason, until > since") == [(cup[1].id, "it ended, and the stream did not say so", 1)]
        await f.pass_(70)
        asked = [token for frame in exchange.live.received for token in frame["assets_ids"]]
        assert [asked.count(market.tokens[0]) for market in cup] == [2, 2, 1], "subscribed, and unsubscribed"
        assert exchange.live.connections == 1
    truth.assert_stored(path)
    assert [row["resolved"] for row in rows(path, "SELECT resolved FROM markets ORDER BY market_id")] == [1, 1, 0, 0]


async def test_a_connection_that_ends_with_all_its_markets_is_not_opened_again(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    async with following(exchange, path, every_s=60, events=["cup"]) as f:
        await f.opened(3)
        for market in cup:
            exchange.live.settle(market, announced=False)
        await exchange.live.drop(1000, b"all subscribed assets resolved")
        await f.until(lambda: not f.markets)
        await f.pass_(70)
        assert exchange.live.connections == 1
        assert f.live.channels == []
        more = exchange.add_market(event_slug="cup", active=True, bids=BIDS, asks=ASKS)  # an empty selection is no end
        await f.opened(1)
        assert list(f.markets) == [more.id]


async def test_windows_of_a_series_come_and_go(exchange: FakePolymarket, path: Path) -> None:
    now = time.time()
    exchange.now = lambda: now
    windows = exchange.add_windows("btc-5m", now + 60, 6)
    slugs = [market.slug for market in windows]
    async with following(exchange, path, every_s=30, series=["btc-5m"], ends_within=15) as f:
        for first in range(4):
            now_followed = slugs[first : first + 3]
            await f.until(lambda: [one.slug for one in windows if one.id in f.markets] == now_followed)  # noqa: B023
            await f.opened(len(now_followed))
            now += 300
            f.clock.set_forward_s += 300
    assert exchange.live.connections == 1


async def test_an_anchor_is_a_run_at_the_start_each_interval_and_after_midnight(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    async with following(exchange, path, every_s=60, events=["cup"]) as f:
        await f.opened(3)
        await f.pass_(50)
        runs = "SELECT count(*) AS n FROM runs WHERE status = 'complete'"
        await f.until(lambda: rows(path, runs) == [{"n": 2}])
        await f.pass_(20)
        f.clock.set_forward_s += 86_400
        await f.until(lambda: rows(path, runs) == [{"n": 3}])
    assert rows(path, "SELECT DISTINCT follow, names FROM runs JOIN selections USING (selection_id)") == [
        {"follow": 1, "names": '{"events": ["cup"]}'}
    ]
    assert rows(path, "SELECT count(*) AS n FROM books") == [{"n": 6}], "a day stands alone"
    assert {row["market_id"] for row in rows(path, "SELECT market_id FROM books")} == {market.id for market in cup}
