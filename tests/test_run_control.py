"""covers: a run under way: workers, limits, progress, cancelling, two at a time, and clocks that jump."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import JumpingClock, rows

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket


async def test_requests_in_flight_are_bounded_by_workers(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    for _ in range(2_940):
        exchange.add_market()
    exchange.latency_s = 0.02
    exchange.fail_next("/books", delay_s=0.2, times=5)
    collector = make_collector(min_volume=0, workers=3)
    collector.gamma_limiter.max_requests = 1_000
    await collector.collect_all()
    assert exchange.most_in_flight == 3


async def test_progress_is_told_after_every_batch(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    for _ in range(240):
        exchange.add_market(volume_24h=200_000.0)
    told: list[ac.Progress] = []
    await make_collector(progress=told.append).collect_all()
    assert len(told) == 2
    assert told[-1] == ac.Progress(listed=300, stored=300, errors=0, all_listed=True)


async def test_a_cancelled_run_is_marked_and_the_next_one_works(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    database.touch()
    exchange.fail_next("/books", hang=True)
    running = asyncio.ensure_future(collector.collect_all())
    await exchange.until_asked("/books")
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["failed"]
    assert (await collector.collect_all())["status"] == "complete"


async def test_a_bug_in_a_hook_ends_the_run_as_itself(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(240):
        exchange.add_market(volume_24h=200_000.0)

    def broken(_: ac.Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await make_collector(progress=broken).collect_all()
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["partial"]


async def test_a_second_collector_is_turned_away_while_the_first_one_works(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    exchange.fail_next("/books", delay_s=ac.LOCK_WAIT_S + 1)
    results = await asyncio.gather(*(make_collector().collect_all() for _ in range(3)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["DatabaseBusy", "DatabaseBusy", "dict"]


@pytest.mark.slow
async def test_neither_host_is_asked_faster_than_its_limit(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    for _ in range(3_000):
        exchange.add_market()
    collector = make_collector(min_volume=0, workers=50)
    collector.gamma_limiter = ac.RateLimiter(18, 1.0)
    collector.clob_limiter = ac.RateLimiter(6, 1.0)
    assert (await collector.collect_all())["status"] == "complete"
    assert len(exchange.asked("/markets/keyset")) >= 31
    assert len(exchange.asked("/books")) == 13
    assert exchange.asked("/books")[-1].time - exchange.asked("/books")[0].time > 1.8
    assert exchange.busiest("/markets/keyset", 0.5) <= 18  # half a second of room, for a busy machine stamps late
    assert exchange.busiest("/books", 0.5) <= 6


@pytest.mark.slow
async def test_after_a_429_nobody_asks_that_host_until_the_pause_is_over(
    exchange: FakePolymarket, database: Path
) -> None:
    for _ in range(1_940):
        exchange.add_market()
    exchange.fail_next("/books", status=429, retry_after=1)
    collector = ac.AsyncCollector(database, min_volume=0, workers=2)
    collector.gamma_limiter.max_requests = collector.clob_limiter.max_requests = 1_000
    assert (await collector.collect_all())["status"] == "complete"
    first, *later = [arrival.time for arrival in exchange.asked("/books")]
    assert len(later) == 8
    assert all(time < first + 0.2 or time >= first + 1 for time in later)
    assert sum(time < first + 0.2 for time in later) <= 1, "only what was under way already"


async def test_a_run_that_was_killed_in_this_second_costs_the_next_one_nothing(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path
) -> None:
    await collector.collect_all()
    connection = sqlite3.connect(database)
    connection.execute("UPDATE runs SET status = 'running', finished_at = NULL")
    connection.commit()
    connection.close()
    assert (await collector.collect_all())["snapshots"] == len(exchange.markets)
    assert rows(database, "SELECT * FROM failures") == []


async def test_a_cancelled_run_has_counted_what_it_stored(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(940):
        exchange.add_market()
    told: list[ac.Progress] = []
    running = asyncio.ensure_future(make_collector(min_volume=0, progress=told.append).collect_all())
    for wakeups in range(100_000):
        await asyncio.sleep(0)
        if wakeups % 50 == 0 and database.exists() and rows(database, "PRAGMA user_version") != [{"user_version": 0}]:
            stored = rows(database, "SELECT count(*) AS n FROM snapshots")[0]["n"]
            if stored > (told[-1].stored if told else 0):  # committed, and not yet told
                break
    running.cancel()
    await asyncio.wait([running])
    (run,) = rows(database, "SELECT status, snapshots_saved, errors FROM runs")
    (stored_rows,) = rows(database, "SELECT count(*) AS n FROM snapshots")
    assert run == {"status": "partial", "snapshots_saved": stored_rows["n"], "errors": 0}


async def test_a_run_that_is_stopped_at_its_very_end_is_marked_as_what_it_is(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    def stop(progress: ac.Progress) -> None:
        if progress.all_listed and progress.stored == 60:
            asyncio.get_running_loop().call_later(0.001, running.cancel)

    assert exchange.url
    running = asyncio.ensure_future(make_collector(min_volume=0, progress=stop).collect_all())
    await asyncio.wait([running])
    (run,) = rows(database, "SELECT status, snapshots_saved, markets_listed, finished_at IS NULL AS open FROM runs")
    assert run["snapshots_saved"] == run["markets_listed"] == 60
    assert run["status"] in {"complete", "partial"}
    assert not run["open"]


def test_the_limiters_can_be_replaced(make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock) -> None:
    collector = make_collector()
    collector.gamma_limiter = ac.RateLimiter(3, clock=clock)
    collector.clob_limiter.max_requests = 7
    assert (collector.gamma_limiter.max_requests, collector.clob_limiter.max_requests) == (3, 7)


async def test_a_clock_that_jumps_within_a_run_changes_no_duration_and_loses_no_row(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    for _ in range(940):
        exchange.add_market(volume_24h=200_000.0)

    def jump(books: list[Any]) -> list[Any]:
        clock.set_forward_s = -3_600.0 if clock.set_forward_s else 3_600.0
        return books

    exchange.fail_next("/books", times=9, mutate=jump)
    result = await make_collector().collect_all()
    assert (result["status"], result["snapshots"]) == ("complete", 1_000)
    assert 0 <= result["duration"] < 3
    hours = {row["hour"] for row in rows(database, "SELECT DISTINCT substr(timestamp, 1, 13) AS hour FROM snapshots")}
    assert hours == {"2026-11-22 13", "2026-11-22 15"}


async def test_a_program_may_collect_in_threads_of_its_own_and_keeps_its_signals_and_its_log(
    exchange: FakePolymarket, tmp_path: Path
) -> None:
    assert exchange.url
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    loggers = list(logging.getLogger().handlers)

    def collect(name: str) -> int:
        return asyncio.run(ac.AsyncCollector(tmp_path / name).collect_all())["snapshots"]

    assert await asyncio.gather(*(asyncio.to_thread(collect, f"{number}.db") for number in range(3))) == [60] * 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert logging.getLogger().handlers == loggers


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process is of Unix")
@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/St_Johns"])
async def test_times_are_utc_wherever_the_computer_is(
    exchange: FakePolymarket, database: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    assert exchange.url
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        await ac.AsyncCollector(database).collect_all()
    time.tzset()
    for row in rows(database, "SELECT strftime('%s', started_at) AS moment FROM runs"):
        assert abs(int(row["moment"]) - time.time()) < 30
