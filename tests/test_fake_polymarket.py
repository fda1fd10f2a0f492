"""covers: the stand-in itself, quirks included: what it gets wrong, no other test can see."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from conftest import PROJECT, rows
from fake_polymarket import FakePolymarket, unix_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEYSET = "/gamma/markets/keyset"
EVENTS = "/gamma/events/keyset"


@pytest.fixture
async def fake() -> AsyncIterator[FakePolymarket]:
    async with FakePolymarket(250, placeholders=5) as fake:
        yield fake


async def get(fake: FakePolymarket, path: str, **query: str | list[str]) -> tuple[int, Any]:
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


def ids(page: dict[str, Any]) -> list[str]:
    return [element["id"] for element in page.get("markets", page.get("events", []))]


async def walk(fake: FakePolymarket, path: str, **query: str | list[str]) -> list[int]:
    """Return how many elements each page has, to the first that names no next one."""
    counts: list[int] = []
    cursor: dict[str, str] = {}
    while len(counts) < 10:
        _, page = await get(fake, path, limit="100", **query, **cursor)
        counts.append(len(ids(page)))
        if "next_cursor" not in page:
            break
        cursor = {"after_cursor": page["next_cursor"]}
    return counts


async def test_markets_are_found_by_name_open_ones_and_closed_ones_apart(fake: FakePolymarket) -> None:
    first, second, third = list(fake.markets.values())[:3]
    fake.close(third, "1", "0")
    for query in (
        {"slug": [first.slug, second.slug, third.slug, "nobody"]},
        {"condition_ids": [first.condition_id, second.condition_id, third.condition_id]},
        {"id": [first.id, second.id, third.id], "slug": [second.slug, first.slug, third.slug]},
    ):
        assert ids((await get(fake, KEYSET, **query))[1]) == [first.id, second.id]
        assert ids((await get(fake, KEYSET, **query, closed="true"))[1]) == [third.id]
    assert (await get(fake, f"/gamma/markets/slug/{third.slug}"))[1]["closed"]
    assert (await get(fake, f"/gamma/markets/{first.id}"))[1]["slug"] == first.slug
    assert (await get(fake, "/gamma/markets/slug/nobody"))[0] == 404


async def test_markets_are_found_by_the_id_of_a_tag(fake: FakePolymarket) -> None:
    status, tag = await get(fake, "/gamma/tags/slug/crypto-prices")
    assert (status, tag["label"]) == (200, "Crypto Prices")
    wanted = [market.id for market in fake.markets.values() if "Crypto Prices" in market.tags]
    assert ids((await get(fake, KEYSET, tag_id=tag["id"], limit="100"))[1]) == wanted
    _, page = await get(fake, KEYSET, id=wanted[0], include_tag="true")
    assert tag in page["markets"][0]["tags"]
    assert (await get(fake, "/gamma/tags/slug/nobody"))[0] == 404


async def test_an_event_has_its_markets_nested_the_closed_ones_too(fake: FakePolymarket) -> None:
    event = fake.add_event("the-cup", 150, tags=("Sports", "Soccer"), active=True)
    inside = fake.markets_of(event)
    fake.close(inside[0], "0", "1")
    _, page = await get(fake, EVENTS, slug=["the-cup", "nobody"])
    (sent,) = page["events"]
    assert ids(sent) == [market.id for market in inside]
    assert [market["closed"] for market in sent["markets"]] == [True] + 149 * [False]
    assert not {"events", "tags"} & sent["markets"][1].keys()
    assert [tag["label"] for tag in sent["tags"]] == ["Sports", "Soccer"]
    assert (sent["slug"], sent["title"], sent["closed"], "next_cursor" in page) == ("the-cup", "The cup?", False, False)
    assert (
        (await get(fake, "/gamma/events/slug/the-cup"))[1]
        == sent
        == (await get(fake, EVENTS, id=event.id))[1]["events"][0]
    )
    _, listed = await get(fake, KEYSET, id=inside[1].id)
    assert (listed["markets"][0]["events"][0]["id"], listed["markets"][0]["events"][0]["slug"]) == (event.id, "the-cup")
    assert (await get(fake, "/gamma/events/slug/nobody"))[0] == 404
    for market in inside:
        fake.close(market, "0", "1")
    assert ids((await get(fake, EVENTS, slug="the-cup"))[1]) == []
    assert ids((await get(fake, EVENTS, slug="the-cup", closed="true"))[1]) == [event.id]


async def test_markets_that_are_in_no_event_of_the_test_share_one_with_their_neighbours(fake: FakePolymarket) -> None:
    counts = await walk(fake, EVENTS)
    assert counts[0] == 100
    assert sum(counts) == len({market.event_slug for market in fake.markets.values()})


async def test_windows_of_a_series_close_one_after_another_by_the_exchanges_own_time(fake: FakePolymarket) -> None:
    now = 1_795_000_000.0
    fake.now = lambda: now
    windows = fake.add_windows("btc-up-or-down-5m", now + 120, 288)
    (series,) = (await get(fake, "/gamma/series", slug="btc-up-or-down-5m"))[1]
    assert (series["slug"], series["title"], series["recurrence"]) == ("btc-up-or-down-5m", "Btc Up Or Down", "5m")
    assert (await get(fake, "/gamma/series", slug="nobody"))[1] == []
    assert await walk(fake, EVENTS, series_id=series["id"]) == [100, 100, 88]
    now += 120 + 29
    assert sum(await walk(fake, EVENTS, series_id=series["id"])) == 288
    now += 1
    assert sum(await walk(fake, EVENTS, series_id=series["id"])) == 287
    _, page = await get(fake, EVENTS, series_id=series["id"], order="endDate", ascending="true", limit="2")
    assert [event["slug"] for event in page["events"]] == [window.slug for window in windows[1:3]]
    (market,) = page["events"][0]["markets"]
    assert (market["eventStartTime"], market["endDate"]) == ("2026-11-18T11:08:40Z", "2026-11-18T11:13:40Z")
    soon = {"end_date_min": "2026-11-18", "end_date_max": market["endDate"]}
    assert ids((await get(fake, KEYSET, **soon))[1]) == [market["id"]]
    assert sum(await walk(fake, EVENTS, series_id=series["id"], **soon)) == 1
    assert json.loads((await get(fake, f"/gamma/markets/{windows[0].id}"))[1]["outcomePrices"]) in (
        ["1", "0"],
        ["0", "1"],
    )


async def every_book(fake: FakePolymarket) -> dict[str, Any]:
    return {
        token: json.loads(fake.book(token) or b"null") for market in fake.markets.values() for token in market.tokens
    }


def levels(book: dict[str, Any], side: str) -> list[tuple[Decimal, Decimal]]:
    return [(Decimal(level["price"]), Decimal(level["size"])) for level in book[side]]


@pytest.mark.parametrize("share", [0.2, 1.0])
async def test_exactly_the_share_of_the_books_moves_and_both_sides_of_each(fake: FakePolymarket, share: float) -> None:
    before = await every_book(fake)
    for _ in range(3):
        moved = {market.id for market in fake.move_books(share)}
        after = await every_book(fake)
        assert len(moved) == round(250 * share)
        for market in fake.markets.values():
            yes, no = (after[token] for token in market.tokens)
            if not yes:
                continue
            changed = [
                any(after[token][side] != before[token][side] for side in ("bids", "asks")) for token in market.tokens
            ]
            assert changed == 2 * [market.id in moved]
            assert levels(no, "asks") == [(1 - price, size) for price, size in levels(yes, "bids")]
            assert levels(no, "bids") == [(1 - price, size) for price, size in levels(yes, "asks")]
        before = after


async def test_books_come_in_other_forms(fake: FakePolymarket) -> None:
    market = next(iter(fake.markets.values()))
    fake.change(market, bids=(("0.0025", "5"), ("0.57", "100.5")), asks=(("0.58", "0.25"),))

    def sent(side: int) -> list[list[str]]:
        book = json.loads(fake.book(market.tokens[side]) or b"")
        return [list(level.values()) for level in (*book["bids"], *book["asks"])]

    assert sent(1) == [["0.42", "0.25"], ["0.9975", "5"], ["0.43", "100.5"]]
    fake.change(market, digits="padded")
    assert sent(0) == [["0.0025", "5.00"], ["0.5700", "100.50"], ["0.5800", "0.25"]]
    fake.change(market, digits="dotted")
    assert sent(1) == [[".42", ".25"], [".9975", "5"], [".43", "100.5"]]
    fake.change(market, bids_no=(("0.1", "7"),), book_changes=({}, {"market": "0x1", "asks": None}))
    book = json.loads(fake.book(market.tokens[1]) or b"")
    assert (book["market"], book["bids"], book["asks"]) == ("0x1", [{"price": ".1", "size": "7"}], None)
    fake.deepen(market, 700)
    assert len(sent(0)) == 1_400
    assert max(market.bids, key=lambda level: float(level[0])) == market.bids[-1]


async def test_a_market_whose_sides_are_swapped_keeps_the_book_of_each_token(fake: FakePolymarket) -> None:
    market = next(iter(fake.markets.values()))
    yes, no = market.tokens
    before = [levels(json.loads(fake.book(token) or b""), "bids") for token in (yes, no)]
    fake.swap_sides(market)
    assert [levels(json.loads(fake.book(token) or b""), "bids") for token in (yes, no)] == before
    _, page = await get(fake, KEYSET, id=market.id)
    assert json.loads(page["markets"][0]["clobTokenIds"]) == [no, yes]
    fake.replace(market, "tokens", "condition_id", "question")
    assert [fake.book(token) for token in (yes, no)] == [None, None]
    assert all(fake.book(token) for token in market.tokens)


PAGES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "as it should be": ({}, [100, 100, 55]),
    "no cursor": ({"cursor_key": None}, [100]),
    "a cursor by another name": ({"cursor_key": "nextCursor"}, [100]),
    "an empty page": ({"empty_page": 2}, [100, 0, 55]),
    "an empty page that ends it": ({"empty_page": 2, "empty_page_leads_on": False}, [100, 0]),
    "half of each page": ({"withheld": 50}, [50, 50, 55]),
    "smaller pages": ({"page_size": 60}, [60, 60, 60, 60, 15]),
}


@pytest.mark.parametrize("name", PAGES)
async def test_a_listing_may_be_odd(fake: FakePolymarket, name: str) -> None:
    oddities, counts = PAGES[name]
    for key, value in oddities.items():
        setattr(fake.odd, key, value)
    assert await walk(fake, KEYSET) == counts


async def by_start(fake: FakePolymarket, **query: str) -> list[str]:
    _, page = await get(fake, KEYSET, order="startDate", limit="100", **query)
    return ids(page)


def dated_ids(fake: FakePolymarket) -> list[str]:
    dated = [(unix_time(market.start_date), market.number) for market in fake.markets.values() if market.start_date]
    return [str(number) for _, number in sorted(dated)]


async def test_who_has_no_start_date_is_last_and_within_no_dates(fake: FakePolymarket) -> None:
    undated = [market.id for market in fake.markets.values() if market.start_date is None]
    in_order = dated_ids(fake)
    assert undated
    assert await by_start(fake) == in_order[:100]
    assert await by_start(fake, ascending="false") == (in_order + undated)[:-101:-1]
    for least in (120, 200):
        date = fake.markets[in_order[least]].start_date or ""
        assert await by_start(fake, start_date_min=date) == in_order[least:][:100]
        assert await by_start(fake, start_date_max=date, ascending="false") == in_order[: least + 1][:-101:-1]
        _, page = await get(fake, KEYSET, start_date_min=date, limit="100", order="id")
        assert ids(page) == sorted(in_order[least:])[:100]


async def test_an_exchange_may_know_less_of_start_dates(fake: FakePolymarket) -> None:
    in_order = dated_ids(fake)
    fake.odd.ignores_start_dates = True
    assert await by_start(fake, start_date_min="2100-01-01T00:00:00Z") == in_order[:100]
    fake.odd.drops_undated = True
    assert await by_start(fake, ascending="false") == in_order[:-101:-1]
    fake.odd.refused_orders = frozenset({"startDate"})
    status, page = await get(fake, KEYSET, order="startDate")
    assert (status, page["error"]) == (422, "order fields are not valid")


async def test_what_was_rendered_beforehand_is_what_is_answered(fake: FakePolymarket) -> None:
    answers = await get(fake, KEYSET, limit="100", include_tag="true"), await every_book(fake)
    again = FakePolymarket(250, placeholders=5, latency_s=0.01)
    again.render()
    async with again:
        assert (await get(again, KEYSET, limit="100", include_tag="true"), await every_book(again)) == answers


async def test_answers_by_ids_may_have_a_second_page(fake: FakePolymarket) -> None:
    fake.odd.ids_page_size = 60
    assert await walk(fake, KEYSET, id=list(fake.markets)[:100]) == [60, 40]
    assert (await walk(fake, KEYSET))[0] == 100


async def test_the_order_of_a_listing_may_waver(fake: FakePolymarket) -> None:
    fake.odd.waver = 0.1
    _, page = await get(fake, KEYSET, order="volume24hr", ascending="false", limit="100")
    volumes = [market["volume24hr"] for market in page["markets"]]
    assert volumes != sorted(volumes, reverse=True)
    assert all(later <= earlier * 1.1 / 0.9 for earlier, later in pairwise(volumes))


async def test_books_may_be_poisoned_or_too_slow_in_large_numbers(fake: FakePolymarket) -> None:
    tokens = [market.tokens[0] for market in fake.markets.values()][:150]

    async def status(*asked: str) -> int:
        body = [{"token_id": token} for token in asked]
        async with aiohttp.ClientSession() as session, session.post(f"{fake.url}/clob/books", json=body) as response:
            return response.status

    fake.odd.poisoned = {tokens[7]: 500}
    fake.odd.tokens_in_time = 100
    assert [await status(*asked) for asked in (tokens, tokens[:100], tokens[8:100])] == [504, 500, 200]
    assert (await get(fake, "/clob/book", token_id=tokens[7]))[0] == 500


async def test_every_answer_may_have_another_header(fake: FakePolymarket) -> None:
    fake.odd.headers = {"X-Policy": "p" * 8_190}
    async with (
        aiohttp.ClientSession(max_field_size=16_000) as session,
        session.get(fake.url + KEYSET) as response,
    ):
        assert response.headers["X-Policy"] == "p" * 8_190


async def test_arrivals_may_be_counted_by_the_second() -> None:
    async with FakePolymarket(1, limits={"/gamma": 3}, limit_window_s=1.0) as fake:
        statuses = [(await get(fake, KEYSET))[0] for _ in range(5)]
        assert (statuses, fake.refused, fake.busiest("/keyset", 1.0)) == ([200, 200, 200, 429, 429], 2, 5)
        fake.arrivals.clear()


async def test_books_may_move_before_each_collection(fake: FakePolymarket) -> None:
    fake.odd.moving_share = 1.0
    token = next(market for market in fake.markets.values() if market.bids).tokens[0]
    seen = []
    for _ in range(3):
        for cursor in ({}, {"order": "id", "ascending": "false"}):
            await get(fake, KEYSET, **cursor)
        _, (book,) = await post(fake, "/clob/books", [{"token_id": token}])
        seen.append(book["bids"])
        await get(fake, KEYSET, id=next(iter(fake.markets)))
        assert (await post(fake, "/clob/books", [{"token_id": token}]))[1][0]["bids"] == seen[-1]
    assert seen[0] != seen[1] != seen[2]


README = (PROJECT / "README.md").read_text()
QUICK_START = re.search(r"```console\n(.*?)\$ sqlite3 -box stand_in.db \"(.*?)\"\n(.*?)```", README, re.DOTALL)
(BIGGEST_MOVES,) = (query for query in re.findall(r"```sql\n(.*?)```", README, re.DOTALL) if "AS move" in query)


def test_as_a_command_it_answers_as_the_readme_says_with_other_prices_each_time(tmp_path: Path) -> None:
    """So that the query for the biggest moves finds some after a second run; all else is as it was."""
    assert QUICK_START
    shown, query, table = QUICK_START.groups()
    stand_in, collector = PROJECT / "tests/fake_polymarket.py", PROJECT / "async-collector.py"
    command, file = [sys.executable, str(stand_in), sys.executable, str(collector)], tmp_path / "stand_in.db"
    for number in (1, 2):
        done = subprocess.run(command, cwd=tmp_path, timeout=60, check=True, capture_output=True, text=True)
        printed = (done.stderr + done.stdout).replace("Run 2 is", "Run 1 is")
        steady = [line for line in shown.splitlines() if not re.search("duration|per s|books", line)]
        assert [line for line in printed.splitlines() if not re.search("duration|per s|books", line)] == steady
        assert number == 2 or set(re.findall("books .*", shown)) <= set(re.findall("books .*", printed))
        rendered = [[str(value) for value in row.values()] for row in rows(file, query)]
        assert [re.findall(r"[^│ ]+", line) for line in table.splitlines()[3:-1]] == rendered
    moves = rows(file, BIGGEST_MOVES)
    assert len(moves) == 10
    assert all(0.01 <= abs(row["move"]) <= 0.06 for row in moves)


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
