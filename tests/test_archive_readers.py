"""covers: the examples of docs/lake.md on one machine, and the document against the program."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from conftest import rows
from lakes import DAY, DOCUMENT, OF_THE_ARCHIVE, archive, change, documented, lake_files, script, true_depth

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

pytestmark = OF_THE_ARCHIVE


def test_the_examples_for_one_machine(two_shards: list[Path], tmp_path: Path) -> None:
    """Over two shards, of two schemas, with rows that came late."""
    lake = str(tmp_path / "lake")
    for table in ("books", "markets", "snapshots"):  # as a later version may
        change(two_shards[1], f"ALTER TABLE {table} ADD COLUMN later REAL DEFAULT 7")
    expected = true_depth(*two_shards)
    prices = rows(
        two_shards[0],
        f"SELECT price_yes FROM snapshots WHERE market_id = '900003' AND timestamp < '{DAY}~' ORDER BY timestamp",
    )
    for database in two_shards:
        assert archive(lake, "--db", database, "--shard", database.stem) == 0
    (late,) = rows(two_shards[0], "SELECT category FROM markets WHERE market_id = '900003'")
    change(
        two_shards[0],
        f"INSERT INTO books (market_id, timestamp, bids, asks) VALUES ('900003', '{DAY} 23:59:59', '[[0.4,10]]', '[]')",
        f"""INSERT INTO snapshots (market_id, timestamp, price_yes, book_id)
            SELECT '900003', '{DAY} 23:59:59', 0.2, max(book_id) FROM books""",
    )
    assert archive(lake, "--db", two_shards[0]) == 0
    prices.append({"price_yes": 0.2})
    expected[late["category"], DAY] += 10
    by_duckdb = {(category, str(day)): depth for category, day, depth in documented()["depth_by_duckdb"](lake)}
    assert by_duckdb == pytest.approx(expected)
    by_polars = {
        (row["category"], str(row["date"])): row["depth"] for row in documented()["depth_by_polars"](lake).to_dicts()
    }
    assert by_polars == pytest.approx(expected)
    of_north = documented()["prices_of"](lake, "900003", DAY)
    assert list(of_north[of_north.shard == "north"].price_yes) == [row["price_yes"] for row in prices]
    files = documented()["finished_files"](lake, "books")
    assert len(files) == 5
    assert all(os.path.exists(path) for path in files)  # noqa: PTH110


def test_the_examples_fail_where_there_is_no_lake_or_a_file_is_lost(sample: Path, tmp_path: Path) -> None:
    """A smaller answer would be believed."""
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample) == 0
    names = documented()
    wrong = str(tmp_path / "lakes")
    with pytest.raises(FileNotFoundError):
        names["every_row"](wrong, str(sample), "snapshots", ["id"])
    with pytest.raises(FileNotFoundError):
        names["finished_files"](wrong, "books")
    for name in ("depth_by_duckdb", "depth_by_polars"):
        with pytest.raises(Exception, match=r"No files found|No such file|expanded paths were empty"):
            names[name](wrong)
    lake_files(lake, "snapshots")[0].unlink()
    with pytest.raises(FileNotFoundError):
        names["every_row"](str(lake), str(sample), "snapshots", ["id"])


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_every_option() -> None:
    parser: argparse.ArgumentParser = script()["build_parser"]()
    options = [action for action in parser._actions if action.dest != "help"]
    named = [f"{(action.option_strings or [''])[0]} {action.metavar or ''}".strip() for action in options]
    table = DOCUMENT.partition("| option |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == named
