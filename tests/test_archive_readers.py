"""covers: the examples of docs/lake.md on one machine, and the document against the program."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from conftest import rows
from lakes import DAY, DOCUMENT, OF_THE_ARCHIVE, archive, documented, script, true_depth

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

pytestmark = OF_THE_ARCHIVE


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


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_every_option() -> None:
    parser: argparse.ArgumentParser = script()["build_parser"]()
    options = [action for action in parser._actions if action.dest != "help"]
    named = [f"{(action.option_strings or [''])[0]} {action.metavar or ''}".strip() for action in options]
    table = DOCUMENT.partition("| option |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == named
