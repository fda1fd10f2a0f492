#!/usr/bin/env python3
"""Make a collector's file full of rows, fast: a week of the exchange in a minute, without collecting it.

The rows look like collected ones: books change now and then, near the top, and are stored once while they do not; there
are NULLs wherever a column may have them, runs that failed, posts, and NO books that are no mirror. The same arguments
give the same rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FIRST_DAY: Final = date(2026, 11, 1)
TOPICS: Final = ("Politics", "Sports", "Crypto", "Economy", "Culture", "Weather", None)
ROUND_SIZES: Final = (5, 10, 15, 20, 25, 50, 100, 150, 200, 250, 500, 1_000, 2_000, 5_000, 10_000)
SAMPLED: Final = ("markets", "seen", "books", "snapshots", "runs", "failures", "tweets", "hype_signals")


def make_schema(connection: sqlite3.Connection) -> None:
    """Make the tables and views of a new file."""
    connection.executescript(ac.SCHEMA)
    connection.execute(f"PRAGMA user_version = {ac.SCHEMA_VERSION}")


def create(path: Path) -> sqlite3.Connection:
    """Make an empty file of the current schema at *path* and return a connection for filling it."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    make_schema(connection)
    return connection


def insert(connection: sqlite3.Connection, table: str, rows: Iterable[dict[str, object]]) -> None:
    """Insert *rows*, all with the same keys; a column that this schema does not have is left out."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    columns = [column for column in first if column in known]
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f':{name}' for name in columns)})"  # noqa: S608
    connection.executemany(statement, itertools.chain([first], rows))


def size_text(rng: random.Random) -> str:
    """Return the shares of a level as the exchange writes them, trailing zeros off."""
    if rng.random() < 0.5:
        return str(rng.choice(ROUND_SIZES))
    return f"{min(rng.lognormvariate(5, 2), 31_045_290):.2f}".rstrip("0").rstrip(".")


@dataclass
class Side:
    """One side of a book: prices in ticks, best first, each with the text of its size."""

    ticks: list[int]
    sizes: list[str]
    tick_decimals: int

    def text(self) -> str:
        """Return the side as the file holds it."""
        price = self.price
        return "[" + ",".join([f"[{price(t)},{size}]" for t, size in zip(self.ticks, self.sizes, strict=True)]) + "]"

    def price(self, tick: int) -> str:
        """Return the price of *tick* as the exchange writes it, trailing zeros off."""
        return f"0.{tick:0{self.tick_decimals}d}".rstrip("0")

    def best(self) -> tuple[float | None, float | None]:
        """Return price and size of the best level."""
        if not self.ticks:
            return None, None
        return float(self.price(self.ticks[0])), float(self.sizes[0])

    def change(self, rng: random.Random) -> None:
        """Change 1 to 12 % of the levels, most of them near the top; now and then the best one goes."""
        if len(self.ticks) > 3 and rng.random() < 0.1:
            del self.ticks[0], self.sizes[0]
        for _ in range(max(1, int(len(self.ticks) * rng.uniform(0.01, 0.12)))):
            if self.ticks:
                self.sizes[min(int(rng.expovariate(0.2)), len(self.ticks) - 1)] = size_text(rng)


def mirror(side: Side) -> Side:
    """Return what *side* is on the other outcome's book."""
    return Side([10**side.tick_decimals - tick for tick in side.ticks], list(side.sizes), side.tick_decimals)


@dataclass
class SampleMarket:
    """A market, its book as it is now, and the row in `books` that holds it."""

    number: int
    rng: random.Random
    levels: int
    bids: Side = field(init=False)
    asks: Side = field(init=False)
    mirrored: int | None = 1
    book_id: int | None = None
    book_day: date | None = None
    volume: float = 0.0
    shown: dict[str, object] | None = None  # what a snapshot says of the book, until that changes

    def __post_init__(self) -> None:
        """Lay out a book of about `levels` levels."""
        rng = self.rng
        decimals = rng.choice((2, 3, 3))
        count = max(2, min(round(rng.lognormvariate(0, 0.6) * self.levels * 0.84), 400, 9 * 10 ** (decimals - 1)))
        top = rng.randrange(count // 2 + 1, 10**decimals - count // 2 - 1)
        ticks = list(range(top - count // 2, top + count - count // 2 + 1))
        del ticks[count // 2]
        bids, asks = ticks[: count // 2][::-1], ticks[count // 2 :]
        self.bids, self.asks = (Side(side, [size_text(rng) for _ in side], decimals) for side in (bids, asks))
        if self.number % 97 == 5:
            self.asks = Side([], [], decimals)  # nobody sells
        self.mirrored = {31: 0, 59: None}.get(self.number % 101, 1)
        self.volume = round(rng.lognormvariate(9, 3), 2)

    def row(self, first_seen: str) -> dict[str, object]:
        """Return the row of `markets`."""
        topic = TOPICS[self.number % len(TOPICS)]
        bare = self.number % 11 == 7  # as an old collector or a poor listing leaves it
        return {
            "market_id": str(900_000 + self.number),
            "slug": f"will-event-{self.number // 3}-end-in-{self.number % 3}",
            "question": f"Will event {self.number // 3} end in {self.number % 3}? “Ja”, ça va",
            "description": None if bare else f"It resolves to Yes if {self.number}.",
            "category": topic,
            "token_id_yes": str(10**76 + self.number),
            "token_id_no": str(10**76 * 2 + self.number),
            "start_time": None if bare else "2026-10-01 00:00:00",
            "end_time": None if bare else "2026-12-31 12:00:00",
            "resolved": int(self.number % 50 == 49),
            "resolution_outcome": "Yes" if self.number % 50 == 49 else None,
            "first_seen": first_seen,
            "condition_id": f"0x{self.number:064x}",
            "event_slug": f"event-{self.number // 3}",
            "outcome_yes": "Yes",
            "outcome_no": "" if bare else "No",
            "tags": json.dumps([topic, "All"]) if topic else None,
            "followed": int(self.number % 4 == 0),
        }

    def book_row(self, book_id: int, timestamp: str) -> dict[str, object]:
        """Return the row of `books` for the book as it is now."""
        own = self.mirrored == 0
        bids_no, asks_no = self.no_sides()
        return {
            "book_id": book_id,
            "market_id": str(900_000 + self.number),
            "timestamp": timestamp,
            "bids": self.bids.text(),
            "asks": self.asks.text(),
            "mirrored": self.mirrored,
            "bids_no": bids_no.text() if own else None,
            "asks_no": asks_no.text() if own else None,
        }

    def no_sides(self) -> tuple[Side, Side]:
        """Return bids and asks of NO: the mirror, or those of another moment, before the best bid came."""
        bids, asks = mirror(self.asks), mirror(self.bids)
        if self.mirrored == 0:
            del bids.ticks[:1], bids.sizes[:1]
        return bids, asks

    def snapshot_row(self, run_id: int, timestamp: str, *, missed: bool) -> dict[str, object]:
        """Return the row of `snapshots`; with *missed* its book could not be read."""
        if missed:
            return self._values(missed=True) | {"timestamp": timestamp, "run_id": run_id}
        if self.shown is None:
            self.shown = self._values(missed=False)
        return self.shown | {
            "timestamp": timestamp,
            "run_id": run_id,
            "book_time": f"{timestamp}.{self.number % 1000:03d}",
        }

    def _values(self, *, missed: bool) -> dict[str, object]:
        """Return what snapshots have in common until the book changes, with a place for the rest."""
        nothing = (None, None)
        (bid, bid_size), (ask, ask_size) = (nothing, nothing) if missed else (self.bids.best(), self.asks.best())
        price = round(((bid or 0.0) + (1.0 if ask is None else ask)) / 2, 9)
        has_no = not missed and self.mirrored is not None
        (bid_no, bid_size_no), (ask_no, ask_size_no) = [side.best() if has_no else nothing for side in self.no_sides()]
        return {
            "market_id": str(900_000 + self.number),
            "timestamp": None,
            "price_yes": price,
            "price_no": round(1 - price, 9),
            "volume_24h": self.volume,
            "liquidity": None if self.number % 13 == 3 else round(self.volume / 7, 4),
            "best_bid_yes": bid,
            "best_ask_yes": ask,
            "best_bid_no": bid_no,
            "best_ask_no": ask_no,
            "spread": None if bid is None or ask is None else round(ask - bid, 9),
            "run_id": None,
            "last_trade_price": None if self.number % 17 == 3 else bid,
            "book_time": None,
            "bid_size_yes": bid_size,
            "ask_size_yes": ask_size,
            "bid_size_no": bid_size_no,
            "ask_size_no": ask_size_no,
            "book_id": None if missed else self.book_id,
        }


def fill(
    path: Path,
    *,
    markets: int = 100,
    days: int = 1,
    runs_per_day: int = 96,
    first_day: date = FIRST_DAY,
    change: float = 0.2,
    levels: int = 54,
    seed: int = 1,
    failed: float = 0.002,
    posts_per_run: int = 2,
) -> dict[str, int]:
    """Make the file at *path* and return how many rows each of its tables has.

    Args:
        path: there must be no file yet.
        markets: in every run, each with a snapshot.
        days: UTC days in a row, from *first_day* on.
        runs_per_day: 15 minutes apart, from midnight on.
        first_day: the first UTC day.
        change: share of the books that a run finds changed.
        levels: mean number of levels of a book.
        seed: of everything that is left to chance.
        failed: share of the snapshots without a book.
        posts_per_run: rows of `tweets`.
    """
    rng = random.Random(seed)
    listed = [SampleMarket(number, rng, levels) for number in range(markets)]
    book_ids = itertools.count(1)
    run_ids = itertools.count(1)
    with closing(create(path)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # a file that is not finished is nothing
        midnight = datetime.combine(first_day, datetime.min.time(), UTC)
        insert(connection, "markets", (market.row(ac.sql_time(midnight)) for market in listed))
        for day, number in itertools.product(range(days), range(runs_per_day)):
            started = midnight + timedelta(days=day, minutes=15 * number)
            _insert_run(connection, next(run_ids), started, listed, book_ids, rng, (change, failed, posts_per_run))
        _fill_seen(connection)
        connection.commit()
        connection.execute("ANALYZE")
        connection.commit()
        connection.execute("PRAGMA journal_mode = WAL")
        return count_rows(connection)


def _insert_run(
    connection: sqlite3.Connection,
    run_id: int,
    started: datetime,
    listed: Sequence[SampleMarket],
    book_ids: Iterator[int],
    rng: random.Random,
    shares: tuple[float, float, int],
) -> None:
    """Insert one run with all that belongs to it."""
    change, failed, posts = shares
    day = started.date()
    books: list[dict[str, object]] = []
    snapshots: list[dict[str, object]] = []
    failures: list[dict[str, object]] = []
    timestamp = ""
    for place, market in enumerate(listed):
        if place % 500 == 0:
            timestamp = ac.sql_time(started + timedelta(seconds=1 + place // 500))
        missed = rng.random() < failed
        if missed:
            market_id = str(900_000 + market.number)
            failures.append({"run_id": run_id, "market_id": market_id, "stage": "book", "reason": "timed out"})
        else:
            changed = rng.random() < change
            if changed:
                rng.choice((market.bids, market.asks)).change(rng)
                market.volume = round(market.volume * rng.uniform(0.98, 1.03), 6)
            if changed or market.book_day != day:
                market.book_id, market.book_day = next(book_ids), day
                books.append(market.book_row(market.book_id, timestamp))
                market.shown = None
        snapshots.append(market.snapshot_row(run_id, timestamp, missed=missed))
    if run_id % 40 == 0:
        failures.append({"run_id": run_id, "market_id": None, "stage": "list", "reason": "503 from the exchange"})
    insert(connection, "runs", [_run_row(run_id, started, snapshots, failures, books)])
    insert(connection, "books", books)
    insert(connection, "snapshots", snapshots)
    insert(connection, "failures", failures)
    insert(connection, "tweets", (_post_row(run_id, n, started, rng) for n in range(posts)))
    insert(connection, "hype_signals", (_hype_row(run_id, n, started, rng) for n in range(min(posts, len(listed)))))


def _run_row(
    run_id: int,
    started: datetime,
    snapshots: Sequence[dict[str, object]],
    failures: Sequence[dict[str, object]],
    books: Sequence[dict[str, object]],
) -> dict[str, object]:
    whole = not failures
    with_book = sum(row["book_id"] is not None for row in snapshots)
    return {
        "run_id": run_id,
        "started_at": ac.sql_time(started),
        "finished_at": ac.sql_time(started + timedelta(seconds=40)),
        "status": "complete" if whole else "partial",
        "markets_listed": len(snapshots),
        "snapshots_saved": len(snapshots),
        "books_missing": len(snapshots) - with_book,
        "errors": len(failures),
        "listing": "top",
        "follow": 1,
        "duration": 40.25,
        "min_volume": None if run_id % 9 == 0 else 100_000.0,
        "version": ac.__version__,
        "depth": None,
        "books_saved": len(books),
        "books_unchanged": with_book - len(books),
    }


def _post_row(run_id: int, number: int, started: datetime, rng: random.Random) -> dict[str, object]:
    odd = number % 5 == 4
    likes, retweets = rng.randrange(100), rng.randrange(1_000)
    return {
        "tweet_id": str(1_700_000_000_000_000_000 + run_id * 1_000 + number),
        "timestamp": ac.sql_time(started - timedelta(minutes=7)),
        "text": "" if odd else f"BTC to the moon \U0001f680\nnumber {number}, “sure”",
        "author_username": None if odd else "someone",
        "author_id": str(number),
        "likes": likes,
        "retweets": retweets,
        "replies": None if odd else 3,
        "engagement_score": None if odd else likes + 2 * retweets + 3,
        "sentiment_score": None if odd else round(rng.uniform(-1, 1), 3),
        "market_id": None if odd else str(900_000 + number),
        "keywords": None if odd else "btc, moon",
        "created_at": ac.sql_time(started + timedelta(seconds=30)),
        "run_id": None if odd else run_id,
        "lang": "en",
        "links": "[]" if odd else '["https://polymarket.com/event/x"]',
    }


def _hype_row(run_id: int, number: int, started: datetime, rng: random.Random) -> dict[str, object]:
    return {
        "market_id": str(900_000 + number),
        "timestamp": ac.sql_time(started + timedelta(seconds=31)),
        "tweet_count": 2,
        "total_engagement": 17,
        "avg_sentiment": None if number % 2 else 0.25,
        "unique_users": 2,
        "velocity": 1.5,
        "hype_score": round(rng.uniform(0, 100), 2),
        "run_id": run_id,
    }


def _fill_seen(connection: sqlite3.Connection) -> None:
    """Point `seen` to the newest snapshot of each market, as collecting does."""
    connection.execute("""
        INSERT INTO seen (market_id, last_seen, snapshot_id)
        SELECT market_id, max(timestamp), max(id) FROM snapshots GROUP BY market_id
    """)


def count_rows(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the number of rows of each table that is filled here."""
    counts: Counter[str] = Counter()
    for table in SAMPLED:
        counts[table] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
    return dict(counts)


def main(argv: Sequence[str] | None = None) -> int:
    """Make a file and print how many rows it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, metavar="NEW.db")
    parser.add_argument("--markets", type=int, default=5_277)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--runs-per-day", type=int, default=96)
    parser.add_argument("--first-day", type=date.fromisoformat, default=FIRST_DAY, metavar="YYYY-MM-DD")
    parser.add_argument("--change", type=float, default=0.2, help="share of books that a run finds changed")
    parser.add_argument("--levels", type=int, default=54)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--posts-per-run", type=int, default=20)
    options = vars(parser.parse_args(argv))
    if options["path"].exists():
        parser.error(f"{options['path']}: exists")
    for table, count in fill(**options).items():
        sys.stdout.write(f"{table:14} {count:>10,}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
