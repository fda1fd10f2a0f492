"""What full order books cost: time, memory, bytes per book, and what a run writes to the WAL.

    python tests/bench_books.py [--markets 3000] [--runs 100]

Runs against the stand-in on loopback, with and without books in turn, and prints what it measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fake_polymarket import FakePolymarket

PROJECT = Path(__file__).parent.parent
# VmHWM and not ru_maxrss, which a new process inherits from the one that started it
ONCE = r"""
import pathlib, re, runpy, sys
runpy.run_path({script!r}, run_name="script")["main"]({args!r})
print(re.search(r"VmHWM:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


async def collect(exchange: FakePolymarket, path: Path, *args: str) -> dict[str, Any]:
    """Collect once in a process of its own; add its CPU seconds and its peak memory in MB to the result."""
    flags = ["--json", "--quiet", "--min-volume", "0", "--db", str(path), *args]
    code = ONCE.format(script=str(PROJECT / "async-collector.py"), args=flags)
    env = os.environ | exchange.environment | {"GAMMA_RATE_LIMIT": "1000", "CLOB_RATE_LIMIT": "1000"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        env=env | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result: dict[str, Any] = json.loads(out)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result | {"cpu": cpu_s, "peak": int(err.split()[-1]) / 1024}


def median(results: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(result[key] for result in results))


async def compare(markets: int, folder: Path) -> None:
    """Time runs with and without books in turn, into new files and into known ones."""
    async with FakePolymarket(markets) as exchange:
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for number in range(3):
            for depth in ("0", "1000000"):
                path = folder / f"{markets}-{depth}-{number}.db"
                for kind in ("cold", "warm"):
                    exchange.move_books(0.2)
                    found.setdefault((kind, depth), []).append(await collect(exchange, path, "--depth", depth))
    for kind in ("cold", "warm"):
        without, whole = found[kind, "0"], found[kind, "1000000"]
        print(
            f"{markets} {kind}: {median(without, 'duration'):.2f} s without books, "
            f"{median(whole, 'duration'):.2f} with; CPU {median(without, 'cpu'):.2f} and {median(whole, 'cpu'):.2f} s "
            f"({median(whole, 'cpu') / median(without, 'cpu'):.2f}); peak {median(whole, 'peak'):.0f} MB"
        )


def bytes_of(path: Path, names: str) -> int:
    with sqlite3.connect(path) as connection:
        query = f"SELECT sum(pgsize) FROM dbstat WHERE name IN ({names})"  # noqa: S608
        return int(connection.execute(query).fetchone()[0] or 0)


async def writes(markets: int, runs: int, folder: Path) -> None:
    """Measure what one more run writes to the WAL of a file of many runs, while a reader stays."""
    path = folder / "writes.db"
    async with FakePolymarket(markets) as exchange:
        for _ in range(runs):
            exchange.move_books(0.2)
            await collect(exchange, path)
        with sqlite3.connect(path) as connection:
            books, levels = connection.execute(
                "SELECT count(*), avg(json_array_length(bids) + json_array_length(asks)) FROM books"
            ).fetchone()
            table = bytes_of(path, "'books', 'sqlite_autoindex_books_1'")
            print(f"{table / books:.0f} bytes per stored book of {levels:.1f} levels, {books} books")
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM runs").fetchone()
        for share in (0.2, 0.2, 0.0):
            wal = path.with_name(path.name + "-wal")
            before = wal.stat().st_size if wal.exists() else 0
            exchange.move_books(share)
            result = await collect(exchange, path)
            size = wal.stat().st_size - before
            with sqlite3.connect(path) as connection:
                row = connection.execute(
                    "SELECT sum(length(bids) + length(asks)) FROM books WHERE book_id > "
                    "(SELECT max(book_id) FROM books) - ?",
                    (result["books_saved"],),
                ).fetchone()
            print(
                f"a run of {markets} markets, {result['books_saved']} new books: {size / 1e6:.2f} MB to the WAL, of it "
                f"{(row[0] or 0) / 1e6:.2f} MB text of books; {size / markets:.0f} bytes per market"
            )
        reader.close()


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markets", type=int, default=3_000)
    parser.add_argument("--runs", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for markets in (1_000, 30_000):
            await compare(markets, Path(folder))
        await writes(args.markets, args.runs, Path(folder))


if __name__ == "__main__":
    asyncio.run(main())
