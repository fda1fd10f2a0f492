"""covers: what a name means: renamed, used again, said of several; answers that are of something else; proven ends."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows
from fake_polymarket import encoded_cursor
from truth import assert_true, failures

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

    MakeCollector = Callable[..., ac.AsyncCollector]

START = datetime(2026, 11, 22, 14, 15, tzinfo=UTC)
SERIES = "btc-up-or-down-5m"


def at(minutes: float) -> str:
    """Return the time so many minutes after the start, as Gamma writes it."""
    return f"{START + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}"


def stored(database: Path) -> set[str]:
    """Return the ids of the markets in the newest run."""
    query = "SELECT market_id FROM snapshots WHERE run_id = (SELECT max(run_id) FROM runs)"
    return {row["market_id"] for row in rows(database, query)}


# --- ends that are proven


async def test_a_series_is_listed_to_its_end_whatever_order_its_markets_end_in(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path
) -> None:
    """A market that was moved to a later day ends no listing, and is not taken."""
    for number in range(45):
        exchange.add_event(f"game-{number}", series="nba-daily", end_date=at(10 + number / 10))
    markets = [exchange.markets_of(exchange.events[f"game-{number}"])[0] for number in range(45)]
    for moved in (markets[3], markets[19]):
        exchange.change(moved, end_date=at(100_000))
    exchange.change(markets[44], end_date=at(1))
    result = await make_collector(series=["nba-daily"], ends_within=30).collect_all()
    assert (result["status"], failures(database)) == ("complete", [])
    assert_true(database, [market for market in markets if market not in (markets[3], markets[19])])


async def test_known_windows_are_asked_for_by_id_until_the_series_is_due_to_be_listed_anew(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    """A listing holds as long as `ends_within`, and no longer than to the end of its last window."""
    exchange.now = lambda: clock.now().timestamp()
    exchange.add_windows(SERIES, START.timestamp() + 300, 12)
    collector = make_collector(series=[SERIES], ends_within=15)
    listings: list[int] = []
    for _ in range(60):
        clock.elapsed_s += 60
        exchange.arrivals.clear()
        result = await collector.collect_all()
        assert (result["status"], result["reason"]) == ("complete", None)
        due = [market for market in exchange.markets.values() if market.event_start and not market.closed]
        within = ac.sql_time_of(at(clock.elapsed_s / 60 + 15)) or ""
        assert stored(database) == {one.id for one in due if (ac.sql_time_of(one.end_date) or "") <= within}
        listings.append(len(exchange.asked("/events/keyset")))
        if not listings[-1]:
            assert result["requests"] <= 4, "the markets that are due, books, and outcomes"
    assert [minute for minute, pages in enumerate(listings) if pages] == [0, 15, 30, *range(44, 60)]


async def test_a_series_that_had_windows_and_lists_none_is_no_complete_run(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    exchange.now = lambda: clock.now().timestamp()
    exchange.add_windows(SERIES, START.timestamp() + 300, 20)
    exchange.add_event("once", series="doge-", end_date=at(10))  # a series of one, which does not recur
    names = {"series": [SERIES, "doge-"], "follow": False}
    assert (await make_collector(**names).collect_all())["status"] == "complete"
    clock.elapsed_s += 900
    (once,) = exchange.markets_of(exchange.events["once"])
    exchange.close(once, "1", "0")
    result = await make_collector(**names).collect_all()
    assert (result["status"], result["notes"]) == ("complete", ["the series doge- has no open market to take"])
    clock.elapsed_s += 900
    exchange.fail_next("/events/keyset", times=4, mutate=lambda page: page | {"events": []})
    with pytest.raises(
        ac.MalformedResponseError, match=f"the series {SERIES} has had open markets, and lists none now"
    ):
        await make_collector(**names).collect_all()
    assert rows(database, "SELECT status FROM runs ORDER BY run_id DESC LIMIT 1") == [{"status": "failed"}]


async def test_a_listing_with_an_odd_window_is_made_anew_in_the_next_run(
    exchange: FakePolymarket, make_collector: MakeCollector, clock: JumpingClock
) -> None:
    """Else the next runs would not know that something is missing."""
    exchange.now = lambda: clock.now().timestamp()
    exchange.add_windows(SERIES, START.timestamp() + 300, 12)
    collector = make_collector(series=[SERIES], ends_within=15)
    for errors in (1, 1, 0):
        if errors:
            exchange.fail_next("/events/keyset", mutate=lambda page: {"events": [5, *page["events"]]})
        exchange.arrivals.clear()
        result = await collector.collect_all()
        assert (result["stats"]["errors"], len(exchange.asked("/events/keyset"))) == (errors, 2)
        clock.elapsed_s += 3
    exchange.arrivals.clear()
    assert (await collector.collect_all())["status"] == "complete"
    assert exchange.asked("/events/keyset") == []


async def test_the_next_page_of_an_event_is_read(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path
) -> None:
    event = exchange.add_event("the-cup", 30)

    def part(first: int, cursor: str | None) -> Callable[[Any], Any]:
        def mutate(page: Any) -> Any:  # noqa: ANN401
            (sent,) = page["events"]
            return {"events": [sent | {"markets": sent["markets"][first : first + 15]}], "next_cursor": cursor}

        return mutate

    exchange.fail_next("/events/keyset", mutate=part(0, encoded_cursor((0.0, 0))))
    exchange.fail_next("/events/keyset", mutate=part(15, None))
    assert (await make_collector(events=["the-cup"]).collect_all())["status"] == "complete"
    assert_true(database, exchange.markets_of(event))
    exchange.fail_next("/events/keyset", times=2, mutate=part(0, encoded_cursor((0.0, 0))))
    result = await make_collector(events=["the-cup"], follow=False).collect_all()
    assert (result["status"], result["markets"]) == ("partial", 15)
    assert "the event 'the-cup' does not end" in (result["reason"] or "")


# --- odd elements of outer lists

ODD_ELEMENTS: list[Any] = [None, 5, "x", [1], True, {}, {"slug": "e"}, {"slug": "e", "markets": None}]


@pytest.mark.parametrize("odd", ODD_ELEMENTS, ids=repr)
@pytest.mark.parametrize("place", [0, 2, 4])
async def test_an_odd_event_costs_only_itself(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, odd: object, place: int
) -> None:
    for number in range(4):
        exchange.add_event(f"window-{number}", 10, series=SERIES)
    exchange.fail_next("/events/keyset", mutate=lambda page: page | {"events": inserted(page["events"], place, odd)})
    if place == 4:
        exchange.fail_next("/events/keyset", mutate=lambda page: page | {"events": [odd]})
    result = await make_collector(series=[SERIES]).collect_all()
    assert (result["status"], result["markets"]) == ("complete", 40)
    assert len(failures(database)) == (not isinstance(odd, dict))
    assert_true(database, [one for n in range(4) for one in exchange.markets_of(exchange.events[f"window-{n}"])])


def inserted(elements: list[Any], place: int, odd: object) -> list[Any]:
    """Return *elements* with an odd one among them."""
    return [*elements[:place], odd, *elements[place:]]


@pytest.mark.parametrize("odd", [5, "x", {"a": 1}, [5] * 20], ids=repr)
async def test_an_odd_list_of_markets_costs_only_its_event(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, odd: object
) -> None:
    for number in range(3):
        exchange.add_event(f"window-{number}", 10, series=SERIES)
    odd_event = {"id": "1", "slug": "odd", "markets": odd}
    exchange.fail_next("/events/keyset", mutate=lambda page: page | {"events": inserted(page["events"], 1, odd_event)})
    result = await make_collector(series=[SERIES]).collect_all()
    assert (result["status"], result["markets"]) == ("complete", 30)
    (failure,) = failures(database)
    assert failure["reason"].startswith("the markets of the event odd: ")


@pytest.mark.parametrize("odd", [None, 5, "x", [1]], ids=repr)
async def test_an_odd_series_or_tag_costs_only_itself(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, odd: object
) -> None:
    exchange.add_event("one", series=SERIES, tags=("Crypto",))
    exchange.fail_next("/series", mutate=lambda found: [odd, *found, odd])
    exchange.fail_next(
        "/markets/keyset",
        mutate=lambda page: {"markets": [one | {"tags": [odd, *one["tags"]]} for one in page["markets"]]},
    )
    result = await make_collector(series=[SERIES], tags=["Crypto"]).collect_all()
    crypto = {market.id for market in exchange.markets.values() if "Crypto" in market.tags}
    assert (result["status"], result["stats"]["errors"], stored(database)) == ("complete", 0, crypto)


# --- names that change


async def test_a_market_that_is_renamed_is_collected_under_its_old_name(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    market = exchange.add_market()
    first, second = market.slug, "putin-out-346"
    for name, notes in [
        (first, []),
        (second, [f"the market {first} is now called {second}"]),
        (second, [f"the market {first} is now called {second}"]),
        ("a-third", [f"the market {first} is now called a-third"]),
    ]:
        exchange.change(market, slug=name)
        result = await make_collector(markets=[first]).collect_all()
        assert (result["status"], result["markets"], result["notes"]) == ("complete", 1, notes)
        assert rows(database, "SELECT slug FROM markets") == [{"slug": name}]
        clock.elapsed_s += 900
    result = await make_collector(markets=[second, "never-there"]).collect_all()
    assert (result["status"], result["unknown"]) == ("partial", ["market 'never-there'"])
    assert result["notes"] == [f"the market {second} is now called a-third"]
    exchange.close(market, "1", "0")
    clock.elapsed_s += 900
    result = await make_collector(markets=[first]).collect_all()
    assert (result["status"], result["unknown"]) == ("complete", [])


async def test_a_slug_that_another_market_has_now_means_that_one(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    old, new = exchange.add_market(), exchange.add_market()
    slug = old.slug
    await make_collector(markets=[slug], follow=False).collect_all()
    exchange.change(old, slug="something-else")
    exchange.change(new, slug=slug)
    clock.elapsed_s += 900
    await make_collector(markets=[slug], follow=False).collect_all()
    assert stored(database) == {new.id}
    exchange.close(new, "1", "0")
    newest = exchange.add_market(slug=slug)
    clock.elapsed_s += 900
    await make_collector(markets=[slug], follow=False).collect_all()
    assert stored(database) == {newest.id}, "an open market before a closed one"


async def test_an_event_a_series_and_a_tag_that_are_renamed_are_listed_by_their_ids(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    exchange.add_event("the-cup", 3, tags=("Cups",), series="cups-daily")
    names: dict[str, Any] = {"events": ["the-cup"], "series": ["cups-daily"], "tags": ["Cups"], "follow": False}
    assert (await make_collector(**names).collect_all())["status"] == "complete"
    ids = {row["kind"]: row["id"] for row in rows(database, "SELECT * FROM names")}
    event, series = exchange.events.pop("the-cup"), exchange.series.pop("cups-daily")
    changed = replace(event, slug="world-cup", series="world-cups")
    exchange.events["world-cup"] = changed
    exchange.series["world-cups"] = replace(series, slug="world-cups")
    for market in exchange.markets_of(event):
        exchange.change(market, event_slug="world-cup", tags=("World Cups",))
    exchange.rename_tag("Cups", "World Cups")
    clock.elapsed_s += 900
    result = await make_collector(**names).collect_all()
    assert (result["status"], result["markets"], result["unknown"]) == ("complete", 3, [])
    assert result["notes"] == [
        "the event the-cup is now called world-cup",
        f"the series cups-daily is called otherwise now, and listed by its id {ids['series']}",
        f"the tag cups is called otherwise now, and listed by its id {ids['tag']}",
    ]
    for market in exchange.markets_of(changed):
        exchange.remove(market)
    clock.elapsed_s += 900
    with pytest.raises(ac.UnknownNamesError):
        await make_collector(**names).collect_all()


async def test_a_tag_whose_label_changes_stays_that_tag(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path
) -> None:
    event = exchange.add_event("the-cup", 3, tags=("Cups",))
    tag_id = exchange.tag_id("Cups")

    def relabelled(page: Any) -> Any:  # noqa: ANN401
        tags = [{"id": tag_id, "label": "Trophies", "slug": "cups"}]
        return page | {"markets": [one | {"tags": tags} for one in page["markets"]]}

    exchange.fail_next("/markets/keyset", times=2, mutate=relabelled)
    result = await make_collector(tags=["cups"]).collect_all()
    assert (result["status"], stored(database)) == ("complete", {one.id for one in exchange.markets_of(event)})


async def test_digits_are_an_id_or_a_slug_and_in_an_address_a_slug(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    other, named = exchange.add_market(), exchange.add_market(slug="2028")
    exchange.add_market(slug=other.id)
    for name, market in [("2028", named), (other.id, other), ("https://polymarket.com/event/e/2028", named)]:
        await make_collector(markets=[name], follow=False).collect_all()
        assert stored(database) == {market.id}
        clock.elapsed_s += 900
    address = f"https://polymarket.com/event/e/{other.id}"
    await make_collector(markets=[address], follow=False).collect_all()
    assert stored(database).isdisjoint({other.id}), "its slug is the id of another market"


async def test_the_address_of_an_event_names_its_only_market(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    exchange.add_event("btc-above-100k")
    exchange.add_event("world-cup", 3)
    (only,) = exchange.markets_of(exchange.events["btc-above-100k"])
    site = "https://polymarket.com"
    for address in (f"{site}/event/btc-above-100k", f"{site}/sports/nba/{only.slug}"):
        result = await make_collector(markets=[address], follow=False).collect_all()
        assert (result["status"], stored(database)) == ("complete", {only.id})
        clock.elapsed_s += 900
    with pytest.raises(ac.UnknownNamesError) as caught:
        await make_collector(markets=[f"{site}/event/world-cup"], follow=False).collect_all()
    what = "it is an event of 3 markets: name one of them, or the event"
    assert str(caught.value) == f"the exchange has no market 'world-cup' ({what})"


# --- two answers, and answers of something else


async def test_two_answers_to_one_name_are_taken_and_said(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path
) -> None:
    twins = [exchange.add_market(slug="twin") for _ in range(2)]
    event = exchange.add_event("the-cup", series=SERIES)
    other = exchange.add_event("other-cup", series="other-5m")
    other_id = exchange.series["other-5m"].id
    exchange.fail_next("/series", mutate=lambda found: [*found, found[0] | {"id": other_id}])
    result = await make_collector(markets=["twin"], series=[SERIES]).collect_all()
    assert result["status"] == "complete"
    assert result["notes"] == [
        "the slug twin is that of 2 markets, all of which are taken",
        f"the series {SERIES} is several, all of which are taken: {exchange.series[SERIES].id}, {other_id}",
    ]
    assert_true(database, [*twins, *exchange.markets_of(event), *exchange.markets_of(other)])


async def test_what_says_that_it_is_of_another_series_or_tag_is_left_out_and_recorded(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path
) -> None:
    """Silence is no contradiction."""
    for number in range(3):
        exchange.add_event(f"window-{number}", series=SERIES, tags=("Crypto Prices",))
    stranger = exchange.gamma_event(exchange.add_event("stranger", series="other-5m"))
    silent = exchange.gamma_event(exchange.add_event("silent", series="other-5m"))
    del silent["series"]
    tagged = exchange.gamma_market(exchange.add_market(tags=("Cups",)), with_tags=True)
    untagged = exchange.gamma_market(exchange.add_market(tags=("Cups",)), with_tags=False)
    exchange.fail_next("/events/keyset", mutate=lambda page: {"events": [stranger, silent, *page["events"]]})
    exchange.fail_next("/markets/keyset", mutate=lambda page: {"markets": [tagged, untagged, *page["markets"]]})
    crypto = {one.id for one in exchange.markets.values() if "Crypto Prices" in one.tags}
    result = await make_collector(series=[SERIES], tags=["crypto-prices"]).collect_all()
    assert result["status"] == "complete"
    assert stored(database) == crypto | {silent["markets"][0]["id"], untagged["id"]}
    assert sorted(row["reason"] for row in failures(database)) == [
        f"left out: {tagged['id']} was listed under the tag crypto-prices, and says that it is of another",
        f"left out: stranger was listed under the series {SERIES}, and says that it is of another",
    ]


@pytest.mark.parametrize("kind", ["markets", "events", "series", "tags"])
async def test_an_answer_that_is_of_something_else_is_refused_on_every_route(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, kind: str
) -> None:
    exchange.add_event("other", series="other-5m")
    other = exchange.gamma_event(exchange.events["other"])
    market = exchange.gamma_market(exchange.add_market(), with_tags=True)
    series = {"id": "7", "slug": "other-5m"}
    exchange.fail_next("/markets/keyset", mutate=lambda page: page | {"markets": [market]})
    exchange.fail_next("/events/keyset", mutate=lambda page: page | {"events": [other]})
    exchange.fail_next("/series", mutate=lambda _: [series])
    exchange.fail_next("/tags/slug/politics", body=json.dumps({"id": "9", "label": "Cups", "slug": "cups"}).encode())
    with pytest.raises(ac.MalformedResponseError, match=r"was asked for, and .* came"):
        await make_collector(**{kind: ["politics"]}).collect_all()
    assert not database.exists()


# --- what belongs together

TERMS = {"negRisk": True, "feesEnabled": True, "feeSchedule": {"exponent": 1, "rate": 0.05}}
PAGE = (PROJECT / "docs/data.md").read_text()


def believed(database: Path) -> dict[str, int]:
    """Return the events whose sum the example of the docs believes, with their markets."""
    query = PAGE.partition("### Events")[2].partition("```sql\n")[2].partition("```")[0]
    return {row["event_slug"]: row["markets"] for row in rows(database, query)}


async def test_a_sum_over_an_event_is_believed_only_where_all_of_it_is_there_and_excludes_each_other(
    exchange: FakePolymarket, make_collector: MakeCollector, database: Path, clock: JumpingClock
) -> None:
    both: dict[str, Any] = {"bids": (("0.2", "10"),), "asks": (("0.3", "10"),), "volume_24h": 1.0}
    exchange.add_event("winner", 3, changes=TERMS, **both)
    exchange.add_event("each-alone", 3, **both)
    exchange.add_event("one-side", 2, changes=TERMS, **both)
    one_sided, _ = exchange.markets_of(exchange.events["one-side"])
    exchange.change(one_sided, asks=())
    await make_collector(events=["winner", "each-alone", "one-side"]).collect_all()
    assert believed(database) == {"winner": 3}
    terms = "SELECT DISTINCT neg_risk, tick_size, min_order_size, fee_rate FROM latest_snapshots WHERE event_slug = ?"
    (row,) = rows(database, terms, "winner")
    assert row == {"neg_risk": 1, "tick_size": 0.001, "min_order_size": 5, "fee_rate": 0.05}
    clock.elapsed_s += 900
    exchange.add_event("half", 4, changes=TERMS, **both)
    some, *_ = exchange.markets_of(exchange.events["half"])
    await make_collector(markets=[some.slug]).collect_all()
    assert believed(database) == {}, "of an event only a part is named"
    clock.elapsed_s += 900
    await make_collector(min_volume=0).collect_all()
    assert believed(database) == {"winner": 3, "half": 4}
    ended, *_ = exchange.markets_of(exchange.events["winner"])
    exchange.close(ended, "0", "1")
    clock.elapsed_s += 900
    await make_collector(min_volume=0).collect_all()
    assert believed(database) == {"winner": 2, "half": 4}
    clock.elapsed_s += 900
    lost, *_ = exchange.markets_of(exchange.events["half"])
    exchange.remove(lost)
    await make_collector(min_volume=0).collect_all()
    assert believed(database) == {"winner": 2}, "a market of it is missing"


@pytest.mark.parametrize(("prices", "payout"), [(("1", "0"), 1), (("0", "1"), 0), (("0.5", "0.5"), 0.5)])
async def test_a_resolved_market_says_what_its_shares_have_paid(
    exchange: FakePolymarket,
    make_collector: MakeCollector,
    database: Path,
    clock: JumpingClock,
    prices: tuple[str, str],
    payout: float,
) -> None:
    market = exchange.add_market()
    collector = make_collector(markets=[market.id])
    await collector.collect_all()
    query = "SELECT payout_yes FROM latest_snapshots"
    assert rows(database, query) == [{"payout_yes": None}]
    exchange.close(market, *prices)
    clock.elapsed_s += 900
    await collector.collect_all()
    assert rows(database, query) == [{"payout_yes": payout}]
    with closing(sqlite3.connect(database)) as connection:  # as a file of version 0.2 is
        connection.executescript("UPDATE markets SET payout_yes = NULL; PRAGMA user_version = 4")
    clock.elapsed_s += 900
    await collector.collect_all()
    assert rows(database, query) == [{"payout_yes": payout}]
    exchange.reopen(market)
    clock.elapsed_s += 900
    await collector.collect_all()
    assert rows(database, query) == [{"payout_yes": None}]
