"""covers: `async-collector` as its users run it: in a shell, in a pipe, on a terminal, under cron."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import os
import pty
import re
import runpy
import shlex
import signal
import sqlite3
import sys
import termios
import zlib
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp.compression_utils import ZLibBackend
from conftest import PROJECT, rows
from truth import COLLECTOR, SERVICE, Done, command

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket

SCRIPT = str(PROJECT / "async-collector.py")


async def start(exchange: FakePolymarket, database: Path, *args: str, **env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, SCRIPT, "--db", str(database), *args),
        env=os.environ | exchange.environment | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(exchange: FakePolymarket, database: Path, *args: str, **env: Any) -> Done:  # noqa: ANN401
    return await command(exchange, COLLECTOR, "--db", str(database), *args, **env)


async def test_in_a_pipe_there_are_plain_lines(exchange: FakePolymarket, database: Path) -> None:
    done = await run(exchange, database)
    assert done.code == 0
    assert done.err == f"Polymarket to {database}: markets over $100,000 in 24 h, 10 workers\n"
    expected = r"""Run 1 is complete
  duration         \d\.\d\d s
  markets          60 of 60
  snapshots        60
  books stored     60
  books unchanged  0
  books missing    0
  markets per s    \d+
  errors           0
  retries          0
  rate limit hits  0
  posts            0
  database         .*polymarket_data.db
"""
    assert re.fullmatch(expected, done.out)


async def test_a_failing_x_is_said_and_changes_no_exit_code(exchange: FakePolymarket, database: Path) -> None:
    exchange.fail_next("/search/recent", status=402, body=b'{"title":"CreditsDepleted"}')
    done = await run(exchange, database, "--quiet", TWITTER_BEARER_TOKEN=exchange.token)
    assert (done.code, done.out) == (0, "")
    assert re.fullmatch(
        r"async-collector: posts: http://.*/search/recent: HTTP 402: '.*'; the credits are used up: .*\n", done.err
    )


async def test_on_a_terminal_there_is_a_bar_over_markets(exchange: FakePolymarket, database: Path) -> None:
    exchange.latency_s = 0.1
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, SCRIPT, "--db", str(database)),
        env=os.environ | exchange.environment,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    assert await asyncio.wait_for(process.wait(), 30) == 0
    screen = os.read(master, 100_000).decode()
    os.close(master)
    assert re.search(r"\r100%\|█+\| 60/60 \[00:0\d<00:00, +[\d.]+ markets/s, errors=0\]", screen)
    assert screen.rstrip().endswith(str(database))


async def test_options_and_variables_reach_the_collector(
    exchange: FakePolymarket, database: Path, tmp_path: Path
) -> None:
    over = sorted((market.volume_24h or 0 for market in exchange.markets.values()), reverse=True)[:10]
    exchange.latency_s = 0.05
    args = ("--workers", "1", "--min-volume", str(over[-1]), "--json")
    explicit = json.loads((await run(exchange, database, *args, POLYMARKET_DB=str(tmp_path / "other.db"))).out)
    assert (explicit["markets"], explicit["database"], exchange.most_in_flight) == (10, str(database), 1)
    assert not (tmp_path / "other.db").exists()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, SCRIPT, "--quiet"),
        env=os.environ | exchange.environment | {"POLYMARKET_DB": str(tmp_path / "other.db")},
    )
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert (tmp_path / "other.db").exists()


async def test_json_is_one_line_on_stdout(exchange: FakePolymarket, database: Path) -> None:
    done = await run(exchange, database, "--json")
    assert done.out.count("\n") == 1
    result = json.loads(done.out)
    (stored,) = rows(database, "SELECT run_id, status, snapshots_saved, requests, duration FROM runs")
    assert (result["run_id"], result["status"], result["snapshots"]) == (1, "complete", 60)
    assert (stored["status"], stored["snapshots_saved"], stored["requests"]) == ("complete", 60, result["requests"])


async def test_quiet_says_nothing_when_all_is_well(exchange: FakePolymarket, database: Path) -> None:
    assert await run(exchange, database, "--quiet") == Done(0, "", "")


async def test_verbose_tells_every_step_and_keeps_results_apart(exchange: FakePolymarket, database: Path) -> None:
    exchange.fail_next("/books", status=503)
    done = await run(exchange, database, "--verbose", "--json")
    assert f"DEBUG GET {exchange.url}/gamma/markets/keyset: 200, " in done.err
    assert "DEBUG attempt 1 failed, trying again" in done.err
    assert "INFO run 1 complete" in done.err
    assert json.loads(done.out)["status"] == "complete"
    assert "0x" not in done.err, "no stored rows in the log"


async def test_less_than_95_percent_is_75_also_when_quiet(exchange: FakePolymarket, database: Path) -> None:
    for market in list(exchange.markets.values())[:4]:
        exchange.change(market, has_books=False)
    done = await run(exchange, database, "--quiet")
    assert done.code == 75
    assert done.out == ""
    assert done.err == (
        "async-collector: 56 of 60 listed markets were stored with their books; first failure: "
        "YES and NO: the exchange has no book (see the table failures, run 1)\n"
    )


async def test_a_listing_that_breaks_off_is_75_and_says_so(exchange: FakePolymarket, database: Path) -> None:
    for _ in range(60):
        exchange.add_market(volume_24h=200_000.0)
    pages = iter([{}, {"next_cursor": "nowhere"}])
    exchange.fail_next("/markets/keyset", mutate=lambda page: page | next(pages))
    exchange.fail_next("/markets/keyset", status=422, times=9)
    done = await run(exchange, database, "--quiet")
    assert done.code == 75
    one_line(done, "100 of 100 listed markets", f"{exchange.url}/gamma/markets/keyset: HTTP 422")


async def test_95_percent_is_enough(exchange: FakePolymarket, database: Path) -> None:
    for market in list(exchange.markets.values())[:3]:
        exchange.change(market, has_books=False)
    assert (await run(exchange, database, "--quiet")).code == 0


def one_line(done: Done, *parts: str) -> None:
    """Check that a failure is one line on stderr which names *parts*."""
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("async-collector: ")
    for part in parts:
        assert part in done.err


async def test_an_exchange_that_is_down_is_69(exchange: FakePolymarket, database: Path) -> None:
    database.touch()
    done = await run(exchange, database, "--quiet", "--max-retries", "0", GAMMA_API="http://127.0.0.1:1")
    assert done.code == 69
    one_line(done, "http://127.0.0.1:1/markets/keyset", "Cannot connect")
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["failed"]


async def test_an_exchange_that_hangs_is_69_after_the_timeout(exchange: FakePolymarket, database: Path) -> None:
    exchange.fail_next("/markets/keyset", hang=True)
    done = await run(exchange, database, "--quiet", "--max-retries", "0", "--timeout", "0.3")
    assert done.code == 69
    one_line(done, "/markets/keyset", "no complete answer within 0.3 s")


async def test_a_shape_we_do_not_know_is_65(exchange: FakePolymarket, database: Path) -> None:
    exchange.fail_next("/markets/keyset", body=b'{"data":[]}')
    done = await run(exchange, database, "--quiet")
    assert done.code == 65
    one_line(done, "/markets/keyset", "missing required field `markets`")


async def test_too_many_requests_to_the_end_is_75(exchange: FakePolymarket, database: Path) -> None:
    exchange.fail_next("/markets/keyset", status=429, times=9)
    done = await run(exchange, database, "--quiet", "--max-retries", "0")
    assert done.code == 75
    one_line(done, "HTTP 429")


async def test_a_file_that_is_no_database_is_74_and_untouched(exchange: FakePolymarket, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("dear diary")
    done = await run(exchange, notes, "--quiet")
    assert done.code == 74
    one_line(done, str(notes), "file is not a database")
    assert notes.read_text() == "dear diary"
    assert exchange.arrivals == []


async def test_a_missing_folder_is_74(exchange: FakePolymarket, tmp_path: Path) -> None:
    done = await run(exchange, tmp_path / "nowhere" / "file.db", "--quiet")
    assert done.code == 74
    one_line(done, "there is no folder", "nowhere")
    assert list(tmp_path.iterdir()) == []
    assert exchange.arrivals == []


async def test_a_bad_variable_is_78(exchange: FakePolymarket, database: Path) -> None:
    done = await run(exchange, database, "--quiet", CLOB_RATE_LIMIT="many")
    assert done.code == 78
    one_line(done, "CLOB_RATE_LIMIT='many': must be a whole number from 1 to 1000")
    assert not database.exists()
    assert exchange.arrivals == []


@pytest.mark.parametrize(
    "args",
    [
        ("--workers", "0"),
        ("--workers", "ten"),
        ("--max-retries", "-1"),
        ("--timeout", "0"),
        ("--timeout", "nan"),
        ("--min-volume", "-5"),
        ("--min-volume", "inf"),
        ("--db", ""),
        ("--db", " "),
        ("--db", ":memory:"),
        ("--interval", "5"),
        ("--interval", "5", "--benchmark"),
        ("--unknown",),
        ("stray",),
    ],
)
def test_a_bad_flag_is_2_and_named(database: Path, args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(SCRIPT, run_name="script")["main"]
    with pytest.raises(SystemExit) as ended:
        main(["--db", str(database), *args])
    assert ended.value.code == 2
    assert args[0] in capsys.readouterr().err.splitlines()[-1]
    assert not database.exists()


async def test_a_second_collector_is_75_and_names_the_first(exchange: FakePolymarket, database: Path) -> None:
    exchange.fail_next("/books", hang=True)
    first = await start(exchange, database)
    await exchange.until_asked("/books")
    done = await run(exchange, database, "--quiet")
    first.kill()
    await first.communicate()
    assert done.code == 75
    one_line(done, str(database), f"in use by process {first.pid} since 20")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("path", ["/markets/keyset", "/books"])
async def test_an_interrupted_run_ends_at_once_and_is_marked(
    exchange: FakePolymarket, database: Path, number: signal.Signals, code: int, path: str
) -> None:
    exchange.fail_next(path, hang=True)
    database.touch()
    process = await start(exchange, database)
    await exchange.until_asked(path)
    process.send_signal(number)
    _, err = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == code
    assert err.endswith(b"async-collector: interrupted; 0 markets of this run are stored\n")
    assert err.count(b"\n") == 2
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["failed"]
    assert (await run(exchange, database, "--quiet")).code == 0


async def test_a_second_signal_ends_at_once(exchange: FakePolymarket, database: Path) -> None:
    """Also while another program keeps the file locked, which the end of a run waits for."""
    exchange.fail_next("/books", hang=True)
    process = await start(exchange, database)
    await exchange.until_asked("/books")
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        process.send_signal(signal.SIGINT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.5)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("closed", "unbuffered"),
    [
        ("| true", ""),
        ("| true", "1"),
        (">/dev/full", ""),
        (">/dev/full", "1"),
        (">&-", ""),
        ("2>&-", ""),
        ("2>/dev/full", "1"),
        (">&- 2>&- <&-", ""),
    ],
)
async def test_what_is_collected_does_not_depend_on_who_listens(
    exchange: FakePolymarket, database: Path, closed: str, unbuffered: str
) -> None:
    command = shlex.join([sys.executable, SCRIPT, "--db", str(database)])
    process = await asyncio.create_subprocess_shell(
        f"set -o pipefail; {command} {closed}",
        executable="/bin/bash",
        env=os.environ | exchange.environment | {"PYTHONUNBUFFERED": unbuffered},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b"Traceback" not in err
    assert b"Exception" not in err
    assert b"Polymarket to" not in out
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["complete"]


@pytest.mark.parametrize(
    ("args", "where", "code"),
    [
        ("--json", ">/dev/full", 74),
        ("--status", ">/dev/full", 74),
        ("--status --json", ">/dev/full", 74),
        ("--json", "| true", 0),
        ("--status", "| true", 1),
        ("--json", ">&-", 0),
    ],
)
async def test_a_result_that_cannot_be_written_is_74(
    exchange: FakePolymarket, database: Path, args: str, where: str, code: int
) -> None:
    """Who asks for the result and has no room for it has to know; who does not read on knows."""
    assert (await ac.AsyncCollector(database).collect_all())["status"] == "complete"
    process = await asyncio.create_subprocess_shell(
        f"set -o pipefail; {shlex.join([sys.executable, SCRIPT, '--quiet', '--db', str(database)])} {args} {where}",
        executable="/bin/bash",
        env=os.environ | exchange.environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 30)
    full = "async-collector: the result could not be written: [Errno 28] No space left on device\n"
    said = full if code == 74 else ""
    assert (process.returncode, err.decode()) == (code, said)
    assert {row["status"] for row in rows(database, "SELECT status FROM runs")} == {"complete"}


async def test_results_without_room_end_no_continuous_collection(exchange: FakePolymarket, database: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, SCRIPT, "--db", str(database), "--quiet", "--json", "--continuous", "--interval", "0.02"),
        env=os.environ | exchange.environment,
        stdout=full,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(full)
    assert process.stderr
    for _ in range(2):
        line = await asyncio.wait_for(process.stderr.readline(), 30)
        assert line == b"async-collector: the result could not be written: [Errno 28] No space left on device\n"
    process.terminate()
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, b"Exception" in err, b"Traceback" in err) == (0, False, False)
    assert len(rows(database, "SELECT run_id FROM runs")) >= 2


async def test_an_interval_without_a_schedule_is_2_and_says_why(exchange: FakePolymarket, database: Path) -> None:
    done = await run(exchange, database, "--interval", "5")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(
        "argument --interval: only with --continuous or --status, for a single run has no interval\n"
    )
    assert not database.exists()
    assert exchange.arrivals == []


async def test_a_name_that_the_terminal_cannot_write_is_escaped(exchange: FakePolymarket, tmp_path: Path) -> None:
    process = await start(exchange, tmp_path / "数据 'q'.db", PYTHONIOENCODING="ascii")
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert out.endswith(b"\\u6570\\u636e 'q'.db\n")


async def test_a_folder_that_may_not_be_searched_is_74(exchange: FakePolymarket, tmp_path: Path) -> None:
    done = await run(exchange, tmp_path / ("x" * 300) / "file.db", "--quiet")
    assert done.code == 74
    one_line(done, "cannot open", "File name too long")
    loop = tmp_path / "loop.db"
    loop.symlink_to(loop)
    done = await run(exchange, loop, "--quiet")
    assert done.code == 74
    one_line(done, "loop.db: is a link that leads in a circle")


async def test_a_dead_proxy_is_named(exchange: FakePolymarket, database: Path) -> None:
    done = await run(exchange, database, "--quiet", "--max-retries", "0", HTTP_PROXY="http://127.0.0.1:1", NO_PROXY="")
    assert done.code == 69
    one_line(done, exchange.url, "(through the proxy 127.0.0.1:1)")


async def test_a_file_that_another_program_keeps_locked_is_75(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ac, "BUSY_TIMEOUT_S", 0.1)
    assert (await make_collector().collect_all())["status"] == "complete"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ac.DatabaseBusy, match="cannot start a run: database is locked"):
            await make_collector().collect_all()
    assert exchange.asked("/books")


async def test_the_process_ends_by_itself_after_any_exception(exchange: FakePolymarket, database: Path) -> None:
    """An aiosqlite connection that is not closed would keep it alive for ever."""
    program = f"""
import asyncio
from async_collector import AsyncCollector
def broken(progress): raise ZeroDivisionError("on purpose")
asyncio.run(AsyncCollector({str(database)!r}, progress=broken).collect_all())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        cwd=PROJECT,
        env=os.environ | exchange.environment,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1
    assert err.rstrip().endswith(b"ZeroDivisionError: on purpose")


async def test_version_names_what_matters_in_a_bug_report(exchange: FakePolymarket, database: Path) -> None:
    done = await run(exchange, database, "--version")
    assert re.match(
        r"async-collector \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+, SQLite 3\.[\d.]+, aiohttp [\d.]+\)\n", done.out
    )


@pytest.mark.parametrize("script", [COLLECTOR, SERVICE])
def test_a_command_inflates_by_isal_where_it_is_installed(script: str) -> None:
    """A setting of the process, which the module leaves alone."""
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    thresholds = gc.get_threshold()
    body = gzip.compress(b'[{"bids": []}]' * 1_000)
    try:
        runpy.run_path(str(PROJECT / script))["be_fast"]()
        assert ZLibBackend.name == isal_zlib.__name__
        assert ZLibBackend.decompress(body, ZLibBackend.MAX_WBITS | 16) == gzip.decompress(body)
    finally:
        aiohttp.set_zlib_backend(zlib)
        gc.set_threshold(*thresholds)
