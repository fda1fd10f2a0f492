"""covers: what a row means: pure functions from what the exchange sends to what is stored."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_collector import (
    REPORTED_KEYS,
    Book,
    GammaMarket,
    GammaTag,
    Level,
    Market,
    OrderBook,
    Snapshot,
    decode_books,
    decode_page,
    main_topic,
    sql_time_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ticks = st.integers(1, 9_999).map(lambda tick: tick / 10_000)
sizes = st.just(0.0) | st.integers(1, 10**9).map(lambda size: size / 100)
levels = st.lists(st.builds(Level, price=ticks | st.sampled_from([0.4, 0.5]), size=sizes), max_size=12)
books = st.builds(
    OrderBook,
    token_id=st.just("1"),
    bids=levels,
    asks=levels,
    changed_ms=st.integers(10**12, 4 * 10**12),
)

GAMMA: dict[str, Any] = {
    "id": "538932",
    "question": "Will it rain?",
    "conditionId": "0xebdd",
    "slug": "will-it-rain",
    "description": "On %s; '); DROP TABLE markets;--",
    "outcomes": '["Yes", "No"]',
    "outcomePrices": '["0.9185", "0.0815"]',
    "clobTokenIds": '["339", "105"]',
    "startDate": "2025-04-22T16:10:05.987Z",
    "endDate": "2025-11-04T12:00:00Z",
    "active": True,
    "closed": False,
    "acceptingOrders": True,
    "enableOrderBook": True,
    "volume24hr": 14261311.7,
    "liquidity": "1134345.90618",
    "liquidityNum": 1134345.90618,
    "lastTradePrice": 0.919,
    "events": [{"id": "1", "slug": "rain"}],
    "tags": [{"id": "1", "label": "Climate", "slug": "climate"}, {"id": "2", "label": "Weather", "slug": "weather"}],
}


def gamma_market(**changes: object) -> GammaMarket:
    """Decode a market as Gamma would send it; None leaves a key out."""
    sent = {key: value for key, value in (GAMMA | changes).items() if value is not None}
    (market,) = decode_page(msgspec.json.encode({"markets": [sent]})).markets
    return market


def test_a_market_row_has_the_exchanges_words() -> None:
    assert Market.from_wire(gamma_market(), seen_at="2026-11-22 14:15:00") == Market(
        market_id="538932",
        slug="will-it-rain",
        question="Will it rain?",
        description="On %s; '); DROP TABLE markets;--",
        category="Weather",
        token_id_yes="339",
        token_id_no="105",
        start_time="2025-04-22 16:10:05",
        end_time="2025-11-04 12:00:00",
        condition_id="0xebdd",
        event_slug="rain",
        outcome_yes="Yes",
        outcome_no="No",
        tags='["Climate","Weather"]',
        neg_risk=None,
        tick_size=None,
        min_order_size=None,
        fee_rate=None,
        first_seen="2026-11-22 14:15:00",
    )


@pytest.mark.parametrize(
    ("sent", "row"),
    [
        ({"negRisk": True, "orderPriceMinTickSize": 0.001, "orderMinSize": 5}, (True, 0.001, 5, None)),
        ({"negRisk": False, "orderPriceMinTickSize": "0.01", "orderMinSize": "15"}, (False, 0.01, 15, None)),
        (
            {"feesEnabled": True, "feeSchedule": {"exponent": 1, "rate": 0.05, "takerOnly": True}},
            (None, None, None, 0.05),
        ),
        ({"feesEnabled": False, "feeSchedule": None}, (None, None, None, 0)),
        ({"feesEnabled": True}, (None, None, None, None)),
        ({"feeSchedule": {"rate": "0.05"}}, (None, None, None, 0.05)),
        ({"feeSchedule": {"rate": "+.05"}}, (None, None, None, 0.05)),
        ({"feeSchedule": {}}, (None, None, None, None)),
        ({"negRisk": "perhaps", "orderPriceMinTickSize": 5, "feeSchedule": []}, (None, None, None, None)),
    ],
)
def test_the_terms_of_a_market_are_those_that_were_sent(sent: dict[str, Any], row: tuple[object, ...]) -> None:
    market = Market.from_wire(gamma_market(**sent), seen_at="now")
    assert (market.neg_risk, market.tick_size, market.min_order_size, market.fee_rate) == row


@pytest.mark.parametrize("rate", ["x", True, 5, -0.1, [0.05]])
def test_a_fee_rate_that_cannot_be_one_is_said_to_be_lost(rate: object) -> None:
    market = gamma_market(feesEnabled=True, feeSchedule={"exponent": 1, "rate": rate})
    assert (market.fee_rate, market.unreadable) == (None, ("rate",))
    assert set(market.unreadable) <= REPORTED_KEYS


@pytest.mark.parametrize(
    ("sent", "volume"),
    [
        ({"volumeNum": 9.5, "volume": "9.4"}, 9.5),
        ({"volume": "9.4"}, 9.4),
        ({"volumeNum": -1, "volume": "8"}, 8),
        ({}, None),
    ],
)
def test_the_whole_volume_is_the_number_or_else_the_text(sent: dict[str, Any], volume: float | None) -> None:
    row = Snapshot.from_wire(gamma_market(**sent), None, None, run_id=1, received_at="now")
    assert row.volume == volume


def test_what_is_absent_is_none() -> None:
    bare = gamma_market(**dict.fromkeys(GAMMA.keys() - {"id", "active", "closed", "clobTokenIds"}))
    row = Market.from_wire(bare, seen_at="now")
    known = {
        "market_id": "538932",
        "token_id_yes": "339",
        "token_id_no": "105",
        "first_seen": "now",
    }
    assert row._asdict() == dict.fromkeys(Market._fields) | known
    snapshot = Snapshot.from_wire(bare, None, None, run_id=7, received_at="now")
    known_then = {"market_id": "538932", "timestamp": "now", "run_id": 7}
    assert snapshot._asdict() == dict.fromkeys(Snapshot._fields) | known_then


@given(yes=st.none() | books, no=st.none() | books)
def test_a_snapshot_says_what_the_books_say(yes: OrderBook | None, no: OrderBook | None) -> None:
    """Every column against a plain computation.

    The order of the levels means nothing, one of size 0 is none, and a price may be named more than once.
    """

    def best(levels: list[Level], choose: Callable[[set[float]], float]) -> tuple[float, float] | None:
        prices = {level.price for level in levels if level.size}
        if not prices:
            return None
        price = choose(prices)
        return price, round(sum(level.size for level in levels if level.price == price), 6)

    def bid(book: OrderBook | None) -> tuple[float, float] | None:
        return best(book.bids, max) if book else None

    def ask(book: OrderBook | None) -> tuple[float, float] | None:
        return best(book.asks, min) if book else None

    row = Snapshot.from_wire(gamma_market(), yes, no, run_id=7, received_at="2026-11-22 14:15:00")
    sizes = ("bid_size_yes", "ask_size_yes", "bid_size_no", "ask_size_no")
    row = row._replace(**{name: size and round(size, 6) for name in sizes if (size := getattr(row, name)) is not None})
    b, a = bid(yes), ask(yes)
    assert (row.best_bid_yes, row.bid_size_yes) == (b or (None, None))
    assert (row.best_ask_yes, row.ask_size_yes) == (a or (None, None))
    assert (row.best_bid_no, row.bid_size_no) == (bid(no) or (None, None))
    assert (row.best_ask_no, row.ask_size_no) == (ask(no) or (None, None))
    assert row.spread == (pytest.approx(a[0] - b[0]) if a and b else None)
    expected = ((b[0] if b else 0) + (a[0] if a else 1)) / 2 if yes else 0.9185
    assert row.price_yes == pytest.approx(expected)
    assert row.price_no == pytest.approx(1 - expected)
    assert row.last_trade_price == 0.919
    assert (row.book_time is None) == (not (yes or no))
    assert (row.market_id, row.timestamp, row.volume_24h, row.liquidity, row.run_id) == (
        "538932",
        "2026-11-22 14:15:00",
        14261311.7,
        1134345.90618,
        7,
    )


def test_a_price_that_is_named_more_than_once_counts_with_all_its_sizes() -> None:
    """The best size has no noise of binary arithmetic; the stored book is what was sent."""
    bids = [Level(0.4, 0.1), Level(0.3, 9.0), Level(0.4, 0.2), Level(0.4, 0.0)]
    book = OrderBook(token_id="1", bids=bids, asks=[Level(0.5, 2.0), Level(0.5, 3.0)])
    row = Snapshot.from_wire(gamma_market(), book, None, run_id=1, received_at="now")
    assert (row.best_bid_yes, row.bid_size_yes, row.best_ask_yes, row.ask_size_yes) == (0.4, 0.3, 0.5, 5.0)
    stored = Book.from_wire("1", book, None, depth=None, received_at="now")
    assert stored is not None
    assert (stored.bids, stored.asks) == ("[[0.4,0.1],[0.4,0.2],[0.3,9]]", "[[0.5,2],[0.5,3]]")


def test_prices_carry_no_noise_of_binary_arithmetic() -> None:
    book = OrderBook("1", [Level(0.918, 1)], [Level(0.919, 1)])
    row = Snapshot.from_wire(gamma_market(), book, None, run_id=1, received_at="now")
    assert (row.price_yes, row.price_no, row.spread) == (0.9185, 0.0815, 0.001)


def test_a_last_trade_of_zero_is_no_trade() -> None:
    row = Snapshot.from_wire(gamma_market(lastTradePrice=0), None, None, run_id=1, received_at="now")
    assert row.last_trade_price is None


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("2025-04-22T16:10:05Z", "2025-04-22 16:10:05"),
        ("2025-04-22T16:10:05.9Z", "2025-04-22 16:10:05"),
        ("2025-04-22T16:10:05.987654Z", "2025-04-22 16:10:05"),
        ("2025-04-22T16:10:05+02:00", "2025-04-22 14:10:05"),
        ("2026-09-09 14:25:04+00", "2026-09-09 14:25:04"),
        ("2026-09-09", "2026-09-09 00:00:00"),
        ("2026-12-31T24:00:00Z", "2027-01-01 00:00:00"),
        ("2026-12-31 24:00+02", "2026-12-31 22:00:00"),
        ("2026-12-31t24:00:00.000z", "2027-01-01 00:00:00"),
        ("20261231T240000Z", "2027-01-01 00:00:00"),
        ("2028-02-29T23:59:60Z", "2028-02-29 23:59:59"),
        ("2026-12-31 23:59:60.5-01:00", "2027-01-01 00:59:59"),
        ("20261231T235960", "2026-12-31 23:59:59"),
        ("2026-11-30 23:59:59.123456789+00", "2026-11-30 23:59:59"),
        ("2026-W49-1T10:00:00Z", "2026-11-30 10:00:00"),
        ("2026-11-31T00:00:00Z", None),
        ("2026-12-31T24:00:01Z", None),
        ("2026-12-31T25:00:00Z", None),
        ("2026-12-31T23:60:00Z", None),
        ("9999-12-31T24:00:00Z", None),
        ("0001-01-01T00:00:00+10:00", None),
        ("0001-01-01T00:00:00Z", None),
        ("tomorrow", None),
        ("", None),
        (None, None),
    ],
)
def test_times_are_stored_in_utc(text: str | None, stored: str | None) -> None:
    assert sql_time_of(text) == stored


moments = st.datetimes(datetime(2001, 9, 10), datetime(9999, 12, 30))  # noqa: DTZ001  in UTC, as naive ones are taken
TIME_FORMS: tuple[Callable[[datetime], object], ...] = (
    "{:%Y-%m-%d %H:%M:%S}".format,
    lambda moment: f"{moment.isoformat()}Z",
    lambda moment: moment.isoformat(),
    lambda moment: moment.isoformat(" ", "milliseconds"),
    lambda moment: moment.replace(tzinfo=UTC).isoformat(),
    lambda moment: moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=-9, minutes=-30))).isoformat(" "),
    lambda moment: moment.isoformat().encode(),
    lambda moment: int(moment.replace(tzinfo=UTC, microsecond=0).timestamp()),
    lambda moment: int(moment.replace(tzinfo=UTC, microsecond=0).timestamp()) + 0.25,
    lambda moment: int(moment.replace(tzinfo=UTC, microsecond=0).timestamp()) * 1_000 + 999,
    lambda moment: str(int(moment.replace(tzinfo=UTC, microsecond=0).timestamp())),
    lambda moment: f" {int(moment.replace(tzinfo=UTC, microsecond=0).timestamp())}000 ".encode(),
)


@given(moment=moments, form=st.sampled_from(TIME_FORMS))
def test_a_stored_time_is_the_same_in_every_form(moment: datetime, form: Callable[[datetime], object]) -> None:
    assert sql_time_of(form(moment)) == f"{moment:%Y-%m-%d %H:%M:%S}"


@given(st.none() | st.integers() | st.floats() | st.text() | st.binary() | st.integers(0, 10**20).map(str) | st.dates())
def test_what_is_no_time_is_none_and_what_is_one_stays_as_it_is(value: object) -> None:
    stored = sql_time_of(value)
    assert stored is None or re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", stored)
    assert sql_time_of(stored) == stored


@pytest.mark.parametrize("value", [0, 5, True, 999_999_999, 253_402_300_800, 10**15, "2026", "", b"\xff"])
def test_a_number_that_can_hardly_be_a_time_is_none(value: object) -> None:
    assert sql_time_of(value) is None


@pytest.mark.parametrize(
    ("changed_ms", "stored"),
    [(1_778_997_825_875, "2026-05-17 06:03:45.875"), (1_778_997_825_005, "2026-05-17 06:03:45.005")],
)
def test_book_times_keep_their_milliseconds(changed_ms: int, stored: str) -> None:
    book = OrderBook("1", [], [], changed_ms)
    assert Snapshot.from_wire(gamma_market(), book, None, run_id=7, received_at="now").book_time == stored


@pytest.mark.parametrize(
    ("labels", "topic"),
    [
        (["Trump Presidency", "Trump", "Politics"], "Politics"),
        (["World", "Politics", "Geopolitics"], "Geopolitics"),
        (["Esports", "counter strike 2", "Games", "Sports"], "Esports"),
        (["Politics", "US Election", "Elections"], "Elections"),
        (["Earn 4%", "Middle East"], "Middle East"),
        (["Recurring", "Up or Down", "Crypto Prices"], "Up or Down"),
        (["All", "15M", "Rewards 20, 4.5, 50", "2025 Predictions", "", " weekly "], None),
        (["Allegations", "Daily Show", "Other Worlds"], "Allegations"),
        (["Solana", "crypto"], "crypto"),
        (["Crypto Prices", "opensea"], "Crypto Prices"),
        ([], None),
    ],
)
def test_the_category_is_the_main_topic_among_the_tags(labels: list[str], topic: str | None) -> None:
    assert main_topic(labels) == topic


def test_an_old_category_is_kept_without_its_blanks() -> None:
    assert Market.from_wire(gamma_market(category="Pop-Culture "), seen_at="now").category == "Pop-Culture"


@pytest.mark.parametrize(
    "odd",
    [
        {"active": False},
        {"closed": True},
        {"clobTokenIds": None},
        {"closed": True, "outcomes": '["A", "B", "C"]', "clobTokenIds": '["1", "2", "3"]'},
    ],
)
def test_placeholders_and_closed_markets_are_not_open(odd: dict[str, object]) -> None:
    assert not gamma_market(**odd).is_open


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"active": None}, "Expected `bool`, got `null` - at `$.active`"),
        ({"closed": None}, "Expected `bool`, got `null` - at `$.closed`"),
        ({"id": 5.5}, "Expected `str`, got `float` - at `$.id`"),
        ({"id": ""}, "Expected `str` matching regex '^[0-9]{1,18}"),
        ({"id": "9" * 10_000}, "Expected `str` matching regex"),
        ({"clobTokenIds": '["1", "2", "3"]'}, "Expected 2 different clobTokenIds, got ('1', '2', '3')"),
        ({"clobTokenIds": '["1", "1"]'}, "Expected 2 different clobTokenIds"),
        ({"clobTokenIds": '["", "1"]'}, "Expected 2 clobTokenIds, got something else"),
        ({"clobTokenIds": '["1", '}, "Expected 2 clobTokenIds, got something else"),
        ({"clobTokenIds": 7}, "Expected 2 clobTokenIds, got something else - at `$.clobTokenIds`"),
    ],
)
def test_one_bad_market_costs_only_itself_and_says_why(odd: dict[str, object], reason: str) -> None:
    sent = [GAMMA | {"id": "1"}, GAMMA | odd, GAMMA | {"id": "2"}]
    page = decode_page(msgspec.json.encode({"markets": sent, "next_cursor": "c"}))
    assert [market.market_id for market in page.markets] == ["1", "2"]
    assert page.next_cursor == "c"
    (bad,) = page.undecoded
    assert reason in bad.reason
    assert bad.id == (None if "id" in odd else GAMMA["id"])


@pytest.mark.parametrize(
    ("odd", "left_out"),
    [
        ({"volume24hr": "much"}, {"volume_24h": None}),
        ({"volume24hr": -3.5}, {"volume_24h": None}),
        ({"lastTradePrice": 1.5}, {"last_trade_price": None}),
        ({"outcomes": '["Yes"]'}, {"outcomes": None}),
        ({"outcomePrices": '["0.5", "0.5", "0"]'}, {"outcome_prices": None}),
        ({"outcomePrices": '["1.5", "-0.5"]'}, {"outcome_prices": None}),
        ({"outcomePrices": '["nan", "0.5"]'}, {"outcome_prices": None}),
        ({"tags": [None, {"label": "Weather"}]}, {"tags": [GammaTag("Weather")]}),
        ({"acceptingOrders": "perhaps"}, {"accepting_orders": True}),
        ({"description": "x" * 100_001}, {"description": None}),
    ],
)
def test_one_bad_field_costs_only_itself_and_is_noted(odd: dict[str, object], left_out: dict[str, object]) -> None:
    expected = msgspec.structs.replace(gamma_market(), **left_out, unreadable=tuple(odd))
    assert gamma_market(**odd) == expected


@pytest.mark.parametrize("absent", ["", None])
@pytest.mark.parametrize("key", sorted(GAMMA.keys() - {"id", "active", "closed", "clobTokenIds"}))
def test_no_text_is_no_value_and_nothing_is_left_out(key: str, absent: object) -> None:
    (market,) = decode_page(msgspec.json.encode({"markets": [GAMMA | {key: absent}]})).markets
    row = Market.from_wire(market, seen_at="now")
    assert market.unreadable == ()
    assert "" not in (*row, *Snapshot.from_wire(market, None, None, run_id=1, received_at="now"))


def test_nobody_says_on_the_wire_what_we_have_left_out() -> None:
    assert gamma_market(unreadable=["volume24hr"]).unreadable == ()


@pytest.mark.parametrize("id_", [538_932, "538932"], ids=["number", "text"])
def test_an_id_may_be_a_number(id_: object) -> None:
    sent = '["339", "105"]' if isinstance(id_, str) else "[339, 105]"
    assert gamma_market(id=id_, clobTokenIds=sent) == gamma_market()
    body = json.dumps([{"asset_id": 10**77 if isinstance(id_, int) else str(10**77), "bids": [], "asks": []}])
    assert decode_books(body.encode()) == ([OrderBook(str(10**77), [], [])], [])


def test_a_page_of_which_most_is_not_understood_is_refused_whole() -> None:
    sent = [GAMMA] * 20 + [GAMMA | {"active": 7}] * 21
    with pytest.raises(msgspec.ValidationError, match=r"21 of 41 elements are not understood.*active"):
        decode_page(msgspec.json.encode({"markets": sent}))


def test_books_of_which_most_levels_are_not_understood_are_refused() -> None:
    book = {"asset_id": "1", "bids": [{"price": "0.5", "size": "1"}] * 10, "asks": [{"p": "0.6", "s": "1"}] * 11}
    with pytest.raises(msgspec.ValidationError, match="11 levels of 1 books are not understood"):
        decode_books(msgspec.json.encode([book]))


@pytest.mark.parametrize(
    "price",
    ['"1.01"', '"-0.1"', '"nan"', '"inf"', '" 0.5 "', '"1_0"', '"0x1"', '"٠.٥"', '""', "true", "null", "1e999", "[]"],
)
def test_what_is_no_price_is_no_level(price: str) -> None:
    good = {"asset_id": "1", "bids": [{"price": "0.5", "size": "1"}], "asks": [{"price": "0.6", "size": "1"}]}
    sent = [json.dumps(good), json.dumps(good | {"asset_id": "2"}).replace('"0.5"', price)]
    found, rejected = decode_books(f"[{','.join(sent)}]".encode())
    assert found == [
        OrderBook("1", [Level(0.5, 1)], [Level(0.6, 1)]),
        OrderBook("2", [], [Level(0.6, 1)], unreadable=("bids",)),
    ]
    assert rejected == []


FORMS: tuple[Callable[[float], object], ...] = (
    repr,
    "{:.17f}".format,
    "{:.17e}".format,
    "+{!r}".format,
    lambda value: repr(value).removeprefix("0"),
    float,
)


@given(price=ticks, size=st.floats(0.01, 1e9), form=st.sampled_from(FORMS), other=st.sampled_from(FORMS))
def test_a_number_is_the_same_in_every_form(
    price: float, size: float, form: Callable[[float], object], other: Callable[[float], object]
) -> None:
    level = {"price": form(price), "size": other(size)}
    ((book,), _) = decode_books(json.dumps([{"asset_id": "1", "bids": [level], "asks": None}]).encode())
    (bid,) = book.bids
    assert (book.asks, book.unreadable) == ([], ())
    assert bid.price == pytest.approx(price)
    assert bid.size == pytest.approx(size)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    ),
    st.sampled_from(sorted(GAMMA.keys() - {"id", "active", "closed", "clobTokenIds"})),
)
def test_no_value_of_an_optional_field_costs_its_market(value: object, key: str) -> None:
    page = decode_page(json.dumps({"markets": [GAMMA | {key: value}]}).encode())
    (market,) = page.markets
    assert market.unreadable in {(), *((key,) * times for times in range(1, 9))}
    assert market.tokens == ("339", "105")


@pytest.mark.parametrize(
    ("sent", "stored"), [(b"\\ud83d", "\ufffd"), (b"\xff", "\ufffd"), (b"\\u0000", "\ufffd"), (b"\\\\u0000", "\\u0000")]
)
def test_one_broken_letter_costs_no_page(sent: bytes, stored: str) -> None:
    page = decode_page(msgspec.json.encode({"markets": [GAMMA, GAMMA | {"slug": "a-b"}]}).replace(b"a-b", b"a" + sent))
    assert [market.slug for market in page.markets] == ["will-it-rain", "a" + stored]
    assert page.undecoded == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000])
def test_what_is_no_number_is_left_out(number: str) -> None:
    body = json.dumps({"markets": [GAMMA, GAMMA]}).replace("14261311.7", number, 1).encode()
    page = decode_page(body)
    assert [(market.volume_24h, market.unreadable) for market in page.markets] == [
        (None, ("volume24hr",)),
        (14261311.7, ()),
    ]


@pytest.mark.parametrize(
    ("timestamp", "stored"),
    [
        ("1778997825875", "2026-05-17 06:03:45.875"),
        (1_778_997_825_000, "2026-05-17 06:03:45.000"),
        (1_778_997_825, None),  # seconds
        ("", None),
        (None, None),
        ([], None),
        (10**18, None),
    ],
)
def test_a_book_is_worth_more_than_its_time(timestamp: object, stored: str | None) -> None:
    sent = {"asset_id": "1", "bids": [], "asks": [], "timestamp": timestamp}
    ((book,), rejected) = decode_books(json.dumps([sent]).encode())
    row = Snapshot.from_wire(gamma_market(), book, None, run_id=7, received_at="2026-11-22 14:15:00")
    assert (row.book_time, rejected) == (stored, [])


@pytest.mark.parametrize("price", [0.25, "0.250", ".25", "2.5e-1"])
def test_the_last_trade_is_gammas_whatever_the_book_says(price: object) -> None:
    """A book's own is that of the token that traded last, which may be the other one."""
    sent = [{"asset_id": "1", "bids": [], "asks": [], "last_trade_price": "0.75"}]
    ((book,), _) = decode_books(json.dumps(sent).encode())
    market = gamma_market(lastTradePrice=price)
    row = Snapshot.from_wire(market, book, None, run_id=7, received_at="2026-11-22 14:15:00")
    assert row.last_trade_price == 0.25


@pytest.mark.parametrize("broken", [b'"a\\ud83d"', b'"a\xff"', b'"a\tb"', b'"a\\u0000"'])
@pytest.mark.parametrize("bad", [b"NaN", b"1e999", b'"much"', b"9" * 5_000])
def test_two_odd_markets_cost_one_letter_and_one_figure(broken: bytes, bad: bytes) -> None:
    page = msgspec.json.encode({"markets": [GAMMA, GAMMA | {"slug": "a-b"}, GAMMA | {"volume24hr": 12321}]})
    page = page.replace(b'"a-b"', broken).replace(b"12321", bad)
    found = decode_page(page)
    assert str(found.markets[1].slug).startswith("a")
    assert [market.unreadable for market in found.markets] == [(), (), ("volume24hr",)]
    assert found.undecoded == []


def test_a_nul_within_a_list_of_outcomes_is_replaced_too() -> None:
    page = decode_page(msgspec.json.encode({"markets": [GAMMA | {"outcomes": '["Y\\u0000es", "No"]'}]}))
    assert page.markets[0].outcomes == ("Y\ufffdes", "No")


def test_shares_of_nothing_are_no_offer() -> None:
    book = OrderBook("1", [Level(0.2, 5), Level(0.4, 0)], [Level(0.3, 0), Level(0.6, 5)])
    assert (book.bids, book.asks) == ([Level(0.2, 5)], [Level(0.6, 5)])


def test_numbers_may_be_sent_as_numbers_or_as_strings() -> None:
    sent = b'[{"asset_id":"1","timestamp":1778997825875,"bids":[{"price":9e-6,"size":"5"}],"asks":[],"extra":{}}]'
    ((book,), _) = decode_books(sent)
    assert book == OrderBook("1", [Level(9e-6, 5)], [], 1_778_997_825_875)
