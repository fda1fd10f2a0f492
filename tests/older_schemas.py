"""The schemas of earlier versions of the collector, each as what it added to the one before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Landed:
    """A schema that files may have, what made it from the one before, and the failures that are in its file."""

    name: str
    version: int  # of the schema, PRAGMA user_version
    added: str
    failures: list[dict[str, Any]] = field(default_factory=list)


FAILURE: Final = {"rowid": 7, "reason": "x", "markets": None}
LANDED: Final = (
    Landed("none", 0, ""),
    Landed("first", 1, ""),
    Landed(
        "prices",
        2,
        """
        ALTER TABLE markets ADD COLUMN condition_id TEXT;
        ALTER TABLE markets ADD COLUMN event_slug TEXT;
        ALTER TABLE markets ADD COLUMN outcome_yes TEXT;
        ALTER TABLE markets ADD COLUMN outcome_no TEXT;
        ALTER TABLE markets ADD COLUMN tags TEXT;
        ALTER TABLE markets ADD COLUMN last_seen TIMESTAMP;
        ALTER TABLE markets ADD COLUMN closed_at TIMESTAMP;
        ALTER TABLE snapshots ADD COLUMN run_id INTEGER;
        ALTER TABLE snapshots ADD COLUMN last_trade_price REAL;
        ALTER TABLE snapshots ADD COLUMN book_time TIMESTAMP;
        ALTER TABLE snapshots ADD COLUMN bid_size_yes REAL;
        ALTER TABLE snapshots ADD COLUMN ask_size_yes REAL;
        ALTER TABLE snapshots ADD COLUMN bid_size_no REAL;
        ALTER TABLE snapshots ADD COLUMN ask_size_no REAL;
        CREATE TABLE runs (run_id INTEGER PRIMARY KEY AUTOINCREMENT, started_at TIMESTAMP NOT NULL,
            finished_at TIMESTAMP, status TEXT NOT NULL, markets_listed INTEGER NOT NULL DEFAULT 0,
            snapshots_saved INTEGER NOT NULL DEFAULT 0, books_missing INTEGER NOT NULL DEFAULT 0,
            tweets INTEGER NOT NULL DEFAULT 0, requests INTEGER NOT NULL DEFAULT 0, retries INTEGER NOT NULL DEFAULT 0,
            rate_limit_hits INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0, duration REAL,
            min_volume REAL, version TEXT);
        CREATE TABLE failures (run_id INTEGER NOT NULL REFERENCES runs(run_id), market_id TEXT, stage TEXT NOT NULL,
            reason TEXT NOT NULL);
        CREATE INDEX failures_by_run ON failures(run_id);
        CREATE VIEW latest_snapshots AS SELECT m.question, m.last_seen, s.*
            FROM snapshots AS s JOIN markets AS m USING (market_id) WHERE s.id = (
                SELECT id FROM snapshots WHERE market_id = m.market_id ORDER BY timestamp DESC LIMIT 1);
        INSERT INTO runs (started_at, status, min_volume) VALUES ('2026-01-01 00:00:00', 'complete', 0);
        INSERT INTO markets (market_id, last_seen) VALUES ('2', '2026-01-01 00:00:00');
        INSERT INTO snapshots (market_id, timestamp, run_id) VALUES ('2', '2026-01-01 00:00:00', 1);
        INSERT INTO failures (rowid, run_id, stage, reason) VALUES (7, 1, 'list', 'x');
        """,
        [FAILURE],
    ),
    Landed(
        "the whole exchange",
        2,
        """
        ALTER TABLE runs ADD COLUMN listing TEXT;
        ALTER TABLE runs ADD COLUMN full_walk_at TIMESTAMP;
        CREATE TABLE listed_ids (market_id INTEGER PRIMARY KEY);
        """,
        [FAILURE],
    ),
    Landed(
        "outcomes",
        2,
        """
        ALTER TABLE markets ADD COLUMN outcome_asked INTEGER DEFAULT 0;
        ALTER TABLE markets ADD COLUMN outcome_ask_at TIMESTAMP;
        ALTER TABLE runs ADD COLUMN follow INTEGER;
        CREATE INDEX unresolved_markets ON markets(CAST(market_id AS INTEGER), outcome_ask_at)
            WHERE resolved = 0 AND market_id NOT GLOB '*[^0-9]*';
        CREATE VIEW gaps AS SELECT market_id, last_seen AS since FROM markets;
        """,
        [FAILURE],
    ),
    Landed(
        "posts",
        3,
        """
        ALTER TABLE tweets ADD COLUMN run_id INTEGER;
        ALTER TABLE tweets ADD COLUMN lang TEXT;
        ALTER TABLE tweets ADD COLUMN links TEXT;
        ALTER TABLE hype_signals ADD COLUMN run_id INTEGER;
        ALTER TABLE runs ADD COLUMN newest_tweet_id TEXT;
        ALTER TABLE runs ADD COLUMN tweets_complete INTEGER;
        CREATE INDEX tweets_by_time ON tweets(timestamp);
        """,
        [FAILURE],
    ),
    Landed("posts by market", 3, "CREATE INDEX tweets_by_market ON tweets(market_id, timestamp);", [FAILURE]),
    Landed(
        "books",
        4,
        """
        DROP VIEW latest_snapshots;
        DROP VIEW gaps;
        ALTER TABLE markets ADD COLUMN followed INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE snapshots ADD COLUMN book_id INTEGER REFERENCES books(book_id);
        ALTER TABLE runs ADD COLUMN selection TEXT;
        ALTER TABLE runs ADD COLUMN depth INTEGER;
        ALTER TABLE runs ADD COLUMN books_saved INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE runs ADD COLUMN books_unchanged INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE runs ADD COLUMN unmirrored INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE failures ADD COLUMN markets INTEGER NOT NULL DEFAULT 1;
        CREATE TABLE books (book_id INTEGER PRIMARY KEY AUTOINCREMENT,
            market_id TEXT NOT NULL REFERENCES markets(market_id), timestamp TIMESTAMP NOT NULL, bids TEXT, asks TEXT,
            mirrored INTEGER, bids_no TEXT, asks_no TEXT);
        CREATE TABLE seen (market_id TEXT PRIMARY KEY, last_seen TIMESTAMP, snapshot_id INTEGER) WITHOUT ROWID;
        INSERT INTO seen SELECT market_id, last_seen, (SELECT max(id) FROM snapshots WHERE market_id = m.market_id)
            FROM markets AS m;
        ALTER TABLE markets DROP COLUMN last_seen;
        CREATE TABLE lake (database_id TEXT NOT NULL, shard TEXT NOT NULL);
        CREATE TABLE archived_days (day TEXT PRIMARY KEY, archived_at TIMESTAMP NOT NULL,
            parts INTEGER NOT NULL DEFAULT 1, snapshots INTEGER NOT NULL, books INTEGER NOT NULL,
            runs INTEGER NOT NULL, failures INTEGER NOT NULL, tweets INTEGER NOT NULL, hype_signals INTEGER NOT NULL);
        CREATE INDEX snapshots_by_time ON snapshots(timestamp);
        CREATE INDEX snapshots_by_run ON snapshots(run_id);
        CREATE INDEX runs_by_start ON runs(started_at);
        CREATE INDEX markets_by_slug ON markets(slug);
        CREATE INDEX markets_by_event ON markets(event_slug);
        CREATE INDEX markets_by_category ON markets(category);
        CREATE VIEW latest_snapshots AS SELECT s.*, seen.last_seen
            FROM seen JOIN snapshots AS s ON s.id = seen.snapshot_id;
        CREATE VIEW order_books AS SELECT s.id AS snapshot_id, b.* FROM snapshots AS s JOIN books AS b USING (book_id);
        CREATE VIEW gaps AS SELECT run_id, sum(markets) AS markets FROM failures GROUP BY run_id;
        """,
        [FAILURE | {"markets": 1}],
    ),
    Landed("the archive", 4, "CREATE INDEX books_by_time ON books(timestamp);", [FAILURE | {"markets": 1}]),
    Landed(
        "second looks",
        4,
        """
        CREATE INDEX second_looks ON markets(outcome_ask_at) WHERE resolved = 1 AND outcome_ask_at IS NOT NULL;
        DROP VIEW gaps;
        ALTER TABLE failures RENAME COLUMN markets TO number;
        ALTER TABLE failures ADD COLUMN markets INTEGER;
        UPDATE failures SET markets = number;
        ALTER TABLE failures DROP COLUMN number;
        """,
        [FAILURE | {"markets": 1}],
    ),
    Landed(
        "0.2.0",
        4,
        """
        DROP INDEX failures_by_run;
        CREATE INDEX failures_by_run_and_market ON failures(run_id, market_id);
        """,
        [FAILURE | {"markets": 1}],
    ),
    Landed("a table in one place", 5, "", [FAILURE | {"markets": 1}]),
)


def script_of(landed: Landed) -> str:
    """Return the script that makes a file of the first collectors one of *landed*."""
    return "".join(step.added for step in LANDED[: LANDED.index(landed) + 1])
