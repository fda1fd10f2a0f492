"""What the tests share: an exchange on loopback, a clock that jumps instead of waiting, and a look at the file."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import random
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from fake_polymarket import FakePolymarket
from hypothesis import settings

from async_collector import AsyncCollector, Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

pytest_plugins = ["lakes", "live_truth"]  # the fixtures of the archive and of collector-live

settings.register_profile("shared", deadline=None)  # a busy neighbour is no fault of ours
settings.load_profile("shared")

SETTINGS = (
    *("POLYMARKET_", "GAMMA_", "CLOB_", "DATA_", "TWITTER_", "COLLECTOR_"),
    *("AWS_", "SSL_CERT_", "NOTIFY_SOCKET", "JOURNAL_STREAM"),
)
PROJECT = Path(__file__).parent.parent
# of a file as collectors before this one made it
OLDER_TABLES = """
    CREATE TABLE markets (market_id TEXT PRIMARY KEY, slug TEXT, question TEXT, description TEXT, category TEXT,
        token_id_yes TEXT, token_id_no TEXT, start_time TIMESTAMP, end_time TIMESTAMP, resolved INTEGER DEFAULT 0,
        resolution_outcome TEXT, first_seen TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE snapshots (id INTEGER PRIMARY KEY AUTOINCREMENT, market_id TEXT,
        timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP, price_yes REAL, price_no REAL, volume_24h REAL, liquidity REAL,
        best_bid_yes REAL, best_ask_yes REAL, best_bid_no REAL, best_ask_no REAL, spread REAL,
        FOREIGN KEY (market_id) REFERENCES markets(market_id), UNIQUE(market_id, timestamp));
    CREATE TABLE tweets (tweet_id TEXT PRIMARY KEY, timestamp TIMESTAMP, text TEXT, author_username TEXT,
        author_id TEXT, likes INTEGER, retweets INTEGER, replies INTEGER, engagement_score INTEGER,
        sentiment_score REAL, market_id TEXT, keywords TEXT, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE hype_signals (id INTEGER PRIMARY KEY AUTOINCREMENT, market_id TEXT, timestamp TIMESTAMP,
        tweet_count INTEGER, total_engagement INTEGER, avg_sentiment REAL, unique_users INTEGER, velocity REAL,
        hype_score REAL, UNIQUE(market_id, timestamp));
"""


class JumpingClock(Clock):
    """A clock on which every sleep is over at once, and remembered."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self.set_forward_s = 0.0  # by whoever sets the wall clock
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return 1_000.0 + self.elapsed_s

    def now(self) -> datetime:
        return datetime(2026, 11, 22, 14, 15, tzinfo=UTC) + timedelta(seconds=self.elapsed_s + self.set_forward_s)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.elapsed_s += seconds
        await asyncio.sleep(0)


class VirtualClock(Clock):
    """A clock on which many tasks sleep side by side, and time goes on when all of them do."""

    def __init__(self) -> None:
        self.time = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.time + seconds, next(self._number), done))
        await done

    async def run(self, *work: Coroutine[Any, Any, None]) -> None:
        """Run *work* to its end, as far as it ends."""
        tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
        while True:
            for _ in range(30):  # let everybody come to rest
                await asyncio.sleep(0)
            if not self._sleepers:
                break
            self.time, _, done = heapq.heappop(self._sleepers)
            if not done.done():
                done.set_result(None)
        assert all(task.done() for task in tasks), "somebody waits for ever"
        await asyncio.gather(*tasks)


class NoChance(random.Random):
    """Chance that shortens nothing: waits are 1, 2 and 4 s."""

    def random(self) -> float:
        return 0.0


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority that has vouched for nobody.

    No test meets a public host: it stands for the system's certificates, which each process would read, all of them,
    and which a machine need not have.
    """
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, authority: Path) -> None:
    """Keep the caller's settings, proxies and certificates out of the tests."""
    for name in list(os.environ):
        if name.startswith(SETTINGS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))


@pytest.fixture
async def exchange(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakePolymarket]:
    """An exchange of 60 markets, all over the default threshold, to which collectors of this test talk."""
    async with FakePolymarket(60) as fake:
        for market in fake.markets.values():
            fake.change(market, volume_24h=100_000.0 + market.number)
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        yield fake
        assert fake.unknown == [], "the real exchange has no such address"


@pytest.fixture
def clock() -> JumpingClock:
    """A clock that makes no test wait."""
    return JumpingClock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the collectors of this test store."""
    return tmp_path / "polymarket_data.db"


@pytest.fixture
def make_collector(database: Path, clock: JumpingClock) -> Callable[..., AsyncCollector]:
    """Return a maker of collectors that wait for nothing."""

    def make(**settings: Any) -> AsyncCollector:  # noqa: ANN401
        return AsyncCollector(settings.pop("db_path", database), clock=clock, rng=NoChance(), **settings)

    return make


@pytest.fixture
def collector(exchange: FakePolymarket, make_collector: Callable[..., AsyncCollector]) -> AsyncCollector:
    """A collector with default settings that talks to `exchange`."""
    assert exchange.url
    return make_collector()


@pytest.fixture
def write(database: Path) -> Callable[..., None]:
    """Return what writes into the database as another program does."""

    def execute(script: str) -> None:
        connection = sqlite3.connect(database)
        connection.executescript(script)
        connection.close()

    return execute


def rows(path: Path, query: str, *values: object) -> list[dict[str, Any]]:
    """Return what *query* finds in the database at *path*, as another program would."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query, values)]
    finally:
        connection.close()
