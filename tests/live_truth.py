"""What the tests of collector-live share: the script as a module, a clock that they move, and what must be stored."""

from __future__ import annotations

import asyncio
import heapq
import importlib.util
import itertools
import re
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import PROJECT, rows

from async_collector import AsyncCollector, Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

LIVE = "collector-live.py"
BIDS = (("0.38", "500"), ("0.39", "20.5"), ("0.40", "10"))  # the best last, as the exchange sends them
ASKS = (("0.44", "7"), ("0.43", "120"), ("0.42", "30.25"))


def script() -> Any:  # noqa: ANN401  a module that is no module
    """Return the script as a module; its types look it up by name."""
    name = "collector_live"
    if name not in sys.modules:
        loader = SourceFileLoader(name, str(PROJECT / LIVE))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec
        sys.modules[name] = importlib.util.module_from_spec(spec)
        loader.exec_module(sys.modules[name])
    return sys.modules[name]


live = script()
DOCS: dict[str, Any] = {}
exec(re.findall(r"```python\n(.*?)```", (PROJECT / "docs/live.md").read_text(), re.DOTALL)[0], DOCS)  # noqa: S102  ours


class SteppedClock(Clock):
    """A clock whose time goes on only when the test says so."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.set_forward_s = 0.0  # by whoever sets the wall clock
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    def monotonic(self) -> float:
        return self.time

    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + self.set_forward_s, UTC)

    async def sleep(self, seconds: float) -> None:
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.time + max(seconds, 0), next(self._number), done))
        await done

    def step(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.time += seconds
        while self._sleepers and self._sleepers[0][0] <= self.time:
            _, _, done = heapq.heappop(self._sleepers)
            if not done.done():
                done.set_result(None)


class WallClock(Clock):
    """The clock of the anchors, which wait for real: it tells the time of *clock*."""

    def __init__(self, clock: SteppedClock) -> None:
        self.now = clock.now  # type: ignore[method-assign]


class Following(NamedTuple):
    """A running `Live`, and what moves it."""

    live: Any
    clock: SteppedClock
    exchange: FakePolymarket
    path: Path

    @property
    def markets(self) -> dict[str, Any]:
        """What is followed now, by id."""
        return {one.market_id: one for channel in self.live.channels for one in channel.markets.values()}

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is on its way."""
        channel = self.exchange.live
        frames = sum(one._stream.frames for one in self.live.channels if one._socket)
        sent = sum(listener.sent for listener in channel.listeners)
        is_through = channel.odd.is_held or (channel.is_quiet and frames == sent)
        return is_through and self.exchange.in_flight <= len(channel.listeners)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let time pass until *condition* holds; it never outruns what is on its way."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            await asyncio.sleep(0.002)
            if self.is_quiet:
                self.clock.step(0.5)

    async def pass_(self, seconds: float) -> None:
        """Let at least so many seconds pass."""
        end = self.clock.time + seconds
        await self.until(lambda: self.clock.time >= end)

    async def received(self) -> None:
        """Wait until all has come and is stored, in no time."""
        deadline = time.monotonic() + 20
        while not self.is_quiet:
            assert time.monotonic() < deadline, "it never came"
            await asyncio.sleep(0.002)
        while not await self.live.store.save():
            assert time.monotonic() < deadline, "it could not be stored"

    async def opened(self, count: int = 1) -> None:
        """Let time pass until so many markets have their books, and no other is without."""
        await self.until(lambda: len(self.markets) >= count and all(one.book.begun for one in self.markets.values()))

    async def verified(self) -> None:
        """Let a round compare all books, and let it come to its end."""
        await self.pass_(1)  # one that has begun is none
        rounds = self._rounds()
        await self.until(lambda: self._rounds() > rounds)
        await self.pass_(live.PATIENCE_S + 1)
        await self.received()

    def _rounds(self) -> int:
        """Return how many questions were for YES alone; an anchor asks for both outcomes."""
        return sum(arrival.tokens == len(self.markets) for arrival in self.exchange.asked("/books"))

    async def anchored(self) -> None:
        """Let there be an anchor of what has come."""
        await self.received()
        query = "SELECT count(*) AS n FROM runs WHERE status = 'complete'"
        before = rows(self.path, query)
        self.live._wants_anchor = True
        await self.until(lambda: rows(self.path, query) != before)

    def gaps(self, columns: str = "market_id, reason") -> list[tuple[Any, ...]]:
        """Return what is stored of gaps, in their order."""
        query = f"SELECT {columns} FROM live_gaps ORDER BY gap_id"  # noqa: S608
        return [tuple(row.values()) for row in rows(self.path, query)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where collector-live stores."""
    return tmp_path / "polymarket_live.db"


@pytest.fixture
def cup(exchange: FakePolymarket) -> list[FakeMarket]:
    """An event of three markets."""
    return exchange.markets_of(exchange.add_event("cup", 3, active=True, bids=BIDS, asks=ASKS))


@pytest.fixture
def four(exchange: FakePolymarket, cup: list[FakeMarket]) -> list[FakeMarket]:
    """The event with a fourth market."""
    return [*cup, exchange.add_market(event_slug="cup", active=True, bids=BIDS, asks=ASKS)]


@asynccontextmanager
async def following(
    exchange: FakePolymarket,
    path: Path,
    *,
    every_s: float = 86_400,
    **names: Any,  # noqa: ANN401
) -> AsyncIterator[Following]:
    """Follow what *names* name, and end it at the end; all must be stored then."""
    clock = SteppedClock()
    one = live.Live(AsyncCollector(path, clock=WallClock(clock), **names), *live.channel_address(), every_s, clock)
    stop = asyncio.Event()
    task = asyncio.create_task(one.run(stop))
    try:
        yield Following(one, clock, exchange, path)
    finally:
        stop.set()
        assert await task


def text(unix_ms: int) -> str:
    return str(live.ms_text(unix_ms))


def levels(market: FakeMarket) -> dict[tuple[str, float], float]:
    """Return the book of YES."""
    sides = (("bid", market.bids), ("ask", market.asks))
    return {(side, float(price)): float(size) for side, levels in sides for price, size in levels}


class Truth:
    """What has happened on *exchange* since its beginning, to be compared with a file."""

    def __init__(self, exchange: FakePolymarket, markets: Iterable[FakeMarket]) -> None:
        self.channel = exchange.live
        self.first = {market.id: levels(market) for market in markets}

    def changes(self) -> Counter[tuple[object, ...]]:
        return Counter((one.market_id, text(one.time_ms), *one[2:]) for one in self.channel.changes)

    def trades(self) -> Counter[tuple[object, ...]]:
        return Counter((one.market_id, text(one.time_ms), *one[2:]) for one in self.channel.trades)

    def book(self, market_id: str, moment_ms: int) -> dict[tuple[str, float], float]:
        """Return the book of YES at that moment."""
        book = dict(self.first[market_id])
        for change in self.channel.changes:
            if change.market_id == market_id and change.time_ms <= moment_ms:
                book.pop((change.side, change.price), None)
                if change.size:
                    book[change.side, change.price] = change.size
        return book

    def assert_stored(
        self, path: Path, *, since_ms: int = 0, until_ms: int = 10**13, but: Iterable[object] = ()
    ) -> None:
        """Fail unless every change and trade is stored or lies within a gap of its market, and none is invented."""
        gaps = defaultdict(list)
        for row in rows(path, "SELECT * FROM live_gaps"):
            gaps[row["market_id"]].append((row["since"], row["until"] or "9"))
        for true, found in (
            (self.changes(), rows(path, "SELECT market_id, timestamp, side, price, size FROM book_changes")),
            (self.trades(), rows(path, TRADES)),
        ):
            stored = Counter(tuple(row.values()) for row in found)
            assert stored - true == Counter(), "invented"
            window = (text(since_ms), text(until_ms))
            missing = [one for one in true - stored if window[0] < str(one[1]) <= window[1] and one not in set(but)]
            lost = [one for one in missing if not any(since < str(one[1]) <= end for since, end in gaps[one[0]])]
            assert lost == [], "lost outside of any gap"

    def assert_rebuilt(self, path: Path, moments_ms: Iterable[int], *, but: Iterable[Any] = ()) -> int:
        """Fail unless the book of each of these moments can be rebuilt, *but* for the levels of these changes.

        Return how many lie behind a gap.
        """
        behind = 0
        omitted = {(market_id, (side, price)) for market_id, _, side, price, _ in but}
        with closing(sqlite3.connect(path)) as connection:
            for moment_ms, market_id in itertools.product(moments_ms, self.first):
                bids, asks, is_uncertain = DOCS["book_at"](connection, market_id, text(moment_ms))
                behind += is_uncertain
                sides = (("bid", bids), ("ask", asks))
                found = {((side, price), size) for side, levels in sides for price, size in levels}
                different = found ^ set(self.book(market_id, moment_ms).items())
                wrong = {level for level, _ in different if (market_id, level) not in omitted}
                assert is_uncertain or not wrong, (market_id, text(moment_ms), wrong)
        return behind


TRADES = "SELECT market_id, timestamp, outcome, side, price, size, transaction_hash FROM live_trades"
