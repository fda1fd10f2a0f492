#!/usr/bin/env python3
"""Collect Polymarket's markets into SQLite: the command `async-collector`.

Results go to stdout; log, progress and errors go to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import signal
import sqlite3
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp
from tqdm import tqdm

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ac.ConfigError, 78),
    (ac.DatabaseBusy, 75),
    (ac.StorageError, 74),
    (ac.MalformedResponseError, 65),
    (ac.RequestRejectedError, 65),
    (ac.RateLimitedError, 75),
    (ac.ApiError, 69),
)
PARTIAL, INTERRUPTED, TERMINATED = 75, 130, 143

SUMMARY = """\
Run {run_id} is {status}
  duration         {duration:.2f} s
  markets          {markets} of {listed}
  snapshots        {snapshots}
  markets per s    {rate:.0f}
  errors           {errors}
  retries          {retries}
  rate limit hits  {rate_limit_hits}
  database         {database}"""


BENCHMARK = """\
Benchmark: the same markets twice, each time in a process and a database of its own{sample}
                      one by one          async
  duration       {old[duration]:>12.2f} s {new[duration]:>12.2f} s
  markets        {old[markets]:>14} {new[markets]:>14}
  markets per s  {old[markets_per_second]:>14.0f} {new[markets_per_second]:>14.0f}
  requests       {old[requests]:>14} {new[requests]:>14}
  peak memory    {old_memory:>14} {new_memory:>14}
  speed-up       {speed_up:.0f} times
  same markets   {same}"""


def checked(check: Callable[[str, object], float]) -> Callable[[str], float]:
    """Return *check* as an argparse type, whose complaint argparse prints."""

    def convert(text: str) -> float:
        try:
            return check("", text)
        except ac.ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("=")) from error

    return convert


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the README has the same table."""
    parser = argparse.ArgumentParser(
        prog="async-collector",
        description="Take one snapshot of Polymarket's open markets and store it in a SQLite file.",
    )
    versions = (
        f"async-collector {ac.__version__} (Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, aiohttp {aiohttp.__version__})"
    )
    number_above_0 = checked(lambda name, value: ac.finite_number(name, value, above=0))
    number_from_0 = checked(lambda name, value: ac.whole_number(name, value, at_least=0))
    parser.add_argument("--db", metavar="PATH", help="database file (POLYMARKET_DB, else polymarket_data.db)")
    parser.add_argument(
        "--min-volume",
        metavar="USD",
        type=checked(ac.finite_number),
        default=100_000,
        help="leave out markets with less volume in 24 hours; 0 takes every open market (100000)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=checked(ac.whole_number), default=10, help="requests in flight (10)"
    )
    parser.add_argument(
        "--max-retries", metavar="N", type=number_from_0, default=3, help="further attempts per request (3)"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=number_above_0, default=10, help="for one attempt, to its last byte (10)"
    )
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="collect twice into temporary files, one by one and as always, and compare",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing when all is well")
    parser.add_argument("--verbose", action="store_true", help="log every step to stderr")
    parser.add_argument("--version", action="version", version=versions)
    return parser


async def collect(collector: ac.AsyncCollector) -> ac.CollectionResult:
    """Run *collector* once; SIGTERM cancels it as Ctrl-C does."""
    task = asyncio.current_task()
    with suppress(NotImplementedError):  # Windows has no signals on the loop
        if task:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await collector.collect_all()


def report(result: ac.CollectionResult, *, as_json: bool) -> None:
    """Print *result* for a person or for a program."""
    if as_json:
        print(json.dumps(result))
        return
    stats = result["stats"]
    rate = result["markets"] / result["duration"] if result["duration"] else 0.0
    print(SUMMARY.format_map({**stats, **result, "rate": rate, "listed": stats["markets_fetched"]}))


def report_benchmark(result: ac.BenchmarkResult, *, as_json: bool) -> None:
    """Print what two ways of collecting took."""
    if as_json:
        print(json.dumps(result))
        return
    old, new = result["one_by_one"], result["async_collector"]
    sample = f"; one by one: a sample of {result['sample']}" if result["sample"] else ""
    memory = ["unknown" if way["peak_memory_mb"] is None else f"{way['peak_memory_mb']:.0f} MB" for way in (old, new)]
    same = "yes" if result["same_markets"] else "no: the exchange has changed meanwhile"
    values = {"old": old, "new": new, "old_memory": memory[0], "new_memory": memory[1], "same": same, "sample": sample}
    print(BENCHMARK.format(speed_up=result["speed_up"], **values))


def run(args: argparse.Namespace) -> int:
    """Collect as *args* say and return the exit code."""

    def show(progress: ac.Progress) -> None:
        bar.total = progress.listed
        bar.set_postfix(errors=progress.errors, refresh=False)
        bar.update(progress.stored - bar.n)

    chosen = {name: getattr(args, name) for name in ("workers", "max_retries", "timeout", "min_volume")}
    if args.benchmark:
        report_benchmark(ac.benchmark(**chosen), as_json=args.json)
        return 0
    collector = ac.AsyncCollector(args.db or ac.DEFAULT_DB_PATH, **chosen, progress=show)
    settings = collector.settings
    if not args.quiet:
        what = (
            f"markets over ${settings.min_volume_usd:,.0f} in 24 h" if settings.min_volume_usd else "all open markets"
        )
        print(f"Polymarket to {settings.db_path}: {what}, {settings.workers} workers", file=sys.stderr)
    show_bar = sys.stderr.isatty() and not (args.quiet or args.verbose)
    with tqdm(unit=" markets", disable=not show_bar, dynamic_ncols=True) as bar:
        result = asyncio.run(collect(collector))
    if args.json or not args.quiet:
        report(result, as_json=args.json)
    if result["status"] != "complete":
        stats = result["stats"]
        print(
            f"async-collector: only {result['markets'] - result['books_missing']} of {stats['markets_fetched']} "
            f"markets were stored with their books; see the table failures, run {result['run_id']}",
            file=sys.stderr,
        )
        return PARTIAL
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* and return its exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.ERROR, format="%(levelname)s %(message)s")
    logging.getLogger("aiosqlite").setLevel(logging.INFO)  # at DEBUG it logs every stored row
    try:
        return run(args)
    except ac.CollectorError as error:
        print(f"async-collector: {error}", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except KeyboardInterrupt:
        return INTERRUPTED
    except asyncio.CancelledError:
        return TERMINATED


if __name__ == "__main__":
    sys.exit(main())
