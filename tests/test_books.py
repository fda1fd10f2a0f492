"""covers: whole order books: every level served is what a reader gets back, stored once while it stays."""

from __future__ import annotations

import json
import re
import sqlite3
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows
from hypothesis import given
from hypothesis import strategies as st

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakeMarket, FakePolymarket, Levels

MINUTE = 60.0


@pytest.fixture
def next_run(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock
) -> Callable[..., Awaitable[ac.CollectionResult]]:
    """Return what makes the next run, a quarter of an hour after the one before."""
    assert exchange.url

    async def run(**settings: Any) -> ac.CollectionResult:  # noqa: ANN401
        clock.elapsed_s += 15 * MINUTE
        return await make_collector(**settings).collect_all()

    return run


def ordered(levels: Levels, *, bids: bool) -> list[tuple[Decimal, Decimal]]:
    """Return *levels* as decimals, the best one first."""
    exact = [(Decimal(price), Decimal(size)) for price, size in levels]
    return sorted((level for level in exact if level[1]), key=lambda level: level[0], reverse=bids)


def served(market: FakeMarket) -> dict[tuple[str, str], list[tuple[Decimal, Decimal]]]:
    """Return all levels of both books of *market*, from the stand-in's truth alone."""
    bids, asks = ordered(market.bids, bids=True), ordered(market.asks, bids=False)
    mirror = {"bid": [(1 - price, size) for price, size in asks], "ask": [(1 - price, size) for price, size in bids]}
    if market.bids_no is not None:
        mirror["bid"] = ordered(market.bids_no, bids=True)
    if market.asks_no is not None:
        mirror["ask"] = ordered(market.asks_no, bids=False)
    return {("YES", "bid"): bids, ("YES", "ask"): asks, ("NO", "bid"): mirror["bid"], ("NO", "ask"): mirror["ask"]}


def read_back(path: Path, run_id: int) -> dict[str, dict[tuple[str, str], list[tuple[Decimal, Decimal]]]]:
    """Return all levels that a run has stored, by market, as `book_levels` shows them."""
    books: dict[str, dict[tuple[str, str], list[tuple[Decimal, Decimal]]]] = {}
    for row in rows(
        path, "SELECT * FROM book_levels WHERE run_id = ? ORDER BY market_id, outcome, side, level", run_id
    ):
        sides = books.setdefault(row["market_id"], {})
        levels = sides.setdefault((row["outcome"], row["side"]), [])
        levels.append((Decimal(str(row["price"])), Decimal(str(row["size"]))))
        assert row["level"] == len(levels)
    return books


def assert_books(path: Path, markets: Iterable[FakeMarket], run_id: int) -> None:
    found = read_back(path, run_id)
    for market in markets:
        stored = found.get(market.id, {})
        assert {side: stored.get(side, []) for side in served(market)} == served(market)


def assert_whole(path: Path) -> None:
    """No snapshot refers to a missing book, and no book is without a snapshot."""
    dangling = "SELECT count(*) AS n FROM snapshots WHERE book_id NOT IN (SELECT book_id FROM books)"
    orphans = "SELECT count(*) AS n FROM books WHERE book_id NOT IN (SELECT book_id FROM snapshots WHERE book_id > 0)"
    assert rows(path, dangling) == rows(path, orphans) == [{"n": 0}]


async def test_every_level_of_every_book_is_read_back_as_it_was_served(
    exchange: FakePolymarket, next_run: Callable[..., Awaitable[ac.CollectionResult]], database: Path
) -> None:
    deep, padded, own, lonely, empty, *_ = exchange.markets.values()
    exchange.deepen(deep, 800)
    exchange.change(padded, digits="padded")
    exchange.change(own, bids_no=(("0.010", "7"), ("0.200", "123456.789012")), asks_no=())
    exchange.change(lonely, bids=(), asks=(("0.0001", "31045290"), ("0.0001", "0"), ("0.57", "0.000001")))
    exchange.change(empty, bids=(), asks=())
    result = await next_run()
    assert_books(database, exchange.markets.values(), 1)
    assert (result["books_saved"], result["books_unchanged"], result["unmirrored"]) == (60, 0, 1)
    assert rows(database, "SELECT unmirrored FROM runs") == [{"unmirrored": 1}]
    (book,) = rows(database, "SELECT * FROM books WHERE market_id = ?", own.id)
    assert (book["mirrored"], book["bids_no"]) == (0, "[[0.2,123456.789012],[0.01,7]]")
    (book,) = rows(database, "SELECT * FROM books WHERE market_id = ?", empty.id)
    assert (book["bids"], book["asks"], book["mirrored"], book["bids_no"]) == ("[]", "[]", 1, None)
    assert_whole(database)


async def test_a_book_is_stored_once_while_it_stays_and_anew_on_a_new_day(
    exchange: FakePolymarket,
    next_run: Callable[..., Awaitable[ac.CollectionResult]],
    database: Path,
    clock: JumpingClock,
) -> None:
    await next_run()
    again = await next_run()
    assert (again["books_saved"], again["books_unchanged"]) == (0, 60)
    moved = exchange.move_books(0.2)
    after = await next_run()
    assert (after["books_saved"], after["books_unchanged"]) == (12, 48)
    new = rows(database, "SELECT b.market_id FROM books AS b WHERE b.book_id > 60")
    assert {row["market_id"] for row in new} == {market.id for market in moved}
    assert_books(database, exchange.markets.values(), 3)
    clock.elapsed_s += 10 * 60 * MINUTE  # past midnight, UTC
    next_day = await next_run()
    assert (next_day["books_saved"], next_day["books_unchanged"]) == (60, 0)
    counts = "SELECT run_id, books_saved, books_unchanged FROM runs ORDER BY run_id"
    assert [tuple(row.values()) for row in rows(database, counts)] == [(1, 60, 0), (2, 0, 60), (3, 12, 48), (4, 60, 0)]
    join = "snapshots AS s JOIN books AS b USING (book_id)"
    days = rows(database, f"SELECT DISTINCT date(s.timestamp) = date(b.timestamp) AS same FROM {join}")  # noqa: S608
    assert days == [{"same": 1}]
    assert_whole(database)


async def test_a_book_that_comes_back_is_a_new_row(
    exchange: FakePolymarket, next_run: Callable[..., Awaitable[ac.CollectionResult]], database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    first, other = market.bids, (("0.01", "5"),)
    for bids in (first, other, first):
        exchange.change(market, bids=bids)
        await next_run()
    books = rows(database, "SELECT bids FROM books WHERE market_id = ? ORDER BY book_id", market.id)
    assert [book["bids"] == books[0]["bids"] for book in books] == [True, False, True]


@pytest.mark.parametrize("depth", [0, 1, 5, 10_000])
async def test_a_depth_keeps_the_best_levels_of_each_side(
    exchange: FakePolymarket, next_run: Callable[..., Awaitable[ac.CollectionResult]], database: Path, depth: int
) -> None:
    result = await next_run(depth=depth)
    found = read_back(database, 1)
    for market in exchange.markets.values():
        stored = found.get(market.id, {})
        assert {side: stored.get(side, []) for side in served(market)} == {
            side: levels[:depth] for side, levels in served(market).items()
        }
    assert rows(database, "SELECT depth FROM runs") == [{"depth": depth}]
    assert result["books_saved"] == (60 if depth else 0)
    with_bids = sum(bool(market.bids) for market in exchange.markets.values())
    assert rows(database, "SELECT count(best_bid_yes) AS n FROM snapshots") == [{"n": with_bids}]


async def test_a_market_without_books_refers_to_none(
    exchange: FakePolymarket, next_run: Callable[..., Awaitable[ac.CollectionResult]], database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    await next_run()
    exchange.change(market, has_books=False)
    await next_run()
    exchange.change(market, has_books=True)
    await next_run()
    found = rows(database, "SELECT book_id IS NULL AS none FROM snapshots WHERE market_id = ? ORDER BY id", market.id)
    assert [row["none"] for row in found] == [0, 1, 0]
    assert_whole(database)


async def test_a_second_of_the_same_name_leaves_no_orphan(tmp_path: Path) -> None:
    path, now = tmp_path / "file.db", "2026-11-22 14:15:00"
    fields = dict.fromkeys(ac.Market._fields) | {"market_id": "1", "token_id_yes": "1", "token_id_no": "2"}
    market = ac.Market(**(fields | {"first_seen": now}))  # type: ignore[arg-type]
    async with ac.Database.open(path) as database:
        for bids in ("[]", "[[0.5,1]]"):
            run_id = await database.start_run(started_at=now)
            row = dict.fromkeys(ac.Snapshot._fields) | {"market_id": "1", "timestamp": now, "run_id": run_id}
            book = ac.Book("1", now, bids, "[]", mirrored=True, bids_no=None, asks_no=None)
            batch = ac.Batch(run_id, [market], [ac.Snapshot(**row)], books={"1": book})  # type: ignore[arg-type]
            saved = await database.save(batch)
    assert saved == ac.Saved(errors=1)
    assert [row["bids"] for row in rows(path, "SELECT bids FROM books")] == ["[]"]
    assert_whole(path)


async def test_ids_of_books_are_never_used_again(
    exchange: FakePolymarket, next_run: Callable[..., Awaitable[ac.CollectionResult]], database: Path
) -> None:
    """An archive tells rows by their ids: one that comes again would count as archived."""
    await next_run()
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("DELETE FROM snapshots")
        connection.execute("DELETE FROM books")
    connection.close()
    await next_run()
    assert rows(database, "SELECT min(book_id) AS first FROM books") == [{"first": 61}]
    assert exchange.url


levels = st.lists(
    st.tuples(
        st.decimals(0, 1, places=4).map(lambda price: f"{price.normalize():f}"),
        st.decimals(Decimal("0.000001"), Decimal(10**8), places=6).map(lambda size: f"{size:f}"),
    ),
    max_size=6,
    unique_by=lambda level: Decimal(level[0]),
)


@given(bids=levels, asks=levels)
def test_levels_keep_their_digits_and_mirror_exactly(bids: Levels, asks: Levels) -> None:
    def sent(token: str, bids: Levels, asks: Levels) -> dict[str, object]:
        sides = {"bids": bids, "asks": asks}
        return {"asset_id": token} | {
            side: [{"price": price, "size": size} for price, size in levels] for side, levels in sides.items()
        }

    def opposite(levels: Levels) -> Levels:
        return tuple((f"{1 - Decimal(price):f}", size) for price, size in levels)

    body = json.dumps([sent("1", bids, asks), sent("2", opposite(asks), opposite(bids))]).encode()
    yes, no = ac.decode_books(body)[0]
    book = ac.Book.from_wire("1", yes, no, depth=None, received_at="2026-11-22 14:15:00")
    assert book
    assert book.mirrored
    for text, side, is_bids in ((book.bids, bids, True), (book.asks, asks, False)):
        stored = json.loads(str(text), parse_float=Decimal, parse_int=Decimal)
        assert [tuple(level) for level in stored] == ordered(side, bids=is_bids)
        assert ".0]" not in str(text)
        assert ".0," not in str(text)


@given(price=st.decimals(0, 1, places=9))
def test_a_mirrored_price_is_one_less_in_decimals(price: Decimal) -> None:
    assert ac.mirrored_price(float(price)) == float(1 - price)


def test_a_price_that_could_not_be_restored_has_no_mirror() -> None:
    assert ac.mirrored_price(0.57) == 0.43
    assert ac.mirrored_price(0.1234567891) is None


DEPTH = (PROJECT / "docs/data.md").read_text().partition("### Depth\n")[2].partition("\n## ")[0]
DEPTH_QUERIES = re.findall(r"```sql\n(.*?)```", DEPTH, re.DOTALL)


async def test_the_queries_on_depth_answer_what_they_say(
    exchange: FakePolymarket, next_run: Callable[..., Awaitable[ac.CollectionResult]], database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    bids, asks = (
        (("0.40", "50"), ("0.48", "300"), ("0.50", "100")),
        (("0.60", "5000"), ("0.55", "400"), ("0.52", "600")),
    )
    exchange.change(market, bids=bids, asks=asks, slug="will-rate-market-500006", question="Will it rain?")
    for other in list(exchange.markets.values())[1:]:
        exchange.remove(other)
    await next_run()
    within, imbalance, cost, book, spread = (
        [tuple(row.values()) for row in rows(database, query.replace("14:15:00", "14:30:00"))]
        for query in DEPTH_QUERIES
    )
    assert within == [("Will it rain?", "YES", "ask", 600, 312.0), ("Will it rain?", "YES", "bid", 400, 194.0)]
    assert imbalance == [("Will it rain?", round((450 - 6000) / 6450, 3))]
    assert cost == [("Will it rain?", 532.0, 0.532)]
    assert len(book) == 12
    assert book[0] == ("YES", "bid", 1, 0.5, 100)
    assert book[-1] == ("NO", "ask", 3, 0.6, 50)
    assert spread == [("Will it rain?", 100, 0.02)]
