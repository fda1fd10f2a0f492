"""A Polymarket and an X on loopback: their behaviour, their quirks, their limits, and faults on demand.

As a command it runs another command against itself, so that anyone without a network sees the collector work:

    python tests/fake_polymarket.py --markets 1000 --latency-ms 80 async-collector --min-volume 0
    python tests/fake_polymarket.py --event who-wins-the-cup async-collector --event who-wins-the-cup

For tests it is a server to be started with `async with FakePolymarket(...)`. Everything follows from the seed, and
`FakePolymarket.markets` is the truth that stored rows are compared with. What a test may script, in six groups:

- markets, events and series: `add_market`, `add_event`, `add_windows`, `close`, `reopen`, `remove`, `change`
- books: `move_books`, `deepen`, and of each market `digits`, `bids_no` and `asks_no`, `book_changes`
- one answer that fails: `fail_next`
- an exchange that is odd all the time: the attributes of `Oddities`, and `swap_sides` and `replace` for one market
- the market channel: `live`, a `FakeChannel` (`fake_live.py`)
- posts on X: `say`, and the attributes of `FakeX` (`fake_x.py`)
- past prices and trades: `data`, a `FakeDataApi` (`fake_data_api.py`)
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import bisect
import gzip
import hashlib
import heapq
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Self

import msgspec
from aiohttp import web
from fake_data_api import FakeDataApi
from fake_live import FakeChannel
from fake_x import FakeX, chatter, compressed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from multidict import MultiMapping

PAGE_SIZE = 100
MAX_TOKENS = 500
MAX_URL = 8_000
MAX_RENDERED = 20_000  # sides of books that are kept as bytes
SORT_FIELDS = {"id", "volume24hr", "volumeNum", "liquidityNum", "endDate", "startDate"}
EVENT_SORT_FIELDS = {"id", "volume24hr", "volume", "liquidity", "endDate", "startDate"}
DAY_S = 86_400
FIRST_NUMBER = 500_000  # ids are above
UNDATED = 1_999  # of so many markets in a row one has no start date: the tenth, and so on
# per sliding 10 s: https://docs.polymarket.com/api-reference/rate-limits
DOCUMENTED_LIMITS = {
    "/gamma/markets": 300,
    "/clob/books": 500,
    "/clob/book": 1500,
    "/data/v2/prices-history": 200,
    "/data/v2/trades": 300,
}
LIMIT_WINDOW_S = 10.0

WORDS = (
    "the market will resolve to yes if a credible report confirms that this event happened before noon eastern time "
    "otherwise it resolves to no primary source consensus of reporting official information from election season "
    "championship price close candle bitcoin ethereum president senate league final quarter earnings rate decision"
).split()
TOPICS = (
    ("Sports", "Games", "NBA"),
    ("Crypto", "Crypto Prices", "Bitcoin"),
    ("Trump", "Politics", "Senate"),
    ("Fed Rates", "Economy"),
    ("OpenAI", "Tech"),
    ("Music", "Culture"),
    ("Weekly",),
)
TAG_IDS = {label: 101 + number for number, label in enumerate(sorted({label for topic in TOPICS for label in topic}))}
OUTCOMES = (("Yes", "No"),) * 7 + (("Up", "Down"), ("Over", "Under"), ("Lakers", "Celtics"))

Levels = tuple[tuple[str, str], ...]  # (price, size), both as they are sent
SortKey = tuple[float, float]  # the value of the field that a listing is ordered by, and the market's id


@lru_cache(maxsize=MAX_RENDERED)
def highest(levels: Levels) -> tuple[str, str] | None:
    """Return the level of the highest price."""
    return max(levels, key=lambda level: float(level[0]), default=None)


@lru_cache(maxsize=MAX_RENDERED)
def lowest(levels: Levels) -> tuple[str, str] | None:
    """Return the level of the lowest price."""
    return min(levels, key=lambda level: float(level[0]), default=None)


@dataclass(slots=True)
class FakeMarket:
    """The truth on one market."""

    number: int  # Gamma's id
    condition_id: str
    tokens: tuple[str, str]
    outcomes: tuple[str, str]
    question: str
    slug: str
    event_slug: str
    description: str
    tags: tuple[str, ...]
    start_date: str | None
    end_date: str | None
    volume_24h: float | None
    liquidity: float | None
    last_trade: str  # "" before the first trade
    book_ms: int
    bids: Levels  # of YES, best last; NO mirrors it
    asks: Levels
    bids_no: Levels | None = None  # of NO, where they are not the mirror of YES
    asks_no: Levels | None = None
    digits: str = "plain"  # how the books write numbers; see DIGITS
    book_changes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})  # keys to overwrite in the book of YES, of NO
    still: tuple[Levels, Levels] | None = None  # bids and asks before they were first moved
    moves: int = 0  # which variant of `still` the book is
    has_books: bool = True
    active: bool = True
    closed: bool = False
    accepting_orders: bool = True
    gamma_price: float | None = 0.5  # outcomePrices[0]; None leaves the key out
    closed_time: str | None = None
    event_start: str | None = None  # of a window: when the time begins that it is about
    on_clob: bool = True  # whether the CLOB knows it
    winner: int | None = None  # the side that the CLOB says has won
    changes: dict[str, Any] = field(default_factory=dict)  # keys to overwrite in Gamma's answer
    without: tuple[str, ...] = ()  # keys to leave out of Gamma's answer

    @property
    def id(self) -> str:
        """Gamma's id, as it is sent."""
        return str(self.number)

    @property
    def best_bid(self) -> tuple[str, str] | None:
        """Price and size of the highest bid for YES."""
        return highest(self.bids)

    @property
    def best_ask(self) -> tuple[str, str] | None:
        """Price and size of the lowest ask for YES."""
        return lowest(self.asks)


@dataclass(frozen=True, slots=True)
class FakeEvent:
    """The truth on one event; its markets are those with its slug."""

    number: int
    slug: str
    title: str
    tags: tuple[str, ...]
    series: str | None = None  # the slug of the series

    @property
    def id(self) -> str:
        """Gamma's id, as it is sent."""
        return str(self.number)


@dataclass(frozen=True, slots=True)
class FakeSeries:
    """The truth on a series of events."""

    number: int
    slug: str
    title: str
    recurrence: str

    @property
    def id(self) -> str:
        """Gamma's id, as it is sent."""
        return str(self.number)


@cache
def complement(price: str) -> str:
    """Return 1 - *price* exactly, with as many digits; what is no number is its own complement."""
    try:
        return str(1 - Decimal(price))
    except InvalidOperation:
        return price


def mirrored(levels: Levels) -> Levels:
    """Return the other token's side: whoever bids p for YES asks 1 - p for NO."""
    return tuple((complement(price), size) for price, size in levels)


@cache
def varied(levels: Levels, move: int) -> Levels:
    """Return *levels* with other sizes at the best three prices, and in odd moves without the best one.

    Two different moves of the same levels never give the same; move 0 changes nothing.
    """
    if not levels or not move:
        return levels
    top = [(price, str(Decimal(size) + Decimal(move) / 100)) for price, size in levels[-3:]]
    return (*levels[:-3], *(top[:-1] if move % 2 and len(levels) > 3 else top))


@cache
def shifted(levels: Levels, cents: Decimal) -> Levels:
    """Return *levels* at prices that are higher by *cents*, without those that no book may have."""
    moved = ((Decimal(price) + cents / 100, size) for price, size in levels)
    return tuple((str(price), size) for price, size in moved if 0 < price < 1)


def padded(number: str, digits: int) -> str:
    """Return *number* with at least so many digits after the point."""
    whole, _, part = number.partition(".")
    return f"{whole}.{part:0<{digits}}"


def dotted(number: str) -> str:
    """Return *number* without a lone zero before the point."""
    return number[1:] if number.startswith("0.") else number


DIGITS: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "plain": lambda price, size: (price, size),
    "padded": lambda price, size: (padded(price, 4), padded(size, 2)),
    "dotted": lambda price, size: (dotted(price), dotted(size)),
}


@lru_cache(maxsize=MAX_RENDERED)
def rendered(levels: Levels, digits: str, *, mirror: bool) -> msgspec.Raw:
    """Return one side of a book as bytes, which many markets share, also of other exchanges in this process."""
    shown = mirrored(levels) if mirror else levels
    rows = [dict(zip(("price", "size"), DIGITS[digits](*level), strict=True)) for level in shown]
    return msgspec.Raw(msgspec.json.encode(rows))


@cache
def shared_parts(seed: int) -> tuple[list[str], list[tuple[Levels, Levels]]]:
    """Return texts and books (bids, asks) that markets share, so that 150,000 of them are made in seconds."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=60 + 2 * number)) + ".\n\nIt's “final”." for number in range(64)]
    return texts, [made_book(rng, middle) for middle in range(1, 1000, 2)]


def deep_side(rng: random.Random, ticks: Iterable[int]) -> Levels:
    """Return a level for each of *ticks* of 0.0001, in their order."""
    return tuple((f"{tick / 10_000:.4f}", f"{rng.randrange(5, 10**7) / 100:g}") for tick in ticks)


def made_book(rng: random.Random, middle: int) -> tuple[Levels, Levels]:
    """Return bids and asks around *middle* thousandths, the best level last as the exchange sends them."""
    depth = rng.randrange(30, 60)
    bids = range(middle - rng.randrange(1, 4), 0, -1)[:depth]
    asks = range(middle + rng.randrange(3), 1000)[:depth]

    def levels(prices: range) -> Levels:
        return tuple((f"{p / 1000:.3f}", f"{rng.randrange(5, 10**7) / 100:g}") for p in reversed(prices))

    return levels(bids), levels(asks)


def started(number: int) -> datetime:
    """Return about when market *number* starts: later than those before it, and most of them lately."""
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=50 * math.log1p((number - FIRST_NUMBER) / 1_000))


class Maker:
    """Makes markets from a seed."""

    def __init__(self, seed: int) -> None:
        """Begin at the beginning of what *seed* gives."""
        self._rng = random.Random(seed)
        self._texts, self._books = shared_parts(seed)

    def market(self, number: int) -> FakeMarket:
        """Return a market of id *number*, odd in one of the ways in which real ones are."""
        rng = self._rng
        bids, asks = rng.choice(self._books)
        kind = rng.random()
        if kind < 0.06:
            bids = ()
        elif kind < 0.1:
            asks = ()
        elif kind < 0.12:
            bids, asks = (), ()
        start = started(number) + timedelta(seconds=rng.randrange(3600))
        new = kind > 0.92
        slug = f"will-{rng.choice(WORDS)}-{rng.choice(WORDS)}-{number}"
        market = FakeMarket(
            number=number,
            condition_id=f"0x{rng.getrandbits(256):064x}",
            tokens=(str(rng.getrandbits(255) + 2**254), str(rng.getrandbits(255) + 2**254)),
            outcomes=rng.choice(OUTCOMES),
            question=f"Will {rng.choice(WORDS)} {rng.choice(WORDS)} {rng.choice(WORDS)} happen by day {number}?",
            slug=slug,
            event_slug=f"event-{number // 3}",
            description=rng.choice(self._texts),
            tags=rng.choice(TOPICS),
            start_date=f"{start:%Y-%m-%dT%H:%M:%S}{rng.choice(('', '.9', '.987', '.987654'))}Z",
            end_date=None if kind > 0.99 else f"{start + timedelta(days=200):%Y-%m-%dT%H:%M:%SZ}",
            volume_24h=None if new else round(math.exp(rng.uniform(0, 16)), 6),
            liquidity=None if new else round(math.exp(rng.uniform(2, 14)), 5),
            last_trade="" if new else f"{rng.randrange(1, 1000) / 1000:.3f}",
            book_ms=1_790_000_000_000 + rng.randrange(10**9),
            bids=bids,
            asks=asks,
        )
        if number % UNDATED == (FIRST_NUMBER + 30) % UNDATED:
            market.start_date = None
        bid, ask = market.best_bid, market.best_ask
        price = ((float(bid[0]) if bid else 0) + (float(ask[0]) if ask else 1)) / 2
        market.gamma_price = round(price if kind < 0.8 else price / 2, 6)  # Gamma's can be five minutes old
        return market


@dataclass(slots=True)
class Fault:
    """What happens to the next requests for a path instead of an answer."""

    status: int = 200
    times: float = 1  # math.inf: for ever
    body: bytes | None = None  # None: the documented body of the status, or the true answer of a 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang: bool = False  # never answer
    disconnect: bool = False  # close the connection without an answer
    cut: bool = False  # promise the whole answer, send half of it
    mutate: Callable[[Any], Any] | None = None  # change the decoded true answer


@dataclass(slots=True)
class Arrival:
    """A request as the server saw it."""

    path: str
    query: str
    time: float  # monotonic
    tokens: int = 0  # asked for, where there are any
    status: int = 0  # of the answer; 0 until there is one


ARRIVAL = web.RequestKey("arrival", Arrival)
VARIANTS = 16  # of a book that moves
DRIFTING = 100  # markets whose prices move; each has 13 books


@dataclass(slots=True)
class Oddities:
    """What an exchange may do all the time; the defaults are what the real one does."""

    page_size: int = PAGE_SIZE  # what larger limits are cut to
    ids_page_size: int | None = None  # the same, for questions that name ids
    cursor_key: str | None = "next_cursor"  # None: no page leads to another
    withheld: int = 0  # elements at the end of each full page that are not sent, though its cursor has passed them
    empty_page: int | None = None  # the page of this number, from 1, is empty
    empty_page_leads_on: bool = True  # whether that page names the next one
    forgets_cursors: bool = False  # a cursor is answered with the first page, as a wrong name for it is
    refused_orders: frozenset[str] = frozenset()  # orders that are answered with 422
    ignores_start_dates: bool = False  # whether start_date_min and start_date_max filter nothing
    drops_undated: bool = False  # whether the order by startDate leaves out the markets that have none
    waver: float = 0.0  # how far, as a share, the volume that a listing is ordered by is off the volume it shows
    most_tokens: int = MAX_TOKENS  # in one request for books; more is a 400
    tokens_in_time: int = MAX_TOKENS  # more books than this are not found in time: 504
    poisoned: dict[str, int] = field(default_factory=dict)  # token or Gamma id: status of each question that names it
    headers: dict[str, str] = field(default_factory=dict)  # of every answer, as a network in between adds them
    moving_share: float = 0.0  # of the books, before each collection: at a listing's first page after some books


class FakePolymarket(FakeX):
    """The exchange on loopback: Gamma under /gamma, the CLOB under /clob, and X under /x.

    Args:
        markets: how many open markets there are at the start.
        seed: everything follows from it.
        latency_s: before each answer.
        limits: requests per path prefix and time; more get a 429.
        limit_window_s: the time for `limits`; any time of this length counts.
        placeholders: how many markets that never opened are listed among them.
        now: the exchange's time, Unix; windows close by it.
    """

    def __init__(
        self,
        markets: int = 60,
        *,
        seed: int = 1,
        latency_s: float = 0.0,
        limits: Mapping[str, int] | None = None,
        limit_window_s: float = LIMIT_WINDOW_S,
        placeholders: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make the markets; nothing listens yet."""
        super().__init__()
        self._maker = Maker(seed)
        self.latency_s = latency_s
        self.limits = dict(limits or {})
        self.limit_window_s = limit_window_s
        self.now = now
        self.data = FakeDataApi(self._find, lambda: self.now())  # noqa: PLW0108  a test may set another clock
        self.live = FakeChannel(self)
        self.odd = Oddities()
        self.events: dict[str, FakeEvent] = {}  # by slug, those that were added; other markets have one in threes
        self.series: dict[str, FakeSeries] = {}  # by slug
        self.markets: dict[str, FakeMarket] = {}
        self._by_token: dict[str, tuple[FakeMarket, int]] = {}
        self.arrivals: list[Arrival] = []
        self._arrived = asyncio.Event()
        self.in_flight = 0
        self.most_in_flight = 0
        self.unknown: list[str] = []  # requests that the real exchange does not have, and our own bugs
        self._faults: dict[str, deque[Fault]] = {}
        self._windows: dict[str, deque[float]] = {}
        self._sorted: dict[tuple[str, str, str], tuple[list[SortKey], list[FakeMarket]]] = {}
        self._pages: dict[str, bytes] = {}
        self._rendered_markets: dict[tuple[str, bool], msgspec.Raw] = {}  # by id, and whether with tags
        self._rendered_books: dict[str, bytes] = {}  # by token
        self._names: dict[str, dict[str, list[FakeMarket]]] = {}  # attribute, its value, the markets that have it
        self._tag_ids = dict(TAG_IDS)
        self._closing: list[tuple[float, int]] = []  # a heap: when a window closes, and its id
        self._rng = random.Random(seed + 1)
        self._books_were_sent = False  # since the books last moved
        self.drift: random.Random | None = None  # lets the prices of the most traded markets move likewise
        self._before_drift: dict[str, tuple[Levels, Levels, float | None]] = {}  # bids, asks and price by market
        self._next_number = FIRST_NUMBER
        self._numbers = itertools.count(900_000)  # of events and series
        self._runner: web.AppRunner | None = None
        self.url = ""
        for _ in range(markets):
            self.add_market()
        for _ in range(placeholders):
            self.add_market(active=False, gamma_price=None, has_books=False, volume_24h=None)

    # --- the script of a test

    def add_market(self, **changes: Any) -> FakeMarket:  # noqa: ANN401
        """Open a new market; ids grow with time."""
        self._next_number += 1 + self._next_number % 3
        market = self._maker.market(self._next_number)
        self.markets[market.id] = market
        self.change(market, **({"tokens": market.tokens} | changes))
        return market

    def add_event(
        self,
        slug: str,
        /,
        markets: int = 1,
        *,
        tags: tuple[str, ...] = ("Politics", "Elections"),
        series: str | None = None,
        **changes: Any,  # noqa: ANN401
    ) -> FakeEvent:
        """Open an event of so many new markets, each with *changes*; *series* is made if there is none of that slug."""
        if series is not None and series not in self.series:
            title, _, recurrence = series.rpartition("-")
            self.series[series] = FakeSeries(next(self._numbers), series, title.replace("-", " ").title(), recurrence)
        event = FakeEvent(next(self._numbers), slug, f"{slug.replace('-', ' ').capitalize()}?", tags, series)
        self.events[slug] = event
        for _ in range(markets):
            self.add_market(**{"event_slug": slug, "tags": tags, **changes})
        return event

    def add_windows(
        self, series: str, first_end: float, count: int, minutes: float = 5, *, lag_s: float = 30
    ) -> list[FakeMarket]:
        """Open *count* windows of a series, the first of which ends at *first_end* (Unix time), the others after it.

        All are open at once, as the exchange lists a day of them ahead. Each is an event of one market, and closes
        *lag_s* after its end by the exchange's own time.
        """
        windows = []
        for number in range(count):
            end = first_end + number * minutes * 60
            slug = f"{series}-{end - minutes * 60:.0f}"
            event = self.add_event(
                slug,
                tags=("Hide From New", "Recurring", "Up or Down", "Crypto Prices", "Bitcoin"),
                series=series,
                slug=slug,
                outcomes=("Up", "Down"),
                start_date=rfc3339(end - DAY_S - minutes * 60),
                event_start=rfc3339(end - minutes * 60),
                end_date=rfc3339(end),
                active=True,
            )
            (market,) = self.markets_of(event)
            heapq.heappush(self._closing, (end + lag_s, market.number))
            windows.append(market)
        return windows

    def markets_of(self, event: FakeEvent) -> list[FakeMarket]:
        """Return the markets of *event*, open and closed."""
        return self._named("event_slug").get(event.slug, [])

    def close(self, market: FakeMarket, *prices: str, **changes: Any) -> None:  # noqa: ANN401
        """Close *market* with *prices* as Gamma writes them."""
        changes["changes"] = market.changes | {"outcomePrices": json.dumps(prices)}
        self.change(market, closed=True, closed_time="2026-11-22 14:20:04+00", **changes)

    def reopen(self, market: FakeMarket, **changes: Any) -> None:  # noqa: ANN401
        """Take back that *market* has closed."""
        said = {key: value for key, value in market.changes.items() if key != "outcomePrices"}
        self.change(market, closed=False, closed_time=None, changes=said, **changes)

    def swap_sides(self, market: FakeMarket) -> None:
        """Name the same outcomes, tokens, prices and books in the other order."""
        self.change(
            market,
            tokens=market.tokens[::-1],
            outcomes=market.outcomes[::-1],
            gamma_price=None if market.gamma_price is None else round(1 - market.gamma_price, 6),
            last_trade=complement(market.last_trade),
            bids=mirrored(market.asks),
            asks=mirrored(market.bids),
            winner=None if market.winner is None else 1 - market.winner,
        )

    def replace(self, market: FakeMarket, *names: str) -> None:
        """Put another market's *names* (condition_id, tokens, question ...) under the id of *market*."""
        other = self._maker.market(market.number)
        self.change(market, **{name: getattr(other, name) for name in names})

    def deepen(self, market: FakeMarket, levels: int = 500) -> None:
        """Give *market* a book with so many levels on each side, 4,999 at most."""
        bids = deep_side(self._rng, range(5_000 - levels, 5_000))
        self.change(market, bids=bids, asks=deep_side(self._rng, range(5_000 + levels, 5_000, -1)))

    def move_books(self, share: float) -> list[FakeMarket]:
        """Change exactly that share of the books, rounded to whole ones, and return their markets.

        A few levels at the top change, in all books of NO that mirror YES as well. A book that was never set by hand
        comes in `VARIANTS` variants: it may be again what it was two moves before, and never what it was before.
        """
        there = [market for market in self.markets.values() if market.active and market.has_books and not market.closed]
        moved = self._rng.sample(there, round(share * len(there)))
        for market in moved:
            market.still = bids, asks = market.still or (market.bids, market.asks)
            market.moves = (market.moves + self._rng.randrange(1, VARIANTS)) % VARIANTS
            market.bids = varied(bids, market.moves) or self._lone_bid(market)
            market.asks = varied(asks, market.moves)
            market.book_ms = max(market.book_ms + 1, int(self.now() * 1000))
        self._forget()
        return moved

    def move_prices(self, chance: random.Random) -> None:
        """Move the prices of the 100 most traded two-sided markets by up to three cents from where they began."""
        two_sided = (m for m in self.markets.values() if m.active and not m.closed and m.bids and m.asks)
        for market in heapq.nlargest(DRIFTING, two_sided, key=lambda market: market.volume_24h or 0):
            first = self._before_drift.setdefault(market.id, (market.bids, market.asks, market.gamma_price))
            cents = Decimal(max(-6, min(6, round(chance.gauss(0, 2))))) / 2
            bids, asks, price = shifted(first[0], cents), shifted(first[1], cents), first[2]
            if bids and asks:
                price = None if price is None else min(1.0, max(0.0, round(price + float(cents) / 100, 6)))
                book_ms = max(market.book_ms + 1, int(self.now() * 1000))
                self.change(market, bids=bids, asks=asks, gamma_price=price, book_ms=book_ms)

    @staticmethod
    def _lone_bid(market: FakeMarket) -> Levels:
        """Return what a book that was empty on both sides has after a move."""
        return (("0.001", str(5 + market.moves)),) if market.moves and not market.asks else ()

    def _find(self, name: str) -> tuple[FakeMarket, int] | None:
        """Return the market of a token or of a condition, and the side of the token."""
        market = next(iter(self._named("condition_id").get(name, ())), None)
        return (market, 0) if market else self._by_token.get(name)

    def remove(self, market: FakeMarket) -> None:
        """Let *market* disappear without a trace."""
        del self.markets[market.id]
        self.change(market)

    def change(self, market: FakeMarket, **changes: Any) -> None:  # noqa: ANN401
        """Set attributes of *market*, and forget what was rendered."""
        if "tokens" in changes:
            for token in market.tokens:
                self._by_token.pop(token, None)
        for name, value in changes.items():
            setattr(market, name, value)
        if not {"bids", "asks"}.isdisjoint(changes):
            market.still = None
        for side, token in enumerate(changes.get("tokens", ())):
            self._by_token[token] = (market, side)
        self._forget()

    def _forget(self) -> None:
        self._sorted.clear()
        self._pages.clear()
        self._names.clear()
        self._rendered_markets.clear()
        self._rendered_books.clear()

    def fail_next(self, path: str, **fault: Any) -> None:  # noqa: ANN401
        """Let the next requests whose path ends with *path* fail; see `Fault`. *retry_after* sets that header."""
        if (retry_after := fault.pop("retry_after", None)) is not None:
            fault["headers"] = {"Retry-After": str(retry_after)}
        self._faults.setdefault(path, deque()).append(Fault(**fault))

    def heal(self) -> None:
        """Forget the faults that are still to come."""
        self._faults.clear()

    @property
    def refused(self) -> int:
        """How many requests came too fast."""
        return sum(arrival.status == 429 for arrival in self.arrivals)

    async def until_asked(self, path: str, times: int = 1) -> None:
        """Wait until *path* has been asked for so often."""
        while len(self.asked(path)) < times:
            self._arrived.clear()
            await self._arrived.wait()

    def asked(self, path: str) -> list[Arrival]:
        """Return the requests for *path* so far."""
        return [arrival for arrival in self.arrivals if arrival.path.endswith(path)]

    def busiest(self, path: str, window_s: float) -> int:
        """Return how many requests for *path* arrived at most within any *window_s* seconds."""
        times = sorted(arrival.time for arrival in self.asked(path))
        return max((bisect.bisect_left(times, start + window_s) - n for n, start in enumerate(times)), default=0)

    # --- life

    async def __aenter__(self) -> Self:
        """Listen on a free port of 127.0.0.1."""
        app = web.Application(middlewares=[self._middleware], client_max_size=2**20)
        app.router.add_get("/gamma/markets/keyset", self._markets_page)
        app.router.add_get("/gamma/markets/slug/{slug}", self._one_market)
        app.router.add_get("/gamma/markets/{id}", self._one_market)
        app.router.add_get("/gamma/events/keyset", self._events_page)
        app.router.add_get("/gamma/events/slug/{slug}", self._one_event)
        app.router.add_get("/gamma/events/{id}", self._one_event)
        app.router.add_get("/gamma/series", self._series)
        app.router.add_get("/gamma/tags/slug/{slug}", self._tag)
        app.router.add_get("/clob/book", self._book)
        app.router.add_get("/clob/markets/{condition_id}", self._clob_market)
        app.router.add_post("/clob/books", self._books)
        app.router.add_get("/x/2/tweets/search/recent", self.search)
        app.router.add_get("/data/v2/prices-history", self.data.prices_history)
        app.router.add_get("/data/v2/trades", self.data.trades)
        app.router.add_get("/ws/market", self.live.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a collector here."""
        return {
            "GAMMA_API": f"{self.url}/gamma",
            "CLOB_API": f"{self.url}/clob",
            "DATA_API": f"{self.url}/data",
            "CLOB_WS": f"{self.url.replace('http', 'ws', 1)}/ws/market",
            "TWITTER_API": f"{self.url}/x",
            "TWITTER_BEARER_TOKEN": self.token if self.posts else "",
            "NO_PROXY": "127.0.0.1",
        }

    # --- every request

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        arrival = Arrival(request.path, request.query_string, time.monotonic())
        self.arrivals.append(arrival)
        self._arrived.set()
        request[ARRIVAL] = arrival
        self._let_time_pass(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            response = await self._respond(request, handler)
            arrival.status = response.status
            if not response.prepared:
                response.headers.update(self.odd.headers)
            if self.latency_s:
                await asyncio.sleep(arrival.time + self.latency_s - time.monotonic())
        finally:
            self.in_flight -= 1
        return response

    def _let_time_pass(self, request: web.Request) -> None:
        """Close the windows that are over, and move books if a collection begins with *request*."""
        while self._closing and self._closing[0][0] <= self.now():
            closes, number = heapq.heappop(self._closing)
            if market := self.markets.get(str(number)):
                up = number % 2 == 0
                self.close(market, *(("1", "0") if up else ("0", "1")), winner=0 if up else 1)
                market.closed_time = f"{datetime.fromtimestamp(closes, UTC):%Y-%m-%d %H:%M:%S}+00"
        if request.path.endswith("/books"):
            self._books_were_sent = True
        begins = request.path.endswith("/keyset") and {"after_cursor", "id"}.isdisjoint(request.query)
        if begins and self._books_were_sent:
            self._books_were_sent = False
            if self.odd.moving_share:
                self.move_books(self.odd.moving_share)
            if self.drift and not self.live.listeners:  # who follows changes hears of every one
                self.move_prices(self.drift)

    async def _compressed(self, body: bytes) -> web.Response:
        """Return the answer *body*; while others wait for their latency, it is compressed beside them."""
        return await asyncio.to_thread(compressed, body) if self.latency_s else compressed(body)

    async def _respond(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        fault = self._fault_for(request.path)
        if not self._admit(request.path, request[ARRIVAL].time):
            return problem(429, {"error": "Too Many Requests"})
        if fault:
            return await self._failing(fault, request, handler)
        return await self._answer(request, handler)

    async def _answer(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.Response:
        if len(request.path_qs) > MAX_URL:
            return web.Response(status=414)
        try:
            response: web.Response = await handler(request)
        except ConnectionError:  # whoever asked has gone
            raise
        except Exception as error:
            self.unknown.append(f"{request.method} {request.path_qs}: {error!r}")
            raise
        return response

    def _admit(self, path: str, now: float) -> bool:
        for prefix, limit in self.limits.items():
            if path == prefix or path.startswith(prefix + "/"):
                window = self._windows.setdefault(prefix, deque())
                while window and window[0] <= now - self.limit_window_s:
                    window.popleft()
                if len(window) >= limit:
                    return False
                window.append(now)
        return True

    def _fault_for(self, path: str) -> Fault | None:
        for suffix, faults in self._faults.items():
            if path.endswith(suffix) and faults:
                fault = faults[0]
                fault.times -= 1
                if fault.times <= 0:
                    faults.popleft()
                return fault
        return None

    async def _failing(
        self, fault: Fault, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        await asyncio.sleep(fault.delay_s)
        if fault.hang:
            await asyncio.sleep(3600)
        if fault.disconnect and request.transport:
            request.transport.close()
        if fault.body is not None:
            return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        if fault.status != 200:
            error = {"error": "Too Many Requests"} if fault.status == 429 else {"error": "scripted"}
            return problem(fault.status, error, fault.headers)
        response = await self._answer(request, handler)
        body = gzip.decompress(response.body) if isinstance(response.body, bytes) else b""
        if fault.mutate:
            return web.Response(body=msgspec.json.encode(fault.mutate(msgspec.json.decode(body))))
        if fault.cut:
            half = web.StreamResponse(headers={"Content-Length": str(len(body)), "Content-Type": "application/json"})
            await half.prepare(request)
            await half.write(body[: len(body) // 2])
            if request.transport:
                request.transport.close()
            return half
        return response

    # --- Gamma

    async def _markets_page(self, request: web.Request) -> web.Response:
        return await self._page_response(request, SORT_FIELDS, self._render_markets)

    async def _events_page(self, request: web.Request) -> web.Response:
        return await self._page_response(request, EVENT_SORT_FIELDS, self._render_events)

    async def _page_response(
        self, request: web.Request, orders: set[str], render: Callable[[MultiMapping[str], SortKey | None], bytes]
    ) -> web.Response:
        query = request.query
        if "offset" in query:
            return problem(422, {"type": "validation error", "error": "offset is not allowed on keyset endpoints"})
        for id_ in query.getall("id", []):
            if status := self.odd.poisoned.get(id_):
                return problem(status, {"type": "internal error", "error": "cannot get the information"})
        if query.get("order", "id") not in orders - self.odd.refused_orders:
            return problem(422, {"type": "validation error", "error": "order fields are not valid"})
        try:
            after = decoded_cursor(query["after_cursor"]) if "after_cursor" in query else None
            after = None if self.odd.forgets_cursors else after
        except ValueError:
            return problem(422, {"type": "validation error", "error": "invalid cursor"})
        name = f"{request.path_qs} {self.odd}"
        if name not in self._pages:
            self._pages[name] = render(query, after)
        return await self._compressed(self._pages[name])

    def _render_markets(self, query: MultiMapping[str], after: SortKey | None) -> bytes:
        keys, markets = self._listing(query)
        with_tags = query.get("include_tag") == "true"
        place, cursor = self._page(keys, query, after)
        shown = [self._rendered_market(market, with_tags=with_tags) for market in markets[place]]
        return msgspec.json.encode({"markets": shown} | cursor)

    def _rendered_market(self, market: FakeMarket, *, with_tags: bool) -> msgspec.Raw:
        name = (market.id, with_tags)
        if name not in self._rendered_markets:
            answer = self.gamma_market(market, with_tags=with_tags)
            self._rendered_markets[name] = msgspec.Raw(msgspec.json.encode(answer))
        return self._rendered_markets[name]

    def render(self) -> None:
        """Render every market and every book before they are asked for."""
        for market in self.markets.values():
            self._rendered_market(market, with_tags=True)
            for token in market.tokens:
                self.book(token)

    def _render_events(self, query: MultiMapping[str], after: SortKey | None) -> bytes:
        order, ascending = query.get("order", "id"), query.get("ascending", "true") == "true"
        rows = [
            (sort_key(self._event_value(event, order), event.number, ascending), event) for event in self._chosen(query)
        ]
        rows.sort(key=lambda row: row[0])
        place, cursor = self._page([key for key, _ in rows], query, after)
        return msgspec.json.encode({"events": [self.gamma_event(event) for _, event in rows[place]]} | cursor)

    def _page(
        self, keys: Sequence[SortKey], query: MultiMapping[str], after: SortKey | None
    ) -> tuple[slice, dict[str, str]]:
        """Return which of the elements with *keys* a page shows, and the key that leads to the next page, if any."""
        odd = self.odd
        at_most = odd.ids_page_size if odd.ids_page_size and "id" in query else odd.page_size
        limit = min(int(query.get("limit", 20)), at_most)
        first = bisect.bisect_right(keys, after) if after else 0
        shown = slice(first, first + limit)
        cursor = {}
        if first + limit <= len(keys):  # only a full page leads to another
            if odd.cursor_key:
                cursor = {odd.cursor_key: encoded_cursor(keys[first + limit - 1])}
            shown = slice(first, first + max(limit - odd.withheld, 1))
        if odd.empty_page == first // limit + 1:
            return slice(0, 0), cursor if odd.empty_page_leads_on else {}
        return shown, cursor

    def _listing(self, query: MultiMapping[str]) -> tuple[list[SortKey], list[FakeMarket]]:
        """Return the sort keys and the markets that *query* is about; whole listings are kept."""
        order, ascending, closed = (
            query.get("order", "id"),
            query.get("ascending", "true"),
            query.get("closed", "false"),
        )
        chosen = self._filtered(query)
        if chosen is None:
            name = (order, ascending, closed)
            if name not in self._sorted:
                self._sorted[name] = self._in_order(self.markets.values(), *name)
            keys, markets = self._sorted[name]
        else:
            keys, markets = self._in_order(chosen, order, ascending, closed)
        if order == "startDate" and not self.odd.ignores_start_dates:
            place = dated(keys, query, ascending=ascending == "true")
            return keys[place], markets[place]
        return keys, markets

    def _in_order(
        self, markets: Iterable[FakeMarket], order: str, ascending: str, closed: str
    ) -> tuple[list[SortKey], list[FakeMarket]]:
        rows = sorted(
            (sort_key(self._value(market, order), market.number, ascending == "true"), market.number)
            for market in markets
            if market.closed == (closed == "true")
            and not (order == "startDate" and self.odd.drops_undated and unix_time(market.start_date) is None)
        )
        return [key for key, _ in rows], [self.markets[str(number)] for _, number in rows]

    def _filtered(self, query: MultiMapping[str]) -> list[FakeMarket] | None:
        """Return the markets that the filters of *query* leave, open and closed; None if there is no filter."""
        found: list[FakeMarket] | None = None
        for parameter, name in (("id", "id"), ("slug", "slug"), ("condition_ids", "condition_id")):
            if wanted := set(query.getall(parameter, [])):
                index = self.markets if name == "id" else self._named(name)
                named = itertools.chain.from_iterable(as_list(index.get(value)) for value in wanted)
                found = [market for market in named if found is None or market in found]
        if tags := set(query.getall("tag_id", [])):
            labels = {label for label, number in self._tag_ids.items() if str(number) in tags}
            found = [market for market in self._candidates(found) if not labels.isdisjoint(market.tags)]
        if is_in_time := time_filter(query, "end_date"):
            found = [market for market in self._candidates(found) if is_in_time(market.end_date)]
        by_start = query.get("order") == "startDate"  # then it is a part of the listing, which is cut out of it
        has_started = None if by_start or self.odd.ignores_start_dates else time_filter(query, "start_date")
        if has_started:
            found = [market for market in self._candidates(found) if has_started(market.start_date)]
        return found

    def _candidates(self, found: list[FakeMarket] | None) -> Iterable[FakeMarket]:
        return self.markets.values() if found is None else found

    def _named(self, name: str) -> dict[str, list[FakeMarket]]:
        """Return the markets by their attribute *name*."""
        if name not in self._names:
            index: dict[str, list[FakeMarket]] = {}
            for market in self.markets.values():
                index.setdefault(getattr(market, name), []).append(market)
            self._names[name] = index
        return self._names[name]

    def _value(self, market: FakeMarket, order: str) -> float:
        """Return what a listing in *order* has *market* under."""
        if order == "id":
            return float(market.number)
        if order in {"endDate", "startDate"}:  # without a date: last if it ascends, first if it descends
            date = unix_time(market.end_date if order == "endDate" else market.start_date)
            return math.inf if date is None else date
        if order == "liquidityNum":
            return market.liquidity or 0.0
        off = random.Random(market.number).uniform(-self.odd.waver, self.odd.waver) if self.odd.waver else 0.0
        return (market.volume_24h or 0.0) * (1 + off)

    # --- Gamma's events, series and tags

    def _event_of(self, market: FakeMarket) -> FakeEvent:
        """Return the event of *market*: one that was added, or the one that it shares with its neighbours."""
        event = self.events.get(market.event_slug)
        return event or FakeEvent(market.number // 3, market.event_slug, market.question, market.tags)

    def _chosen(self, query: MultiMapping[str]) -> list[FakeEvent]:
        """Return the events that *query* is about."""
        events = [self._event_of(markets[0]) for markets in self._named("event_slug").values()]
        for parameter in ("id", "slug"):
            if wanted := set(query.getall(parameter, [])):
                events = [event for event in events if getattr(event, parameter) in wanted]
        if wanted := set(query.getall("series_id", [])):
            slugs = {series.slug for series in self.series.values() if series.id in wanted}
            events = [event for event in events if event.series in slugs]
        if wanted := set(query.getall("tag_id", [])):
            labels = {label for label, number in self._tag_ids.items() if str(number) in wanted}
            events = [event for event in events if not labels.isdisjoint(event.tags)]
        if is_in_time := time_filter(query, "end_date"):
            events = [event for event in events if is_in_time(self._end_of(event))]
        closed = query.get("closed") == "true"
        return [event for event in events if self._is_closed(event) == closed]

    def _is_closed(self, event: FakeEvent) -> bool:
        return all(market.closed for market in self.markets_of(event))

    def _end_of(self, event: FakeEvent) -> str | None:
        return max((market.end_date for market in self.markets_of(event) if market.end_date), default=None)

    def _event_value(self, event: FakeEvent, order: str) -> float:
        if order == "id":
            return float(event.number)
        if order == "endDate":
            return unix_time(self._end_of(event)) or 0.0
        return sum(market.volume_24h or 0.0 for market in self.markets_of(event))

    def gamma_event(self, event: FakeEvent) -> dict[str, Any]:
        """Return *event* as Gamma writes it, with its markets, which have neither events nor tags of their own."""
        markets = self.markets_of(event)
        nested = [self.gamma_market(market, with_tags=False) for market in markets]
        answer: dict[str, Any] = {
            "id": event.id,
            "ticker": event.slug,
            "slug": event.slug,
            "title": event.title,
            "description": markets[0].description,
            "startDate": markets[0].start_date,
            "endDate": self._end_of(event),
            "active": True,
            "closed": self._is_closed(event),
            "archived": False,
            "liquidity": sum(market.liquidity or 0.0 for market in markets),
            "volume": 9 * sum(market.volume_24h or 0.0 for market in markets),
            "volume24hr": sum(market.volume_24h or 0.0 for market in markets),
            "enableOrderBook": True,
            "negRisk": False,
            "markets": [{key: value for key, value in market.items() if key != "events"} for market in nested],
            "tags": [self._gamma_tag(label) for label in event.tags],
            "series": [self._gamma_series(self.series[event.series])] if event.series else None,
        }
        return {key: value for key, value in answer.items() if value is not None}

    def rename_tag(self, label: str, new: str) -> None:
        """Give the tag *label* another label and slug; its id stays."""
        self._tag_ids[new] = self._tag_ids.pop(label)

    def tag_id(self, label: str) -> str:
        """Return the id of the tag *label*."""
        return str(self._tag_ids.setdefault(label, 101 + len(self._tag_ids)))

    def _gamma_tag(self, label: str) -> dict[str, Any]:
        return {"id": self.tag_id(label), "label": label, "slug": tag_slug(label), "forceShow": False}

    @staticmethod
    def _gamma_series(series: FakeSeries) -> dict[str, Any]:
        return {
            "id": series.id,
            "ticker": series.slug,
            "slug": series.slug,
            "title": series.title,
            "seriesType": "single",
            "recurrence": series.recurrence,
            "active": True,
            "closed": False,
        }

    async def _one_market(self, request: web.Request) -> web.Response:
        """Answer with one market, closed or not."""
        (value,) = request.match_info.values()
        market = (
            self.markets.get(value)
            if "id" in request.match_info
            else next(iter(self._named("slug").get(value, ())), None)
        )
        if market is None:
            return problem(404, NOT_FOUND)
        return compressed(msgspec.json.encode(self.gamma_market(market, with_tags=False)))

    async def _one_event(self, request: web.Request) -> web.Response:
        """Answer with one event, closed or not."""
        ((name, value),) = request.match_info.items()
        events = (self._event_of(markets[0]) for markets in self._named("event_slug").values())
        event = next((event for event in events if getattr(event, name) == value), None)
        if event is None:
            return problem(404, NOT_FOUND)
        return compressed(msgspec.json.encode(self.gamma_event(event)))

    async def _series(self, request: web.Request) -> web.Response:
        wanted = request.query.getall("slug", list(self.series))
        found = [self._gamma_series(self.series[slug]) for slug in wanted if slug in self.series]
        return compressed(msgspec.json.encode(found[: min(int(request.query.get("limit", 20)), 50)]))

    async def _tag(self, request: web.Request) -> web.Response:
        used = {label for market in self.markets.values() for label in market.tags}
        label = next((label for label in used if tag_slug(label) == request.match_info["slug"]), None)
        if label is None:
            return problem(404, NOT_FOUND)
        return compressed(msgspec.json.encode(self._gamma_tag(label)))

    def gamma_market(self, market: FakeMarket, *, with_tags: bool) -> dict[str, Any]:
        """Return *market* as Gamma writes it: JSON in strings, numbers in strings, absent keys instead of nulls."""
        bid, ask = market.best_bid, market.best_ask
        price = market.gamma_price
        event = self._event_of(market)
        answer: dict[str, Any] = {
            "id": market.id,
            "question": market.question,
            "conditionId": market.condition_id,
            "slug": market.slug,
            "resolutionSource": "",
            "endDate": market.end_date,
            "eventStartTime": market.event_start,
            "startDate": market.start_date,
            "image": f"https://polymarket-upload.s3.us-east-2.amazonaws.com/{market.slug}.png",
            "icon": f"https://polymarket-upload.s3.us-east-2.amazonaws.com/{market.slug}.png",
            "description": market.description,
            "outcomes": json.dumps(market.outcomes),
            "outcomePrices": None if price is None else json.dumps([f"{price:g}", f"{1 - price:.6g}"]),
            "volume": None if market.volume_24h is None else str(market.volume_24h * 9),
            "active": market.active,
            "closed": market.closed,
            "marketMakerAddress": "",
            "createdAt": market.start_date,
            "updatedAt": market.start_date,
            "closedTime": market.closed_time,
            "new": False,
            "featured": False,
            "archived": False,
            "restricted": True,
            "questionID": market.condition_id,
            "enableOrderBook": True,
            "orderPriceMinTickSize": 0.001,
            "orderMinSize": 5,
            "volumeNum": None if market.volume_24h is None else market.volume_24h * 9,
            "liquidity": None if market.liquidity is None else str(market.liquidity),
            "liquidityNum": market.liquidity,
            "volume24hr": market.volume_24h,
            "volume24hrClob": market.volume_24h,
            "clobTokenIds": json.dumps(market.tokens),
            "umaBond": "500",
            "umaReward": "5",
            "acceptingOrders": market.accepting_orders,
            "negRisk": False,
            "events": [
                {
                    "id": event.id,
                    "ticker": event.slug,
                    "slug": event.slug,
                    "title": event.title,
                    "description": market.description,
                    "startDate": market.start_date,
                    "active": True,
                    "closed": False,
                    "liquidity": 62165011.94307,
                    "volume": 396524399.69236,
                    "openInterest": 0,
                    "competitive": 0.8509608092126719,
                    "enableOrderBook": True,
                    "commentCount": 2583,
                }
                | ({"series": [self._gamma_series(self.series[event.series])]} if event.series else {})
            ],
            "ready": False,
            "funded": False,
            "cyom": False,
            "competitive": 0.85,
            "approved": True,
            "rewardsMinSize": 200,
            "rewardsMaxSpread": 3.5,
            "spread": None if ask is None else round(float(ask[0]) - (float(bid[0]) if bid else 0), 6),
            "lastTradePrice": float(market.last_trade) if market.last_trade else None,
            "bestBid": float(bid[0]) if bid else None,
            "bestAsk": float(ask[0]) if ask else None,
            "clearBookOnStart": True,
            "umaResolutionStatuses": "[]",
            "feesEnabled": False,
            "version": "v1",
        }
        if with_tags:
            answer["tags"] = [self._gamma_tag(label) for label in market.tags]
        answer |= market.changes
        return {key: value for key, value in answer.items() if value is not None and key not in market.without}

    # --- CLOB

    async def _book(self, request: web.Request) -> web.Response:
        request[ARRIVAL].tokens = 1
        token = request.query.get("token_id", "")
        if not token.isdigit():
            return problem(400, {"error": "Invalid token id"})
        if refused := self._refused_books([token]):
            return refused
        book = self.book(token)
        if book is None:
            return problem(404, {"error": "No orderbook exists for the requested token id"})
        return compressed(book)

    async def _clob_market(self, request: web.Request) -> web.Response:
        wanted = request.match_info["condition_id"]
        market = next(iter(self._named("condition_id").get(wanted, ())), None)
        if market is None or not market.on_clob:
            return problem(404, {"error": "market not found"})
        tokens = [
            {"token_id": token, "outcome": outcome, "price": 0.5, "winner": market.winner == side}
            for side, (token, outcome) in enumerate(zip(market.tokens, market.outcomes, strict=True))
        ]
        answer = {"condition_id": wanted, "closed": market.closed, "active": True, "tokens": tokens}
        return compressed(msgspec.json.encode(answer))

    async def _books(self, request: web.Request) -> web.Response:
        try:
            tokens = [entry["token_id"] for entry in msgspec.json.decode(await request.read())]
        except (msgspec.DecodeError, TypeError, KeyError):
            return problem(400, {"error": "Invalid payload"})
        request[ARRIVAL].tokens = len(tokens)
        if refused := self._refused_books(tokens):
            return refused
        books = [book for token in sorted(tokens) if (book := self.book(token)) is not None]  # not in the order asked
        return await self._compressed(b"[" + b",".join(books) + b"]")

    def _refused_books(self, tokens: Sequence[str]) -> web.Response | None:
        """Return the error that a question for the books of *tokens* gets, if any."""
        if len(tokens) > self.odd.most_tokens:
            return problem(400, {"error": "Payload exceeds the limit"})
        if len(tokens) > self.odd.tokens_in_time:
            return web.Response(status=504, text="<html><h1>504 Gateway Time-out</h1></html>", content_type="text/html")
        poison = next((token for token in tokens if token in self.odd.poisoned), None) if self.odd.poisoned else None
        return None if poison is None else problem(self.odd.poisoned[poison], {"error": "cannot get the information"})

    def side_of(self, token: str) -> int:
        """Return 0 where *token* is that of YES, and 1 where it is that of NO."""
        return self._by_token[token][1]

    def book(self, token: str) -> bytes | None:
        """Return the book of *token* as the CLOB writes it, or None if there is none."""
        if (known := self._rendered_books.get(token)) is not None:
            return known
        market, side = self._by_token.get(token, (None, 0))
        if market is None or market.closed or not market.has_books:
            return None
        bids, asks = (market.bids, market.asks) if side == 0 else (market.asks, market.bids)
        mirror = [side == 1, side == 1]
        if side == 1 and market.bids_no is not None:
            bids, mirror[0] = market.bids_no, False
        if side == 1 and market.asks_no is not None:
            asks, mirror[1] = market.asks_no, False
        book = {
            "market": market.condition_id,
            "asset_id": token,
            "timestamp": str(market.book_ms),
            "hash": "",
            "bids": rendered(bids, market.digits, mirror=mirror[0]),
            "asks": rendered(asks, market.digits, mirror=mirror[1]),
            "min_order_size": "5",
            "tick_size": "0.001",
            "neg_risk": False,
            "last_trade_price": market.last_trade,
        }
        book["hash"] = hashlib.sha1(msgspec.json.encode(book), usedforsecurity=False).hexdigest()
        self._rendered_books[token] = msgspec.json.encode(book | market.book_changes[side])
        return self._rendered_books[token]


NOT_FOUND = {"type": "not found error", "error": "not found"}


def problem(status: int, body: Mapping[str, str], headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error as the exchange words it."""
    return web.json_response(body, status=status, headers=headers)


def rfc3339(unix: float) -> str:
    """Return a Unix time as Gamma writes times."""
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%SZ}"


def unix_time(text: str | None) -> float | None:
    """Return the Unix time that an RFC 3339 text or a bare date stands for; None for what is neither."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def time_filter(query: MultiMapping[str], name: str) -> Callable[[str | None], bool] | None:
    """Return what tells whether a date is within those that *query* asks for by *name*; None if it asks for none."""
    least, most = unix_time(query.get(f"{name}_min")), unix_time(query.get(f"{name}_max"))
    if least is None and most is None:
        return None

    def is_in_time(text: str | None) -> bool:
        date = unix_time(text)
        return date is not None and (least is None or date >= least) and (most is None or date <= most)

    return is_in_time


def dated(keys: Sequence[SortKey], query: MultiMapping[str], *, ascending: bool) -> slice:
    """Return where in a listing by start date, with these *keys*, the dates are that *query* asks for."""
    least, most = unix_time(query.get("start_date_min")), unix_time(query.get("start_date_max"))
    if least is None and most is None:
        return slice(None)
    low, high = -math.inf if least is None else least, sys.float_info.max if most is None else most
    low, high = (low, high) if ascending else (-high, -low)
    return slice(bisect.bisect_left(keys, (low, -math.inf)), bisect.bisect_right(keys, (high, math.inf)))


def tag_slug(label: str) -> str:
    """Return the slug of a tag."""
    return label.lower().replace(" ", "-")


def as_list(found: FakeMarket | list[FakeMarket] | None) -> list[FakeMarket]:
    """Return one, many or no markets as a list."""
    return [found] if isinstance(found, FakeMarket) else found or []


def sort_key(value: float, number: float, ascending: bool) -> SortKey:  # noqa: FBT001
    """Return the key of an element in a listing by *value*, which the ids break ties of."""
    return (value, number) if ascending else (-value, -number)


def encoded_cursor(key: SortKey) -> str:
    """Return the opaque cursor that continues after *key*."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def decoded_cursor(cursor: str) -> SortKey:
    """Return the key that a cursor stands for; anything else is a ValueError."""
    value, number = json.loads(base64.urlsafe_b64decode(cursor))
    return float(value), int(number)


# --- the command


async def stir(exchange: FakePolymarket, chance: random.Random) -> None:
    """Change a level or let shares be traded, of one of the markets that somebody follows, 20 times a second."""
    while True:
        await asyncio.sleep(0.05)
        followed = {token for listener in exchange.live.listeners for token in listener.tokens}
        markets = [m for m in exchange.markets.values() if m.tokens[0] in followed and m.bids and m.asks]
        if not markets:
            continue
        market, side = chance.choice(markets), chance.choice(("bid", "ask", "trade"))
        if side == "trade":
            exchange.live.trade(market, outcome=chance.choice(("YES", "NO")), size=str(chance.randrange(1, 100)))
        else:
            price, _ = chance.choice((market.bids if side == "bid" else market.asks)[-5:])
            exchange.live.change(market, (side, price, str(chance.randrange(100, 10_000))))


async def serve(exchange: FakePolymarket, command: Sequence[str]) -> int:
    """Run *command* against *exchange* and return its exit code; signals are the command's business."""
    loop = asyncio.get_running_loop()
    async with exchange:
        env = {"POLYMARKET_DB": "stand_in.db"} | os.environ | exchange.environment  # not among real markets
        child = await asyncio.create_subprocess_exec(*command, env=env)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal sends it to the child as well
        loop.add_signal_handler(signal.SIGTERM, child.terminate)
        stirring = asyncio.create_task(stir(exchange, exchange.drift)) if exchange.drift else None
        code = await child.wait()
        if stirring:
            stirring.cancel()
    return code if code >= 0 else 128 - code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command against a new exchange and return the command's exit code."""
    parser = argparse.ArgumentParser(description="Run COMMAND against a Polymarket on loopback.")
    parser.add_argument("--markets", type=int, default=400, metavar="N", help="open markets (400)")
    parser.add_argument("--latency-ms", type=float, default=0, metavar="MS", help="before each answer (0)")
    parser.add_argument("--posts", type=int, default=0, metavar="N", help="on X, and a token that opens it (0)")
    parser.add_argument("--limits", choices=("documented", "none"), default="documented", help="(documented)")
    parser.add_argument("--seed", type=int, default=1, help="all but the moves of prices follows from it (1)")
    parser.add_argument("--event", action="append", default=[], metavar="SLUG", help="open an event of 30 markets")
    parser.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="SLUG",
        help="open a day of 5-minute windows, one after another",
    )
    parser.add_argument(
        "--change",
        type=float,
        metavar="SHARE",
        help="of the books, before each collection but the first; 0: nothing moves (prices by up to three cents)",
    )
    parser.add_argument("--rendered", action="store_true", help="render every answer before the command starts")
    parser.add_argument("--report", action="store_true", help="say at the end what was asked and what was refused")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND...")
    args = parser.parse_args(argv)
    if not args.command:
        parser.error("a command is missing")
    exchange = FakePolymarket(
        args.markets,
        seed=args.seed,
        latency_s=args.latency_ms / 1000,
        limits=DOCUMENTED_LIMITS if args.limits == "documented" else None,
        placeholders=args.markets // 100,
    )
    chatter(exchange, args.posts, args.seed)
    exchange.odd.moving_share = args.change or 0.0
    if args.change is None:
        exchange.drift = random.Random(time.time_ns())
        exchange.move_prices(exchange.drift)
    for slug in args.event:
        exchange.add_event(slug, 30)
    for slug in args.series:
        exchange.add_windows(slug, time.time() // 300 * 300 + 300, DAY_S // 300)
    if args.rendered:
        exchange.render()
    try:
        code = asyncio.run(serve(exchange, args.command))
    except OSError as error:
        parser.error(f"cannot run {args.command[0]}: {error}")
    if args.report:
        paths = Counter(arrival.path for arrival in exchange.arrivals)
        print(f"stand-in: {dict(paths)}, {exchange.refused} refused", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
