"""The stand-in behaves as the exchange does, quirks included: what it gets wrong, no other test can see."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from conftest import PROJECT
from fake_polymarket import FakePolymarket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYSET = "/gamma/markets/keyset"


@pytest.fixture
async def fake() -> AsyncIterator[FakePolymarket]:
    async with FakePolymarket(250, placeholders=5) as fake:
        yield fake


async def get(fake: FakePolymarket, path: str, **query: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(fake.url + path, params=query) as response:
        return response.status, await response.json()


async def post(fake: FakePolymarket, path: str, body: object) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(fake.url + path, json=body) as response:
        return response.status, await response.json()


async def test_a_page_has_100_markets_at_most_and_20_by_default(fake: FakePolymarket) -> None:
    assert len((await get(fake, KEYSET, limit="1000"))[1]["markets"]) == 100
    assert len((await get(fake, KEYSET))[1]["markets"]) == 20


async def test_only_a_full_page_has_a_cursor(fake: FakePolymarket) -> None:
    cursor: dict[str, str] = {}
    counts = []
    for _ in range(3):
        _, page = await get(fake, KEYSET, limit="100", **cursor)
        counts.append((len(page["markets"]), "next_cursor" in page))
        cursor = {"after_cursor": page.get("next_cursor", "")}
    assert counts == [(100, True), (100, True), (55, False)]


async def test_wrong_names_are_ignored(fake: FakePolymarket) -> None:
    _, first = await get(fake, KEYSET, limit="100")
    for query in ({"cursor": first["next_cursor"]}, {"next_cursor": first["next_cursor"]}, {"active": "true"}):
        _, page = await get(fake, KEYSET, limit="100", **query)
        assert page == first


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"order": "volume_24hr"}, "order fields are not valid"),
        ({"offset": "0"}, "offset is not allowed on keyset endpoints"),
        ({"after_cursor": "abc"}, "invalid cursor"),
    ],
)
async def test_bad_questions_are_refused(fake: FakePolymarket, query: dict[str, str], error: str) -> None:
    assert await get(fake, KEYSET, **query) == (422, {"type": "validation error", "error": error})


async def test_lists_are_json_in_strings_and_absent_values_absent_keys(fake: FakePolymarket) -> None:
    market = next(iter(fake.markets.values()))
    fake.change(market, volume_24h=None, bids=())
    _, page = await get(fake, KEYSET, id=market.id)
    (sent,) = page["markets"]
    assert json.loads(sent["clobTokenIds"]) == list(market.tokens)
    assert isinstance(sent["liquidity"], str)
    assert isinstance(sent["liquidityNum"], float)
    assert not {"volume24hr", "bestBid", "category", "tags"} & sent.keys()
    assert None not in sent.values()


async def test_tags_come_on_request_and_placeholders_are_listed(fake: FakePolymarket) -> None:
    _, page = await get(fake, KEYSET, limit="100", include_tag="true", order="id", ascending="false")
    assert [tag["label"] for tag in page["markets"][0]["tags"]]
    assert sum(not market["active"] for market in page["markets"]) == 5


async def test_closed_markets_are_listed_on_request_only(fake: FakePolymarket) -> None:
    market = next(iter(fake.markets.values()))
    fake.change(market, closed=True)
    assert (await get(fake, KEYSET, id=market.id))[1]["markets"] == []
    assert (await get(fake, KEYSET, id=market.id, closed="true"))[1]["markets"][0]["id"] == market.id


async def test_some_books_are_one_sided_and_no_is_the_mirror_of_yes(fake: FakePolymarket) -> None:
    sides = set()
    for market in fake.markets.values():
        if market.active:
            _, (yes, no) = await books_of(fake, market.tokens)
            assert [(round(1 - float(x["price"]), 3), x["size"]) for x in yes["bids"]] == [
                (float(x["price"]), x["size"]) for x in no["asks"]
            ]
            sides.add((bool(yes["bids"]), bool(yes["asks"])))
    assert sides == {(True, True), (True, False), (False, True), (False, False)}


async def books_of(fake: FakePolymarket, tokens: tuple[str, str]) -> tuple[int, list[Any]]:
    status, books = await post(fake, "/clob/books", [{"token_id": token} for token in tokens])
    return status, sorted(books, key=lambda book: tokens.index(book["asset_id"]))


async def test_the_best_level_is_last(fake: FakePolymarket) -> None:
    market = next(market for market in fake.markets.values() if len(market.bids) > 5 and len(market.asks) > 5)
    _, both = await books_of(fake, market.tokens)
    for book in both:
        assert all(float(a["price"]) < float(b["price"]) for a, b in pairwise(book["bids"]))
        assert all(float(a["price"]) > float(b["price"]) for a, b in pairwise(book["asks"]))


async def test_at_most_500_books_and_unknown_tokens_are_left_out(fake: FakePolymarket) -> None:
    tokens = [{"token_id": token} for market in fake.markets.values() for token in market.tokens][:501]
    assert await post(fake, "/clob/books", tokens) == (400, {"error": "Payload exceeds the limit"})
    status, books = await post(fake, "/clob/books", [*tokens[:2], {"token_id": "123"}])
    assert (status, len(books)) == (200, 2)
    assert await post(fake, "/clob/books", {"token_id": "123"}) == (400, {"error": "Invalid payload"})


async def test_one_book(fake: FakePolymarket) -> None:
    token = next(iter(fake.markets.values())).tokens[0]
    assert (await get(fake, "/clob/book", token_id=token))[1]["asset_id"] == token
    assert (await get(fake, "/clob/book", token_id="123"))[0] == 404
    assert (await get(fake, "/clob/book", token_id=""))[0] == 400


async def test_more_than_the_limit_is_refused() -> None:
    async with FakePolymarket(1, limits={"/gamma/markets": 3}) as fake:
        statuses = [(await get(fake, KEYSET))[0] for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert fake.busiest("/markets/keyset", 10.0) == 5


async def test_the_seed_decides_everything() -> None:
    async def everything(seed: int) -> tuple[Any, Any]:
        async with FakePolymarket(50, seed=seed) as fake:
            tokens = [{"token_id": token} for market in fake.markets.values() for token in market.tokens]
            return await get(fake, KEYSET, limit="100"), await post(fake, "/clob/books", tokens)

    assert await everything(1) == await everything(1)
    assert await everything(1) != await everything(2)


def test_as_a_command_it_runs_another_against_itself_and_exits_with_its_code() -> None:
    program = (
        "import os, sys; print(os.environ['GAMMA_API'], os.environ['CLOB_API'], os.environ['TWITTER_API']); sys.exit(7)"
    )
    command = [
        sys.executable,
        str(PROJECT / "tests/fake_polymarket.py"),
        "--markets",
        "3",
        sys.executable,
        "-c",
        program,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 7
    assert [address.rpartition("/")[2] for address in done.stdout.split()] == ["gamma", "clob", "x"]
    assert done.stdout.count("http://127.0.0.1:") == 3
