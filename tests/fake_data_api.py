"""The Data API of the stand-in: prices and trades of the past, with the traps that recordings and documents show.

Every price follows from the market's number and the time, so that a test can ask `FakeDataApi.buckets` what is true.
Trades are made when a market is first asked for, or added by a test.
"""

from __future__ import annotations

import base64
import bisect
import gzip
import hashlib
import json
import math
import random
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fake_polymarket import FakeMarket
    from multidict import MultiMapping

DAY_S = 86_400
MAX_SPAN_S = 15 * DAY_S
MAX_POINTS = 10_000
MAX_TRADES = 1_000
RETENTION_S = {60: 7 * DAY_S, 300: 60 * DAY_S, 1_800: 90 * DAY_S}  # of coarser widths everything is kept
INTERVALS_S = {"1m": 30 * DAY_S, "1w": 7 * DAY_S, "1d": DAY_S, "6h": 21_600, "1h": 3_600}
CACHED_S = 300  # for so long a first page is answered as it was
UNSETTLED_S = 300  # a bucket that ended less long ago may show another price
HISTORY_BEGINS = 1_668_729_600  # 2022-11-18
TRADES_S = 3 * 365 * DAY_S


@dataclass(slots=True)
class FakeTrade:
    """The truth on one fill, from the side of its taker."""

    timestamp: int
    sequence: int  # block x 10^10 + place in it; only cursors show it
    side: int  # of the market: 0 is YES
    taker: str  # BUY or SELL
    price: float
    size: float
    wallet: str
    transaction_hash: str
    outcome_index: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """By what the exchange orders trades."""
        return self.timestamp, self.sequence


@dataclass(slots=True)
class FakePast:
    """The truth on the past of one market."""

    born: float  # Unix time of the first price
    ended: float | None = None  # of the last one, where it is over
    payout: float | None = None  # of YES, once it has resolved
    quiet: tuple[float, float] = (0, 0)  # a time without prices
    trades: list[FakeTrade] = field(default_factory=list)  # the oldest first


class Point(NamedTuple):
    """A price as it is served."""

    timestamp: int
    price: float
    resolution_seconds: int


def price_in(number: int, timestamp: int) -> float | None:
    """Return the midpoint of market *number* in the bucket at *timestamp*; None where nothing has moved."""
    slot = timestamp // 300
    mixed = (slot * 2_654_435_761 + number * 40_503) & 0xFFFFFFFF
    if mixed % 61 == 0:
        return None
    middle = number * 7_919 % 1_600 + 200
    ticks = middle + int(180 * math.sin(slot / 900 + number)) + (mixed >> 16) % 9 - 4
    return min(max(ticks, 1), 1_999) / 2_000


def unix_time(text: str | None) -> float | None:
    """Return a time of Gamma's as Unix time."""
    return datetime.fromisoformat(text).timestamp() if text else None


class BadRequest(Exception):  # noqa: N818  an answer, not a defect
    """What the exchange refuses, in its words."""


def refused(text: str) -> web.Response:
    """Return a 400 as the Data API words it."""
    body = {"error": text, "code": "invalid_request", "retryable": False, "trace_id": "0" * 32}
    return web.json_response(body, status=400)


def signed_cursor(key: str, kind: str, limit: int, timestamp: int, sequence: int) -> str:
    """Return the cursor that goes on after an element."""
    data = {"type": kind, "params": {"l": limit, "ts": timestamp, "sq": str(sequence), "d": limit}}
    signature = hashlib.md5(f"{key} {data}".encode(), usedforsecurity=False).hexdigest()
    return base64.urlsafe_b64encode(json.dumps({"data": data, "sig": signature}).encode()).decode().rstrip("=")


def read_cursor(key: str, kind: str, cursor: str) -> tuple[int, int, int]:
    """Return limit, timestamp and sequence of a cursor."""
    try:
        sent = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        params = sent["data"]["params"]
        found = int(params["l"]), int(params["ts"]), int(params["sq"])
    except (ValueError, KeyError, TypeError):
        raise BadRequest("invalid cursor") from None
    if cursor != signed_cursor(key, kind, *found):
        raise BadRequest("invalid cursor")
    return found


def whole(query: MultiMapping[str], name: str, default: int, least: int, most: int) -> int:
    """Return the parameter *name*, a whole number in a range."""
    text = query.get(name, str(default))
    if not text.isdecimal() or not least <= int(text) <= most:
        raise BadRequest(f"'{name}' must be between {least} and {most}")
    return int(text)


class FakeDataApi:
    """Answers for the markets that `find` knows, by token or by condition."""

    def __init__(self, find: Callable[[str], tuple[FakeMarket, int] | None], now: Callable[[], float]) -> None:
        self._find = find
        self._now = now
        self._pasts: dict[int, FakePast] = {}
        self._cached: dict[str, tuple[float, bytes]] = {}
        self.cursor_key = "1"  # with another one, older cursors are refused

    # --- the script of a test

    def past_of(self, market: FakeMarket) -> FakePast:
        """Return the past of *market*, made from its dates when it is first asked for; a test may change it."""
        if market.number not in self._pasts:
            born = unix_time(market.start_date) or self._now() - 200 * DAY_S
            ended = unix_time(market.closed_time)
            past = FakePast(born, ended, 1.0 if ended else None)
            self._pasts[market.number] = past
            self.make_trades(market, int((market.volume_24h or 0.0) ** 0.5))
        past = self._pasts[market.number]
        if market.closed_time and past.ended is None:
            past.ended, past.payout = unix_time(market.closed_time), 1.0
        return past

    def make_trades(self, market: FakeMarket, count: int) -> None:
        """Give *market* so many trades from its first moment to now, in bursts, some equal to the one before."""
        rng = random.Random(market.number)
        past = self._pasts.setdefault(market.number, FakePast(self._now() - DAY_S))
        last = int(min(past.ended or self._now(), self._now())) - 1
        times = sorted(rng.randrange(int(min(past.born, last - 1)), last) for _ in range(max(count // 4, 1)))
        past.trades = []
        while count > len(past.trades):
            if past.trades and rng.random() < 0.1:
                self.add_trade(market, like=past.trades[-1])
                continue
            moment = times[len(past.trades) * len(times) // count]
            self.add_trade(market, moment, rng=rng)

    def add_trade(
        self,
        market: FakeMarket,
        timestamp: int | None = None,
        *,
        like: FakeTrade | None = None,
        rng: random.Random | None = None,
        **traits: Any,  # noqa: ANN401
    ) -> FakeTrade:
        """Add a trade, at *timestamp* or now; one *like* another is equal to it in all that is served."""
        trades = self.past_of(market).trades
        rng = rng or random.Random(len(trades) * 31 + market.number)
        when = like.timestamp if like else int(self._now()) if timestamp is None else timestamp
        block = int(when / 1.5)
        place = bisect.bisect_left(trades, (block + 1) * 10**10, key=lambda trade: trade.sequence)
        before = trades[place - 1].sequence if place else 0
        made: dict[str, Any] = {
            "side": rng.randrange(2),
            "taker": rng.choice(("BUY", "SELL")),
            "price": rng.randrange(1, 1_000) / 1_000,
            "size": rng.choice((5.0, 333.333334, rng.randrange(1, 10**6) / 100)),
            "wallet": f"0x{rng.getrandbits(160):040x}",
            "transaction_hash": f"0x{rng.getrandbits(256):064x}",
        }
        if like:
            made = {name: getattr(like, name) for name in made}
        made |= traits
        trade = FakeTrade(when, max(before, block * 10**10) + 1, **made)
        trade.outcome_index = 999 if trade.sequence % 7 == 0 else trade.side
        trades.insert(place, trade)
        return trade

    def buckets(self, market: FakeMarket, width: int, start: float, end: float) -> list[Point]:
        """Return the true prices of YES whose buckets begin in [start, end) and are over, expired ones included."""
        past = self.past_of(market)
        first = math.ceil(max(start, past.born, HISTORY_BEGINS) / width)
        last = min(end, past.ended or math.inf)
        points = []
        for timestamp in range(first * width, math.ceil(last / width) * width, width):
            is_over = timestamp + width <= self._now()
            if (
                is_over
                and not past.quiet[0] <= timestamp < past.quiet[1]
                and (price := price_in(market.number, timestamp))
            ):
                points.append(Point(timestamp, price, width))
        return points

    # --- GET /v2/prices-history

    async def prices_history(self, request: web.Request) -> web.Response:
        """Answer with a page of prices."""
        return self._answer(request, self._price_page)

    def _price_page(self, query: MultiMapping[str]) -> dict[str, Any]:
        token = query.get("token_id") or query.get("tokenId")
        if not token:
            raise BadRequest("'token_id' is required")
        if "offset" in query:
            raise BadRequest("'offset' is not supported, use 'cursor'")
        start, end = self._span(query)
        limit = whole(query, "limit", MAX_POINTS, 1, MAX_POINTS)
        width = self._width(query, start, end)
        after = -1
        if "cursor" in query:
            limit, after, _ = read_cursor(self.cursor_key, "prices_history", query["cursor"])
        found = self._find(token)
        points = self._points(*found, width, start, end) if found else []
        points = [point for point in points if point.timestamp > after]
        shown = points[:limit]
        cursor = None
        if len(points) > limit:
            cursor = signed_cursor(
                self.cursor_key, "prices_history", limit, shown[-1].timestamp, shown[-1].resolution_seconds
            )
        return paged([point._asdict() for point in shown], limit, cursor)

    def _span(self, query: MultiMapping[str]) -> tuple[float, float]:
        """Return the time that *query* asks for."""
        now = self._now()
        if sum(name in query for name in ("start", "interval", "as_of")) != 1 or (
            "end" in query and "start" not in query
        ):
            raise BadRequest("exactly one of 'start', 'interval' and 'as_of' is required")
        if "interval" in query:
            interval = query["interval"]
            if interval in {"max", "all"}:
                width = int(query.get("bucket_seconds", 43_200))
                return (HISTORY_BEGINS if width >= 10_800 else now - 30 * DAY_S), now
            if interval not in INTERVALS_S:
                raise BadRequest("'interval' is not valid")
            return now - INTERVALS_S[interval], now
        if "as_of" in query:
            return 0, whole(query, "as_of", 0, 1, 10**10) + 1
        start = whole(query, "start", 0, 1, 10**10)
        end = float(query["end"]) if "end" in query else now
        if end <= start:
            raise BadRequest("'start' must be before 'end'")
        if end - start > MAX_SPAN_S:
            raise BadRequest("'start' to 'end' must span at most 15 days")
        return start, end

    def _width(self, query: MultiMapping[str], start: float, end: float) -> int:
        """Return the width that is asked for, else the finest that gives some 2,500 points and has not expired."""
        if "bucket_seconds" not in query:
            widths = (60, 300, 1_800, 10_800, 43_200)
            kept = [width for width in widths if start >= self._now() - RETENTION_S.get(width, math.inf)]
            return next((width for width in kept if (end - start) / width <= 2_500), 43_200)
        least = {"max": 600, "all": 600, "1m": 600, "1w": 300}.get(query.get("interval", ""), 60)
        return max(whole(query, "bucket_seconds", 60, 60, DAY_S), least)

    def _points(self, market: FakeMarket, side: int, width: int, start: float, end: float) -> list[Point]:
        """Return what is served of a token: grid points, then one that is none: its last price, or its payout."""
        now, past = self._now(), self.past_of(market)
        kept_since = now - RETENTION_S.get(width, math.inf)
        points = [
            point._replace(price=max(point.price - 0.0005, 0.0005))
            if point.timestamp + width > now - UNSETTLED_S and past.ended is None
            else point
            for point in self.buckets(market, width, max(start, kept_since), end)
        ]
        last = self._last_point(market, width, points, start, min(end, now), kept_since)
        points += [last] if last else []
        return [point if side == 0 else point._replace(price=round(1 - point.price, 6)) for point in points]

    def _last_point(
        self, market: FakeMarket, width: int, points: Sequence[Point], start: float, end: float, kept_since: float
    ) -> Point | None:
        past = self.past_of(market)
        if end <= max(past.born, kept_since):
            return None
        if past.payout is not None and past.ended is not None and past.ended <= end:
            if past.ended < max(start, kept_since):
                return None
            edge = points[-1].timestamp + width if points else math.ceil(past.ended)
            return Point(min(edge, int(end)), past.payout, 0)
        moment = int(end) - 7
        moment -= moment % width == 0
        if past.quiet[0] <= moment < past.quiet[1] or moment < past.born or (points and moment <= points[-1].timestamp):
            return None
        return Point(moment, price_in(market.number, moment) or 0.5, 0)

    # --- GET /v2/trades

    async def trades(self, request: web.Request) -> web.Response:
        """Answer with a page of trades, the newest first."""
        return self._answer(request, self._trade_page)

    def _trade_page(self, query: MultiMapping[str]) -> dict[str, Any]:
        conditions = [condition for condition in query.get("condition", "").split(",") if condition]
        if not 1 <= len(conditions) <= 20:
            raise BadRequest("'condition' must have 1 to 20 ids")
        if query.get("taker_only", "true") != "true":
            raise BadRequest("the stand-in knows takers only")
        limit = whole(query, "limit", 100, 1, MAX_TRADES)
        before = (10**11, 0)
        if "cursor" in query:
            limit, *rest = read_cursor(self.cursor_key, "trades", query["cursor"])
            before = (rest[0], rest[1])
        found: list[tuple[FakeTrade, FakeMarket]] = []
        for condition in conditions:
            if known := self._find(condition):
                found += self._trades_before(known[0], before, limit + 1)
        found.sort(key=lambda row: row[0].key, reverse=True)
        shown = found[:limit]
        cursor = signed_cursor(self.cursor_key, "trades", limit, *shown[-1][0].key) if len(found) > limit else None
        return paged([wire_trade(trade, market) for trade, market in shown], limit, cursor)

    def _trades_before(
        self, market: FakeMarket, before: tuple[int, int], count: int
    ) -> Iterable[tuple[FakeTrade, FakeMarket]]:
        """Return the newest trades before a place, without dust and what is older than three years."""
        trades = self.past_of(market).trades
        place = bisect.bisect_left(trades, before, key=lambda trade: trade.key)
        oldest = self._now() - TRADES_S
        shown: list[tuple[FakeTrade, FakeMarket]] = []
        while place and len(shown) < count:
            place -= 1
            trade = trades[place]
            if trade.timestamp >= oldest and trade.size >= 0.01:
                shown.append((trade, market))
        return shown

    # --- both

    def _answer(self, request: web.Request, page: Callable[[MultiMapping[str]], dict[str, Any]]) -> web.Response:
        """Answer with a page; a first one as it was up to five minutes ago."""
        name, now = request.path_qs, self._now()
        made_at, body = self._cached.get(name, (-math.inf, b""))
        if made_at <= now - CACHED_S:
            try:
                body = gzip.compress(msgspec.json.encode(page(request.query)), 1)
            except BadRequest as error:
                return refused(str(error))
            if "cursor" not in request.query:
                self._cached[name] = (now, body)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Date": formatdate(now, usegmt=True)}
        return web.Response(body=body, headers=headers)


def paged(data: list[dict[str, Any]], limit: int, cursor: str | None) -> dict[str, Any]:
    """Return a page as version 2 of the Data API wraps it."""
    pagination: dict[str, Any] = {"limit": limit, "offset": 0, "has_more": cursor is not None}
    return {"data": data, "pagination": pagination | ({"next_cursor": cursor} if cursor else {})}


def wire_trade(trade: FakeTrade, market: FakeMarket) -> dict[str, Any]:
    """Return *trade* as the Data API writes it."""
    return {
        "proxy_wallet": trade.wallet,
        "side": trade.taker,
        "token_id": market.tokens[trade.side],
        "condition_id": market.condition_id,
        "size": trade.size,
        "price": trade.price,
        "timestamp": trade.timestamp,
        "title": market.question,
        "slug": market.slug,
        "icon": "",
        "event_slug": market.event_slug,
        "outcome": market.outcomes[trade.side],
        "outcome_index": trade.outcome_index,
        "name": "pup1",
        "pseudonym": "Grand-Reasoning",
        "bio": "",
        "profile_image": "",
        "profile_image_optimized": "",
        "transaction_hash": trade.transaction_hash,
    }
