"""covers: what a run costs in rows, bytes and requests: it grows with what is new, not with what is known or fails."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import JumpingClock, rows
from truth import COLLECTOR, assert_true, command, failures, last_run

from async_collector import ApiError, Database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

    from async_collector import AsyncCollector, CollectionResult

    Run = Callable[..., Awaitable[CollectionResult]]

MINUTE = 60.0


@pytest.fixture
def next_run(
    exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector], database: Path, clock: JumpingClock
) -> Run:
    """Return what makes the next run, a quarter of an hour after the one before."""

    async def run(**settings: Any) -> CollectionResult:  # noqa: ANN401
        exchange.arrivals.clear()
        clock.elapsed_s += 15 * MINUTE
        return await make_collector(db_path=database, **settings).collect_all()

    return run


def followed(exchange: FakePolymarket, markets: int) -> list[FakeMarket]:
    return [exchange.add_market(volume_24h=200_000.0) for _ in range(markets)]


def calm(exchange: FakePolymarket) -> None:
    """Let no market trade enough any more, and one hundred and fifty others a little more than those."""
    for market in exchange.markets.values():
        exchange.change(market, volume_24h=50.0)
    for _ in range(150):
        exchange.add_market(volume_24h=60.0)


# --- failures


async def test_a_request_by_ids_that_fails_is_one_row_that_says_how_many_markets_it_concerns(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    followed(exchange, 440)
    await next_run()
    calm(exchange)
    exchange.fail_next("/markets/keyset", status=503, times=math.inf)
    with contextlib.suppress(ApiError):  # nothing was collected
        await next_run()
    assert last_run(database)["snapshots_saved"] == 0
    found = failures(database)
    assert len(found) <= len(exchange.asked("/markets/keyset"))
    assert len(found) < 50
    assert sum(row["markets"] or 0 for row in found) == 500
    assert {row["market_id"] for row in found} == {None}
    assert last_run(database)["errors"] == len(found)


async def test_a_request_for_books_that_fails_is_one_row_that_says_how_many_markets_it_concerns(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    followed(exchange, 940)
    exchange.fail_next("/books", status=503, times=math.inf)
    result = await next_run()
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 1_000, 1_000)
    found = failures(database)
    assert len(found) <= len(exchange.asked("/books"))
    assert sum(row["markets"] or 0 for row in found) == 1_000


async def test_a_failure_of_one_market_names_it(exchange: FakePolymarket, next_run: Run, database: Path) -> None:
    market = next(iter(exchange.markets.values()))
    exchange.change(market, has_books=False)
    await next_run()
    (failure,) = failures(database)
    assert (failure["market_id"], failure["stage"], failure["markets"]) == (market.id, "book", 1)


# --- gaps


def gaps(database: Path) -> list[dict[str, Any]]:
    return rows(database, "SELECT * FROM gaps ORDER BY market_id, since")


def moments(database: Path, market: FakeMarket) -> list[str]:
    found = rows(database, "SELECT timestamp FROM snapshots WHERE market_id = ? ORDER BY run_id", market.id)
    return [row["timestamp"] for row in found]


async def test_what_is_still_missing_is_a_gap_without_an_end(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    await next_run()
    exchange.fail_next("/markets/keyset", status=503, times=math.inf)
    for _ in range(2):
        with contextlib.suppress(ApiError):
            await next_run()
    assert len(gaps(database)) == 60
    for gap in gaps(database):
        (since,) = moments(database, exchange.markets[gap["market_id"]])
        assert (gap["since"], gap["until"], json.loads(gap["run_ids"])) == (since, None, [2, 3])
        assert "503" in json.loads(gap["reasons"])[0]
    exchange.heal()
    await next_run()
    for gap in gaps(database):
        assert [gap["since"], gap["until"]] == moments(database, exchange.markets[gap["market_id"]])
    assert len(gaps(database)) == 60


async def test_a_market_that_has_ended_or_is_not_followed_is_not_missing(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    await next_run(min_volume=0)
    exchange.close(next(iter(exchange.markets.values())), "1", "0")
    quiet = exchange.add_market(volume_24h=50.0)
    await next_run(min_volume=0)
    for _ in range(2):
        await next_run()
    assert moments(database, quiet)
    assert gaps(database) == []


def fill(database: Path, markets: int, runs: int) -> None:
    """Add runs in which every 50th market is missing in every 7th run, and two runs in which all are, with reasons."""
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("DELETE FROM runs")
        connection.executemany(
            "INSERT INTO runs (run_id, started_at, status, follow, min_volume) VALUES (?, ?, 'complete', 1, 1000)",
            [(run, moment(run)) for run in range(1, runs + 1)],
        )
        columns = {row[1] for row in connection.execute("PRAGMA table_info(markets)")}
        name = ("market_id, followed", "?, 1") if "followed" in columns else ("market_id", "?")
        connection.executemany(
            f"INSERT INTO markets ({name[0]}) VALUES ({name[1]})",  # noqa: S608
            [(f"{m}",) for m in range(markets)],
        )
        connection.executemany(
            "INSERT INTO snapshots (market_id, timestamp, run_id, price_yes) VALUES (?, ?, ?, 0.5)",
            (
                (f"{market}", moment(run), run)
                for run in range(1, runs + 1)
                if run not in {3, runs - 1}
                for market in range(markets)
                if market % 50 or run % 7
            ),
        )
        missing: list[tuple[int, str | None, str, str]] = [
            (3, f"{m}", "list", "HTTP 503") for m in range(markets)
        ]  # as files of before have it
        missing += [(runs - 1, None, "list", "HTTP 503") for _ in range(markets // 100)]
        connection.executemany("INSERT INTO failures (run_id, market_id, stage, reason) VALUES (?, ?, ?, ?)", missing)
    connection.close()


def moment(run: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(1_790_000_000 + 900 * run))


def steps(database: Path) -> tuple[int, int]:
    """Return how many thousand instructions of SQLite's machine it takes to read the gaps, and how many there are."""
    connection = sqlite3.connect(database)
    taken = 0

    def count() -> bool:
        nonlocal taken
        taken += 1
        return taken > 400_000  # gives up

    connection.set_progress_handler(count, 1_000)
    found = len(connection.execute("SELECT * FROM gaps").fetchall())
    connection.close()
    return taken, found


@pytest.mark.parametrize("larger", [(1_200, 20), (600, 40)], ids=["markets", "runs"])
async def test_gaps_take_twice_the_steps_for_twice_the_rows(
    exchange: FakePolymarket, tmp_path: Path, larger: tuple[int, int]
) -> None:
    taken = []
    for number, (markets, runs) in enumerate([(600, 20), larger]):
        database = tmp_path / f"{number}.db"
        await make_empty(exchange, database)
        fill(database, markets, runs)
        taken.append(steps(database))
    (few, gaps_of_few), (many, gaps_of_many) = taken
    assert gaps_of_few >= 2 * 600
    assert gaps_of_many >= min(larger[0] / 600, 1) * gaps_of_few
    assert many <= 2.6 * few


async def make_empty(exchange: FakePolymarket, database: Path) -> None:
    """Let a collector fill an empty file with its tables."""
    database.touch()
    exchange.fail_next("/markets/keyset", status=404)
    await command(exchange, COLLECTOR, "--db", str(database), "--quiet")


@pytest.mark.slow
async def test_gaps_of_one_and_a_half_million_snapshots_take_a_second(exchange: FakePolymarket, database: Path) -> None:
    await make_empty(exchange, database)
    fill(database, 5_277, 290)
    connection = sqlite3.connect(database)
    times = []
    for _ in range(3):
        before = time.thread_time()
        connection.execute("SELECT * FROM gaps").fetchall()
        times.append(time.thread_time() - before)
    connection.close()
    assert min(times) <= 1.0, "processor time, which a neighbour does not use up"


# --- bytes


async def test_a_market_that_has_not_changed_is_not_written_again(
    exchange: FakePolymarket, next_run: Run, database: Path, write: Callable[..., None]
) -> None:
    await next_run()
    write("""
        CREATE TABLE audit (market_id TEXT);
        CREATE TRIGGER audit_markets AFTER UPDATE ON markets BEGIN INSERT INTO audit VALUES (NEW.market_id); END;
    """)
    result = await next_run()
    assert (result["status"], rows(database, "SELECT * FROM audit")) == ("complete", [])
    changed = list(exchange.markets.values())[:3]
    exchange.change(changed[0], question="Is it another question?")
    exchange.change(changed[1], tags=("Crypto", "Bitcoin", "Solana"))
    exchange.change(changed[2], end_date="2027-03-01T00:00:00Z")
    await next_run()
    assert {row["market_id"] for row in rows(database, "SELECT * FROM audit")} == {market.id for market in changed}
    assert_true(database, exchange.markets.values())


def pages_written(database: Path, after_frame: int) -> tuple[list[int], int]:
    """Return the pages in the frames of the WAL after that one, and how many frames there are."""
    log = database.with_name(database.name + "-wal").read_bytes()
    size = int.from_bytes(log[8:12], "big")
    starts = range(32, len(log) - size - 23, size + 24)
    return [int.from_bytes(log[at : at + 4], "big") for at in starts[after_frame:]], len(starts)


async def test_a_run_into_a_file_that_somebody_reads_writes_what_is_new(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    """One page of the index by market for each market cannot be avoided; a page of `markets` can."""
    followed(exchange, 240)
    for _ in range(4):
        await next_run()
    reader = sqlite3.connect(database)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM snapshots").fetchall()
    await next_run()
    _, before = pages_written(database, 0)
    await next_run()
    written, _ = pages_written(database, before)
    reader.close()
    assert len(written) * 4_096 <= 300 * 4_600 + 300 * 500
    assert written, "otherwise nothing was measured"
    if [row for row in rows(database, "PRAGMA compile_options") if "ENABLE_DBSTAT_VTAB" in row.values()]:
        pages = {row["pageno"] for row in rows(database, "SELECT pageno FROM dbstat WHERE name = 'markets'")}
        assert pages.isdisjoint(written)


@pytest.mark.slow
async def test_a_large_log_that_a_reader_holds_is_said(
    exchange: FakePolymarket, database: Path, write: Callable[..., None]
) -> None:
    assert (await command(exchange, COLLECTOR, "--db", str(database), "--quiet")).code == 0
    reader = sqlite3.connect(database)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM snapshots").fetchall()
    write("CREATE TABLE mine (x); " + "INSERT INTO mine VALUES (zeroblob(8000000)); " * 10)
    done = await command(exchange, COLLECTOR, "--db", str(database))
    status = await command(exchange, COLLECTOR, "--db", str(database), "--status")
    reader.close()
    assert done.code == 0
    for text in (done.out + done.err, status.out + status.err):
        assert "WAL" in text
        assert "reader" in text


# --- requests


async def test_a_run_over_the_whole_exchange_makes_nobody_follow_it(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    loud = list(exchange.markets.values())
    quiet = [exchange.add_market(volume_24h=50.0) for _ in range(500)]
    before = await next_run()
    await next_run(min_volume=0)
    assert_true(database, exchange.markets.values())
    result = await next_run()
    assert (result["requests"], result["markets"]) == (before["requests"], 60)
    assert_true(database, loud)
    assert rows(database, "SELECT count(*) AS n FROM markets WHERE followed = 1") == [{"n": 60}]
    exchange.close(quiet[0], "1", "0")
    await next_run(min_volume=0)
    query = "SELECT resolved, resolution_outcome FROM markets WHERE market_id = ?"
    assert rows(database, query, quiet[0].id) == [{"resolved": 1, "resolution_outcome": quiet[0].outcomes[0]}]


async def test_markets_that_have_closed_are_asked_for_100_at_a_time(
    exchange: FakePolymarket, next_run: Run, database: Path
) -> None:
    """One in twenty of the followed ones has closed: they are gathered over the questions for the open ones."""
    ended = followed(exchange, 940)[::20]
    await next_run()
    calm(exchange)
    for market in ended:
        exchange.close(market, "1", "0")
    await next_run()
    queries = [arrival.query for arrival in exchange.asked("/markets/keyset") if "id=" in arrival.query]
    assert len([query for query in queries if "closed=true" in query]) <= 2
    assert len(queries) <= 10 + 2
    resolved = rows(database, "SELECT count(*) AS n FROM markets WHERE resolved = 1")
    assert resolved == [{"n": len(ended)}]


async def test_the_names_of_a_selection_are_stored_once_a_day(database: Path) -> None:
    """500 names are 10 kB, and a schedule of 3 seconds has 28,800 runs a day."""
    names = json.dumps({"markets": [f"will-market-{number}-end-well" for number in range(500)]})
    times = [f"2026-11-{day} 0{hour}:00:00" for day in (22, 23) for hour in range(10)]
    async with Database.open(database) as opened:
        for time in times:
            await opened.start_run(started_at=time, min_volume=None, names=names)
            await opened.start_run(started_at=time, min_volume=None, names='{"events": ["a"]}')
            await opened.start_run(started_at=time, min_volume=0)
    stored = rows(database, "SELECT selection_id, names, first_used_at FROM selections ORDER BY selection_id")
    assert [(row["names"], row["first_used_at"]) for row in stored] == [
        (each, time) for time in (times[0], times[10]) for each in (names, '{"events": ["a"]}')
    ]
    found = rows(
        database, "SELECT started_at, names FROM runs LEFT JOIN selections USING (selection_id) ORDER BY run_id"
    )
    assert [(row["started_at"], row["names"]) for row in found] == [
        (time, each) for time in times for each in (names, '{"events": ["a"]}', None)
    ]
    assert database.stat().st_size < 300_000
