#!/usr/bin/env python3
"""Check that a collector's file holds what docs/data.md promises: the command `collector-check`.

Each promise is a query for the rows that break it. It reads a range of rows at a time, in a transaction of its own, so
that it may run beside a collector: a reader that stays would keep the log from being cut.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

import async_collector as ac

BROKEN, INTERRUPTED = 65, 130
EXAMPLES: Final = 3  # of the rows that break a promise
GOAL_S, LIMIT_S = 1.0, 4.0  # of a transaction: towards which ranges grow and shrink, and at which it is given up
FIRST_RANGE, MAX_RANGE, SMALL = 2_000, 1_000_000, 20_000  # rows; of small tables SQLite checks all at once
WITHOUT_ROWID: Final = ("seen", "past_done")  # small tables
EPILOG: Final = """\
examples:
  collector-check
      say whether polymarket_data.db is sound, and if not, what is wrong with which rows
  collector-check --db copy.db --json
      the same of a copy, for a program

variables:
  POLYMARKET_DB

exit codes:
  0 sound; 2 bad command line; 65 promises are broken;
  74 the file cannot be read; 75 it is busy; 130 interrupted
"""


def differ(one: str, other: str) -> str:
    """Return the condition that two numbers are not the same to nine digits, or that one of them is NULL."""
    return f"((({one}) IS NULL) <> (({other}) IS NULL) OR abs(({one}) - ({other})) > 2e-9)"


def no_time(columns: str, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return the condition that one of *columns* is neither NULL nor a time of this form."""
    is_other = "(t.{0} IS NOT NULL AND strftime('{1}', t.{0}, '0 days') IS NOT t.{0})"
    return f"({' OR '.join(is_other.format(name, form) for name in columns.split())})"


def outside(columns: str, least: int, most: int) -> str:
    """Return the condition that one of *columns* is a number outside of a range."""
    return f"({' OR '.join(f't.{name} NOT BETWEEN {least} AND {most}' for name in columns.split())})"


def missing(column: str, table: str, key: str) -> str:
    """Return the condition that *column* refers to a row that is not there."""
    return f"(t.{column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {table} AS other WHERE other.{key} = t.{column}))"


def first(part: str, side: str) -> str:
    """Return the price or the size of the first level of *side*, '[[price,size],...]', without reading the others."""
    place = "3" if part == "price" else f"instr({side}, ',') + 1"
    return f"CASE WHEN {side} <> '[]' THEN CAST(substr({side}, {place}) AS REAL) END"  # which reads a number's end


def is_side(side: str | None, kind: str) -> bool:
    """Return whether *side*, of *kind* bid or ask, has prices and sizes that can be, the best price first."""
    with suppress(msgspec.DecodeError, TypeError):
        levels = msgspec.json.decode(side or "[]", type=list[tuple[float, float]])
        ordered = levels == sorted(levels, key=lambda level: level[0], reverse=kind == "bid")
        return ordered and all(0 <= price <= 1 and size > 0 for price, size in levels)
    return False


def best(price: str, size: str, side: str, mirror: str = "") -> str:
    """Return the condition that the columns *price* and *size* are not the best level of *side*, or of its *mirror*."""
    shown, sizes = first("price", side), side
    if mirror:
        shown = f"CASE b.mirrored WHEN 1 THEN 1 - ({first('price', mirror)}) ELSE {shown} END"
        sizes = f"iif(b.mirrored = 1, {mirror}, {side})"
    # of a price that is named twice, versions before 0.3 stored the size of one level, later ones of all
    twice = f"coalesce(instr({sizes}, '],' || substr({sizes}, 2, instr({sizes}, ',') - 1)), 0)"
    return f"({differ(price, shown)} OR ({size} IS NOT {first('size', sizes)} AND {twice} = 0))"


OURS: Final = "t.run_id IS NOT NULL"  # other programs and older collectors promise nothing
NO_MARKET: Final = missing("market_id", "markets", "market_id")
NO_RUN: Final = missing("run_id", "runs", "run_id")
COUNT: Final = "(SELECT count({}) FROM {} WHERE run_id = t.run_id)"
# runs of which nothing can have been deleted, by the archive or by hand
KEPT: Final = """t.version IS NOT NULL
    AND date(t.started_at) NOT IN (SELECT day FROM archived_days UNION SELECT date(day, '-1 day') FROM archived_days)
    AND t.run_id >= (SELECT iif({0} = 1, 0, 1 + run_id) FROM {1} WHERE +run_id IS NOT NULL ORDER BY {0} LIMIT 1)"""
UPTO: Final = "(SELECT coalesce(max({}), 0) FROM archived_days)"
MS: Final = "%Y-%m-%d %H:%M:%f"
NO_STREAM: Final = missing("stream_id", "streams", "stream_id")
LIVE: Final = f"{NO_MARKET} OR {outside('price', 0, 1)} OR {no_time('timestamp', MS)}"
# of each promise its name, the table t with what it is joined with, and below the condition for rows that break it
PROMISES: Final = f"""
price_no: snapshots AS t
    {OURS} AND {differ("price_no", "1 - price_yes")}
price_yes: snapshots AS t
    {OURS} AND coalesce(best_bid_yes, best_ask_yes) IS NOT NULL
    AND {differ("price_yes", "(coalesce(best_bid_yes, 0) + coalesce(best_ask_yes, 1)) / 2")}
price_range: snapshots AS t
    {OURS} AND {outside("price_yes price_no best_bid_yes best_ask_yes best_bid_no best_ask_no", 0, 1)}
spread: snapshots AS t
    {OURS} AND {differ("spread", "best_ask_yes - best_bid_yes")}
best_yes: snapshots AS t CROSS JOIN books AS b ON b.book_id = t.book_id
    {best("best_bid_yes", "bid_size_yes", "b.bids")} OR {best("best_ask_yes", "ask_size_yes", "b.asks")}
best_no: snapshots AS t CROSS JOIN books AS b ON b.book_id = t.book_id
    {best("best_bid_no", "bid_size_no", "b.bids_no", "b.asks")}
    OR {best("best_ask_no", "ask_size_no", "b.asks_no", "b.bids")}
snapshot_time: snapshots AS t
    {OURS} AND (t.timestamp IS NULL OR {no_time("timestamp")} OR {no_time("book_time", MS)})
snapshot_market: snapshots AS t
    {OURS} AND (t.market_id IS NULL OR {NO_MARKET})
snapshot_run: snapshots AS t
    {NO_RUN} AND t.run_id > {UPTO.format("runs")}
snapshot_book: snapshots AS t LEFT JOIN books AS b USING (book_id) LEFT JOIN runs AS r ON r.run_id = t.run_id
    {missing("book_id", "books", "book_id")} OR b.market_id <> t.market_id OR date(b.timestamp) <> date(t.timestamp)
    OR (t.book_id IS NULL AND t.book_time IS NOT NULL AND r.books_saved + r.books_unchanged > 0)
seen: snapshots AS t LEFT JOIN seen ON seen.market_id = t.market_id
    {OURS} AND t.id > coalesce(seen.snapshot_id, 0)
seen_market: seen AS t LEFT JOIN snapshots AS s ON s.id = t.snapshot_id
    {NO_MARKET} OR s.market_id <> t.market_id
    OR t.snapshot_id > (SELECT seq FROM sqlite_sequence WHERE name = 'snapshots')
market_time: markets AS t
    t.market_id NOT IN (SELECT market_id FROM snapshots WHERE run_id IS NULL)
    AND {no_time("start_time end_time closed_at outcome_stored_at outcome_ask_at first_seen")}
market_outcome: markets AS t
    t.resolved NOT IN (0, 1) OR (t.outcome_stored_at IS NOT NULL AND (t.resolved = 0
    OR coalesce(t.resolution_outcome, '') NOT IN (t.outcome_yes, t.outcome_no, 'split')))
book: books AS t
    t.timestamp IS NULL OR {no_time("timestamp")} OR {NO_MARKET}
book_sides: books AS t
    NOT (is_side(bids, 'bid') AND is_side(asks, 'ask') AND is_side(bids_no, 'bid') AND is_side(asks_no, 'ask'))
book_mirror: books AS t
    (mirrored IS 0) <> (coalesce(bids_no, asks_no) IS NOT NULL) OR (mirrored = 1 AND bids IS NULL)
run_counters: runs AS t
    {KEPT.format("id", "snapshots")} AND (t.snapshots_saved <> {COUNT.format("*", "snapshots")}
    OR t.books_saved + t.books_unchanged <> {COUNT.format("book_id", "snapshots")})
run_errors: runs AS t
    {KEPT.format("rowid", "failures")} AND t.errors <> {COUNT.format("*", "failures")}
run_status: runs AS t
    t.status NOT IN ('running', 'complete', 'partial', 'failed')
    OR (t.status = 'running' AND t.run_id < (SELECT max(run_id) FROM runs))
    OR (t.status = 'complete' AND t.version IS NOT NULL AND (t.finished_at IS NULL
        OR t.snapshots_saved - t.books_missing < {ac.MIN_COMPLETE_SHARE} * t.markets_listed))
run_time: runs AS t
    {no_time("started_at finished_at full_walk_at")} OR {missing("selection_id", "selections", "selection_id")}
failure: failures AS t
    {NO_RUN} OR t.stage NOT IN ('list', 'book', 'outcome', 'save', 'posts')
post: tweets AS t
    {OURS} AND ({no_time("timestamp created_at")} OR {outside("sentiment_score", -1, 1)}
    OR engagement_score <> likes + 2 * retweets + replies)
hype: hype_signals AS t
    {OURS} AND ({no_time("timestamp")} OR {outside("hype_score", 0, 100)} OR {outside("avg_sentiment", -1, 1)})
past_price: past_prices AS t
    {NO_MARKET} OR {outside("price", 0, 1)} OR width NOT IN (300, 10800) OR {no_time("timestamp fetched_at")}
trade: trades AS t
    {NO_MARKET} OR {outside("price", 0, 1)} OR size <= 0 OR occurrence < 1 OR {no_time("timestamp fetched_at")}
    OR outcome NOT IN ('YES', 'NO') OR side NOT IN ('BUY', 'SELL')
past_progress: past_done AS t
    {NO_MARKET} OR {no_time("until top")}
book_change: book_changes AS t
    {LIVE} OR size < 0 OR side NOT IN ('bid', 'ask') OR ({NO_STREAM} AND change_id > {UPTO.format("book_changes")})
live_trade: live_trades AS t
    {LIVE} OR size <= 0 OR outcome NOT IN ('YES', 'NO') OR ({NO_STREAM} AND trade_id > {UPTO.format("live_trades")})
live_gap: live_gaps AS t
    {NO_MARKET} OR until < since OR {no_time("since until", MS)}
"""


# the table of each promise, and the query for the rows that break it
QUERIES: Final = {
    name: (table, f"SELECT t.* FROM {rows} WHERE ({broken})")
    for name, rows, table, broken in re.findall(r"^(\w+): ((\w+).*)\n((?:    .*\n)+)", PROMISES, re.MULTILINE)
}


class Reader:
    """Reads a database by short transactions; queries may call `is_side`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda text: text.decode(errors="replace")[:200]
        connection.create_function("is_side", 2, is_side, deterministic=True)
        connection.set_progress_handler(lambda: time.monotonic() > self._ends_at, 10_000)
        self._connection = connection
        self._ends_at = 0.0

    def ask(self, query: str, **values: object) -> list[sqlite3.Row]:
        """Return what *query* finds; it is interrupted after `LIMIT_S`."""
        self._ends_at = time.monotonic() + LIMIT_S
        return self._connection.execute(query, values).fetchall()

    def broken(self, table: str, query: str) -> Iterator[sqlite3.Row]:
        """Yield what *query* finds in *table*, by ranges of its rows, or at once where it has no rowid."""
        row = "1" if table in WITHOUT_ROWID else "t.rowid"
        ((first, last),) = self.ask(f"SELECT coalesce(min({row}), 1), coalesce(max({row}), 0) FROM {table} AS t")
        step = FIRST_RANGE
        while first <= last:
            began, done = time.monotonic(), False
            try:
                of_range = f"{query} AND {row} >= :first AND {row} < :first + :step"
                yield from self.ask(of_range, first=first, step=step)
                first, done = first + step, True
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT or step == 1:
                    raise
            factor = min(4, GOAL_S / max(time.monotonic() - began, 0.001)) if done else 1 / 8
            step = min(max(1, int(step * factor)), MAX_RANGE)

    def damaged(self) -> Iterator[sqlite3.Row]:
        """Yield what `PRAGMA integrity_check` says of each table, and of a large one the rows that its indexes lack."""
        for table in ac.column_comments():
            if table in WITHOUT_ROWID or not self.ask(f"SELECT 1 FROM {table} LIMIT 1 OFFSET {SMALL}"):
                yield from (row for row in self.ask(f"PRAGMA integrity_check({table})") if row[0] != "ok")
                continue
            for (index,) in self.ask("SELECT name FROM pragma_index_list(:table) WHERE partial = 0", table=table):
                columns = self.ask("SELECT name FROM pragma_index_info(:index)", index=index)
                same = " AND ".join(f"i.{name} IS t.{name}" for (name,) in columns)
                found = f"SELECT 1 FROM {table} AS i INDEXED BY {index} WHERE {same} AND i.rowid = t.rowid"
                lacks = f"SELECT '{index} lacks it' AS damage, t.rowid FROM {table} AS t NOT INDEXED"
                yield from self.broken(table, f"{lacks} WHERE NOT EXISTS ({found})")


def examined(rows: Iterator[sqlite3.Row]) -> dict[str, Any]:
    """Return how many *rows* break a promise, with examples; a page that SQLite cannot read is one as well."""
    found: dict[str, Any] = {"broken": 0, "examples": []}
    try:
        for row in rows:
            found["broken"] += 1
            found["examples"] += [dict(row)] if found["broken"] <= EXAMPLES else []
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        found = {"broken": found["broken"] + 1, "examples": [*found["examples"], {"damage": str(error)}]}
    return found


def check(path: Path) -> dict[str, Any]:
    """Return what of the file at *path* breaks which promise, as `--json` prints it."""
    began = time.monotonic()
    with ac.open_read_only(path) as connection:
        reader = Reader(connection)
        result = {"integrity": examined(reader.damaged())}
        result |= {name: examined(reader.broken(table, query)) for name, (table, query) in QUERIES.items()}
    return {
        "sound": not any(found["broken"] for found in result.values()),
        "promises": result,
        "duration": round(time.monotonic() - began, 3),
        "database": str(path),
    }


def text_of(result: dict[str, Any]) -> str:
    """Return what *result* says to a person."""
    broken = {name: found for name, found in result["promises"].items() if found["broken"]}
    kept = f"{len(result['promises']) - len(broken)} of {len(result['promises'])} promises are kept"
    text = f"{result['database']} is {'NOT SOUND' if broken else 'sound'}: {kept}, {result['duration']:.1f} s"
    for name, found in broken.items():
        examples = (f"\n    {ac.printable(json.dumps(example, default=repr))}" for example in found["examples"])
        text += f"\n  {name}: {found['broken']} rows, such as{''.join(examples)}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* and return its exit code."""
    parser = argparse.ArgumentParser("collector-check", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = "Check that a collector's file holds what docs/data.md promises; nothing is written."
    parser.epilog = EPILOG
    file = "database file (POLYMARKET_DB, else %(default)s)"
    parser.add_argument("--db", metavar="PATH", default=ac.DEFAULT_DB_PATH, help=file)
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.add_argument("--version", action="version", version=f"collector-check {ac.__version__}")
    args = parser.parse_args(argv)
    try:
        result = check(ac.database_path(args.db, os.environ))
    except ac.CollectorError as error:
        print(f"collector-check: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("collector-check: interrupted; it is not known whether the file is sound", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(result, default=repr) if args.json else text_of(result), flush=True)
    return 0 if result["sound"] else BROKEN


if __name__ == "__main__":
    sys.exit(main())
