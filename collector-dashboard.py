#!/usr/bin/env python3
"""Look at the collector's file in a browser: the command `collector-dashboard`.

Serves the file with Datasette and datasette-dashboards: a page of the collection, of the exchange and of one market,
and ready-made queries. The file is opened read-only and may be written meanwhile; nothing is loaded from elsewhere.
Other pages that the browser has open get nothing from it; what a request may ask, take and keep is limited (Limits).
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  said before an import fails without it
    sys.exit(f"collector-dashboard needs Python 3.11 or newer, and this is {sys.version.split()[0]}")

import argparse
import asyncio
import base64
import html
import ipaddress
import itertools
import math
import os
import re
import signal
import socket
import sqlite3
import textwrap
import threading
import time
import urllib.parse
import webbrowser
from contextlib import closing, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import FrameType

    Message = Mapping[str, Any]
    Send = Callable[[Message], Awaitable[None]]
    Receive = Callable[[], Awaitable[Message]]

T = TypeVar("T")

try:
    import datasette_dashboards  # noqa: F401  Datasette finds it by its entry point
    import uvicorn
    from datasette import hookimpl
    from datasette.app import Datasette
    from datasette.database import Database, QueryInterrupted, Results
    from datasette.plugins import pm
    from datasette.utils import tilde_encode
    from datasette.utils.asgi import Request, Response
    from datasette.views.base import DatasetteError
    from markupsafe import Markup
except ModuleNotFoundError as error:
    print(f"collector-dashboard: {error}; install the extra, pip install '.[dashboard]'", file=sys.stderr)
    sys.exit(ac.ConfigError.exit_code)

NAME: Final = "polymarket"  # of the database in addresses, whatever the file is called
SETTINGS: Final = {
    "allow_download": False,
    "default_page_size": 50,
    "facet_time_limit_ms": 3_000,
    "num_sql_threads": 4,  # one for each that may ask at a time
    "sql_time_limit_ms": 10_000,  # of one that nobody waits for
    "suggest_facets": False,  # tries each column, which takes seconds on millions of rows
    "truncate_cells_html": 300,
}

# --- Queries ----------------------------------------------------------------------------------------------------------

# times are counted back from here, so that a file of last month shows its last days
NEWEST: Final = "(SELECT timestamp FROM snapshots ORDER BY id DESC LIMIT 1)"
# the prices of the present: open markets stored in the last two hours
CURRENT: Final = f"""
    SELECT * FROM latest_snapshots WHERE resolved IS NOT 1 AND timestamp > datetime({NEWEST}, '-2 hours')
"""
# those with both a price now and one a day before: a one-sided book has no price worth comparing
MOVERS: Final = f"""
    SELECT now.*, old.price_yes AS price_before, now.price_yes - old.price_yes AS change
    FROM ({CURRENT}) AS now
    JOIN snapshots AS old ON old.id = (
        SELECT id FROM snapshots AS s
        WHERE s.market_id = now.market_id
          AND s.timestamp BETWEEN datetime(now.timestamp, '-26 hours') AND datetime(now.timestamp, '-1 day')
        ORDER BY s.timestamp DESC LIMIT 1
    )
    WHERE now.spread IS NOT NULL AND old.spread IS NOT NULL
"""
# of the markets with this slug the open one, else the newest
OF_SLUG: Final = """
    SELECT market_id FROM markets WHERE slug = :market
    ORDER BY resolved = 1, closed_at IS NOT NULL, first_seen DESC LIMIT 1
"""
MARKET: Final = f"""
    SELECT m.*, s.id AS snapshot_id, s.timestamp AS newest, s.price_yes, s.best_bid_yes, s.best_ask_yes, s.volume_24h,
           s.book_id
    FROM markets AS m LEFT JOIN seen USING (market_id) LEFT JOIN snapshots AS s ON s.id = seen.snapshot_id
    WHERE m.market_id = ({OF_SLUG})
"""
DAYS: Final = "coalesce(nullif(:days, ''), 7)"
# the snapshots of one market, at most about 800: the last one of each of 800 equal stretches of time
HISTORY: Final = f"""
    WITH m AS ({MARKET})
    SELECT max(s.timestamp) AS stretch, strftime('%Y-%m-%dT%H:%M:%SZ', s.timestamp) AS x, s.timestamp AS utc, s.*
    FROM m JOIN snapshots AS s USING (market_id)
    WHERE s.timestamp > datetime(newest, '-' || {DAYS} || ' days')
    GROUP BY CAST(strftime('%s', s.timestamp) / ({DAYS} * 108 + 1) AS INTEGER)
"""
PRICE: Final = "json_extract(value, '$[0]')"  # of a level of a book
SIZE: Final = "json_extract(value, '$[1]')"
# one row per level of YES, the best first
LEVELS: Final = f"""
    SELECT 'bid' AS side, key + 1 AS level, {PRICE} AS price, {SIZE} AS size FROM book, json_each(book.bids)
    UNION ALL
    SELECT 'ask', key + 1, {PRICE}, {SIZE} FROM book, json_each(book.asks)
"""
RUNS: Final = f"""
    SELECT *, strftime('%Y-%m-%dT%H:%M:%SZ', started_at) AS x, started_at AS utc,
           round((julianday(started_at) - julianday(lag(started_at) OVER (ORDER BY run_id))) * 1440, 1) AS minutes
    FROM runs WHERE started_at > datetime(
        (SELECT started_at FROM runs ORDER BY run_id DESC LIMIT 1), '-' || {DAYS} || ' days'
    ) ORDER BY run_id DESC LIMIT 3000
"""
ROWS_OF: Final = {"market_id": "markets", "run_id": "runs", "book_id": "books", "snapshot_id": "snapshots"}
PAGE: Final = "'https://polymarket.com/event/' || event_slug || '/' || slug AS page"
THE_MARKET: Final = f"({OF_SLUG})"
CENTS: Final = "coalesce(nullif(:cents, ''), 2) / 100.0 + 1e-9"  # and what floats lose
SHARES: Final = "coalesce(nullif(:shares, ''), 1000)"
HOURS: Final = "coalesce(nullif(:hours, ''), 24)"


# name: (title, what it shows and takes, query)
QUERIES: Final = {
    "latest_prices": (
        "Latest prices in a category",
        "Open markets of the last two hours, by volume. category: as in the table markets; empty: all.",
        f"""
        SELECT question, slug, category, price_yes, best_bid_yes, best_ask_yes, spread, volume_24h, timestamp, {PAGE}
        FROM ({CURRENT}) WHERE :category = '' OR category = :category ORDER BY volume_24h DESC LIMIT 500
        """,
    ),
    "volume_leaders": (
        "Volume leaders of each category",
        "The three markets of each category with the greatest volume of 24 hours (USD).",
        f"""
        SELECT category, question, slug, price_yes, volume_24h, timestamp, {PAGE} FROM (
            SELECT *, row_number() OVER (PARTITION BY category ORDER BY volume_24h DESC) AS place FROM ({CURRENT})
        ) WHERE place <= 3 ORDER BY category, place
        """,
    ),
    "price_history": (
        "Price history of a market",
        "Every snapshot, the newest first. market: its slug, the last part of its address; days: 7 unless given.",
        f"""
        SELECT timestamp, price_yes, best_bid_yes, best_ask_yes, spread, volume_24h, liquidity, run_id, book_id
        FROM snapshots
        WHERE market_id = {THE_MARKET} AND timestamp > datetime({NEWEST}, '-' || {DAYS} || ' days')
        ORDER BY timestamp DESC
        """,
    ),
    "markets_of_an_event": (
        "All markets of an event",
        "With their newest prices. event: its slug, as in https://polymarket.com/event/SLUG.",
        f"""
        SELECT question, slug, price_yes, best_bid_yes, best_ask_yes, volume_24h, timestamp, resolved,
               resolution_outcome, {PAGE}
        FROM latest_snapshots
        WHERE market_id IN (SELECT market_id FROM markets WHERE event_slug = :event) ORDER BY price_yes DESC
        """,
    ),
    "widest_spreads": (
        "Widest spreads now",
        "Open markets of the last two hours with both a bid and an ask; spread in USD.",
        f"""
        SELECT question, slug, best_bid_yes, best_ask_yes, spread, volume_24h, timestamp, {PAGE}
        FROM ({CURRENT}) WHERE spread IS NOT NULL ORDER BY spread DESC LIMIT 200
        """,
    ),
    "movers": (
        "Movers of 24 hours",
        "Open markets by how far the price of YES (USD) moved; only those with a bid and an ask then and now.",
        f"""
        SELECT question, slug, price_before, price_yes, round(change, 4) AS change, spread, volume_24h, timestamp,
               {PAGE}
        FROM ({MOVERS}) ORDER BY abs(change) DESC LIMIT 200
        """,
    ),
    "thin_books": (
        "Thin books",
        "Much traded markets with little at their best prices. usd: shares at best bid and ask times the price.",
        f"""
        SELECT question, slug, round(bid_size_yes * best_bid_yes + ask_size_yes * best_ask_yes, 2) AS usd_at_best,
               bid_size_yes, ask_size_yes, spread, volume_24h, timestamp, {PAGE}
        FROM ({CURRENT}) WHERE spread IS NOT NULL AND volume_24h >= 10000 ORDER BY usd_at_best LIMIT 200
        """,
    ),
    "last_price_before_resolution": (
        "Last price before resolution",
        "Resolved markets and the last price of YES (USD) before they closed.",
        f"""
        SELECT m.question, m.slug, m.resolution_outcome, m.outcome_yes, s.price_yes, s.timestamp, m.closed_at, {PAGE}
        FROM markets AS m JOIN snapshots AS s ON s.id = (
            SELECT id FROM snapshots
            WHERE market_id = m.market_id AND timestamp <= coalesce(m.closed_at, {NEWEST})
            ORDER BY timestamp DESC LIMIT 1
        ) WHERE m.resolved = 1 ORDER BY m.closed_at DESC LIMIT 500
        """,
    ),
    "hype_against_price": (
        "Hype against price",
        "Each signal of attention with the price of YES then and an hour later. market: its slug; empty: all.",
        f"""
        SELECT m.question, m.slug, h.timestamp, h.hype_score, h.tweet_count, h.velocity,
               (SELECT price_yes FROM snapshots AS s WHERE s.market_id = h.market_id AND s.timestamp <= h.timestamp
                ORDER BY s.timestamp DESC LIMIT 1) AS price_yes,
               (SELECT price_yes FROM snapshots AS s WHERE s.market_id = h.market_id
                AND s.timestamp >= datetime(h.timestamp, '+1 hour') ORDER BY s.timestamp LIMIT 1) AS price_an_hour_later
        FROM hype_signals AS h JOIN markets AS m USING (market_id)
        WHERE :market = '' OR h.market_id = {THE_MARKET} ORDER BY h.timestamp DESC LIMIT 500
        """,
    ),
    "gaps_of_the_last_hours": (
        "Gaps of the last hours",
        "Where snapshots of a market are missing, and why; first what is missing now. hours: 24 unless given.",
        f"""
        SELECT question, slug, since, until, run_ids, reasons FROM gaps JOIN markets USING (market_id)
        WHERE until IS NULL OR until > datetime({NEWEST}, '-' || {HOURS} || ' hours')
        ORDER BY until IS NOT NULL, until DESC LIMIT 1000
        """,
    ),
    "candles_of_a_category": (
        "Hourly open, high, low and close",
        "Of each market of a category, price of YES in USD. category: as in markets; hours: 24 unless given.",
        f"""
        SELECT DISTINCT slug, strftime('%Y-%m-%d %H:00', timestamp) AS hour,
               first_value(price_yes) OVER w AS open, max(price_yes) OVER w AS high, min(price_yes) OVER w AS low,
               last_value(price_yes) OVER w AS close
        FROM markets JOIN snapshots USING (market_id)
        WHERE category = :category AND timestamp > datetime({NEWEST}, '-' || {HOURS} || ' hours')
        WINDOW w AS (PARTITION BY market_id, strftime('%Y-%m-%d %H', timestamp) ORDER BY timestamp
                     ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
        ORDER BY slug, hour
        """,
    ),
    "depth_within_cents": (
        "Depth within 2 cents of the price",
        (
            "Shares of YES bid and asked so near to the price, at each snapshot of a market. market: its slug; "
            "cents: 2 unless given; days: 7 unless given."
        ),
        f"""
        SELECT s.timestamp, price_yes,
               (SELECT sum({SIZE}) FROM json_each(bids) WHERE {PRICE} >= price_yes - {CENTS}) AS bid_shares,
               (SELECT sum({SIZE}) FROM json_each(asks) WHERE {PRICE} <= price_yes + {CENTS}) AS ask_shares
        FROM snapshots AS s JOIN books USING (book_id)
        WHERE s.market_id = {THE_MARKET} AND s.timestamp > datetime({NEWEST}, '-' || {DAYS} || ' days')
        ORDER BY s.timestamp DESC
        """,
    ),
    "imbalance": (
        "Imbalance of the books now",
        (
            "(bids - asks) / (bids + asks) in shares of YES near the price, from -1 (all sell) to 1 (all buy), of the "
            "200 most traded markets. cents: 2 unless given."
        ),
        f"""
        SELECT question, slug, round((bid - ask) / (bid + ask), 3) AS imbalance, bid AS bid_shares, ask AS ask_shares,
               price_yes, volume_24h, timestamp, {PAGE}
        FROM (
            SELECT now.*,
                   (SELECT total({SIZE}) FROM json_each(bids) WHERE {PRICE} >= price_yes - {CENTS}) AS bid,
                   (SELECT total({SIZE}) FROM json_each(asks) WHERE {PRICE} <= price_yes + {CENTS}) AS ask
            FROM (SELECT * FROM ({CURRENT}) ORDER BY volume_24h DESC LIMIT 200) AS now
            JOIN books USING (book_id)
        ) ORDER BY imbalance DESC
        """,
    ),
    "cost_of_buying": (
        "Cost of buying 1,000 shares",
        (
            "What so many shares of YES cost at the newest book, level by level. market: its slug; empty: the 200 most "
            "traded; shares: 1000 unless given. shares_bought is less where the book has less."
        ),
        f"""
        WITH now AS (
            SELECT * FROM ({CURRENT}) WHERE :market = '' OR market_id = {THE_MARKET} ORDER BY volume_24h DESC LIMIT 200
        ),
        levels AS (
            SELECT now.*, {PRICE} AS price, max(0, min(
                {SIZE}, {SHARES} - sum({SIZE}) OVER (PARTITION BY now.id ORDER BY key) + {SIZE}
            )) AS bought
            FROM now JOIN books USING (book_id) LEFT JOIN json_each(asks)
        )
        SELECT question, slug, best_ask_yes, round(total(bought), 2) AS shares_bought,
               round(sum(bought * price), 2) AS cost_usd, round(sum(bought * price) / sum(bought), 4) AS average_price,
               max(price) FILTER (WHERE bought > 0) AS highest_price, timestamp, {PAGE}
        FROM levels GROUP BY id ORDER BY volume_24h DESC
        """,
    ),
    "book_at_a_moment": (
        "The book of a market at a moment",
        (
            "Levels of YES as of the last snapshot before it. market: its slug; moment: UTC, YYYY-MM-DD HH:MM:SS, or "
            "with its offset; empty: now."
        ),
        f"""
        WITH book AS (
            SELECT s.timestamp, bids, asks FROM snapshots AS s JOIN books USING (book_id)
            WHERE s.market_id = {THE_MARKET} AND s.timestamp <= coalesce(utc(:moment), {NEWEST})
            ORDER BY s.timestamp DESC LIMIT 1
        )
        SELECT book.timestamp, side, level, price, size, round(sum(size) OVER (PARTITION BY side ORDER BY level), 2)
               AS shares_so_far
        FROM book, ({LEVELS}) ORDER BY side, level
        """,
    ),
    "spread_by_size": (
        "Spread by size",
        (
            "Average prices at which so many shares of YES are bought and sold at once at the newest book, and their "
            "difference in USD; nothing where the book has fewer. market: its slug."
        ),
        f"""
        WITH book AS (SELECT bids, asks FROM ({MARKET}) JOIN books USING (book_id)),
        wanted (shares) AS (VALUES (1), (100), (1000), (10000), (100000)),
        taken AS (
            SELECT shares, side, price, max(0, min(size, shares - sum(size) OVER (
                PARTITION BY shares, side ORDER BY level
            ) + size)) AS taken FROM wanted, ({LEVELS})
        ),
        sides AS (
            SELECT shares, side, CASE WHEN sum(taken) >= shares THEN sum(taken * price) / shares END AS average
            FROM taken GROUP BY shares, side
        )
        SELECT shares, round(max(average) FILTER (WHERE side = 'ask'), 4) AS average_to_buy,
               round(max(average) FILTER (WHERE side = 'bid'), 4) AS average_to_sell,
               round(max(average) FILTER (WHERE side = 'ask') - max(average) FILTER (WHERE side = 'bid'), 4) AS spread
        FROM wanted LEFT JOIN sides USING (shares) GROUP BY shares
        """,
    ),
    "what_is_in_the_file": (
        "What is in the file",
        "Rows and times of each table.",
        """
        SELECT 'snapshots' AS "table", (SELECT count(*) FROM snapshots) AS rows,
               (SELECT min(timestamp) FROM snapshots) AS oldest, (SELECT max(timestamp) FROM snapshots) AS newest
        UNION ALL SELECT 'markets', count(*), min(first_seen), max(first_seen) FROM markets
        UNION ALL SELECT 'books', count(*), NULL, NULL FROM books
        UNION ALL SELECT 'runs', count(*), min(started_at), max(started_at) FROM runs
        UNION ALL SELECT 'tweets', count(*), min(timestamp), max(timestamp) FROM tweets
        """,
    ),
}

# --- Words ------------------------------------------------------------------------------------------------------------

HIDDEN: Final = ("archived_days", "lake", "listed_ids", "seen", "sqlite_stat1", "sqlite_stat4", "walk")
# tables and views: (what it holds, the column that names a row, the one by which they are sorted)
SCHEMA: Final[dict[str, tuple[str, str | None, str | None]]] = {
    "markets": ("One row per market.", "question", "first_seen"),
    "snapshots": ("One row per market and run.", None, "id"),
    "latest_snapshots": ("The newest snapshot of each market, with what the market is.", None, "volume_24h"),
    "runs": ("One row per collection.", "started_at", "run_id"),
    "failures": ("What a run could not collect, and why.", None, "run_id"),
    "books": ("Whole order books, each content once per market and UTC day.", "timestamp", "book_id"),
    "book_levels": ("One row per level of each snapshot's book, 1 is the best: ask for one snapshot_id.", None, None),
    "order_books": ("Each snapshot with its whole book, of NO as well: [price in USD, shares].", None, None),
    "gaps": ("Where snapshots of a market are missing, and why; no until: they still are.", None, None),
    "tweets": ("Posts on X.", "text", "timestamp"),
    "hype_signals": ("Attention for a market on X.", None, "id"),
}

# --- Pages ------------------------------------------------------------------------------------------------------------

BLUE, ORANGE, GREEN, RED, GREY = "#4a90d9", "#e08a3c", "#3fa66b", "#d9534f", "#8a929c"  # on white and on black
TIME: Final = {
    "field": "x",
    "type": "temporal",
    "title": "UTC",
    "scale": {"type": "utc"},
    "axis": {
        "tickCount": {"expr": "width / 90"},
        "format": {"hours": "%H:%M", "minutes": "%H:%M", "date": "%d %b", "day": "%d %b", "week": "%d %b"},
    },
}
STYLE: Final = f"""
.dashboard-card svg text {{ fill: currentColor; }}
.dashboard-card table {{ font-size: 0.85rem; }}
.dashboard-card td, .dashboard-card th {{ padding: 0.15rem 0.6rem 0.15rem 0; text-align: left; border-right: none; }}
.dashboard-card td:first-child {{ min-width: 7rem; }}
td.col-question, td.col-slug, td.col-market_id {{ min-width: 12rem; }}
.dashboard-filters form input[type=text][name] {{ width: min(24rem, 80vw); }}
.dashboard-filters form input[type=number][name] {{ width: 8rem; }}
@media (max-width: 576px) {{
  form.sql label {{ width: 30%; }}
  form.sql input[type=text] {{ width: 65%; }}
}}
@media (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; }}
  body, body .hd, body :fullscreen {{ background: #14181f; color: #d5dae2; }}
  div.dashboard-card, table.rows-and-columns, .rows-and-columns td, body pre {{ background: #1c222b; color: #d5dae2; }}
  div.page-header {{ border-color: {BLUE} !important; }}
  body a:link, body a:visited {{ color: {BLUE}; }}
  header a:link, header a:visited {{ color: #fff; }}
  body input[type], body select, body textarea, body .dropdown-menu, body .nav-menu-inner {{
    background: #1c222b; color: #d5dae2;
  }}
  body .CodeMirror {{ background: #fff; color: #111; }}
  body input[type=submit] {{ background: #27507a; }}
  body .select-wrapper, fieldset, table, td, body th {{ border-color: #3a424e; }}
}}
"""


def kinds(**colors: str) -> dict[str, Any]:
    """Return the colour of each kind, with a legend."""
    scale = {"domain": list(colors), "range": list(colors.values())}
    return {"field": "kind", "type": "nominal", "scale": scale, "legend": {"orient": "top", "title": None}}


def chart(title: str, query: str, empty: str, *layers: dict[str, Any], height: int = 220) -> dict[str, Any]:
    """Return a chart of the rows of *query*, which says *empty* where there are none.

    Each row has an `x`. Where there is no row, one of NULLs carries the message.
    """
    for drawn in layers:
        drawn["transform"] = [{"filter": f"isValid(datum.x) && ({drawn.pop('only', 'true')})"}]
    nothing = {
        "transform": [{"filter": "!isValid(datum.x)"}],
        "mark": {"type": "text", "text": empty.split("|"), "x": {"expr": "width / 2"}, "y": {"expr": "height / 3"}},
    }
    return {
        "title": title,
        "db": NAME,
        "library": "vega-lite",
        "query": f"SELECT shown.* FROM (SELECT 1) LEFT JOIN ({query}) AS shown",
        "display": {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",  # a name, never fetched
            "height": height,
            "layer": [*layers, nothing],
            "config": {
                "background": "#00000000",
                "view": {"stroke": None},
                "axis": {"gridColor": "#88888844", "domainColor": GREY, "tickColor": GREY},
            },
            "usermeta": {"embedOptions": {"actions": False, "renderer": "svg"}},
        },
    }


def tooltip(columns: str) -> list[dict[str, str]]:
    """Return what pointing at a mark shows: *columns*, separated by blanks."""
    return [{"field": column, "type": "nominal"} for column in columns.split()]


def layer(mark: str, color: str | dict[str, Any], y: str, title: str, tips: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a layer that draws column *y* over time; pointing at it shows the columns named in *tips*.

    In *more* are further channels, and in `only` a condition on the rows.
    """
    only = more.pop("only", "true")
    encoding = {
        "x": TIME,
        "y": {"field": y, "type": "quantitative", "title": title, "scale": {"zero": False}},
        "color": {"value": color} if isinstance(color, str) else color,
        "tooltip": tooltip(tips),
    }
    return {"only": only, "mark": {"type": mark, "clip": True}, "encoding": encoding | more}


def bars(y: str, x: str, title: str, tips: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a layer of one bar for each *y*, *x* long."""
    encoding = {
        "y": {
            "field": y,
            "type": "nominal",
            "sort": None,
            "title": None,
            "axis": {"labelLimit": {"expr": "width * 0.4"}},
        },
        "x": {"field": x, "type": "quantitative", "title": title, "axis": {"format": "~s"}},
        "color": {"value": BLUE},
        "tooltip": tooltip(tips),
    }
    return {"mark": {"type": "bar"}, "encoding": encoding | more}


def depth(side: str, step: str) -> dict[str, Any]:
    """Return a layer of the shares of one side of a book up to each price."""
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": "price of YES, USD", "scale": {"zero": False}},
        "y": {"field": "shares", "type": "quantitative", "title": "shares", "axis": {"format": "~s"}, "stack": None},
        "color": kinds(bids=GREEN, asks=RED),
        "tooltip": tooltip("price size shares"),
    }
    mark = {"type": "area", "interpolate": step, "opacity": 0.7}
    return {"only": f"datum.kind == '{side}'", "mark": mark, "encoding": encoding}


def table(title: str, columns: dict[str, str], rows: str, empty: str) -> dict[str, Any]:
    """Return a table of *columns*, name and expression, of query *rows*: one row saying *empty* where there is none.

    The rows are found and sorted first, since the expressions may cost more.
    """
    shown = ", ".join(f'{expression} AS "{name}"' for name, expression in columns.items())
    nothing = ", ".join([f"'{empty.replace('|', ' ')}'", *["NULL"] * (len(columns) - 1)])
    query = f"""
        WITH found AS MATERIALIZED ({rows}), shown AS (SELECT {shown} FROM found)
        SELECT * FROM shown UNION ALL SELECT {nothing} WHERE NOT EXISTS (SELECT 1 FROM shown)
    """
    return {"title": title, "db": NAME, "library": "table", "query": query}


def facts(title: str, source: str, lines: dict[str, str], empty: str) -> dict[str, Any]:
    """Return a table with a line for each of *lines*, name and expression, of the one row of *source*."""
    rows = " UNION ALL ".join(f"SELECT '{name}', {expression} FROM fact" for name, expression in lines.items())
    query = f"WITH fact AS ({source}), line(name, value) AS ({rows}) SELECT * FROM line"
    return table(title, {"": "name", " ": "value"}, query, empty)


def page(title: str, description: str, filters: dict[str, Any], **cards: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard of *cards*, two in a row, those whose name begins with "wide_" alone in theirs."""
    rows: list[list[str]] = []
    for name in cards:
        if name.startswith("wide_"):
            rows.append([name, name])
        elif rows and rows[-1][1] == "":
            rows[-1][1] = name
        else:
            rows.append([name, ""])
    return {
        "title": title,
        "description": description,
        "filters": filters,
        "charts": cards,
        "layout": [[left, right or left] for left, right in rows],
    }


DAYS_SHOWN: Final = {
    "days": {"name": "Days up to the newest", "type": "number", "default": 7, "min": 0.05, "step": 0.05}
}
COLLECTION: Final = page(
    "Collection",
    "How the collecting itself goes. All times are UTC.",
    DAYS_SHOWN,
    wide_now=facts(
        "The newest run and the file",
        """
        SELECT *, (SELECT count(*) FROM seen JOIN markets USING (market_id) JOIN snapshots AS s ON s.id = snapshot_id
                   WHERE followed = 1 AND resolved IS NOT 1 AND s.run_id < r.run_id) AS behind
        FROM runs AS r ORDER BY run_id DESC LIMIT 1
        """,
        {
            "run": "run_id || ': ' || html(status) || ', begun ' || html(started_at) || ' UTC'",
            "stored": "number(snapshots_saved) || ' of ' || number(markets_listed) || ' markets listed'",
            "without a book": "number(books_missing)",
            "followed markets that it did not store": "CASE status WHEN 'running' THEN 'still running' "
            "ELSE number(behind) END",
            "duration": "number(duration) || ' s'",
            "requests": "number(requests) || ', of which retries ' || number(retries) || '; refused for their rate '"
            " || number(rate_limit_hits)",
            "snapshots in the file": "number((SELECT max(id) FROM snapshots))",
            "file and write-ahead log": "file_size('') || ' and ' || file_size('-wal')",
        },
        "No run yet: start async-collector and load this page again.",
    ),
    share=chart(
        "Share of the listed markets that each run stored, %",
        f"""
        SELECT *, status AS kind, round(100.0 * snapshots_saved / nullif(markets_listed, 0), 2) AS share
        FROM ({RUNS})
        """,
        "No runs in these days.",
        layer(
            "circle",
            kinds(complete=GREEN, partial=ORANGE, failed=RED, running=GREY),
            "share",
            "stored, %",
            "utc run_id status share markets_listed snapshots_saved",
        ),
    ),
    duration=chart(
        "Duration of each run, seconds",
        RUNS,
        "No runs in these days.",
        layer("line", BLUE, "duration", "seconds", "utc run_id duration requests retries"),
    ),
    misses=chart(
        "What each run missed",
        f"""
        SELECT x, utc, run_id, books_missing AS misses, 'markets without a book' AS kind FROM ({RUNS})
        UNION ALL SELECT x, utc, run_id, errors, 'failures' FROM ({RUNS})
        """,
        "No runs in these days.",
        layer(
            "line",
            kinds(**{"markets without a book": ORANGE, "failures": RED}),
            "misses",
            "markets, failures",
            "utc run_id kind misses",
        ),
    ),
    pauses=chart(
        "Gaps: minutes from one run to the next",
        f"SELECT * FROM ({RUNS}) WHERE minutes IS NOT NULL",
        "A gap needs two runs.",
        layer("line", BLUE, "minutes", "minutes", "utc run_id minutes"),
    ),
    failures=table(
        "Most frequent failures",
        {"stage": "html(stage)", "reason": "html(reason)", "times": "number(times)", "last run": "last_run"},
        f"""
        SELECT stage, reason, count(*) AS times, max(run_id) AS last_run FROM failures
        WHERE run_id IN (SELECT run_id FROM ({RUNS})) GROUP BY stage, reason ORDER BY times DESC LIMIT 10
        """,
        "none in these days",
    ),
    posts=chart(
        "Posts read by each run",
        f"SELECT * FROM ({RUNS}) WHERE tweets > 0",
        "No posts in these days:|they need TWITTER_BEARER_TOKEN.",
        layer("line", GREEN, "tweets", "posts", "utc run_id tweets"),
    ),
)

ENOUGH: Final = "volume_24h >= coalesce(nullif(:volume, ''), 1000)"
SPREAD: Final = {
    "market": "market_link(slug, question)",
    "bid": "best_bid_yes",
    "ask": "best_ask_yes",
    "spread": "spread",
    "volume": "usd(volume_24h)",
}
SPREADS: Final = f"SELECT * FROM ({CURRENT}) WHERE spread IS NOT NULL AND {ENOUGH}"
NO_MARKETS: Final = "No open market of the last two hours|with this volume: lower it,|or wait for the next run."
EXCHANGE: Final = page(
    "Exchange",
    "Open markets as of the last two hours in the file. Prices and spreads are USD per share of YES, volumes USD of 24 "
    "hours; times are UTC.",
    {"volume": {"name": "Volume of 24 hours, at least USD", "type": "number", "default": 1000, "min": 0}},
    categories=chart(
        "Volume of 24 hours by category",
        f"""
        SELECT coalesce(category, 'none') AS category, round(sum(volume_24h)) AS x, usd(sum(volume_24h)) AS volume,
               count(*) AS markets
        FROM ({CURRENT}) WHERE {ENOUGH} GROUP BY 1 ORDER BY x DESC LIMIT 12
        """,
        NO_MARKETS,
        bars("category", "x", "USD", "category volume markets"),
        height=300,
    ),
    movers=chart(
        "Movers: change of the price of YES in 24 hours, cents",
        f"""
        SELECT substr(question, 1, 60) AS market, round(100 * change, 2) AS x, price_before, price_yes,
               address('/-/dashboards/market', slug) AS link
        FROM ({MOVERS}) WHERE {ENOUGH} AND change <> 0 ORDER BY abs(change) DESC LIMIT 12
        """,
        "No market moved, or there are|no snapshots a day apart yet.",
        bars(
            "market",
            "x",
            "cents",
            "market price_before price_yes",
            color={"condition": {"test": "datum.x < 0", "value": RED}, "value": GREEN},
            href={"field": "link", "type": "nominal"},
        ),
        height=300,
    ),
    widest=table(
        "Widest spreads",
        SPREAD,
        f"{SPREADS} ORDER BY spread DESC, volume_24h DESC LIMIT 10",
        NO_MARKETS,
    ),
    tightest=table(
        "Tightest spreads",
        SPREAD,
        f"{SPREADS} ORDER BY spread, volume_24h DESC LIMIT 10",
        NO_MARKETS,
    ),
    wide_newest=table(
        "Newest markets",
        {
            "market": "market_link(slug, question)",
            "category": "html(category)",
            "first seen, UTC": "html(first_seen)",
            "price": "price_yes",
            "volume": "usd(volume_24h)",
        },
        f"""
        SELECT c.*, m.first_seen FROM ({CURRENT}) AS c JOIN markets AS m USING (market_id)
        WHERE {ENOUGH} ORDER BY m.first_seen DESC LIMIT 10
        """,
        NO_MARKETS,
    ),
)

NO_SNAPSHOTS: Final = "No snapshots of this market|in these days. Choose another|above and press Apply."
MARKET_PAGE: Final = page(
    "Market",
    "One market, chosen by its slug: the last part of its address. Prices are USD per share of YES, which is the "
    "probability; times are UTC.",
    {
        "market": {
            "name": "Market",
            "type": "select",
            "db": NAME,
            "query": "SELECT slug FROM latest_snapshots WHERE slug IS NOT NULL ORDER BY volume_24h DESC LIMIT 1000",
        }
    }
    | DAYS_SHOWN,
    wide_about=facts(
        "Now",
        MARKET,
        {
            "question": "exchange_link(event_slug, slug, question)",
            "YES is": "html(outcome_yes)",
            "price of YES": "price_yes || ' USD'",
            "bid and ask": "coalesce(best_bid_yes, 'none') || ' and ' || coalesce(best_ask_yes, 'none')",
            "volume of 24 hours": "usd(volume_24h)",
            "newest snapshot": "html(newest) || ' UTC'",
            "ends": "html(end_time) || ' UTC'",
            "as a table": "link(address('/polymarket/price_history', slug), 'price history') || ', ' || "
            "link(address('/polymarket/depth_within_cents', slug), 'depth') || ', ' || "
            "link(address('/polymarket/book_at_a_moment', slug), 'book')",
            "outcome": "CASE resolved WHEN 1 THEN coalesce(html(resolution_outcome), 'resolved') ELSE 'open' END",
        },
        "No market of this name in the file: choose one above and press Apply.",
    ),
    wide_price=chart(
        "Price of YES with best bid and ask; grey points: without both",
        f"SELECT * FROM ({HISTORY}) WHERE price_yes <> 0.5 OR coalesce(best_bid_yes, best_ask_yes) IS NOT NULL",
        "No price of this market|in these days. Choose another|above and press Apply.",  # an empty book says 0.5
        layer("area", ORANGE, "best_bid_yes", "USD", "", y2={"field": "best_ask_yes"}, opacity={"value": 0.35}),
        layer(
            "line", BLUE, "price_yes", "USD", "utc price_yes best_bid_yes best_ask_yes", only="isValid(datum.spread)"
        ),
        layer(
            "circle", GREY, "price_yes", "USD", "utc price_yes best_bid_yes best_ask_yes", only="!isValid(datum.spread)"
        ),
        height=280,
    ),
    spread=chart(
        "Spread",
        f"SELECT * FROM ({HISTORY}) WHERE spread IS NOT NULL",
        "No snapshot in these days|has both a bid and an ask.",
        layer("line", ORANGE, "spread", "USD", "utc spread best_bid_yes best_ask_yes"),
    ),
    volume=chart(
        "Volume of the last 24 hours",
        f"SELECT * FROM ({HISTORY}) WHERE volume_24h IS NOT NULL",
        NO_SNAPSHOTS,
        layer("line", GREEN, "volume_24h", "USD", "utc volume_24h"),
    ),
    depth=chart(
        "The book of the newest snapshot: shares up to each price",
        f"""
        WITH book AS (SELECT b.* FROM ({MARKET}) AS m JOIN books AS b USING (book_id))
        SELECT side || 's' AS kind, price AS x, price, size,
               round(sum(size) OVER (PARTITION BY side ORDER BY level), 2) AS shares
        FROM ({LEVELS})
        """,
        "The newest snapshot has no book:|it could not be fetched,|or the collector runs with --depth 0.",
        depth("bids", "step-before"),
        depth("asks", "step-after"),
    ),
    hype=chart(
        "Attention on X: hype score",
        f"""
        WITH m AS ({MARKET})
        SELECT strftime('%Y-%m-%dT%H:%M:%SZ', h.timestamp) AS x, h.timestamp AS utc, h.*
        FROM m JOIN hype_signals AS h USING (market_id)
        WHERE h.timestamp > datetime(newest, '-' || {DAYS} || ' days') ORDER BY h.timestamp DESC LIMIT 1000
        """,
        "No attention was measured|for this market in these days.",
        layer("line", BLUE, "hype_score", "0 to 100", "utc hype_score tweet_count unique_users"),
    ),
)


# --- Limits -----------------------------------------------------------------------------------------------------------

MAX_AT_ONCE: Final = 2  # pages that are being made; the rest waits, and the oldest of too many is sent away
MAX_WAITING: Final = 40
MAX_STREAMS: Final = 2  # CSV files on their way
MAX_CONNECTIONS: Final = 250
MAX_PAGE_S: Final = 30.0  # from its turn until the last byte is sent
MAX_STREAM_S: Final = 600.0
BUSY_S: Final = 3.0  # for the queries of a page while others wait
ALONE_S: Final = 10.0
MAX_COUNT_MS: Final = 1_000  # how many rows a filter finds is nice to know
MAX_HEAP: Final = 24_000_000  # bytes, of SQLite, in all threads
# what SQLite does between two looks at the clock lasts milliseconds with these, whatever the statement says
SQLITE_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,  # bytes of a value and of a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 50_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 30,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 6_000,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
STEPS: Final = 100  # of SQLite's machine between two looks at the clock
PRAGMAS: Final = {"table_info", "table_xinfo", "foreign_key_list", "index_list", "database_list", "schema_version"}
# Not among them: what reads files or memory, and instr, replace and trim, which take hours for two long texts.
FUNCTIONS: Final = (
    " -> ->> abs acos address asin atan atan2 avg ceil ceiling char coalesce cos count cume_dist current_date "
    " current_time current_timestamp date datetime degrees dense_rank escape_fts exchange_link exp file_size "
    " first_value floor format glob group_concat hex html ifnull iif json json_array json_array_length json_each "
    " json_extract json_group_array json_group_object json_object json_quote json_tree json_type json_valid julianday "
    " lag last_value lead length like link ln log log10 log2 lower market_link max min mod nth_value ntile nullif "
    " number percent_rank pi pow power printf quote radians random rank round row_number sign sin sqlite_version sqrt "
    " strftime string_agg substr substring sum tan time total trunc typeof unicode unixepoch upper usd utc "
)


@dataclass
class Visit:
    """What one request may ask and take; its queries look at it in their threads."""

    sql: bool  # it may run the SQL in its address
    rows: int = 5_000  # at most, in an answer
    size: int = 4_000_000  # bytes of values at most, as Python keeps them
    whole: bool = False  # the format cannot say that rows are missing, so that none may be
    waiting: list[asyncio.Future[bool]] = field(default_factory=list)  # for this one to end
    began: float = math.inf
    left: bool = False  # nobody is there any more for its answer

    def over(self) -> bool:
        """Return whether its queries have to end."""
        return self.left or time.monotonic() - self.began > (BUSY_S if self.waiting else ALONE_S)


NOBODY: Final = Visit(sql=False)  # Datasette itself asks
VISIT: Final[ContextVar[Visit]] = ContextVar("VISIT")


class Cursor(sqlite3.Cursor):
    """A cursor whose answers are limited in size."""

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        return self.fetchmany(sys.maxsize)

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        """Return at most *size* rows."""
        rows, room = [], VISIT.get(NOBODY).size
        for row in itertools.islice(self, size):
            rows.append(row)
            room -= sum(map(sys.getsizeof, row))
            if room < 0:
                self.close()
                raise sqlite3.OperationalError("the answer is too large: ask for fewer rows or columns")
        return rows


class Reader(sqlite3.Connection):
    """A connection that reads the tables of its file and nothing else, within limits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  those of sqlite3.connect
        """Open the file."""
        super().__init__(*arguments, **options)
        for limit, value in SQLITE_LIMITS.items():
            self.setlimit(limit, value)
        self.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP}")
        self.modules = {name for (name,) in self.execute("PRAGMA module_list")} - {"json_each", "json_tree"}
        self.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")  # makes both, which is not allowed from now on
        self.set_authorizer(self.authorize)

    def authorize(self, action: int, name: str | None, other: str | None, *_: str | None) -> int:
        """Return SQLITE_OK for what a reader of tables needs."""
        allowed = {
            sqlite3.SQLITE_SELECT: True,
            sqlite3.SQLITE_RECURSIVE: True,
            sqlite3.SQLITE_READ: name not in self.modules and not str(name).startswith("pragma_"),
            sqlite3.SQLITE_FUNCTION: f" {other} " in FUNCTIONS,
            sqlite3.SQLITE_PRAGMA: name in PRAGMAS,
        }
        return sqlite3.SQLITE_OK if allowed.get(action) else sqlite3.SQLITE_DENY

    def cursor(self, *_: object) -> Cursor:  # type: ignore[override]
        """Return a cursor whose answers are limited."""
        return super().cursor(Cursor)

    def set_progress_handler(self, handler: Callable[[], int | None] | None, n: int) -> None:
        """Call *handler*, Datasette's clock, more often than it asks for, and look at the visit as well."""
        visit = VISIT.get(NOBODY)
        both = handler and (lambda: handler() or visit.over())
        super().set_progress_handler(both, min(n, STEPS))


class CollectorFile(Database):  # type: ignore[misc]  # Datasette has no types
    """The file, opened so that it cannot be written; another one that comes to its place is opened anew.

    An immutable one is taken as it is: SQLite looks for no log, locks nothing and sees no change.
    """

    def __init__(self, datasette: Datasette, path: Path) -> None:
        """Open the file at *path* for reading, or raise ac.StorageError."""
        super().__init__(datasette, path=str(path), is_mutable=True)
        self.file = path
        self.identity: tuple[int, int] | None = None
        self.of_thread = threading.local()
        self.look()

    def look(self) -> None:
        """Look whether the file is still the one that was opened; raise ac.StorageError if none can be shown."""
        with suppress(OSError):
            found = self.file.stat()
            if (found.st_dev, found.st_ino) == self.identity:
                return
        self.mode = opening_mode(self.file)
        found = self.file.stat()
        self.identity = (found.st_dev, found.st_ino)

    def connect(self, write: bool = False) -> sqlite3.Connection:  # noqa: FBT001, FBT002  Datasette's signature
        """Return a connection that only reads."""
        assert not write  # noqa: S101  no configured query writes
        uri = f"{self.file.as_uri()}?{self.mode}"
        return sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=2, factory=Reader)

    async def execute_fn(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Call *fn* in a thread with its connection to the file that is there now."""

        def in_thread() -> T:
            own = self.of_thread
            if getattr(own, "identity", None) != self.identity:
                if hasattr(own, "connection"):
                    own.connection.close()
                own.identity, own.connection = self.identity, self.connect()
                self.ds._prepare_connection(own.connection, NAME)  # noqa: SLF001  as Datasette does
            return fn(own.connection)

        return await asyncio.get_running_loop().run_in_executor(self.ds.executor, copy_context().run, in_thread)

    async def execute(self, sql: str, *arguments: Any, **options: Any) -> Results:  # noqa: ANN401  Datasette's
        """Return the rows of a query; where they have to be whole, there is an error and not a part of them."""
        if sql.startswith("select count(*) from"):
            options["custom_time_limit"] = min(options.get("custom_time_limit") or MAX_COUNT_MS, MAX_COUNT_MS)
        visit = VISIT.get(NOBODY)
        try:
            results = await super().execute(sql, *arguments, **options | {"log_sql_errors": False})
        except MemoryError as error:
            raise sqlite3.OperationalError("out of the memory that a query may take") from error
        except (sqlite3.DatabaseError, QueryInterrupted) as error:
            expected = options.get("truncate") or "custom_time_limit" in options  # Datasette shows it, or goes on
            if visit.whole or not expected:
                raise DatasetteError(f"no answer within the limits: {error.args[0]}", status=400) from error
            raise
        if results.truncated and visit.whole:
            raise DatasetteError(f"more than {visit.rows:,} rows: ask for fewer", status=400)
        return results

    async def foreign_keys_for_table(self, table: str) -> list[dict[str, str]]:
        """Return which columns name a row of another table; views and tables of older collectors do not declare it."""
        columns = await self.table_columns(table)
        own = "id" if table == "snapshots" else {value: key for key, value in ROWS_OF.items()}.get(table)
        return [
            {"column": column, "other_table": other, "other_column": "id" if other == "snapshots" else column}
            for column, other in ROWS_OF.items()
            if column in columns and column != own
        ]


PAGES: Final = {"market": MARKET_PAGE, "exchange": EXCHANGE, "collection": COLLECTION}


# --- Serving ----------------------------------------------------------------------------------------------------------


def as_html(value: object) -> str | None:
    """Return *value* as text that is safe in a page: the exchange's words may be anything."""
    return None if value is None else html.escape(str(value))


def link(address: str | None, label: object) -> str | None:
    """Return a link, safe in a page, or its label alone if there is no address."""
    if address is None:
        return as_html(label)
    return f'<a href="{html.escape(address)}">{html.escape(str(label))}</a>'


def address(page: str, slug: str | None) -> str | None:
    """Return the address of a page or query of a market."""
    return None if slug is None else f"{page}?{urllib.parse.urlencode({'market': slug})}"


def market_link(slug: str | None, label: object) -> str | None:
    """Return a link to the page of a market, or its label alone if it has no slug."""
    return link(address("/-/dashboards/market", slug), slug if label is None else label)


def exchange_link(event_slug: str | None, slug: str | None, label: object) -> str | None:
    """Return a link to the exchange's page of a market or, without its slug, of an event."""
    if event_slug is None:
        return as_html(label)
    path = "/".join(urllib.parse.quote(part, safe="") for part in (event_slug, slug) if part)
    return link(f"https://polymarket.com/event/{path}", slug if label is None else label)


def number(value: float | None) -> str | None:
    """Return *value* with thousands apart."""
    return f"{value:,}" if isinstance(value, int | float) else as_html(value)


def usd(value: float | None) -> str | None:
    """Return *value* in dollars, short."""
    if not isinstance(value, int | float):
        return as_html(value)
    size, unit = next((each for each in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(value) >= each[0]), (1, ""))
    return f"${value / size:,.{1 if unit else 0}f}{unit}"


def file_size(path: Path) -> str:
    """Return the size of a file for people; one that is not there has none."""
    size = path.stat().st_size if path.exists() else 0
    return f"{size / 1e6:,.1f} MB"


class Hooks:
    """What Datasette asks of its plugins."""

    @staticmethod
    @hookimpl  # type: ignore[untyped-decorator]
    def permission_allowed(action: str) -> bool | None:
        """Return whether the visitor may send SQL."""
        return VISIT.get(NOBODY).sql if action == "execute-sql" else None

    @staticmethod
    @hookimpl  # type: ignore[untyped-decorator]
    def prepare_connection(conn: sqlite3.Connection, database: str, datasette: Datasette) -> None:
        """Add the functions that the pages use."""
        if database != NAME:
            return
        path = datasette.databases[NAME].path
        conn.create_function("html", 1, as_html, deterministic=True)
        conn.create_function("number", 1, number, deterministic=True)
        conn.create_function("usd", 1, usd, deterministic=True)
        conn.create_function("link", 2, link, deterministic=True)
        conn.create_function("address", 2, address, deterministic=True)
        conn.create_function("utc", 1, ac.sql_time_of, deterministic=True)
        conn.create_function("market_link", 2, market_link, deterministic=True)
        conn.create_function("exchange_link", 3, exchange_link, deterministic=True)
        conn.create_function("file_size", 1, lambda ending: file_size(Path(f"{path}{ending}")))

    @staticmethod
    @hookimpl  # type: ignore[untyped-decorator]
    def render_cell(row: sqlite3.Row, value: object, column: str) -> Markup | None:
        """Make links of names and ids, wherever they stand."""
        if not isinstance(value, str | int):  # nothing, or a foreign key, which Datasette links by itself
            return None
        if column == "slug":
            return Markup(market_link(str(value), value))  # noqa: S704  escaped
        if column == "event_slug":
            slug = row["slug"] if "slug" in row.keys() else None  # noqa: SIM118  a row is not a dict
            return Markup(exchange_link(str(value), slug, value))  # noqa: S704
        if column in ROWS_OF:
            return Markup(link(f"/{NAME}/{ROWS_OF[column]}/{tilde_encode(str(value))}", value))  # noqa: S704
        return None


HOME: Final = """
<ul>
  <li><a href="/-/dashboards/market"><strong>Market</strong></a>: price, spread, volume and depth of one market</li>
  <li><a href="/-/dashboards/exchange"><strong>Exchange</strong></a>: volume, movers, spreads, new markets</li>
  <li><a href="/-/dashboards/collection"><strong>Collection</strong></a>: runs, misses, gaps and sizes</li>
  <li><a href="/polymarket#queries"><strong>Queries</strong></a>: ready to run, as table, CSV or JSON</li>
</ul>
"""


def metadata(path: Path, market: str | None) -> dict[str, Any]:
    """Return what Datasette is told about the file at *path*; *market* is shown where none is chosen."""
    tables: dict[str, dict[str, Any]] = {name: {"hidden": True} for name in HIDDEN}
    comments = ac.column_comments()
    comments["latest_snapshots"] = comments["snapshots"]
    for name, (text, label, newest) in SCHEMA.items():
        tables[name] = {"description": text, "columns": comments.get(name, {})}
        tables[name] |= {"label_column": label} if label else {}
        tables[name] |= {"sort_desc": newest} if newest else {}
    queries = {
        name: {"title": title, "description": text, "sql": textwrap.dedent(sql).strip(), "hide_sql": True}
        for name, (title, text, sql) in QUERIES.items()
    }
    filters = MARKET_PAGE["filters"] | {"market": MARKET_PAGE["filters"]["market"] | {"default": market or ""}}
    pages = PAGES | {"market": MARKET_PAGE | {"filters": filters}}
    style = base64.b64encode(STYLE.encode()).decode()
    return {
        "title": f"Polymarket: {path.name}",
        "description_html": HOME,
        "extra_css_urls": [f"data:text/css;base64,{style}"],
        "databases": {NAME: {"tables": tables, "queries": queries}},
        "plugins": {"datasette-dashboards": pages},
    }


def opening_mode(path: Path) -> str:
    """Return how the file at *path* can be opened for reading.

    Raises:
        ac.StorageError: it cannot, or it is no file that this version shows; the message says what to do.
    """
    try:
        with ac.open_read_only(path) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except ac.StorageError as error:
        if not isinstance(error.__cause__, sqlite3.OperationalError):
            raise
        msg = f"{error}; to read it, you must be allowed to write in its folder, or copy it with all beside it"
        raise ac.StorageError(msg) from error
    if lacking := {*SCHEMA, "seen"} - names:
        msg = f"{path}: lacks {', '.join(sorted(lacking))}"
        raise ac.StorageError(msg)
    return f"mode={ac.reading_mode(path)}"


def most_traded(path: Path, mode: str) -> str | None:
    """Return the slug of the market with the greatest volume."""
    query = f"SELECT slug FROM ({CURRENT}) WHERE slug IS NOT NULL ORDER BY volume_24h DESC LIMIT 1"
    with closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True)) as connection:
        found = connection.execute(query).fetchone()
    return str(found[0]) if found else None


class Dashboard(Datasette):  # type: ignore[misc]  # Datasette has no types
    """Datasette, with as many rows in an answer as the visit has."""

    max_returned_rows = property(
        lambda _: VISIT.get(NOBODY).rows, lambda *_: None
    )  # it sets a number, which is not used


def application(path: Path) -> Datasette:
    """Return Datasette for the file at *path*; its configuration is in memory and leaves nothing behind."""
    if not pm.has_plugin("collector-dashboard"):
        pm.register(Hooks, name="collector-dashboard")
    mode = opening_mode(path)
    datasette = Dashboard(settings=SETTINGS, metadata=metadata(path, most_traded(path, mode)))
    datasette.remove_database("_memory")
    datasette.add_database(CollectorFile(datasette, path), name=NAME)
    return datasette


# --- Guard ------------------------------------------------------------------------------------------------------------

OWN_PATHS: Final = re.compile(r"/(polymarket([./].*)?|-/(dashboards|static|static-plugins)(/.*)?|favicon\.ico|\.json)?")
OWN_SQL: Final = {card["query"] for page in PAGES.values() for card in page["charts"].values()}
SQL_PATHS: Final = {"/polymarket", "/polymarket.json", "/polymarket.csv"}
HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:@/]+)(:[0-9]*)?")
NUMBERS: Final = {"days", "hours", "cents", "shares", "volume"}
TIME_LIKE: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d.*")
STORED_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d(\.\d+)?)?")
# nothing from elsewhere, not in the frame of another page, and not read by one; Vega makes functions of its charts
CONTENT: Final = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data:; frame-ancestors 'none'; base-uri 'none'"
HEADERS: Final = [
    ("Content-Security-Policy", CONTENT),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "same-origin"),
]


def plain(host: str) -> str:
    """Return the name or address of a host in one form of many."""
    with suppress(ValueError):
        found = ipaddress.ip_address(host.strip("[]"))
        return str(getattr(found, "ipv4_mapped", None) or found)
    return host.lower()


def unreadable(name: str, value: str) -> str | None:
    """Return what is wrong with a parameter, if it is a number or a time that cannot be read or compared."""
    if name == "moment" and value and ac.sql_time_of(value) is None:
        return f"moment={value}: is no time such as 2026-11-30 14:15:00 or 2026-11-30T15:15:00+01:00 (+ is %2B)"
    if name in NUMBERS and value:
        with suppress(ValueError):
            if 0 <= float(value) < math.inf:
                return None
        return f"{name}={value}: is no number from 0"
    if name != "moment" and TIME_LIKE.fullmatch(value) and not STORED_TIME.fullmatch(value):
        return f"{name}={value}: times are stored in UTC as YYYY-MM-DD HH:MM:SS, and compared as such"
    return None


async def left(receive: Receive) -> None:
    """Return when the visitor has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def nothing() -> Message:
    """Return the body of a request that has none."""
    return {"type": "http.request", "body": b"", "more_body": False}


def taking_turns(send: Send) -> Send:
    """Return a *send* that lets others have their turn after each piece."""

    async def send_piece(message: Message) -> None:
        await send(message)
        await asyncio.sleep(0)

    return send_piece


async def refuse(send: Send, status: int, text: str) -> None:
    """Answer with a line of text."""
    await Response.text(f"{text}\n", status, {"allow": "GET, HEAD", "retry-after": "3"}).asgi_send(send)


class Guard:
    """Lets through who may ask, what may be asked, and a few at a time, the newest first.

    The newest first, because whoever waits behind a hundred slow queries has often gone, and one who comes has not.
    """

    def __init__(self, datasette: Datasette, host: str, *, allow_sql: bool) -> None:
        """Stand before *datasette*, which listens on *host*."""
        self.app = datasette.app()
        self.file: CollectorFile = datasette.databases[NAME]
        self.names = {plain(host), "localhost"}
        self.allow_sql = allow_sql
        self.answered = 0
        self.free = {False: MAX_AT_ONCE, True: MAX_STREAMS}  # turns, by whether they are for streams
        self.waiting: list[asyncio.Future[bool]] = []

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        if refusal := self.refusal(request):
            await refuse(send, *refusal)
            return
        self.answered += 1
        tasks = {asyncio.create_task(self.answer(request, send)), asyncio.create_task(left(receive))}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Return with which status and words a request is refused, or None."""
        hosts = [HOST.fullmatch(value.decode("latin-1")) for key, value in request.scope["headers"] if key == b"host"]
        names = {*self.names, plain(request.scope["server"][0])}
        headers, args = request.headers, request.args
        navigated = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        problems = (unreadable(name, value) for name in args for value in args.getlist(name))
        refusal: tuple[int, str] | None = None
        if not hosts or not all(host and plain(host[1]) in names for host in hosts):
            refusal = 421, "The address names another host than the one that answers; --host NAME makes it NAME."
        elif request.method not in {"GET", "HEAD"}:
            refusal = 405, "There is nothing to write here."
        elif headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not navigated:
            refusal = 403, "Pages of others get nothing from here."
        elif not OWN_PATHS.fullmatch(request.path):
            refusal = 404, "There is no such page."
        elif not (self.allow_sql or OWN_SQL.issuperset(args.getlist("sql"))):
            refusal = 403, "SQL of your own is answered by collector-dashboard --allow-sql only."
        elif problem := next(filter(None, problems), None):
            refusal = 400, problem
        else:
            try:
                self.file.look()
            except ac.StorageError as error:
                refusal = 503, str(error)
        return refusal

    async def answer(self, request: Request, send: Send) -> None:
        """Answer a request when its turn comes."""
        path, args = request.path, request.args
        table, _, form = path.removeprefix("/polymarket/").partition(".")
        stream = form == "csv"
        if stream and "_next" not in args and args.get("_size", "max") == "max":  # else a table sends its first page
            request.scope["query_string"] = b"_stream=1&_size=500&" + request.scope["query_string"]
        queried = path in SQL_PATHS or table in QUERIES
        visit = Visit(
            sql=self.allow_sql or path.startswith("/-/") or (path in SQL_PATHS and "sql" in args),
            rows=200_000 if stream and queried else 5_000 if form else 1_000,
            size=16_000_000 if stream else 4_000_000,
            whole=stream or args.get("_shape") in {"array", "arrayfirst", "object"},
            waiting=self.waiting,
        )
        VISIT.set(visit)
        if path.startswith("/-/static"):
            await self.app(request.scope, nothing, send)
        elif not await self.turn(stream=stream):
            await refuse(send, 503, "Too many ask at once: try again.")
        else:
            visit.began = math.inf if stream else time.monotonic()
            try:
                async with asyncio.timeout(MAX_STREAM_S if stream else MAX_PAGE_S):
                    await self.app(request.scope, nothing, taking_turns(send))
            except TimeoutError:
                pass  # the connection is closed in the middle of the answer, which says so
            finally:
                visit.left = True
                self.end_turn(stream=stream)

    async def turn(self, *, stream: bool) -> bool:
        """Wait for a turn, and return whether there is one; a stream, which may last, is not waited for."""
        if self.free[stream]:
            self.free[stream] -= 1
            return True
        if stream:
            return False
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        if len(self.waiting) > MAX_WAITING:
            self.waiting.pop(0).set_result(False)
        try:
            return await turn
        except asyncio.CancelledError:  # it has left
            if turn in self.waiting:
                self.waiting.remove(turn)
            elif not turn.cancelled() and turn.result():
                self.end_turn(stream=False)
            raise

    def end_turn(self, *, stream: bool) -> None:
        """Give a turn on to who came last."""
        if self.waiting and not stream:
            self.waiting.pop().set_result(True)
        else:
            self.free[stream] += 1


# --- Command ----------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, or raise OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """A server that ends within three seconds of a signal, whatever its threads do."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; SQLite may be inside of something that nothing interrupts."""
        last = threading.Timer(2.5, os._exit, [0])
        last.daemon = True
        last.start()
        super().handle_exit(sig, frame)


def serve(guard: Guard, listener: socket.socket, *, browser: bool) -> None:
    """Answer until SIGINT or SIGTERM, then say what was done and end the process."""
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    with suppress(OSError):  # whoever cannot read it knows it
        print(address, flush=True)
    if browser:
        threading.Thread(
            target=webbrowser.open, args=[address], daemon=True
        ).start()  # it may last as long as the browser
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server ends cleanly, then raises what it caught
    config = uvicorn.Config(
        guard,
        http="h11",
        ws="none",
        log_level="error",
        proxy_headers=False,
        server_header=False,
        headers=HEADERS,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    began = time.monotonic()
    with suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])
    with suppress(OSError):
        minutes = (time.monotonic() - began) / 60
        print(f"Ended after {minutes:,.0f} minutes: {guard.answered:,} requests were answered.", file=sys.stderr)
        sys.stderr.flush()
    os._exit(0)  # the threads are not waited for


EPILOG: Final = """\
examples:
  collector-dashboard --open
  collector-dashboard --db /data/polymarket.db --port 8002

variables: POLYMARKET_DB
exit codes:
  0 ended; 2 bad command line; 74 the file cannot be shown; 78 cannot listen there
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="collector-dashboard",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--db", metavar="PATH", help="database file (POLYMARKET_DB, polymarket_data.db)")
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="listen here; others than loopback can see"
    )
    parser.add_argument("--port", metavar="N", type=int, default=8001, help="listen on this port; 0: any free one")
    parser.add_argument("--allow-sql", action="store_true", help="answer SQL that visitors send, within limits")
    parser.add_argument("--open", action="store_true", help="open the browser")
    parser.add_argument("--version", action="version", version=f"collector-dashboard {ac.__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the file until interrupted, and return the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port < 2**16:
        parser.error(f"--port: {arguments.port} is no port")
    try:
        path = ac.database_path(arguments.db or ac.DEFAULT_DB_PATH, os.environ).absolute()
        datasette = application(path)
    except ac.ConfigError as error:
        parser.error(str(error))
    except (ac.StorageError, sqlite3.Error) as error:
        print(f"collector-dashboard: {error}", file=sys.stderr)
        return ac.StorageError.exit_code
    try:
        listener = listen(arguments.host, arguments.port)
    except OSError as error:
        text = f"cannot listen on {arguments.host} port {arguments.port}: {error}; --port N takes another"
        print(f"collector-dashboard: {text}", file=sys.stderr)
        return ac.ConfigError.exit_code
    if datasette.databases[NAME].mode != "mode=ro":
        print(
            "The folder may not be written: the file is shown as it is now. Start again to see changes.",
            file=sys.stderr,
        )
    with listener:
        guard = Guard(datasette, arguments.host, allow_sql=arguments.allow_sql)
        serve(guard, listener, browser=arguments.open)
    return 0


if __name__ == "__main__":
    sys.exit(main())
