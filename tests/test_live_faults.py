"""covers: collector-live in trouble: every fault is a gap of its markets, from the right moment to the right book."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import rows
from live_truth import Truth, following, live, text

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable

    from fake_polymarket import FakeMarket, FakePolymarket
    from live_truth import Following


DIFFERS = "the exchange's book is not the one that the stream led to"


def bid(exchange: FakePolymarket, market: FakeMarket, size: float) -> int:
    """Change a bid of *market*, and return when."""
    exchange.live.change(market, ("bid", "0.41", f"{size:g}"))
    return market.book_ms


async def busy(f: Following, markets: list[FakeMarket]) -> int:
    """Let something change everywhere, and be verified; return a moment that is not verified any more."""
    for market in markets:
        bid(f.exchange, market, 5)
    await f.verified()
    return max(bid(f.exchange, market, 6) for market in markets)


async def while_busy(f: Following, markets: list[FakeMarket], condition: Callable[[], object]) -> None:
    """Let something change everywhere, every five seconds, until *condition* holds."""
    for size in range(100, 300):
        if condition():
            return
        for market in markets:
            bid(f.exchange, market, size)
        await f.pass_(5)
    raise AssertionError("it never came")


@pytest.mark.parametrize("how", ["closed", "cut", "mute", "frozen"])
async def test_a_lost_connection_is_a_gap_from_the_verified_moment_to_the_next_opening_book(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path, how: str
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        before_ms = await busy(f, four)
        await f.received()
        if how == "closed":
            await exchange.live.drop()
        elif how == "cut":
            exchange.live.abort()
        exchange.live.odd.is_mute, exchange.live.odd.is_frozen = how == "mute", how == "frozen"
        missed = [bid(exchange, market, 7) for market in four]
        await f.until(lambda: exchange.live.connections == 2 or not exchange.live.listeners)
        exchange.live.odd.is_mute = exchange.live.odd.is_frozen = False
        await f.until(lambda: exchange.live.connections == 2)
        await f.opened(4)
        after = [bid(exchange, market, 8) for market in four]
        await f.verified()
        for market, missed_ms, after_ms in zip(four, missed, after, strict=True):
            ((since, until),) = f_gaps = [
                (row["since"], row["until"])
                for row in rows(path, "SELECT since, until FROM live_gaps WHERE market_id = ?", market.id)
            ]
            assert f_gaps
            assert text(before_ms - 20_000) < since < text(missed_ms) == until < text(after_ms)
        await f.anchored()
        assert truth.assert_rebuilt(path, [after[-1] + 1]) == 0
    truth.assert_stored(path)


async def test_one_omitted_change_is_a_gap_of_its_market_alone(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        exchange.live.odd.omitted = 1
        omitted_ms = bid(exchange, four[1], 7)
        exchange.live.change(four[1], ("ask", "0.43", "1"))
        await f.verified()
        assert f.gaps("market_id, until, reason") == [(four[1].id, text(four[1].book_ms), DIFFERS)]
        assert f.gaps("since")[0][0] < text(omitted_ms)
        bid(exchange, four[1], 9)
        await f.anchored()
        await f.verified()
        assert len(f.gaps()) == 1
        assert truth.assert_rebuilt(path, [four[1].book_ms]) == 0, "there was an anchor"
        assert exchange.live.connections == 1
    truth.assert_stored(path)


async def test_three_differing_books_are_a_new_connection(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        exchange.live.odd.omitted = 3
        for market in four:
            bid(exchange, market, 7)
        await f.until(lambda: exchange.live.connections == 2)
        await f.opened(4)
        await f.verified()
        assert sorted(market_id for market_id, _ in f.gaps()) == sorted(market.id for market in four)
        assert exchange.live.connections == 2
    truth.assert_stored(path)


async def test_what_was_overwritten_on_a_connection_that_lost_more_lies_in_a_gap(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        exchange.live.odd.omitted = 4
        for market in four:
            bid(exchange, market, 7)
        exchange.now = lambda: time.time() + 5
        bid(exchange, four[3], 8)  # its book agrees with the stream again
        await f.until(lambda: exchange.live.connections == 2)
        await f.opened(4)
    truth.assert_stored(path)


async def test_frames_that_come_later_than_the_books_are_no_gap(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        await f.received()
        exchange.live.odd.is_held = True
        for market in four:
            bid(exchange, market, 7)
        asked = len(exchange.asked("/books"))
        await f.until(lambda: len(exchange.asked("/books")) > asked)
        await f.pass_(live.PATIENCE_S / 2)
        exchange.live.odd.is_held = False
        await f.received()
        await f.pass_(live.PATIENCE_S)
        await f.received()
        assert f.gaps() == []


async def test_an_opening_book_that_never_comes_is_taken_from_the_next_round(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    exchange.live.odd.withheld = {four[0].tokens[0]}
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(0)
        await f.until(lambda: f.markets and sum(one.book.begun for one in f.markets.values()) == 3)
        bid(exchange, four[0], 3)
        exchange.live.change(four[0], ("bid", "0.38", "0"))
        await f.opened(4)
        exchange.live.change(four[0], ("ask", "0.42", "0"))
        await f.verified()
        assert f.gaps("market_id, reason") == [(four[0].id, "not subscribed before")]
        await f.anchored()
        assert truth.assert_rebuilt(path, [four[0].book_ms]) == 0
    truth.assert_stored(path)


async def test_a_frame_that_cannot_be_read_is_a_gap_of_its_market_or_of_all(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        change = f'{{"event_type":"price_change","market":"{four[2].condition_id}","timestamp":"1796067781750",'
        exchange.live.say(
            f'[{change}"price_changes":[{{"asset_id":"{four[2].tokens[0]}","price":"2","size":"1"}}]}},7]'
        )
        exchange.live.say(change[:-1].replace(four[2].condition_id, "0xothers") + "}")
        await f.received()
        assert {market_id for market_id, _ in f.gaps()} == {market.id for market in four}, "7 is of nobody"
        await f.verified()
        exchange.live.say(change + '"price_changes":null}')
        bid(exchange, four[2], 8)
        await f.received()
        assert f.gaps("market_id, reason, until IS NULL")[4:] == [(four[2].id, "a frame could not be read", 1)]
        await f.verified()
        exchange.live.say("<html>Bad gateway")
        exchange.live.say("[" * 100_000)
        for market in four:
            bid(exchange, market, 9)
        await f.verified()
        assert sorted(f.gaps("market_id, until")[5:]) == sorted((market.id, text(market.book_ms)) for market in four)
        assert exchange.live.connections == 1


async def test_a_book_on_the_stream_that_differs_is_a_gap(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        exchange.live.odd.omitted = 1
        bid(exchange, four[0], 7)
        exchange.live.trade(four[0], size="2", book=True)
        await f.received()
        reason = "a book on the stream is not the one that its changes led to"
        assert f.gaps("market_id, until, reason") == [(four[0].id, text(four[0].book_ms), reason)]
    truth.assert_stored(path)


async def test_where_all_books_differ_time_and_again_the_gaps_stay_open(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        for market in four:  # what `/books` says from now on is never what the stream leads to
            exchange.change(market, book_changes=({"bids": [{"price": "0.01", "size": "1"}]}, {}))
        await while_busy(f, four, lambda: "time and again" in caplog.text)
        connections = exchange.live.connections
        end_s = f.clock.time + live.DISTRUSTED_S - 40
        await while_busy(f, four, lambda: f.clock.time > end_s)
        assert exchange.live.connections <= connections + 1
        await f.received()
        still_open = {market_id for market_id, is_open in f.gaps("market_id, until IS NULL") if is_open}
        assert still_open == {market.id for market in four}
        for market in four:
            exchange.change(market, book_changes=({}, {}))
        await while_busy(f, four, lambda: not any(market.gap_since for market in f.markets.values()))


async def test_a_stop_leaves_gaps_that_the_next_start_closes(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
    missed = [bid(exchange, market, 11) for market in four[:3]]
    exchange.close(four[3], "1", "0", winner=0)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        await f.until(lambda: len(f.markets) == 3)
        await f.received()
        gaps = f.gaps("market_id, until")
        assert sorted(gaps[:3]) == sorted(
            (market.id, text(missed_ms)) for market, missed_ms in zip(four[:3], missed, strict=True)
        )
        assert [market_id for market_id, until in gaps[3:] if until] == [four[3].id]
    truth.assert_stored(path)


async def test_after_a_kill_the_gap_begins_at_the_last_verified_moment(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        await f.received()
        await f.pass_(1)
        await f.received()
        copy = path.with_name("killed.db")
        with ac.open_read_only(path) as connection:  # what a kill at this moment leaves
            connection.execute("VACUUM INTO ?", (str(copy),))
    (stream,) = rows(copy, "SELECT verified_at, reason FROM streams")
    assert stream["reason"] is None
    async with following(exchange, copy, events=["cup"]) as f:
        await f.opened(4)
        await f.received()
        assert [since for (since,) in f.gaps("since")] == [stream["verified_at"]] * 4
        assert rows(copy, "SELECT reason FROM streams WHERE stream_id = 1") == [{"reason": "the process died"}]
    truth.assert_stored(copy)


async def test_a_file_that_others_hold_costs_nothing_and_one_that_is_held_too_long_a_gap(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = Truth(exchange, four)
    monkeypatch.setattr(live, "LOCK_WAIT_S", 0.0)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        await f.received()
        with ac.locked(path, 5):
            waiting = bid(exchange, four[0], 21)
            await f.pass_(2)
            assert rows(path, "SELECT * FROM book_changes WHERE timestamp = ?", text(waiting)) == []
        await f.received()
        assert len(rows(path, "SELECT * FROM book_changes WHERE timestamp = ?", text(waiting))) == 1
        assert f.gaps() == []
        monkeypatch.setattr(live, "MAX_WAITING_ROWS", 3)
        with ac.locked(path, 5):
            for size in range(22, 30):
                bid(exchange, four[0], size)
            await f.pass_(2)
        await f.verified()
        await f.verified()
        assert f.gaps() == [(four[0].id, "the file could not be written for too long")]
    truth.assert_stored(path)


async def test_a_file_that_is_held_at_the_start_is_waited_for(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
    monkeypatch.setattr(ac, "LOCK_WAIT_S", 0.1)
    with ac.locked(path, 5):
        waiting = following(exchange, path, events=["cup"])
        f = await waiting.__aenter__()
        await f.pass_(live.ANCHOR_PAUSE_S * 2)
        assert f.markets == {}
    await f.opened(4)
    await waiting.__aexit__(None, None, None)
    assert [row["reason"] for row in rows(path, "SELECT reason FROM streams")] == ["stopped", "stopped"]
    assert len(four) == 4


async def test_a_file_that_is_deleted_is_said_and_not_made_anew(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = path.with_name("moved.db")
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await f.received()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").rename(f"{moved}{suffix}")
        bid(exchange, four[0], 31)
        assert not await f.live.store.save()
        assert "deleted or replaced" in caplog.text
        assert not path.exists()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{moved}{suffix}").rename(f"{path}{suffix}")
        await f.received()
        assert "can be written again" in caplog.text
    assert rows(path, "SELECT size FROM book_changes") == [{"size": 31.0}]


async def test_without_a_network_it_waits_and_then_goes_on(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = Truth(exchange, four)
    for asked in ("/keyset", "/cup"):
        exchange.fail_next(asked, status=503, times=1_000)
    exchange.live.odd.refuses = 429
    async with following(exchange, path, every_s=5, max_retries=0, events=["cup"]) as f:
        await f.until(lambda: "no anchor" in caplog.text)
        exchange.heal()
        await f.until(lambda: caplog.text.count("no connection") >= 2)
        exchange.live.odd.refuses = 0
        await f.opened(4)
        bid(exchange, four[0], 41)
        await f.received()
        assert truth.assert_rebuilt(path, [four[0].book_ms]) == 0
    truth.assert_stored(path)


async def test_a_clock_that_is_set_back_changes_the_lag_alone(
    exchange: FakePolymarket, four: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, four)
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(4)
        await busy(f, four)
        f.clock.set_forward_s -= 600
        bid(exchange, four[0], 51)
        await f.verified()
        await f.verified()
        assert f.gaps() == []
    truth.assert_stored(path)
    assert rows(path, "SELECT lag_ms < -500000 AS is_behind FROM book_changes WHERE size = 51") == [{"is_behind": 1}]
