#!/usr/bin/env python3
"""Collect Polymarket's markets into SQLite: the command `async-collector`.

Results go to stdout; log, progress and errors go to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import aiohttp
from tqdm import tqdm

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (ac.ConfigError, 78),
    (ac.DatabaseBusy, 75),
    (ac.StorageError, 74),
    (ac.MalformedResponseError, 65),
    (ac.AccessDeniedError, 69),
    (ac.RequestRejectedError, 65),
    (ac.RateLimitedError, 75),
    (ac.ApiError, 69),
)
DRIFT: Final = 65
PARTIAL: Final = 75
INTERRUPTED: Final = 128  # and the number of the signal

SUMMARY: Final = """\
Run {run_id} is {status}
  duration         {duration:.2f} s
  markets          {markets} of {listed}
  snapshots        {snapshots}
  books missing    {books_missing}
  markets per s    {rate:.0f}
  errors           {errors}
  retries          {retries}
  rate limit hits  {rate_limit_hits}
  posts            {tweets}
  database         {database}"""

BENCHMARK: Final = """\
Benchmark: the same markets twice, each time in a process and a database of its own{sample}
                      one by one          async
  duration       {old[duration]:>12.2f} s {new[duration]:>12.2f} s
  markets        {old[markets]:>14} {new[markets]:>14}
  markets per s  {old[markets_per_second]:>14.0f} {new[markets_per_second]:>14.0f}
  requests       {old[requests]:>14} {new[requests]:>14}
  peak memory    {old_memory:>14} {new_memory:>14}
  speed-up       {speed_up:.0f} times
  same markets   {same}"""


def say(text: str, stream: TextIO) -> None:
    """Print *text*; what has been collected is not lost because nobody reads on."""
    try:
        print(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        description="Take snapshots of Polymarket's open markets and store them in a SQLite file.",
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
        "--workers", metavar="N", type=checked(ac.whole_number), default=10, help="requests in flight, 1 to 1000 (10)"
    )
    parser.add_argument(
        "--max-retries", metavar="N", type=number_from_0, default=3, help="further attempts per request (3)"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=number_above_0, default=10, help="for one attempt, to its last byte (10)"
    )
    parser.add_argument(
        "--run-timeout",
        metavar="SECONDS",
        type=number_above_0,
        default=600,
        help="for a whole run, which ends with what it has then (600, or the interval if that is shorter)",
    )
    parser.add_argument(
        "--no-follow",
        action="store_true",
        help="in this run, collect nothing for the mere reason that it was collected before",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--continuous", action="store_true", help="collect now and at every multiple of the interval, until stopped"
    )
    parser.add_argument(
        "--interval", metavar="MIN", type=checked(ac.minutes), default=15, help="minutes between two collections (15)"
    )
    modes.add_argument(
        "--status", action="store_true", help="say how the collection is going; exit 1 if that is not well"
    )
    modes.add_argument(
        "--benchmark",
        action="store_true",
        help="collect twice into temporary files, one by one and as always, and compare",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.add_argument("--quiet", action="store_true", help="print no header, no bar and no summary")
    parser.add_argument("--verbose", action="store_true", help="log every request to stderr, instead of the bar")
    parser.add_argument("--version", action="version", version=versions)
    return parser


def summary(result: ac.CollectionResult) -> str:
    """Return what *result* says to a person."""
    stats = result["stats"]
    rate = result["markets"] / result["duration"] if result["duration"] else 0.0
    return SUMMARY.format_map({**stats, **result, "rate": rate, "listed": stats["markets_fetched"]})


def comparison(result: ac.BenchmarkResult) -> str:
    """Return what a benchmark's *result* says to a person."""
    ways = {"old": result["one_by_one"], "new": result["async_collector"]}
    peaks = {name: way["peak_memory_mb"] for name, way in ways.items()}
    memory = {f"{name}_memory": "unknown" if peak is None else f"{peak:.0f} MB" for name, peak in peaks.items()}
    return BENCHMARK.format(
        **ways,
        **memory,
        speed_up=result["speed_up"],
        sample=f"; one by one: a sample of {result['sample']}" if result["sample"] else "",
        same="yes" if result["same_markets"] else "no: the exchange has changed meanwhile",
    )


def status_lines(status: ac.Status) -> str:
    """Return what a *status* says to a person."""
    age = (
        "never" if status["age"] is None else f"{status['last_complete_at']} UTC, {status['age'] / 60:.0f} minutes ago"
    )
    lines = [
        f"{status['database']} is {'well' if status['healthy'] else 'NOT WELL'}",
        f"  last complete run  {age}",
        f"  missed in a day    {status['missed_ticks']}",
        f"  file and WAL       {status['file_bytes'] / 1e6:.1f} MB and {status['wal_bytes'] / 1e6:.1f} MB",
        *(
            f"  run {run['run_id']:<14} {run['started_at']} {ac.printable(run['status'])}, "
            f"{run['snapshots_saved']} markets of "
            f"{run['markets_listed']}, {run['books_missing']} without books, {run['errors']} errors"
            for run in status["runs"]
        ),
    ]
    return "\n".join(lines)


def is_well(result: ac.CollectionResult) -> bool:
    """Return whether there is nothing to complain about, as far as markets go."""
    return result["status"] == "complete" and not result["drift"]


def say_posts(result: ac.CollectionResult) -> None:
    """Say why posts are missing, if that is so."""
    if result["tweets_reason"]:
        say(f"async-collector: posts: {result['tweets_reason']}", sys.stderr)


def complaint(result: ac.CollectionResult) -> str:
    """Return why a run that is not complete is not."""
    good = result["markets"] - result["books_missing"]
    why = (
        f"the exchange's answers have changed: {result['drift']}"
        if result["drift"]
        else f"first failure: {result['reason']}"
    )
    return (
        f"async-collector: {good} of {result['stats']['markets_fetched']} listed markets were stored with their books; "
        f"{why} (see the table failures, run {result['run_id']})"
    )


class Bar:
    """A progress bar on stderr over markets; how many there are is known once all are listed."""

    def __init__(self, *, shown: bool) -> None:
        """Draw nothing before the first progress."""
        self._shown = shown
        self._bar: tqdm[Any] | None = None
        self.stored = 0

    def show(self, progress: ac.Progress) -> None:
        """Draw *progress*."""
        self.stored = progress.stored
        if self._bar is None:
            self._bar = tqdm(unit=" markets", disable=not self._shown, dynamic_ncols=True)
        self._bar.total = progress.listed if progress.all_listed else None
        self._bar.set_postfix(errors=progress.errors, refresh=False)
        self._bar.update(progress.stored - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def on_signals(stop: Callable[[], object], caught: list[int]) -> None:
    """Call *stop* at the first SIGINT or SIGTERM, and end the process at the second."""

    def handle(number: int) -> None:
        if caught:
            os._exit(INTERRUPTED + number)
        caught.append(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            asyncio.get_running_loop().add_signal_handler(number, handle, number)
        except NotImplementedError:  # Windows has no signals on the loop; there Ctrl-C is a KeyboardInterrupt
            break


async def collect(collector: ac.AsyncCollector, caught: list[int]) -> ac.CollectionResult:
    """Run *collector* once, unless a signal is caught."""
    task = asyncio.current_task()
    if task:
        on_signals(task.cancel, caught)
    return await collector.collect_all()


async def keep_collecting(args: argparse.Namespace, chosen: dict[str, Any]) -> None:
    """Collect at every tick until a signal is caught."""
    stop = asyncio.Event()
    on_signals(stop.set, [])

    def tell(tick: ac.Tick) -> None:
        result = tick.result
        if result and args.json:
            say(json.dumps(result), sys.stdout)
        if result:
            say_posts(result)
        coming = f"next run {tick.next_run:%H:%M:%S} UTC"
        if tick.missed:
            coming += f", {tick.missed} ticks missed so far"
        if tick.error:
            say(f"async-collector: {tick.error}; {coming}", sys.stderr)
        elif result and not is_well(result):
            say(f"{complaint(result)}; {coming}", sys.stderr)
        elif result and not args.quiet:
            went = f"run {result['run_id']} is complete: {result['markets']} markets in {result['duration']:.2f} s"
            say(f"{went}; {coming}", sys.stderr)

    await ac.continuous_collection(interval_minutes=args.interval, stop=stop, on_tick=tell, **chosen)


def announce(settings: ac.Settings, cadence: str = "") -> None:
    """Say what is about to be collected."""
    volume = settings.min_volume_usd
    what = f"markets over ${volume:,.15g} in 24 h" if volume else "all open markets"
    say(f"Polymarket to {settings.db_path}: {what}, {settings.workers} workers{cadence}", sys.stderr)


def run(args: argparse.Namespace) -> int:
    """Do what *args* say and return the exit code."""
    chosen = {name: getattr(args, name) for name in ("workers", "max_retries", "timeout", "run_timeout", "min_volume")}
    chosen["follow"] = not args.no_follow
    path = ac.DEFAULT_DB_PATH if args.db is None else args.db
    if args.status:
        status = ac.read_status(path, args.interval)
        say(json.dumps(status) if args.json else status_lines(status), sys.stdout)
        return 0 if status["healthy"] else 1
    if args.benchmark:
        compared = ac.benchmark(**chosen)
        say(json.dumps(compared) if args.json else comparison(compared), sys.stdout)
        return 0
    if args.continuous:
        chosen["run_timeout"] = min(args.run_timeout, args.interval * 60)
        if not args.quiet:
            announce(ac.AsyncCollector(path, **chosen).settings, f", every {args.interval:g} minutes")
        asyncio.run(keep_collecting(args, chosen | {"db_path": path}))
        return 0
    return run_once(args, path, chosen)


def run_once(args: argparse.Namespace, path: str, chosen: dict[str, Any]) -> int:
    """Collect once and return the exit code."""
    bar = Bar(shown=sys.stderr.isatty() and not (args.quiet or args.verbose))
    collector = ac.AsyncCollector(path, **chosen, progress=bar.show)
    if not args.quiet:
        announce(collector.settings)
    caught: list[int] = []
    try:
        result = asyncio.run(collect(collector, caught))
    except (asyncio.CancelledError, KeyboardInterrupt):
        bar.close()
        say(f"async-collector: interrupted; {bar.stored} markets of this run are stored", sys.stderr)
        return INTERRUPTED + (caught[0] if caught else signal.SIGINT)
    except ac.StorageError as error:
        msg = f"{error}; {bar.stored} markets of this run are stored" if bar.stored else str(error)
        raise type(error)(msg) from error
    finally:
        bar.close()
    if args.json or not args.quiet:
        say(json.dumps(result) if args.json else summary(result), sys.stdout)
    say_posts(result)
    if not is_well(result):
        say(complaint(result), sys.stderr)
        return DRIFT if result["drift"] else PARTIAL
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* and return its exit code."""
    for name in ("stdout", "stderr"):  # None where the caller has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the end
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.CRITICAL, format="%(levelname)s %(message)s")
    for chatty in ("aiosqlite", "asyncio", "filelock"):  # aiosqlite logs every stored row at DEBUG
        logging.getLogger(chatty).setLevel(logging.INFO)
    try:
        return run(args)
    except ac.CollectorError as error:
        say(f"async-collector: {error}", sys.stderr)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except KeyboardInterrupt:
        return INTERRUPTED + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
