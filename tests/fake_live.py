"""The market channel of the stand-in: every change of its books as a frame, and the faults of the real one on demand.

`FakePolymarket.live` is one. What a test lets happen (`change`, `trade`, `tick_size`, `settle`) changes the books that
the stand-in's `/books` shows as well, with the same times and hashes, whether anybody listens or not, and stands in
`changes` and `trades`, the truth that stored rows are compared with. What goes wrong is scripted by `odd`, `drop`,
`abort` and `say`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiohttp import WSMsgType, web

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fake_polymarket import FakeMarket, FakePolymarket

UNKNOWN_EVENT = '{"event_type":"weather_change","market":"0x1","timestamp":"1790000000000"}'


class TrueChange(NamedTuple):
    """A level of YES that has changed."""

    market_id: str
    time_ms: int
    side: str  # bid or ask
    price: float
    size: float


class TrueTrade(NamedTuple):
    """A trade."""

    market_id: str
    time_ms: int
    outcome: str
    side: str
    price: float
    size: float
    transaction_hash: str


@dataclass(slots=True)
class ChannelOddities:
    """What the channel may do all the time; the defaults are what the real one does on a good day."""

    lag_s: float = 0.0  # of every frame, while `/books` is up to date
    is_held: bool = False  # frames wait until this is False again
    is_frozen: bool = False  # no data, though PING is answered
    is_mute: bool = False  # nothing at all, and no close frame
    refuses: int = 0  # an HTTP status instead of a connection
    withheld: set[str] = field(default_factory=set)  # tokens without an opening book
    omitted: int = 0  # so many of the next changes are not sent
    repeats: bool = False  # each change is sent twice, the second time with its entries in reverse order
    repeats_late: bool = False  # a change is sent again after the next one: 5, 3, 5
    is_early: bool = False  # an opening book is followed by a change that is stamped a millisecond before it
    chatty: int = 10  # every so many changes a message about a new market and one about a best price
    is_hashed: bool = True  # False: hashes are only different ones, which is quicker
    no_only: bool = False  # entries of YES are left out


@dataclass(slots=True, eq=False)
class Listener:
    """One connection."""

    socket: web.WebSocketResponse
    request: web.Request
    tokens: set[str] = field(default_factory=set)
    outbox: asyncio.Queue[tuple[float, str]] = field(default_factory=asyncio.Queue)  # when it is due, and the frame
    has_begun: bool = False
    waiting: int = 0  # frames to be sent
    sent: int = 0


class FakeChannel:
    """The market channel of *exchange*."""

    def __init__(self, exchange: FakePolymarket) -> None:
        self.odd = ChannelOddities()
        self.listeners: list[Listener] = []
        self.received: list[dict[str, Any]] = []  # frames that the listeners have sent
        self.connections = 0
        self.changes: list[TrueChange] = []
        self.trades: list[TrueTrade] = []
        self.sent: Counter[str] = Counter()  # frames by what they are about
        self._exchange = exchange
        self._happened = asyncio.Event()  # somebody came, went or asked
        self._numbers = itertools.count(1)
        self._last_frames: dict[str, str] = {}  # of each market

    # --- what happens on the exchange

    def moment(self, market: FakeMarket) -> int:
        """Return the time for the next change of *market*, after that of the last one."""
        return max(int(self._exchange.now() * 1_000), market.book_ms + 1)

    def change(self, market: FakeMarket, *levels: tuple[str, str, str]) -> None:
        """Change *levels* (side, price, size) of YES in one moment, a frame for each, all with the last one's hash."""
        time_ms = self.moment(market)
        bids, asks = ({float(price): (price, size) for price, size in side} for side in (market.bids, market.asks))
        for side, price, size in levels:
            levels_of_side = bids if side == "bid" else asks
            levels_of_side.pop(float(price), None)
            if float(size):
                levels_of_side[float(price)] = (price, size)
            self.changes.append(TrueChange(market.id, time_ms, side, float(price), float(size)))
        self._exchange.change(
            market,
            bids=tuple(bids[price] for price in sorted(bids)),
            asks=tuple(asks[price] for price in sorted(asks, reverse=True)),
            book_ms=time_ms,
        )
        for level in levels:
            self._announce(market, time_ms, *level)

    def trade(self, market: FakeMarket, *, outcome: str = "YES", size: str = "1", book: bool = False) -> None:
        """Let somebody buy from the best ask of YES, or sell NO to it; with *book* the whole book is sent as well."""
        price, there = market.asks[-1]
        left = f"{max(float(there) - float(size), 0):.6g}"
        taken = f"{min(float(there), float(size)):.6g}"
        self._exchange.change(market, last_trade=price)
        self.change(market, ("ask", price, left))
        is_yes = outcome == "YES"
        token, side = (market.tokens[0], "BUY") if is_yes else (market.tokens[1], "SELL")
        price = price if is_yes else f"{1 - float(price):.3f}"
        transaction = f"0x{next(self._numbers):064x}"
        self.trades.append(TrueTrade(market.id, market.book_ms, outcome, side, float(price), float(taken), transaction))
        message = {"market": market.condition_id, "asset_id": token, "price": price, "size": taken, "fee_rate_bps": "0"}
        message |= {"side": side, "timestamp": str(market.book_ms), "event_type": "last_trade_price"}
        self._publish(market, message | {"transaction_hash": transaction})
        if book:
            self._publish(market, self._book(token, later=True))

    def tick_size(self, market: FakeMarket) -> None:
        """Make the ticks of *market* finer: a message for each token, one of them twice."""
        for token in (*market.tokens, market.tokens[0]):
            message = {"event_type": "tick_size_change", "market": market.condition_id, "asset_id": token}
            times = {"timestamp": str(self.moment(market))}
            self._publish(market, message | times | {"old_tick_size": "0.01", "new_tick_size": "0.001"})

    def settle(self, market: FakeMarket, *, announced: bool = True) -> None:
        """End *market*: its book is emptied level by level, then its outcome is announced, then it closes."""
        for price, _ in market.bids:
            self.change(market, ("bid", price, "0"))
        for price, _ in market.asks:
            self.change(market, ("ask", price, "0"))
        if announced:
            message: dict[str, Any] = {
                "id": market.id,
                "market": market.condition_id,
                "assets_ids": list(market.tokens),
            }
            message |= {"winning_asset_id": market.tokens[0], "winning_outcome": market.outcomes[0]}
            message |= {"event_message": None, "timestamp": str(self.moment(market)), "tags": list(market.tags)}
            self._publish(market, message | {"event_type": "market_resolved"})
        self._exchange.close(market, "1", "0", winner=0)

    # --- what goes wrong

    async def drop(self, code: int = 1013, words: bytes = b"slow consumer: send buffer full") -> None:
        """Close every connection with a close frame."""
        for listener in list(self.listeners):
            await listener.socket.close(code=code, message=words, drain=False)

    def abort(self) -> None:
        """Cut every connection without a close frame."""
        for listener in self.listeners:
            if listener.request.transport:
                listener.request.transport.abort()

    def say(self, text: str) -> None:
        """Send *text* to everybody."""
        for listener in self.listeners:
            self._put(listener, text)

    async def until_listeners(self, count: int, *, with_tokens: int = 1) -> None:
        """Wait until so many connections have subscribed so many tokens each."""
        while sum(len(listener.tokens) >= with_tokens for listener in self.listeners) != count:
            self._happened.clear()
            await self._happened.wait()

    @property
    def is_quiet(self) -> bool:
        """Whether all frames are sent."""
        return not any(listener.waiting for listener in self.listeners)

    # --- the wire

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection."""
        if self.odd.refuses:
            return web.Response(status=self.odd.refuses)
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        listener = Listener(socket, request)
        self.listeners.append(listener)
        self.connections += 1
        sending = asyncio.create_task(self._send(listener))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._answer(listener, message.data)
        finally:
            sending.cancel()
            self.listeners.remove(listener)
            self._happened.set()
        return socket

    async def _send(self, listener: Listener) -> None:
        while True:
            due, text = await listener.outbox.get()
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            while self.odd.is_held:  # noqa: ASYNC110  a test lets go of it at any time
                await asyncio.sleep(0.005)
            if not self.odd.is_mute:
                with suppress(ConnectionError):
                    await listener.socket.send_str(text)
                    listener.sent += 1
            listener.waiting -= 1

    def _put(self, listener: Listener, text: str) -> None:
        listener.waiting += 1
        listener.outbox.put_nowait((time.monotonic() + self.odd.lag_s, text))

    def _answer(self, listener: Listener, text: str) -> None:
        if text == "PING":
            self._put(listener, "PONG")
            return
        try:
            frame = json.loads(text)
            tokens = frame["assets_ids"]
        except (ValueError, KeyError, TypeError):
            self._put(listener, "INVALID MESSAGE")
            return
        self.received.append(frame)
        self._happened.set()
        operation = frame.get("operation", frame.get("type"))
        if operation == "unsubscribe":
            listener.tokens -= set(tokens)
        elif operation == ("subscribe" if listener.has_begun else "market"):
            listener.has_begun = True
            self._open(listener, [token for token in tokens if token not in listener.tokens])
        else:
            self._put(listener, "INVALID OPERATION")

    def _open(self, listener: Listener, tokens: Sequence[str]) -> None:
        """Subscribe *tokens*, and send their books as one array; those without a book are left out."""
        if not tokens:
            self._put(listener, "NO NEW ASSETS")
            return
        listener.tokens.update(tokens)
        books = [self._book(token) for token in tokens if token not in self.odd.withheld]
        if self.odd.is_frozen:
            return
        self._put(listener, json.dumps([book for book in books if book]))
        for book in filter(None, books) if self.odd.is_early else ():
            is_yes = self._exchange.side_of(book["asset_id"]) == 0
            entry = {"asset_id": book["asset_id"], "price": "0.5", "size": "77", "hash": "early"}
            early = {"market": book["market"], "timestamp": str(int(book["timestamp"]) - 1)}
            early["price_changes"] = [entry | {"side": "BUY" if is_yes else "SELL"}]
            self._put(listener, json.dumps(early | {"event_type": "price_change"}))

    def _book(self, token: str, *, later: bool = False) -> dict[str, Any]:
        """Return the message with the book of *token*: what `/book` says, or nothing if there is none."""
        sent = self._exchange.book(token)
        if sent is None:
            return {}
        left_out = {"min_order_size", "neg_risk"} | ({"tick_size", "last_trade_price"} if later else set())
        book = {key: value for key, value in msgspec.json.decode(sent).items() if key not in left_out}
        return book | {"event_type": "book"}

    def _announce(self, market: FakeMarket, time_ms: int, side: str, price: str, size: str) -> None:
        """Send the frame of one change."""
        if self.odd.omitted:
            self.odd.omitted -= 1
            return
        number = next(self._numbers)
        best_bid = market.bids[-1][0] if market.bids else "0"
        best_ask = market.asks[-1][0] if market.asks else "1"
        is_bid = side == "bid"
        sides = ("BUY", "SELL") if is_bid else ("SELL", "BUY")
        entries = [
            {"asset_id": token, "price": p, "size": size, "side": s, "hash": h, "best_bid": bid, "best_ask": ask}
            for token, p, s, h, bid, ask in zip(
                market.tokens,
                (price, opposite(price)),
                sides,
                self._hashes(market, number),
                (best_bid, opposite(best_ask)),
                (best_ask, opposite(best_bid)),
                strict=True,
            )
        ]
        if self.odd.no_only:
            entries = entries[1:]
        message = {"market": market.condition_id, "timestamp": str(time_ms), "event_type": "price_change"}
        self._publish(market, message | {"price_changes": entries if number % 2 else entries[::-1]})
        if self.odd.repeats:
            self._publish(market, message | {"price_changes": entries[::-1] if number % 2 else entries})
        if self.odd.repeats_late and (last := self._last_frames.get(market.id)):
            self._send_to(market, last)
        self._last_frames[market.id] = json.dumps(message | {"price_changes": entries})
        if self.odd.chatty and number % self.odd.chatty == 0:
            self._chat(market, time_ms)

    def _hashes(self, market: FakeMarket, number: int) -> Iterable[str]:
        if self.odd.is_hashed:
            books = (self._exchange.book(token) for token in market.tokens)
            return [msgspec.json.decode(book)["hash"] if book else "" for book in books]
        return [hashlib.sha1(f"{number}{side}".encode(), usedforsecurity=False).hexdigest() for side in "YN"]

    def _chat(self, market: FakeMarket, time_ms: int) -> None:
        """Send what nobody asked for."""
        new: dict[str, Any] = {
            "event_type": "new_market",
            "id": "9",
            "market": "0x9",
            "timestamp": str(time_ms),
            "tags": [],
        }
        new |= {"assets_ids": ["8", "9"], "game_start_time": "2026-10-04 14:25:00+00", "active": False, "line": None}
        for listener in self.listeners:
            if not self.odd.is_frozen:
                self._put(listener, json.dumps(new))
        best = {"event_type": "best_bid_ask", "market": market.condition_id, "asset_id": market.tokens[0]}
        best |= {"best_bid": "0", "best_ask": "1", "spread": "1", "timestamp": str(time_ms + 1)}
        self._publish(market, best)

    def _publish(self, market: FakeMarket, message: dict[str, Any]) -> None:
        self._send_to(market, json.dumps(message))
        self.sent[message.get("event_type", "")] += 1

    def _send_to(self, market: FakeMarket, text: str) -> None:
        for listener in self.listeners:
            if not self.odd.is_frozen and not listener.tokens.isdisjoint(market.tokens):
                self._put(listener, text)


def opposite(price: str) -> str:
    """Return 1 - *price*, with as many digits."""
    digits = len(price.partition(".")[2])
    return f"{1 - float(price):.{digits}f}"
