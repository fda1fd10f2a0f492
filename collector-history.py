#!/usr/bin/env python3
"""Fetch past prices and trades of the markets in a collector's file: the command `collector-history`.

    chosen markets -> `Past`: what of each is not stored yet
    `DataApi`: pages of prices (a whole window) or of trades (whole seconds), checked
    `Store`: the rows and the note in `past_done` in one transaction, beside a running collector

So it may end at any moment: what is stored is whole, the next run goes on where the notes say, and what comes twice is
stored once. What the rows mean is in `docs/data.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TextIO, TypeVar

import msgspec
from tqdm import tqdm

import async_collector as ac

ENVIRONMENT: Final[Mapping[str, str]] = {
    "DATA_API": "https://data-api.polymarket.com",
    "DATA_RATE_LIMIT": "10",  # requests per second; 20 are allowed
}
UNREACHED, PARTIAL, INTERRUPTED = ac.ApiError.exit_code, 75, 128  # the last with the number of the signal
MIN_COMPLETE_SHARE: Final = 0.95  # of the markets
MAX_SHOWN: Final = 20  # failures on stderr; --json has all

DAY_S: Final = 86_400
COARSE_S: Final = 10_800  # the finest width of prices that the exchange keeps for ever
FINE_S: Final = 300  # kept for 60 days
FINE_KEPT_S: Final = 60 * DAY_S
MAX_SPAN_S: Final = 15 * DAY_S  # of a window that is asked for
TRADES_KEPT_S: Final = 3 * 365 * DAY_S
SETTLED_S: Final = 600  # so long after its end a bucket is final; answers are up to 5 minutes old
OVERLAP_S: Final = 3_600  # so much older than the newest trade may one be that comes late
AHEAD_S: Final = 60  # a time further ahead of the answer's own Date is in the future
MAX_POINTS: Final = 50_000  # of a window; 15 days have 4,320 fine ones, and 17 years 50,000 coarse ones
MAX_WAITING: Final = 10_000  # trades of one second; a block has some hundred
WORKERS: Final = 10  # markets at a time
RUN_TIMEOUT_S: Final = 30.0 * DAY_S  # there is no next run to be in time for
PATIENCE_S: Final = 20 * 60.0  # with a collector that holds the file: a run ends before the next one begins
POLL_S: Final = 0.1  # also SQLite's own patience, which holds up requests and signals
PAUSE_S: Final = 0.06  # a collector that waits for the file looks every 0.05 s
PAUSE_EVERY_S: Final = 0.25


def time_text(moment: float) -> str:
    """Return Unix time in the database's form."""
    return ac.sql_time(datetime.fromtimestamp(moment, UTC))


# --- What the Data API sends ------------------------------------------------------------------------------------------

Moment = Annotated[int, msgspec.Meta(ge=10**9, lt=10**10)]  # Unix time; milliseconds are none
Hex = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class Point(msgspec.Struct, gc=False):
    """A price. Its width is 0 where it stands for no bucket: the last one before now, or a payout."""

    timestamp: Moment
    price: ac.Price
    width: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(name="resolution_seconds")


FILL_COLUMNS: Final = "timestamp, outcome, side, price, size, wallet, transaction_hash"  # of the table trades
FillKey = tuple[str, str, str, float, float, str, str]


class Fill(msgspec.Struct, gc=False):
    """A trade, from the side of its taker. It has no id: two of them may be equal."""

    timestamp: Moment
    token_id: ac.TokenId
    condition_id: ac.ConditionId
    side: Literal["BUY", "SELL"]
    price: ac.Price
    size: ac.Size
    transaction_hash: Hex
    wallet: Hex = msgspec.field(name="proxy_wallet")

    def key(self, outcome: str) -> FillKey:
        """Return its values of `FILL_COLUMNS`."""
        time = time_text(self.timestamp)
        return time, outcome, self.side, self.price, self.size, self.wallet, self.transaction_hash


Element = TypeVar("Element", Point, Fill)


class Pagination(msgspec.Struct):
    """What follows a page."""

    has_more: bool
    next_cursor: Annotated[str, msgspec.Meta(max_length=2_000)] | None = None


class Page(msgspec.Struct, Generic[Element]):
    """A page of prices, the oldest first, or of trades, the newest first."""

    data: Annotated[list[Element], msgspec.Meta(max_length=10_000)]
    pagination: Pagination


Params = Sequence[tuple[str, str]]
POINTS: Final = ac.json_decoder(Page[Point])
FILLS: Final = ac.json_decoder(Page[Fill])


Buckets = list[tuple[int, float]]  # timestamp and price of each


class Prices(NamedTuple):
    """The prices of one window, or of a whole life."""

    buckets: Buckets  # those of the wanted width that are final
    span: tuple[int, int] | None  # first and last timestamp that was sent, of whatever width; None: nothing was
    settled: int  # buckets that end by then are final


class DataApi:
    """What is asked of the Data API. Every method raises `ApiError`, also where answers contradict themselves.

    Source: https://docs.polymarket.com/api-reference/data-api/overview
    """

    def __init__(self, host: ac.HttpHost, on_answer: Callable[[], None]) -> None:
        self._host = host
        self._on_answer = on_answer

    def bad(self, what: str) -> ac.MalformedResponseError:
        """Return the error of answers that cannot be believed."""
        return ac.MalformedResponseError(what, self._host.url)

    async def fetch_prices(self, token_id: str, width: int, window: tuple[int, int] | None = None) -> Prices:
        """Fetch the prices of a token in a *window* of [since, until), 15 days at most, or of its whole life."""
        since, until = window or (0, 10**10)
        asked = [("start", str(since)), ("end", str(until))] if window else [("interval", "max")]
        params = [("token_id", token_id), ("bucket_seconds", str(width)), ("limit", "10000"), *asked]
        points: list[Point] = []
        now = 10**10
        async with aclosing(self.iter_pages("/v2/prices-history", params, POINTS)) as answers:
            async for some, _, _, answered in answers:
                points += some
                now = min(now, answered)
                widths = {point.width for point in points} - {0}
                if len(points) > MAX_POINTS or (widths and width not in widths):
                    raise self.bad(f"{len(points)} prices came, of {sorted(widths)[:3]} s and not of {width} s")
        grid = [point for point in points if point.width == width]
        if len({point.timestamp for point in grid}) < len(grid):
            raise self.bad("two prices are of the same time")
        if grid and (grid[0].timestamp < since - width or grid[-1].timestamp >= until):
            raise self.bad(f"prices from {grid[0].timestamp} on came for the time from {since} to {until}")
        final = [(point.timestamp, point.price) for point in grid if point.timestamp + width <= now - SETTLED_S]
        return Prices(final, (points[0].timestamp, points[-1].timestamp) if points else None, now - SETTLED_S)

    async def iter_seconds(
        self, condition_id: str, token_ids: Iterable[str], after: str | None
    ) -> AsyncGenerator[tuple[list[Fill], str | None, bool, int]]:
        """Yield the trades of a market, the newest first, or after a cursor, each second whole: equal ones are counted.

        They come with the cursor of the page on which the next second begins, whether they are the last, and the
        server's Unix time. Only the last may be none: then there are none at all.
        """
        params = [("condition", condition_id), ("taker_only", "true"), ("limit", "1000")]
        known = {(condition_id, token_id) for token_id in token_ids}
        waiting: list[Fill] = []  # of a second that the next page may go on with
        async with aclosing(self.iter_pages("/v2/trades", params, FILLS, after)) as answers:
            async for some, asked_with, is_last, now in answers:
                if others := {(fill.condition_id, fill.token_id) for fill in some} - known:
                    raise self.bad(f"a trade is of another market or token: {others.pop()}")
                fills = waiting + some
                whole = fills if is_last else [fill for fill in fills if fill.timestamp > fills[-1].timestamp]
                waiting = fills[len(whole) :]
                if len(waiting) > MAX_WAITING:
                    raise self.bad(f"more than {MAX_WAITING} trades are of the second {waiting[0].timestamp}")
                if whole or is_last:
                    yield whole, asked_with, is_last, now

    async def iter_pages(
        self, path: str, params: Params, decoder: msgspec.json.Decoder[Page[Element]], after: str | None = None
    ) -> AsyncGenerator[tuple[list[Element], str | None, bool, int]]:
        """Yield the pages of an answer, after the cursor *after* if there is one; prices ascend, trades descend.

        Each comes with the cursor that it was asked for with, whether it is the last, and the server's Unix time.
        """
        used = {after}
        before: int | None = None
        sign = 1 if decoder is POINTS else -1
        while True:
            request = ac.Request(path, [*params, ("cursor", after)] if after else params)
            page, now = await self._host.fetch(request, partial(self._decode, decoder))
            self._on_answer()
            for element in page.data:
                is_payout = isinstance(element, Point) and not element.width  # it may stand at the end of a bucket
                if element.timestamp > now + AHEAD_S + is_payout * COARSE_S:
                    raise self.bad(f"an element is of {element.timestamp}, in the future: it is {now}")
                if before is not None and sign * (element.timestamp - before) < 0:
                    raise self.bad(f"the elements are not in order: one of {element.timestamp} after one of {before}")
                before = element.timestamp
            has_more, following = page.pagination.has_more, page.pagination.next_cursor
            if has_more and (not page.data or not following or following in used):
                raise self.bad(f"the pages do not end: one of {len(page.data)} leads to the cursor {following!r}")
            yield page.data, after, not has_more, now
            if not has_more:
                return
            used.add(following)
            after = following

    def _decode(self, decoder: msgspec.json.Decoder[Page[Element]], body: ac.Body) -> tuple[Page[Element], int]:
        """Return a page and when it was sent, for the local clock may be wrong."""
        if self._host.answered_at is None:
            raise msgspec.ValidationError("the answer has no Date")
        return ac.decode_answer(decoder, body), int(self._host.answered_at.timestamp())


# --- The file ---------------------------------------------------------------------------------------------------------


def unix(time: str) -> str:
    """Return SQL for a time as Unix time."""
    return f"CAST(strftime('%s', {time}) AS INTEGER)"


class Market(NamedTuple):
    """What has to be known of a market to ask for its past; the columns of `READ_MARKET`."""

    market_id: str
    token_id_yes: str
    token_id_no: str | None
    condition_id: str | None
    resolved: int
    closed: int | None  # Unix time, not later than this

    def is_over(self, margin_s: int, until: int | None) -> bool:
        """Return whether all is stored for good, because it is stored *until* well after its end."""
        return bool(self.resolved and self.closed and until and until >= self.closed + 2 * margin_s)


NOTHING: Final = (None, None, None)  # until, top and cursor of a part that was never fetched
READ_MARKET: Final = f"""
    SELECT market_id, token_id_yes, nullif(token_id_no, ''), nullif(condition_id, ''), resolved = 1,
        {unix("coalesce(closed_at, outcome_stored_at)")} FROM markets WHERE market_id = ?
"""  # noqa: S608  ours, as all that follows
READ_NOTES: Final = f"SELECT what, {unix('until')}, {unix('top')}, cursor FROM past_done WHERE market_id = ?"  # noqa: S608
# what is certain stays so, whoever else fetches the same
SAVE_NOTE: Final = """
    INSERT INTO past_done VALUES (?, ?, datetime(?, 'unixepoch'), datetime(?, 'unixepoch'), ?)
    ON CONFLICT (market_id, what) DO UPDATE SET top = excluded.top, cursor = excluded.cursor,
        until = max(coalesce(until, excluded.until), coalesce(excluded.until, until))
"""
SAVE_PRICE: Final = """
    INSERT INTO past_prices (market_id, width, timestamp, price, fetched_at)
    VALUES (?, ?, datetime(?, 'unixepoch'), ?, ?) ON CONFLICT DO NOTHING
"""
COUNT_FILLS: Final = f"""
    SELECT {FILL_COLUMNS}, max(occurrence) FROM trades
    WHERE market_id = ? AND timestamp >= ? AND timestamp <= ? GROUP BY {FILL_COLUMNS}
"""  # noqa: S608
SAVE_FILL: Final = ac.insert_into("trades", ("market_id", *FILL_COLUMNS.split(", "), "occurrence", "fetched_at"))


def save_prices(connection: sqlite3.Connection, market_id: str, width: int, buckets: Buckets, until: int | None) -> int:
    """Store what of *buckets* is not stored yet, and that there is nothing else *until* then; return how many."""
    fetched_at = time_text(time.time())
    rows = [(market_id, width, timestamp, price, fetched_at) for timestamp, price in buckets]
    saved = connection.executemany(SAVE_PRICE, rows).rowcount if rows else 0
    connection.execute(SAVE_NOTE, (market_id, str(width), until, None, None))
    return saved


def save_fills(connection: sqlite3.Connection, market_id: str, fills: Sequence[FillKey], *note: object) -> int:
    """Store whole seconds of trades: of equal ones as many as the file lacks. Return how many."""
    counts: Counter[FillKey] = Counter()
    stored: dict[FillKey, int] = {}
    if fills:
        held = connection.execute(COUNT_FILLS, (market_id, fills[-1][0], fills[0][0]))  # the newest came first
        stored = {tuple(key): occurrence for *key, occurrence in held}
    rows = []
    fetched_at = time_text(time.time())
    for fill in fills:
        counts[fill] += 1
        if counts[fill] > stored.get(fill, 0):
            rows.append((market_id, *fill, counts[fill], fetched_at))
    connection.executemany(SAVE_FILL, rows)
    connection.execute(SAVE_NOTE, (market_id, "trades", *note))
    return len(rows)


class Store:
    """The collector's file: read at any time, and held for one transaction at a time, beside a running collector.

    A transaction takes some hundredths of a second, in the thread of the event loop: nothing can cancel it half-way.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._file = path.stat()
        self._one_at_a_time = asyncio.Lock()
        self._since_pause_s = 0.0

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Store]:
        """Open the file at *path*, which must be there and have the current schema."""
        with ac.open_read_only(path), ac.storage_errors(path, "open"):
            address = f"{path.resolve().as_uri()}?mode=rw"
            connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=POLL_S)
        with closing(connection):
            store = cls(path, connection)
            store.read("PRAGMA synchronous = NORMAL")  # rows and their note are lost together, if at all
            yield store

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows that *query* finds."""
        with ac.storage_errors(self._path, "read"):
            return self._connection.execute(query, values).fetchall()

    async def save(self, work: Callable[..., int], *args: object) -> int:
        """Call *work* with the connection and *args* in a transaction, as soon as nobody else holds the file."""
        give_up_at = time.monotonic() + PATIENCE_S
        async with self._one_at_a_time:
            if self._since_pause_s > PAUSE_EVERY_S:  # whoever waits for the file gets it now
                await asyncio.sleep(PAUSE_S)
                self._since_pause_s = 0.0
            while True:
                try:
                    return self._transaction(work, args)
                except ac.DatabaseBusy:
                    if time.monotonic() > give_up_at:
                        raise
                await asyncio.sleep(POLL_S)

    def _transaction(self, work: Callable[..., int], args: Sequence[object]) -> int:
        with ac.storage_errors(self._path, "store the past"), ac.locked(self._path):
            started = time.monotonic()
            if not os.path.samestat(self._path.stat(), self._file):
                raise ac.StorageError(f"{self._path}: was replaced while it was in use")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                saved = work(self._connection, *args)
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:  # when the disk is full, SQLite has already rolled back
                    self._connection.execute("ROLLBACK")
            self._since_pause_s += time.monotonic() - started
        return saved


# --- The past of one market after the other ---------------------------------------------------------------------------


@dataclass(slots=True)
class Figures:
    """What a run has come to."""

    database: str = ""
    markets: int = 0  # chosen
    done: int = 0  # of which nothing is missing
    without_trades: int = 0
    prices: int = 0  # stored in this run, as trades
    trades: int = 0
    requests: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)  # what could not be had, and is asked for again
    exit_codes: set[int] = field(default_factory=set)  # of the failures

    def fail(self, market: str, what: str, reason: object, exit_code: int) -> None:
        """Record that *what* (prices, trades or name) of *market* could not be had."""
        self.failures.append({"market": market, "what": what, "reason": str(reason)})
        self.exit_codes.add(exit_code)

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        if self.done >= MIN_COMPLETE_SHARE * self.markets:
            return 0
        worst = min(self.exit_codes)  # of 65, 69 and 75
        return PARTIAL if self.done and worst == UNREACHED else worst


class Past:
    """Fetches what is not stored yet of the past of markets, `WORKERS` of them at a time."""

    def __init__(self, host: ac.HttpHost, store: Store, args: argparse.Namespace, figures: Figures) -> None:
        self._api = DataApi(host, self._show_answer)
        self._store = store
        parts = {"prices": (self._prices, 1 + FINE_KEPT_S // MAX_SPAN_S), "trades": (self._trades, 1)}
        self._parts = {name: part for name, part in parts.items() if getattr(args, name)}
        self._left = 0  # requests, at most, but for next pages
        self._figures = figures
        shown = sys.stderr.isatty() and not (args.quiet or args.verbose)
        self._bar: tqdm[Any] = tqdm(unit=" requests", disable=not shown, dynamic_ncols=True, delay=0.5)

    def _show_answer(self) -> None:
        self._bar.total = self._bar.n + 1 + self._left
        self._bar.update()

    async def fetch(self, market_ids: Sequence[str]) -> None:
        """Fetch the past of these markets."""
        remaining = iter(market_ids)
        self._left = len(market_ids) * sum(requests for _, requests in self._parts.values())

        async def work() -> None:
            for market_id in remaining:
                await self._fetch_market(market_id)

        with closing(self._bar):
            async with ac.first_error_of_tasks() as tasks:
                for number in range(WORKERS):
                    tasks.create_task(work(), name=f"past {number}")

    async def _fetch_market(self, market_id: str) -> None:
        market = Market(*self._store.read(READ_MARKET, market_id)[0])
        notes = {what: note for what, *note in self._store.read(READ_NOTES, market_id)}
        is_done = True
        for name, (part, requests) in self._parts.items():
            try:
                await part(market, notes)
            except ac.ApiError as error:
                is_done = False
                self._figures.fail(market_id, name, error, error.exit_code)
            self._left -= requests
        self._figures.done += is_done

    async def _prices(self, market: Market, notes: Mapping[str, Sequence[Any]]) -> None:
        """Fetch coarse prices, the whole life each time, which tells since when and until when there are fine ones."""
        coarse_until, fine_until = (notes.get(str(width), NOTHING)[0] for width in (COARSE_S, FINE_S))
        if market.is_over(COARSE_S, coarse_until) and market.is_over(FINE_S, fine_until):
            return
        life = await self._api.fetch_prices(market.token_id_yes, COARSE_S)
        if life.span is None:  # which is no proof that there are none
            raise self._api.bad("the exchange sends no prices of it")
        first, last = life.span
        await self._save_prices(market, COARSE_S, life.buckets, life.settled)
        settled = life.settled // FINE_S * FINE_S
        start = max(
            -(-(life.settled + SETTLED_S - FINE_KEPT_S) // FINE_S) * FINE_S,  # rounded up
            (first - 2 * COARSE_S) // FINE_S * FINE_S,  # a bucket may be left out
            (fine_until or 0) - FINE_S,
        )
        end = min(settled, (last + COARSE_S) // FINE_S * FINE_S)
        is_whole = end <= (fine_until or 0) or await self._fine_prices(market, start, end, life)
        if is_whole and market.resolved:  # after the last price there is none
            await self._save_prices(market, FINE_S, [], settled)

    async def _fine_prices(self, market: Market, start: int, end: int, life: Prices) -> bool:
        """Fetch fine prices, the oldest window first, and return whether nothing is missing.

        An empty window is no proof. It is believed three hours later, unless a coarse price lies well inside of it.
        """
        is_whole, missing = True, ""
        for since in range(start, end, MAX_SPAN_S):
            until = min(since + MAX_SPAN_S, end)
            found = await self._api.fetch_prices(market.token_id_yes, FINE_S, (since, until))
            stored_until = min(until, found.settled if found.buckets else found.settled - COARSE_S)
            if not found.buckets and any(since + COARSE_S <= at <= until - COARSE_S for at, _ in life.buckets):
                missing = missing or f"no prices of {FINE_S} s came from {time_text(since)} on"
            is_whole = is_whole and not missing
            await self._save_prices(market, FINE_S, found.buckets, stored_until if is_whole else None)
            is_whole = is_whole and stored_until == until
        if missing:
            raise self._api.bad(f"{missing}, where there are coarser ones")
        return is_whole

    async def _save_prices(self, market: Market, width: int, buckets: Buckets, until: int | None) -> None:
        saved = await self._store.save(save_prices, market.market_id, width, buckets, until)
        self._figures.prices += saved

    async def _trades(self, market: Market, notes: Mapping[str, Sequence[Any]]) -> None:
        """Fetch the trades: first the rest of a walk that was under way, then what is newer."""
        until, top, cursor = notes.get("trades", NOTHING)
        if cursor is None and market.is_over(OVERLAP_S, until):
            return
        if cursor and top:
            try:
                await self._walk(market, until, top, cursor)
                until = top
            except ac.RequestRejectedError as error:  # the cursor is good for nothing: the walk begins anew
                if error.status != HTTPStatus.BAD_REQUEST:
                    raise
        await self._walk(market, until, None, None)

    async def _walk(self, market: Market, until: int | None, top: int | None, cursor: str | None) -> None:
        """Store trades from the newest, or from *cursor* on, back to an hour before *until*."""
        if not (market.condition_id and market.token_id_no):
            raise self._api.bad("the file has no condition of it, or no token of NO")
        outcomes = {market.token_id_yes: "YES", market.token_id_no: "NO"}
        begun_at: int | None = None
        async with aclosing(self._api.iter_seconds(market.condition_id, outcomes, cursor)) as parts:
            async for fills, next_begins, is_last, now in parts:
                begun_at = begun_at or now
                if cursor and not fills:  # it led to some when it was noted
                    raise ac.RequestRejectedError("no trades came", status=HTTPStatus.BAD_REQUEST)
                if is_last and until and until > now - TRADES_KEPT_S and not (fills and fills[-1].timestamp <= until):
                    raise self._api.bad("the trades end before the newest one that is stored")
                if not fills:
                    self._figures.without_trades += 1
                    return
                top = top or fills[0].timestamp
                is_done = is_last or fills[-1].timestamp < (until or 0) - OVERLAP_S
                has_ended = market.resolved and market.closed and cursor is None
                done_until = max(top, begun_at - SETTLED_S) if has_ended else top
                note = (done_until, None, None) if is_done else (None, top, next_begins)
                keys = [fill.key(outcomes[fill.token_id]) for fill in fills]
                saved = await self._store.save(save_fills, market.market_id, keys, *note)
                self._figures.trades += saved
                if is_done:
                    return


# --- The command ------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What the command line asks for, and what it has come to."""

    args: argparse.Namespace
    collector: ac.AsyncCollector  # with its settings, and the way to the exchange
    figures: Figures


MARKETS: Final = "SELECT market_id FROM markets WHERE token_id_yes <> '' AND ({}) ORDER BY CAST(market_id AS INTEGER)"
# the markets of the file that a name stands for
CHOICES: Final[Mapping[str, str]] = {
    "markets": "?1 IN (market_id, slug) OR market_id IN (SELECT id FROM names WHERE kind = 'market' AND name = ?1)",
    "events": "event_slug = ?1",
    "series": "event_slug IN (SELECT value FROM json_each(?1))",
    "tags": "json_valid(tags) AND EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?1)",
}
EPILOG: Final = """\
examples:
  collector-history                            prices of all markets that the file follows or has followed
  collector-history --trades --event SLUG      prices and trades of the markets of an event

environment: DATA_API and DATA_RATE_LIMIT (https://data-api.polymarket.com, 10 requests per second), POLYMARKET_DB;
GAMMA_API and GAMMA_RATE_LIMIT for --series and --tag

exit codes: 0 done, but for 5 % of the markets at most; 2 bad command line; 65 answers of an unknown shape; 69 not
reached; 74 file cannot be used; 75 try again later; 78 bad setting, or no such market in the file; 130, 143 interrupted
"""


SUMMARY: Final = """\
{ended}The past of {done} of {markets} markets is stored
  new prices      {prices}
  new trades      {trades}
  without trades  {without_trades}
  failures        {failed}
  requests        {requests}
  database        {database}"""


def say(text: str, stream: TextIO) -> None:
    """Print *text*; that nobody reads on is no reason to complain."""
    try:
        print(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # at the exit it would fail again
        if not isinstance(error, BrokenPipeError):
            raise


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; docs/operations.md has the same options."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="collector-history",
        description="Fetch past prices and trades of the markets in a collector's file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option(
        "--db",
        metavar="PATH",
        dest="db_path",
        default=ac.DEFAULT_DB_PATH,
        help="database file (POLYMARKET_DB, else %(default)s)",
    )
    for kind in ac.NAMES:
        flag = kind if kind == "series" else kind.removesuffix("s")
        option(f"--{flag}", metavar="NAME", dest=kind, action="append", default=[], help=f"only (of) this {flag}")
    option("--all", action="store_true", help="every market in the file, also those that it does not follow")
    option("--trades", action="store_true", help="fetch trades too")
    option("--no-prices", dest="prices", action="store_false", help="fetch no prices; with --trades")
    option("--max-retries", metavar="N", default=3, help="further attempts per request (3)")
    option("--timeout", metavar="SECONDS", default=10, help="for one attempt, to its last byte (10)")
    option("--json", action="store_true", help="print the result as one line of JSON")
    option("--quiet", action="store_true", help="print no bar and no summary")
    option("--verbose", action="store_true", help="log every request to stderr, instead of the bar")
    option("--version", action="version", version=f"collector-history {ac.__version__}")
    return parser


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, ac.AsyncCollector]:
    """Return what *argv* asks for, with a collector of these settings, or end the program if it makes no sense."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not (args.prices or args.trades):
        parser.error("argument --no-prices: only with --trades")
    names = {kind: getattr(args, kind) for kind in ac.NAMES}
    patience = (args.max_retries, args.timeout)
    try:
        return args, ac.AsyncCollector(args.db_path, WORKERS, *patience, run_timeout=RUN_TIMEOUT_S, **names)
    except ac.ConfigError as error:
        if str(error).partition("=")[0] in vars(args):
            parser.error(str(error))
        raise


async def slugs_of_series(gamma: ac.HttpHost, series: ac.Named) -> list[str]:
    """Return the slugs of all events of a series, open and closed."""
    slugs: list[str] = []
    for closed in ("false", "true"):
        params = [("series_id", series.id), ("closed", closed), ("order", "id"), ("limit", str(ac.PAGE_SIZE))]
        used: list[str] = []
        while True:
            after = [("after_cursor", cursor) for cursor in used[-1:]]
            request = ac.Request(ac.EVENTS_PATH, [*params, *after], max_bytes=ac.MAX_EVENTS_BYTES)
            page = await gamma.fetch(request, ac.decode_events)
            slugs += page.events or ()
            if not page.next_cursor:
                break
            if page.next_cursor in used:
                raise ac.MalformedResponseError(f"the series {series.slug!r} does not end", gamma.url + ac.EVENTS_PATH)
            used.append(page.next_cursor)
    return slugs


async def choose(run: Run, api: ac.PolymarketApi, gamma: ac.HttpHost, store: Store) -> list[str]:
    """Return the ids of the chosen markets; a name that leads to none is a failure."""
    names = [(kind, name) for kind, some in run.collector.settings.selection.names.items() for name in some]
    if not names:
        return [market_id for (market_id,) in store.read(MARKETS.format("followed = 1 OR ?"), run.args.all)]
    chosen: dict[str, None] = {}
    for kind, name in names:
        page, _, slug = name.rpartition("/")
        values: list[str | None] = [slug]
        if kind in {"series", "tags"}:
            groups = await api.fetch_groups("tag" if kind == "tags" else kind, slug)
            values = [group.label for group in groups]
            if kind == "series":
                values = [json.dumps(await slugs_of_series(gamma, group)) for group in groups]
        choice = CHOICES["events" if page == "event" else kind]  # its only market
        found = [row for value in values for row in store.read(MARKETS.format(choice), value)]
        found = found if page != "event" or len(found) == 1 else []
        chosen |= {market_id: None for (market_id,) in found}
        if not found:
            run.figures.markets += 1
            run.figures.fail(name, "name", f"the file has no market of this name ({kind}): collect it first", PARTIAL)
    return list(chosen)


async def fetch(run: Run) -> None:
    """Fetch what the command line asks for."""
    asyncio.get_running_loop().set_default_executor(ac.DaemonThreads())  # a name server delays no end
    collector, figures = run.collector, run.figures
    data = ac.Endpoint.resolve("DATA", ac.read_variables(os.environ, ENVIRONMENT))
    with Store.open(collector.settings.db_path) as store:
        async with collector.connect() as (network, api):
            gamma = ac.HttpHost(collector.settings.gamma, collector.gamma_limiter, network)
            host = ac.HttpHost(data, ac.RateLimiter(data.rate_limit, ac.RATE_WINDOW_S), network)
            try:
                market_ids = await choose(run, api, gamma, store)
                if not market_ids:
                    which = "of these names" if figures.failures else "that it follows: collect first, or take --all"
                    raise ac.ConfigError(f"{figures.database}: has no market {which}")
                figures.markets += len(market_ids)
                await Past(host, store, run.args, figures).fetch(market_ids)
            finally:
                figures.requests = network.requests


def ended(run: Run) -> int:
    """Fetch, unless a signal is caught, and return the exit code."""
    caught = signal.SIGINT

    def terminate(*_: object) -> None:
        nonlocal caught
        caught = signal.SIGTERM
        signal.raise_signal(signal.SIGINT)  # asyncio cancels at the first, and breaks off at the second

    signal.signal(signal.SIGTERM, terminate)
    try:
        asyncio.run(fetch(run))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return INTERRUPTED + caught
    return run.figures.exit_code


def report(run: Run, code: int) -> None:
    """Say what a run has come to, and what it could not have."""
    failures = run.figures.failures
    result = asdict(run.figures) | {"exit_code": code}
    del result["exit_codes"]
    if run.args.json:
        say(json.dumps(result), sys.stdout)
    elif not run.args.quiet:
        words = {"ended": "Interrupted. " if code > INTERRUPTED else "", "failed": len(failures)}
        say(SUMMARY.format_map(result | words), sys.stdout)
    for failure in failures[:MAX_SHOWN]:
        say(f"collector-history: {failure['market']}: {failure['what']}: {failure['reason']}", sys.stderr)
    if len(failures) > MAX_SHOWN:
        say(f"collector-history: and {len(failures) - MAX_SHOWN} more failures; --json has all", sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* and return its exit code."""
    for name in ("stdout", "stderr"):  # None where the caller has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the end
    figures = Figures()
    try:
        run = Run(*parse(argv), figures)
        logging.basicConfig(level=logging.DEBUG if run.args.verbose else logging.CRITICAL)
        for chatty in ("asyncio", "filelock"):
            logging.getLogger(chatty).setLevel(logging.INFO)
        figures.database = str(run.collector.settings.db_path)
        code = ended(run)
        report(run, code)
    except ac.CollectorError as error:
        stored = f"; {figures.prices} prices and {figures.trades} trades of this run are stored" * (figures.done > 0)
        say(f"collector-history: {error}{stored}", sys.stderr)
        return error.exit_code
    except OSError as error:
        say(f"collector-history: the result could not be written: {error}", sys.stderr)
        return ac.StorageError.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
