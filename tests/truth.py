"""The rows that a collector must store, from the stand-in's truth alone, and the rows that it has stored."""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import PROJECT, rows
from forked import run_script

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket, Levels

COLLECTOR = "async-collector.py"
SERVICE = "collector-service.py"
CHECK: dict[str, Any] = runpy.run_path(str(PROJECT / "collector-check.py"), run_name="script")
T0 = "2026-11-22 14:15:00"  # when the clock of the tests starts
COLUMNS = (
    *("market_id", "price_yes", "price_no", "volume_24h", "liquidity", "last_trade_price"),
    *("best_bid_yes", "best_ask_yes", "best_bid_no", "best_ask_no", "spread"),
    *("bid_size_yes", "ask_size_yes", "bid_size_no", "ask_size_no"),
)

EXACT = (*COLUMNS[1:3], *COLUMNS[5:])  # whatever is computed from decimals; the rest is stored as it was sent


def number(value: Decimal | None) -> float | None:
    return None if value is None else round(float(value), 9)


def best(levels: Levels, sign: int) -> tuple[Decimal | None, Decimal | None]:
    """Return price and size of the highest (*sign* 1) or lowest (-1) price."""
    found = max(levels, key=lambda level: sign * Decimal(level[0]), default=None)
    return (Decimal(found[0]), Decimal(found[1])) if found else (None, None)


def opposite(price: Decimal | None) -> Decimal | None:
    return None if price is None else 1 - price


def true_row(market: FakeMarket, sides: str = "yes no") -> dict[str, Any]:
    """Return the snapshot of *market* with the books of *sides*, as far as the fake's truth decides it.

    Without the book of YES the price is Gamma's.
    """
    (bid, bid_size), (ask, ask_size) = best(market.bids, 1), best(market.asks, -1)
    price = None if market.gamma_price is None else Decimal(str(market.gamma_price))
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    if "yes" in sides:
        price = ((bid or Decimal(0)) + (Decimal(1) if ask is None else ask)) / 2
        row |= {"best_bid_yes": number(bid), "best_ask_yes": number(ask)}
        row |= {"bid_size_yes": number(bid_size), "ask_size_yes": number(ask_size)}
        row["spread"] = None if bid is None or ask is None else number(ask - bid)
    if "no" in sides:
        row |= {"best_bid_no": number(opposite(ask)), "best_ask_no": number(opposite(bid))}
        row |= {"bid_size_no": number(ask_size), "ask_size_no": number(bid_size)}
    return row | {
        "market_id": market.id,
        "price_yes": number(price),
        "price_no": number(opposite(price)),
        "volume_24h": market.volume_24h,
        "liquidity": market.liquidity,
        "last_trade_price": float(market.last_trade) if market.last_trade else None,
    }


def true_rows(markets: Iterable[FakeMarket]) -> dict[str, dict[str, Any]]:
    return {market.id: true_row(market) for market in markets}


def stored_rows(database: Path, run_id: int | None = None) -> dict[str, dict[str, Any]]:
    """Return the snapshots of a run, the last one by default, by market."""
    query = f"SELECT {', '.join(COLUMNS)} FROM snapshots WHERE run_id = coalesce(?, (SELECT max(run_id) FROM runs))"  # noqa: S608
    found = rows(database, query, run_id)
    for row in found:
        row |= {name: round(row[name], 9) for name in EXACT if row[name] is not None}
    return {row["market_id"]: row for row in found}


def assert_true(database: Path, markets: Iterable[FakeMarket], run_id: int | None = None) -> None:
    """Fail unless the run has stored exactly *markets*, each as it is."""
    wanted, found = true_rows(markets), stored_rows(database, run_id)
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    assert (len(missing), len(extra)) == (0, 0), f"{sorted(missing)[:5]} are missing, {sorted(extra)[:5]} are too much"
    assert [found[id_] for id_ in wanted] == list(wanted.values())


def assert_no_untruth(database: Path, exchange: FakePolymarket) -> None:
    """Fail if the last run has stored anything but what the exchange has."""
    found = stored_rows(database)
    assert [row for id_, row in found.items() if row != true_row(exchange.markets[id_])] == []


# --- whole rows, with every column


def level(value: tuple[str, str] | None) -> tuple[float | None, float | None]:
    return (float(value[0]), float(value[1])) if value else (None, None)


def opposite_level(value: tuple[str, str] | None) -> tuple[float | None, float | None]:
    return (round(1 - float(value[0]), 3), float(value[1])) if value else (None, None)


def true_snapshot(market: FakeMarket, run_id: int = 1, timestamp: str = T0) -> dict[str, Any]:
    """Return the row that *market* must have, from the stand-in's truth alone."""
    (bid_yes, bid_size_yes), (ask_yes, ask_size_yes) = level(market.best_bid), level(market.best_ask)
    (bid_no, bid_size_no), (ask_no, ask_size_no) = opposite_level(market.best_ask), opposite_level(market.best_bid)
    price = ((bid_yes or 0) + (1 if ask_yes is None else ask_yes)) / 2
    moment = datetime.fromtimestamp(market.book_ms // 1000, tz=UTC)
    return {
        "market_id": market.id,
        "timestamp": timestamp,
        "price_yes": pytest.approx(price),
        "price_no": pytest.approx(1 - price),
        "volume_24h": market.volume_24h,
        "liquidity": market.liquidity,
        "best_bid_yes": bid_yes,
        "best_ask_yes": ask_yes,
        "best_bid_no": bid_no,
        "best_ask_no": ask_no,
        "spread": None if bid_yes is None or ask_yes is None else pytest.approx(ask_yes - bid_yes),
        "run_id": run_id,
        "last_trade_price": float(market.last_trade) if market.last_trade else None,
        "book_time": f"{moment:%Y-%m-%d %H:%M:%S}.{market.book_ms % 1000:03d}",
        "bid_size_yes": bid_size_yes,
        "ask_size_yes": ask_size_yes,
        "bid_size_no": bid_size_no,
        "ask_size_no": ask_size_no,
        "volume": market.volume_24h and market.volume_24h * 9,
    }


def without_books(market: FakeMarket, run_id: int = 1) -> dict[str, Any]:
    """Return the row of a market whose books cannot be had: Gamma's fields, and NULL for the rest."""
    price = market.gamma_price
    known = {
        "market_id": market.id,
        "timestamp": T0,
        "price_yes": price,
        "price_no": None if price is None else pytest.approx(1 - price),
        "volume_24h": market.volume_24h,
        "liquidity": market.liquidity,
        "run_id": run_id,
        "last_trade_price": float(market.last_trade) if market.last_trade else None,
        "volume": market.volume_24h and market.volume_24h * 9,
    }
    return dict.fromkeys(ac.Snapshot._fields) | known


def true_market(market: FakeMarket) -> dict[str, Any]:
    """Return the row of `markets` that *market* must have."""
    topics = {
        "Sports": "Sports",
        "Crypto": "Crypto",
        "Trump": "Politics",
        "Fed Rates": "Economy",
        "OpenAI": "Tech",
        "Music": "Culture",
        "Weekly": None,
    }
    return {
        "market_id": market.id,
        "slug": market.slug,
        "question": market.question,
        "description": market.description,
        "category": topics.get(market.tags[0], market.tags[0]),
        "token_id_yes": market.tokens[0],
        "token_id_no": market.tokens[1],
        "start_time": market.start_date and market.start_date[:19].replace("T", " "),
        "end_time": market.end_date and market.end_date[:19].replace("T", " "),
        "condition_id": market.condition_id,
        "event_slug": market.event_slug,
        "outcome_yes": market.outcomes[0],
        "outcome_no": market.outcomes[1],
        "tags": "[" + ",".join(f'"{tag}"' for tag in market.tags) + "]",
        "neg_risk": False,
        "tick_size": 0.001,
        "min_order_size": 5,
        "fee_rate": 0,
        "first_seen": T0,
    }


def stored_snapshots(path: Path, run_id: int = 1) -> list[dict[str, Any]]:
    columns = ", ".join(ac.Snapshot._fields)
    return rows(path, f"SELECT {columns} FROM snapshots WHERE run_id = ? ORDER BY market_id", run_id)  # noqa: S608


def stored_markets(path: Path) -> list[dict[str, Any]]:
    return rows(path, f"SELECT {', '.join(ac.Market._fields)} FROM markets ORDER BY market_id")  # noqa: S608


def by_id(markets: list[FakeMarket]) -> list[FakeMarket]:
    return sorted(markets, key=lambda market: market.id)


# --- what else a run has left


def failures(database: Path, run_id: int | None = None) -> list[dict[str, Any]]:
    """Return the failures of a run, the last one by default."""
    query = "SELECT * FROM failures WHERE run_id = coalesce(?, (SELECT max(run_id) FROM runs)) ORDER BY rowid"
    return rows(database, query, run_id)


def last_run(database: Path) -> dict[str, Any]:
    return rows(database, "SELECT * FROM runs ORDER BY run_id DESC LIMIT 1")[0]


def broken_promises(database: Path) -> dict[str, Any]:
    """Return what `collector-check` finds: number and examples of rows, by the promise that they break."""
    result = CHECK["check"](database)
    found = {name: rows for name, rows in result["promises"].items() if rows["broken"]}
    assert result["sound"] is not bool(found)
    return found


class Done(NamedTuple):
    """What a finished command left."""

    code: int
    out: str
    err: str


def variables(exchange: FakePolymarket, env: dict[str, str]) -> dict[str, str]:
    """Return the environment of a script that talks to *exchange*."""
    return {name: value for name, value in (os.environ | exchange.environment | env).items() if value}


async def start(
    exchange: FakePolymarket, script: str, *args: str, cwd: Path | None = None, **env: str
) -> asyncio.subprocess.Process:
    """Start a script against *exchange*; an empty variable is one that is not set."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROJECT / script), *args),
        cwd=cwd,
        env=variables(exchange, env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def command(
    exchange: FakePolymarket, script: str, *args: str, cwd: Path | None = None, within_s: float = 60, **env: str
) -> Done:
    """Run a script against *exchange* to its end."""
    code, out, err = await run_script(
        str(PROJECT / script), *args, folder=cwd, variables=variables(exchange, env), within_s=within_s
    )
    return Done(code, out.decode(errors="backslashreplace"), err.decode(errors="backslashreplace"))
