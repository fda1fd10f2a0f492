"""covers: odd values cost what they are and nothing else: not their row, not their list, not their run."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows
from fake_polymarket import TOPICS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from truth import assert_true, failures, stored_rows, true_row, true_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

    from async_collector import AsyncCollector

    Make = Callable[..., AsyncCollector]

few = settings(
    max_examples=8,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # an example is a whole run: shrinking one would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
numbers = itertools.count()
SNAPSHOT_AND_MARKET = (
    "SELECT * FROM markets JOIN snapshots USING (market_id) WHERE run_id = (SELECT max(run_id) FROM runs)"
)


def book_of(bids: list[Any] | None, asks: list[Any] | None) -> dict[str, Any]:
    """Return what to overwrite in a book; a pair is a price and a size, anything else is sent as it is."""

    def side(levels: list[Any] | None) -> list[Any] | None:
        if levels is None:
            return None
        return [
            dict(zip(("price", "size"), level, strict=True)) if isinstance(level, tuple) else level for level in levels
        ]

    return {"bids": side(bids), "asks": side(asks)}


# --- number forms

FORMS: dict[str, Callable[[Decimal], Any]] = {
    "plain": str,
    "without a zero before the point": lambda value: str(value).removeprefix("0") if value % 1 else str(value),
    "padded": lambda value: f"{value:.8f}",
    "with an exponent": lambda value: f"{value:e}",
    "a number": float,
}
prices = st.integers(1, 9_999).map(lambda tick: Decimal(tick) / 10_000)
sizes = st.integers(1, 10**9).map(lambda cents: Decimal(cents) / 100)


@pytest.mark.parametrize("digits", ["dotted", "padded"])
async def test_every_book_may_write_its_numbers_in_another_form(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, digits: str
) -> None:
    for market in exchange.markets.values():
        exchange.change(market, digits=digits)
    result = await collector.collect_all()
    assert (result["status"], result["books_missing"], failures(database)) == ("complete", 0, [])
    assert_true(database, exchange.markets.values())


@few
@given(data=st.data())
async def test_a_number_is_the_same_in_every_form_that_readers_take(
    exchange: FakePolymarket, make_collector: Make, tmp_path: Path, data: st.DataObject
) -> None:
    database = tmp_path / f"{next(numbers)}.db"
    forms = st.sampled_from(sorted(FORMS))
    for market in exchange.markets.values():
        bid, ask = data.draw(prices), data.draw(prices)
        bid_size, ask_size = data.draw(sizes), data.draw(sizes)
        write = [FORMS[data.draw(forms)] for _ in range(4)]
        exchange.change(market, bids=((str(bid), str(bid_size)),), asks=((str(ask), str(ask_size)),))
        yes = book_of([(write[0](bid), write[1](bid_size))], [(write[2](ask), write[3](ask_size))])
        exchange.change(market, book_changes=(yes, {}))
    await make_collector(db_path=database).collect_all()
    assert_true(database, exchange.markets.values())


@pytest.mark.parametrize(
    "price", ["NaN", "inf", "-inf", "0x1", "1_0", "abc", "", "1.01", "-0.01", "1e400", True, [], {}]
)
async def test_what_is_no_price_is_no_level(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, price: object
) -> None:
    market = next(iter(exchange.markets.values()))
    exchange.change(market, bids=(("0.4", "3"),), asks=(("0.6", "2"),))
    exchange.change(market, book_changes=(book_of([("0.4", "3"), (price, "9")], [(price, "9"), ("0.6", "2")]), {}))
    result = await collector.collect_all()
    assert (result["status"], result["books_missing"]) == ("complete", 0)
    assert_true(database, exchange.markets.values())


# --- levels

BAD_LEVELS: list[Any] = [
    ("0.5", "-5"),
    ("1.01", "5"),
    ("-0.01", "5"),
    ("0.5", "0"),
    ("0.5", None),
    (None, "5"),
    ("0.5", "much"),
    ("0.5", "NaN"),
    ("0.5", "1e400"),
    {"price": "0.5"},
    {"size": "5"},
    {},
    None,
    [],
    "0.5",
    0.5,
    [["0.5", "5"]],
]


@few
@given(data=st.data())
async def test_a_level_that_cannot_be_costs_itself_only(
    exchange: FakePolymarket, make_collector: Make, tmp_path: Path, data: st.DataObject
) -> None:
    database = tmp_path / f"{next(numbers)}.db"
    bad = st.lists(st.sampled_from(BAD_LEVELS), max_size=3)
    for market in exchange.markets.values():
        good = [
            data.draw(st.lists(st.tuples(prices.map(str), sizes.map(str)), max_size=4, unique_by=lambda x: x[0]))
            for _ in "ba"
        ]
        exchange.change(market, bids=tuple(good[0]), asks=tuple(good[1]))
        sent = [data.draw(st.permutations(good[side] + data.draw(bad))) for side in (0, 1)]
        exchange.change(market, book_changes=(book_of(*sent), {}))
    result = await make_collector(db_path=database).collect_all()
    assert (result["status"], result["books_missing"]) == ("complete", 0)
    assert_true(database, exchange.markets.values())


async def test_a_price_that_is_named_twice_is_one_of_them(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    exchange.change(market, book_changes=(book_of([("0.3", "1"), ("0.4", "3"), ("0.4", "5")], [("0.6", "2")]), {}))
    result = await collector.collect_all()
    assert (result["status"], failures(database)) == ("complete", [])
    row = stored_rows(database)[market.id]
    assert row["best_bid_yes"] == 0.4
    assert row["bid_size_yes"] in {3, 5, 8}


@pytest.mark.parametrize("side", ["bids", "asks"])
async def test_a_side_that_is_null_is_empty_and_costs_the_other_nothing(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, side: str
) -> None:
    for market in list(exchange.markets.values())[::2]:
        no = "asks" if side == "bids" else "bids"
        exchange.change(market, **{side: ()})
        exchange.change(market, book_changes=({side: None}, {no: None}))
    result = await collector.collect_all()
    assert (result["status"], result["books_missing"], failures(database)) == ("complete", 0, [])
    assert_true(database, exchange.markets.values())


# --- optional fields of a market

ODD_FIELDS: list[tuple[str, Any, dict[str, Any]]] = [
    ("lastTradePrice", "", {"last_trade_price": None}),
    ("lastTradePrice", "0.45", {"last_trade_price": 0.45}),
    ("lastTradePrice", ".45", {"last_trade_price": 0.45}),
    ("lastTradePrice", 1.01, {"last_trade_price": None}),
    ("lastTradePrice", -0.01, {"last_trade_price": None}),
    ("lastTradePrice", {}, {"last_trade_price": None}),
    ("volume24hr", "", {"volume_24h": None}),
    ("volume24hr", "1,234.5", {"volume_24h": None}),
    ("volume24hr", "1.2e5", {"volume_24h": 120_000.0}),
    ("volume24hr", -3.5, {"volume_24h": None}),
    ("volume24hr", "NaN", {"volume_24h": None}),
    ("volume24hr", [], {"volume_24h": None}),
    ("liquidity", "", {}),
    ("liquidity", [], {}),
    ("outcomePrices", "", {}),
    ("outcomePrices", "null", {}),
    ("outcomePrices", '["0.5", null]', {}),
    ("outcomePrices", '["", ""]', {}),
    ("outcomePrices", '["1.0000001", "-0.0000001"]', {}),
    ("outcomePrices", ["0.5", "0.5"], {}),
    ("outcomePrices", "[0.5, 0.5", {}),
    ("outcomePrices", 7, {}),
    ("outcomes", ["Yes", "No"], {"outcome_yes": "Yes", "outcome_no": "No"}),
    ("outcomes", '["Yes", "Yes"]', {"outcome_yes": "Yes", "outcome_no": "Yes"}),
    ("tags", [{"id": "1", "label": None}], {"category": None}),
    ("tags", [{"id": "1"}], {"category": None}),
    ("tags", [None], {"category": None}),
    ("tags", [{"id": "1", "label": ""}], {"category": None}),
    ("tags", [{"id": "1", "label": 5}, None, {"label": "NBA"}, 7], {"category": "NBA", "tags": '["NBA"]'}),
    ("tags", {}, {"category": None}),
    ("tags", "Crypto", {"category": None}),
    ("events", [None], {"event_slug": None}),
    ("events", [{"slug": None}], {"event_slug": None}),
    ("events", [{"slug": ""}], {"event_slug": None}),
    ("events", [], {"event_slug": None}),
    ("events", {}, {"event_slug": None}),
    ("endDate", 1_795_000_000, {"end_time": None}),
    ("endDate", "", {"end_time": None}),
    ("endDate", "soon", {"end_time": None}),
    ("endDate", "0001-01-01T00:00:00Z", {"end_time": None}),
    ("startDate", False, {"start_time": None}),
    ("question", 5, {"question": None}),
    ("question", "", {"question": None}),
    ("question", "q" * 3_000, {"question": "q" * 3_000}),
    ("description", 5, {"description": None}),
    ("description", "", {"description": None}),
    ("slug", "", {"slug": None}),
    ("slug", ["a"], {"slug": None}),
    ("conditionId", "", {"condition_id": None}),
    ("category", 3, {}),
    ("acceptingOrders", "true", {}),
    ("enableOrderBook", "yes", {}),
    ("umaResolutionStatuses", "{", {}),
    ("umaResolutionStatus", 4, {}),
    ("closedTime", 7, {}),
]


async def test_an_odd_optional_field_is_null_and_costs_the_row_nothing_else(
    exchange: FakePolymarket, make_collector: Make, database: Path
) -> None:
    """One market in five has one odd field; its books and its other fields are stored as they are."""
    while len(exchange.markets) < len(ODD_FIELDS) * 5:
        exchange.add_market(volume_24h=200_000.0)
    plain = {market.id: market for market in exchange.markets.values()}
    expected: dict[str, dict[str, Any]] = {}
    for market, (key, value, columns) in zip(list(plain.values())[::5], ODD_FIELDS, strict=True):
        exchange.change(market, changes={key: value})
        expected[market.id] = columns
    result = await make_collector(min_volume=0).collect_all()
    assert result["drift"] is None
    found = {row["market_id"]: row for row in rows(database, SNAPSHOT_AND_MARKET)}
    wrong = []
    for market, (key, value, _) in zip(list(plain.values())[::5], ODD_FIELDS, strict=True):
        wanted = {**true_row(market), **true_market(market), **expected[market.id]}
        row = found.get(market.id)
        if row is None:
            wrong.append((key, value, "the row is lost"))
            continue
        wrong += [
            (key, value, f"{name} is {row[name]!r}, not {want!r}")
            for name, want in wanted.items()
            if (round(row[name], 9) if isinstance(row[name], float) and name != "volume_24h" else row[name]) != want
        ]
    assert wrong == []
    assert set(found) == set(plain)


def true_market(market: FakeMarket) -> dict[str, Any]:
    return {
        "slug": market.slug,
        "question": market.question,
        "description": market.description,
        "condition_id": market.condition_id,
        "event_slug": market.event_slug,
        "token_id_yes": market.tokens[0],
        "token_id_no": market.tokens[1],
    }


@pytest.mark.parametrize("key", ["liquidityNum", "liquidity"])
async def test_liquidity_is_read_from_the_other_field_where_one_is_odd(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, key: str
) -> None:
    for market in list(exchange.markets.values())[::5]:
        exchange.change(market, changes={key: ""})
    await collector.collect_all()
    assert_true(database, exchange.markets.values())


@few
@given(data=st.data())
async def test_any_value_of_an_optional_field_leaves_prices_and_books_alone(
    exchange: FakePolymarket, make_collector: Make, tmp_path: Path, data: st.DataObject
) -> None:
    database = tmp_path / f"{next(numbers)}.db"
    scalars = (
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    )
    values = st.recursive(
        scalars | st.text(max_size=20),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
        max_leaves=5,
    )
    keys = ["lastTradePrice", "outcomePrices", "tags", "events", "endDate", "startDate", "question", "description"]
    keys += ["slug", "category", "umaResolutionStatuses", "closedTime", "bestBid", "spread", "eventStartTime"]
    for market in list(exchange.markets.values())[::5]:
        exchange.change(market, changes={data.draw(st.sampled_from(keys)): data.draw(values)})
    result = await make_collector(db_path=database).collect_all()
    for market in exchange.markets.values():
        exchange.change(market, changes={})
    assert (result["drift"], result["books_missing"], result["snapshots"]) == (None, 0, 60)
    wanted = {id_: without(row, "last_trade_price") for id_, row in true_rows(exchange.markets.values()).items()}
    assert {id_: without(row, "last_trade_price") for id_, row in stored_rows(database).items()} == wanted


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize("min_volume", [0, 100_000])
async def test_an_id_that_is_a_number_is_that_id(
    exchange: FakePolymarket, make_collector: Make, database: Path, min_volume: float
) -> None:
    for market in list(exchange.markets.values())[::2]:
        exchange.change(market, changes={"id": market.number})
    collector = make_collector(min_volume=min_volume)
    for _ in range(2):
        result = await collector.collect_all()
        assert (result["stats"]["markets_fetched"], result["snapshots"], result["status"]) == (60, 60, "complete")
        assert_true(database, exchange.markets.values())


@pytest.mark.parametrize("nothing", ["", "[]", "null", None, []])
async def test_a_market_without_tokens_is_not_on_the_clob_yet_and_no_failure(
    exchange: FakePolymarket, make_collector: Make, database: Path, nothing: object
) -> None:
    early = list(exchange.markets.values())[:10]
    for market in early:
        exchange.change(market, changes={"clobTokenIds": nothing, "outcomes": nothing})
    collector = make_collector()
    for _ in range(2):
        result = await collector.collect_all()
        assert (result["stats"]["markets_fetched"], result["status"], failures(database)) == (50, "complete", [])
        assert_true(database, list(exchange.markets.values())[10:])


# --- the last trade


@pytest.mark.parametrize("has_books", [True, False])
async def test_the_last_trade_is_gammas_which_is_in_terms_of_yes(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, *, has_books: bool
) -> None:
    """A book's own figure is that of whichever token traded last."""
    said = [("0.001", 0.001), (None, None), ("0", None)]
    wanted = {}
    for market, (trade, stored) in zip(exchange.markets.values(), said, strict=False):
        changes = {"lastTradePrice": None if trade is None else float(trade)}
        other = {"last_trade_price": "0.999"}
        exchange.change(market, changes=changes, book_changes=(other, other), has_books=has_books)
        wanted[market.id] = stored
    await collector.collect_all()
    found = stored_rows(database)
    assert {id_: found[id_]["last_trade_price"] for id_ in wanted} == wanted


# --- headers


@pytest.mark.parametrize("size", [8_191, 16_000])
async def test_a_long_header_costs_nothing(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, size: int
) -> None:
    exchange.odd.headers = {"X-Policy": "p" * size}
    result = await collector.collect_all()
    assert (result["status"], result["stats"]["errors"]) == ("complete", 0)
    assert_true(database, exchange.markets.values())


# --- categories

CATEGORIES: list[tuple[str, str | None]] = [
    ("Esports, counter strike 2, Games, Sports", "Esports"),
    ("Geopolitics, Politics, nato", "Geopolitics"),
    ("Elections, US Election, Politics", "Elections"),
    ("All, Pop Culture", "Pop Culture"),
    ("Hide From New, NBA", "NBA"),
    ("Earn 4%, Middle East", "Middle East"),
    ("Recurring, Up or Down, Crypto Prices", "Up or Down"),
    ("Games, Soccer, EPL", "Soccer"),
    ("Weekly", None),
    ("", None),
    ("Crypto, Crypto Prices, Bitcoin", "Crypto"),
]
HOUSEKEEPING = (
    *("All", "Hide From New", "Recurring", "Featured", "Games", "Daily", "Weekly", "Monthly", "Trending Markets"),
    *("Trending", "Breaking News", "Rewards 20, 4.5, 50", "Rewards 500", "Earn 4%", "Earn 12.5%", "Pre-Market"),
    *("Parlays", "Hit First", "2025 Predictions", "2026 Predictions", "Other", "parent For Derivative"),
)


def category(database: Path, market: FakeMarket) -> str | None:
    (row,) = rows(database, "SELECT category FROM markets WHERE market_id = ?", market.id)
    found: str | None = row["category"]
    return found


@pytest.mark.parametrize("order", [1, -1], ids=["as sent", "backwards"])
async def test_a_category_is_a_topic_the_narrow_one_before_the_broad_one(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, order: int
) -> None:
    """A label of the exchange's housekeeping is no topic; among other labels the first counts."""
    cases = [
        case for case in CATEGORIES if order == 1 or case[1] in {"Esports", "Geopolitics", "Elections", "Crypto", None}
    ]
    markets = dict(zip(cases, exchange.markets.values(), strict=False))
    for (tags, _), market in markets.items():
        exchange.change(market, tags=tuple(tags.split(", "))[::order] if tags else ())
    await collector.collect_all()
    assert {tags: category(database, market) for (tags, _), market in markets.items()} == dict(cases)


@few
@given(data=st.data())
async def test_no_label_of_the_housekeeping_is_ever_a_category(
    exchange: FakePolymarket, make_collector: Make, tmp_path: Path, data: st.DataObject
) -> None:
    database = tmp_path / f"{next(numbers)}.db"
    topics = [*sorted({label for topic in TOPICS for label in topic} - set(HOUSEKEEPING)), "Lakers", "nato", "été"]
    kept = st.sampled_from(HOUSEKEEPING).flatmap(lambda label: st.sampled_from((label, label.lower(), label.upper())))
    labels = st.lists(kept | st.sampled_from(topics), max_size=5, unique_by=str.casefold)
    for market in exchange.markets.values():
        exchange.change(market, tags=tuple(data.draw(labels)))
    await make_collector(db_path=database).collect_all()
    for market in exchange.markets.values():
        found = category(database, market)
        assert found in (set(market.tags) & set(topics) or [None])
        (row,) = rows(database, "SELECT tags FROM markets WHERE market_id = ?", market.id)
        assert json.loads(row["tags"] or "[]") == list(market.tags), "tags are kept as they are"


async def test_a_category_of_an_older_file_is_corrected_when_the_market_is_seen_again(
    exchange: FakePolymarket, collector: AsyncCollector, database: Path, write: Callable[..., None]
) -> None:
    nameless, sport = list(exchange.markets.values())[:2]
    exchange.change(nameless, tags=("Weekly",))
    exchange.change(sport, tags=("Games", "Soccer"))
    await collector.collect_all()
    write("UPDATE markets SET category = 'Weekly'")
    await collector.collect_all()
    assert (category(database, nameless), category(database, sport)) == (None, "Soccer")
