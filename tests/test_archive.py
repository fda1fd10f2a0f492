"""covers: what goes into the lake and comes back, which days go, and what stays in the file."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from conftest import rows
from lakes import DAY, OF_THE_ARCHIVE, archive, change, documented, everything, lake_files
from sample_database import fill

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

pytestmark = OF_THE_ARCHIVE


# --- the round trip ---------------------------------------------------------------------------------------------------


def test_archived_and_restored_days_are_equal(sample: Path, tmp_path: Path) -> None:
    """Every column of every row, NULL and empty told apart."""
    before = everything(sample)
    assert archive(tmp_path / "lake", "--db", sample, "--keep", "0") == 0
    left = everything(sample)
    assert {table: len(left[table]) for table in ("snapshots", "hype_signals")} == {"snapshots": 0, "hype_signals": 0}
    assert left["markets"] == before["markets"]
    assert left["runs"] == [run for run in before["runs"] if run["run_id"] in {row["run_id"] for row in left["runs"]}]
    restored: dict[str, list[dict[str, Any]]] = {table: [] for table in before}
    for number in (1, 2):
        new = tmp_path / f"new{number}.db"
        assert archive(tmp_path / "lake", "--db", new, "--restore", f"2026-11-0{number}") == 0
        for table, found in everything(new).items():
            restored[table] += [row for row in found if row not in restored[table]]
    for table, expected in before.items():
        assert sorted(restored[table], key=lambda row: str(list(row.values()))) == expected, table


def test_the_past_is_in_the_lake_by_the_day_on_which_it_was_fetched_and_stays_in_the_file(
    sample: Path, tmp_path: Path
) -> None:
    """A count and a price path need what is older; what is fetched later is of a later day."""
    prices = (
        "INSERT INTO past_prices (market_id, width, timestamp, price, fetched_at) VALUES ('900003', 300, {}, 0.5, {})"
    )
    trade = (
        "INSERT INTO trades VALUES ({}, '900003', '2026-01-01 00:00:00', 'NO', 'SELL', 0.4, 5, '0x1', '0x2', {}, {})"
    )
    change(
        sample,
        prices.format("'2026-09-30 00:00:00'", "'2026-11-01 04:50:07'"),
        prices.format("'2026-09-30 00:05:00'", "'2026-11-02 04:50:07'"),
        trade.format(1, 1, "'2026-11-01 04:50:09'"),
        trade.format(2, 2, "'2026-11-01 04:50:09'"),
    )
    before = {table: rows(sample, f"SELECT * FROM {table}") for table in ("past_prices", "trades")}
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    assert len(documented()["every_row"](str(lake), str(sample), "past_prices", ["price_id", "fetched_at"])) == 2
    assert [len(lake_files(lake, "past_prices", day)) for day in (DAY, "2026-11-02")] == [1, 1]
    assert len(lake_files(lake, "trades")) == 1
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    assert {table: rows(sample, f"SELECT * FROM {table}") for table in before} == before
    new = tmp_path / "new.db"
    assert archive(lake, "--db", new, "--restore", DAY) == 0
    assert rows(new, "SELECT * FROM past_prices") == before["past_prices"][:1]
    assert rows(new, "SELECT * FROM trades") == before["trades"]


def test_a_restored_day_opens_as_any_other_file(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.db"
    assert archive(tmp_path / "lake", "--db", sample) == 0
    capsys.readouterr()
    assert archive(tmp_path / "lake", "--db", new, "--restore", DAY) == 0
    assert capsys.readouterr().out == f"{new}: {DAY} is restored from {tmp_path / 'lake'}\n"
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
    stored = pq.read_table(lake_files(tmp_path / "lake", "books")[0]).to_pylist()
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

    (first,) = rows(sample, "SELECT min(started_at) AS at FROM runs")
    archive(tmp_path / "lake", "--db", sample, "--shard", "north")
    schema = pq.read_schema(lake_files(tmp_path / "lake", "books")[0])
    assert str(schema.field("bid_prices").type) == "list<element: decimal128(9, 4) not null>"
    assert str(schema.field("ask_sizes_no").type) == "list<element: decimal128(18, 6) not null>"
    assert str(schema.field("timestamp").type) == "timestamp[ms, tz=UTC]"
    assert {"market_id", "mirrored", "shard", "as_stored"} < set(schema.names)
    stored = pq.read_table(lake_files(tmp_path / "lake", "runs")[0]).to_pylist()
    assert stored[0]["started_at"] == datetime.fromisoformat(first["at"]).replace(tzinfo=UTC)
    ordered = pq.read_table(lake_files(tmp_path / "lake", "snapshots")[0], columns=["market_id", "timestamp"])
    assert ordered.to_pylist() == sorted(ordered.to_pylist(), key=lambda row: (row["market_id"], row["timestamp"]))


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
    assert output.out.startswith(f"{today - timedelta(days=4)}: part 1: ")
    assert " 2 runs" in output.out.splitlines()[0]
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
