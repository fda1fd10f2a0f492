"""covers: what grows with every run ends in the lake, and whatever reads runs goes on without those that have gone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from conftest import rows
from lakes import OF_THE_ARCHIVE, archive, change
from sample_database import fill
from truth import broken_promises

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket

    from async_collector import AsyncCollector

pytestmark = OF_THE_ARCHIVE


def run_ids(path: Path) -> list[int]:
    return [row["run_id"] for row in rows(path, "SELECT run_id FROM runs ORDER BY run_id")]


def open_gaps(path: Path) -> list[tuple[str, str, int]]:
    """Return each market that is missing now, since when, and the first run that lacks it."""
    found = rows(path, "SELECT market_id, since, run_ids FROM gaps WHERE until IS NULL ORDER BY market_id")
    return [(row["market_id"], row["since"], json.loads(row["run_ids"])[0]) for row in found]


def test_a_market_that_has_been_missing_for_long_stays_a_gap_until_it_is_back(database: Path, tmp_path: Path) -> None:
    fill(database, markets=6, days=4, runs_per_day=8, levels=2, posts_per_run=0, failed=0)
    change(
        database,
        "UPDATE markets SET followed = 1, resolved = 0",
        "UPDATE runs SET min_volume = 100000",
        "DELETE FROM snapshots WHERE market_id = '900005' AND run_id > 12",
        "UPDATE seen SET snapshot_id = (SELECT max(id) FROM snapshots WHERE market_id = seen.market_id)",
    )
    before = open_gaps(database)
    assert [(market_id, run) for market_id, _, run in before] == [("900005", 13)]
    since_the_third = (datetime.now(UTC) - datetime(2026, 11, 3, tzinfo=UTC)).days
    for keep in (since_the_third, 0, 0):
        assert archive(tmp_path / "lake", "--db", database, "--keep", str(keep)) == 0
        assert open_gaps(database) == before
    assert [row["market_id"] for row in rows(database, "SELECT market_id FROM snapshots")] == ["900005"]
    assert len(rows(database, "SELECT * FROM order_books")) == 1
    change(
        database,
        "INSERT INTO runs (run_id, started_at, status, follow, min_volume) "
        "VALUES (33, '2026-11-05 00:00:00', 'complete', 1, 100000)",
        "INSERT INTO snapshots (market_id, timestamp, run_id) VALUES ('900005', '2026-11-05 00:00:01', 33)",
        "UPDATE seen SET snapshot_id = (SELECT max(id) FROM snapshots) WHERE market_id = '900005'",
    )
    assert run_ids(database) == [13, 31, 32, 33]
    assert archive(tmp_path / "lake", "--db", database, "--keep", "0") == 0
    assert run_ids(database) == [32, 33]
    assert rows(database, "SELECT * FROM snapshots") == rows(database, "SELECT * FROM gaps") == []


def test_runs_go_with_their_day_but_for_those_that_are_needed(database: Path, tmp_path: Path) -> None:
    """The newest, two complete ones of each selection, and what the next search on X and the next walk go on from."""
    fill(database, markets=4, days=3, runs_per_day=10, levels=2, posts_per_run=0, failed=0)
    change(
        database,
        "UPDATE runs SET min_volume = 100000, status = 'complete'",
        "UPDATE runs SET depth = 0 WHERE run_id IN (1, 3, 5, 7)",
        "UPDATE runs SET min_volume = 0, status = 'partial' WHERE run_id IN (4, 30)",
        "UPDATE runs SET newest_tweet_id = '17' WHERE run_id IN (8, 9)",
        "UPDATE runs SET full_walk_at = started_at WHERE run_id IN (10, 11)",
        "DELETE FROM failures",
        "INSERT INTO selections VALUES (1, '{}', '2026-11-01 00:00:00'), (2, '{}', '2026-11-02 00:00:00')",
        "UPDATE runs SET selection_id = 1 + (run_id - 1) / 10 WHERE run_id IN (2, 12, 13, 14)",
    )
    import pyarrow.parquet as pq  # noqa: PLC0415

    lake = tmp_path / "lake"
    assert archive(lake, "--db", database, "--keep", "0") == 0
    assert run_ids(database) == [5, 7, 9, 11, 13, 14, 28, 29, 30]
    assert sum(pq.read_metadata(path).num_rows for path in lake.glob("runs/*/*.parquet")) == 30
    assert [row["selection_id"] for row in rows(database, "SELECT * FROM selections")] == [2]
    assert rows(database, "PRAGMA foreign_key_check") == []
    assert broken_promises(database) == {}
    assert archive(lake, "--db", database, "--keep", "0") == 0
    assert run_ids(database) == [5, 7, 9, 11, 13, 14, 28, 29, 30]


async def test_a_collector_goes_on_after_its_runs_were_archived(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        assert (await make_collector().collect_all())["status"] == "complete"
        await make_collector(min_volume=0).collect_all()
    listed = rows(database, "SELECT count(*) AS n FROM listed_ids")
    assert archive(tmp_path / "lake", "--db", database, "--keep", "0") == 0
    for min_volume in (100_000, 0):
        result = await make_collector(min_volume=min_volume).collect_all()
        assert (result["status"], result["markets"]) == ("complete", len(exchange.markets))
    assert rows(database, "SELECT count(*) AS n FROM listed_ids") == listed
    assert rows(database, "SELECT * FROM gaps") == []
    assert broken_promises(database) == {}
