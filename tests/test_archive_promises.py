"""covers: every row is in the file or in the lake, and once, whatever ends the archive and whoever else archives."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from conftest import PROJECT
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from lakes import OF_THE_ARCHIVE
from sample_database import make_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = OF_THE_ARCHIVE
DAYS: Final = ("2026-11-01", "2026-11-02", "2026-11-03")
# by table: what tells its rows apart, the id by which the rule goes, and the time that decides on the day
ROWS: Final = {
    "snapshots": (("id", "market_id", "timestamp", "price_yes"), "id", "timestamp"),
    "books": (("book_id", "market_id", "timestamp"), "book_id", "timestamp"),
    "runs": (("run_id", "started_at", "requests"), "run_id", "started_at"),
    "hype_signals": (("id", "market_id", "timestamp", "tweet_count"), "id", "timestamp"),
    "tweets": (("tweet_id", "created_at"), "rowid", "created_at"),
    "failures": (
        ("run_id", "reason"),
        "rowid",
        "(SELECT started_at FROM runs WHERE runs.run_id = failures.run_id)",
    ),
}
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  a kill needs no disk
Rows = dict[str, Counter[tuple[str, ...]]]


class Commands:
    """Runs the command in processes that end or stop where a test wants it."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._process = subprocess.Popen(
            [sys.executable, str(PROJECT / "tests" / "killable.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: object, what: str | None = None, call: int = 0, **more: object) -> dict[str, int]:
        """Run the command, do *what* at a call, and return its exit code, or its process where it has stopped."""
        request = {"args": [str(arg) for arg in args], "what": what, "call": call, "buckets": None}
        return self._ask(request | {"output": str(self._output)} | more)

    def go_on(self, process: int) -> int:
        """Let a process that has stopped go on, and return its exit code."""
        return self._ask({"go_on": process})["code"]

    def _ask(self, request: dict[str, object]) -> dict[str, int]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer

    def said(self) -> str:
        return self._output.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """The process that makes others."""
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


# --- what is in a file and in a lake


def rows_of_file(path: Path, *, which: str = "") -> Rows:
    """Return the rows of a file, or those that are by the documented rule not in the lake (which='rest')."""
    found: Rows = {}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for table, (columns, number, time) in ROWS.items():
            rest = f"""
                LEFT JOIN (SELECT day, max({table}) AS upto FROM archived_days GROUP BY day)
                ON day = substr({time}, 1, 10)
                WHERE day IS NULL OR {table}.{number} > upto"""
            query = f"SELECT {', '.join(columns)} FROM {table} {rest if which else ''}"
            found[table] = Counter(tuple(map(str, row)) for row in connection.execute(query))
    return found


def manifests_of(lake: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the manifests of a lake by day, shard and part."""
    found = [json.loads(path.read_text()) for path in lake.glob("_manifest/date=*/*.json")]
    return {(one["day"], one["shard"], one["part"]): one for one in found}


def rows_of_lake(lake: Path, manifest: dict[str, Any], table: str) -> list[tuple[str, ...]]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    if table not in manifest["tables"]:
        return []
    stored = pq.read_table(lake / manifest["tables"][table]["file"], partitioning=None)
    columns = ROWS[table][0] if table in ROWS else ("market_id",)
    cells = [stored.column(name).to_pylist() for name in columns]
    return [tuple(str(cell)[:19] for cell in row) for row in zip(*cells, strict=True)]


def assert_once(lake: Path) -> None:
    """No id is twice under one shard, no market twice on a day."""
    manifests = manifests_of(lake)
    for table in ("snapshots", "books", "runs", "hype_signals"):
        ids = Counter(
            (shard, row[0]) for (_, shard, _), one in manifests.items() for row in rows_of_lake(lake, one, table)
        )
        assert [key for key, count in ids.items() if count > 1] == [], table
    markets = Counter(
        (day, shard, row[0]) for (day, shard, _), one in manifests.items() for row in rows_of_lake(lake, one, "markets")
    )
    assert [key for key, count in markets.items() if count > 1] == []


def assert_each_row(path: Path, lake: Path, truth: Rows) -> None:
    """Every row that *path* ever had is found once by whoever reads lake and file by the rule."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        noted = connection.execute("SELECT day, shard, parts FROM archived_days").fetchall()
    manifests = manifests_of(lake) if noted else {}
    found = rows_of_file(path, which="rest")
    for day, shard, parts in noted:
        for part in range(1, parts + 1):
            for table, rows in found.items():
                rows.update(rows_of_lake(lake, manifests[day, shard, part], table))
    for table, rows in truth.items():
        assert {row: found[table][row] for row in rows} == dict.fromkeys(rows, 1), (table, path.name)


# --- files that go on by themselves


class File:
    """A collector's file, and all rows that it ever had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.truth: Rows = {table: Counter() for table in ROWS}
        self.lake = ""  # where days of it are
        with contextlib.closing(sqlite3.connect(path)) as connection:
            make_schema(connection)
            connection.executemany("INSERT INTO markets (market_id) VALUES (?)", [("1",), ("2",), ("3",)])
            connection.commit()

    def collect(self, day: str, numbers: Iterator[int]) -> None:
        """Store what a run stores, late or not."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            number = next(numbers)
            time = f"{day} {number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}"
            run = connection.execute(
                "INSERT INTO runs (started_at, status, requests) VALUES (?, 'complete', ?)", (time, number)
            ).lastrowid
            for market in ("1", "2", "3")[: 1 + number % 3]:
                book = connection.execute(
                    "INSERT INTO books (market_id, timestamp, bids, asks) VALUES (?, ?, '[[0.5,7]]', '[]')",
                    (market, time),
                ).lastrowid
                connection.execute(
                    "INSERT INTO snapshots (market_id, timestamp, price_yes, book_id, run_id) VALUES (?, ?, ?, ?, ?)",
                    (market, time, number + 0.5, book, run),
                )
            connection.execute("INSERT INTO failures (run_id, stage, reason) VALUES (?, 'book', ?)", (run, str(number)))
            connection.execute("INSERT INTO tweets (tweet_id, created_at) VALUES (?, ?)", (str(number), time))
            connection.execute(
                "INSERT INTO hype_signals (market_id, timestamp, tweet_count) VALUES ('1', ?, ?)", (time, number)
            )
            connection.commit()
        for table, rows in rows_of_file(self.path).items():
            self.truth[table] |= rows

    def become(self, other: File) -> None:
        """Be replaced by a copy of *other*: a clone, or the file itself as it was."""
        shutil.copy(other.path, self.path)
        for end in ("-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            if other.path.with_name(other.path.name + end).exists():
                shutil.copy(other.path.with_name(other.path.name + end), self.path.with_name(self.path.name + end))
        self.truth = {table: Counter(rows) for table, rows in other.truth.items()}
        self.lake = other.lake

    def value(self, query: str) -> Any:  # noqa: ANN401
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchone()[0]


class Histories(RuleBasedStateMachine):
    """Two files and their backups, two lakes and a copy, and what happens to them."""

    commands: Commands

    @initialize(is_stored_in_objects=st.booleans())
    def begin(self, *, is_stored_in_objects: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.buckets = str(self.folder) if is_stored_in_objects else None
        self.numbers = itertools.count(1)
        self.files = [File(self.folder / f"{name}.db") for name in ("a", "b")]
        self.backups = [File(self.folder / f"{name}.backup") for name in ("a", "b")]
        for file in self.files:
            file.collect(DAYS[0], self.numbers)
        assert self.run(0, "lake") == {"code": 0}  # so that copies have its name
        self.files[0].lake = "lake"
        self.files[1].become(self.files[0])

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, lake: str) -> str:
        return f"s3://{lake}" if self.buckets else str(self.folder / lake)

    def run(self, number: int, lake: str, *args: str, **how: Any) -> dict[str, int]:  # noqa: ANN401
        file = self.files[number]
        return self.commands.run(
            *(self.address(lake), "--db", file.path, "--keep", "0", *args), buckets=self.buckets, **how
        )

    def look(self, lake: str, *numbers: int) -> None:
        """Hold the promises of all that is there, after *lake* was used by the files of these numbers."""
        for number in numbers:
            file = self.files[number]
            file.lake = (
                lake if file.value("SELECT count(*) FROM archived_days") and self.has_all(file, lake) else file.lake
            )
        for path in self.folder.iterdir():
            if (path / "_manifest").exists():
                assert_once(path)
        for file in self.files:
            assert_each_row(file.path, self.folder / file.lake, file.truth)

    def has_all(self, file: File, lake: str) -> bool:
        with contextlib.closing(sqlite3.connect(file.path)) as connection:
            noted = connection.execute("SELECT day, shard, parts FROM archived_days").fetchall()
        return all((day, shard, parts) in manifests_of(self.folder / lake) for day, shard, parts in noted)

    @rule(number=st.integers(0, 1), days=st.lists(st.sampled_from(DAYS), min_size=1, max_size=3))
    def collect(self, number: int, days: list[str]) -> None:
        for day in days:
            self.files[number].collect(day, self.numbers)

    @rule(
        number=st.integers(0, 1),
        lake=st.sampled_from(["lake", "lake", "lake", "other", "copy"]),
        what=st.sampled_from([None, None, "kill", "kill", "interrupt", "lose"]),
        call=st.integers(0, 400),
        args=st.sampled_from([(), (), (), ("--no-prune",), ("--shard", "x"), ("--shard", "y"), ("--forget-lake",)]),
    )
    def archive(self, number: int, lake: str, what: str | None, call: int, args: tuple[str, ...]) -> None:
        if lake == "copy" and not (self.folder / lake).exists():
            return
        code = self.run(number, lake, *args, what=what, call=call)["code"]
        assert code in ({0, 74, 130, 137} if what else {0, 74}), self.commands.said()
        self.look(lake, number)

    @rule(number=st.integers(0, 1), call=st.integers(0, 300))
    def archive_while_a_clone_stands_still(self, number: int, call: int) -> None:
        answer = self.run(number, "lake", what="stop", call=call)
        other = self.run(1 - number, "lake")["code"]
        code = self.commands.go_on(answer["stopped"]) if "stopped" in answer else answer["code"]
        assert {code, other} <= {0, 74}, self.commands.said()
        self.look("lake", 0, 1)

    @rule(number=st.integers(0, 1))
    def archive_while_the_disk_is_gone(self, number: int) -> None:
        file = self.files[number]
        if file.lake and (self.folder / file.lake).exists():
            before = rows_of_file(file.path)
            (self.folder / file.lake).rename(self.folder / "away")
            assert self.run(number, file.lake)["code"] == 74
            shutil.rmtree(self.folder / file.lake, ignore_errors=True)
            (self.folder / "away").rename(self.folder / file.lake)
            assert rows_of_file(file.path) == before

    @rule(number=st.integers(0, 1), days=st.lists(st.sampled_from(DAYS), min_size=2, max_size=2))
    def clone(self, number: int, days: list[str]) -> None:
        """Both go on by themselves."""
        self.files[1 - number].become(self.files[number])
        for file, day in zip(self.files, days, strict=True):
            file.collect(day, self.numbers)

    @rule(number=st.integers(0, 1))
    def back_up(self, number: int) -> None:
        self.backups[number].become(self.files[number])

    @rule(number=st.integers(0, 1), day=st.sampled_from(DAYS))
    def replace_by_the_backup(self, number: int, day: str) -> None:
        if self.backups[number].truth["runs"]:
            self.files[number].become(self.backups[number])
            self.files[number].collect(day, self.numbers)

    @rule(number=st.integers(0, 1), day=st.sampled_from(DAYS))
    def restore(self, number: int, day: str) -> None:
        """The disk of the file is lost, and a day is fetched from the lake into its place."""
        lake = self.files[number].lake
        new = self.folder / "new.db"
        args = (self.address(lake), "--restore", day, "--db", new)
        if lake and self.commands.run(*args, buckets=self.buckets)["code"] == 0:
            new.replace(self.files[number].path)
            for end in ("-wal", "-shm"):
                self.files[number].path.with_name(self.files[number].path.name + end).unlink(missing_ok=True)
            self.files[number].truth = rows_of_file(self.files[number].path)
            self.look(lake)

    @rule()
    def copy_the_lake(self) -> None:
        if (self.folder / "lake").exists() and not any(file.lake == "copy" for file in (*self.files, *self.backups)):
            shutil.rmtree(self.folder / "copy", ignore_errors=True)
            shutil.copytree(self.folder / "lake", self.folder / "copy")


def test_each_row_is_once_in_file_or_lake_over_random_histories(commands: Commands) -> None:
    Histories.commands = commands
    few = settings(max_examples=4, stateful_step_count=10, derandomize=True, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Histories, settings=few)


@pytest.mark.slow
def test_each_row_is_once_in_file_or_lake_over_many_histories(commands: Commands) -> None:
    Histories.commands = commands
    many = settings(max_examples=8, stateful_step_count=20, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Histories, settings=many)


@pytest.mark.slow
def test_each_row_is_once_in_file_or_lake_wherever_it_is_killed(commands: Commands) -> None:
    """SIGKILL at random moments, in a folder and in object storage; a run that nobody kills ends it."""
    rng = random.Random(5)
    numbers = itertools.count(1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        for buckets in (None, folder):
            lake = Path(folder, "stored" if buckets else "lake")
            address = "s3://stored" if buckets else lake
            file = File(Path(folder, f"{lake.name}.db"))
            for _ in range(100):
                file.collect(rng.choice(DAYS), numbers)
                args = (address, "--db", file.path, "--keep", "0")
                commands.run(*args, buckets=buckets, kill_after_s=rng.uniform(0.02, 0.25))
                assert_each_row(file.path, lake, file.truth)
            assert commands.run(*args, buckets=buckets) == {"code": 0}, commands.said()
            assert_each_row(file.path, lake, file.truth)
            assert_once(lake)
            assert file.value("SELECT count(*) FROM snapshots") == 0
            assert commands.run(address, "--check", "--db", file.path, buckets=buckets) == {"code": 0}, commands.said()
