"""What the tests of the archive share: a file with finished days, an S3 server on loopback, and the readers' view."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import contextlib
import importlib.util
import json
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
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import PROJECT, rows
from sample_database import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MISSING = [name for name in ("obstore", "polars", "pyarrow") if importlib.util.find_spec(name) is None]
# one process loads the libraries and has the server
OF_THE_ARCHIVE = [
    pytest.mark.xdist_group("archive"),
    pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)}"),
]
COMMAND = str(PROJECT / "collector-archive.py")
DOCUMENT = (PROJECT / "docs" / "lake.md").read_text()
LIVE = ("streams", "book_changes", "live_trades", "live_gaps")
TABLES = (
    "snapshots",
    "books",
    "runs",
    "failures",
    "tweets",
    "hype_signals",
    "past_prices",
    "trades",
    "selections",
    *LIVE,
)
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


def names_in(bucket: str, endpoint: str) -> set[str]:
    """Return the names of what is in the lake in *bucket*."""
    import pyarrow.fs  # noqa: PLC0415

    everywhere = pyarrow.fs.FileSelector(f"{bucket}/lake", allow_not_found=True, recursive=True)
    found = documented()["open_store"](endpoint).get_file_info(everywhere)
    return {file.path.removeprefix(f"{bucket}/lake/") for file in found if file.is_file}


def everything(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of a file that a lake keeps, in an order that does not depend on when they were stored."""
    tables = {}
    for table in (*TABLES, "markets"):
        tables[table] = sorted(rows(path, f"SELECT * FROM {table}"), key=lambda row: str(list(row.values())))
    return tables


def lake_files(lake: Path, table: str, day: str = DAY) -> list[Path]:
    """Return the files of a table and a day."""
    return sorted((lake / table / f"date={day}").iterdir())


def change(database: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# --- exactly once -----------------------------------------------------------------------------------------------------


def start(lake: str, database: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, COMMAND, lake, "--db", str(database), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_and_look(
    lake: str, database: Path, kills: int, files: Callable[[], set[str]], fetch: Callable[[], Path]
) -> None:
    """Kill the command again and again, each time some steps later, look at every row after each kill, and let it end.

    Args:
        lake: its address.
        database: what is archived.
        kills: how many, unless it ends before.
        files: the names of what is in the lake.
        fetch: a folder with all that is in the lake.
    """
    rows_left = "SELECT (SELECT count(*) FROM snapshots) AS snapshots, (SELECT count(*) FROM books) AS books"
    dangling = "SELECT count(*) AS n FROM snapshots WHERE book_id NOT IN (SELECT book_id FROM books)"
    unfinished = database.with_name(f"{database.name}.archive")  # what goes into a bucket is made there

    def step() -> tuple[object, ...]:
        time.sleep(0.005)
        return files(), sorted(unfinished.glob("*")), rows(database, rows_left)

    expected, (before,) = view(fetch(), database), rows(database, rows_left)
    places: list[object] = []  # where it was killed
    wanted, is_written = 1, False  # steps before the next kill; whether the day is in the lake
    while len(places) < kills:
        process = start(lake, database, "--keep", "0")
        last, done = step(), 0
        while process.poll() is None and done < wanted:
            now = step()
            last, done = now, done + (now != last)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in {0, -signal.SIGKILL}, errors
        assert view(fetch(), database) == expected
        assert rows(database, dangling) == [{"n": 0}]
        if process.returncode == 0:
            break
        places.append(last)
        was_written = is_written
        is_written = any(name.startswith("_manifest") for name in files())
        wanted = 1 if is_written > was_written else wanted + (1 if is_written else 3)  # and then among the deletions
    process = start(lake, database, "--keep", "0")
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    assert len(places) > 1  # on a busy machine several steps may look like one
    assert view(fetch(), database) == expected
    (after,) = rows(database, rows_left)
    assert after["snapshots"] == 0
    assert after["books"] < before["books"]
    assert archive(lake, "--check") == 0


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
