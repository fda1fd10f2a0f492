"""covers: the stand-in's Data API, against what was recorded and documented of the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from fake_data_api import DAY_S, FakePast
from fake_polymarket import FakePolymarket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRADE_KEYS = {
    *("proxy_wallet", "side", "token_id", "condition_id", "size", "price", "timestamp", "title", "slug", "icon"),
    *("event_slug", "outcome", "outcome_index", "name", "pseudonym", "bio", "profile_image", "profile_image_optimized"),
    "transaction_hash",
}


class Asker:
    """Asks the stand-in for one market, whose prices began 100 days ago."""

    def __init__(self, exchange: FakePolymarket, session: aiohttp.ClientSession) -> None:
        self.exchange, self.session = exchange, session
        self.time = 1_796_000_000.0
        exchange.now = lambda: self.time
        self.market = next(iter(exchange.markets.values()))
        self.past = exchange.data._pasts[self.market.number] = FakePast(self.time - 100 * DAY_S)

    async def prices(self, **params: str | int) -> tuple[int, Any]:
        return await self.ask("prices-history", {"token_id": self.market.tokens[0], **params})

    async def trades(self, **params: str | int) -> tuple[int, Any]:
        return await self.ask("trades", {"condition": self.market.condition_id, **params})

    async def ask(self, path: str, params: dict[str, str | int]) -> tuple[int, Any]:
        async with self.session.get(f"{self.exchange.url}/data/v2/{path}", params=params) as response:
            assert response.headers["Date"]
            assert "Retry-After" not in response.headers
            return response.status, await response.json()


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    async with FakePolymarket(3) as exchange, aiohttp.ClientSession() as session:
        yield Asker(exchange, session)


async def test_a_whole_life_ends_with_a_point_of_no_width(asker: Asker) -> None:
    _, whole = await asker.prices(interval="max", bucket_seconds=10_800)
    *buckets, last = whole["data"]
    assert {point["resolution_seconds"] for point in buckets} == {10_800}
    assert all(point["timestamp"] % 10_800 == 0 for point in buckets)
    assert last["resolution_seconds"] == 0
    assert last["timestamp"] % 10_800
    assert whole["pagination"] == {"limit": 10_000, "offset": 0, "has_more": False}
    _, coarse = await asker.prices(interval="max")
    assert {point["resolution_seconds"] for point in coarse["data"]} == {43_200, 0}


async def test_a_resolved_market_ends_with_its_payout(asker: Asker) -> None:
    asker.past.ended, asker.past.payout = asker.time - DAY_S, 1.0
    _, yes = await asker.prices(interval="max", bucket_seconds=10_800)
    _, no = await asker.prices(interval="max", bucket_seconds=10_800, token_id=asker.market.tokens[1])
    last = yes["data"][-2]["timestamp"] + 10_800
    assert yes["data"][-1] == {"timestamp": last, "price": 1.0, "resolution_seconds": 0}
    assert no["data"][-1]["price"] == 0


async def test_expired_grain_and_unknown_tokens_are_empty_pages(asker: Asker) -> None:
    old = int(asker.time) - 80 * DAY_S
    assert (await asker.prices(start=old, end=old + DAY_S, bucket_seconds=300))[1]["data"] == []
    assert (await asker.prices(start=old, end=old + DAY_S, bucket_seconds=10_800))[1]["data"] != []
    assert (await asker.prices(interval="max", token_id="1"))[1]["data"] == []


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"interval": "max", "start": 1},
        {"interval": "1M"},
        {"end": 1_796_000_000},
        {"start": 0},
        {"start": 1_796_000_000 - 16 * DAY_S},
        {"start": 1_796_000_000 - 16 * DAY_S, "end": 1_796_000_000 - DAY_S + 1},
        {"interval": "max", "limit": 10_001},
        {"interval": "max", "offset": 5},
        {"interval": "max", "cursor": "abc"},
        {"interval": "max", "bucket_seconds": 59},
    ],
)
async def test_what_the_real_one_refuses_is_a_400(asker: Asker, params: dict[str, str | int]) -> None:
    status, body = await asker.prices(**params)
    assert (status, body["code"], body["retryable"]) == (400, "invalid_request", False)


async def test_pages_of_prices_follow_each_other(asker: Asker) -> None:
    _, whole = await asker.prices(interval="max", bucket_seconds=10_800)
    found: list[Any] = []
    cursor: dict[str, str | int] = {}
    while True:
        _, page = await asker.prices(interval="max", bucket_seconds=10_800, limit=300, **cursor)
        found += page["data"]
        if not page["pagination"]["has_more"]:
            break
        cursor = {"cursor": page["pagination"]["next_cursor"]}
    assert found == whole["data"]


async def test_trades_are_as_recorded(asker: Asker) -> None:
    """Equal ones, both outcomes, unlabelled ones; the newest first."""
    asker.exchange.data.make_trades(asker.market, 400)
    _, page = await asker.trades(limit=300)
    assert {frozenset(trade) for trade in page["data"]} == {frozenset(TRADE_KEYS)}
    assert {trade["outcome_index"] for trade in page["data"]} == {0, 1, 999}
    times = [trade["timestamp"] for trade in page["data"]]
    assert times == sorted(times, reverse=True)
    assert len({str(trade) for trade in page["data"]}) < 300
    _, rest = await asker.trades(limit=300, cursor=page["pagination"]["next_cursor"])
    assert len(rest["data"]) == 100
    for refused in ({"limit": 1_001}, {"condition": ",".join(["0x1"] * 21)}, {"cursor": "abc"}):
        assert (await asker.trades(**refused))[0] == 400


async def test_a_first_page_is_five_minutes_old_at_most(asker: Asker) -> None:
    _, first = await asker.trades()
    asker.exchange.data.add_trade(asker.market)
    assert (await asker.trades())[1] == first
    asker.time += 300
    assert len((await asker.trades())[1]["data"]) == len(first["data"]) + 1


async def test_too_many_requests_are_a_429_without_a_word_of_when(asker: Asker) -> None:
    asker.exchange.limits, asker.exchange.limit_window_s = {"/data/v2/trades": 2}, 1_000
    assert [(await asker.trades())[0] for _ in range(3)] == [200, 200, 429]
