"""covers: `collector-service` and `--continuous` as a system sees them: signals, sockets, kills, other readers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import sqlite3
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows
from truth import broken_promises, command

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakePolymarket

SERVICE = (str(PROJECT / "collector-service.py"),)
CONTINUOUS = (str(PROJECT / "async-collector.py"), "--continuous")
ONCE = (str(PROJECT / "async-collector.py"), "--quiet")


async def start(exchange: FakePolymarket, database: Path, *command: str, **env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        env=os.environ | exchange.environment | {"POLYMARKET_DB": str(database)} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process, within_s: float = 10) -> tuple[int | None, str]:
    out, err = await asyncio.wait_for(process.communicate(), within_s)
    return process.returncode, (out + err).decode()


async def run(exchange: FakePolymarket, database: Path, script: str, *args: str, **env: Any) -> tuple[int, str]:  # noqa: ANN401
    """Run *script* to its end."""
    done = await command(exchange, script, *args, POLYMARKET_DB=str(database), **env)
    return done.code, done.out + done.err


async def until_stored(database: Path, count: int) -> None:
    """Wait until *count* runs are complete."""
    for _ in range(200):
        with contextlib.suppress(sqlite3.OperationalError):
            if rows(database, "SELECT count(*) AS n FROM runs WHERE status = 'complete'")[0]["n"] >= count:
                return
        await asyncio.sleep(0.05)
    pytest.fail("no run was completed within 10 s")


def assert_sound(database: Path) -> None:
    assert broken_promises(database) == {}
    assert rows(database, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert rows(database, "SELECT * FROM books EXCEPT SELECT b.* FROM books AS b JOIN snapshots USING (book_id)") == []


@pytest.mark.parametrize(
    ("command", "number", "hangs"),
    [
        (SERVICE, signal.SIGTERM, "/markets/keyset"),
        (SERVICE, signal.SIGTERM, "/books"),
        (SERVICE, signal.SIGTERM, None),
        (SERVICE, signal.SIGINT, "/books"),
        (CONTINUOUS, signal.SIGINT, "/markets/keyset"),
        (CONTINUOUS, signal.SIGINT, None),
        (CONTINUOUS, signal.SIGTERM, "/books"),
    ],
)
async def test_a_signal_ends_it_cleanly_within_seconds(
    exchange: FakePolymarket, database: Path, command: tuple[str, ...], number: signal.Signals, hangs: str | None
) -> None:
    """While listing, while fetching and while sleeping, also when a server never answers."""
    if hangs:
        exchange.fail_next(hangs, hang=True)
    database.touch()
    process = await start(exchange, database, *command)
    await (exchange.until_asked(hangs) if hangs else until_stored(database, 1))
    process.send_signal(number)
    code, output = await ended(process, 5)
    assert code == 0
    assert "Traceback" not in output
    counted = re.search(r"stopped; runs: \d, snapshots stored: (\d+)(?:, and (\d+) by the run under way)?\n", output)
    assert counted
    assert sum(int(count or 0) for count in counted.groups()) == (0 if hangs else 60)
    assert {row["status"] for row in rows(database, "SELECT status FROM runs")} == {"failed" if hangs else "complete"}
    assert_sound(database)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_a_signal_while_writing_leaves_whole_batches(exchange: FakePolymarket, database: Path, seed: int) -> None:
    for _ in range(5_000):
        exchange.add_market()
    env = {"GAMMA_RATE_LIMIT": "1000", "CLOB_RATE_LIMIT": "1000", "COLLECTOR_MIN_VOLUME": "0"}
    process = await start(exchange, database, *SERVICE, **env)
    await exchange.until_asked("/books")
    await asyncio.sleep(random.Random(seed).uniform(0.1, 0.5))
    process.terminate()
    code, _ = await ended(process)
    assert code == 0
    (run,) = rows(database, "SELECT status, snapshots_saved FROM runs")
    (stored,) = rows(database, "SELECT count(*) AS n FROM snapshots")
    assert run["snapshots_saved"] == stored["n"]
    assert run["status"] in {"failed", "partial", "complete"}
    assert stored["n"] % 250 == 0 or run["status"] == "complete"
    assert_sound(database)


async def test_a_second_signal_ends_the_service_at_once(exchange: FakePolymarket, database: Path) -> None:
    exchange.fail_next("/books", hang=True)
    process = await start(exchange, database, *SERVICE)
    await exchange.until_asked("/books")
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # keeps the first signal from ending it
        process.terminate()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.5)
        process.terminate()
        code, output = await ended(process, 5)
    assert code == 143
    assert "Traceback" not in output


async def test_systemd_is_told_what_happens(exchange: FakePolymarket, database: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        process = await start(exchange, database, *SERVICE, NOTIFY_SOCKET=str(tmp_path / "notify"))
        told: list[str] = []
        loop = asyncio.get_running_loop()
        while "STATUS=run" not in "".join(told):
            told.append((await asyncio.wait_for(loop.sock_recv(systemd, 4096), 10)).decode())
        process.terminate()
        await ended(process)
        told.append((await asyncio.wait_for(loop.sock_recv(systemd, 4096), 10)).decode())
    assert told[0] == "READY=1\nWATCHDOG=1"
    status = (
        r"READY=1\nSTATUS=run 1 complete: 60 markets in \d\.\d s; next run \d\d:\d\d:00 UTC; 0 ticks missed\nWATCHDOG=1"
    )
    assert re.fullmatch(status, told[-2])
    assert told[-1] == "STOPPING=1"


async def test_a_service_whose_exchange_is_silent_feeds_no_watchdog(
    exchange: FakePolymarket, database: Path, tmp_path: Path
) -> None:
    exchange.fail_next("/markets/keyset", hang=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        process = await start(exchange, database, *SERVICE, NOTIFY_SOCKET=str(tmp_path / "notify"))
        await exchange.until_asked("/markets/keyset")
        await asyncio.sleep(0.3)
        with pytest.raises(BlockingIOError):
            systemd.recv(4096)
        process.terminate()
        await ended(process)


async def test_the_journal_gets_levels_and_no_time(exchange: FakePolymarket, database: Path) -> None:
    read_end, write_end = os.pipe()
    status = os.fstat(write_end)
    exchange.fail_next("/books", status=400, times=99)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *SERVICE),
        env=os.environ
        | exchange.environment
        | {"POLYMARKET_DB": str(database), "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
        stderr=write_end,
    )
    os.close(write_end)
    await exchange.until_asked("/books")
    await asyncio.sleep(0.5)
    process.terminate()
    await process.wait()
    with os.fdopen(read_end) as lines:
        journal = [line for line in lines.read().splitlines() if "SQLite" not in line]  # the library may be an old one
    assert [line[:3] for line in journal] == ["<6>", "<4>", "<6>", "<4>", "<6>", "<6>"]
    assert re.match(r"<4>run 1 partial: 60 markets in .* errors, the first: YES and NO: http.*HTTP 400", journal[3])


async def test_settings_of_the_service_come_from_the_environment(exchange: FakePolymarket, database: Path) -> None:
    env = {"COLLECTOR_WORKERS": "3", "COLLECTOR_INTERVAL_MINUTES": "0.02", "COLLECTOR_MIN_VOLUME": "600090"}
    process = await start(exchange, database, *SERVICE, **env)
    await until_stored(database, 2)
    process.terminate()
    assert (await ended(process))[0] == 0
    listed = {(row["markets_listed"], row["min_volume"]) for row in rows(database, "SELECT * FROM runs")}
    over = sum((market.volume_24h or 0) >= 600_090 for market in exchange.markets.values())
    assert listed == {(over, 600_090.0)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COLLECTOR_WORKERS", "0"),
        ("COLLECTOR_INTERVAL_MINUTES", "15min"),
        ("COLLECTOR_INTERVAL_MINUTES", "nan"),
        ("COLLECTOR_MIN_VOLUME", "-1"),
        ("COLLECTOR_MIN_VOLUME", " "),
        ("GAMMA_API", "nowhere"),
    ],
)
async def test_a_bad_setting_of_the_service_is_78(
    exchange: FakePolymarket, database: Path, name: str, value: str
) -> None:
    code, output = await run(exchange, database, *SERVICE, **{name: value})
    assert code == 78
    assert f"{name}={value!r}: must be" in output
    assert "Traceback" not in output
    assert not database.exists()


async def kill_and_look(exchange: FakePolymarket, database: Path, after_s: float) -> None:
    """Kill a run after *after_s* seconds; what is in the file is whole, and the next run knows about the dead one."""
    env = {"GAMMA_RATE_LIMIT": "1000", "CLOB_RATE_LIMIT": "1000"}
    process = await start(exchange, database, *ONCE, "--min-volume", "0", **env)
    await asyncio.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()
    if database.exists() and rows(database, "SELECT 1 FROM sqlite_master LIMIT 1"):  # else it died before it began
        assert_sound(database)


async def killed(exchange: FakePolymarket, database: Path, times: int) -> None:
    for _ in range(1_500):
        exchange.add_market()
    chance = random.Random(times)
    for _ in range(times):
        await kill_and_look(exchange, database, chance.uniform(0.1, 0.9))
    env = {"GAMMA_RATE_LIMIT": "1000", "CLOB_RATE_LIMIT": "1000"}
    code, output = await run(exchange, database, *ONCE, "--min-volume", "0", **env)
    assert (code, output) == (0, "")
    assert_sound(database)
    runs = rows(database, "SELECT run_id, status, snapshots_saved FROM runs ORDER BY run_id")
    assert {run["status"] for run in runs[:-1]} <= {"failed", "complete"}
    assert runs[-1]["status"] == "complete"
    stored = rows(database, "SELECT run_id, count(*) AS n FROM snapshots GROUP BY run_id")
    assert {row["run_id"]: row["n"] for row in stored} == {
        run["run_id"]: run["snapshots_saved"] for run in runs if run["snapshots_saved"]
    }


@pytest.mark.slow
async def test_a_killed_run_leaves_whole_batches_and_no_lock(exchange: FakePolymarket, database: Path) -> None:
    await killed(exchange, database, 3)


@pytest.mark.slow
async def test_fifty_killed_runs_leave_whole_batches_and_no_lock(exchange: FakePolymarket, database: Path) -> None:
    await killed(exchange, database, 50)


@pytest.mark.slow
async def test_of_five_collectors_started_together_one_collects(exchange: FakePolymarket, database: Path) -> None:
    exchange.latency_s = 3.0  # longer than a collector waits for the lock
    processes = await asyncio.gather(*(start(exchange, database, *ONCE) for _ in range(5)))
    results = await asyncio.gather(*(ended(process, 20) for process in processes))
    assert sorted(code or 0 for code, _ in results) == [0, 75, 75, 75, 75]
    (holder,) = [process.pid for process in processes if process.returncode == 0]
    lines = [output for code, output in results if code]
    assert all(re.fullmatch(rf"async-collector: .*: in use by process {holder} since .* UTC\n", line) for line in lines)
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["complete"]


@pytest.mark.slow
async def test_a_reader_that_comes_and_goes_never_fails_and_never_waits(
    exchange: FakePolymarket, database: Path
) -> None:
    for _ in range(3_000):
        exchange.add_market()
    env = {"GAMMA_RATE_LIMIT": "1000", "CLOB_RATE_LIMIT": "1000"}
    await run(exchange, database, *ONCE, "--min-volume", "0", **env)
    process = await start(exchange, database, *ONCE, "--min-volume", "0", **env)
    ending = asyncio.ensure_future(ended(process, 30))
    waits, counts = [], []
    while not ending.done():
        began = time.monotonic()
        with contextlib.closing(sqlite3.connect(database, timeout=1)) as reader:
            counts.append(reader.execute("SELECT count(*) FROM snapshots").fetchone()[0])
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.005)
    assert (await ending) == (0, "")
    assert counts == sorted(counts)
    assert (counts[-1] - counts[0], len(waits) > 50) == (len(exchange.markets), True)
    assert sorted(waits)[len(waits) // 2] < 0.05


@pytest.mark.slow
async def test_a_reader_that_stays_for_the_whole_run_does_not_stop_it(exchange: FakePolymarket, database: Path) -> None:
    await run(exchange, database, *ONCE)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM snapshots").fetchone()
        assert await run(exchange, database, *ONCE) == (0, "")
        assert reader.execute("SELECT count(*) FROM snapshots").fetchone() == before == (60,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM snapshots").fetchone() == (120,)


async def test_the_continuous_command_says_a_line_per_run(exchange: FakePolymarket, database: Path) -> None:
    process = await start(exchange, database, *CONTINUOUS, "--interval", "0.02")
    await until_stored(database, 2)
    process.terminate()
    code, output = await ended(process)
    lines = output.splitlines()
    assert code == 0
    assert lines[0] == f"Polymarket to {database}: markets over $100,000 in 24 h, 10 workers, every 0.02 minutes"
    assert re.match(r"run 1 is complete: 60 markets in \d+\.\d\d s; next run \d\d:\d\d:\d\d UTC", lines[1])


@pytest.mark.slow
@pytest.mark.parametrize(("args", "code"), [((), 0), (("--interval", "0.0001"), 1)])
async def test_the_status_is_a_health_check(
    exchange: FakePolymarket, database: Path, args: tuple[str, ...], code: int
) -> None:
    for _ in range(2):
        await run(exchange, database, *ONCE)
    status = (str(PROJECT / "async-collector.py"), "--status", *args)
    done = await run(exchange, database, *status)
    assert done[0] == code
    assert re.search(r"  run 2 +20\S+ \S+ complete, 60 markets of 60, 0 without books, 0 errors\n", done[1])
    as_json = await run(exchange, database, *status, "--json")
    assert (as_json[0], as_json[1].count("\n"), '"runs": [{"run_id": 2,' in as_json[1]) == (code, 1, True)


async def test_the_service_takes_no_arguments(database: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *SERVICE, "--interval", "1"),
        env=os.environ | {"POLYMARKET_DB": str(database)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert b"it takes no options, but variables (see --help): --interval 1" in err
    assert not database.exists()
