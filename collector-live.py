#!/usr/bin/env python3
"""Store every change of the order books of chosen markets, and every trade: the command `collector-live`.

A change gets from the exchange into its row like this:

    Channel            up to 100 markets on one connection after another
      Channel.take     frame -> messages -> `LiveBook.take`, which knows repetitions
    Store.save         rows that wait -> the file, a transaction each half second

Nothing that the stream says is believed unseen. A `Live` lets an `AsyncCollector` collect the same markets into the
same file now and then, which gives anchors to rebuild a book from, and asks for the books every 30 seconds; each must
be one that the stream has had (`Channel.compare`). Where it is not, and where a connection or a frame is lost, a row in
`live_gaps` says of which market something may be missing, from when and until when, by the clock of the exchange.
`docs/live.md` says what is stored and how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import math
import os
import re
import signal
import sqlite3
import sys
import threading
from collections import Counter, deque
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import aiohttp
import msgspec
from yarl import URL

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ENVIRONMENT: Final = {
    "POLYMARKET_LIVE_DB": "polymarket_live.db",
    "CLOB_WS": "wss://ws-subscriptions-clob.polymarket.com/ws/market",
}
MAX_MARKETS: Final = 100  # of a connection: above 500 tokens opening books are silently missing
MAX_IDS: Final = 100  # of a frame: thousands close the connection
MAX_FRAME_BYTES: Final = 32 * 2**20
MAX_WAITING_ROWS: Final = 100_000  # for the file; what comes beyond them is dropped, as a gap
CONNECT_TIMEOUT_S: Final = 20.0
PING_EVERY_S: Final = 10.0
SILENCE_S: Final = 40.0  # a PONG waits behind data for up to 12 s
MAX_WAIT_S: Final = 30.0  # until the next connection
SAVE_EVERY_S: Final = 0.5
LOCK_WAIT_S: Final = 1.0  # for the file while an anchor or an archive holds it
BUSY_SAVES: Final = 7  # in a row, and it is said that somebody holds the file
LAST_SAVE_S: Final = 1.2  # at the end
END_S: Final = 5.0  # from a signal to the end, also where the disk hangs
ROUND_EVERY_S: Final = 30.0
PATIENCE_S: Final = 3.0  # with changes that come later than the books that already show them
OPENING_S: Final = 5.0  # after that a market without an opening book takes the one of the next round
KEPT_S: Final = 30.0  # changes and trades that are remembered
TRADE_DELAY_MS: Final = 1_000  # a trade is announced up to so much later than the book shows it
FEW: Final = 2  # books that may differ from the stream without a new connection
DISTRUST_AFTER: Final = 3  # rounds in a row in which every book differs
DISTRUSTED_S: Final = 300.0  # the age at which a connection is given up then
ANCHOR_PAUSE_S: Final = 10.0  # before an anchor that a gap asks for

log = logging.getLogger("collector-live")


@lru_cache(maxsize=1_000)
def _second_text(second: int) -> str:
    return ac.sql_time(datetime.fromtimestamp(second, UTC))


def ms_text(unix_ms: int) -> str:
    """Return a Unix time in the database's form, with milliseconds."""
    return f"{_second_text(unix_ms // 1_000)}.{unix_ms % 1_000:03d}"


def ms_of(text: str) -> int:
    """Return the Unix time that *text* of the database says."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


say_once: Final = lru_cache(maxsize=1_000)(partial(log.warning, "%s"))  # the same text is logged once


# --- Frames -----------------------------------------------------------------------------------------------------------

ANSWERS: Final = frozenset({b"PONG", b"NO NEW ASSETS", b"INVALID MESSAGE", b"INVALID OPERATION"})  # to frames of ours
UNUSED_EVENTS: Final = frozenset({"best_bid_ask", "new_market", "tick_size_change"})
Taker = Literal["BUY", "SELL"]


class Entry(msgspec.Struct, gc=False):
    """One level of one token in a `price_change`."""

    asset_id: str
    price: ac.Price
    size: ac.Size  # absolute; 0: the level is gone
    side: Taker  # BUY: a bid
    hash: str | None = None  # of the book after the last change of its burst


class Message(msgspec.Struct, gc=False):
    """A message of the market channel, of whatever type. Numbers come as texts.

    Source: https://docs.polymarket.com/api-reference/wss/market
    """

    event_type: str | None = None
    market: str | None = None  # the condition id
    asset_id: str | None = None
    timestamp: ac.EpochMs | None = None
    bids: list[ac.Level] | None = None  # of a book
    asks: list[ac.Level] | None = None
    price_changes: list[Entry] | None = None
    price: ac.Price | None = None  # of a trade
    size: ac.Size | None = None
    side: Taker | None = None
    transaction_hash: str | None = None


_decoder: Final = msgspec.json.Decoder(Message | list[Message], strict=False)


def decode(frame: bytes) -> Iterator[Message | object]:
    """Yield the messages of *frame*; an element that cannot be read comes as plain JSON.

    Raises:
        msgspec.DecodeError: it is no JSON.
    """
    try:
        decoded = _decoder.decode(frame)
        yield from decoded if isinstance(decoded, list) else (decoded,)
    except msgspec.ValidationError:
        # the exchange's own page writes ".48", which is no number for the decoder
        elements = msgspec.json.decode(re.sub(rb'"\.(?=[0-9])', b'"0.', frame))
        for element in elements if isinstance(elements, list) else (elements,):
            try:
                yield msgspec.convert(element, Message, strict=False)
            except msgspec.ValidationError:
                yield element


# --- The book ---------------------------------------------------------------------------------------------------------

Levels = dict[tuple[str, float], float]  # shares by side, 'bid' or 'ask', and price in USD
Seen = tuple[int, Levels]  # a book that the exchange answered with, and its time


def levels_of(bids: Iterable[ac.Level], asks: Iterable[ac.Level]) -> Levels:
    """Return the levels of a book; a price that is sent twice counts twice."""
    levels: Levels = {}
    for side, sent in (("bid", bids), ("ask", asks)):
        for level in sent:
            _set(levels, (side, level.price), levels.get((side, level.price), 0.0) + level.size)
    return levels


def _set(levels: Levels, level: tuple[str, float], size: float) -> None:
    if size:
        levels[level] = size
    else:
        levels.pop(level, None)


class Change(NamedTuple):
    """A new size of one level of YES; a second one that equals it is the same message again."""

    time_ms: int
    hash: str | None
    side: str
    price: float
    size: float


class LiveBook:
    """The book of one token as its stream tells it: a book, a change, a book. It knows no clock and no network.

    It begins with a whole book (`restart`); changes that come before are kept for it. Of the changes of the last
    `KEPT_S` it knows what they replaced, so it can say whether it had a certain content at a certain time (`had`).
    """

    def __init__(self) -> None:
        self.levels: Levels = {}
        self.begun = False
        self.began_ms = 0  # the time of the book before the oldest kept change
        self._first_ms = 0  # the time of the book that it began with
        self._oldest_ms = 0  # what is stamped earlier has come too late
        self._kept: deque[tuple[Change, float, float]] = deque()  # the size before it, and when it was received
        self._known: set[Change] = set()

    def restart(self, time_ms: int, levels: Levels) -> None:
        """Go on from the book that the exchange had at *time_ms*, with the kept changes from then on."""
        later = [(change, received_s) for change, _, received_s in self._kept if change.time_ms >= time_ms]
        self.levels, self.begun = dict(levels), True
        self.began_ms = self._first_ms = self._oldest_ms = time_ms
        self._kept, self._known = deque(), set()
        for change, received_s in later:
            self.take(change, received_s)

    def stop(self) -> None:
        """Wait for a whole book; what comes until then is kept for it."""
        self.begun, self._oldest_ms = False, 0

    def is_too_late(self, change: Change) -> bool:
        """Return whether *change* is new though it should have come long ago: one of the times is wrong."""
        is_before_all = self._first_ms - TRADE_DELAY_MS <= change.time_ms < self._first_ms  # the first book has it
        return change.time_ms < self._oldest_ms and not is_before_all and change not in self._known

    def is_ahead(self, time_ms: int, before_s: float) -> bool:
        """Return whether a change from after *time_ms* was received before *before_s*."""
        return any(change.time_ms > time_ms and received_s < before_s for change, _, received_s in self._kept)

    def take(self, change: Change, received_s: float) -> bool:
        """Apply *change*, unless it is a repetition or older than the book, and return whether it was applied."""
        self.forget(received_s - KEPT_S)
        if change.time_ms < self._oldest_ms or change in self._known:
            return False
        level = (change.side, change.price)
        self._kept.append((change, self.levels.get(level, 0.0), received_s))
        self._known.add(change)
        _set(self.levels, level, change.size)
        return True

    def forget(self, before_s: float) -> None:
        """Forget how to take back what was received before *before_s*."""
        while self._kept and self._kept[0][2] < before_s:
            change = self._kept.popleft()[0]
            self._known.remove(change)
            self.began_ms = max(self.began_ms, change.time_ms)
            self._oldest_ms = max(self._oldest_ms, change.time_ms + 1)  # a new one would not be so late

    def had(self, time_ms: int, levels: Levels) -> bool:
        """Return whether *levels* were the book after one of the changes of *time_ms*, or the book it began with."""
        state = dict(self.levels)
        for change, size_before, _ in reversed(self._kept):
            if change.time_ms == time_ms and state == levels:
                return True
            _set(state, (change.side, change.price), size_before)
        return self.began_ms == time_ms and state == levels


# --- The file ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stream:
    """One row of `streams`: a connection."""

    stream_id: int
    started_at: str
    tokens: int = 0
    frames: int = 0
    bytes: int = 0
    changes: int = 0
    trades: int = 0
    repeated: int = 0
    verified_at: str | None = None
    ended_at: str | None = None
    reason: str | None = None  # why it has ended


CHANGE_COLUMNS: Final = ("market_id", "stream_id", "timestamp", "lag_ms", "side", "price", "size")
SAVE_CHANGE: Final = ac.insert_into("book_changes", CHANGE_COLUMNS)
SAVE_TRADE: Final = ac.insert_into("live_trades", (*CHANGE_COLUMNS, "transaction_hash", "outcome"))
SAVE_STREAM: Final = ac.insert_into("streams", [one.name for one in fields(Stream)]).replace("INSERT", "REPLACE")
OPEN_GAP: Final = ac.insert_into("live_gaps", ("market_id", "since", "reason"))
CLOSE_GAP: Final = "UPDATE live_gaps SET until = ? WHERE market_id = ? AND until IS NULL"
REMOVE_GAP: Final = "DELETE FROM live_gaps WHERE market_id = ? AND until IS NULL"
OPEN_GAPS: Final = "SELECT market_id, since FROM live_gaps WHERE until IS NULL"
LAST_STREAM_ID: Final = "SELECT coalesce(max(stream_id), 0) FROM streams"
# A connection that nobody has ended is one of a process that died. What came after its last verified moment may be
# missing; where one was never verified, what came after the last anchor.
UNENDED: Final = """
    SELECT iif(count(*) = count(verified_at), min(verified_at), NULL) FROM streams WHERE reason IS NULL
"""
END_DEAD: Final = """
    UPDATE streams SET reason = 'the process died', ended_at = coalesce(substr(verified_at, 1, 19), started_at)
    WHERE reason IS NULL AND stream_id <= ?
"""
# what may be traded, with the time of its last book
FOLLOWED: Final = """
    SELECT m.market_id, condition_id, token_id_yes, token_id_no, s.book_time
    FROM markets AS m LEFT JOIN seen USING (market_id) LEFT JOIN snapshots AS s ON s.id = seen.snapshot_id
    WHERE m.followed = 1 AND m.resolved = 0 AND m.outcome_asked = 0
      AND token_id_yes IS NOT NULL AND token_id_no IS NOT NULL
    ORDER BY m.market_id
"""
# the books of an anchor, as far as they were read in full
ANCHOR_BOOKS: Final = """
    SELECT s.market_id, s.book_time, b.bids, b.asks FROM snapshots AS s JOIN books AS b USING (book_id)
    WHERE s.run_id = ? AND s.book_time IS NOT NULL AND b.bids IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM failures AS f WHERE f.run_id = s.run_id AND f.market_id = s.market_id)
"""
Row = tuple[str, tuple[object, ...]]  # a statement and its values


class Store:
    """The way into the file: one short transaction at a time, under the lock that all its writers hold in turn."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.waiting: list[Row] = []
        self.streams: list[Stream] = []  # that are open, or whose end is not stored yet
        self.saved: Counter[str] = Counter()  # rows by statement
        self.last_stream_id = 0
        self._failed = 0  # attempts in a row
        self._has_said = False
        self._one_at_a_time = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    async def open(self) -> tuple[dict[str, str], str | None]:
        """Upgrade the file, if there is one, and return since when what may be missing.

        By market for those with an open gap, and for the others: None where no process died.
        """
        if not self.path.exists():  # the first anchor that finds something makes it
            return {}, None
        async with ac.Database.open(self.path) as database:
            self._file = database.file
            self.last_stream_id = await database.value(LAST_STREAM_ID)
            return dict(await database.rows(OPEN_GAPS)), await database.value(UNENDED)

    async def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows that *query* finds; none without a file."""

        def rows() -> list[tuple[Any, ...]]:
            if not self.path.exists():
                return []
            with ac.open_read_only(self.path) as connection:
                return connection.execute(query, values).fetchall()

        return await asyncio.to_thread(rows)

    def new_stream(self, started_at: str) -> Stream:
        """Return the row of a new connection."""
        self.last_stream_id += 1
        self.streams.append(Stream(self.last_stream_id, started_at))
        return self.streams[-1]

    @property
    def is_full(self) -> bool:
        """Whether so much waits that the next row has to be dropped."""
        return len(self.waiting) >= MAX_WAITING_ROWS

    def put(self, statement: str, *values: object) -> None:
        """Let a row wait."""
        self.waiting.append((statement, values))

    async def save(self) -> bool:
        """Store what waits, and return whether that was possible; else it goes on waiting."""
        if not (self.waiting or self.streams):
            return True
        try:
            await asyncio.to_thread(self._write)
        except ac.StorageError as error:
            self._failed += 1
            is_others_turn = isinstance(error, ac.DatabaseBusy) and self._failed < BUSY_SAVES
            if not self._has_said and not is_others_turn:
                log.error("%s; what comes waits", error)  # noqa: TRY400  the text says it
                self._has_said = True
            return False
        if self._has_said:
            log.warning("%s can be written again", self.path)
        self._failed, self._has_said = 0, False
        return True

    def _write(self) -> None:
        with self._one_at_a_time, ac.storage_errors(self.path, "write"), ac.locked(self.path, LOCK_WAIT_S):
            streams = [astuple(stream) for stream in self.streams]  # before the rows, which they must not be ahead of
            ended = [stream for stream in self.streams if stream.reason]
            rows = self.waiting[:]
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, group in groupby(rows, key=itemgetter(0)):
                    connection.executemany(statement, map(itemgetter(1), group))
                connection.executemany(SAVE_STREAM, streams)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            self.saved.update(statement for statement, _ in rows)
            del self.waiting[: len(rows)]  # others have come meanwhile
            for stream in ended:
                self.streams.remove(stream)

    def _connected(self) -> sqlite3.Connection:
        """Return the connection to the file, which must be the one that was there from the start."""
        status = self.path.stat() if self.path.exists() else None
        file = status and (status.st_dev, status.st_ino)
        if file is None or (self._file or file) != file:
            raise OSError("it was deleted or replaced while it was in use")
        self._file = file
        if self._connection is None:
            options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}
            self._connection = sqlite3.connect(self.path, timeout=ac.BUSY_TIMEOUT_S, **options)
            self._connection.execute("PRAGMA synchronous = FULL")
        return self._connection

    def close(self) -> None:
        """Close the file."""
        if self._connection:
            self._connection.close()


# --- Markets and connections ------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A moment, such as that at which books were asked for."""

    monotonic_s: float
    newest_ms: int  # the newest time that the exchange had named until then

    @property
    def verified_ms(self) -> int:
        """Up to when nothing is missing if these books agree with the stream."""
        return self.newest_ms - TRADE_DELAY_MS


NEVER, LONG_AGO = Asked(math.inf, 0), Asked(-math.inf, 0)


@dataclass(eq=False, slots=True)
class Market:
    """One market that is followed, and how far its stream is verified."""

    market_id: str
    condition_id: str | None
    tokens: tuple[str, str]  # of YES and of NO
    verified_ms: int = 0  # nothing is missing up to then, by the exchange's clock; 0 before its first book
    gap_since: str | None = None  # of the open gap
    book: LiveBook = field(default_factory=LiveBook)
    subscribed: Asked = NEVER
    lost: Asked = LONG_AGO  # when something of it was last lost
    is_unmirrored: bool = False  # whether that was said


class Channel:
    """Keeps up to `MAX_MARKETS` markets subscribed, on one connection after another."""

    def __init__(self, live: Live) -> None:
        self.markets: dict[str, Market] = {}
        self._live = live
        self._clock = live.clock
        self._by_token: dict[str, tuple[Market, str]] = {}  # and its outcome, YES or NO
        self._trades: dict[tuple[object, ...], float] = {}  # of the last `KEPT_S`, and when they were received
        self._stream = Stream(0, "")  # the last one
        self._socket: aiohttp.ClientWebSocketResponse[Any] | None = None  # while there is a connection
        self._closing: str | None = None  # why we close it
        self._began_s = self._heard_s = self._news_s = 0.0  # the connection, its last frame, its last change or trade
        self._attempts = 0  # since a round agreed
        self._all_differ = 0  # rounds in a row in which every book differs

    def note_verified(self) -> None:
        """Note in the row of the connection up to when nothing is missing, but for the open gaps."""
        times = [one.verified_ms for one in self.markets.values() if one.verified_ms and not one.gap_since]
        if self._socket and times:
            self._stream.verified_at = ms_text(min(times))

    # --- its connections

    async def run(self) -> None:
        """Connect, and connect again, until no market is left."""
        while self.markets:
            self._closing, have_settled = None, False
            try:
                have_settled = await self._connect()
            except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
                words = self._live.endpoint.redacted(f"{type(error).__name__}: {error}")
                self._closing = self._closing or ac.printable(words)
            finally:
                self._end(self._closing or "stopped")
            if have_settled and self.markets:
                await self._live.next_anchor()  # which says what is still open; to ask again would lead in a circle
            if self.markets:
                await self._clock.sleep(min(2.0**self._attempts, MAX_WAIT_S))
            self._attempts += 1

    async def _connect(self) -> bool:
        """Open a connection, read it to its end, and return whether it was closed because all has settled."""
        live = self._live
        async with live.opening, asyncio.timeout(CONNECT_TIMEOUT_S):  # one after the other
            socket = await live.connect()
        async with socket:
            self._socket, self._stream = socket, live.store.new_stream(ac.sql_time(self._clock.now()))
            self._began_s = self._heard_s = self._news_s = self._clock.monotonic()
            await self._subscribe(list(self.markets.values()), first=True)
            pinging = asyncio.create_task(self._ping())
            try:
                while (message := await socket.receive()).type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
                    self._heard_s = self._clock.monotonic()
                    self.take(message.data)
            finally:
                pinging.cancel()
        is_close = message.type is aiohttp.WSMsgType.CLOSE
        words = f"closed: {message.data} {message.extra}" if is_close else f"lost: {message.data or ''}"
        self._closing = self._closing or ac.printable(" ".join(words.split()))
        return is_close and message.data == aiohttp.WSCloseCode.OK

    async def _ping(self) -> None:
        while True:
            await self._clock.sleep(PING_EVERY_S)
            if self._clock.monotonic() - self._heard_s > SILENCE_S:
                await self.close(f"no frame for {SILENCE_S:g} s, and no answer to PING")
            await self._send("PING")

    async def close(self, reason: str) -> None:
        """Give the connection up, because of *reason*."""
        if self._socket:
            self._closing = self._closing or reason
            await self._socket.close()

    async def _send(self, frame: str | dict[str, object]) -> None:
        text = frame if isinstance(frame, str) else msgspec.json.encode(frame).decode()
        if self._socket:
            with suppress(OSError, aiohttp.ClientError):  # whoever reads notices
                await self._socket.send_str(text)

    async def _subscribe(self, markets: Sequence[Market], *, first: bool = False) -> None:
        tokens = [token for market in markets for token in market.tokens]
        for market in markets:
            market.subscribed = self._live.asked()
        for start in range(0, len(tokens), MAX_IDS):
            what = {"type": "market"} if first and not start else {"operation": "subscribe"}
            await self._send({**what, "assets_ids": tokens[start : start + MAX_IDS], "custom_feature_enabled": True})
        self._stream.tokens = max(self._stream.tokens, len(self._by_token))

    def _end(self, reason: str) -> None:
        """Note that there is no connection any more: what comes from now on is missing."""
        level = logging.INFO if reason == "stopped" else logging.WARNING
        log.log(level, "%s: %s", "connection ended" if self._socket else "no connection", reason)
        if self._socket:
            self.note_verified()
            self._stream.ended_at, self._stream.reason = ac.sql_time(self._clock.now()), reason
        self._socket = None
        for market in self.markets.values():
            market.book.stop()
            if not self._live.has_settled(market):
                self._live.lose(market, reason)

    async def add(self, markets: Sequence[Market]) -> None:
        """Follow *markets* as well; each has a gap until its first book."""
        for market in markets:
            self.markets[market.market_id] = market
            self._by_token |= {token: (market, side) for token, side in zip(market.tokens, ("YES", "NO"), strict=True)}
            self._live.lose(market, "not subscribed before")
        if self._socket:
            await self._subscribe(markets)

    async def remove(self, market: Market) -> None:
        """Unsubscribe *market*, which has ended: it is not asked for again."""
        del self.markets[market.market_id]
        for token in market.tokens:
            self._by_token.pop(token, None)
        await self._send({"operation": "unsubscribe", "assets_ids": market.tokens})
        if not self.markets:
            await self.close("no market is left")

    # --- frames

    def take(self, frame: bytes) -> None:
        """Store what *frame* says; where it cannot be read, what it may have said is missing."""
        self._stream.frames += 1
        self._stream.bytes += len(frame)
        if frame in ANSWERS:
            log.log(logging.WARNING if b"INVALID" in frame else logging.DEBUG, "answered: %s", frame.decode())
            return
        try:
            for message in decode(frame):
                if not isinstance(message, Message):
                    self._lose_unreadable(message)
                elif not self._take_message(message):
                    self._lose_unreadable(msgspec.to_builtins(message))
        except (msgspec.DecodeError, RecursionError):
            self._lose_unreadable(None)

    def _take_message(self, message: Message) -> bool:
        """Store what *message* says, and return whether it could be read."""
        event, time_ms = message.event_type, message.timestamp
        received_ms = self._live.now_ms
        self._live.note_time(time_ms or 0)
        if event == "price_change":
            return self._take_changes(message, received_ms)
        if event == "book":
            return self._take_book(message)
        if event == "last_trade_price":
            return self._take_trade(message, received_ms)
        if event == "market_resolved":
            for market in self.markets.values():
                if message.market == market.condition_id is not None:
                    self._live.settle(self, market)
        elif event and event not in UNUSED_EVENTS:
            say_once(f"messages of the unknown type {ac.printable(event)!r} are not stored")
        return event is not None

    def _take_changes(self, message: Message, received_ms: int) -> bool:
        time_ms, said, mirrored = message.timestamp, set(), []
        if message.price_changes is None or time_ms is None:
            return False
        for entry in message.price_changes:
            market, outcome = self._by_token.get(entry.asset_id, (None, ""))
            if market is None:
                continue
            side = "bid" if (entry.side == "BUY") == (outcome == "YES") else "ask"
            if outcome == "YES":
                self._take_change(market, Change(time_ms, entry.hash, side, entry.price, entry.size), received_ms)
                said.add((market, side, entry.price, entry.size))
            else:
                mirrored.append((market, side, ac.mirrored_price(entry.price) or 0.0, entry.size))
        for market, side, price, size in mirrored:
            is_said = (market, side, price, size) in said or market.book.levels.get((side, price), 0.0) == size
            if not is_said and market.book.begun and not market.is_unmirrored:
                market.is_unmirrored = True
                log.warning("market %s: NO does not mirror YES; only YES is stored", market.market_id)
        return True

    def _take_change(self, market: Market, change: Change, received_ms: int) -> None:
        self._news_s = self._clock.monotonic()
        if market.book.is_too_late(change):
            self._live.lose(market, "changes came in an order that cannot be")
            market.book.stop()
            market.subscribed = self._live.asked()  # the next round has its book
        if not market.book.take(change, self._news_s):
            self._stream.repeated += 1
        elif self._has_room(market):
            self._stream.changes += 1
            lag_ms, row = received_ms - change.time_ms, (change.side, change.price, change.size)
            values = (market.market_id, self._stream.stream_id, ms_text(change.time_ms), lag_ms, *row)
            self._live.store.put(SAVE_CHANGE, *values)

    def _take_trade(self, message: Message, received_ms: int) -> bool:
        time_ms, token = message.timestamp, message.asset_id
        if token is None or time_ms is None or message.price is None:
            return False
        market, outcome = self._by_token.get(token, (None, ""))
        trade = (message.side, message.price, message.size, message.transaction_hash, outcome)
        if market is None:
            return True
        if self._is_repeated((market, time_ms, *trade)):
            self._stream.repeated += 1
        elif self._has_room(market):
            self._stream.trades += 1
            values = (market.market_id, self._stream.stream_id, ms_text(time_ms), received_ms - time_ms, *trade)
            self._live.store.put(SAVE_TRADE, *values)
        return True

    def _is_repeated(self, trade: tuple[object, ...]) -> bool:
        """Return whether *trade* has come within `KEPT_S`, and remember it."""
        self._news_s = self._clock.monotonic()
        while self._trades and next(iter(self._trades.values())) < self._news_s - KEPT_S:
            del self._trades[next(iter(self._trades))]
        known = len(self._trades)
        self._trades.setdefault(trade, self._news_s)
        return len(self._trades) == known

    def _has_room(self, market: Market) -> bool:
        """Return whether a row of *market* may wait for the file; else it is dropped."""
        if is_full := self._live.store.is_full:
            self._live.lose(market, "the file could not be written for too long")
        return not is_full

    def _take_book(self, message: Message) -> bool:
        time_ms, token = message.timestamp, message.asset_id
        if token is None or time_ms is None or message.bids is None or message.asks is None:
            return False
        market, outcome = self._by_token.get(token, (None, ""))
        if market is None or outcome == "NO":
            return True
        levels = levels_of(message.bids, message.asks)
        if not market.book.begun:
            self._live.go_on(market, time_ms, levels, trusted=self._all_differ < DISTRUST_AFTER)
        elif time_ms >= market.book.began_ms and not market.book.had(time_ms, levels):  # a change before it never came
            self._live.lose(market, "a book on the stream is not the one that its changes led to")
            self._live.go_on(market, time_ms, levels)
        return True

    def _lose_unreadable(self, message: object) -> None:
        """Note that something of the market that *message* names may be missing; of all where it names none."""
        named = message if isinstance(message, dict) else {}
        if named.get("event_type") in {*UNUSED_EVENTS, "market_resolved"}:
            return
        condition = named.get("market")
        for market in self.markets.values():
            if not isinstance(condition, str) or market.condition_id in {condition, None}:
                self._live.lose(market, "a frame could not be read")

    # --- verification

    async def verify(self, api: ac.PolymarketApi) -> None:
        """Ask for the books of all its markets and compare them with the stream."""
        by_token = {market.tokens[0]: market for market in self.markets.values()}
        asked = self._live.asked()
        try:
            books, _ = await api.fetch_books(list(by_token)) if self._socket and by_token else ({}, None)
        except ac.ApiError as error:
            log.warning("no books to compare: %s", error)
            return
        seen = {}
        for token, book in books.items():
            market = by_token.get(token)
            if market and book.changed_ms and not book.unreadable and book.market in {None, market.condition_id}:
                seen[market.market_id] = (book.changed_ms, levels_of(book.bids, book.asks))
        await self.compare(seen, asked)

    async def compare(self, books: Mapping[str, Seen], asked: Asked) -> None:
        """Compare *books*, by market, with what the stream has said, and with what it says in the next seconds."""
        socket, until_s = self._socket, self._clock.monotonic() + PATIENCE_S
        named = {self.markets[market_id]: seen for market_id, seen in books.items() if market_id in self.markets}
        waiting = {market: seen for market, seen in named.items() if self._can_compare(market, seen, asked)}
        agreeing: dict[Market, Seen] = {}
        while socket and self._socket is socket:
            for market in [market for market, seen in waiting.items() if market.book.had(*seen)]:
                agreeing[market] = waiting.pop(market)
            if not waiting or self._clock.monotonic() >= until_s:
                await self._judge(agreeing, waiting, asked)
                return
            await self._clock.sleep(PATIENCE_S / 12)

    def _can_compare(self, market: Market, seen: Seen, asked: Asked) -> bool:
        """Return whether *seen* says anything of *market*; one without an opening book takes it for its book."""
        if market.book.begun:
            return seen[0] >= market.book.began_ms
        if asked.monotonic_s > market.subscribed.monotonic_s + OPENING_S:
            trusted = self._all_differ < DISTRUST_AFTER and self._covers(market, seen, asked)
            self._live.go_on(market, *seen, trusted=trusted)
        return False

    def _covers(self, market: Market, seen: Seen, asked: Asked) -> bool:
        """Return whether *seen* is a book from after the last loss; it may be older than the question."""
        is_asked_after = market.lost.monotonic_s < asked.monotonic_s
        is_stamped_after = seen[0] > market.lost.newest_ms + TRADE_DELAY_MS
        return is_asked_after and (is_stamped_after or not market.book.is_ahead(seen[0], asked.monotonic_s))

    def _agree(self, market: Market, seen: Seen, asked: Asked) -> None:
        """Note that the stream of *market* was complete when *asked*, or when an older book was made."""
        is_old = market.book.is_ahead(seen[0], asked.monotonic_s)
        until_ms = min(seen[0], asked.verified_ms) if is_old else asked.verified_ms
        market.verified_ms = max(market.verified_ms, until_ms)
        if self._covers(market, seen, asked):
            self._live.regain(market, seen[0])
        market.book.forget(self._clock.monotonic() - KEPT_S)

    async def _judge(self, agreeing: Mapping[Market, Seen], differing: Mapping[Market, Seen], asked: Asked) -> None:
        """Decide what it means that these books agree with the stream and those differ from it."""
        count, compared, now_s = len(differing), len(agreeing) + len(differing), self._clock.monotonic()
        is_silent = now_s - self._news_s > ROUND_EVERY_S
        if compared:
            self._all_differ = self._all_differ + (not is_silent) if count == compared else 0
            self._attempts = self._attempts if count else 0
        is_distrusted = self._all_differ >= DISTRUST_AFTER
        if self._all_differ == DISTRUST_AFTER:
            log.error("every book differs from the stream, time and again: the gaps stay open until one agrees")
        for market, seen in differing.items():
            covers = self._covers(market, seen, asked)
            self._live.lose(market, "the exchange's book is not the one that the stream led to")
            if count <= FEW and not is_distrusted:
                self._live.go_on(market, *seen, trusted=covers)
        is_lost = count > FEW or (count and (is_silent or is_distrusted))
        for market, seen in () if is_lost else agreeing.items():  # else what was overwritten cannot be seen any more
            self._agree(market, seen, asked)
        if is_lost and not (is_distrusted and now_s - self._began_s < DISTRUSTED_S):
            await self.close(f"{count} of {compared} books differ from the stream")


# --- The program ------------------------------------------------------------------------------------------------------


class Live:
    """Follows the markets that *collector* collects: their channels, their anchors, their gaps.

    Args:
        collector: collects the same markets into the same file, with all levels.
        url: the address of the channel.
        endpoint: the way there.
        every_s: between two anchors.
        clock: for tests.
    """

    def __init__(
        self, collector: ac.AsyncCollector, url: str, endpoint: ac.Endpoint, every_s: float, clock: ac.Clock
    ) -> None:
        self.store = Store(collector.settings.db_path)
        self.endpoint, self.clock = endpoint, clock
        self.opening = asyncio.Lock()
        self.newest_ms = 0  # the newest time that the exchange has named
        self.channels: list[Channel] = []
        self._collector, self._url, self._every_s = collector, url, every_s
        self._session: aiohttp.ClientSession
        self._tasks: asyncio.TaskGroup
        self._anchored = asyncio.Event()  # replaced after each anchor
        self._has_anchor = False
        self._wants_anchor = False  # before its time
        self._settled: set[str] = set()  # markets whose end the stream has announced, and the file does not know yet
        self._gaps: dict[str, str] = {}  # of earlier processes: since when, by market
        self._died_at: str | None = None  # since when something may be missing of the others, if one has died

    async def connect(self) -> aiohttp.ClientWebSocketResponse[Any]:
        """Open a connection to the channel."""
        way = self.endpoint
        options: dict[str, Any] = {"headers": way.headers, "proxy": way.proxy, "proxy_headers": way.proxy_headers}
        options |= {"timeout": aiohttp.ClientWSTimeout(ws_close=0.5), "max_msg_size": MAX_FRAME_BYTES}
        socket: aiohttp.ClientWebSocketResponse[Any] = await self._session.ws_connect(
            self._url, decode_text=False, **options
        )
        return socket

    def asked(self) -> Asked:
        """Return this moment, for a question that begins now."""
        return Asked(self.clock.monotonic(), self.newest_ms)

    def note_time(self, time_ms: int) -> None:
        """Note that the exchange has named *time_ms*; of one that is ahead of our clock only ours is believed."""
        self.newest_ms = max(self.newest_ms, min(time_ms, self.now_ms))

    @property
    def now_ms(self) -> int:
        """The time by our clock."""
        return int(self.clock.now().timestamp() * 1_000)

    # --- what happens to a market

    def lose(self, market: Market, reason: str) -> None:
        """Open a gap: something of *market* may be missing from its last verified moment on."""
        market.lost = self.asked()
        if market.gap_since is None and market.verified_ms:
            market.gap_since = ms_text(market.verified_ms)
            self.store.put(OPEN_GAP, market.market_id, market.gap_since, reason)

    def go_on(self, market: Market, time_ms: int, levels: Levels, *, trusted: bool = True) -> None:
        """Let the stream of *market* go on from the book that the exchange had at *time_ms*."""
        is_opening = not market.book.begun
        market.book.restart(time_ms, levels)
        if trusted:
            self.regain(market, time_ms)
        if trusted and is_opening:  # what came before it was asked for is in this book
            market.verified_ms = max(market.verified_ms, market.subscribed.verified_ms)

    def regain(self, market: Market, time_ms: int) -> None:
        """Close the gap of *market*: after *time_ms* nothing is missing."""
        since, until, market.gap_since = market.gap_since, ms_text(time_ms), None
        if since and until > since:
            self.store.put(CLOSE_GAP, until, market.market_id)
            self._wants_anchor = True
            market.verified_ms = min(time_ms, self.now_ms)
        elif since:  # the book is the one from before it
            self.store.put(REMOVE_GAP, market.market_id)
        market.verified_ms = market.verified_ms or min(time_ms, self.now_ms)

    def has_settled(self, market: Market) -> bool:
        """Return whether the stream has announced the end of *market*."""
        return market.market_id in self._settled

    def settle(self, channel: Channel, market: Market) -> None:
        """Take *market* off its channel, because the stream says that it has ended."""
        if not self.has_settled(market):
            self._settled.add(market.market_id)
            self._tasks.create_task(self._end(channel, market, PATIENCE_S))  # its last trades may come after it

    async def _end(self, channel: Channel, market: Market, after_s: float = 0) -> None:
        if after_s:
            await self.clock.sleep(after_s)
        if market.market_id not in channel.markets:  # the file and the stream have said so at once
            return
        if market.gap_since:
            self.regain(market, max(self.newest_ms, self.now_ms))
        log.info("market %s has ended", market.market_id)
        await channel.remove(market)

    # --- anchors

    async def next_anchor(self) -> None:
        """Ask for an anchor and wait for it."""
        self._wants_anchor = True
        await self._anchored.wait()

    async def _anchor_forever(self) -> None:
        await self._open()
        await self._follow()  # what is known, before the exchange says what else there is
        if self.store.last_stream_id:
            self.store.put(END_DEAD, self.store.last_stream_id)
        while True:
            began_s, day = self.clock.monotonic(), self.clock.now().date()
            self._wants_anchor = False
            await self._anchor()
            self._anchored.set()
            self._anchored = asyncio.Event()
            pause_s = max(ANCHOR_PAUSE_S, 3 * (self.clock.monotonic() - began_s))
            while (left_s := began_s + self._every_s - self.clock.monotonic()) > 0 and day == self.clock.now().date():
                if self._wants_anchor and self._every_s - left_s > pause_s:
                    break
                await self.clock.sleep(min(1.0, left_s))

    async def _open(self) -> None:
        """Read what earlier processes have left, as soon as the file can be used."""
        while True:
            try:
                self._gaps, self._died_at = await self.store.open()
            except ac.StorageError as error:
                if error.lasting:
                    raise
                log.error("%s; tried again in %g s", error, ANCHOR_PAUSE_S)  # noqa: TRY400  the text says it
                await self.clock.sleep(ANCHOR_PAUSE_S)
            else:
                return

    async def _anchor(self) -> None:
        """Collect all that is chosen, follow what is open, and compare its books with the stream."""
        asked = self.asked()
        try:
            result = await self._collector.collect_all()
            rows = await self.store.read(ANCHOR_BOOKS, result["run_id"])
            seen = {market_id: (ms_of(book_time), _levels_in(*sides)) for market_id, book_time, *sides in rows}
            self.note_time(max((time_ms for time_ms, _ in seen.values()), default=0))
            await self._follow()
        except (ac.ApiError, ac.StorageError, ac.UnknownNamesError) as error:
            if isinstance(error, ac.UnknownNamesError) and not self._has_anchor:
                raise
            log.error("no anchor: %s", error)  # noqa: TRY400  the text says it
            return
        self._has_anchor = True
        for note in result["notes"]:
            say_once(note)
        if result["reason"]:
            log.warning("run %d is %s: %s", result["run_id"], result["status"], result["reason"])
        async with ac.first_error_of_tasks() as tasks:
            for channel in self.channels:
                tasks.create_task(channel.compare(seen, asked))

    async def _follow(self) -> None:
        """Subscribe what is open according to the file, and unsubscribe what is not any more."""
        rows = {row[0]: row for row in await self.store.read(FOLLOWED)}
        for channel in self.channels:
            for market in [market for market in channel.markets.values() if market.market_id not in rows]:
                if not self.has_settled(market):
                    self.lose(market, "it ended, and the stream did not say so")
                await self._end(channel, market)
        self.channels = [channel for channel in self.channels if channel.markets]
        self._settled &= rows.keys()
        for market_id in self._gaps.keys() - rows.keys():  # it ended while nobody listened
            self.regain(self._market(market_id, None, "", "", None), max(self.newest_ms, self.now_ms))
        known = self._settled.union(*(channel.markets for channel in self.channels))
        new = [self._market(*row) for market_id, row in rows.items() if market_id not in known]
        self._died_at = None  # of all that came later there is an anchor
        for channel in self.channels:
            room = MAX_MARKETS - len(channel.markets) if channel.markets else 0  # an empty one ends
            await channel.add(new[:room])
            new = new[room:]
        for start in range(0, len(new), MAX_MARKETS):
            channel = Channel(self)
            await channel.add(new[start : start + MAX_MARKETS])
            self.channels.append(channel)
            self._tasks.create_task(channel.run())

    def _market(self, market_id: str, condition: str | None, yes: str, no: str, book_time: str | None) -> Market:
        gap_since = self._gaps.pop(market_id, None)
        verified_at = gap_since or self._died_at or book_time
        verified_ms = min(ms_of(verified_at), self.now_ms) if verified_at else 0
        return Market(market_id, condition, (yes, no), verified_ms, gap_since)

    # --- all together

    async def _verify_forever(self) -> None:
        due_s = self.clock.monotonic()
        while True:
            due_s = max(due_s + ROUND_EVERY_S, self.clock.monotonic())
            await self.clock.sleep(due_s - self.clock.monotonic())
            async with self._collector.connect() as (_, api), ac.first_error_of_tasks() as tasks:
                for channel in self.channels:
                    tasks.create_task(channel.verify(api))

    async def _save_forever(self) -> None:
        while True:
            await self.clock.sleep(SAVE_EVERY_S)
            for channel in self.channels:
                channel.note_verified()
            await self.store.save()

    async def run(self, stop: asyncio.Event) -> bool:
        """Follow until *stop* is set, and return whether all that has come is stored.

        Raises:
            UnknownNamesError: the exchange has none of the names.
            StorageError: the file cannot be used before somebody changes it or its folder.
        """
        agent = {"User-Agent": f"polymarket-async-collector/{ac.__version__}"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=agent) as self._session:
            with suppress(asyncio.CancelledError):
                async with ac.first_error_of_tasks() as self._tasks:
                    for work in (self._anchor_forever, self._verify_forever, self._save_forever):
                        self._tasks.create_task(work(), name=work.__name__)
                    await stop.wait()
                    raise asyncio.CancelledError  # ends the tasks
        try:
            async with asyncio.timeout(LAST_SAVE_S):
                is_stored = await self.store.save()
        except TimeoutError:  # the disk hangs
            return False
        self.store.close()
        return is_stored


def _levels_in(bids: str, asks: str) -> Levels:
    """Return the levels that two columns of `books` say."""
    sides = ([ac.Level(*level) for level in msgspec.json.decode(text)] for text in (bids, asks))
    return levels_of(*sides)


# --- The command ------------------------------------------------------------------------------------------------------

EPILOG: Final = """\
examples:
  collector-live --event who-wins-the-cup
  collector-live --series btc-up-or-down-5m --ends-within 15 --db /data/btc.db

variables:
  POLYMARKET_LIVE_DB  the file (polymarket_live.db)
  CLOB_WS             the market channel (wss://ws-subscriptions-clob.polymarket.com/ws/market)
  GAMMA_API, CLOB_API, GAMMA_RATE_LIMIT, CLOB_RATE_LIMIT, HTTPS_PROXY, NO_PROXY: as for async-collector

exit codes:
  0   stopped by SIGTERM or Ctrl-C, with all that had come stored
  2   bad command line
  74  the file cannot be opened, or what came last could not be stored
  75  another collector-live holds the file
  78  bad configuration, or none of the names that were given exists
"""


def channel_address() -> tuple[str, ac.Endpoint]:
    """Return the address of the market channel, and the way there, which is that to the https address."""
    text = ac.read_variables(os.environ, ENVIRONMENT)["CLOB_WS"]
    is_allowed, url = False, URL()
    with suppress(ValueError):
        url = URL(text)
        host = url.host or ""
        is_local = host == "localhost" or (url.scheme == "ws" and ipaddress.ip_address(host).is_loopback)
        is_allowed = bool(host) and (url.scheme == "wss" or (url.scheme == "ws" and is_local))
    if not is_allowed or re.search(r"[@?#\s]", text):
        shown = re.sub("//.*@", "//***@", text, flags=re.DOTALL)
        raise ac.ConfigError(f"CLOB_WS={shown!r}: must be a wss:// address, or a ws:// address on loopback")
    https = url.with_scheme("https" if url.scheme == "wss" else "http")
    return text, ac.Endpoint.resolve("CLOB", {"CLOB_API": str(https), "CLOB_RATE_LIMIT": "1"})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says; `chosen` are arguments of `AsyncCollector`."""
    parser = argparse.ArgumentParser(
        prog="collector-live",
        description="Store every change of the order books of chosen markets, and every trade, until it is stopped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for kind, what in (
        ("market", "this market: an id, a slug or an address; may be repeated, as the next three"),
        ("event", "all markets of this event"),
        ("series", "the open markets of this series"),
        ("tag", "all markets with this tag"),
    ):
        parser.add_argument(f"--{kind}", action="append", default=[], metavar="NAME", help=f"follow {what}")
    parser.add_argument(
        "--ends-within", metavar="MIN", help="of series and tags, only what ends within so many minutes"
    )
    parser.add_argument("--every", default="300", metavar="SECONDS", help="between two anchors, whole books (300)")
    parser.add_argument("--db", metavar="PATH", help="the file, made if it does not exist (polymarket_live.db)")
    parser.add_argument("--version", action="version", version=f"collector-live {ac.__version__}")
    args = parser.parse_args(argv)
    names = {"markets": args.market, "events": args.event, "series": args.series, "tags": args.tag}
    if not any(names.values()):
        parser.error("name at least one market, event, series or tag")
    try:
        args.every = ac.finite_number("--every", args.every, positive=True, at_most=86_400)
        ac.Selection.resolve(ac.DEFAULT_MIN_VOLUME, args.ends_within, **names)
    except ac.ConfigError as error:
        parser.error(str(error))
    args.chosen = {**names, "ends_within": args.ends_within}
    return args


def on_signals(stop: asyncio.Event) -> None:
    """Set *stop* at the first SIGINT or SIGTERM, and end the process at the second; a name server delays neither."""

    def handle(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        loop.call_later(END_S, give_up)

    def give_up() -> None:
        log.critical("the file cannot be written in time; what came last could not be stored")
        os._exit(ac.StorageError.exit_code)  # as a kill would, which loses nothing outside of a gap

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ac.DaemonThreads())
    with suppress(NotImplementedError):  # Windows has no signals on the loop; there Ctrl-C is a KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, handle, number)


async def follow(args: argparse.Namespace, path: Path) -> int:
    """Follow what *args* name until a signal is caught, say what was done, and return the exit code."""
    stop = asyncio.Event()
    on_signals(stop)
    run_timeout = min(ac.RUN_TIMEOUT_S, max(args.every, ANCHOR_PAUSE_S))
    collector = ac.AsyncCollector(path, run_timeout=run_timeout, **args.chosen)
    live = Live(collector, *channel_address(), args.every, ac.Clock())
    log.info("following into %s, an anchor every %g s", path, args.every)
    is_stored = await live.run(stop)
    saved = live.store.saved
    counts = (
        f"{saved[SAVE_CHANGE]} changes and {saved[SAVE_TRADE]} trades are stored, {saved[CLOSE_GAP]} gaps are closed"
    )
    print(f"{path}: {counts}; what comes until the next start is one")
    if not is_stored:
        raise ac.StorageError(f"{path}: what came last could not be stored")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* and return its exit code."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.environ.pop("TWITTER_BEARER_TOKEN", None)  # no posts are bought here
    try:
        given = ac.read_variables(os.environ, ENVIRONMENT)["POLYMARKET_LIVE_DB"]
        path = Path(ac.file_name("POLYMARKET_LIVE_DB", given) if args.db is None else ac.file_name("--db", args.db))
        with ac.locked(Path(f"{os.path.realpath(path)}.live")):  # one collector-live a file
            return asyncio.run(follow(args, path))
    except ac.CollectorError as error:
        log.critical("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
