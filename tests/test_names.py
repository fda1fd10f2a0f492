"""covers: markets chosen by name: what is asked for, what is taken, and what is said of names that lead nowhere."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from conftest import rows
from hypothesis import given
from hypothesis import strategies as st
from truth import COLLECTOR, assert_true, command, failures, last_run, start

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

START = datetime(2026, 11, 22, 14, 15, tzinfo=UTC).timestamp()
SITE = "https://polymarket.com"


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        ("markets", 500_001, "500001"),
        ("markets", " will-it-rain ", "will-it-rain"),
        ("markets", f"{SITE}/event/weather/will-it-rain?tid=1#chart", "will-it-rain"),
        ("markets", f"{SITE}/de/event/weather/will-it-rain/", "will-it-rain"),
        ("markets", "www.polymarket.com/market/will-it-rain", "will-it-rain"),
        ("markets", f"{SITE}/event/weather", "event/weather"),
        ("markets", f"{SITE}/sports/nba/games/week/3/nba-bos-lal-2026-11-30", "event/nba-bos-lal-2026-11-30"),
        ("markets", f"{SITE}/event/elections/2028", "market/2028"),
        ("markets", f"{SITE}/event/2028", "event/2028"),
        ("markets", "2028", "2028"),
        ("events", f"{SITE}/zh-Hans/event/weather", "weather"),
        ("events", f"{SITE}/event/weather/will-it-rain", "weather"),
        ("events", f"{SITE}/sports/cricket/crint-wst-lka-2026-03-03", "crint-wst-lka-2026-03-03"),
        ("events", f"{SITE}/pt-br/sports/nfl/games/week/13/nfl-a-b/?x=1", "nfl-a-b"),
        ("events", f"{SITE}/esports/cs2/blast/cs2-a-b#top", "cs2-a-b"),
        ("events", "Pokémon-go", "Pokémon-go"),
        ("events", f"{SITE}/event/pok%C3%A9mon-go", "pokémon-go"),
        ("events", f"{SITE}/event/poke%CC%81mon-go", "pokémon-go"),
        ("series", f"{SITE}/series/btc-up-or-down-5m", "btc-up-or-down-5m"),
        ("tags", f"{SITE}/tag/politics", "politics"),
        ("tags", f"{SITE}/predictions/crypto", "crypto"),
        ("tags", f"{SITE}/predictions/15M", "tag/15M"),
        ("tags", f"{SITE}/es-419/economy/", "economy"),
        ("tags", f"{SITE}/predictions/pok%C3%A9mon", "tag/pokémon"),
        ("tags", "Middle East", "middle-east"),
        ("tags", "Pokémon", "pokemon"),
        ("tags", "AI/ML", "aiml"),
        ("tags", "U.S./China", "uschina"),
        ("tags", "U.S. Politics", "us-politics"),
        ("tags", "SÃO Paulo — Rio", "sao-paulo-rio"),
        ("tags", "ポケモン", "ポケモン"),
    ],
)
def test_a_name_is_an_id_a_slug_or_an_address(kind: str, value: object, name: str) -> None:
    assert getattr(ac.AsyncCollector(**{kind: [value, value]}).settings.selection, kind) == (name,)  # type: ignore[arg-type]


SLUGS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
PAGES = {  # of the site, by kind
    "markets": ["event/an-event/{}", "market/{}", "event/{}", "sports/nba/{}", "esports/cs2/iem/{}"],
    "events": ["event/{}", "event/{}/a-market", "sports/nba/{}", "sports/nfl/games/week/3/{}", "esports/cs2/{}"],
    "series": ["series/{}"],
    "tags": ["predictions/{}", "tag/{}", "{}"],
}
WORDS = {"event", "market", "series", "tag", "tags", "predictions", "games", "week"}


@given(data=st.data(), slug=SLUGS.filter(lambda slug: slug not in WORDS), kind=st.sampled_from(list(PAGES)))
def test_every_form_of_an_address_leads_to_its_slug(data: st.DataObject, slug: str, kind: str) -> None:
    site = data.draw(st.sampled_from(["https://polymarket.com", "HTTP://www.Polymarket.COM", "polymarket.com"]))
    language = data.draw(st.sampled_from(["", "/de", "/zh-Hans", "/pt-br"]))
    written = data.draw(st.sampled_from([slug, "".join(f"%{byte:02X}" for byte in slug.encode())]))
    rest = data.draw(st.sampled_from(["", "/", "//", "?tid=1/2", "/#a/b", "?q=https://polymarket.com/event/x"]))
    page = data.draw(st.sampled_from(PAGES[kind]))
    name = ac.exchange_name("--name", f" {site}{language}/{page.format(written)}{rest} ", kind)
    assert name.rpartition("/")[2] == slug
    assert ac.exchange_name("--name", name, kind) == name, "a name is a name again"
    if kind == "markets":
        assert ("/" in name) == (slug.isdigit() or not page.startswith(("event/an-event", "market"))), "never an id"


@given(label=st.text(max_size=50))
def test_a_label_is_a_name_or_refused_and_no_part_of_an_address(label: str) -> None:
    try:
        name = ac.exchange_name("--tag", label, "tags")
    except ac.ConfigError:
        return
    assert re.fullmatch(r"(tag/)?\w[\w.~-]*", name)
    assert ac.exchange_name("--tag", name, "tags") == name


@pytest.mark.parametrize(
    "settings",
    [
        {"markets": ["https://example.com/event/weather/will-it-rain"]},
        {"markets": [f"{SITE}.example.com/market/a"]},
        {"markets": [f"{SITE}/predictions/crypto"]},
        {"markets": [f"{SITE}/event"]},
        {"markets": [f"{SITE}//event/weather"]},
        {"markets": ["https://m.polymarket.com/event/weather"]},
        {"markets": [f"{SITE}/event/a%2Fb"]},
        {"markets": [f"{SITE}/event/a%FF"]},
        {"events": [f"{SITE}/sports/nba/games"]},
        {"events": [f"{SITE}/sports/nba/games/week/3/"]},
        {"events": [f"{SITE}/sports/nba"]},
        {"events": [f"{SITE}/"]},
        {"tags": [f"{SITE}/event/weather"]},
        {"tags": [f"{SITE}/predictions"]},
        {"tags": ["https://example.com/tag/a"]},
        {"tags": ["example.com/crypto"]},
        {"tags": ["&"]},
        {"events": [f"{SITE}/market/will-it-rain"]},
        {"events": [f"{SITE}@example.com/event/weather"]},
        {"markets": ["a'b"]},
        {"markets": ['a"b']},
        {"markets": ["a\0b"]},
        {"markets": ["a b"]},
        {"markets": [""]},
        {"tags": ["../markets"]},
        {"series": ["a&closed=true"]},
        {"events": ["a" * 301]},
        {"markets": range(10_000)},
        {"ends_within": 5},
        {"ends_within": 0, "series": ["a"]},
        {"ends_within": 5, "events": ["a"]},
    ],
)
def test_what_cannot_be_a_name_is_refused_with_its_option(settings: dict[str, Any]) -> None:
    with pytest.raises(ac.ConfigError, match=rf"^{next(iter(settings))}=.*: must "):
        ac.AsyncCollector(**settings)


def test_the_default_threshold_does_not_hold_for_what_is_named() -> None:
    chosen = [
        ac.AsyncCollector(**settings).settings.selection.min_volume_usd
        for settings in ({}, {"tags": ["a"]}, {"tags": ["a"], "min_volume": 100_000})
    ]
    assert chosen == [100_000, 0, 100_000]


async def test_a_market_by_its_address_costs_two_requests(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    market = exchange.add_market(volume_24h=1.0)
    address = f"{SITE}/event/{market.event_slug}/{market.slug}"
    result = await make_collector(markets=[address, market.id, market.slug]).collect_all()
    assert (result["status"], result["markets"], result["requests"]) == ("complete", 1, 3)
    assert_true(database, [market])
    one = await make_collector(markets=[address]).collect_all()
    assert one["requests"] == 2
    run = last_run(database)
    (chosen,) = rows(database, "SELECT names FROM selections WHERE selection_id = ?", run["selection_id"])
    assert json.loads(chosen["names"]) == {"markets": [market.slug]}
    assert (run["min_volume"], run["listing"]) == (None, "named")
    assert rows(database, "SELECT followed FROM markets") == [{"followed": 1}]


@pytest.mark.parametrize("markets", [300, 2_000])
async def test_an_event_is_one_request_and_its_books(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, markets: int
) -> None:
    event = exchange.add_event("the-cup", markets, volume_24h=None)
    result = await make_collector(events=["the-cup"]).collect_all()
    assert (result["status"], result["markets"]) == ("complete", markets)
    assert len(exchange.asked("/keyset")) == 1
    assert len(exchange.asked("/books")) == -(-markets // 250)
    assert_true(database, exchange.markets_of(event))
    said = rows(database, "SELECT DISTINCT event_slug, tags, category FROM markets")
    assert [(row["event_slug"], "Politics" in row["tags"], row["category"]) for row in said] == [
        ("the-cup", True, "Elections")
    ]


async def test_a_tag_is_all_its_markets_or_those_over_the_threshold(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], tmp_path: Path
) -> None:
    event = exchange.add_event("the-war", 230, tags=("Middle East",))
    for number, market in enumerate(exchange.markets_of(event)):
        exchange.change(market, volume_24h=float(number))
    paths = tmp_path / "all.db", tmp_path / "some.db"
    await make_collector(db_path=paths[0], tags=["Middle East"]).collect_all()
    assert_true(paths[0], exchange.markets_of(event))
    assert len(exchange.asked("/markets/keyset")) == 4, "three pages and the other end"
    result = await make_collector(db_path=paths[1], tags=["middle-east"], min_volume=200).collect_all()
    assert result["status"] == "complete"
    assert_true(paths[1], exchange.markets_of(event)[200:])
    assert last_run(paths[1])["min_volume"] == 200


async def test_unknown_names_are_failures_and_the_rest_is_stored(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    market = exchange.add_market()
    unknown = {"markets": ["nope", "999999999"], "events": ["nope"], "series": ["nope"], "tags": ["nope"]}
    result = await make_collector(**(unknown | {"markets": ["nope", "999999999", market.slug]})).collect_all()
    assert (result["status"], result["markets"], result["stats"]["markets_fetched"]) == ("partial", 1, 6)
    assert_true(database, [market])
    assert sorted((row["stage"], row["reason"]) for row in failures(database)) == [
        ("list", f"the exchange has no {what}")
        for what in ("event 'nope'", "market '999999999'", "market 'nope'", "series 'nope'", "tag 'nope'")
    ]


async def test_no_run_with_an_unknown_name_is_complete(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock
) -> None:
    """However many markets are followed beside it."""
    assert (await make_collector().collect_all())["markets"] == len(exchange.markets) == 60
    clock.elapsed_s += 900
    result = await make_collector(markets=["nope"]).collect_all()
    assert (result["status"], result["markets"]) == ("partial", 60)
    assert result["reason"] == "the exchange has no market 'nope'"


async def test_what_is_over_is_said_and_no_failure(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    market = exchange.add_market()
    event = exchange.add_event("the-cup", 3)
    exchange.add_windows("btc-up-or-down-5m", START + 86_400, 3)
    for done in (market, *exchange.markets_of(event)):
        exchange.close(done, "1", "0")
    database.touch()
    chosen = {"markets": [market.slug], "events": ["the-cup"], "series": ["btc-up-or-down-5m"], "ends_within": 5}
    result = await make_collector(**chosen).collect_all()
    assert (result["status"], result["markets"], failures(database)) == ("complete", 0, [])
    assert [note.split(" is not")[0].split(" has")[0] for note in result["notes"]] == [
        f"the market {market.slug}", "the event the-cup", "the series btc-up-or-down-5m",
    ]  # fmt: skip


async def test_an_exchange_that_ignores_a_filter_is_not_believed(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    exchange.add_event("the-cup", 3)
    other = exchange.gamma_market(exchange.add_market(), with_tags=True)
    exchange.fail_next("/markets/keyset", times=2, mutate=lambda page: page | {"markets": [other]})
    exchange.fail_next("/events/keyset", mutate=lambda page: page | {"events": [page["events"][0] | {"slug": "x"}]})
    with pytest.raises(ac.MalformedResponseError, match="the event 'the-cup' was asked for, and 'x' came"):
        await make_collector(markets=["nope"], events=["the-cup"]).collect_all()
    assert not database.exists(), "nothing was stored"
    tags = [{"label": "x", "id": 7}]
    exchange.fail_next("/markets/keyset", mutate=lambda page: page | {"markets": [other | {"tags": tags}]})
    with pytest.raises(
        ac.MalformedResponseError, match="the tag 'politics' was asked for, and what came is of another"
    ):
        await make_collector(tags=["politics"]).collect_all()


async def test_what_was_named_is_followed_by_every_run(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    market = exchange.add_market(volume_24h=1.0)
    await make_collector(markets=[market.slug]).collect_all()
    clock.elapsed_s += 900
    result = await make_collector().collect_all()
    assert (result["status"], result["markets"]) == ("complete", 61)
    clock.elapsed_s += 900
    exchange.close(market, "0", "1")
    assert (await make_collector(tags=["nope"]).collect_all())["markets"] == 60
    outcome = rows(database, "SELECT resolution_outcome FROM markets WHERE market_id = ?", market.id)
    assert outcome == [{"resolution_outcome": market.outcomes[1]}]


@pytest.mark.slow
async def test_every_window_of_a_series_is_collected_to_its_end(
    exchange: FakePolymarket, database: Path, clock: JumpingClock
) -> None:
    """An hour of a day of windows, at a tick of 3 s by a clock that jumps."""
    exchange.now = lambda: clock.now().timestamp()
    windows = exchange.add_windows("btc-up-or-down-5m", START + 300, 288)
    stop, hours = asyncio.Event(), 1
    ticks: list[ac.Tick] = []

    def on_tick(tick: ac.Tick) -> None:
        ticks.append(tick)
        if clock.elapsed_s >= hours * 3600:
            stop.set()

    await ac.continuous_collection(
        interval_minutes=0.05,
        clock=clock,
        stop=stop,
        on_tick=on_tick,
        db_path=database,
        series=["btc-up-or-down-5m"],
        ends_within=15,
        depth=1,
    )
    assert [tick.error for tick in ticks] == [None] * len(ticks)
    assert {tick.result["status"] for tick in ticks if tick.result} == {"complete"}
    assert ticks[-1].missed == 0
    stored = "SELECT count(*) AS n, max(timestamp) AS last FROM snapshots WHERE market_id = ? AND book_time IS NOT NULL"
    for number, window in enumerate(windows[2 : hours * 12 - 1], 2):
        end = datetime.fromtimestamp(START + 300 * (number + 1), UTC)
        first = ac.sql_time(end - timedelta(minutes=15))
        within = " AND timestamp BETWEEN ? AND ?"
        (row,) = rows(database, stored + within, window.id, first, ac.sql_time(end))
        assert row["n"] >= 15 * 20
        (market,) = rows(database, "SELECT resolved, resolution_outcome FROM markets WHERE market_id = ?", window.id)
        assert market["resolved"] == 1
        assert market["resolution_outcome"] in {"Up", "Down"}
    kept = rows(database, "SELECT count(*) AS n FROM markets")
    assert kept[0]["n"] <= hours * 12 + 4, "no window far ahead is taken"


async def test_one_command_says_what_it_is_at_now(exchange: FakePolymarket, database: Path) -> None:
    market = exchange.add_market(
        bids=(("0.40", "5"), ("0.45", "7"), ("0.46", "10")), asks=(("0.50", "3"), ("0.48", "2"))
    )
    done = await command(exchange, COLLECTOR, "--db", str(database), "--market", market.slug)
    assert done.code == 0
    shown = f"  price 0.47, spread 0.02, 22 shares within 2 cents: {market.question}"
    assert done.out.splitlines()[-1] == shown
    done = await command(exchange, COLLECTOR, "--db", str(database), "--market", market.id, "--json")
    (row,) = json.loads(done.out)["named"]
    wanted = {"market_id": market.id, "slug": market.slug, "question": market.question, "price_yes": 0.47}
    wanted |= {"best_bid_yes": 0.46, "best_ask_yes": 0.48, "spread": 0.02, "depth_2c": 22}
    assert row == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--market", "a'b"), 'argument --market: "a\'b": must be an id, a slug or https://polymarket.com/'),
        (("--event", "https://example.com/event/a"), "argument --event: 'https://example.com/event/a': must be"),
        (("--ends-within", "15"), "argument --ends-within: only with --series or --tag"),
        (("--benchmark", "--tag", "a"), "argument --benchmark: not with names"),
    ],
)
async def test_a_bad_name_on_the_command_line_is_2(
    exchange: FakePolymarket, database: Path, args: tuple[str, ...], said: str
) -> None:
    done = await command(exchange, COLLECTOR, "--db", str(database), *args)
    assert done.code == 2
    assert said in done.err
    assert exchange.arrivals == []


async def test_the_service_takes_names_with_commas(exchange: FakePolymarket, database: Path) -> None:
    markets = [exchange.add_market(volume_24h=1.0) for _ in range(2)]
    variables: dict[str, Any] = {
        "POLYMARKET_DB": str(database),
        "COLLECTOR_MARKETS": f"{markets[0].slug} , {markets[1].id}",
        "COLLECTOR_DEPTH": "3",
        "COLLECTOR_INTERVAL_MINUTES": "1",
    }
    process = await start(exchange, "collector-service.py", **variables)
    await exchange.until_asked("/books")
    await asyncio.sleep(0.5)
    process.terminate()
    await asyncio.wait_for(process.communicate(), 20)
    assert_true(database, markets)
    assert last_run(database)["depth"] == 3


@pytest.mark.slow
async def test_an_event_watched_every_three_seconds_misses_no_tick(exchange: FakePolymarket, database: Path) -> None:
    exchange.add_event("the-cup", 30)
    exchange.odd.moving_share = 0.2
    args = ("--event", "the-cup", "--continuous", "--interval", "0.05", "--json")
    process = await start(exchange, COLLECTOR, "--db", str(database), *args)
    await exchange.until_asked("/books", 6)
    process.terminate()
    out, err = await asyncio.wait_for(process.communicate(), 20)
    runs = [json.loads(line) for line in out.splitlines()]
    assert {run["status"] for run in runs} == {"complete"}
    assert b"ticks missed" not in err
    assert sum(run["books_saved"] for run in runs[1:]) < len(runs) * 30


async def test_a_market_that_closed_in_a_form_that_cannot_be_read_makes_its_event_no_worse(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    event = exchange.add_event("the-cup", markets=3)
    ended = exchange.markets_of(event)[0]
    exchange.close(ended, "1", "0")
    exchange.change(ended, changes=ended.changes | {"active": "perhaps"})
    result = await make_collector(events=("the-cup",)).collect_all()
    assert (result["status"], result["markets"]) == ("complete", 2)


async def test_a_slug_with_control_characters_reaches_no_terminal(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    market = next(iter(exchange.markets.values()))
    exchange.close(market, "1", "0")
    exchange.change(market, changes=market.changes | {"slug": "odd\x1b[2J"})
    result = await make_collector(markets=(market.id,)).collect_all()
    assert result["notes"]
    assert "\x1b" not in "".join(result["notes"])


@pytest.mark.parametrize(("label", "slug"), [("S&P 500", "sp-500"), ("Trump's cabinet", "trumps-cabinet")])
def test_a_label_is_made_a_slug_as_the_exchange_makes_it(label: str, slug: str) -> None:
    assert ac.AsyncCollector("x.db", tags=(label,)).settings.selection.tags == (slug,)


def test_a_list_of_commas_names_nothing_and_is_refused() -> None:
    with pytest.raises(ac.ConfigError, match="names nothing"):
        ac.AsyncCollector("x.db", markets=" , ")
