"""covers: files that move, have two names or are not there, full outputs, and settings as people paste them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows
from truth import COLLECTOR, SERVICE, Done, assert_true, command, last_run, start

from async_collector import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket

    from async_collector import AsyncCollector

UNIX = pytest.mark.skipif(os.name != "posix", reason="links and devices as Unix has them")


async def until_complete(database: Path, runs: int) -> None:
    """Wait until so many runs are complete."""
    for _ in range(100):
        with contextlib.suppress(sqlite3.Error):
            if rows(database, "SELECT count(*) AS n FROM runs WHERE status = 'complete'")[0]["n"] >= runs:
                return
        await asyncio.sleep(0.05)
    pytest.fail(f"no {runs} runs were complete within 5 s")


@contextlib.asynccontextmanager
async def running(process: asyncio.subprocess.Process) -> AsyncIterator[asyncio.subprocess.Process]:
    """End *process* at the end, however that comes."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def is_sound(database: Path) -> bool:
    return rows(database, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


# --- a file that goes away between two runs


@pytest.mark.parametrize("script", [SERVICE, COLLECTOR])
async def test_a_file_that_is_gone_between_two_ticks_is_waited_for_and_never_made_anew(
    exchange: FakePolymarket, database: Path, script: str
) -> None:
    """Its disk may be unmounted: what is collected meanwhile would be lost under the mount point."""
    args: tuple[str, ...] = () if script == SERVICE else ("--continuous", "--interval", "0.01", "--db", str(database))
    env: dict[str, Any] = {"COLLECTOR_INTERVAL_MINUTES": "0.01", "POLYMARKET_DB": str(database)}
    elsewhere = database.with_name("elsewhere.db")
    async with running(await start(exchange, script, *args, **env)) as process:
        await until_complete(database, 1)
        for name in (database, database.with_name(database.name + "-wal")):
            if name.exists():
                name.rename(str(name).replace(database.name, elsewhere.name))
        assert process.stderr
        line = ""
        while not ("polymarket_data.db" in line and "next run" in line):  # a tick that failed, and why
            line = (await asyncio.wait_for(process.stderr.readline(), 10)).decode()
            assert line
            assert not database.exists()
        known = rows(elsewhere, "SELECT count(*) AS n FROM runs")[0]["n"]
        elsewhere.rename(database)
        await until_complete(database, known + 1)
        assert process.returncode is None
    assert is_sound(database)


# --- permanent faults of the service


async def unusable(exchange: FakePolymarket, kind: str, folder: Path) -> Path:
    """Return a database that no collector can use."""
    database = folder / "no" / "such.db" if kind == "no folder" else folder / "file.db"
    if kind == "no SQLite":
        database.write_bytes(b"This is a text, and longer than the head of a database file. " * 20)
    elif kind == "newer":
        assert (await command(exchange, COLLECTOR, "--quiet", "--db", str(database))).code == 0
        sqlite3.connect(database).executescript("PRAGMA user_version = 999").connection.close()
        exchange.arrivals.clear()
    elif kind == "another program's":
        sqlite3.connect(database).executescript("CREATE TABLE cookies (x)").connection.close()
    elif kind == "a folder":
        database.mkdir()
    return database


KINDS = ["no folder", "no SQLite", "newer", "another program's", "a folder"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_that_can_never_work_ends_at_the_start(
    exchange: FakePolymarket, tmp_path: Path, kind: str
) -> None:
    database = await unusable(exchange, kind, tmp_path)
    done = await command(exchange, SERVICE, within_s=5, POLYMARKET_DB=str(database))
    assert done.code in {74, 78}
    assert str(database) in done.err
    assert exchange.arrivals == []


@pytest.mark.parametrize("kind", KINDS)
async def test_the_status_refuses_what_the_collector_refuses(
    exchange: FakePolymarket, tmp_path: Path, kind: str
) -> None:
    database = await unusable(exchange, kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status = await command(exchange, COLLECTOR, "--status", "--db", str(database))
    assert sorted(tmp_path.rglob("*")) == before
    run = await command(exchange, COLLECTOR, "--quiet", "--db", str(database))
    assert (status.code, run.code, status.out) == (74, 74, "")
    assert str(database) in status.err


async def test_the_status_leaves_no_file_behind(exchange: FakePolymarket, database: Path) -> None:
    assert (await command(exchange, COLLECTOR, "--quiet", "--db", str(database))).code == 0
    for name in database.parent.glob("*-wal"), database.parent.glob("*-shm"):
        for path in name:
            path.unlink()
    before = sorted(database.parent.iterdir())
    done = await command(exchange, COLLECTOR, "--status", "--db", str(database))
    assert done.code == 1, "one run is not judged"
    assert sorted(database.parent.iterdir()) == before


# --- links


@UNIX
async def test_a_link_into_a_folder_that_is_not_there_makes_nothing(exchange: FakePolymarket, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "not" / "mounted" / "poly.db")
    done = await command(exchange, COLLECTOR, "--quiet", "--db", str(link))
    assert done.code == 74
    assert "folder" in done.err
    assert list(tmp_path.iterdir()) == [link]
    assert exchange.arrivals == []


@UNIX
async def test_a_link_to_a_file_and_the_file_itself_have_one_lock(exchange: FakePolymarket, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "poly.db", tmp_path / "link.db"
    link.symlink_to(file)
    assert (await command(exchange, COLLECTOR, "--quiet", "--db", str(link))).code == 0
    assert_true(file, exchange.markets.values())
    assert await second_of_two(exchange, link, file) == 75


@UNIX
async def test_a_file_with_two_names_is_never_written_by_two(exchange: FakePolymarket, database: Path) -> None:
    assert (await command(exchange, COLLECTOR, "--quiet", "--db", str(database))).code == 0
    other = database.with_name("other.db")
    other.hardlink_to(database)
    assert await second_of_two(exchange, database, other) in {74, 75}
    assert is_sound(database)


async def second_of_two(exchange: FakePolymarket, first: Path, second: Path) -> int:
    """Return the exit code of a collector on *second* while another one, if it may, works on *first*."""
    exchange.arrivals.clear()
    exchange.fail_next("/books", delay_s=6)  # longer than a collector waits for the lock
    async with running(await start(exchange, COLLECTOR, "--quiet", "--db", str(first))) as process:
        asked = asyncio.ensure_future(exchange.until_asked("/books"))
        await asyncio.wait({asked, asyncio.ensure_future(process.wait())}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        code = (await command(exchange, COLLECTOR, "--quiet", "--db", str(second))).code
    exchange.heal()
    return code


# --- rows that the user's own trigger refuses


@pytest.mark.parametrize("table", ["snapshots", "markets"])
async def test_a_row_that_a_trigger_refuses_ends_its_run_and_no_other(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, write: Callable[..., None], table: str
) -> None:
    """The run says SQLite's words; what was stored before stays, and what comes after the trigger is gone is stored."""
    await collector.collect_all()
    before = rows(database, "SELECT * FROM snapshots")
    refused = exchange.add_market(volume_24h=200_000.0)
    write(f"""
        CREATE TRIGGER mine BEFORE INSERT ON {table} WHEN NEW.market_id = '{refused.id}'
        BEGIN SELECT RAISE(ABORT, 'not this one'); END;
    """)
    with pytest.raises(StorageError, match=r"polymarket_data\.db: cannot store a batch: not this one"):
        await collector.collect_all()
    assert rows(database, "SELECT * FROM snapshots") == before
    assert last_run(database)["status"] == "failed"
    write("DROP TRIGGER mine")
    assert (await collector.collect_all())["snapshots"] == 61
    assert_true(database, exchange.markets.values())


# --- a name server that is silent

SILENT = """
import runpy, socket, sys, time
def silent(*args, **kwargs):
    print("resolving", file=sys.stderr, flush=True)
    time.sleep(60)
socket.getaddrinfo = silent
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("script", "code"), [(COLLECTOR, 143), (SERVICE, 0)])
async def test_a_silent_name_server_holds_nobody_who_wants_to_leave(
    exchange: FakePolymarket, database: Path, script: str, code: int
) -> None:
    env = os.environ | {"POLYMARKET_DB": str(database), "GAMMA_API": "http://gamma.invalid"}
    assert exchange.url
    database.touch()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SILENT, str(PROJECT / script)),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with running(process):
        assert process.stderr
        while b"resolving" not in await asyncio.wait_for(process.stderr.readline(), 10):
            pass
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 5)
        assert process.returncode == code
    assert last_run(database)["status"] == "failed"
    assert is_sound(database)


# --- the command line


@pytest.mark.parametrize("args", ["--db :memory:", "--db=", "--interval 5", "--interval 5 --json"])
async def test_what_makes_no_sense_is_2_and_says_why(exchange: FakePolymarket, tmp_path: Path, args: str) -> None:
    done = await command(exchange, COLLECTOR, *args.split(), cwd=tmp_path)
    assert done.code == 2
    assert args.split(maxsplit=1)[0].rstrip("=") in done.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert exchange.arrivals == []


# --- variables as people paste them


@pytest.mark.parametrize("script", [COLLECTOR, SERVICE])
async def test_blanks_and_line_ends_around_a_variable_are_not_part_of_it(
    exchange: FakePolymarket, tmp_path: Path, script: str
) -> None:
    names = {**exchange.environment, "GAMMA_RATE_LIMIT": "10", "COLLECTOR_WORKERS": "5", "COLLECTOR_MIN_VOLUME": "100"}
    env: dict[str, Any] = {name: f" {value}\r\n" for name, value in names.items() if value}
    wanted = tmp_path / "poly.db"
    async with running(await start(exchange, script, cwd=tmp_path, POLYMARKET_DB="poly.db\r", **env)) as process:
        await until_complete(wanted, 1)
        if script == SERVICE:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    assert {path.name.rstrip() for path in tmp_path.iterdir()} == {path.name for path in tmp_path.iterdir()}
    assert_true(wanted, exchange.markets.values())


# --- proxies, as curl has them


@pytest.mark.parametrize(("value", "direct"), [("example.com, 127.0.0.0/9", True), ("10.0.0.0/8", False)])
async def test_a_network_in_no_proxy_is_asked_directly(
    exchange: FakePolymarket, database: Path, value: str, *, direct: bool
) -> None:
    env: dict[str, Any] = {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": value}
    done: Done = await command(exchange, COLLECTOR, "--quiet", "--max-retries", "0", "--db", str(database), **env)
    assert done.code == (0 if direct else 69)
    assert bool(exchange.arrivals) == direct
