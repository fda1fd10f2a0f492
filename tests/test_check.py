"""covers: `collector-check`: what breaks a promise is found, and what is sound is found sound."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
from typing import TYPE_CHECKING

import pytest
from conftest import OLDER_TABLES, PROJECT, rows
from lakes import archive
from older_schemas import LANDED, Landed, script_of
from sample_database import fill
from test_docs import first_cells
from truth import CHECK, broken_promises, command

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

DATA = (PROJECT / "docs/data.md").read_text()
PRICE = "VALUES (1, '900001', 300, '2026-10-01 00:00:00', 0.5, '2026-11-01 00:00:00')"
TRADE = "VALUES (1, '900001', '2026-10-01 00:00:00', 'NO', 'BUY', 0.5, 2.5, '0x1', '0x2', 1, '2026-11-01 00:00:00')"
STREAM = "INSERT INTO streams VALUES (1, '2026-11-01 00:00:00', NULL, NULL, 2, 0, 0, 0, 0, 0, NULL); "
LIVE = "1, '900001', '2026-11-01 00:00:00.000', 5"
SOUND_ROWS = f"""
    INSERT INTO past_prices {PRICE};
    INSERT INTO trades {TRADE};
    INSERT INTO past_done VALUES ('900001', 'trades', '2026-10-01 00:00:00', NULL, NULL);
    {STREAM}
    INSERT INTO book_changes VALUES ({LIVE}, 'bid', 0.5, 0, 1);
    INSERT INTO live_trades VALUES ({LIVE}, 'YES', 'BUY', 0.5, 10, '0x1', 1);
    INSERT INTO live_gaps VALUES (1, '900001', '2026-11-01 00:00:00.000', '2026-11-01 00:00:01.500', 'closed');
"""  # noqa: S608
# of each promise, what breaks it
BREACHES = {
    "price_no": ["UPDATE snapshots SET price_no = price_no + 0.001 WHERE id = 60"],
    "price_yes": ["UPDATE snapshots SET price_yes = 0.5, price_no = 0.5 WHERE id = 60"],
    "price_range": ["UPDATE snapshots SET price_yes = 1.5, price_no = -0.5 WHERE id = 60"],
    "spread": [
        "UPDATE snapshots SET spread = spread + 0.001 WHERE id = 60",
        "UPDATE snapshots SET spread = NULL WHERE id = 60",
    ],
    "best_yes": [
        "UPDATE snapshots SET best_bid_yes = best_bid_yes - 0.001 WHERE id = 60",
        "UPDATE snapshots SET best_ask_yes = NULL WHERE id = 60",
        "UPDATE snapshots SET bid_size_yes = bid_size_yes + 1 WHERE id = 60",
    ],
    "best_no": [
        "UPDATE snapshots SET best_bid_no = best_bid_no - 0.001 WHERE id = 60",
        "UPDATE snapshots SET best_ask_no = 0.5 WHERE book_id = (SELECT book_id FROM books WHERE mirrored = 0 LIMIT 1)",
    ],
    "snapshot_time": [
        "UPDATE snapshots SET timestamp = 'yesterday' WHERE id = 60",
        "UPDATE snapshots SET timestamp = '2026-02-30 00:00:00' WHERE id = 60",
        "UPDATE snapshots SET timestamp = 1795000000 WHERE id = 60",
        "UPDATE snapshots SET book_time = '2026-11-01 24:00:00.000' WHERE id = 60",
    ],
    "snapshot_market": [
        "DELETE FROM markets WHERE market_id = '900007'",
        "UPDATE snapshots SET market_id = '7' WHERE id = 60",
    ],
    "snapshot_run": ["DELETE FROM runs WHERE run_id = 4"],
    "snapshot_book": [
        "DELETE FROM books WHERE book_id = (SELECT book_id FROM snapshots WHERE id = 60)",
        "UPDATE snapshots SET book_id = NULL WHERE id = 60",
        "UPDATE snapshots SET book_id = (SELECT book_id FROM snapshots WHERE id = 61) WHERE id = 60",
    ],
    "seen": [
        "UPDATE seen SET snapshot_id = snapshot_id - 40 WHERE market_id = '900007'",
        "DELETE FROM seen WHERE market_id = '900007'",
    ],
    "seen_market": [
        "INSERT INTO seen VALUES ('7', NULL, NULL)",
        "UPDATE seen SET snapshot_id = snapshot_id + 1 WHERE market_id = '900007'",
        "UPDATE seen SET snapshot_id = 1000000 WHERE market_id = '900007'",
    ],
    "market_time": ["UPDATE markets SET end_time = 'soon' WHERE market_id = '900007'"],
    "market_outcome": [
        "UPDATE markets SET resolved = 2 WHERE market_id = '900007'",
        "UPDATE markets SET resolved = 1, resolution_outcome = 'Maybe', outcome_stored_at = '2026-11-01 00:00:00'",
    ],
    "book": ["UPDATE books SET timestamp = '' WHERE book_id = 3"],
    "book_sides": [
        "UPDATE books SET bids = '[[0.1,5],[0.2,5]]' WHERE book_id = 3",
        "UPDATE books SET asks = '[[0.1,5],' WHERE book_id = 3",
        "UPDATE books SET asks = '[[0.1,0]]' WHERE book_id = 3",
    ],
    "book_mirror": ["UPDATE books SET bids_no = '[]' WHERE book_id = 3"],
    "run_counters": [
        "UPDATE runs SET snapshots_saved = snapshots_saved + 1 WHERE run_id = 1",
        "UPDATE runs SET books_unchanged = books_unchanged - 1 WHERE run_id = 4",
        "DELETE FROM snapshots WHERE id = 60",
    ],
    "run_errors": ["UPDATE runs SET errors = errors + 1 WHERE run_id = 4"],
    "run_status": [
        "UPDATE runs SET status = 'fine' WHERE run_id = 4",
        "UPDATE runs SET status = 'running' WHERE run_id = 4",
        "UPDATE runs SET status = 'complete', markets_listed = 2 * markets_listed WHERE run_id = 4",
    ],
    "run_time": ["UPDATE runs SET finished_at = '2026-11-01T00:00:00Z' WHERE run_id = 4"],
    "failure": [
        "INSERT INTO failures VALUES (1000, NULL, 'list', 'x', 1)",
        "UPDATE failures SET stage = 'other' WHERE rowid = 1",
    ],
    "post": ["UPDATE tweets SET engagement_score = 1000 WHERE run_id = 4"],
    "hype": ["UPDATE hype_signals SET hype_score = 101 WHERE run_id = 4"],
    "past_price": ["UPDATE past_prices SET price = 2", "UPDATE past_prices SET width = 60"],
    "trade": ["UPDATE trades SET outcome = 'MAYBE'", "UPDATE trades SET size = 0", "UPDATE trades SET market_id = '7'"],
    "past_progress": ["UPDATE past_done SET market_id = '7'", "UPDATE past_done SET until = 'x'"],
    "book_change": ["UPDATE book_changes SET side = 'x'", "DELETE FROM streams"],
    "live_trade": ["UPDATE live_trades SET price = -1", "UPDATE live_trades SET timestamp = '2026-11-01 00:00:00'"],
    "live_gap": ["UPDATE live_gaps SET until = '2026-10-31 00:00:00.000'"],
}


PROMISES: dict[str, tuple[str, str]] = CHECK["QUERIES"]
Reader: type = CHECK["Reader"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a row in each table that is checked, of which the WAL is not used."""
    path = tmp_path_factory.mktemp("check") / "polymarket_data.db"
    fill(path, markets=40, days=2, runs_per_day=12, levels=4, failed=0.02)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(SOUND_ROWS)
        connection.execute("PRAGMA journal_mode = DELETE")
    return path


@pytest.fixture
def copy(sound: Path, database: Path) -> Path:
    shutil.copy(sound, database)
    return database


def change(path: Path, statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
        connection.commit()


def test_a_sound_file_is_found_sound_and_is_not_changed(copy: Path) -> None:
    before = copy.read_bytes()
    assert broken_promises(copy) == {}
    assert copy.read_bytes() == before


@pytest.mark.parametrize(
    ("promise", "statement"), [(name, statement) for name, all_ in BREACHES.items() for statement in all_]
)
def test_what_breaks_a_promise_is_found(copy: Path, promise: str, statement: str) -> None:
    change(copy, statement)
    found = broken_promises(copy)
    assert promise in found
    assert 1 <= len(found[promise]["examples"]) <= min(3, found[promise]["broken"])
    json.dumps(found)


def test_every_promise_can_be_broken_and_is_in_the_docs() -> None:
    assert set(BREACHES) == set(PROMISES)
    assert first_cells("Checking the file", DATA) == ["integrity", *PROMISES]


def test_every_table_with_a_time_or_a_market_is_checked() -> None:
    checked = {table for table, _ in CHECK["QUERIES"].values()}
    columns = ac.column_comments()
    with_promises = {table for table in columns if {"market_id", "run_id"} & columns[table].keys()}
    assert with_promises - checked == {"listed_ids"}, "which is only a memory of ids"


def test_the_command_has_at_most_300_lines() -> None:
    assert len((PROJECT / "collector-check.py").read_text().splitlines()) <= 300


def test_of_each_promise_three_rows_are_shown(copy: Path) -> None:
    change(copy, "UPDATE snapshots SET price_no = 0.123456 WHERE id <= 50")
    found = broken_promises(copy)["price_no"]
    assert found["broken"] == 50
    assert [example["id"] for example in found["examples"]] == [1, 2, 3]


def test_an_index_that_lacks_a_row_and_a_page_that_cannot_be_read_are_found(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a small table, which SQLite checks by itself, and in a large one."""
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'snapshots_by_run'").fetchall()
        ((page_bytes,),) = connection.execute("PRAGMA page_size").fetchall()
    whole = copy.read_bytes()
    for small in (20_000, 100):
        monkeypatch.setitem(CHECK["check"].__globals__, "SMALL", small)
        copy.write_bytes(whole[: (root - 1) * page_bytes] + bytes(page_bytes) + whole[root * page_bytes :])
        assert "integrity" in broken_promises(copy)
        copy.write_bytes(whole)
        assert broken_promises(copy) == {}


def test_a_range_that_takes_too_long_is_read_in_smaller_ones(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no transaction of ours keeps the log of a collector from being cut."""
    change(copy, "UPDATE snapshots SET spread = 0.9 WHERE id % 7 = 1")
    monkeypatch.setitem(CHECK["check"].__globals__, "SMALL", 10)
    expected = broken_promises(copy)
    steps: list[int] = []

    class Impatient(Reader):  # type: ignore[misc]
        """A reader for whom more than a hundred rows take too long."""

        def ask(self, query: str, *, step: int = 0, **values: object) -> list[sqlite3.Row]:
            steps.append(step)
            monkeypatch.setitem(CHECK["check"].__globals__, "LIMIT_S", -1 if step > 100 else 60)
            found: list[sqlite3.Row] = super().ask(query, step=step, **values)
            return found

    monkeypatch.setitem(CHECK["check"].__globals__, "Reader", Impatient)
    assert broken_promises(copy) == expected
    assert sum(step > 100 for step in steps) > 10
    assert sum(0 < step <= 100 for step in steps) > 50
    assert expected["spread"]["broken"] == 138


async def test_what_is_collected_is_sound(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    """With posts, failures, ends, books that are no mirror, a name that is not known, and books that are not kept."""
    for settings in ({}, {"min_volume": 0}, {"depth": 0}, {"depth": 3}, {"markets": ["nobody-knows", "500003"]}, {}):
        exchange.fail_next("/books", status=500)
        await make_collector(**settings).collect_all()
        assert broken_promises(database) == {}
        clock.elapsed_s += 13 * 3600


@pytest.mark.parametrize("landed", LANDED, ids=lambda landed: landed.name)
async def test_a_file_that_was_upgraded_is_sound(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, landed: Landed
) -> None:
    odd = "INSERT INTO snapshots (market_id, timestamp, price_yes, spread) VALUES ('1', 'long ago', 7, 8);"
    market = "INSERT INTO markets (market_id, end_time, resolved) VALUES ('1', 'soon', 'yes');"
    change(database, f"{OLDER_TABLES} {market} {odd} {script_of(landed)} PRAGMA user_version = {landed.version};")
    assert exchange.url
    await collector.collect_all()
    assert broken_promises(database) == {}


@pytest.mark.xdist_group("archive")
def test_a_file_that_was_archived_and_one_that_was_restored_are_sound(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    lake = tmp_path / "lake"
    assert archive(lake, "--db", copy, "--keep", "0", "--no-prune") == 0
    assert broken_promises(copy) == {}
    assert archive(lake, "--db", copy, "--keep", "0") == 0
    assert rows(copy, "SELECT 1 FROM snapshots") == []
    assert broken_promises(copy) == {}
    assert archive(lake, "--db", tmp_path / "new.db", "--restore", "2026-11-01") == 0
    assert broken_promises(tmp_path / "new.db") == {}


def test_rows_that_somebody_deleted_on_purpose_break_no_promise(copy: Path) -> None:
    change(copy, "DELETE FROM snapshots WHERE timestamp < '2026-11-02'; DELETE FROM failures WHERE run_id < 13")
    assert broken_promises(copy) == {}


async def test_the_command_says_it_in_lines_and_as_json(exchange: FakePolymarket, copy: Path) -> None:
    done = await command(exchange, "collector-check.py", "--db", str(copy))
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(rf"{copy} is sound: 31 of 31 promises are kept, \d+\.\d s\n", done.out)
    change(copy, "UPDATE snapshots SET timestamp = x'00ff' WHERE id = 7")
    done = await command(exchange, "collector-check.py", "--db", str(copy))
    assert (done.code, done.err) == (65, "")
    assert re.search(
        r"NOT SOUND: 30 of 31 promises are kept, .*\n(?s:.*)  snapshot_time: 1 rows, such as\n    \{\"id\": 7, ",
        done.out,
    )
    done = await command(exchange, "collector-check.py", "--db", str(copy), "--json")
    assert (done.code, done.out.count("\n")) == (65, 1)
    result = json.loads(done.out)
    assert (result["sound"], result["database"]) == (False, str(copy))


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        CHECK["main"](["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"collector-check {ac.__version__}\n")


async def test_a_file_that_cannot_be_checked_is_74(exchange: FakePolymarket, copy: Path, tmp_path: Path) -> None:
    missing = await command(exchange, "collector-check.py", "--db", str(tmp_path / "none.db"))
    assert (missing.code, missing.out) == (74, "")
    assert "there is no file" in missing.err
    change(copy, "PRAGMA user_version = 4")
    older = await command(exchange, "collector-check.py", "--db", str(copy))
    assert (older.code, older.out) == (74, "")
    copy.write_bytes(b"dear diary")
    other = await command(exchange, "collector-check.py", "--db", str(copy))
    assert (other.code, other.out) == (74, "")


@pytest.mark.slow  # SQLite waits for five seconds
async def test_a_busy_file_is_75(exchange: FakePolymarket, copy: Path) -> None:
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        busy = await command(exchange, "collector-check.py", "--db", str(copy))
    assert (busy.code, busy.out) == (75, "")
    assert "locked" in busy.err


def test_a_collector_writes_while_a_file_is_checked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored meanwhile neither breaks a promise nor waits for the check."""
    change(copy, "PRAGMA journal_mode = WAL")
    writes = iter(range(1_000_000))

    class WithWriter(Reader):  # type: ignore[misc]
        """A reader, between whose transactions a collector writes."""

        def ask(self, query: str, **values: object) -> list[sqlite3.Row]:
            found: list[sqlite3.Row] = super().ask(query, **values)
            writer.execute("UPDATE markets SET question = ? WHERE market_id = '900001'", (str(next(writes)),))
            assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "the log can be cut"
            return found

    with contextlib.closing(sqlite3.connect(copy, timeout=0, isolation_level=None)) as writer:
        monkeypatch.setitem(CHECK["check"].__globals__, "Reader", WithWriter)
        assert broken_promises(copy) == {}
    assert next(writes) > 50
