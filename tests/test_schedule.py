"""covers: when a run comes: at once, then on the ticks of the wall clock, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import runpy
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, JumpingClock, NoChance, rows
from hypothesis import given
from hypothesis import strategies as st

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket

MINUTE, HOUR = 60.0, 3600.0
SCRIPT: dict[str, Any] = runpy.run_path(str(PROJECT / "async-collector.py"), run_name="script")


def read_status(database: Path, clock: JumpingClock, interval_min: float = 15) -> dict[str, Any]:
    status: dict[str, Any] = SCRIPT["read_status"](database, interval_min, clock.now())
    return status


class Schedule:
    """A continuous collection on a clock that does not wait, stopped after a number of ticks."""

    def __init__(self, database: Path, clock: JumpingClock, starts_at: str) -> None:
        hour, minute, second = starts_at.split(":")
        self.clock = clock
        self.clock.set_forward_s = (int(hour) - 14) * HOUR + (int(minute) - 15) * MINUTE + float(second)
        self.database = database
        self.ticks: list[ac.Tick] = []
        self.on_tick: dict[int, Callable[[], None]] = {}
        self.stop = asyncio.Event()

    async def run(self, ticks: int, **settings: Any) -> list[str]:  # noqa: ANN401
        """Run for *ticks* runs and return when they began, by the wall clock."""

        def on_tick(tick: ac.Tick) -> None:
            self.ticks.append(tick)
            self.on_tick.get(len(self.ticks), lambda: None)()
            if len(self.ticks) == ticks:
                self.stop.set()

        await ac.continuous_collection(
            stop=self.stop,
            on_tick=on_tick,
            db_path=self.database,
            clock=self.clock,
            rng=NoChance(),
            **settings,
        )
        return [row["started_at"][11:] for row in rows(self.database, "SELECT started_at FROM runs ORDER BY run_id")]

    @property
    def missed(self) -> int:
        return self.ticks[-1].missed

    def set_clock(self, seconds: float) -> Callable[[], None]:
        def set_forward() -> None:
            self.clock.set_forward_s += seconds

        return set_forward


@pytest.fixture
def schedule(exchange: FakePolymarket, database: Path, clock: JumpingClock) -> Callable[[str], Schedule]:
    assert exchange.url
    return lambda starts_at: Schedule(database, clock, starts_at)


async def test_it_collects_at_once_and_then_on_the_quarter_hours(schedule: Callable[[str], Schedule]) -> None:
    plan = schedule("14:07:13")
    assert await plan.run(4) == ["14:07:13", "14:15:00", "14:30:00", "14:45:00"]
    assert plan.missed == 0
    assert [f"{tick.next_run:%H:%M:%S}" for tick in plan.ticks] == ["14:15:00", "14:30:00", "14:45:00", "15:00:00"]
    assert all(tick.result and tick.result["status"] == "complete" for tick in plan.ticks)
    assert max(plan.clock.slept) <= 30


async def test_an_interval_may_be_a_fraction_of_a_minute(schedule: Callable[[str], Schedule]) -> None:
    assert await schedule("14:07:13").run(3, interval_minutes=0.25) == ["14:07:13", "14:07:15", "14:07:30"]


async def test_a_run_that_outlasts_its_interval_makes_ticks_be_skipped(schedule: Callable[[str], Schedule]) -> None:
    plan = schedule("14:10:00")

    def take_long(_: ac.Progress) -> None:
        if len(plan.ticks) == 1:
            plan.clock.elapsed_s += 40 * MINUTE

    assert await plan.run(3, progress=take_long) == ["14:10:00", "14:15:00", "15:00:00"]
    assert plan.missed == 2


async def test_a_start_just_before_a_tick_stands_for_it(schedule: Callable[[str], Schedule]) -> None:
    plan = schedule("14:59:59.9")
    assert await plan.run(2) == ["14:59:59", "15:15:00"]
    assert plan.missed == 0


async def test_after_two_hours_of_suspension_one_run_comes_at_once(schedule: Callable[[str], Schedule]) -> None:
    """Only the wall clock goes on in suspension."""
    plan = schedule("14:07:00")
    plan.on_tick[1] = plan.set_clock(2 * HOUR)
    assert await plan.run(3) == ["14:07:00", "16:07:00", "16:15:00"]
    assert plan.missed == 7


async def test_a_clock_that_is_set_forward_makes_one_run_come_at_once(schedule: Callable[[str], Schedule]) -> None:
    plan = schedule("14:15:00")
    plan.on_tick[1] = plan.set_clock(HOUR)
    assert await plan.run(3) == ["14:15:00", "15:15:00", "15:30:00"]
    assert plan.missed == 3


async def test_a_clock_that_is_set_back_makes_nobody_wait_for_an_hour(schedule: Callable[[str], Schedule]) -> None:
    plan = schedule("14:17:00")
    plan.on_tick[1] = plan.set_clock(-HOUR)
    assert await plan.run(3) == ["14:17:00", "13:30:00", "13:45:00"]
    assert plan.clock.elapsed_s == 28 * MINUTE
    assert plan.missed == 0


async def test_a_run_that_fails_is_logged_and_the_next_tick_comes(
    schedule: Callable[[str], Schedule], exchange: FakePolymarket, caplog: pytest.LogCaptureFixture
) -> None:
    plan = schedule("14:15:00")
    exchange.fail_next("/markets/keyset", status=404)
    with caplog.at_level(logging.ERROR, "async_collector"):
        await plan.run(2)
    assert isinstance(plan.ticks[0].error, ac.RequestRejectedError)
    assert [record.getMessage() for record in caplog.records] == [f"a run failed: {plan.ticks[0].error}"]
    assert plan.ticks[1].result
    assert plan.ticks[1].result["status"] == "complete"


async def test_a_bug_ends_a_run_and_not_the_collection(
    schedule: Callable[[str], Schedule], caplog: pytest.LogCaptureFixture
) -> None:
    plan = schedule("14:15:00")

    def broken(_: ac.Progress) -> None:
        raise ZeroDivisionError

    await plan.run(2, progress=broken)
    assert [type(tick.error) for tick in plan.ticks] == [ZeroDivisionError] * 2
    assert "Traceback" in caplog.text


async def test_a_bad_setting_is_refused_before_anything_happens(database: Path) -> None:
    for setting in ({"interval_minutes": 0}, {"interval_minutes": float("nan")}, {"workers": 0}, {"min_volume": -1}):
        with pytest.raises(ac.ConfigError):
            await ac.continuous_collection(db_path=database, **setting)
    assert not database.exists()


async def test_stop_wakes_a_sleeper(exchange: FakePolymarket, database: Path) -> None:
    stop, ran = asyncio.Event(), asyncio.Event()
    collecting = asyncio.ensure_future(
        ac.continuous_collection(db_path=database, stop=stop, on_tick=lambda _: ran.set())
    )
    await asyncio.wait_for(ran.wait(), 10)
    stop.set()
    await asyncio.wait_for(collecting, 1)
    assert exchange.asked("/books")


@pytest.mark.parametrize("path", ["/markets/keyset", "/books"])
async def test_stop_ends_a_run_that_hangs_and_marks_it(exchange: FakePolymarket, database: Path, path: str) -> None:
    exchange.fail_next(path, hang=True)
    database.touch()
    stop = asyncio.Event()
    collecting = asyncio.ensure_future(ac.continuous_collection(db_path=database, stop=stop))
    await exchange.until_asked(path)
    stop.set()
    await asyncio.wait_for(collecting, 2)
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["failed"]


async def test_the_heartbeat_comes_from_batches_and_naps(schedule: Callable[[str], Schedule]) -> None:
    plan = schedule("14:07:00")
    beats: list[float] = []
    await plan.run(2, heartbeat=lambda: beats.append(plan.clock.elapsed_s))
    assert beats[0] == 0
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) <= 30


@pytest.mark.slow
async def test_a_hundred_runs_leave_nothing_behind(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    collector = make_collector()

    async def some_runs(number: int) -> tuple[int, int, int, int]:
        for _ in range(number):
            await collector.collect_all()
        gc.collect()
        await asyncio.sleep(0.05)
        gc.collect()
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        return descriptors, len(asyncio.all_tasks()), threading.active_count(), len(gc.get_objects())

    *before, objects_before = await some_runs(20)
    exchange.arrivals.clear()
    *after, objects_after = await some_runs(100)
    assert after[1:] == before[1:]
    assert after[0] <= before[0]
    assert objects_after - objects_before - 2 * len(exchange.arrivals) < 2_000


@given(
    starts=st.lists(st.integers(0, 20_000), max_size=30).map(sorted),
    interval=st.sampled_from((60, 900)),
    later=st.integers(0, 5_000),
)
def test_missed_ticks_are_those_without_a_run(starts: list[int], interval: int, later: int) -> None:
    since, now = (starts[0] if starts else 0), (starts[-1] if starts else 0) + later
    missed = 0
    tick = ((since + interval // 10) // interval + 1) * interval
    while tick + interval <= now:
        missed += not any(tick <= start + interval // 10 < tick + interval for start in starts)
        tick += interval
    starts_s = [float(start) for start in starts]
    assert SCRIPT["missed_ticks"](starts_s, float(since), float(now), float(interval)) == missed


@given(at=st.floats(0, 4e9), interval=st.sampled_from((0.5, 15, 900, 86_400)))
def test_a_run_stands_for_the_last_tick_or_for_one_that_comes_at_once(at: float, interval: float) -> None:
    assert -0.1 * interval - 1e-6 <= at - ac.tick_number(at, interval) * interval < 0.9 * interval + 1e-6


# --- status


async def test_the_status_of_a_collection_that_is_well(schedule: Callable[[str], Schedule], database: Path) -> None:
    plan = schedule("14:07:00")
    await plan.run(4)
    plan.clock.elapsed_s += 20 * MINUTE
    status = read_status(database, plan.clock)
    assert (status["healthy"], status["last_complete_at"], status["age"]) == (True, "2026-11-22 14:45:00", 1200.0)
    assert status["missed_ticks"] == 0
    assert [run["run_id"] for run in status["runs"]] == [4, 3, 2, 1]
    assert status["runs"][0] == {
        "run_id": 4,
        "started_at": "2026-11-22 14:45:00",
        "status": "complete",
        "markets_listed": 60,
        "snapshots_saved": 60,
        "books_missing": 0,
        "errors": 0,
        "duration": 0.0,
    }
    assert status["file_bytes"] == database.stat().st_size > 10_000


async def test_a_collection_that_has_stood_still_is_not_well(
    schedule: Callable[[str], Schedule], database: Path
) -> None:
    plan = schedule("14:15:00")
    await plan.run(2)
    plan.clock.elapsed_s += HOUR
    status = read_status(database, plan.clock)
    assert (status["healthy"], status["missed_ticks"]) == (False, 3)
    assert read_status(database, plan.clock, 60)["healthy"]


async def test_an_outage_is_counted_while_it_lasts_and_after_it(
    schedule: Callable[[str], Schedule], database: Path
) -> None:
    plan = schedule("14:15:00")
    await plan.run(2)
    plan.clock.elapsed_s += 72 * HOUR
    assert read_status(database, plan.clock)["missed_ticks"] == 95
    plan.stop.clear()
    await plan.run(3)
    assert read_status(database, plan.clock)["missed_ticks"] == 95


async def test_a_run_in_the_future_is_no_sign_of_health(schedule: Callable[[str], Schedule], database: Path) -> None:
    plan = schedule("14:15:00")
    plan.clock.set_forward_s += 30 * 24 * HOUR
    await plan.run(1)
    plan.clock.set_forward_s -= 30 * 24 * HOUR
    status = read_status(database, plan.clock)
    assert not status["healthy"]
    said = SCRIPT["status_lines"](status, plan.clock.now())
    assert "note               the clock was ahead: run 1 began 2026-12-22 14:15:00 UTC" in said
    plan.clock.set_forward_s += 30 * 24 * HOUR
    assert "the clock" not in SCRIPT["status_lines"](read_status(database, plan.clock), plan.clock.now())


async def test_a_status_and_the_bar_say_how_far_the_first_listing_is(
    make_collector: Callable[..., ac.AsyncCollector],
    exchange: FakePolymarket,
    database: Path,
    clock: JumpingClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GAMMA_RATE_LIMIT", "2")
    for _ in range(640):
        exchange.add_market()
    progress: list[ac.Progress] = []
    for run_timeout, statuses in ((4, "partial"), (60, "complete")):
        collector = make_collector(min_volume=0, run_timeout=run_timeout, progress=progress.append)
        assert (await collector.collect_all())["status"] == statuses
        if run_timeout == 4:
            listing = read_status(database, clock)["first_listing"]
            said = SCRIPT["status_lines"](read_status(database, clock), clock.now())
    markets = listing["markets"]
    assert listing["since"].startswith("2026-01-01 ")
    assert 0 < listing["share_read"] < 1
    assert 0 < markets < 700
    share = f"{listing['share_read']:.0%}"
    assert f"first listing      {share} of the time since {listing['since']} UTC is read: {markets} markets" in said
    status = read_status(database, clock)
    assert (status["first_listing"], "first listing" in SCRIPT["status_lines"](status, clock.now())) == (None, False)
    shares = [one.share_read for one in progress if one.share_read is not None]
    assert shares
    bar = SCRIPT["Bar"](shown=True)
    bar.show(progress[0]._replace(share_read=0.625))
    bar.close()
    assert "first listing=62%" in capsys.readouterr().err


async def test_a_status_writes_nothing(collector: ac.AsyncCollector, database: Path, clock: JumpingClock) -> None:
    """Neither into the file nor beside it, where a log that belongs to another user would keep the collector out."""
    await collector.collect_all()
    clock.elapsed_s += 1
    await collector.collect_all()
    before, beside = database.read_bytes(), sorted(path.name for path in database.parent.iterdir())
    assert beside == ["polymarket_data.db", "polymarket_data.db.lock"]
    assert read_status(database, clock)["healthy"]
    assert (database.read_bytes(), sorted(path.name for path in database.parent.iterdir())) == (before, beside)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM runs")
        connection.commit()
        assert read_status(database, clock)["healthy"] is False  # as the log says, which is not in the file yet
    assert read_status(database, clock)["healthy"] is False


async def test_a_large_log_is_said_to_be_held_by_a_reader(
    schedule: Callable[[str], Schedule], database: Path, clock: JumpingClock
) -> None:
    await schedule("14:15:00").run(1)
    for megabytes, said in ((64, False), (65, True)):
        log = database.with_name(f"{database.name}-wal")
        log.touch()
        os.truncate(log, megabytes * 2**20)
        status = read_status(database, clock)
        assert status["wal_bytes"] == megabytes * 2**20
        assert ("a reader" in SCRIPT["status_lines"](status, clock.now())) is said


@pytest.mark.parametrize("content", [None, b"dear diary", b""])
def test_a_status_of_what_is_no_collection_is_an_error(
    database: Path, clock: JumpingClock, content: bytes | None
) -> None:
    if content is not None:
        database.write_bytes(content)
    said = {
        None: f"^there is no file {database}; a run makes it, or --db names another$",
        b"": "is empty; a run fills it",
    }
    with pytest.raises(ac.StorageError, match=said.get(content, "cannot read")):
        read_status(database, clock)
    assert (database.read_bytes() if database.exists() else None) == content


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ("PRAGMA user_version = 99", "has schema 99 of a newer collector"),
        ("ALTER TABLE snapshots RENAME TO photographs", "is the database of another program"),
    ],
)
async def test_a_status_refuses_what_a_collector_refuses(
    schedule: Callable[[str], Schedule], database: Path, clock: JumpingClock, change: str, refusal: str
) -> None:
    await schedule("14:15:00").run(1)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(change)
    with pytest.raises(ac.StorageError, match=refusal) as by_status:
        read_status(database, clock)
    with pytest.raises(ac.StorageError) as by_collector:
        await ac.AsyncCollector(database).collect_all()
    assert str(by_status.value) == str(by_collector.value)
