#!/usr/bin/env python3
"""Look at the collector's file in a browser: the command `collector-dashboard`.

Serves the file with Datasette and datasette-dashboards: a page of the collection, of the exchange and of one market,
and ready-made queries; dashboard.toml has them. The file is opened read-only and may be written meanwhile; nothing is
loaded from elsewhere. Other pages that the browser has open get nothing from it; what a request may ask, take and keep
is limited (Limits).
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
import threading
import time
import tomllib
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

# --- Content ----------------------------------------------------------------------------------------------------------


def with_sql(value: Any, sql: dict[str, str]) -> Any:  # noqa: ANN401  whatever TOML has
    """Return *value* with the names of *sql* in braces replaced by what they stand for, in strings at any depth."""
    if isinstance(value, str):
        return re.sub(r"\{([A-Z_]+)\}", lambda found: with_sql(sql[found[1]], sql).strip(), value)
    if isinstance(value, dict):
        return {key: with_sql(each, sql) for key, each in value.items()}
    return [with_sql(each, sql) for each in value] if isinstance(value, list) else value


try:
    _WRITTEN: Final = tomllib.loads(Path(ac.__file__).with_name("dashboard.toml").read_text(encoding="utf-8"))
except OSError as error:
    print(f"collector-dashboard: {error}; it belongs beside {ac.__file__}", file=sys.stderr)
    sys.exit(ac.ConfigError.exit_code)
CONTENT: Final[dict[str, Any]] = with_sql(_WRITTEN, _WRITTEN["sql"])
QUERIES: Final[dict[str, dict[str, str]]] = CONTENT["queries"]

ROWS_OF: Final = {"market_id": "markets", "run_id": "runs", "book_id": "books", "snapshot_id": "snapshots"}
HIDDEN: Final = ("archived_days", "lake", "listed_ids", "past_done", "seen", "sqlite_stat1", "sqlite_stat4", "walk")
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
    "past_prices": ("Prices of YES from the exchange's own history, by collector-history.", None, "price_id"),
    "trades": ("Trades, from the side of their takers, by collector-history.", None, "trade_id"),
    "price_path": ("All prices of a market, the exchange's where there is none of ours: ask for one.", None, None),
    "tweets": ("Posts on X.", "text", "timestamp"),
    "hype_signals": ("Attention for a market on X.", None, "id"),
}

# --- Pages ------------------------------------------------------------------------------------------------------------

COLORS: Final = {"blue": "#4a90d9", "orange": "#e08a3c", "green": "#3fa66b", "red": "#d9534f", "grey": "#8a929c"}
DATE: Final = "datum.index == 0 || utcFormat(datum.value, '%H:%M') == '00:00' ? utcFormat(datum.value, '%d %b') : ''"
TIME: Final = {
    "field": "x",
    "type": "temporal",
    "title": "UTC",
    "scale": {"type": "utc"},
    "axis": {"tickCount": {"expr": "width / 90"}, "labelExpr": f"[utcFormat(datum.value, '%H:%M'), {DATE}]"},
}


def kinds(colors: dict[str, str]) -> dict[str, Any]:
    """Return the colour of each kind, with a legend."""
    scale = {"domain": list(colors), "range": [COLORS[color] for color in colors.values()]}
    return {"field": "kind", "type": "nominal", "scale": scale, "legend": {"orient": "top", "title": None}}


def drawn(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a layer of a chart as Vega-Lite has it.

    It has a `mark`, the column `y`, its `title`, a `color` or the `colors` of each kind, and the columns `tips` that
    pointing shows; or `bars`, a column of names, each with a bar as long as x; or `depth`, a side of a book. In `only`
    is a condition on the rows; the rest are further channels.
    """
    more = dict(layer)
    only, title, tips = more.pop("only", "true"), more.pop("title", ""), more.pop("tips", "")
    number: dict[str, Any] = {"type": "quantitative", "title": title, "scale": {"zero": False}}
    number |= {"axis": {"format": more.pop("format")}} if "format" in more else {}
    color: dict[str, Any] = {"value": COLORS[more.pop("color", "blue")]}
    if side := more.pop("depth", None):
        mark: dict[str, Any] = {
            "type": "area",
            "interpolate": more.pop("step"),
            "opacity": 0.7,
            "line": True,
            "point": {"size": 24},
        }
        x, only = number | {"field": "x"}, f"datum.kind == '{side}'"
        y: dict[str, Any] = {
            "field": "shares",
            "type": "quantitative",
            "title": "shares",
            "axis": {"format": "~s"},
            "stack": None,
        }
        color = kinds({"bids": "green", "asks": "red"})
    elif names := more.pop("bars", None):
        mark = {"type": "bar"}
        x = {"field": "x", "type": "quantitative", "title": title, "axis": {"format": "~s"}}
        y = {"field": names, "type": "nominal", "sort": None, "title": None}
        y |= {"axis": {"labelLimit": {"expr": "width * 0.4"}}}
        if down := more.pop("down", None):
            color = {"condition": {"test": "datum.x < 0", "value": COLORS[down]}, "value": COLORS["green"]}
    else:
        mark = {"type": more.pop("mark"), "clip": True}
        mark |= {"point": {"size": 24}} if mark["type"] == "line" else {}  # a line of one point has no ink
        x, y = TIME, number | {"field": more.pop("y")}
        color = kinds(more.pop("colors")) if "colors" in more else color
    shown = [{"field": column, "type": "nominal"} for column in tips.split()]
    encoding = {"x": x, "y": y, "color": color, "tooltip": shown} | more
    return {"transform": [{"filter": f"isValid(datum.x) && ({only})"}], "mark": mark, "encoding": encoding}


def edges(least: str) -> dict[str, Any]:
    """Return an unseen layer that gives the axes half an hour around the rows, and on y what *least* says.

    Without it a constant, or the only row of a file, would stand on an axis without a length.
    """
    ends = [
        ("min", "time", "first"),
        ("max", "time", "last"),
        ("min", "price_yes", "low"),
        ("max", "price_yes", "high"),
    ]
    return {
        "transform": [
            {"filter": "isValid(datum.x)"},
            {"calculate": "toDate(datum.x)", "as": "time"},
            {"aggregate": [{"op": op, "field": field, "as": name} for op, field, name in ends]},
            {"filter": "isValid(datum.first)"},
            {"calculate": "[datum.first - 18e5, datum.last + 18e5]", "as": "x"},
            {"calculate": least, "as": "y"},
            {"flatten": ["x", "y"]},
        ],
        "mark": {"type": "square", "opacity": 0, "tooltip": None},
        "encoding": {"x": TIME, "y": {"field": "y", "type": "quantitative", "scale": {"zero": False}}},
    }


def chart(card: dict[str, Any]) -> dict[str, Any]:
    """Return a chart of the rows of its query, which says `empty` where there are none.

    Each row has an `x`. Where there is no row, one of NULLs carries the message.
    """
    words = {"type": "text", "text": card["empty"].split("|"), "x": {"expr": "width / 2"}, "y": {"expr": "height / 3"}}
    nothing = {"transform": [{"filter": "!isValid(datum.x)"}], "mark": words}
    unseen = [edges(card["y"])] if "y" in card else []
    axis = {"gridColor": "#88888844", "domainColor": COLORS["grey"], "tickColor": COLORS["grey"]}
    return {
        "library": "vega-lite",
        "query": f"SELECT shown.* FROM (SELECT 1) LEFT JOIN ({card['query']}) AS shown",
        "display": {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",  # a name, never fetched
            "height": card.get("height", 220),
            "layer": [*map(drawn, card["layers"]), *unseen, nothing],
            "config": {"background": "#00000000", "view": {"stroke": None}, "axis": axis},
            "usermeta": {"embedOptions": {"actions": False, "renderer": "svg"}},
        },
    }


def table(columns: dict[str, str], rows: str, empty: str) -> dict[str, Any]:
    """Return a table of *columns*, name and expression, of query *rows*: one row saying *empty* where there is none.

    The rows are found and sorted first, since the expressions may cost more.
    """
    shown = ", ".join(f"coalesce({expression}, 'none') AS \"{name}\"" for name, expression in columns.items())
    nothing = ", ".join([f"'{empty}'", *["''"] * (len(columns) - 1)])
    query = f"""
        WITH found AS MATERIALIZED ({rows}), shown AS (SELECT {shown} FROM found)
        SELECT * FROM shown UNION ALL SELECT {nothing} WHERE NOT EXISTS (SELECT 1 FROM shown)
    """
    return {"library": "table", "query": query}


def facts(card: dict[str, Any]) -> dict[str, Any]:
    """Return a table with a line for each of its `lines`, name and expression, of the one row of its query `facts`."""
    lines = " UNION ALL ".join(f"SELECT '{name}', {expression} FROM fact" for name, expression in card["lines"].items())
    query = f"WITH fact AS ({card['facts']}), line(name, value) AS ({lines}) SELECT * FROM line"
    return table({"": "name", " ": "value"}, query, card["empty"])


def page(title: str, description: str, filters: dict[str, Any], charts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a dashboard of *charts*, two in a row, those whose name begins with "wide_" alone in theirs."""
    rows: list[list[str]] = []
    cards = {}
    for name, card in charts.items():
        if "layers" in card:
            drawing = chart(card)
        else:
            drawing = facts(card) if "facts" in card else table(card["columns"], card["rows"], card["empty"])
        cards[name] = {"title": card["title"], "db": NAME} | drawing
        if name.startswith("wide_"):
            rows.append([name, name])
        elif rows and rows[-1][1] == "":
            rows[-1][1] = name
        else:
            rows.append([name, ""])
    links = {each["title"]: f"/-/dashboards/{name}" for name, each in CONTENT["pages"].items()}
    links |= {"Queries": "/polymarket#queries", "Tables": "/polymarket"}
    head = " · ".join(f'<a href="{address}">{name}</a>' for name, address in links.items())
    return {
        "title": title,
        "description": Markup(f"{head}</p><p>{html.escape(description)}"),  # noqa: S704  escaped
        "filters": {name: {"db": NAME} | each for name, each in filters.items()},
        "charts": cards,
        "layout": [[left, right or left] for left, right in rows],
    }


PAGES: Final = {name: page(**each) for name, each in CONTENT["pages"].items()}

# --- Limits -----------------------------------------------------------------------------------------------------------

MAX_AT_ONCE: Final = 2  # pages that are being made; the others wait, and the oldest of too many is sent away
MAX_WAITING: Final = 40
MAX_STREAMS: Final = 2  # CSV files on their way
MAX_CONNECTIONS: Final = 250
MAX_PAGE_S: Final = 30.0  # from its turn until the last byte is sent
MAX_STREAM_S: Final = 600.0
BUSY_S: Final = 3.0  # for the queries of a page while others wait
ALONE_S: Final = 10.0
MAX_COUNT_MS: Final = 300  # how many rows a filter finds is nice to know
MAX_PATTERN: Final = 100  # bytes, of LIKE and GLOB
MAX_HEAP: Final = 24_000_000  # bytes, of SQLite, in all threads
# with these the longest step, a LIKE of the longest pattern over the longest value, takes a fifth of a second
SQLITE_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: 500_000,  # bytes of a value and of a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 50_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 30,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: MAX_PATTERN,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 6_000,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
STEPS: Final = 100  # of SQLite's machine between two looks at the clock
STRANGE_STEPS: Final = 10  # in SQL of the visitor, who may have chosen long ones; a scan takes twice as long with it
PRAGMAS: Final = {"table_info", "table_xinfo", "foreign_key_list", "index_list", "database_list", "schema_version"}
# Not among them: what reads files or memory, and instr, replace and trim, which take hours for two long texts.
FUNCTIONS: Final = (
    " -> ->> abs acos address asin atan atan2 avg ceil ceiling char coalesce cos count cume_dist current_date "
    " current_time current_timestamp date datetime degrees dense_rank escape_fts exchange_link exp figure file_size "
    " first_value floor format glob group_concat hex html ifnull iif json json_array json_array_length json_each "
    " json_extract json_group_array json_group_object json_object json_quote json_tree json_type json_valid "
    " julianday lag last_value lead length like link ln log log10 log2 lower market_link max min mod nth_value ntile "
    " nullif number percent_rank pi pow power price printf quote radians random rank round row_number sign sin "
    " slug_of sqlite_version sqrt strftime string_agg substr substring sum tan time total trunc typeof unicode "
    " unixepoch upper usd utc words_of "
)


@dataclass
class Visit:
    """What one request may ask and take; its queries look at it in their threads."""

    sql: bool  # it may run the SQL in its address
    rows: int = 5_000  # at most, in an answer
    size: int = 4_000_000  # bytes of values at most, as Python keeps them
    steps: int = STEPS
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
        table = str(name).lower()  # as it was written, if no column of it is read
        allowed = {
            sqlite3.SQLITE_SELECT: True,
            sqlite3.SQLITE_RECURSIVE: True,
            sqlite3.SQLITE_READ: table not in self.modules and not table.startswith("pragma_"),
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
        super().set_progress_handler(both, min(n, visit.steps))


async def patiently(start: Callable[[], Awaitable[T]]) -> T:
    """Return what *start* returns; where another query has taken the memory of all, start again when that has ended."""
    for _ in range(10):
        with suppress(MemoryError):
            return await start()
        if VISIT.get(NOBODY).over():
            break
        await asyncio.sleep(0.1)
    raise sqlite3.OperationalError("out of the memory that queries may take")


class Internals(Database):  # type: ignore[misc]  # Datasette has no types
    """What Datasette keeps for itself, in memory."""

    async def execute_fn(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Call *fn* in a thread with a connection."""
        execute = super().execute_fn
        return await patiently(lambda: execute(fn))


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

        run = asyncio.get_running_loop().run_in_executor
        return await patiently(lambda: run(self.ds.executor, copy_context().run, in_thread))

    async def execute(self, sql: str, *arguments: Any, **options: Any) -> Results:  # noqa: ANN401  Datasette's
        """Return the rows of a query; where they have to be whole, there is an error and not a part of them."""
        if sql.startswith("select count(*) from"):
            options["custom_time_limit"] = min(options.get("custom_time_limit") or MAX_COUNT_MS, MAX_COUNT_MS)
        visit = VISIT.get(NOBODY)
        try:
            results = await super().execute(sql, *arguments, **options | {"log_sql_errors": False})
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


# --- Serving ----------------------------------------------------------------------------------------------------------


def as_html(value: object) -> str | None:
    """Return *value* as text that is safe in a page: the exchange's words may be anything."""
    return None if value is None else html.escape(str(value))


def link(address: str | None, label: object) -> str | None:
    """Return a link, safe in a page, or its label alone if there is no address."""
    if address is None:
        return as_html(label)
    return f'<a href="{html.escape(address)}">{html.escape(str(label))}</a>'


def address(page: str, name: str, value: str | None) -> str | None:
    """Return the address of a page or query with one parameter, or None if that has no value."""
    return None if value is None else f"{page}?{urllib.parse.urlencode({name: value})}"


def market_link(slug: str | None, label: object) -> str | None:
    """Return a link to the page of a market, or its label alone if it has no slug."""
    return link(address("/-/dashboards/market", "market", slug), slug if label is None else label)


def exchange_link(event_slug: str | None, slug: str | None, label: object) -> str | None:
    """Return a link to the exchange's page of a market or, without its slug, of an event."""
    if event_slug is None:
        return as_html(label)
    path = "/".join(urllib.parse.quote(part, safe="") for part in (event_slug, slug) if part)
    return link(f"https://polymarket.com/event/{path}", slug if label is None else label)


def slug_of(market: str) -> str:
    """Return the slug of a market as it is chosen: its question with the slug in brackets, or the slug alone."""
    found = re.fullmatch(r".*\((\S+)\)", str(market).strip(), re.DOTALL)
    return found[1] if found else str(market).strip()


def words_of(market: str) -> str:
    """Return the pattern of a question with these words, in their order."""
    words = re.findall(r"\w+", str(market))
    return f"%{'%'.join(words)}%".encode()[:MAX_PATTERN].decode(errors="ignore") if words else ""


def figure(text: object) -> str:
    """Return a number as it stands in a column of such."""
    return f'<span class="figure">{"none" if text is None else html.escape(str(text))}</span>'


def price(value: float | None) -> str | None:
    """Return a price with three decimals, or with more if it has them."""
    if not isinstance(value, int | float):
        return as_html(value)
    return max(f"{value:.3f}", f"{round(value, 6):.6g}", key=len)


def number(value: float | None) -> str | None:
    """Return *value* with thousands apart, and two decimals at most."""
    return f"{round(value, 2):,}" if isinstance(value, int | float) else as_html(value)


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
        functions = (address, exchange_link, figure, link, market_link, number, price, slug_of, usd, words_of)
        for name, function in {each.__name__: each for each in functions}.items() | {("html", as_html)}:
            conn.create_function(name, function.__code__.co_argcount, function, deterministic=True)
        conn.create_function("utc", 1, ac.sql_time_of, deterministic=True)
        conn.create_function("file_size", 1, lambda ending: file_size(Path(f"{path}{ending}")))

    @staticmethod
    @hookimpl  # type: ignore[untyped-decorator]
    def render_cell(row: sqlite3.Row, value: object, column: str) -> Markup | None:
        """Make links of names and ids, wherever they stand."""
        text = None  # a foreign key, which Datasette links by itself
        if value is None:
            text = '<span class="none">none</span>'
        elif isinstance(value, float):
            text = figure(f"{round(value, 6):.12g}")
        elif column == "slug":
            text = market_link(str(value), value)
        elif column == "event_slug":
            slug = row["slug"] if "slug" in row.keys() else None  # noqa: SIM118  a row is not a dict
            text = exchange_link(str(value), slug, value)
        elif column in ROWS_OF and isinstance(value, str | int):
            text = link(f"/{NAME}/{ROWS_OF[column]}/{tilde_encode(str(value))}", value)
        return None if text is None else Markup(text)  # noqa: S704  escaped


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
    queries = {name: query | {"hide_sql": True} for name, query in QUERIES.items()}
    filters = PAGES["market"]["filters"]
    filters = filters | {"market": filters["market"] | {"default": market or ""}}
    pages = PAGES | {"market": PAGES["market"] | {"filters": filters}}
    style = base64.b64encode(CONTENT["style"].encode()).decode()
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
    """Return the slug of the market with the greatest volume, one with both sides if there is any."""
    query = f"SELECT slug FROM ({CONTENT['sql']['CURRENT']}) WHERE slug IS NOT NULL"
    with closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True)) as connection:
        found = connection.execute(f"{query} ORDER BY spread IS NULL, volume_24h DESC LIMIT 1").fetchone()
    return str(found[0]) if found else None


class Dashboard(Datasette):  # type: ignore[misc]  # Datasette has no types
    """Datasette, with as many rows in an answer as the visit has; the number that it sets itself is not used."""

    max_returned_rows = property(lambda _: VISIT.get(NOBODY).rows, lambda *_: None)


def application(path: Path) -> Datasette:
    """Return Datasette for the file at *path*; its configuration is in memory and leaves nothing behind."""
    if not pm.has_plugin("collector-dashboard"):
        pm.register(Hooks, name="collector-dashboard")
    mode = opening_mode(path)
    datasette = Dashboard(settings=SETTINGS, metadata=metadata(path, most_traded(path, mode)))
    datasette.remove_database("_memory")
    datasette.remove_database("_internal")
    datasette.add_database(Internals(datasette, memory_name="internal"), name="_internal")
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
SOURCES: Final = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data:; frame-ancestors 'none'; base-uri 'none'"
HEADERS: Final = [
    ("Content-Security-Policy", SOURCES),
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
        strange = "_where" in args or not OWN_SQL.issuperset(args.getlist("sql"))
        visit = Visit(
            sql=self.allow_sql or path.startswith("/-/") or (path in SQL_PATHS and "sql" in args),
            rows=200_000 if stream and queried else 5_000 if form else 1_000,
            size=16_000_000 if stream else 4_000_000,
            steps=STRANGE_STEPS if strange else STEPS,
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
            return await asyncio.shield(turn)
        except asyncio.CancelledError:  # it has left
            if turn in self.waiting:
                self.waiting.remove(turn)
            elif turn.result():
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
        description="Look at a collector's file in a browser; it is only read, and nothing is loaded from elsewhere.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--db", metavar="PATH", default=ac.DEFAULT_DB_PATH, help="database file (POLYMARKET_DB, else %(default)s)"
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="where to listen (%(default)s); with any but loopback others can read the file",
    )
    parser.add_argument(
        "--port", metavar="N", type=int, default=8001, help="listen on this port; 0: any free one (%(default)s)"
    )
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
        path = ac.database_path(arguments.db, os.environ).absolute()
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
