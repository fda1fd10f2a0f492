#!/usr/bin/env python3
"""Collect Polymarket's markets into SQLite: the command `async-collector`.

Results go to stdout; log, progress and errors go to stderr. The file reads top down: what is said and asked, a run once
or at every tick, `--status` and its metrics, `--benchmark`, and `main`.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  said before an import fails without it
    sys.exit(f"async-collector needs Python 3.11 or newer, and this is {sys.version.split()[0]}")

import argparse
import asyncio
import difflib
import gc
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import signal
import sqlite3
import textwrap
import time
from collections import Counter
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar

import aiohttp
from tqdm import tqdm

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

T = TypeVar("T")

# the codes of errors stand at their classes
DRIFT: Final = ac.MalformedResponseError.exit_code
UNWRITTEN: Final = 74
PARTIAL: Final = 75
UNKNOWN_NAMES: Final = ac.UnknownNamesError.exit_code
INTERVAL_MIN: Final = 15
INTERRUPTED: Final = 128  # and the number of the signal

SUMMARY: Final = """\
Run {run_id} is {status}
  duration         {duration:.2f} s
  markets          {markets} of {listed}
  snapshots        {snapshots}
  books stored     {books_saved}
  books unchanged  {books_unchanged}
  books missing    {books_missing}
  markets per s    {rate:.0f}
  errors           {errors}
  retries          {retries}
  rate limit hits  {rate_limit_hits}
  posts            {tweets}
  database         {database}"""


def print_line(text: str, stream: TextIO) -> OSError | None:
    """Print *text* and return why it could not be written; that nobody reads on is no reason to complain."""
    try:
        print(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=True)
    except OSError as error:
        drop_buffered(stream)
        return None if isinstance(error, BrokenPipeError) else error
    return None


def drop_buffered(stream: TextIO) -> None:
    """Send what *stream* holds nowhere: at the exit it would fail again."""
    descriptor = stream.fileno()
    kept = os.dup(descriptor)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)
        stream.flush()
    if stream is sys.stdout:  # a later result may find room; stderr stays shut, for the bar writes to it as well
        os.dup2(kept, descriptor)
    os.close(kept)


def say_end(text: str) -> None:
    """Say what was done before a signal; on a terminal over the `^C` that it has shown."""
    print_line(f"{chr(13) * sys.stderr.isatty()}async-collector: {text}", sys.stderr)


def print_result(text: str, code: int = 0) -> int:
    """Print *text*, the result that was asked for, and return the exit code: *code* if it could be written."""
    if error := print_line(text, sys.stdout):
        print_line(f"async-collector: the result could not be written: {error}", sys.stderr)
        return UNWRITTEN
    return code


def checked(check: Callable[[str, str], T]) -> Callable[[str], T]:
    """Return *check* as an argparse type, whose complaint argparse prints."""

    def convert(text: str) -> T:
        try:
            return check("", text)
        except ac.ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("=")) from error

    return convert


class Parser(argparse.ArgumentParser):
    """Complains in one line, and names the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """End the program with the code 2."""
        unknown = message.partition("unrecognized arguments: ")[2].split()
        hint = next(filter(None, map(self._hint, unknown)), "")
        self.exit(2, f"{self.prog}: error: {ac.printable(message + hint)}\n")

    def _hint(self, word: str) -> str:
        """Return what may help whoever has written *word*; nothing where that is not to be guessed."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        name = word.lstrip("-").partition("=")[0].replace("_", "-").lower()
        begins = [option for option in known if option.startswith(f"--{name}")]
        has_it = [option for option in known if name in option.split("-")]
        if not word.startswith("-"):
            return "; a name has --market, --event, --series or --tag before it, a file --db"
        near = begins or has_it or difflib.get_close_matches(f"--{name}", known, 1)
        return f"; did you mean {' or '.join(near)}?" if name and near else ""


MAX_LINES: Final = 20  # of named markets
# shares on offer within 2 cents of the best bid and of the best ask, both together
NAMED: Final = """
    SELECT market_id, slug, question, price_yes, best_bid_yes, best_ask_yes, spread, (
        SELECT sum(l.size) FROM book_levels AS l WHERE l.snapshot_id = s.id AND l.outcome = 'YES'
            AND abs(l.price - CASE l.side WHEN 'bid' THEN best_bid_yes ELSE best_ask_yes END) < 0.02 + 1e-9
    ) AS depth_2c
    FROM latest_snapshots AS s
    WHERE run_id = :run AND (
        market_id IN (SELECT value FROM json_each(:markets)) OR slug IN (SELECT value FROM json_each(:markets))
        OR market_id IN (SELECT id FROM names WHERE kind = 'market' AND name IN (SELECT value FROM json_each(:markets)))
        OR event_slug IN (SELECT value FROM json_each(:events))
    )
    ORDER BY volume_24h DESC
"""


VARIABLES: Final = textwrap.fill(", ".join(ac.ENVIRONMENT), 78, initial_indent="  ", subsequent_indent="  ")
EPILOG: Final = f"""\
examples:
  async-collector
      one snapshot of each market over $100,000 in 24 hours, to polymarket_data.db
  async-collector --event the-cup --continuous --interval 0.05 --db cup.db
      all markets of an event, every 3 seconds, until Ctrl-C

variables:
{VARIABLES}
  and HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY

exit codes:
  0 done; 1 a bug, or with --status: not well; 2 bad command line;
  65 the exchange answers in an unknown shape; 69 it cannot be reached;
  74 the file cannot be used; 75 less than 95 % stored, or the file is locked;
  78 bad configuration, or none of the names exists; 130, 143 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the README has the same table."""
    parser = Parser(
        allow_abbrev=False,
        prog="async-collector",
        description="Take snapshots of Polymarket's open markets and store them in a SQLite file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    versions = (
        f"async-collector {ac.__version__} (Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, aiohttp {aiohttp.__version__})"
    )
    number_above_0 = checked(lambda name, value: ac.finite_number(name, value, positive=True))
    number_from_0 = checked(lambda name, value: ac.whole_number(name, value, at_least=0))

    def option(flag: str, says: str, group: argparse._ActionsContainer = parser, **kind: Any) -> None:  # noqa: ANN401
        group.add_argument(flag, help=says, **kind)

    modes = parser.add_mutually_exclusive_group()
    option("--db", "database file (POLYMARKET_DB, else polymarket_data.db)", metavar="PATH", type=checked(ac.file_name))
    volume = "leave out markets with less volume in 24 hours; 0 takes every open market (100000)"
    option("--min-volume", volume, metavar="USD", type=checked(ac.finite_number), default=ac.DEFAULT_MIN_VOLUME)
    for kind, (_, examples) in ac.NAMES.items():
        named = checked(lambda name, value, kind=kind: ac.exchange_name(name, value, kind))  # type: ignore[misc]
        flag = f"--{kind if kind == 'series' else kind.removesuffix('s')}"
        names = f"take these {kind}, and nothing that is not named; {examples}"
        option(flag, names, metavar="NAME", dest=kind, action="append", default=[], type=named)
    soon = "of series and tags, take only what ends within so many minutes"
    option("--ends-within", soon, metavar="MIN", type=checked(ac.minutes))
    depth = checked(lambda name, value: ac.whole_number(name, value, at_least=0, at_most=ac.MAX_DEPTH))
    levels = "keep the best LEVELS of each side of a book; 0 keeps no books (all)"
    option("--depth", levels, metavar="LEVELS", type=depth)
    option("--workers", "requests in flight, 1 to 1000 (10)", metavar="N", type=checked(ac.whole_number), default=10)
    option("--max-retries", "further attempts per request (3)", metavar="N", type=number_from_0, default=3)
    option("--timeout", "for one attempt, to its last byte (10)", metavar="SECONDS", type=number_above_0, default=10)
    whole_run = "for a whole run, which ends with what it has then (600, or the interval if that is shorter)"
    option("--run-timeout", whole_run, metavar="SECONDS", type=number_above_0, default=600)
    no_follow = "in this run, collect nothing for the mere reason that it was collected before"
    option("--no-follow", no_follow, action="store_true")
    continuous = "collect now and at every multiple of the interval, until stopped"
    option("--continuous", continuous, modes, action="store_true")
    interval = f"minutes between two collections, for --continuous and --status ({INTERVAL_MIN})"
    option("--interval", interval, metavar="MIN", type=checked(ac.minutes))
    option("--status", "say how the collection is going; exit 1 if that is not well", modes, action="store_true")
    option("--metrics", "with --status: print it as text for Prometheus, not for a person", action="store_true")
    benchmark = "collect twice into temporary files, one by one and as always, and compare"
    option("--benchmark", benchmark, modes, action="store_true")
    option("--json", "print the result as one line of JSON", action="store_true")
    option("--quiet", "print no header, no bar and no summary", action="store_true")
    option("--verbose", "log every request to stderr, instead of the bar", action="store_true")
    parser.add_argument("--version", action="version", version=versions)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what *argv* asks for, or end the program if that makes no sense."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.interval is None:
        args.interval = INTERVAL_MIN
    elif not (args.continuous or args.status):
        parser.error("argument --interval: only with --continuous or --status, for a single run has no interval")
    if args.metrics and (args.json or not args.status):
        parser.error("argument --metrics: only with --status, and not with --json")
    if args.ends_within is not None and not (args.series or args.tags):
        parser.error("argument --ends-within: only with --series or --tag")
    if args.benchmark and any(getattr(args, kind) for kind in ac.NAMES):
        parser.error("argument --benchmark: not with names, for it lists by volume")
    return args


def no_file(result: ac.CollectionResult) -> str:
    """Return that there is no file, where a first run had nothing to store."""
    return "" if Path(result["database"]).exists() else f", so there is no file {result['database']}"


def summary(result: ac.CollectionResult, named: Sequence[dict[str, Any]] = ()) -> str:
    """Return what *result* and the prices of the *named* markets say to a person."""
    stats = result["stats"]
    if not result["markets"]:
        return f"Run {result['run_id']} is {result['status']}: no market was stored{no_file(result)}"
    rate = result["markets"] / result["duration"] if result["duration"] else 0.0
    lines = [SUMMARY.format_map({**stats, **result, "rate": rate, "listed": stats["markets_fetched"]})]
    lines += [named_line(market) for market in named[:MAX_LINES]]
    if len(named) > MAX_LINES:
        lines.append(f"  and {len(named) - MAX_LINES} more markets, in latest_snapshots")
    return "\n".join(lines)


def named_line(market: dict[str, Any]) -> str:
    """Return price, spread, depth and question of a named market."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    question = ac.printable(market["question"] or market["slug"] or market["market_id"])
    return (
        f"  price {shown(market['price_yes'], '.4g')}, spread {shown(market['spread'], '.4g')}, "
        f"{shown(market['depth_2c'], ',.0f')} shares within 2 cents: {question}"
    )


def read_named(result: ac.CollectionResult, selection: ac.Selection) -> list[dict[str, Any]]:
    """Return the rows that the run of *result* has stored of the markets named one by one or by their event."""
    if not (result["markets"] and (selection.markets or selection.events)):
        return []
    markets = [name.removeprefix("market/") for name in selection.markets]
    events = [*selection.events, *(name.removeprefix("event/") for name in markets if "/" in name)]
    names = {"run": result["run_id"], "markets": json.dumps(markets), "events": json.dumps(events)}
    with ac.open_read_only(Path(result["database"]), leave_no_log=True) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(NAMED, names)]


def is_well(result: ac.CollectionResult) -> bool:
    """Return whether there is nothing to complain about, as far as markets go."""
    return result["status"] == "complete" and not result["drift"]


def say_notes(result: ac.CollectionResult) -> None:
    """Say which names have nothing to collect, and why posts are missing, if that is so."""
    for note in result["notes"]:
        print_line(f"async-collector: {note}", sys.stderr)
    if result["tweets_reason"]:
        print_line(f"async-collector: posts: {result['tweets_reason']}", sys.stderr)


def complaint(result: ac.CollectionResult) -> str:
    """Return why a run that is not complete is not."""
    good = result["markets"] - result["books_missing"]
    where = no_file(result) or f" (see the table failures, run {result['run_id']})"
    why = f"first failure: {result['reason']}"
    if result["drift"]:
        why = f"the exchange's answers have changed: {result['drift']}"
    return (
        f"async-collector: {good} of {result['stats']['markets_fetched']} listed markets were stored with their books; "
        f"{why}{where}"
    )


# of runs: which asked for these names, or for none
OF_NAMES: Final = "(SELECT names FROM selections WHERE selections.selection_id = runs.selection_id) IS :names"
LISTED_BEFORE: Final = f"""
    SELECT max(markets_listed) FROM (
        SELECT markets_listed FROM runs
        WHERE min_volume IS :min_volume AND {OF_NAMES}
        ORDER BY run_id DESC LIMIT 10  -- one that was interrupted, or came to its end too soon, has listed few
    )
"""  # noqa: S608  a condition of ours


def expected_markets(settings: ac.Settings) -> int:
    """Return how many markets the last runs of the same selection listed; 0 where that is not known."""
    with suppress(ac.StorageError), ac.open_read_only(settings.db_path, leave_no_log=True) as connection:
        (listed,) = connection.execute(LISTED_BEFORE, settings.selection.columns).fetchone()
        return int(listed or 0)
    return 0


class Bar:
    """A progress bar on stderr over markets.

    How many there are is known once all are listed; before that they are taken to be as many as in the last runs.
    """

    def __init__(self, *, shown: bool) -> None:
        """Draw nothing before the first progress."""
        self.shown = shown
        self.expected = 0
        self._bar: tqdm[Any] | None = None
        self._began = time.time()
        self.stored = 0

    def show(self, progress: ac.Progress) -> None:
        """Draw *progress*."""
        self.stored = progress.stored
        if not (self.shown and self.stored):
            return
        if self._bar is None:
            self._bar = tqdm(unit=" markets", dynamic_ncols=True, delay=1e-9)  # drawn once it has something to show
            self._bar.start_t = self._began  # the listing took time as well, and goes on
        expected = self.expected and max(self.expected, progress.listed)
        self._bar.total = progress.listed if progress.all_listed else expected or None
        postfix: dict[str, object] = {"errors": progress.errors}
        if progress.share_read is not None:
            postfix["first listing"] = f"{progress.share_read:.0%}"
        self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(progress.stored - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def on_signals(stop: Callable[[], object], caught: list[int]) -> None:
    """Call *stop* at the first SIGINT or SIGTERM, and end the process at the second; a name server delays neither."""

    def handle(number: int) -> None:
        if caught:
            os._exit(INTERRUPTED + number)
        caught.append(number)
        stop()

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ac.DaemonThreads())
    with suppress(NotImplementedError):  # Windows has no signals on the loop; there Ctrl-C is a KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, handle, number)


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
    done: Counter[str] = Counter()

    def count(progress: ac.Progress) -> None:
        done["under way"] = progress.stored

    def report_tick(tick: ac.Tick) -> None:
        result = tick.result
        done["runs"] += 1
        done["snapshots"] += done.pop("under way", 0)
        if result and args.json:
            print_result(json.dumps(result))
        if result:
            say_notes(result)
        coming = f"next run {tick.next_run:%H:%M:%S} UTC"
        if tick.missed:
            coming += f", {tick.missed} ticks missed so far"
        if tick.error:
            print_line(f"async-collector: {tick.error}; {coming}", sys.stderr)
        elif result and not is_well(result):
            print_line(f"{complaint(result)}; {coming}", sys.stderr)
        elif result and not args.quiet:
            went = f"run {result['run_id']} is complete: {result['markets']} markets in {result['duration']:.2f} s"
            print_line(f"{went}; {coming}", sys.stderr)

    await ac.continuous_collection(
        interval_minutes=args.interval, stop=stop, on_tick=report_tick, progress=count, **chosen
    )
    if not args.quiet:
        cut = f", and {done['under way']} by the run under way" if done["under way"] else ""
        say_end(f"stopped; runs: {done['runs']}, snapshots stored: {done['snapshots']}{cut}")


def announce(settings: ac.Settings, cadence: str = "") -> None:
    """Say what is about to be collected."""
    volume = settings.selection.min_volume_usd
    what = f"markets over ${volume:,.15g} in 24 h" if volume else "all open markets"
    if names := settings.selection.names:
        what = "; ".join(f"{kind} {', '.join(some[:3])}{', ...' * (len(some) > 3)}" for kind, some in names.items())  # noqa: PLR2004  examples
    print_line(f"Polymarket to {settings.db_path}: {what}, {settings.workers} workers{cadence}", sys.stderr)


def run_once(args: argparse.Namespace, path: str, chosen: dict[str, Any]) -> int:
    """Collect once and return the exit code."""
    bar = Bar(shown=sys.stderr.isatty() and not (args.quiet or args.verbose))
    collector = ac.AsyncCollector(path, **chosen, progress=bar.show)
    if not args.quiet:
        announce(collector.settings)
    bar.expected = expected_markets(collector.settings) if bar.shown else 0
    caught: list[int] = []
    try:
        result = asyncio.run(collect(collector, caught))
    except (asyncio.CancelledError, KeyboardInterrupt):
        bar.close()
        say_end(f"interrupted; {bar.stored} markets of this run are stored")
        return INTERRUPTED + (caught[0] if caught else signal.SIGINT)
    except ac.StorageError as error:
        msg = f"{error}; {bar.stored} markets of this run are stored" if bar.stored else str(error)
        raise type(error)(msg, lasting=error.lasting) from error
    finally:
        bar.close()
    code = DRIFT if result["drift"] else 0 if is_well(result) else PARTIAL
    if result["unknown"] and len(result["unknown"]) == collector.settings.selection.count:
        code = UNKNOWN_NAMES
    named = read_named(result, collector.settings.selection) if args.json or not args.quiet else []
    if args.json:
        code = print_result(json.dumps({**result, "named": named}), code)
    elif not (args.quiet or code == UNKNOWN_NAMES):
        print_line(summary(result, named), sys.stdout)  # for a person; whoever cannot have it has lost nothing
        if size(collector.settings.db_path, "-wal") > ac.WAL_LIMIT_BYTES:
            print_line(f"async-collector: {LARGE_WAL}", sys.stderr)
    say_notes(result)
    if not is_well(result):
        print_line(complaint(result), sys.stderr)
    return code


# --- Status -----------------------------------------------------------------------------------------------------------

RECENT_RUNS: Final = """
    SELECT run_id, started_at, status, markets_listed, snapshots_saved, books_missing, errors, duration
    FROM runs ORDER BY run_id DESC LIMIT 5
"""
# what was collected in the last seven days, with the newest run of each that has ended
SELECTIONS: Final = """
    SELECT min_volume, names, depth, max(run_id) AS run_id, min(first_run_at) AS first_run_at,
           max(last_run_at) AS last_run_at, sum(complete_runs) AS complete_runs,
           max(last_complete_at) AS last_complete_at
    FROM (
        SELECT min_volume, selection_id, depth, max(iif(status <> 'running', run_id, NULL)) AS run_id,
               min(started_at) AS first_run_at, max(started_at) AS last_run_at,
               sum(status = 'complete') AS complete_runs,
               max(iif(status = 'complete', started_at, NULL)) AS last_complete_at
        FROM runs WHERE started_at > datetime(:now, '-7 days') AND started_at <= datetime(:now, '2 seconds')
        GROUP BY min_volume, selection_id, depth
    ) LEFT JOIN selections USING (selection_id)
    GROUP BY min_volume, names, depth HAVING max(run_id) IS NOT NULL ORDER BY max(run_id) DESC
"""
STARTS: Final = f"""
    SELECT started_at FROM runs WHERE started_at > :since AND started_at <= datetime(:now, '2 seconds')
        AND min_volume IS :min_volume AND depth IS :depth AND {OF_NAMES}
    ORDER BY run_id
"""  # noqa: S608  a condition of ours
# connections of `collector-live` that have not ended, and gaps that have not
STREAMS: Final = """
    SELECT count(*) AS streams, min(coalesce(verified_at, started_at)) AS verified_at, total(tokens) AS tokens,
           total(frames) AS frames, total(changes) AS changes, total(trades) AS trades,
           (SELECT count(*) FROM live_gaps WHERE until IS NULL) AS gaps,
           (SELECT min(since) FROM live_gaps WHERE until IS NULL) AS gap_since
    FROM streams WHERE reason IS NULL
"""
LARGE_WAL: Final = "the WAL is large: a reader that never finishes probably holds it"
CLOCKS_DIFFER_S: Final = 2  # by so much without one of them being wrong
LIVE_FRESH_S: Final = 120  # a stream is compared with the exchange's books every 30 s
DAY_S: Final = 86_400
MAX_LABEL: Final = 100  # signs; whatever is longer ends with a digest of all of it


def size(path: Path, suffix: str = "") -> int:
    """Return the bytes of the file at *path*, or of the one beside it with *suffix*; 0 if there is none."""
    beside = Path(os.path.realpath(path) + suffix)
    return beside.stat().st_size if beside.exists() else 0


def moment(text: str) -> datetime:
    """Return the time of a run that *text* from the database says."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except (TypeError, ValueError) as error:
        msg = f"a run began at {ac.printable(str(text))!r}, which is no time"
        raise ac.StorageError(msg) from error


def missed_ticks(starts: Sequence[float], since: float, now: float, interval_s: float) -> int:
    """Return how many ticks after *since* have passed without one of *starts*, all in seconds of Unix time."""
    ran = {ac.tick_number(start, interval_s) for start in starts}
    first = ac.tick_number(since, interval_s) + 1
    return sum(tick not in ran for tick in range(first, math.floor(now / interval_s)))  # the newest may still come


def selection_label(chosen: dict[str, Any]) -> str:
    """Return in a few words what a selection, columns of `runs`, takes; another one has another label."""
    names = json.loads(chosen["names"] or "{}")
    within = names.pop("ends_within", None)
    parts = [f"{kind} {', '.join(some)}" for kind, some in names.items()]
    parts += [f"ending within {within:g} minutes"] if within else []
    volume, depth = chosen["min_volume"], chosen["depth"]
    if volume or not names:
        parts.append("unknown" if volume is None else f"over ${volume:,.15g}" if volume else "all open markets")
    parts += [] if depth is None else [f"depth {depth}"]
    label = ac.printable("; ".join(parts))
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 13]} ... {digest}"


def judge(chosen: dict[str, Any], now: datetime, interval_s: float) -> dict[str, Any]:
    """Return a selection, a row of `SELECTIONS`, with its label, its age, and whether it is judged and well."""
    last_complete_at = chosen["last_complete_at"]
    age = None if last_complete_at is None else (now - moment(last_complete_at)).total_seconds()
    is_judged = chosen["complete_runs"] > 1  # one may have been made by hand
    return {
        "label": selection_label(chosen),
        **chosen,
        "age": age,  # seconds since the newest complete run began
        "judged": is_judged,
        "healthy": is_judged and age is not None and age < 2 * interval_s,
        "replaced": False,
    }


def first_listing(connection: sqlite3.Connection, now: datetime) -> dict[str, Any] | None:
    """Return how far the first listing of the whole exchange is; None where none is under way."""
    found = connection.execute("SELECT oldest, unread, (SELECT count(*) FROM listed_ids) FROM walk").fetchone()
    oldest, unread, markets = found or (None, None, 0)
    if oldest is None or unread is None:
        return None
    until = now.timestamp()
    missing = sum(min(end, until) - max(start, oldest) for start, end in json.loads(unread) if start < until)
    since = ac.sql_time(datetime.fromtimestamp(oldest, UTC))
    return {"since": since, "share_read": 1 - missing / max(until - oldest, 1), "markets": markets}


def judged_selections(connection: sqlite3.Connection, now: datetime, interval_s: float) -> list[dict[str, Any]]:
    """Return what was collected in the last seven days, the newest first, and how each of it is going.

    Where another selection is well, one that has had no run for a day was replaced by it, and is not judged.
    """
    at = {"now": ac.sql_time(now)}
    found = [judge(dict(row), now, interval_s) for row in connection.execute(SELECTIONS, at)]
    for chosen in found:
        if any(other["healthy"] for other in found):
            chosen["replaced"] = (now - moment(chosen["last_run_at"])).total_seconds() > DAY_S
            chosen["judged"] = chosen["judged"] and not chosen["replaced"]
        since = max(ac.sql_time(now - timedelta(days=1)), chosen["first_run_at"])
        starts = connection.execute(STARTS, {**chosen, **at, "since": since})
        ran = [moment(start).timestamp() for (start,) in starts]
        chosen["missed_ticks"] = missed_ticks(ran, moment(since).timestamp(), now.timestamp(), interval_s)  # in a day
    return found


def read_streams(connection: sqlite3.Connection, now: datetime) -> dict[str, Any] | None:
    """Return how the streams of `collector-live` in the file are going; None where it has never had any."""
    if not connection.execute("SELECT EXISTS (SELECT 1 FROM streams)").fetchone()[0]:
        return None
    streams = dict(connection.execute(STREAMS).fetchone())
    behind = [moment(at) for at in (streams["verified_at"], streams["gap_since"]) if at]
    streams["age"] = (now - min(behind)).total_seconds() if behind else None
    return streams


def read_status(path: Path, interval_min: float, now: datetime) -> dict[str, Any]:
    """Return how the collection into *path* is going at *now*, as `--json` prints it, without writing to it."""
    interval_s = interval_min * 60
    with ac.open_read_only(path, leave_no_log=True) as connection:
        connection.row_factory = sqlite3.Row
        runs = [dict(row) for row in connection.execute(RECENT_RUNS)]
        selections = judged_selections(connection, now, interval_s)
        streams = read_streams(connection, now)
        listing = first_listing(connection, now)
        file_bytes, wal_bytes = size(path), size(path, "-wal")
    judged = [chosen for chosen in selections if chosen["judged"]]
    shown = judged or selections
    newest = max(shown, key=lambda chosen: chosen["last_complete_at"] or "", default=None)
    healthy = bool(judged) and all(chosen["healthy"] for chosen in judged)
    if streams and streams["age"] is not None:
        healthy = streams["age"] < LIVE_FRESH_S
    elif streams:  # nothing to follow just now: its anchors, which are runs, go on
        healthy = any(chosen["age"] is not None and chosen["age"] < 2 * interval_s for chosen in selections)
    return {
        "healthy": healthy,
        "last_complete_at": newest and newest["last_complete_at"],  # when the newest complete run began
        "age": newest and newest["age"],  # seconds since then
        "missed_ticks": max((chosen["missed_ticks"] for chosen in shown), default=0),  # in a day
        "first_listing": listing,  # of the whole exchange, while it is under way
        "selections": selections,  # of seven days, that with the newest run first
        "streams": streams,  # None but in a file of `collector-live`
        "runs": runs,  # the newest first
        "file_bytes": file_bytes,
        "wal_bytes": wal_bytes,
        "interval": interval_s,
        "database": str(path),
    }


def counted(number: int, noun: str) -> str:
    """Return so many of *noun* in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def selection_line(chosen: dict[str, Any]) -> str:
    """Return how one selection is going."""
    ran = f"{counted(chosen['complete_runs'], 'complete run')} in 7 days"
    ago = "" if chosen["age"] is None else f", the last one {counted(round(chosen['age'] / 60), 'minute')} ago"
    word = "well" if chosen["healthy"] else "NOT WELL"
    if not chosen["judged"]:
        word = "replaced, not judged" if chosen["replaced"] else "not judged, for that takes two complete runs"
    missed = f", missed in a day: {chosen['missed_ticks']}" if chosen["judged"] else ""
    return f"  {chosen['label']}: {word}; {ran}{ago}{missed}"


def status_lines(status: dict[str, Any], now: datetime) -> str:
    """Return what a *status* says to a person at *now*."""
    age, runs, selections, streams = status["age"], status["runs"], status["selections"], status["streams"]
    ago = "never" if age is None else f"{status['last_complete_at']} UTC, {counted(round(age / 60), 'minute')} ago"
    lines = [
        f"{status['database']} is {'well' if status['healthy'] else 'NOT WELL'}",
        f"  last complete run  {ago}",
        *(
            f"  first listing      {listing['share_read']:.0%} of the time since {listing['since']} UTC is read: "
            f"{listing['markets']:,} markets"
            for listing in [status["first_listing"]]
            if listing
        ),
        f"  missed in a day    {status['missed_ticks']}",
        f"  file and WAL       {status['file_bytes'] / 1e6:.1f} MB and {status['wal_bytes'] / 1e6:.1f} MB",
    ]
    if streams:
        behind = "nothing open" if streams["age"] is None else f"verified {streams['age']:.0f} s ago"
        lines.append(
            f"  streams            {streams['streams']} open, {counted(streams['gaps'], 'open gap')}, {behind}"
        )
    elif not any(chosen["judged"] for chosen in selections):
        lines.append("  note               nothing to judge: no selection had two complete runs in the last 7 days")
    lines += map(selection_line, selections)
    lines += [
        f"  run {run['run_id']:<14} {run['started_at']} {ac.printable(run['status'])}, "
        f"{counted(run['snapshots_saved'], 'market')} of {run['markets_listed']}, "
        f"{run['books_missing']} without books, {counted(run['errors'], 'error')}"
        for run in runs
    ]
    ahead = [run for run in runs if moment(run["started_at"]) > now + timedelta(seconds=CLOCKS_DIFFER_S)]
    if ahead:
        lines.append(
            f"  note               the clock was ahead: run {ahead[0]['run_id']} began {ahead[0]['started_at']} UTC"
        )
    if status["wal_bytes"] > ac.WAL_LIMIT_BYTES:
        lines.append(f"  note               {LARGE_WAL}")
    return "\n".join(lines)


# --- Metrics ----------------------------------------------------------------------------------------------------------

PREFIX: Final = "polymarket_collector_"
# of the file, of each selection that is judged, of its newest run, and of streams; all are gauges, for rows of old runs
# may be deleted
METRICS: Final = {
    "healthy": "1: all that is judged is well, as the exit code 0 of --status says.",
    "interval_seconds": "Interval by which the collection is judged (--interval).",
    "file_bytes": "Size of the database file.",
    "wal_bytes": "Size of the write-ahead log beside it.",
    "disk_free_bytes": "Room on the disk of the file that is left to the user of this process.",
    "disk_size_bytes": "Size of that disk.",
    "unarchived_days": "UTC days before today with snapshots that are not in the lake.",
    "open_gaps": "Markets that should be collected and are missing now, as in the view gaps.",
    "last_complete_run_timestamp_seconds": "When the newest complete run began.",
    "last_run_timestamp_seconds": "When the newest run began, complete or not.",
    "missed_ticks": "Ticks of the last day without a run.",
    "run_markets_listed": "Markets that the newest run had to store.",
    "run_markets_stored": "Markets that the newest run has stored.",
    "run_books_missing": "Stored markets without both of their books.",
    "run_requests": "Requests of the newest run, repetitions included.",
    "run_retries": "Repeated requests of the newest run.",
    "run_rate_limit_hits": "Answers with status 429 in the newest run.",
    "run_duration_seconds": "How long the newest run took.",
    "run_failures": "Rows in failures of the newest run, by stage.",
    "streams_open": "Connections of collector-live that have not ended.",
    "streams_verified_timestamp_seconds": "Up to when all of these are verified.",
    "streams_tokens": "Tokens that these are subscribed to.",
    "streams_frames": "Frames that these have received.",
    "streams_changes": "Changes of books that these have stored.",
    "streams_trades": "Trades that these have stored.",
    "streams_open_gaps": "Gaps of live markets that have not ended.",
}
STAGES: Final = ("list", "book", "outcome", "save", "posts")
NEWEST_RUN: Final = """
    SELECT markets_listed AS run_markets_listed, snapshots_saved AS run_markets_stored,
           books_missing AS run_books_missing, requests AS run_requests, retries AS run_retries,
           rate_limit_hits AS run_rate_limit_hits, duration AS run_duration_seconds
    FROM runs WHERE run_id = ?
"""
FAILURES: Final = "SELECT stage, count(*) FROM failures WHERE run_id = ? GROUP BY stage"
# from day to day, each found by the index
UNARCHIVED_DAYS: Final = """
    WITH RECURSIVE days (day) AS (
        SELECT date(min(timestamp)) FROM snapshots WHERE timestamp > '0' AND timestamp < :today
        UNION ALL SELECT (
            SELECT date(min(timestamp)) FROM snapshots WHERE timestamp >= date(day, '1 day') AND timestamp < :today
        ) FROM days WHERE day IS NOT NULL
    )
    SELECT count(*) FROM days WHERE day IS NOT NULL AND EXISTS (
        SELECT 1 FROM snapshots WHERE timestamp >= day AND timestamp < date(day, '1 day')
            AND id > (SELECT coalesce(max(snapshots), 0) FROM archived_days WHERE archived_days.day = days.day)
    )
"""
OPEN_GAPS: Final = "SELECT count(*) FROM gaps WHERE until IS NULL"

Sample = tuple[str, float | None, dict[str, str]]  # name, value and labels; None: there is none


def run_samples(connection: sqlite3.Connection, chosen: dict[str, Any]) -> Iterator[Sample]:
    """Yield the samples of one selection, and of its newest run that has ended."""
    label = {"selection": chosen["label"]}
    yield "last_complete_run_timestamp_seconds", moment(chosen["last_complete_at"]).timestamp(), label
    yield "last_run_timestamp_seconds", moment(chosen["last_run_at"]).timestamp(), label
    yield "missed_ticks", chosen["missed_ticks"], label
    for name, value in dict(connection.execute(NEWEST_RUN, (chosen["run_id"],)).fetchone()).items():
        yield name, value, label
    failures = dict.fromkeys(STAGES, 0) | dict(connection.execute(FAILURES, (chosen["run_id"],)).fetchall())
    for stage, count in failures.items():
        yield "run_failures", count, {**label, "stage": stage}


def stream_samples(streams: dict[str, Any]) -> Iterator[Sample]:
    """Yield the samples of the connections of `collector-live`."""
    yield "streams_open", streams["streams"], {}
    yield "streams_open_gaps", streams["gaps"], {}
    verified_at = streams["verified_at"]
    yield "streams_verified_timestamp_seconds", moment(verified_at).timestamp() if verified_at else None, {}
    for name in ("tokens", "frames", "changes", "trades"):
        yield f"streams_{name}", streams[name], {}


def read_samples(path: Path, status: dict[str, Any], now: datetime) -> Iterator[Sample]:
    """Yield what *status* says of the file at *path*, and what is not in it."""
    disk = shutil.disk_usage(Path(os.path.realpath(path)).parent)
    yield "disk_free_bytes", disk.free, {}
    yield "disk_size_bytes", disk.total, {}
    yield "interval_seconds", status["interval"], {}
    for name in ("healthy", "file_bytes", "wal_bytes"):
        yield name, status[name], {}
    with ac.open_read_only(path, leave_no_log=True) as connection:
        connection.row_factory = sqlite3.Row
        yield "unarchived_days", connection.execute(UNARCHIVED_DAYS, {"today": f"{now:%F}"}).fetchone()[0], {}
        yield "open_gaps", connection.execute(OPEN_GAPS).fetchone()[0], {}
        for chosen in status["selections"]:
            if chosen["judged"]:
                yield from run_samples(connection, chosen)
    if status["streams"]:
        yield from stream_samples(status["streams"])


def exposition(path: Path, samples: Iterable[Sample]) -> str:
    """Return *samples* of the file at *path* in Prometheus' text format."""

    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, value, labels in samples:
        marks = [f'{label}="{escaped(text)}"' for label, text in {"database": os.path.realpath(path), **labels}.items()]
        if value is not None:
            lines[name].append(f"{PREFIX}{name}{{{','.join(marks)}}} {float(value)!r}")
    return "\n".join(
        "\n".join((f"# HELP {PREFIX}{name} {METRICS[name]}", f"# TYPE {PREFIX}{name} gauge", *values))
        for name, values in lines.items()
        if values
    )


# --- Benchmark --------------------------------------------------------------------------------------------------------

SAMPLE_MARKETS: Final = 100  # that are collected one by one at most: it takes minutes for a thousand
SIMPLE_TABLE: Final = "CREATE TABLE snapshots (timestamp, market_id, token_id, best_bid REAL, best_ask REAL)"
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


async def one_by_one(collector: ac.AsyncCollector) -> dict[str, Any]:
    """Collect as a simple script does: page after page, then a request per token and a commit per market.

    Hosts, limits, threshold, timeout and number of attempts are those of *collector*; the result has a part of what
    `collect_all` returns. A request that fails each time is a `NetworkError`.
    """
    settings, started, requests = collector.settings, time.monotonic(), 0
    limiters = {settings.gamma: collector.gamma_limiter, settings.clob: collector.clob_limiter}

    async def get(host: ac.Endpoint, path: str, **params: str) -> Any:  # noqa: ANN401  whatever the JSON says
        nonlocal requests
        for attempt in range(settings.max_retries + 1):
            await asyncio.sleep(min(2 ** (attempt - 1), 60) if attempt else 0)
            await limiters[host].acquire()
            requests += 1
            try:
                async with session.get(
                    host.url + path,
                    params=params,
                    headers=host.headers,
                    proxy=host.proxy,
                    proxy_headers=host.proxy_headers,
                ) as response:
                    if response.status == HTTPStatus.NOT_FOUND:  # a token without a book
                        return {}
                    response.raise_for_status()
                    return await response.json()
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = ac.NetworkError(host.redacted(str(error)) or type(error).__name__, host.url + path)
        raise failure

    order = "volume24hr" if settings.selection.min_volume_usd else "id"
    listing = {"order": order, "ascending": "false", "closed": "false", "limit": "100"}
    sample: dict[str, list[str]] = {}
    more = True
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(settings.timeout_s)) as session:
        while more and len(sample) < SAMPLE_MARKETS:
            page = await get(settings.gamma, "/markets/keyset", **listing)
            for market in page["markets"]:
                more = float(market.get("volume24hr") or 0) >= settings.selection.min_volume_usd
                if more and market["active"] and market.get("clobTokenIds") and len(sample) < SAMPLE_MARKETS:
                    sample[market["id"]] = json.loads(market["clobTokenIds"])
            listing["after_cursor"] = page.get("next_cursor") or ""
            more = more and listing["after_cursor"] != ""
        with closing(sqlite3.connect(settings.db_path)) as connection:
            connection.execute(SIMPLE_TABLE)
            for market_id, tokens in sample.items():
                for token_id in tokens:
                    book = await get(settings.clob, "/book", token_id=token_id)
                    bids, asks = ([float(level["price"]) for level in book.get(side, ())] for side in ("bids", "asks"))
                    row = (market_id, token_id, max(bids, default=None), min(asks, default=None))
                    connection.execute("INSERT INTO snapshots VALUES (datetime('now'), ?, ?, ?, ?)", row)
                connection.commit()
    return {"duration": time.monotonic() - started, "markets": len(sample), "requests": requests}


def peak_memory_mb() -> float | None:
    """Return the most memory that this process has had; None where the system does not tell."""
    with suppress(ImportError):
        import resource  # noqa: PLC0415  Unix only

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return None


def measure(way: Callable[..., Coroutine[Any, Any, Any]], path: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Collect in one *way* into *path* and return what that took this process."""
    os.environ.pop("TWITTER_BEARER_TOKEN", None)  # posts cost money
    took = asyncio.run(way(ac.AsyncCollector(path, **chosen)))
    return {
        "duration": took["duration"],
        "markets": took["markets"],
        "markets_per_second": took["markets"] / max(took["duration"], 1e-9),
        "requests": took["requests"],
        "peak_memory_mb": peak_memory_mb(),
    }


def benchmark(chosen: dict[str, Any]) -> dict[str, Any]:
    """Collect the same markets in both ways and return what each took, as `--json` prints it.

    Raises:
        CollectorError: one of the two could not collect, or there is nothing to collect.
    """
    import multiprocessing  # noqa: PLC0415  nobody else is to wait for these three
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    measured: list[dict[str, Any]] = []
    stored: list[set[str]] = []

    def interrupt(number: int, _: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, interrupt)
    with TemporaryDirectory() as folder:
        # what is wrong with the exchange the collector says best; and cold caches are at its expense
        for way in (ac.AsyncCollector.collect_all, one_by_one):
            path = Path(folder, f"{way.__name__}.db")
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                try:
                    measured.append(process.submit(measure, way, path, chosen).result())
                except KeyboardInterrupt:
                    for child in multiprocessing.active_children():
                        child.terminate()
                    raise
            if not measured[-1]["markets"]:
                msg = f"{chosen}: there is no market to measure"
                raise ac.ConfigError(msg)
            with closing(sqlite3.connect(path)) as connection:
                stored.append({market_id for (market_id,) in connection.execute("SELECT market_id FROM snapshots")})
    new, old = measured
    sampled = old["markets"] == SAMPLE_MARKETS < new["markets"]
    return {
        "one_by_one": old,
        "async_collector": new,
        "speed_up": new["markets_per_second"] / old["markets_per_second"],
        "same_markets": stored[1] <= stored[0] if sampled else stored[1] == stored[0],  # as far as the sample goes
        "sample": old["markets"] if sampled else None,  # None: all of them
    }


def comparison(result: dict[str, Any]) -> str:
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


# --- The command ------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Do what *args* say and return the exit code."""
    chosen = {
        name: getattr(args, name)
        for name in (
            "workers",
            "max_retries",
            "timeout",
            "run_timeout",
            "min_volume",
            *ac.NAMES,
            "ends_within",
            "depth",
        )
    }
    chosen["follow"] = not args.no_follow
    path = ac.DEFAULT_DB_PATH if args.db is None else args.db
    if args.status:
        now = datetime.now(UTC)
        file = ac.database_path(path, os.environ)
        status = read_status(file, args.interval, now)
        text = json.dumps(status) if args.json else status_lines(status, now)
        if args.metrics:
            text = exposition(file, read_samples(file, status, now))
        return print_result(text, 0 if status["healthy"] else 1)
    if args.benchmark:
        compared = benchmark(chosen)
        return print_result(json.dumps(compared) if args.json else comparison(compared))
    if args.continuous:
        chosen["run_timeout"] = min(args.run_timeout, args.interval * 60)
        if not args.quiet:
            announce(ac.AsyncCollector(path, **chosen).settings, f", every {args.interval:g} minutes")
        asyncio.run(keep_collecting(args, chosen | {"db_path": path}))
        return 0
    return run_once(args, path, chosen)


def be_fast() -> None:
    """Inflate answers by isal where it is installed (the extra `fast`), and look for cyclic garbage less often.

    Both are settings of the process, which a library leaves alone.
    """
    with suppress(ImportError):
        from isal import isal_zlib  # noqa: PLC0415

        aiohttp.set_zlib_backend(isal_zlib)
    gc.set_threshold(50_000, 20, 20)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* and return its exit code."""
    for name in ("stdout", "stderr"):  # None where the caller has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the end
    args = parse(argv)
    be_fast()
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.CRITICAL, format="%(levelname)s %(message)s")
    for chatty in ("aiosqlite", "asyncio", "filelock"):  # aiosqlite logs every stored row at DEBUG
        logging.getLogger(chatty).setLevel(logging.INFO)
    try:
        return run(args)
    except ac.CollectorError as error:
        print_line(f"async-collector: {error}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        say_end("interrupted; a benchmark keeps nothing" if args.benchmark else "interrupted")
        return INTERRUPTED + int(next(iter(interrupt.args), signal.SIGINT))


if __name__ == "__main__":
    sys.exit(main())
