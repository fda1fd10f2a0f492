"""covers: collector-live under all faults at once, and over hours: nothing lost outside of a gap, memory flat."""

from __future__ import annotations

import json
import random
import sys
import time
from typing import TYPE_CHECKING

import pytest
from conftest import rows
from live_truth import SteppedClock, Truth, following, live, text

import async_collector as ac

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket
    from live_truth import Following

pytestmark = pytest.mark.slow


def something_happens(exchange: FakePolymarket, markets: list[FakeMarket], rng: random.Random) -> None:
    """Let one market change, or a burst of levels, or a trade."""

    def level() -> tuple[str, str, str]:
        side, prices = rng.choice((("bid", range(300, 480)), ("ask", range(520, 700))))
        return (
            side,
            f"{rng.choice(prices) / 1_000:.3f}",
            rng.choice(("0", "3", "5", f"{rng.randrange(1, 10**5) / 100:g}")),
        )

    market, kind = rng.choice([market for market in markets if not market.closed]), rng.random()
    if kind < 0.05 and market.asks:
        exchange.live.trade(market, outcome=rng.choice(("YES", "NO")), book=rng.random() < 0.5)
    elif kind < 0.15:
        exchange.live.change(market, *{one[:2]: one for one in (level(), level(), level())}.values())
    else:
        exchange.live.change(market, level())


async def strike(f: Following, markets: list[FakeMarket], number: int, omitted: set[object]) -> None:
    """Let the fault of this half second happen."""
    channel, odd = f.exchange.live, f.exchange.live.odd
    odd.repeats, odd.repeats_late = number in range(6, 12), number in range(12, 18)
    odd.is_frozen, odd.is_mute = number in range(100, 110), number in range(130, 150)
    if number == 20:
        for said in ("PONG", "NO NEW ASSETS", "INVALID MESSAGE", "INVALID OPERATION", "[]", '{"event_type":"tides"}'):
            channel.say(said)
    elif number == 24:
        channel.say("<html>bad gateway")
    elif number == 28:
        channel.tick_size(markets[0])
        channel.settle(markets[1])
        channel.settle(markets[2], announced=False)
    elif number == 36:
        await channel.drop()
    elif number == 50:
        channel.abort()
    elif number in {70, 120}:
        odd.omitted = 1 if number == 70 else 12
        known = len(channel.changes)
        rng = random.Random(number)
        while odd.omitted:
            something_happens(f.exchange, markets, rng)
        omitted |= {(one.market_id, text(one.time_ms), *one[2:]) for one in channel.changes[known:]}


@pytest.mark.parametrize("seed", [1, 2])
async def test_under_all_faults_everything_is_stored_or_in_a_gap_and_nothing_invented(
    exchange: FakePolymarket, path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    for slug in ("one", "two"):
        exchange.add_event(slug, 20, active=True)
    markets = [market for slug in ("one", "two") for market in exchange.markets_of(exchange.events[slug])]
    truth = Truth(exchange, markets)
    exchange.live.odd.is_early, exchange.live.odd.withheld = True, {markets[3].tokens[0]}
    omitted: set[object] = set()
    async with following(exchange, path, every_s=30, events=["one", "two"]) as f:
        await f.until(lambda: len(f.markets) == 40)
        began_ms = int(time.time() * 1_000)
        for number in range(180):
            for _ in range(10):
                something_happens(exchange, markets, rng)
            await strike(f, markets, number, omitted)
            await f.pass_(0.5)
        await f.verified()
        await f.anchored()
        moments = [one.time_ms for one in rng.sample(exchange.live.changes, 20) if one.time_ms > began_ms]
        truth.assert_rebuilt(path, moments, but=omitted)
        assert truth.assert_rebuilt(path, [exchange.live.changes[-1].time_ms]) < 40
    truth.assert_stored(path, since_ms=began_ms, but=omitted)
    assert rows(path, "SELECT count(*) > 3 AS several FROM streams") == [{"several": 1}]


async def test_an_hour_at_twenty_frames_a_second_keeps_half_a_minute(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOB_WS", "ws://127.0.0.1:1/ws/market")
    clock, rng, time_ms = SteppedClock(), random.Random(1), 1_790_000_000_000
    async with ac.Database.open(path):
        pass
    one = live.Live(ac.AsyncCollector(path, markets=["1"]), *live.channel_address(), 300, clock)
    await one.store.open()
    channel = live.Channel(one)
    await channel.add(
        [live.Market(str(number), f"0x{number}", (f"{number}1", f"{number}2"), 1) for number in range(50)]
    )
    sizes = []
    for second in range(3_600):
        for _ in range(20):
            time_ms += 50
            market = str(rng.randrange(50))
            entry = {"asset_id": f"{market}1", "price": f"0.{rng.randrange(100, 999)}", "side": "BUY"}
            entry |= {"size": str(rng.randrange(3)), "hash": str(time_ms)}
            message = {"market": f"0x{market}", "timestamp": str(time_ms), "event_type": "price_change"}
            channel.take(json.dumps(message | {"price_changes": [entry]}).encode())
        clock.step(1)
        if second % 30 == 29:
            for followed in channel.markets.values():
                followed.book.forget(clock.time - live.KEPT_S)
            assert await one.store.save()
            assert one.store.waiting == []
            kept = [followed.book._kept for followed in channel.markets.values()]
            sizes.append(sum(map(len, kept)) + sum(map(sys.getsizeof, kept)) // 1_000)
    one.store.close()
    assert rows(path, "SELECT count(*) AS n FROM book_changes") == [{"n": 72_000}]
    assert max(sizes) < 1.3 * 20 * live.KEPT_S
