"""covers: times that other programs, other clocks and older collectors have left in the file."""

from __future__ import annotations

import logging
import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from conftest import OLDER_TABLES, JumpingClock, rows
from truth import COLLECTOR, assert_true, command, failures, stored_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

    from async_collector import AsyncCollector

DAY = 86_400.0
NOON = "2026-12-31 12:00:00"  # 1,798,718,400 in Unix time

MINUTE = 60.0


def latest(database: Path) -> dict[str, int | None]:
    """Return the run that each market's newest snapshot is of."""
    return {row["market_id"]: row["run_id"] for row in rows(database, "SELECT market_id, run_id FROM latest_snapshots")}


@pytest.fixture
def older(database: Path) -> Iterator[sqlite3.Connection]:
    """A file of an older collector, opened by another program that commits at once."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.executescript(OLDER_TABLES)
    yield connection
    connection.close()


def remember(older: sqlite3.Connection, markets: Iterable[FakeMarket], timestamp: object, **columns: object) -> None:
    """Store *markets*, each with a snapshot, as an older collector did."""
    older.execute("BEGIN")
    for market in markets:
        values = {"market_id": market.id, "token_id_yes": market.tokens[0], "token_id_no": market.tokens[1]} | columns
        marks = ", ".join("?" * len(values))
        older.execute(f"INSERT INTO markets ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))  # noqa: S608
        add_snapshot(older, market, timestamp, 0.125)
    older.execute("COMMIT")


def add_snapshot(older: sqlite3.Connection, market: FakeMarket, timestamp: object, price: float) -> None:
    statement = "INSERT INTO snapshots (market_id, timestamp, price_yes) VALUES (?, ?, ?)"
    older.execute(statement, (market.id, timestamp, price))


ODD_TIMES: dict[str, object] = {
    "seconds": 1_795_000_000,
    "seconds ahead": 1_900_000_000,
    "milliseconds": 1_795_000_000_000,
    "a fraction": 1_795_000_000.25,
    "a blob": b"2026-11-22 14:15:00",
    "no text": b"\xff\x00",
    "nothing": None,
    "empty": "",
    "a word": "yesterday",
    "with a T": "2026-11-22T13:00:00.1",
    "with a zone": "2026-11-22T13:00:00+00:00",
    "local": "2026-11-22 23:59:59",
    "a date": "2026-11-22",
    "the far future": "9999-12-31 23:59:59",
    "beyond it": "99999-01-01 00:00:00",
}


@pytest.mark.parametrize("timestamp", [1_795_000_000, 1_795_000_000.25, b"2026-11-22 14:15:00", b"\xff", "soon"])
async def test_a_time_that_another_program_stores_meanwhile_stops_no_run(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, older: sqlite3.Connection, timestamp: object
) -> None:
    await collector.collect_all()
    for market in exchange.markets.values():
        add_snapshot(older, market, timestamp, 0.125)
    assert (await collector.collect_all())["status"] == "complete"
    assert_true(database, exchange.markets.values())


async def test_a_full_walk_and_an_outcome_of_a_clock_that_was_ahead_are_not_waited_for(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    """The outcome was asked for in vain while the clock was a hundred years ahead."""
    market = next(iter(exchange.markets.values()))
    await collector.collect_all()
    exchange.close(market, "0.97", "0.03")
    clock.set_forward_s = 36_500 * DAY
    await collector.collect_all()
    clock.set_forward_s = 0
    exchange.close(market, "1", "0")
    clock.elapsed_s += DAY
    await collector.collect_all()
    query = "SELECT resolved, resolution_outcome FROM markets WHERE market_id = ?"
    assert rows(database, query, market.id) == [{"resolved": 1, "resolution_outcome": market.outcomes[0]}]


# --- resolved or not

NOT_RESOLVED = (0, None, "False", "false", "0", "", "no", 0.0, b"0")
RESOLVED = (1, "True", "true", "1", 1.0)


async def test_whatever_is_not_true_is_not_resolved(
    exchange: FakePolymarket,
    collector: AsyncCollector,
    older: sqlite3.Connection,
    database: Path,
) -> None:
    """What an older collector has stored is followed: its markets trade less than the threshold now."""
    quiet = [exchange.add_market(volume_24h=50.0) for _ in NOT_RESOLVED]
    ended = [exchange.add_market(volume_24h=50.0) for _ in RESOLVED]
    for _ in range(150):
        exchange.add_market(volume_24h=60.0)
    for market, value in zip(quiet, NOT_RESOLVED, strict=True):
        remember(older, [market], "2026-11-01 10:00:00", resolved=value)
    for market, truth in zip(ended, RESOLVED, strict=True):
        said: dict[str, object] = {"resolved": truth, "resolution_outcome": market.outcomes[0]}
        remember(older, [market], "2026-11-01 10:00:00", **said)
    for market in ended:
        exchange.close(market, "1", "0")
    result = await collector.collect_all()
    assert (result["status"], failures(database)) == ("complete", [])
    loud = [market for market in exchange.markets.values() if (market.volume_24h or 0) > 1_000]
    assert_true(database, [*loud, *quiet])
    exchange.close(quiet[1], "0", "1")
    await collector.collect_all()
    query = "SELECT resolved, resolution_outcome FROM markets WHERE market_id = ?"
    assert rows(database, query, quiet[1].id) == [{"resolved": 1, "resolution_outcome": quiet[1].outcomes[1]}]


# --- one form

FORMS: list[tuple[object, object]] = [
    (NOON, NOON),
    ("2026-12-31T12:00:00Z", NOON),
    ("2026-12-31T12:00:00", NOON),
    ("2026-12-31T12:00:00.987654Z", NOON),
    ("2026-12-31 12:00:00+00", NOON),
    ("2026-12-31 12:00:00.5", NOON),
    ("2026-12-31T12:00:00+00:00", NOON),
    ("2026-12-31T14:00:00+02:00", NOON),
    ("2026-12-31T07:00:00-05:00", NOON),
    ("2026-12-31 12:00", NOON),
    ("2026-12-31", "2026-12-31 00:00:00"),
    (1_798_718_400, NOON),
    (1_798_718_400.75, NOON),
    (1_798_718_400_000, NOON),
    ("1798718400", NOON),
    (b"2026-12-31T12:00:00Z", NOON),
    (None, None),
    ("soon", "soon"),
    ("", ""),
    (b"\xff", b"\xff"),
    ("2026-13-31T12:00:00Z", "2026-13-31T12:00:00Z"),
]
COLUMNS = [
    *(("markets", column) for column in ("start_time", "end_time", "first_seen")),
    ("snapshots", "timestamp"),
    ("tweets", "timestamp"),
    ("tweets", "created_at"),
    ("hype_signals", "timestamp"),
]


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[".".join(names) for names in COLUMNS])
async def test_an_upgrade_brings_every_time_into_one_form_and_keeps_what_is_no_time(
    exchange: FakePolymarket,
    collector: AsyncCollector,
    older: sqlite3.Connection,
    database: Path,
    caplog: pytest.LogCaptureFixture,
    table: str,
    column: str,
) -> None:
    assert exchange.markets
    key = "tweet_id" if table == "tweets" else "market_id"
    values = [(f"x{number}", value) for number, (value, _) in enumerate(FORMS)]
    older.execute("BEGIN")
    older.executemany(f"INSERT INTO {table} ({key}, {column}) VALUES (?, ?)", values)  # noqa: S608
    older.execute("COMMIT")
    await collector.collect_all()
    query = f"SELECT {key} AS key, {column} AS value FROM {table} WHERE {key} GLOB 'x*'"  # noqa: S608
    found: dict[str, Any] = {row["key"]: row["value"] for row in rows(database, query)}
    wrong = [(value, found[f"x{n}"]) for n, (value, wanted) in enumerate(FORMS) if found[f"x{n}"] != wanted]
    assert wrong == []
    said = [text for text in map(logging.LogRecord.getMessage, caplog.records) if table in text and column in text]
    assert len(said) == 1, "that some are no times is said once"


async def test_two_rows_that_would_have_the_same_time_are_both_kept(
    exchange: FakePolymarket, collector: AsyncCollector, older: sqlite3.Connection, database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    remember(older, [market], "2026-11-20 10:00:00")
    for timestamp in ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00.5Z"):
        add_snapshot(older, market, timestamp, 0.25)
    assert (await collector.collect_all())["status"] == "complete"
    query = "SELECT price_yes FROM snapshots WHERE market_id = ? AND run_id IS NULL ORDER BY id"
    assert [row["price_yes"] for row in rows(database, query, market.id)] == [0.125, 0.25, 0.25]
    assert stored_rows(database)[market.id]["market_id"] == market.id


async def test_after_an_upgrade_every_live_end_time_has_the_same_form(
    exchange: FakePolymarket, collector: AsyncCollector, older: sqlite3.Connection, database: Path
) -> None:
    for market in list(exchange.markets.values())[:30]:
        columns = {"end_time": market.end_date, "first_seen": "2026-11-01T00:00:00Z"}
        remember(older, [market], "2026-11-20T10:00:00+00:00", **columns)
    closed = exchange.add_market(volume_24h=200_000.0)
    remember(older, [closed], "2026-11-20 10:00:00", end_time="2026-11-21T10:00:00Z", resolved=1)
    exchange.close(closed, "1", "0")
    await collector.collect_all()
    form = "'____-__-__ __:__:__'"
    for table, column in (("markets", "end_time"), ("markets", "first_seen"), ("snapshots", "timestamp")):
        assert rows(database, f"SELECT {column} FROM {table} WHERE {column} NOT LIKE {form}") == []  # noqa: S608


@pytest.mark.parametrize("name", ODD_TIMES)
async def test_whatever_an_older_file_has_for_a_time_the_newest_row_is_the_one_stored_last(
    exchange: FakePolymarket, collector: AsyncCollector, older: sqlite3.Connection, database: Path, name: str
) -> None:
    remember(older, exchange.markets.values(), ODD_TIMES[name])
    result = await collector.collect_all()
    assert (result["status"], result["stats"]["errors"]) == ("complete", 0)
    assert_true(database, exchange.markets.values())
    assert latest(database) == dict.fromkeys(exchange.markets, 1)
    assert rows(database, "SELECT count(*) AS kept FROM snapshots WHERE price_yes = 0.125 AND run_id IS NULL") == [
        {"kept": 60}
    ]


async def test_a_run_of_a_clock_that_was_ahead_is_not_the_newest_for_ever(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    clock.set_forward_s = 36_500 * DAY
    await collector.collect_all()
    clock.set_forward_s = 0
    for _ in range(2):
        clock.elapsed_s += 15 * MINUTE
        assert (await collector.collect_all())["status"] == "complete"
        assert_true(database, exchange.markets.values())
    assert latest(database) == dict.fromkeys(exchange.markets, 3)


async def test_the_status_says_that_the_clock_was_ahead(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    clock.set_forward_s = 36_500 * DAY
    await collector.collect_all()
    ahead = await command(exchange, COLLECTOR, "--status", "--db", str(database))
    clock.set_forward_s += (datetime.now(UTC) - clock.now()).total_seconds() - MINUTE
    await collector.collect_all()
    assert (await command(exchange, COLLECTOR, "--quiet", "--db", str(database))).code == 0
    afterwards = await command(exchange, COLLECTOR, "--status", "--db", str(database))
    assert [done.code for done in (ahead, afterwards)] == [1, 0]
    assert all("clock" in done.out and "ahead" in done.out for done in (ahead, afterwards))
    assert "never" not in afterwards.out


ENDS = {  # as they are sent: as they are stored
    "2026-11-22T24:00:00Z": "2026-11-23 00:00:00",
    "2026-11-22T23:59:60Z": "2026-11-22 23:59:59",
    "2026-11-22 23:59:59.123456789+00": "2026-11-22 23:59:59",
    "2026-11-23T01:59:59+02:00": "2026-11-22 23:59:59",
    "2026-11-31T00:00:00Z": None,
    "soon": None,
    "": None,
    "0001-01-01T00:00:00Z": None,
    None: None,
}


async def test_an_end_that_cannot_be_read_is_recorded_and_leaves_no_market_out(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path
) -> None:
    """A market without a known end may end at any moment."""
    for number, end in enumerate(ENDS):
        exchange.add_event(f"day-{number}", series="daily", changes={"endDate": end})
    exchange.add_event("later", series="daily", changes={"endDate": "2026-11-25T00:00:00Z"})
    result = await make_collector(series=["daily"], ends_within=24 * 60).collect_all()
    assert (result["status"], result["markets"]) == ("complete", len(ENDS))
    stored = rows(database, "SELECT end_time FROM markets ORDER BY CAST(market_id AS INTEGER)")
    assert [row["end_time"] for row in stored] == list(ENDS.values())
    odd = rows(database, "SELECT market_id FROM markets WHERE event_slug IN ('day-4', 'day-5')")
    assert [(row["market_id"], row["stage"], row["reason"]) for row in failures(database)] == [
        (row["market_id"], "list", "left out, for it cannot be read: endDate") for row in odd
    ]


async def test_a_time_of_closing_that_cannot_be_read_is_recorded(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, clock: JumpingClock
) -> None:
    market = next(iter(exchange.markets.values()))
    await collector.collect_all()
    exchange.close(market, "1", "0")
    exchange.change(market, closed_time="2026-11-31 10:00:00+00")
    clock.elapsed_s += 900
    assert (await collector.collect_all())["status"] == "complete"
    assert [(row["market_id"], row["stage"], row["reason"]) for row in failures(database)] == [
        (market.id, "outcome", "left out, for it cannot be read: closedTime 2026-11-31 10:00:00+00")
    ]
    query = "SELECT resolved, closed_at FROM markets WHERE market_id = ?"
    assert rows(database, query, market.id) == [{"resolved": 1, "closed_at": None}]
