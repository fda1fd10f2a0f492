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
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from killable import KILLED, InProcess, Processes
from lakes import OF_THE_ARCHIVE, script
from sample_database import make_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = OF_THE_ARCHIVE
DAYS: Final = ("2026-11-01", "2026-11-02")
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


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The process that makes others."""
    made = Processes(tmp_path_factory.mktemp("processes"))
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
    if table not in manifest["tables"]:
        return []
    return rows_of_parquet(lake / manifest["tables"][table]["file"], table)


@cache
def rows_of_parquet(path: Path, table: str) -> list[tuple[str, ...]]:
    """Return the rows of a file, whose name nothing else ever has."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    stored = pq.read_table(path, partitioning=None)
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


def assert_tidy(lake: Path) -> None:
    """Of attempts at what has a manifest nothing is left beside what that manifest names."""
    manifests = manifests_of(lake)
    named = {described["file"] for one in manifests.values() for described in one["tables"].values()}
    attempts = {
        str(path.relative_to(lake)): (path.parent.name.removeprefix("date="), path.stem)
        for path in lake.glob("[a-z]*/date=*/*.parquet")
    } | {path.name: (path.name[:10], path.name[11:]) for path in lake.glob("_staging/*")}
    left = []
    for name, (day, attempt) in attempts.items():
        shard, _, part = attempt[:-17].partition(".")
        if name not in named and (day, shard, int(part or 1)) in manifests:
            left.append(name)
    assert left == []


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
            connection.executemany("INSERT INTO markets (market_id) VALUES (?)", [("1",), ("2",)])
            connection.commit()

    def collect(self, day: str, numbers: Iterator[int]) -> None:
        """Store what a run stores, late or not."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            number = next(numbers)
            time = f"{day} {number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}"
            run = connection.execute(
                "INSERT INTO runs (started_at, status, requests) VALUES (?, 'complete', ?)", (time, number)
            ).lastrowid
            for market in ("1", "2")[: 1 + number % 2]:
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
    """Two files and their backups, two lakes and a copy, and what happens to them.

    It finds within seconds ids that are given twice under one name, rows that count as archived though the lake has
    others, files that an attempt leaves, and markets that are twice in a day. It does not show that the lake is asked
    again before a day is deleted, for nothing here changes a lake, nor what a power cut leaves.
    """

    commands: InProcess | Processes

    @initialize(is_stored_in_objects=st.booleans())
    def begin(self, *, is_stored_in_objects: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.buckets = str(self.folder) if is_stored_in_objects else None
        self.numbers = itertools.count(1)
        self.files = [File(self.folder / f"{name}.db") for name in ("a", "b")]
        self.backups = [File(self.folder / f"{name}.backup") for name in ("a", "b")]
        self.killed: set[int] = set()  # files whose archive may have left something in the lake
        self.is_left = False  # and nobody comes back to that
        self.files[0].collect(DAYS[0], self.numbers)
        assert self.run(0, "lake") == 0  # so that copies have its name
        self.files[0].lake = "lake"
        self.files[1].become(self.files[0])

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, lake: str) -> str:
        return f"s3://{lake}" if self.buckets else str(self.folder / lake)

    def run(self, number: int, lake: str, *args: str, **how: Any) -> int:  # noqa: ANN401
        file = self.files[number]
        code = self.commands.run(
            *(self.address(lake), "--db", file.path, "--keep", "0", *args), buckets=self.buckets, **how
        )
        self.killed = self.killed | {number} if code == KILLED else self.killed - {number}
        self.is_left |= number in self.killed and "--shard" in args
        return code

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
                if not self.killed and not self.is_left:
                    assert_tidy(path)
        for file in self.files:
            assert_each_row(file.path, self.folder / file.lake, file.truth)

    def has_all(self, file: File, lake: str) -> bool:
        with contextlib.closing(sqlite3.connect(file.path)) as connection:
            noted = connection.execute("SELECT day, shard, parts FROM archived_days").fetchall()
        return all((day, shard, parts) in manifests_of(self.folder / lake) for day, shard, parts in noted)

    def replace(self, number: int, other: File) -> None:
        """Let a file be replaced; what its archive has left is nobody's."""
        self.is_left |= number in self.killed
        self.killed.discard(number)
        self.files[number].become(other)

    @rule(number=st.integers(0, 1), days=st.lists(st.sampled_from(DAYS), min_size=1, max_size=2))
    def collect(self, number: int, days: list[str]) -> None:
        for day in days:
            self.files[number].collect(day, self.numbers)

    @rule(number=st.integers(0, 1))
    def archive(self, number: int) -> None:
        code = self.run(number, self.files[number].lake or "lake")
        assert code in {0, 74}
        self.look(self.files[number].lake or "lake", number)

    @rule(
        number=st.integers(0, 1),
        lake=st.sampled_from(["lake", "lake", "other", "copy"]),
        args=st.sampled_from([(), ("--no-prune",), ("--shard", "x"), ("--shard", "y"), ("--forget-lake",)]),
    )
    def archive_otherwise(self, number: int, lake: str, args: tuple[str, ...]) -> None:
        if lake == "copy" and not (self.folder / lake).exists():
            return
        assert self.run(number, lake, *args) in {0, 74}
        self.look(lake, number)

    @rule(
        number=st.integers(0, 1),
        day=st.sampled_from(DAYS),
        what=st.sampled_from(["kill", "kill", "interrupt", "lose"]),
        call=st.one_of(st.sampled_from(["put", "create", "manifest", "remove_undecided"]), st.integers(0, 300)),
    )
    def archive_to_an_end(self, number: int, day: str, what: str, call: int | str) -> None:
        """What was not in the lake is on its way there, or is being deleted, and then the file goes on."""
        file = self.files[number]
        file.collect(day, self.numbers)
        assert self.run(number, file.lake or "lake", what=what, call=call) in {0, 74, 130, KILLED}
        self.look(file.lake or "lake", number)
        file.collect(day, self.numbers)
        self.archive(number)

    @rule(
        number=st.integers(0, 1),
        day=st.sampled_from(DAYS),
        call=st.one_of(st.sampled_from(["decision", "put", "before create", "create"]), st.integers(0, 200)),
        is_equal=st.booleans(),
    )
    def archive_while_a_clone_does(self, number: int, day: str, call: int | str, *, is_equal: bool) -> None:
        self.files[number].collect(day, self.numbers)
        self.replace(1 - number, self.files[number])
        if not is_equal:
            self.files[1 - number].collect(day, self.numbers)
        others: list[int] = []
        lake = self.files[number].lake or "lake"
        code = self.run(
            number, lake, what="stop", call=call, meanwhile=lambda: others.append(self.run(1 - number, lake))
        )
        assert {code, *others} <= {0, 74}
        self.look(lake, 0, 1)

    @rule(number=st.integers(0, 1))
    def archive_while_the_disk_is_gone(self, number: int) -> None:
        file = self.files[number]
        if file.lake and (self.folder / file.lake).exists():
            before = rows_of_file(file.path)
            (self.folder / file.lake).rename(self.folder / "away")
            assert self.run(number, file.lake) == 74
            shutil.rmtree(self.folder / file.lake, ignore_errors=True)
            (self.folder / "away").rename(self.folder / file.lake)
            assert rows_of_file(file.path) == before

    @rule(number=st.integers(0, 1), days=st.lists(st.sampled_from(DAYS), min_size=2, max_size=2))
    def clone(self, number: int, days: list[str]) -> None:
        """Both go on by themselves, and archive what they have."""
        self.replace(1 - number, self.files[number])
        for file, day in zip(self.files, days, strict=True):
            file.collect(day, self.numbers)
        for one in (number, 1 - number):
            self.archive(one)

    @rule(number=st.integers(0, 1), day=st.sampled_from(DAYS))
    def get_behind(self, number: int, day: str) -> None:
        """A clone collects more of a day and archives it first; the file goes on with ids that the clone has given."""
        self.files[number].collect(day, self.numbers)
        self.replace(1 - number, self.files[number])
        self.files[1 - number].collect(day, self.numbers)
        for one in (1 - number, number):
            self.archive(one)
        self.files[number].collect(day, self.numbers)

    @rule(number=st.integers(0, 1))
    def back_up(self, number: int) -> None:
        self.backups[number].become(self.files[number])

    @rule(number=st.integers(0, 1), day=st.sampled_from(DAYS))
    def replace_by_the_backup(self, number: int, day: str) -> None:
        if self.backups[number].truth["runs"]:
            self.replace(number, self.backups[number])
            self.files[number].collect(day, self.numbers)

    @rule(number=st.integers(0, 1), day=st.sampled_from(DAYS))
    def restore(self, number: int, day: str) -> None:
        """The disk of the file is lost, and a day is fetched from the lake into its place."""
        file, new = self.files[number], self.folder / "new.db"
        args = (self.address(file.lake), "--restore", day, "--db", new)
        if file.lake and self.commands.run(*args, buckets=self.buckets) == 0:
            self.is_left |= number in self.killed
            self.killed.discard(number)
            new.replace(file.path)
            for end in ("-wal", "-shm"):
                file.path.with_name(file.path.name + end).unlink(missing_ok=True)
            file.truth = rows_of_file(file.path)
            file.collect(day, self.numbers)
            self.look(file.lake)

    @rule()
    def copy_the_lake(self) -> None:
        if (self.folder / "lake").exists() and not any(file.lake == "copy" for file in (*self.files, *self.backups)):
            shutil.rmtree(self.folder / "copy", ignore_errors=True)
            shutil.copytree(self.folder / "lake", self.folder / "copy")


def test_each_row_is_once_in_file_or_lake_over_random_histories() -> None:
    Histories.commands = InProcess(script())
    few = settings(max_examples=12, stateful_step_count=10, derandomize=True, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Histories, settings=few)


@pytest.mark.slow
def test_each_row_is_once_in_file_or_lake_over_many_histories() -> None:
    Histories.commands = InProcess(script())
    many = settings(max_examples=12, stateful_step_count=20, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Histories, settings=many)


@pytest.mark.slow
def test_each_row_is_once_in_file_or_lake_over_histories_of_processes(processes: Processes) -> None:
    Histories.commands = processes
    some = settings(max_examples=5, stateful_step_count=10, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Histories, settings=some)


@pytest.mark.slow
def test_each_row_is_once_in_file_or_lake_wherever_it_is_killed(processes: Processes) -> None:
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
                processes.run(*args, buckets=buckets, kill_after_s=rng.uniform(0.02, 0.25))
                assert_each_row(file.path, lake, file.truth)
            assert processes.run(*args, buckets=buckets) == 0
            assert_each_row(file.path, lake, file.truth)
            assert_once(lake)
            assert_tidy(lake)
            assert file.value("SELECT count(*) FROM snapshots") == 0
            assert processes.run(address, "--check", "--db", file.path, buckets=buckets) == 0
