#!/usr/bin/env python3
"""Measure what runs alone add to the file in a day of a schedule of 3 seconds, with 1 and with 500 names."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import async_collector as ac

RUNS_A_DAY = 24 * 60 * 60 // 3


async def bytes_of_runs(path: Path, names: int, runs: int) -> int:
    """Store *runs* runs, 3 seconds apart, that ask for so many names, and return the size of the file."""
    markets = [f"will-market-{number:05}-end-as-somebody-says" for number in range(names)]
    chosen = ac.Selection.resolve(0, None, markets=markets)
    started = datetime(2026, 11, 22, tzinfo=UTC)
    async with ac.Database.open(path) as database:
        for number in range(runs):
            at = ac.sql_time(started + timedelta(seconds=3 * number))
            run_id = await database.start_run(started_at=at, follow=1, depth=None, **chosen.columns)
            await database.finish_run(
                run_id, {"status": "complete", "finished_at": at, "duration": 0.25, "requests": 3}
            )
    return path.stat().st_size


def main() -> None:
    """Print a line for each number of names."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS_A_DAY
    for names in (1, 500):
        with tempfile.TemporaryDirectory() as folder:
            size = asyncio.run(bytes_of_runs(Path(folder, "runs.db"), names, runs))
        print(f"{runs:,} runs with {names} names: {size / 1e6:.2f} MB, {size / runs:.0f} bytes a run")


if __name__ == "__main__":
    main()
