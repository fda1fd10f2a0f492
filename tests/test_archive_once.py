"""covers: every row once in the lake and the file together, whatever is killed, late, or writing beside it."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT, rows
from lakes import COMMAND, DAY, OF_THE_ARCHIVE, TABLES, archive, change, kill_and_look, start, view
from sample_database import fill

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakePolymarket

pytestmark = OF_THE_ARCHIVE


@pytest.mark.slow
@pytest.mark.parametrize(("markets", "days"), [(400, 1), (40, 2)])
def test_kills_at_every_step_lose_and_double_no_row(tmp_path: Path, markets: int, days: int) -> None:
    database, lake = tmp_path / "x.db", tmp_path / "lake"
    lake.mkdir()
    fill(database, markets=markets, days=days, levels=20)

    def files() -> set[str]:
        found = os.walk(lake)  # which does not mind folders that go meanwhile
        return {os.path.relpath(os.path.join(folder, name), lake) for folder, _, names in found for name in names}  # noqa: PTH118

    kill_and_look(str(lake), database, 12, files, lambda: lake)


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
        "INSERT INTO selections (names, first_used_at) VALUES ('{}', '2026-11-01 10:00:00')",
        """INSERT INTO past_prices (market_id, width, timestamp, price, fetched_at)
           VALUES ('900001', 300, '2026-10-01 00:00:00', 0.5, '2026-11-01 10:00:04')""",
        """INSERT INTO trades VALUES (1, '900001', '2026-10-01 00:00:00', 'YES', 'BUY', 0.5, 5, '0x1', '0x2', 1,
           '2026-11-01 10:00:05')""",
        "INSERT INTO streams VALUES (1, '2026-11-01 10:00:00', '2026-11-01 10:00:06', NULL, 2, 1, 1, 1, 0, 0, 'lost')",
        "INSERT INTO book_changes VALUES (1, '900001', '2026-11-01 10:00:07.001', 5, 'bid', 0.5, 0, 1)",
        "INSERT INTO live_trades VALUES (1, '900001', '2026-11-01 10:00:07.002', 5, 'YES', NULL, 0.5, NULL, NULL, 1)",
        "INSERT INTO live_gaps VALUES (1, '900001', '2026-11-01 10:00:07.002', '2026-11-01 10:00:08.003', 'lost')",
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
    assert "--shard NAME gives it a name of its own" in capsys.readouterr().err
    assert sorted(path for path in lake.rglob("*")) == files
    assert view(lake, databases[2]) == expected[2]
    assert archive(lake, "--db", databases[2], "--keep", "0", "--shard", "east") == 0
    assert archive(lake, "--check") == 0


# --- beside a collector -----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_service_beside_it_misses_no_tick_and_no_reader_waits(exchange: FakePolymarket, tmp_path: Path) -> None:
    """An interval of a second, and a day of 900,000 rows on its way: to delete it at once would take over 3 s."""
    database = tmp_path / "polymarket_data.db"
    fill(database, markets=8_000, days=1, levels=10)
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
