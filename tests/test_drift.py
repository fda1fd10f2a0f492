"""covers: fields that may be anything, hostile texts, and an exchange that has changed its shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows
from truth import failures

import async_collector as ac

if TYPE_CHECKING:
    from fake_polymarket import FakePolymarket

# --- what does not fit one row costs that row


BAD_VALUES: tuple[Any, ...] = (
    None, True, -1, 10**400, "", "x", "nan", "1_000", " 0.5 ", "\u0660.\u0665", "'); DROP TABLE markets;--", "%s{}",
    "\x1b[31m",    "9" * 10_000, "x" * 200_000, [], {}, [None], '["0.5"]', '["nan","1"]', '["a","b","c"]',
)  # fmt: skip
ABSENT = object()


def spoiled(sent: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """Return *sent* with another *value*, or without one."""
    return {name: old for name, old in sent.items() if name != key} | ({} if value is ABSENT else {key: value})


async def test_every_field_of_a_market_may_be_anything(exchange: FakePolymarket) -> None:
    truth = [exchange.gamma_market(market, with_tags=True) for market in list(exchange.markets.values())[:3]]
    for key in truth[1]:
        for value in (*BAD_VALUES, ABSENT):
            odd = spoiled(truth[1], key, value)
            page = ac.decode_page(json.dumps({"markets": [truth[0], odd, truth[2]]}).encode())
            understood = {market.market_id: market for market in page.markets}
            assert {truth[0]["id"], truth[2]["id"]} <= set(understood), (key, value)
            assert len(page.markets) + len(page.undecoded) == 3
            if len(page.markets) == 3:
                (market,) = set(understood) - {truth[0]["id"], truth[2]["id"]}
                nothing_invented(understood[market], odd)
            else:
                assert page.undecoded[0].reason.isprintable()


def nothing_invented(market: ac.GammaMarket, sent: dict[str, Any]) -> None:
    """Check that every stored value of *market* is one that was sent, or is absent."""
    if not market.is_open:
        return
    row = ac.Market.from_wire(market, seen_at="2026-11-22 14:15:00")
    for column, key in (("question", "question"), ("slug", "slug"), ("description", "description")):
        assert getattr(row, column) in (sent.get(key), None)
    assert [row.token_id_yes, row.token_id_no] == json.loads(sent["clobTokenIds"])
    snapshot = ac.Snapshot.from_wire(market, None, None, run_id=1, received_at="2026-11-22 14:15:00")
    for value, key in ((snapshot.volume_24h, "volume24hr"), (snapshot.last_trade_price, "lastTradePrice")):
        assert value is None or value == float(sent[key])
    if snapshot.price_yes is not None:
        assert snapshot.price_yes == float(json.loads(sent["outcomePrices"])[0])


async def test_every_field_of_a_book_may_be_anything(exchange: FakePolymarket) -> None:
    tokens = [market.tokens[0] for market in exchange.markets.values() if market.bids and market.asks][:3]
    truth = [json.loads(exchange.book(token) or b"") for token in tokens]
    books_as_sent, _ = ac.decode_books(json.dumps(truth).encode())
    for key in truth[1]:
        for value in (*BAD_VALUES, ABSENT):
            books, rejected = ac.decode_books(json.dumps([truth[0], spoiled(truth[1], key, value), truth[2]]).encode())
            assert {tokens[0], tokens[2]} <= {book.token_id for book in books}, (key, value)
            assert len(books) + len(rejected) == 3
    for key in ("price", "size"):
        for value in (*BAD_VALUES, ABSENT):
            level = spoiled({"price": "0.5", "size": "7"}, key, value)
            books, rejected = ac.decode_books(json.dumps([truth[0], truth[1] | {"bids": [level]}, truth[2]]).encode())
            assert [book.token_id for book in books] == tokens, (key, value)
            assert books[1].asks == books_as_sent[1].asks
            assert (books[1].bids, books[1].unreadable, rejected) == ([], ("bids",), [])


def test_of_a_key_that_comes_twice_the_last_value_counts() -> None:
    body = b'[{"asset_id":"1","asset_id":"2","bids":[],"asks":[{"price":"0.5","size":"1"}],"asks":[]}]'
    assert ac.decode_books(body) == ([ac.OrderBook("2", [], [])], [])


@pytest.mark.parametrize(
    "body",
    [b'\xef\xbb\xbf[{"asset_id":"1","bids":[],"asks":[]}]', b'[{"asset_id":"1","bids":[],"asks":[],"x":"\xff"}]'],
)
def test_a_byte_order_mark_or_broken_utf_8_costs_nothing(body: bytes) -> None:
    assert ac.decode_books(body) == ([ac.OrderBook("1", [], [])], [])


async def test_hostile_texts_are_stored_as_they_are_and_shown_escaped(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [
        "'); DROP TABLE markets;--",
        "%s %d {0} {}",
        "\x1b[31mred\nline\u202ebidi",
        "=HYPERLINK(1)",
        "a\0b",
    ]
    markets = list(exchange.markets.values())
    for market, text in zip(markets, texts, strict=False):
        exchange.change(market, changes={"question": text, "slug": text, "events": [{"slug": text}]})

    def spoil(page: dict[str, Any]) -> dict[str, Any]:
        page["markets"][0]["active"] = texts[2]
        return page

    exchange.fail_next("/markets/keyset", mutate=spoil)
    exchange.fail_next("/books", status=400, body=f"<\x1b]0;pwned\x07{texts[2]}".encode(), times=3)
    result = await collector.collect_all()
    stored = {row["market_id"]: row for row in rows(database, "SELECT * FROM markets")}
    shown = [text.replace("\0", "\ufffd") for text in texts]
    for market, text in zip(markets, shown, strict=False):
        if market.id in stored:
            assert (stored[market.id]["question"], stored[market.id]["event_slug"]) == (text, text)
    reasons = [row["reason"] for row in failures(database)]
    assert len(reasons) == 2
    assert all(text.isprintable() for text in [*reasons, str(result["reason"]), *caplog.messages])
    assert any(r"\x1b]0;pwned\x07" in text.replace("\\\\", "\\") for text in reasons)


# --- drift: the exchange has changed


@pytest.mark.parametrize(
    "key", ["id", "active", "closed", "clobTokenIds", "question", "slug", "conditionId", "outcomes"]
)
async def test_a_renamed_field_of_markets_is_loud_and_stores_nothing(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, key: str
) -> None:
    def rename(page: dict[str, Any]) -> dict[str, Any]:
        for market in page["markets"]:
            market[f"{key}V2"] = market.pop(key)
        return page

    database.touch()
    exchange.fail_next("/markets/keyset", times=9, mutate=rename)
    with pytest.raises(ac.MalformedResponseError, match=f"`{key}`"):
        await collector.collect_all()
    assert rows(database, "SELECT * FROM markets") == rows(database, "SELECT * FROM snapshots") == []
    assert len(exchange.asked("/markets/keyset")) == 1


@pytest.mark.parametrize("key", ["asset_id", "bids", "asks"])
async def test_a_renamed_field_of_books_is_loud_and_stores_no_book(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, key: str
) -> None:
    exchange.fail_next(
        "/books", times=9, mutate=lambda books: [{**spoiled(book, key, ABSENT), "v2": book[key]} for book in books]
    )
    result = await collector.collect_all()
    assert f"the first: Object missing required field `{key}`" in str(result["drift"])
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 60, 60)
    assert rows(database, "SELECT DISTINCT best_bid_yes FROM snapshots") == [{"best_bid_yes": None}]


async def test_a_change_in_the_middle_of_a_listing_keeps_what_was_understood_and_is_loud(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    for _ in range(240):
        exchange.add_market(volume_24h=200_000.0)
    exchange.fail_next("/markets/keyset")
    exchange.fail_next(
        "/markets/keyset",
        times=9,
        mutate=lambda page: page | {"markets": [spoiled(market, "active", "soon") for market in page["markets"]]},
    )
    result = await collector.collect_all()
    assert (result["status"], result["snapshots"]) == ("partial", 100)
    assert "100 of 100 elements are not understood, the first: Expected `bool`, got `str` - at `$.active`" in str(
        result["drift"]
    )
