"""The lake as its readers see it: every row once, whatever was killed, changed, late or odd."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import re
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import PROJECT, rows
from sample_database import fill

import async_collector as ac

NEEDED = ("obstore", "polars", "pyarrow")  # loaded where they are used: half a second for each process of the tests
if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    pytest.skip(f"without {', '.join(missing)}", allow_module_level=True)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from fake_polymarket import FakePolymarket

pytestmark = pytest.mark.xdist_group("archive")  # one process loads the libraries and has the server
COMMAND = str(PROJECT / "collector-archive.py")
DOCUMENT = (PROJECT / "docs" / "lake.md").read_text()
TABLES = ("snapshots", "books", "runs", "failures", "tweets", "hype_signals")
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a+very/secret=key",
    "AWS_REGION": "us-east-1",
}
DAY = "2026-11-01"


@cache
def script() -> dict[str, Any]:
    """Return what the command defines."""
    return runpy.run_path(COMMAND, run_name="script")


@cache
def documented() -> dict[str, Any]:
    """Return what the Python examples of the document define."""
    names: dict[str, Any] = {"__name__": "examples"}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        exec(block, names)  # noqa: S102  it is what a reader would do
    return names


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A file with two finished days."""
    path = tmp_path / "polymarket_data.db"
    fill(path, markets=40, days=2, runs_per_day=12)
    return path


class Server(NamedTuple):
    """An S3 server on loopback, in a process of its own."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def make_bucket(self) -> str:
        name = f"bucket-{random.randrange(10**9)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")  # noqa: S310
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        return name

    @property
    def environment(self) -> dict[str, str]:
        return KEYS | {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true"}


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Start a server and end it."""
    pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(server.endpoint, timeout=5).close()  # noqa: S310
                break
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """The server that the tests share."""
    with serving() as server:
        yield server


@pytest.fixture
def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, with the environment that leads to it."""
    for key, value in s3_server.environment.items():
        monkeypatch.setenv(key, value)
    return s3_server.make_bucket()


def archive(*args: str | Path) -> int:
    """Run the command in this process."""
    code: int = script()["main"]([str(arg) for arg in args])
    return code


def view(lake: Path, database: Path) -> dict[str, tuple[int, int]]:
    """Return by table how many rows the documented rule finds, and a digest that does not depend on their order."""
    import polars as pl  # noqa: PLC0415

    found = {}
    for table in TABLES:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        columns = [name for name in columns if name not in {"bids", "asks", "bids_no", "asks_no"}]
        frame = documented()["every_row"](str(lake), str(database), table, columns)
        frame = frame.select(pl.col(name).cast(pl.String).fill_null("-") for name in columns)
        found[table] = (len(frame), int(frame.hash_rows().cast(pl.UInt64).sum() or 0))
    return found


def download(bucket: str, endpoint: str, folder: Path) -> Path:
    """Return a copy of what is in *bucket*, since the example reads a folder."""
    import pyarrow.fs  # noqa: PLC0415

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store = documented()["open_store"](endpoint)
    with contextlib.suppress(FileNotFoundError):
        pyarrow.fs.copy_files(f"{bucket}/lake", str(folder), source_filesystem=store)
    return folder


def everything(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of a file that a lake keeps, in an order that does not depend on when they were stored."""
    tables = {}
    for table in (*TABLES, "markets"):
        tables[table] = sorted(rows(path, f"SELECT * FROM {table}"), key=lambda row: str(list(row.values())))
    return tables


def change(database: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# --- the round trip ---------------------------------------------------------------------------------------------------


def test_archived_and_restored_days_are_equal(sample: Path, tmp_path: Path) -> None:
    """Every column of every row, NULL and empty told apart."""
    before = everything(sample)
    assert archive(tmp_path / "lake", "--db", sample, "--keep", "0") == 0
    left = everything(sample)
    assert {table: len(left[table]) for table in ("snapshots", "hype_signals")} == {"snapshots": 0, "hype_signals": 0}
    assert left["markets"] == before["markets"]
    assert left["runs"] == before["runs"]
    restored: dict[str, list[dict[str, Any]]] = {table: [] for table in before}
    for number in (1, 2):
        new = tmp_path / f"new{number}.db"
        assert archive(tmp_path / "lake", "--db", new, "--restore", f"2026-11-0{number}") == 0
        for table, found in everything(new).items():
            restored[table] += [row for row in found if row not in restored[table]]
    for table, expected in before.items():
        assert sorted(restored[table], key=lambda row: str(list(row.values()))) == expected, table


def test_a_restored_day_opens_as_any_other_file(sample: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    assert archive(tmp_path / "lake", "--db", sample) == 0
    assert archive(tmp_path / "lake", "--db", new, "--restore", DAY) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("new")) == ["new.db"]
    assert len(rows(new, "SELECT * FROM latest_snapshots")) == 40
    assert rows(new, "SELECT count(*) AS n FROM book_levels")[0]["n"] > 1_000
    assert rows(new, "PRAGMA foreign_key_check") == []
    assert rows(new, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert rows(new, "SELECT run_id FROM runs")


def test_values_that_no_column_can_hold_come_back_unchanged(sample: Path, tmp_path: Path) -> None:
    """What other programs and strange books leave in a file costs neither the day nor the value."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    change(
        sample,
        """UPDATE books SET bids = '[[0.12345,10]]', asks = '[[0.5,1000000000000]]' WHERE book_id = 1""",
        """UPDATE books SET bids = '[[0.50,10]]', asks = '[]', bids_no = '' WHERE book_id = 2""",
        """UPDATE books SET bids = '[[99999.9999,999999999999.999999],[0,0.000001]]', asks = 'no' WHERE book_id = 3""",
        """UPDATE books SET bids = '[[0.5,2e-6],[0.4,0.00001]]', asks = '[[0.5,0.000002]]' WHERE book_id = 4""",
        """UPDATE snapshots SET price_yes = 'dear', volume_24h = x'00ff', book_time = '2026-02-30 00:00:00.000'
           WHERE id = 1""",
        """UPDATE snapshots SET price_yes = 9e999, spread = -0.0, book_time = '2026-11-01T00:00:00Z' WHERE id = 2""",
        """UPDATE tweets SET text = CAST(x'ff41' AS TEXT), likes = 1.5, keywords = x'41', author_id = char(0)
           WHERE rowid = 1""",
        """UPDATE runs SET version = 7 WHERE run_id = 1""",
    )
    before = everything_of(sample)
    assert archive(tmp_path / "lake", "--db", sample, "--keep", "0", "--no-prune") == 0
    assert archive(tmp_path / "lake", "--db", tmp_path / "new.db", "--restore", DAY) == 0
    after = everything_of(tmp_path / "new.db")
    for table, expected in before.items():
        assert after[table] == expected, table
    stored = pq.read_table(next((tmp_path / "lake/books/date=2026-11-01").iterdir())).to_pylist()
    (odd,) = [row for row in stored if row["book_id"] == 1]
    assert odd["bid_prices"] is None
    assert json.loads(odd["as_stored"]) == {"bids": "[[0.12345,10]]", "asks": "[[0.5,1000000000000]]"}
    (small,) = [row for row in stored if row["book_id"] == 4]
    assert small["bid_sizes"] == [Decimal("0.000002"), Decimal("0.000010")]
    assert json.loads(small["as_stored"]) == {"asks": "[[0.5,0.000002]]"}  # the collector writes 2e-6


def everything_of(path: Path) -> dict[str, list[Any]]:
    """Return the rows of the first day as bytes and numbers, with their types."""
    found = {}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda stored: ("text", stored)
        for table, day in (
            ("snapshots", "timestamp"),
            ("books", "timestamp"),
            ("tweets", "created_at"),
            ("runs", "started_at"),
        ):
            query = f"SELECT * FROM {table} WHERE substr({day}, 1, 10) = '{DAY}'"
            found[table] = sorted(connection.execute(query), key=str)
    return found


def test_a_lake_has_lists_of_decimals_times_in_utc_and_the_shard(sample: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415

    archive(tmp_path / "lake", "--db", sample, "--shard", "north")
    schema = pq.read_schema(tmp_path / "lake/books/date=2026-11-01/north.parquet")
    assert str(schema.field("bid_prices").type) == "list<element: decimal128(9, 4) not null>"
    assert str(schema.field("ask_sizes_no").type) == "list<element: decimal128(18, 6) not null>"
    assert str(schema.field("timestamp").type) == "timestamp[ms, tz=UTC]"
    assert {"market_id", "mirrored", "shard", "as_stored"} < set(schema.names)
    (first,) = rows(sample, "SELECT min(started_at) AS at FROM runs")
    stored = pq.read_table(tmp_path / "lake/runs/date=2026-11-01/north.parquet").to_pylist()
    assert stored[0]["started_at"] == datetime.fromisoformat(first["at"]).replace(tzinfo=UTC)
    ordered = pq.read_table(
        tmp_path / "lake/snapshots/date=2026-11-01/north.parquet", columns=["market_id", "timestamp"]
    )
    assert ordered.to_pylist() == sorted(ordered.to_pylist(), key=lambda row: (row["market_id"], row["timestamp"]))


# --- exactly once -----------------------------------------------------------------------------------------------------


def start(lake: str, database: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, COMMAND, lake, "--db", str(database), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_and_look(lake: str, folder: Path, database: Path, kills: int, fetch: Any) -> None:  # noqa: ANN401
    """Kill the command again and again, look at every row after each kill, and let it end."""
    expected = view(folder, database)
    books = rows(database, "SELECT count(*) AS n FROM books")[0]["n"]
    rng = random.Random(7)
    trial = database.with_name("trial.db")
    shutil.copy(database, trial)
    began = time.monotonic()
    _, errors = start(f"{lake}-trial", trial, "--keep", "0").communicate(timeout=600)
    assert errors == ""
    whole_s = time.monotonic() - began
    killed = 0
    for _ in range(kills):
        process = start(lake, database, "--keep", "0")
        time.sleep(rng.uniform(0.15, 1.0) * whole_s)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in {0, -signal.SIGKILL}, errors
        killed += process.returncode != 0
        assert view(fetch(), database) == expected
        dangling = "SELECT count(*) AS n FROM snapshots WHERE book_id NOT IN (SELECT book_id FROM books)"
        assert rows(database, dangling) == [{"n": 0}]
        if rows(database, "SELECT count(*) AS n FROM snapshots") == [{"n": 0}]:
            break
    process = start(lake, database, "--keep", "0")
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    assert killed
    assert view(fetch(), database) == expected
    assert rows(database, "SELECT count(*) AS n FROM snapshots") == [{"n": 0}]
    assert books > rows(database, "SELECT count(*) AS n FROM books")[0]["n"]
    assert archive(lake, "--check") == 0


@pytest.mark.slow
def test_kills_lose_and_double_no_row(sample: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    kill_and_look(str(lake), lake, sample, 3, lambda: lake)


@pytest.mark.slow
def test_twenty_kills_over_a_large_day_in_a_folder(tmp_path: Path) -> None:
    database, lake = tmp_path / "large.db", tmp_path / "lake"
    lake.mkdir()
    fill(database, markets=3_200, days=1, levels=20)
    kill_and_look(str(lake), lake, database, 20, lambda: lake)


@pytest.mark.slow
def test_twenty_kills_over_a_large_day_in_object_storage(tmp_path: Path, bucket: str, s3_server: Server) -> None:
    database, copy = tmp_path / "large.db", tmp_path / "copy"
    copy.mkdir()
    fill(database, markets=3_200, days=1, levels=20)
    kill_and_look(f"s3://{bucket}/lake", copy, database, 20, lambda: download(bucket, s3_server.endpoint, copy))


def test_late_rows_go_into_a_further_file_and_are_seen_meanwhile(sample: Path, tmp_path: Path) -> None:
    """A clock that was set back: rows of an archived day, in a file from which that day is gone."""
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    before = view(lake, sample)
    change(
        sample,
        "INSERT INTO runs (started_at, status) VALUES ('2026-11-01 10:00:00', 'complete')",
        "INSERT INTO failures (run_id, stage, reason) SELECT max(run_id), 'list', 'late' FROM runs",
        "INSERT INTO books (market_id, timestamp, bids, asks) VALUES ('900001', '2026-11-01 10:00:01', '[]', '[]')",
        """INSERT INTO snapshots (market_id, timestamp, price_yes, book_id)
           SELECT '900001', '2026-11-01 10:00:01', 0.5, max(book_id) FROM books""",
        "INSERT INTO tweets (tweet_id, created_at) VALUES ('1', '2026-11-01 10:00:02')",
        "INSERT INTO hype_signals (market_id, timestamp) VALUES ('900001', '2026-11-01 10:00:03')",
    )
    late = view(lake, sample)
    assert {table: late[table][0] - before[table][0] for table in TABLES} == dict.fromkeys(TABLES, 1)
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    assert view(lake, sample) == late
    assert rows(sample, "SELECT parts FROM archived_days ORDER BY day") == [{"parts": 2}, {"parts": 1}]
    assert rows(sample, "SELECT count(*) AS n FROM snapshots") == [{"n": 0}]
    assert archive(lake, "--check") == 0
    assert archive(lake, "--db", tmp_path / "new.db", "--restore", DAY) == 0
    assert len(rows(tmp_path / "new.db", "SELECT * FROM snapshots")) == 40 * 12 + 1


def test_a_late_snapshot_keeps_the_archived_book_that_it_refers_to(sample: Path, tmp_path: Path) -> None:
    archive(tmp_path / "lake", "--db", sample, "--keep", "0", "--no-prune")
    change(
        sample,
        """INSERT INTO snapshots (market_id, timestamp, book_id)
           SELECT market_id, '2026-11-01 23:59:59', book_id FROM books WHERE timestamp < '2026-11-02' LIMIT 1""",
        """INSERT INTO snapshots (market_id, timestamp, book_id)
           SELECT market_id, '2026-11-09 00:00:00', max(book_id) FROM books WHERE timestamp < '2026-11-02'""",
    )
    later = (datetime.now(UTC).date() - datetime(2026, 11, 5, tzinfo=UTC).date()).days
    assert archive(tmp_path / "lake", "--db", sample, "--keep", str(later)) == 0
    dangling = "SELECT count(*) AS n FROM snapshots WHERE book_id NOT IN (SELECT book_id FROM books)"
    assert rows(sample, dangling) == [{"n": 0}]
    assert rows(sample, "SELECT count(*) AS n FROM snapshots") == [{"n": 1}]


def test_two_shards_share_a_lake_and_a_name_belongs_to_one_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "lake"
    databases = [tmp_path / f"{name}.db" for name in ("north", "south", "again")]
    for seed, database in enumerate(databases):
        fill(database, markets=20, days=2, runs_per_day=6, seed=seed)
    expected = [view(tmp_path, database) for database in databases]
    processes = [start(str(lake), database, "--keep", "0", "--shard", database.stem) for database in databases[:2]]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", ""]
    assert [view(lake, database) for database in databases] == expected
    files = sorted(path for path in lake.rglob("*"))
    assert archive(lake, "--db", databases[2], "--keep", "0", "--shard", "north") == 74
    assert "choose another --shard" in capsys.readouterr().err
    assert sorted(path for path in lake.rglob("*")) == files
    assert view(lake, databases[2]) == expected[2]
    assert archive(lake, "--db", databases[2], "--keep", "0", "--shard", "east") == 0
    assert archive(lake, "--db", databases[2], "--keep", "0", "--shard", "west") == 78
    assert archive(lake, "--check") == 0


# --- which days -------------------------------------------------------------------------------------------------------


def test_days_that_are_kept_not_over_or_have_an_open_run_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, lake = tmp_path / "x.db", tmp_path / "lake"
    today = datetime.now(UTC).date()
    fill(database, markets=3, days=5, runs_per_day=2, first_day=today - timedelta(days=4))
    assert archive(lake, "--db", database) == 0
    assert rows(database, "SELECT * FROM archived_days") == []
    change(database, "UPDATE runs SET status = 'running' WHERE run_id = 4")
    assert archive(lake, "--db", database, "--keep", "1", "--dry-run") == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"{today - timedelta(days=4)}: part 1: 2 runs")
    assert output.err == f"{today - timedelta(days=3)}: not archived: run 4 is not finished\n"
    assert not (lake / "runs").exists()
    change(database, "UPDATE runs SET status = 'failed' WHERE run_id = 4")
    assert archive(lake, "--db", database, "--keep", "1") == 0
    assert [row["day"] for row in rows(database, "SELECT day FROM archived_days")] == [
        str(today - timedelta(days=days)) for days in ((4, 3, 2) if datetime.now(UTC).hour >= 2 else (4, 3))
    ]


def test_archived_rows_stay_when_asked_and_go_later(sample: Path, tmp_path: Path) -> None:
    before = everything(sample)
    assert archive(tmp_path / "lake", "--db", sample, "--no-prune") == 0
    assert everything(sample) == before
    assert archive(tmp_path / "lake", "--db", sample, "--shrink") == 0
    assert rows(sample, "SELECT count(*) AS n FROM snapshots") == [{"n": 0}]
    assert rows(sample, "SELECT parts FROM archived_days") == [{"parts": 1}, {"parts": 1}]
    assert rows(sample, "PRAGMA freelist_count") == [{"freelist_count": 0}]


def test_row_ids_survive_a_vacuum(sample: Path) -> None:
    """The rule for posts and failures counts on it, as their tables have no id of their own."""
    change(sample, "DELETE FROM tweets WHERE rowid < 7", "DELETE FROM failures WHERE rowid = 1")
    ids = "SELECT (SELECT sum(rowid) FROM tweets) AS tweets, (SELECT sum(rowid) FROM failures) AS failures"
    before = rows(sample, ids)
    change(sample, "VACUUM")
    assert rows(sample, ids) == before


# --- what can be wrong ------------------------------------------------------------------------------------------------


def test_check_names_what_was_changed_or_lost(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = tmp_path / "lake"
    archive(lake, "--db", sample, "--shard", "north")
    changed, lost = lake / "books/date=2026-11-01/north.parquet", lake / "runs/date=2026-11-02/north.parquet"
    content = bytearray(changed.read_bytes())
    content[100] ^= 1
    changed.write_bytes(content)
    lost.unlink()
    assert archive(lake, "--check") == 74
    errors = capsys.readouterr().err
    assert "books/date=2026-11-01/north.parquet: was changed" in errors
    assert "runs/date=2026-11-02/north.parquet: is lost" in errors
    assert "2 of 14 files" in errors
    assert archive(lake, "--restore", DAY, "--db", tmp_path / "new.db") == 74
    assert not (tmp_path / "new.db").exists()


def test_a_lake_that_cannot_be_is_said_and_costs_nothing(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(sample)
    (tmp_path / "file").write_text("")
    (tmp_path / "text.db").write_text("no database" * 1_000)
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (74, "is no folder", (tmp_path / "file", "--db", sample)),
        (74, "cannot open", (tmp_path / "file" / "lake", "--db", sample)),
        (74, "cannot read", (tmp_path / "lake", "--db", tmp_path / "none.db")),
        (74, "cannot read", (tmp_path / "lake", "--db", tmp_path / "text.db")),
        (78, "LAKE: must be", ("ftp://host/lake", "--db", sample)),
        *(
            (78, "LAKE: must be", (lake, "--db", sample))
            for lake in ("", " ", "s3:", "s3://", "s3:/bucket/lake", "gs://")
        ),
        (78, "LAKE: must be", ("s3://key:secret@bucket/lake", "--db", sample)),
        (74, "there is no such folder", (tmp_path / "none", "--check")),
        (74, "exists", (tmp_path / "lake", "--restore", DAY, "--db", sample)),
        (74, "is not there", (tmp_path, "--restore", DAY, "--db", tmp_path / "new.db")),
    ]
    for code, text, args in cases:
        assert (archive(*args), args) == (code, args)
        error = capsys.readouterr().err
        assert text in error
        assert "secret" not in error
        assert error.count("\n") == 1
    assert everything(sample) == before
    assert rows(sample, "SELECT * FROM archived_days") == []


def test_a_disk_that_fills_deletes_nothing(tmp_path: Path) -> None:
    sample = tmp_path / "x.db"
    fill(sample, markets=400, days=1, runs_per_day=6)
    before = everything(sample)
    limited = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.argv = sys.argv[1:]
runpy.run_path({COMMAND!r}, run_name="__main__")
"""
    args = [sys.executable, "-c", limited, COMMAND, str(tmp_path / "lake"), "--db", str(sample)]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(sample) == before
    assert not list((tmp_path / "lake").glob("_manifest/**/*.json"))
    assert archive(tmp_path / "lake", "--db", sample) == 0


def test_other_versions_are_refused(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = tmp_path / "lake"
    change(sample, "PRAGMA user_version = 3")
    assert archive(lake, "--db", sample) == 74
    assert "has schema 3" in capsys.readouterr().err
    change(sample, f"PRAGMA user_version = {ac.SCHEMA_VERSION}")
    assert archive(lake, "--db", sample, "--no-prune") == 0
    for path in lake.glob("_manifest/*/*.json"):
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    change(sample, "DELETE FROM archived_days")
    before = everything(sample)
    for args in (("--db", str(sample)), ("--check",), ("--restore", DAY, "--db", str(tmp_path / "new.db"))):
        capsys.readouterr()
        assert archive(lake, *args) == 74
        assert "was written by a newer version" in capsys.readouterr().err
    assert everything(sample) == before


def test_a_day_that_the_lake_has_otherwise_is_not_deleted(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file from a backup, or one that was edited: the manifest there tells of other rows."""
    archive(tmp_path / "lake", "--db", sample, "--no-prune")
    change(sample, "DELETE FROM archived_days", "UPDATE snapshots SET price_yes = 0.123 WHERE id = 5")
    before = everything(sample)
    assert archive(tmp_path / "lake", "--db", sample) == 74
    assert "tells of other snapshots" in capsys.readouterr().err
    assert everything(sample) == before


def test_one_archive_at_a_time_and_none_while_the_file_is_held(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ac.locked(sample.with_name(f"{sample.name}.archiving")):
        assert archive(tmp_path / "lake", "--db", sample) == 75
    monkeypatch.setitem(script()["main"].__globals__, "PATIENCE_S", 0.1)
    with ac.locked(sample):
        assert archive(tmp_path / "lake", "--db", sample) == 75
    assert archive(tmp_path / "lake", "--db", sample) == 0


def test_without_its_packages_it_names_the_extra(sample: Path, tmp_path: Path) -> None:
    without = f"""
import runpy, sys
sys.modules["pyarrow"] = None
sys.argv = sys.argv[1:]
runpy.run_path({COMMAND!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", without, COMMAND, str(tmp_path / "lake"), "--db", str(sample)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "[archive]" in done.stderr


@pytest.mark.parametrize(
    "args", [("--restore", "1st"), ("--restore", DAY), ("--shard", "a/b"), ("--keep", "-1"), ("--check", "--dry-run")]
)
def test_a_bad_command_line_is_refused(args: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        archive(tmp_path / "lake", *args)
    assert stopped.value.code == 2


# --- object storage ---------------------------------------------------------------------------------------------------


def test_object_storage_holds_the_same(
    sample: Path, tmp_path: Path, bucket: str, s3_server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = view(tmp_path, sample)
    lake = f"s3://{bucket}/lake"
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    copy = download(bucket, s3_server.endpoint, tmp_path / "copy")
    assert view(copy, sample) == expected
    assert archive(lake, "--check") == 0
    assert archive(lake, "--db", tmp_path / "new.db", "--restore", DAY) == 0
    other = tmp_path / "other.db"
    fill(other, markets=2, days=1, runs_per_day=2)
    (shard,) = rows(sample, "SELECT shard FROM lake")
    assert archive(lake, "--db", other, "--shard", shard["shard"]) == 74
    written = "".join(path.read_text() for path in copy.rglob("*.json"))
    output = capfd.readouterr()
    for secret in (KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in output.out + output.err + written


def test_a_bucket_that_is_not_there_or_does_not_answer_is_said(
    sample: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(sample)
    assert archive(f"s3://{bucket}-none/lake", "--db", sample) == 74
    assert "NoSuchBucket" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(
        script()["main"].__globals__, "RETRY", {"max_retries": 1, "retry_timeout": timedelta(seconds=2)}
    )
    assert archive(f"s3://{bucket}/lake", "--db", sample) == 74
    error = capsys.readouterr().err
    assert "cannot" in error
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in error
    assert everything(sample) == before


@pytest.mark.slow
def test_a_network_that_goes_in_the_middle_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "x.db"
    fill(database, markets=800, days=1)
    before = everything(database)
    with serving() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        process = start(f"s3://{server.make_bucket()}/lake", database)
        while not (tmp_path / "x.db.archive" / "books.parquet").exists():
            assert process.poll() is None
            time.sleep(0.01)
        server.process.kill()
        _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors.count("\n")) == (74, 1)
    assert "cannot write" in errors or "cannot read" in errors
    assert everything(database) == before
    assert not (tmp_path / "x.db.archive").exists()
    assert archive(tmp_path / "lake", "--db", database) == 0


# --- reading ----------------------------------------------------------------------------------------------------------


def true_depth(*databases: Path) -> dict[tuple[str | None, str], float]:
    """Return the depth within 2 cents by category and day from the files themselves."""
    total: dict[tuple[str | None, str], float] = {}
    for database in databases:
        for row in rows(
            database,
            "SELECT bids, substr(b.timestamp, 1, 10) AS day, category FROM books AS b JOIN markets USING (market_id)",
        ):
            levels = json.loads(row["bids"])
            near = sum(size for price, size in levels if round(price, 4) >= round(levels[0][0] - 0.02, 4))
            total[row["category"], row["day"]] = total.get((row["category"], row["day"]), 0.0) + near
    return total


@pytest.fixture
def two_shards(tmp_path: Path) -> list[Path]:
    """Two files of two days."""
    databases = [tmp_path / "north.db", tmp_path / "south.db"]
    for seed, database in enumerate(databases):
        fill(database, markets=30, days=2, runs_per_day=4, seed=seed)
    return databases


def test_the_examples_for_one_machine(two_shards: list[Path], tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    expected = true_depth(*two_shards)
    prices = rows(
        two_shards[0],
        f"SELECT price_yes FROM snapshots WHERE market_id = '900003' AND timestamp < '{DAY}~' ORDER BY timestamp",
    )
    for database in two_shards:
        assert archive(lake, "--db", database, "--shard", database.stem) == 0
    by_duckdb = {(category, str(day)): depth for category, day, depth in documented()["depth_by_duckdb"](lake)}
    assert by_duckdb == pytest.approx(expected)
    by_polars = {
        (row["category"], str(row["date"])): row["depth"] for row in documented()["depth_by_polars"](lake).to_dicts()
    }
    assert by_polars == pytest.approx(expected)
    of_north = documented()["prices_of"](lake, "900003", DAY)
    assert list(of_north[of_north.shard == "north"].price_yes) == [row["price_yes"] for row in prices]
    files = documented()["finished_files"](lake, "books")
    assert len(files) == 4
    assert all(os.path.exists(path) for path in files)  # noqa: PTH110


@pytest.mark.slow
def test_the_example_for_many_machines(two_shards: list[Path], bucket: str, s3_server: Server) -> None:
    """Two worker processes over object storage find what the files have."""
    pytest.importorskip("distributed")
    expected = true_depth(*two_shards)
    for database in two_shards:
        assert archive(f"s3://{bucket}/lake", "--db", database, "--shard", database.stem) == 0
    program = two_shards[0].with_name("depth.py")
    program.write_text(
        "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL))
        + f"""
import json
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        found = depth_by_dask(client, "{bucket}/lake", "{s3_server.endpoint}")
        print(json.dumps([[category, day, depth] for (category, day), depth in found.items()]))
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {(category, day): depth for category, day, depth in json.loads(done.stdout)} == pytest.approx(expected)


# --- beside a collector -----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_service_beside_it_misses_no_tick_and_no_reader_waits(exchange: FakePolymarket, tmp_path: Path) -> None:
    """An interval of a second, and a day of 1.5 million rows on its way into the lake."""
    database = tmp_path / "polymarket_data.db"
    fill(database, markets=15_700, days=1, levels=10)
    change(database, "UPDATE markets SET resolved = 1")  # the exchange of this test does not know them
    env = (
        os.environ | exchange.environment | {"POLYMARKET_DB": str(database), "COLLECTOR_INTERVAL_MINUTES": str(1 / 60)}
    )
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROJECT / "collector-service.py")),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    archiving = await asyncio.create_subprocess_exec(
        *(sys.executable, COMMAND, str(tmp_path / "lake"), "--db", str(database)), stderr=asyncio.subprocess.PIPE
    )
    waits = []
    while archiving.returncode is None:
        began = time.perf_counter()
        await asyncio.to_thread(rows, database, "SELECT count(*) FROM latest_snapshots WHERE market_id > '9'")
        waits.append(time.perf_counter() - began)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(archiving.wait()), 0.1)
    service.terminate()
    _, said = await service.communicate()
    assert archiving.returncode == 0, (await archiving.communicate())[1]
    assert service.returncode == 0
    ticks = [int(found) for found in re.findall(r"(\d+) ticks missed", said.decode())]
    assert len(ticks) > 5
    assert "in use by" not in said.decode()
    ends = [row["status"] for row in rows(database, "SELECT status FROM runs WHERE run_id > 96 ORDER BY run_id")]
    assert set(ends[:-1]) == {"complete"}  # the last one may have been stopped
    assert rows(database, f"SELECT count(*) AS n FROM snapshots WHERE timestamp < '{DAY}~'") == [{"n": 0}]
    assert rows(database, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    report = f"{len(ticks)} ticks, {ticks[-1]} missed; reader {max(waits):.3f} s at most"
    print(report)  # noqa: T201


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_every_option() -> None:
    parser: argparse.ArgumentParser = script()["build_parser"]()
    options = [action for action in parser._actions if action.dest != "help"]
    named = [f"{(action.option_strings or [''])[0]} {action.metavar or ''}".strip() for action in options]
    table = DOCUMENT.partition("| option |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == named
