"""covers: what is in the file: its shape, upgrades, what survives, and who may use it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from conftest import OLDER_TABLES, PROJECT, rows
from older_schemas import LANDED, Landed, script_of

from async_collector import (
    SCHEMA,
    SCHEMA_VERSION,
    Batch,
    Database,
    DatabaseBusy,
    Failure,
    Market,
    Saved,
    Snapshot,
    StorageError,
    column_comments,
    open_read_only,
)

if TYPE_CHECKING:
    from pathlib import Path

T0 = "2026-11-22 14:15:00"

# what a collector before this one and its user have left in a file
OLD_ROWS = """
    CREATE TABLE my_notes (note TEXT);
    CREATE INDEX my_index ON snapshots(timestamp);
    INSERT INTO markets (market_id, question, first_seen) VALUES ('1', 'Old?', '2025-01-01 00:00:00');
    INSERT INTO snapshots (market_id, timestamp, price_yes) VALUES ('1', '2025-01-01 00:00:00', 0.25);
    INSERT INTO snapshots (market_id, timestamp, price_yes) VALUES ('no such market', '2025-01-01 00:00:00', 0.5);
    INSERT INTO my_notes VALUES ('mine');
"""
OLD_FILE = OLDER_TABLES + OLD_ROWS


def make_file(path: Path, script: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


def market(market_id: str, **values: object) -> Market:
    fields = dict.fromkeys(Market._fields) | {"market_id": market_id, "token_id_yes": "1", "token_id_no": "2"}
    return Market(**(fields | {"first_seen": T0} | values))  # type: ignore[arg-type]


def snapshot(market_id: str, run_id: int, timestamp: str = T0, **values: object) -> Snapshot:
    fields = dict.fromkeys(Snapshot._fields) | {"market_id": market_id, "timestamp": timestamp, "run_id": run_id}
    return Snapshot(**(fields | values))  # type: ignore[arg-type]


async def opened_once(path: Path) -> None:
    async with Database.open(path):
        pass


def shape(path: Path) -> dict[str, Any]:
    """Return what every table, index and view of ours is made of; the order of columns does not count."""
    found: dict[str, Any] = {}
    for row in rows(path, "SELECT type, name, sql FROM sqlite_master WHERE name NOT GLOB 'sqlite_*'"):
        if row["type"] == "table":
            columns = rows(path, f"SELECT * FROM pragma_table_xinfo('{row['name']}')")  # noqa: S608
            found[row["name"]] = {column.pop("name"): column for column in columns if column.pop("cid") >= 0}
        elif row["sql"]:
            found[row["name"]] = row["sql"].split()
    return {name: of for name, of in found.items() if not name.startswith("my_")}


async def test_a_new_file_and_an_upgraded_old_one_have_the_same_shape(tmp_path: Path) -> None:
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    make_file(old, OLD_FILE)
    await opened_once(new)
    await opened_once(old)
    assert shape(old) == shape(new)
    assert rows(old, "PRAGMA user_version") == rows(new, "PRAGMA user_version") == [{"user_version": SCHEMA_VERSION}]


async def test_columns_indexes_and_views_that_the_user_has_added_are_no_obstacle(tmp_path: Path) -> None:
    """Those with our names become ours, the others stay."""
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    make_file(
        old,
        f"""{OLD_FILE}
        ALTER TABLE tweets ADD COLUMN LANG TEXT;
        CREATE INDEX tweets_by_time ON tweets(timestamp DESC);
        CREATE INDEX snapshots_by_time ON tweets(text);
        CREATE VIEW gaps AS SELECT 'mine';
        CREATE VIEW my_latest AS SELECT * FROM latest_snapshots;
        CREATE VIEW my_broken_view AS SELECT * FROM nowhere;
        CREATE TRIGGER my_trigger AFTER INSERT ON tweets BEGIN DELETE FROM my_notes; END;
        """,  # noqa: S608
    )
    await opened_once(new)
    await opened_once(old)
    columns = shape(old)["tweets"]
    columns["lang"] = columns.pop("LANG")
    assert shape(old) | {"tweets": columns} == shape(new)
    assert rows(old, "SELECT price_yes FROM my_latest") == [{"price_yes": 0.25}]
    kept = rows(old, "SELECT name FROM sqlite_master WHERE name LIKE 'my%' ORDER BY name")
    assert [row["name"] for row in kept] == ["my_broken_view", "my_index", "my_latest", "my_notes", "my_trigger"]


async def test_another_collectors_file_gets_whatever_column_it_lacks(tmp_path: Path) -> None:
    """All but the keys, as far as SQLite lets them be dropped; what is new is empty in the rows that are there."""
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    make_file(old, f"{OLD_FILE} INSERT INTO tweets (text) VALUES ('kalshi'); INSERT INTO hype_signals (id) VALUES (1);")  # noqa: S608
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.execute("DROP INDEX my_index")
        kept = {"id", "market_id", "timestamp", "tweet_id", "text"}
        for table in ("markets", "snapshots", "tweets", "hype_signals"):
            for column in {row["name"] for row in rows(old, f"PRAGMA table_info({table})")} - kept:
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    await opened_once(new)
    await opened_once(old)
    expected = shape(new)
    for table, column in (("markets", "first_seen"), ("tweets", "created_at")):
        expected[table][column]["dflt_value"] = (
            None  # SQLite adds no time as a default; every row that we store has one
        )
    assert shape(old) == expected
    assert rows(old, "SELECT market_id, question, first_seen, resolved, followed FROM markets") == [
        {"market_id": "1", "question": None, "first_seen": None, "resolved": 0, "followed": 1}
    ]
    async with Database.open(old) as database:
        run_id = await database.start_run(started_at=T0, min_volume=0)
        assert await database.save(Batch(run_id, [market("1")], [snapshot("1", run_id)])) == Saved(snapshots=1)


@pytest.mark.parametrize("landed", LANDED, ids=lambda landed: landed.name)
async def test_a_file_of_every_schema_that_has_landed_is_upgraded(tmp_path: Path, landed: Landed) -> None:
    new, old = tmp_path / "new.db", tmp_path / "old.db"
    post = "INSERT INTO tweets (tweet_id, text) VALUES ('1', 'kalshi');"
    make_file(old, f"{OLD_FILE} {script_of(landed)} {post} PRAGMA user_version = {landed.version};")
    await opened_once(new)
    await opened_once(old)
    assert shape(old) == shape(new)
    assert rows(old, "PRAGMA user_version") == [{"user_version": SCHEMA_VERSION}]
    assert rows(old, "SELECT tweet_id, text, run_id FROM tweets") == [
        {"tweet_id": "1", "text": "kalshi", "run_id": None}
    ]
    seen = {"market_id": "2", "last_seen": "2026-01-01 00:00:00", "snapshot_id": 3}
    assert rows(old, "SELECT * FROM seen WHERE market_id <> '1'") == ([seen] if landed.version > 1 else [])
    followed = {row["market_id"]: row["followed"] for row in rows(old, "SELECT market_id, followed FROM markets")}
    assert followed == ({"1": 1, "2": 0} if landed.version > 1 else {"1": 1}), "without a threshold nobody is followed"
    failures = rows(old, "SELECT rowid, reason, markets FROM failures")
    assert failures == landed.failures
    async with Database.open(old) as database:
        run_id = await database.start_run(started_at=T0, min_volume=0)
        await database.save(
            Batch(run_id, [market("3")], [snapshot("3", run_id)], [Failure(run_id, None, "list", "x", None)])
        )
    assert [
        row["market_id"] for row in rows(old, "SELECT market_id FROM latest_snapshots WHERE run_id = ?", run_id)
    ] == ["3"]


def test_a_changed_schema_has_a_number_of_its_own() -> None:
    """Else files of the schema before would not be upgraded; whoever changes it adds a line here."""
    digests = {
        5: "7bb84da7",
        6: "641bf0c3",
        7: "e9cd275e",
        8: "42ccc0cc",
        9: "2e95b89e",
        10: "fa8907d1",
        11: "82e1ceef",
        12: "dfbac8d8",
        13: "e691e079",
        14: "5bfb75a1",
        15: "629a4050",
    }
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        made = [
            row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
        ]
    plain = [re.sub(r"--.*", "", sql).split() for sql in made]
    assert (SCHEMA_VERSION, hashlib.sha256(repr(plain).encode()).hexdigest()[:8]) == max(digests.items())


def test_every_column_has_a_comment_that_says_what_it_means() -> None:
    comments = column_comments()
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        for (table,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
        ):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            assert list(comments.pop(table)) == columns
    assert comments == {}
    assert all(comment for columns in column_comments().values() for comment in columns.values())
    assert column_comments()["snapshots"]["spread"] == "USD: best_ask_yes - best_bid_yes"


async def test_an_upgrade_of_a_file_that_has_every_column_changes_nothing(tmp_path: Path) -> None:
    """As with the next schema: its upgrade repeats what was done for those before."""
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        run_id = await database.start_run(started_at=T0, min_volume=0)
        await database.save(Batch(run_id, [market("1")], [snapshot("1", run_id)]))
    tables = ("markets", "snapshots", "seen", "runs")
    before = [shape(path), *(rows(path, f"SELECT * FROM {table}") for table in tables)]  # noqa: S608
    make_file(path, f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
    await opened_once(path)
    assert [shape(path), *(rows(path, f"SELECT * FROM {table}") for table in tables)] == before  # noqa: S608
    assert rows(path, "PRAGMA user_version") == [{"user_version": SCHEMA_VERSION}]


async def test_an_upgrade_follows_what_is_not_resolved_in_any_spelling(tmp_path: Path) -> None:
    """Older collectors wrote a bool as a word: 'true' is resolved, whatever else is not."""
    path = tmp_path / "old.db"
    words = ["False", "false", "no", "0", "True", "true", "YES", "1"]
    markets = ", ".join(f"({number}, '{word}')" for number, word in enumerate(words, 10))
    make_file(
        path,
        f"{OLD_FILE} INSERT INTO markets (market_id, resolved) VALUES {markets};"  # noqa: S608
        f"INSERT INTO snapshots (market_id, timestamp) SELECT market_id, '{T0}' FROM markets;",
    )
    await opened_once(path)
    found = rows(path, "SELECT resolved, followed FROM markets WHERE market_id >= '10' ORDER BY market_id")
    assert [tuple(row.values()) for row in found] == 4 * [(0, 1)] + 4 * [(1, 0)]


async def test_an_upgrade_keeps_every_row_and_what_the_user_added(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    make_file(path, OLD_FILE)
    await opened_once(path)
    await opened_once(path)
    assert rows(path, "SELECT market_id, question, first_seen FROM markets") == [
        {"market_id": "1", "question": "Old?", "first_seen": "2025-01-01 00:00:00"}
    ]
    assert [row["price_yes"] for row in rows(path, "SELECT price_yes FROM snapshots ORDER BY id")] == [0.25, 0.5]
    assert rows(path, "SELECT * FROM my_notes") == [{"note": "mine"}]
    assert rows(path, "SELECT name FROM sqlite_master WHERE name = 'my_index'")


async def test_an_upgrade_that_fails_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    make_file(path, OLD_FILE + "CREATE TABLE books (title TEXT); INSERT INTO books VALUES ('War and Peace');")  # noqa: S608
    before = shape(path)
    with pytest.raises(StorageError, match=r"old.db: cannot add the column books.book_id: Cannot add a PRIMARY KEY"):
        await opened_once(path)
    assert shape(path) == before
    assert rows(path, "PRAGMA user_version") == [{"user_version": 0}]


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("CREATE TABLE history (url TEXT);", "is the database of another program"),
        ("CREATE TABLE markets (id INTEGER);", "is the database of another program"),
        ("PRAGMA user_version = 99;", "has schema 99 of a newer collector"),
        ("CREATE TABLE history (url TEXT); PRAGMA user_version = 2;", "is the database of another program"),
    ],
)
async def test_a_file_that_is_not_ours_is_refused_untouched(tmp_path: Path, script: str, complaint: str) -> None:
    path = tmp_path / "theirs.db"
    make_file(path, script)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=complaint):
        await opened_once(path)
    assert path.read_bytes() == before


async def test_what_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 1000)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(StorageError, match=r"notes.txt: cannot open: file is not a database"):
        await opened_once(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


async def test_a_missing_folder_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no folder .*nowhere"):
        await opened_once(tmp_path / "nowhere" / "file.db")
    assert not (tmp_path / "nowhere").exists()


async def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        await opened_once(tmp_path)


async def test_a_file_with_a_second_name_is_refused_and_told(tmp_path: Path) -> None:
    """SQLite keeps a log per name: two writers would destroy the file."""
    path = tmp_path / "file.db"
    await opened_once(path)
    (tmp_path / "other.db").hardlink_to(path)
    for name in (path, tmp_path / "other.db"):
        with pytest.raises(StorageError, match=r"\.db: has a second name \(a hard link\)") as caught:
            await opened_once(name)
        assert caught.value.lasting
        with pytest.raises(StorageError, match="has a second name"), open_read_only(name):
            pass


async def test_a_link_makes_its_file_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path, link = tmp_path / "there" / "file.db", tmp_path / "link.db"
    link.symlink_to(path)
    await opened_once(link)
    assert path.stat().st_mode & 0o007 == 0
    assert sorted(tmp_path.iterdir()) == [link, tmp_path / "there"]


async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    await opened_once(path)
    assert "latest_snapshots" in shape(path)


async def test_a_second_collector_is_told_who_holds_the_file(tmp_path: Path) -> None:
    path, alias = tmp_path / "file.db", tmp_path / "alias.db"
    async with Database.open(path):
        alias.symlink_to(path)
        for name in (path, alias):
            with pytest.raises(DatabaseBusy, match=rf"in use by process {os.getpid()} since 20\d\d-"):
                await opened_once(name)
    await opened_once(path)


async def test_a_file_that_is_held_is_waited_for(tmp_path: Path) -> None:
    path, opened = tmp_path / "file.db", asyncio.Event()

    async def wait() -> None:
        async with Database.open(path, wait_s=60):
            opened.set()

    async with Database.open(path):
        waiting = asyncio.create_task(wait())
        with pytest.raises(DatabaseBusy):
            await Database.open(path, wait_s=0).__aenter__()
        assert not opened.is_set()
    await waiting
    assert opened.is_set()


async def test_an_older_file_is_read_only_by_whoever_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    make_file(path, OLD_FILE)
    with open_read_only(path, current=False) as connection:
        assert connection.execute("SELECT price_yes FROM snapshots").fetchall() == [(0.25,), (0.5,)]
    with pytest.raises(StorageError, match="has schema 0 of an older collector, not"), open_read_only(path):
        pass
    await opened_once(path)
    with open_read_only(path) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM snapshots")


def test_what_is_not_there_or_empty_is_said_to_whoever_reads(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    with pytest.raises(StorageError, match=r"there is no file .*file.db; a run makes it"), open_read_only(path):
        pass
    path.touch()
    with pytest.raises(StorageError, match=r"file.db: is empty; a run fills it"), open_read_only(path):
        pass


def test_no_thread_outlives_a_file_whose_opening_or_closing_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would answer to an event loop that is closed, and write a traceback."""
    path = tmp_path / "file.db"
    asyncio.run(opened_once(path))
    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)

    async def cancel_after(steps: int) -> bool:
        opening = asyncio.create_task(opened_once(path))
        for _ in range(steps):
            await asyncio.sleep(0)
        was_done = opening.done()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        return was_done

    for steps in itertools.count(step=5):
        if asyncio.run(cancel_after(steps)):
            break
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        if "_connection_worker_thread" in thread.name:
            thread.join(10)
    assert errors == []


async def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    program = f"""
import asyncio, pathlib
from async_collector import Database
async def main():
    async with Database.open(pathlib.Path({str(path)!r})) as database:
        await database.start_run(started_at={T0!r}, min_volume=0)
        print("held", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=PROJECT, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DatabaseBusy, match=f"process {holder.pid} "):
        await opened_once(path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    async with Database.open(path) as database:
        await database.start_run(started_at=T0, min_volume=0)
    assert [row["status"] for row in rows(path, "SELECT status FROM runs ORDER BY run_id")] == ["failed", "running"]


async def test_the_file_survives_power_loss_and_is_readable_at_any_moment(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "file.db") as database:
        assert await database.value("PRAGMA journal_mode") == "wal"
        assert await database.value("PRAGMA synchronous") == 2  # FULL
        assert await database.value("PRAGMA foreign_keys") == 1


async def test_a_batch_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        run_id = await database.start_run(started_at=T0, min_volume=0)
        await database._connection.execute("ALTER TABLE failures RENAME TO elsewhere")
        batch = Batch(1, [market("1")], [snapshot("1", run_id)], [Failure(run_id, "1", "book", "x")])
        with pytest.raises(StorageError, match=r"cannot store a batch: no such table: failures"):
            await database.save(batch)
        assert not database._connection.in_transaction
        await database._connection.execute("ALTER TABLE elsewhere RENAME TO failures")
        assert await database.save(Batch(1, [market("2")], [snapshot("2", run_id)])) == Saved(snapshots=1)
    assert [row["market_id"] for row in rows(path, "SELECT market_id FROM snapshots")] == ["2"]
    assert [row["market_id"] for row in rows(path, "SELECT market_id FROM markets")] == ["2"]
    assert rows(path, "SELECT * FROM failures") == []


@pytest.mark.parametrize("way", ["ABORT", "FAIL", "ROLLBACK"])
async def test_a_row_that_sqlite_refuses_is_an_error_and_nothing_of_its_batch_is_stored(
    tmp_path: Path, way: str
) -> None:
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        await database._connection.execute(
            "CREATE TRIGGER mine BEFORE INSERT ON snapshots WHEN NEW.price_yes > 0.5 "
            f"BEGIN SELECT RAISE({way}, 'too dear'); END"
        )
        run_id = await database.start_run(started_at=T0, min_volume=0)
        assert await database.save(Batch(run_id, [market("1")], [snapshot("1", run_id)])) == Saved(snapshots=1)
        dear = [snapshot("2", run_id), snapshot("3", run_id, price_yes=0.9)]
        with pytest.raises(StorageError, match="cannot store a batch: too dear"):
            await database.save(Batch(run_id, [market("2"), market("3")], dear))
        with pytest.raises(StorageError, match="FOREIGN KEY constraint failed"):
            await database.save(Batch(run_id, [], [snapshot("no such market", run_id)]))
        assert await database.save(Batch(run_id, [market("4")], [snapshot("4", run_id)])) == Saved(snapshots=1)
    assert [row["market_id"] for row in rows(path, "SELECT market_id FROM snapshots ORDER BY id")] == ["1", "4"]
    assert [row["market_id"] for row in rows(path, "SELECT market_id FROM markets ORDER BY market_id")] == ["1", "4"]
    assert rows(path, "SELECT snapshots_saved, errors FROM runs") == [{"snapshots_saved": 2, "errors": 0}]


async def test_a_market_keeps_its_first_seen_and_what_is_absent_this_time(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        await database.save(Batch(1, [market("1", question="Old?", category="Sports")]))
        await database._connection.execute("UPDATE markets SET first_seen = '2025-01-01 00:00:00'")
        await database.save(Batch(1, [market("1", question="New?")]))
    (row,) = rows(path, "SELECT question, category, first_seen, resolved FROM markets")
    assert row == {
        "question": "New?",
        "category": "Sports",
        "first_seen": "2025-01-01 00:00:00",
        "resolved": 0,
    }


async def test_a_second_snapshot_of_one_second_is_a_recorded_failure(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        for price in (0.25, 0.75):
            run_id = await database.start_run(started_at=T0, min_volume=0)
            saved = await database.save(Batch(run_id, [market("1")], [snapshot("1", run_id, price_yes=price)]))
    assert saved == Saved(errors=1)
    assert [row["price_yes"] for row in rows(path, "SELECT price_yes FROM snapshots")] == [0.25]
    (failure,) = rows(path, "SELECT * FROM failures")
    assert (failure["run_id"], failure["market_id"], failure["stage"]) == (2, "1", "save")
    assert failure["reason"] == "the market has a snapshot of the same second: the clock was set back"


async def test_a_batch_of_seconds_that_are_stored_already_is_one_transaction(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    names = [str(number) for number in range(250)]
    async with Database.open(path) as database:
        for stored in (names[:200], names):
            run_id = await database.start_run(started_at=T0, min_volume=0)
            batch = Batch(run_id, [market(name) for name in names], [snapshot(name, run_id) for name in stored])
            statements: list[str] = []
            await database._connection.set_trace_callback(statements.append)
            saved = await database.save(batch)
        assert statements.count("COMMIT") == 1
    assert saved == Saved(snapshots=50, errors=200)
    refused = rows(path, "SELECT market_id FROM failures WHERE run_id = 2 AND stage = 'save'")
    assert {row["market_id"] for row in refused} == {*names[:200]}
    assert rows(path, "SELECT snapshots_saved, errors FROM runs WHERE run_id = 2") == [
        {"snapshots_saved": 50, "errors": 200}
    ]


async def test_the_latest_snapshot_is_the_one_stored_last_whatever_the_clocks_said(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        for hour in (16, 14, 15):
            prices = [snapshot(name, 1, f"2026-11-22 {hour}:00:00", price_yes=hour / 100) for name in ("1", "2")]
            await database.save(Batch(1, [market("1", question="One?"), market("2"), market("3")], prices))
    latest = rows(path, "SELECT market_id, question, price_yes FROM latest_snapshots ORDER BY market_id")
    assert latest == [
        {"market_id": "1", "question": "One?", "price_yes": 0.15},
        {"market_id": "2", "question": None, "price_yes": 0.15},
    ]


async def test_an_error_of_a_cancelled_save_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Database.open(tmp_path / "file.db") as database:
        run_id = await database.start_run(started_at=T0, min_volume=0)
        await database._connection.execute("ALTER TABLE failures RENAME TO elsewhere")
        saving = asyncio.ensure_future(database.save(Batch(run_id, failures=[Failure(run_id, "1", "book", "x")])))
        await asyncio.sleep(0)
        saving.cancel()
        await asyncio.wait([saving])
    assert saving.cancelled()
    assert "failed while being cancelled" in caplog.text
    assert "no such table: failures" in caplog.text


async def test_a_cancelled_save_is_finished_first_and_leaves_no_lock(tmp_path: Path) -> None:
    """The SQL of a cancelled call still runs: a transaction that nobody ends would lock every other writer out."""
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        run_id = await database.start_run(started_at=T0, min_volume=0)
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        saving = asyncio.ensure_future(database.save(Batch(run_id, [market("1")], [snapshot("1", run_id)])))
        await asyncio.sleep(0.05)  # now it waits for the other writer
        saving.cancel()
        await asyncio.sleep(0.05)
        other.execute("COMMIT")
        await asyncio.wait([saving])
        assert saving.cancelled()
        other.execute("BEGIN IMMEDIATE")
        other.execute("COMMIT")
        other.close()
    assert rows(path, "SELECT count(*) AS n FROM snapshots") == [{"n": 1}]
    assert rows(path, "SELECT snapshots_saved FROM runs") == [{"snapshots_saved": 1}]


async def test_a_snapshot_of_the_same_second_is_one_failure_and_the_others_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        first = await database.start_run(started_at=T0, min_volume=0)
        await database.save(Batch(first, [market("1")], [snapshot("1", first)]))
        run_id = await database.start_run(started_at=T0, min_volume=0)
        names = ("1", "2")
        batch = Batch(run_id, [market(name) for name in names], [snapshot(name, run_id) for name in names], follow=True)
        assert await database.save(batch) == Saved(snapshots=1, errors=1)
    assert [row["market_id"] for row in rows(path, "SELECT market_id FROM failures")] == ["1"]
    assert rows(path, "SELECT errors FROM runs WHERE run_id = 2") == [{"errors": 1}]
    assert rows(path, "SELECT sum(followed) AS n FROM markets") == [{"n": 2}]


async def test_a_clock_that_was_set_back_or_a_foreign_row_makes_and_hides_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    async with Database.open(path) as database:
        starts = ("2026-11-22 14:00:00", "2026-11-22 14:15:00", "2026-11-22 14:14:58", "2026-11-22 14:30:00")
        for number, start in enumerate(starts, 1):
            run_id = await database.start_run(started_at=start, min_volume=0, follow=1)
            names = [str(name) for name in range(1, 11) if not (number == 2 and name == 7)]
            stored = [snapshot(name, run_id, start) for name in names]
            await database.save(Batch(run_id, [market(name) for name in names], stored, follow=True))
            await database.finish_run(run_id, {"status": "complete"})
        await database._connection.execute(
            "INSERT INTO snapshots (market_id, timestamp) VALUES ('1', '2026-11-22 15:00:00')"
        )
    assert rows(path, "SELECT market_id, run_ids FROM gaps") == [{"market_id": "7", "run_ids": "[2]"}]


async def test_the_names_that_each_run_had_are_moved_to_a_table_of_their_own(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    runs = "INSERT INTO runs (started_at, status, selection) VALUES "
    values = [
        ("2026-01-01 00:00:00", "a"),
        ("2026-01-01 00:00:03", "a"),
        ("2026-01-01 00:00:06", None),
        ("2026-01-02 00:00:00", "a"),
        ("2026-01-02 00:00:03", "b"),
    ]
    texts = ", ".join(f"('{time}', 'complete', {'NULL' if name is None else repr(name)})" for time, name in values)
    before = next(landed for landed in LANDED if landed.name == "0.2.0")
    make_file(old, f"{OLD_FILE} {script_of(before)} {runs} {texts}; PRAGMA user_version = {before.version};")
    await opened_once(old)
    found = rows(old, "SELECT started_at, names FROM runs LEFT JOIN selections USING (selection_id) WHERE run_id > 1")
    assert [(row["started_at"], row["names"]) for row in found] == values
    assert [row["first_used_at"] for row in rows(old, "SELECT first_used_at FROM selections")] == [
        "2026-01-01 00:00:00",
        "2026-01-02 00:00:00",
        "2026-01-02 00:00:03",
    ]
