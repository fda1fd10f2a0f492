"""Collect Polymarket prices, order books and attention into SQLite, fast and without inventing anything.

Markets come from Gamma (``https://gamma-api.polymarket.com``), order books from the CLOB
(``https://clob.polymarket.com``), posts about them from X (``https://api.x.com``) if there is a token. One run stores
one row per market in ``snapshots``; what the markets are is in ``markets``, how a run went in ``runs``, everything that
could not be stored in ``failures``, posts in ``tweets`` and what they come to in ``hype_signals``. Other programs may
read the file at any time.

    import asyncio
    from async_collector import AsyncCollector

    result = asyncio.run(AsyncCollector("polymarket_data.db").collect_all())
    print(result["snapshots"], "snapshots in", result["duration"], "seconds")

The module reads from top to bottom: each section uses only names of the sections above it.
"""

from __future__ import annotations

import asyncio
import html
import ipaddress
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import re
import sqlite3
import sys
import time
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache, wraps
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, NamedTuple, ParamSpec, Self, TypedDict, TypeVar
from urllib.request import getproxies, proxy_bypass

import aiohttp
import aiosqlite
import filelock
import msgspec
from multidict import CIMultiDict
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

__all__ = [
    "AccessDeniedError",
    "AnswerTooLongError",
    "ApiError",
    "AsyncCollector",
    "BenchmarkResult",
    "Clock",
    "CollectionResult",
    "CollectorError",
    "ConfigError",
    "DatabaseBusy",
    "MalformedResponseError",
    "MarketIndex",
    "Measurement",
    "NetworkError",
    "Progress",
    "Question",
    "RateLimitedError",
    "RateLimiter",
    "RequestRejectedError",
    "ServerError",
    "Status",
    "StorageError",
    "Tick",
    "benchmark",
    "continuous_collection",
    "hype_score",
    "read_status",
    "tone",
    "velocity",
]

__version__ = "0.1.0"

log = logging.getLogger("async_collector")
log.addHandler(logging.NullHandler())  # a library says nothing until its program asks for it

P = ParamSpec("P")
T = TypeVar("T")
Body = bytes | bytearray  # of an answer


# --- Errors -----------------------------------------------------------------------------------------------------------


class CollectorError(Exception):
    """Anything that this module raises on purpose."""


class ConfigError(CollectorError, ValueError):
    """A setting has a value that cannot work; the text names the setting, the value and the allowed form."""


class StorageError(CollectorError):
    """The database cannot be opened, read or written; the text names the file."""


class DatabaseBusy(StorageError):  # noqa: N818  a state of the file, not a defect
    """Another collector holds the database, which the text names, or another program does not stop writing to it."""


LONGEST_TEXT: Final = 500  # of what others send, in an error


def printable(text: str) -> str:
    """Return *text* for a terminal or a log: on one line, without control characters, and not endless."""
    shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text)} characters)"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)


class ApiError(CollectorError):
    """A request to the exchange or to X failed. Its text can be shown: what others have sent is escaped and cut off.

    Attributes:
        url: what was asked, without the query.
        status: the HTTP status, or None where there was no answer.
        retry_after: seconds that the server asked to wait, or None.
        retryable: whether asking again may help.
    """

    retryable: bool = False

    def __init__(self, message: str, url: str, status: int | None = None, retry_after: float | None = None) -> None:
        """Say *message* of *url*."""
        super().__init__(message, url, status, retry_after)  # so that it survives a pickle
        self.message = printable(message)
        self.url = url
        self.status = status
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Return where what has gone wrong."""
        return f"{self.url}: {self.message}"

    @property
    def too_large(self) -> bool:
        """Whether less at a time may go well."""
        return self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or "Payload exceeds the limit" in self.message


class NetworkError(ApiError):
    """No complete answer: not resolved, not connected, cut short, or too slow.

    Attributes:
        sent: whether the request may have reached the host.
    """

    retryable = True
    sent: bool = True


class RateLimitedError(ApiError):
    """429, or known to come: fewer requests are asked for."""

    retryable = True


class ServerError(ApiError):
    """5xx, 408, 425, or a 200 that says so: there is no answer just now."""

    retryable = True


class RequestRejectedError(ApiError):
    """Another 3xx or 4xx: asking again will not help."""


class AccessDeniedError(RequestRejectedError):
    """401, 403, 451 or a bot check: the host does not want us, and is left alone."""


class MalformedResponseError(ApiError):
    """2xx, but not the documented shape; the text has the path of the first difference."""


class AnswerTooLongError(MalformedResponseError):
    """2xx, but larger than any true answer; it has not been read to its end, or not been looked at."""

    too_large = True


# --- Configuration ----------------------------------------------------------------------------------------------------


class _Default(str):
    """A default that the environment may replace, told apart from an explicit argument that is equal to it."""

    __slots__ = ()


DEFAULT_DB_PATH: Final = _Default("polymarket_data.db")
RUN_TIMEOUT_S: Final = 600.0
FEWEST_POSTS: Final = 10  # X sends no smaller page
MOST_POSTS: Final = 10_000


def database_path(db_path: str | os.PathLike[str], environment: Mapping[str, str]) -> Path:
    """Return where the database is: the explicit path, else that of POLYMARKET_DB, else the default."""
    return Path(environment.get("POLYMARKET_DB") or db_path if isinstance(db_path, _Default) else db_path)


def whole_number(name: str, value: object, *, at_least: int = 1, at_most: int = 1_000) -> int:
    """Return *value* as an int from *at_least* to *at_most*, or raise a `ConfigError` that names it."""
    try:
        number = int(str(value))
    except ValueError:
        number = at_least - 1
    if not at_least <= number <= at_most or isinstance(value, bool):
        msg = f"{name}={value!r}: must be a whole number from {at_least} to {at_most}"
        raise ConfigError(msg)
    return number


def finite_number(name: str, value: object, *, above: float | None = None, at_most: float = 1e18) -> float:
    """Return *value* as a float above *above* (or at least 0) and at most *at_most*, or raise a `ConfigError`."""
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not (number > above if above is not None else number >= 0) or number > at_most:
        least = f"above {above:g}" if above is not None else "of at least 0"
        msg = f"{name}={value!r}: must be a number {least} and at most {at_most:,g}"
        raise ConfigError(msg)
    return number


def minutes(name: str, value: object) -> float:
    """Return *value* as an interval in minutes, of a year at most, or raise a `ConfigError`."""
    return finite_number(name, value, above=0, at_most=366 * 24 * 60)


def _http_url(value: str) -> URL | None:
    """Return *value* as an http or https address with a host that can exist, or None."""
    try:
        url = URL(value)
        (url.host or "").encode("idna")
    except ValueError:
        return None
    possible = url.scheme in {"http", "https"} and url.host and not any(map(str.isspace, url.host))
    return url if possible else None


def _without_password(address: str) -> str:
    return re.sub(r"[^/]*@", "***@", address)


def base_url(name: str, value: str) -> str:
    """Return *value*, an http or https address, without a slash at its end, or raise a `ConfigError`."""
    url = _http_url(value)
    if not url or url.user or url.password or url.query_string or url.fragment:
        msg = f"{name}={_without_password(value)!r}: must be an address such as https://example.com"
        raise ConfigError(msg)
    return str(url).rstrip("/")


def proxy_for(url: str) -> URL | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name for *url*, as curl reads them.

    Raises:
        ConfigError: it is no http or https address.
    """
    address = URL(url)
    if proxy_bypass(f"{address.host}:{address.port}"):
        return None
    proxies = getproxies()
    value = proxies.get(address.scheme) or proxies.get("all")
    if not value:
        return None
    proxy = _http_url(value if "://" in value else f"http://{value}")
    if proxy is None:
        msg = f"the proxy {_without_password(value)!r} for {url}: must be an http or https address"
        raise ConfigError(msg)
    return proxy


class Secret(str):
    """A text whose repr, and so every traceback and log of the objects that hold it, shows stars."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the text."""
        return "'***'"


def bearer_token(name: str, value: str | None) -> Secret | None:
    """Return *value* without blanks around it, or None where it is unset.

    Raises:
        ConfigError: it is no token; the text does not show it.
    """
    token = (value or "").strip()
    if value and not re.fullmatch("[!-~]+", token):
        msg = f"{name}: must be a token of visible ASCII characters without blanks (it is not shown here)"
        raise ConfigError(msg)
    return Secret(token) if token else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One host: where it is, and how it may be asked."""

    url: str
    proxy: URL | None
    rate_limit: int  # requests per second
    token: Secret | None = None  # whoever wants one charges for its answers

    @classmethod
    def resolve(cls, name: str, url: str, rate_limit: str | int, token: Secret | None = None) -> Self:
        """Check the values of the variables NAME_API and NAME_RATE_LIMIT.

        Raises:
            ConfigError: a value cannot work.
        """
        url = base_url(f"{name}_API", url)
        return cls(
            url=url,
            proxy=None if token and url.startswith("http:") else proxy_for(url),  # a token is no proxy's business
            rate_limit=whole_number(f"{name}_RATE_LIMIT", rate_limit),
            token=token,
        )


def _is_loopback(url: str) -> bool:
    host = URL(url).host or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every knob of a collector: the explicit argument, else the environment, else the default."""

    db_path: Path
    workers: int  # requests in flight, over all hosts
    max_retries: int  # repeated attempts after the first
    timeout_s: float  # for one attempt, from its start to the last byte of the answer
    run_timeout_s: float  # after it a run asks nothing more
    min_volume_usd: float  # of the last 24 hours; 0 takes every open market
    max_posts: int  # read on X per run, for each costs money
    with_usernames: bool  # of authors on X, for each costs twice as much as a post
    gamma: Endpoint
    clob: Endpoint
    twitter: Endpoint

    @classmethod
    def resolve(  # noqa: PLR0913  one argument per knob
        cls,
        *,
        db_path: str | os.PathLike[str],
        workers: int,
        max_retries: int,
        timeout: float,
        run_timeout: float,
        min_volume: float,
        max_posts: int | None,
        environment: Mapping[str, str],
    ) -> Self:
        """Check every value before any of them is used.

        Raises:
            ConfigError: a value cannot work.
        """
        twitter_api = base_url("TWITTER_API", environment.get("TWITTER_API") or "https://api.x.com")
        if twitter_api.startswith("http:") and not _is_loopback(twitter_api):
            msg = f"TWITTER_API={twitter_api!r}: must be an https address, for the token travels in the open otherwise"
            raise ConfigError(msg)
        posts: tuple[str, object] = ("twitter_max_posts", max_posts)
        if max_posts is None:
            posts = "TWITTER_MAX_POSTS", environment.get("TWITTER_MAX_POSTS") or 100
        return cls(
            db_path=database_path(db_path, environment),
            workers=whole_number("workers", workers),
            max_retries=whole_number("max_retries", max_retries, at_least=0),
            timeout_s=finite_number("timeout", timeout, above=0),
            run_timeout_s=finite_number("run_timeout", run_timeout, above=0),
            min_volume_usd=finite_number("min_volume", min_volume),
            max_posts=whole_number(*posts, at_least=FEWEST_POSTS, at_most=MOST_POSTS),
            with_usernames=whole_number(
                "TWITTER_USERNAMES", environment.get("TWITTER_USERNAMES") or 0, at_least=0, at_most=1
            )
            == 1,
            gamma=Endpoint.resolve(
                "GAMMA",
                environment.get("GAMMA_API") or "https://gamma-api.polymarket.com",
                environment.get("GAMMA_RATE_LIMIT") or 10,
            ),
            clob=Endpoint.resolve(
                "CLOB",
                environment.get("CLOB_API") or "https://clob.polymarket.com",
                environment.get("CLOB_RATE_LIMIT") or 20,
            ),
            twitter=Endpoint.resolve(
                "TWITTER",
                twitter_api,
                environment.get("TWITTER_RATE_LIMIT") or 5,
                bearer_token("TWITTER_BEARER_TOKEN", environment.get("TWITTER_BEARER_TOKEN")),
            ),
        )


# --- Wire types -------------------------------------------------------------------------------------------------------
# Unknown keys are skipped, absent keys are None, and a wrong type is an error that names its path. Numbers may come
# as JSON numbers or as decimal strings (strict=False); NaN and Infinity fail the bounds.

Text = Annotated[str, msgspec.Meta(max_length=100_000)]
ConditionId = Annotated[str, msgspec.Meta(max_length=100)]
MarketId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,18}\Z")]  # grows with time
Price = Annotated[float, msgspec.Meta(ge=0, le=1)]  # USD per share, which pays 0 or 1
LONGEST_TOKEN_ID: Final = 100  # a uint256 has 78 digits
Size = Annotated[float, msgspec.Meta(ge=0, le=1e18)]  # shares
Amount = Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)]  # USD
PostId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,19}\Z")]  # and of a user, on X
Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
EpochMs = Annotated[int, msgspec.Meta(ge=10**12, le=253_402_300_799_999)]  # from 2001 to the end of the year 9999


class JsonStrings(tuple[str, ...]):
    """Strings that Gamma sends as a JSON list inside a string."""

    __slots__ = ()


class JsonPrices(tuple[float, ...]):
    """Prices that Gamma sends as a JSON list of decimal strings inside a string."""

    __slots__ = ()


class GammaEvent(msgspec.Struct, gc=False):
    """The event that a market belongs to."""

    slug: Text | None = None


class GammaTag(msgspec.Struct, gc=False):
    """A topic of a market."""

    label: Text


class GammaMarket(msgspec.Struct, rename="camel", gc=False):
    """One market as Gamma lists it.

    Source: https://docs.polymarket.com/api-reference/markets/list-markets-keyset-pagination
    """

    market_id: MarketId = msgspec.field(name="id")
    active: bool
    closed: bool
    condition_id: ConditionId | None = None
    slug: Text | None = None
    question: Text | None = None
    description: Text | None = None
    category: Text | None = None  # filled on rows of 2020 to 2022 only
    outcomes: JsonStrings | None = None
    outcome_prices: JsonPrices | None = None
    clob_token_ids: JsonStrings | None = None
    start_date: str | None = None
    end_date: str | None = None
    closed_time: str | None = None
    accepting_orders: bool = True
    enable_order_book: bool = True
    volume_24h: Amount | None = msgspec.field(name="volume24hr", default=None)
    liquidity_num: Amount | None = None
    liquidity: Amount | None = None
    last_trade_price: Price | None = None
    events: list[GammaEvent] | None = None
    tags: list[GammaTag] | None = None

    @property
    def is_open(self) -> bool:
        """Whether this is a market to collect, and not a settled one or a placeholder that never opened."""
        return self.active and not self.closed and self.clob_token_ids is not None

    @property
    def has_book(self) -> bool:
        """Whether the CLOB should have books for it: orders stop some time before a market closes."""
        return self.accepting_orders and self.enable_order_book

    @property
    def tokens(self) -> tuple[str, str]:
        """The token ids of the first outcome (YES) and the second (NO)."""
        yes, no = self.clob_token_ids or ("", "")
        return yes, no

    def __post_init__(self) -> None:
        """Refuse an open market that is not made of two outcomes, each with its token."""
        if not self.is_open:
            return
        for name, values in (
            ("outcomes", self.outcomes),
            ("clobTokenIds", self.clob_token_ids),
            ("outcomePrices", self.outcome_prices),
        ):
            if values is not None and len(values) != 2:  # noqa: PLR2004  an outcome and its opposite
                msg = f"Expected 2 {name}, got {len(values)}"
                raise ValueError(msg)
        if not all(0 < len(token) <= LONGEST_TOKEN_ID for token in self.tokens) or len(set(self.tokens)) == 1:
            msg = f"Expected 2 different clobTokenIds, got {self.tokens!r}"
            raise ValueError(msg)


class ClobToken(msgspec.Struct, gc=False):
    """One side of a market on the CLOB."""

    token_id: str
    winner: bool


class ClobMarket(msgspec.Struct, gc=False):
    """One market as the CLOB has it. Many closed ones of earlier years have no winner at all."""

    tokens: list[ClobToken]
    closed: bool


class Level(msgspec.Struct, gc=False):
    """The shares on offer at one price."""

    price: Price
    size: Size


class OrderBook(msgspec.Struct, gc=False):
    """The book of one token. The order of its levels means nothing to us.

    Source: https://docs.polymarket.com/market-data/prices-order-books
    """

    token_id: str = msgspec.field(name="asset_id")
    bids: list[Level]
    asks: list[Level]
    timestamp: Any = None  # of the book's last change; not worth a book where it is odd, as is the last trade
    last_trade_price: Any = None  # "" before the first trade

    @property
    def best_bid(self) -> Level | None:
        """The level of the highest bid, or None without bids."""
        best, price = None, -1.0
        for level in reversed(self.bids):  # the best one is usually last, but that is not relied on
            if level.size and level.price > price:
                best, price = level, level.price
        return best

    @property
    def best_ask(self) -> Level | None:
        """The level of the lowest ask, or None without asks."""
        best, price = None, 2.0
        for level in reversed(self.asks):
            if level.size and level.price < price:
                best, price = level, level.price
        return best

    @property
    def traded_price(self) -> float | None:
        """The price of the market's last trade, or None before the first."""
        with suppress(msgspec.ValidationError):
            price: float = msgspec.convert(self.last_trade_price or 0, Price, strict=False)
            return price or None  # nothing trades at 0
        return None

    @property
    def changed_ms(self) -> int | None:
        """When the book last changed, in milliseconds of Unix time, or None where that is not said."""
        with suppress(msgspec.ValidationError):
            moment: int = msgspec.convert(self.timestamp, EpochMs, strict=False)
            return moment
        return None


class XMetrics(msgspec.Struct, gc=False):
    """How much a post has been reacted to when it was read."""

    like_count: Count | None = None
    retweet_count: Count | None = None
    reply_count: Count | None = None

    @property
    def engagement(self) -> int | None:
        """Likes, twice the reposts, and replies, or None where one of them is absent."""
        if self.like_count is None or self.retweet_count is None or self.reply_count is None:
            return None
        return self.like_count + 2 * self.retweet_count + self.reply_count


class XLink(msgspec.Struct, gc=False):
    """A link of a post; its text only has a short form of it."""

    expanded_url: str | None = None


class XEntities(msgspec.Struct, gc=False):
    """What X has found in a post's text."""

    urls: list[XLink] | None = None


class XPost(msgspec.Struct, gc=False):
    """One post as X sends it.

    Source: https://docs.x.com/x-api/posts/search-recent-posts
    """

    post_id: PostId = msgspec.field(name="id")
    text: Text
    author_id: PostId | None = None
    created_at: str | None = None
    lang: str | None = None
    public_metrics: XMetrics | None = None
    entities: XEntities | None = None

    @property
    def links(self) -> list[str]:
        """The addresses that the post leads to."""
        urls = (self.entities and self.entities.urls) or ()
        return [link.expanded_url for link in urls if link.expanded_url]


class XUser(msgspec.Struct, gc=False):
    """An author."""

    user_id: PostId = msgspec.field(name="id")
    username: str | None = None


class XIncludes(msgspec.Struct, gc=False):
    """What was asked for beside the posts."""

    users: list[XUser] | None = None


class XMeta(msgspec.Struct, gc=False):
    """Where a page of posts stands."""

    newest_id: PostId | None = None
    next_token: str | None = None


class XProblem(msgspec.Struct, gc=False):
    """Something that X could not answer; it may come beside what it could."""

    title: str | None = None
    detail: str | None = None
    message: str | None = None


class _Posts(msgspec.Struct):
    """The answer of X's search; without a single post, `data` is absent."""

    meta: XMeta
    data: list[XPost] | None = None
    includes: XIncludes | None = None
    errors: list[XProblem] | None = None


class _RawPosts(msgspec.Struct):
    """The same, to be decoded post by post; what comes beside the posts is not worth them."""

    meta: XMeta
    data: list[msgspec.Raw] | None = None
    includes: Any = None
    errors: Any = None


class _Page(msgspec.Struct):
    """The answer of Gamma's keyset listing; `next_cursor` is there on a full page only."""

    markets: list[GammaMarket]
    next_cursor: str | None = None
    error: None = None  # an answer that has one is none


class _RawPage(msgspec.Struct):
    """The same, to be decoded market by market."""

    markets: list[msgspec.Raw]
    next_cursor: str | None = None
    error: None = None


class _Complaint(msgspec.Struct):
    """What a host may send with status 200 instead of an answer."""

    error: Any


class _Remains(msgspec.Struct):
    """What can be said of a market or a book that is otherwise not understood; nothing in it can be trusted."""

    id: Any = None
    asset_id: Any = None
    active: Any = True
    closed: Any = False
    volume_24h: Any = msgspec.field(name="volume24hr", default=None)


class Rejected(NamedTuple):
    """One element of an answer that was not understood."""

    id: str | None
    reason: str
    is_open: bool = True  # as far as can be told
    volume_24h: float | None = None
    error: ApiError | None = None  # of the request, where it is not the element's own


_STRINGS: Final = msgspec.json.Decoder(tuple[str, ...])
_PRICES: Final = msgspec.json.Decoder(tuple[Price, ...], strict=False)


def _decode_custom(kind: type, value: object) -> object:
    """Decode the types of this module that msgspec does not know (its `dec_hook`)."""
    if not isinstance(value, str):
        msg = f"Expected `str`, got `{type(value).__name__}`"
        raise TypeError(msg)
    try:
        if kind is JsonPrices:
            return JsonPrices(_PRICES.decode(value))
        return JsonStrings(text.replace("\0", "\ufffd") for text in _STRINGS.decode(value))
    except msgspec.DecodeError as error:
        msg = f"{error} of the JSON in the string"
        raise ValueError(msg) from error


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind, strict=False, dec_hook=_decode_custom)


_MARKET: Final = _decoder(GammaMarket)
_PAGE: Final = _decoder(_Page)
_RAW_PAGE: Final = _decoder(_RawPage)
_BOOK: Final = _decoder(OrderBook)
_BOOKS: Final = _decoder(list[OrderBook])
_CLOB_MARKET: Final = _decoder(ClobMarket)
_RAW_BOOKS: Final = _decoder(list[msgspec.Raw])
_POST: Final = _decoder(XPost)
_POSTS: Final = _decoder(_Posts)
_RAW_POSTS: Final = _decoder(_RawPosts)
_REMAINS: Final = _decoder(_Remains)
_COMPLAINT: Final = _decoder(_Complaint)
FEW: Final = 10  # bad elements that say nothing about the shape of all others
VERY_FEW: Final = 3  # and that say nothing if there is no good one


# nearly every open market has them: where most do not, they have another name now
EXPECTED: Final = {
    "question": "question",
    "slug": "slug",
    "conditionId": "condition_id",
    "outcomes": "outcomes",
    "clobTokenIds": "clob_token_ids",
}


def _check_expected(markets: Sequence[GammaMarket]) -> None:
    """Refuse a page most of whose markets lack a field that they should have.

    Raises:
        msgspec.ValidationError: they do: the shape of the answer has changed.
    """
    opened = [market for market in markets if market.active and not market.closed]
    for key, name in EXPECTED.items():
        lacking = sum(getattr(market, name) is None for market in opened)
        if lacking > max(len(opened) - lacking, FEW):
            msg = f"{lacking} of {len(opened)} open markets have no `{key}`"
            raise msgspec.ValidationError(msg)


MOST_ELEMENTS: Final = 1_000  # of an answer; nobody is asked for more than 500


def _digits(value: object, *, at_most: int) -> str | None:
    return value if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= at_most else None


def _rejected(element: msgspec.Raw, reason: str) -> Rejected:
    try:
        remains = _REMAINS.decode(element)
    except msgspec.DecodeError:  # no object at all
        return Rejected(None, printable(reason))
    return Rejected(
        _digits(remains.id, at_most=18) or _digits(remains.asset_id, at_most=78),
        printable(reason),
        is_open=remains.active is not False and remains.closed is not True,
        volume_24h=remains.volume_24h if type(remains.volume_24h) in {int, float} else None,
    )


def _decode_each(elements: Sequence[msgspec.Raw], decoder: msgspec.json.Decoder[T]) -> tuple[list[T], list[Rejected]]:
    """Decode *elements* one by one, so that a bad one costs only itself.

    Raises:
        msgspec.ValidationError: there are far more than anybody has asked for.
    """
    if len(elements) > MOST_ELEMENTS:
        msg = f"{len(elements)} elements, which nobody has asked for"
        raise msgspec.ValidationError(msg)
    good: list[T] = []
    rejected: list[Rejected] = []
    for element in elements:
        try:
            good.append(decoder.decode(element))
        except msgspec.DecodeError as error:
            rejected.append(_rejected(element, str(error)))
    return good, rejected


def _decode_most(elements: Sequence[msgspec.Raw], decoder: msgspec.json.Decoder[T]) -> tuple[list[T], list[Rejected]]:
    """Decode *elements* one by one.

    Raises:
        msgspec.ValidationError: most of them are bad: the shape of the answer has changed.
    """
    good, rejected = _decode_each(elements, decoder)
    if len(rejected) > (max(len(good), FEW) if good else VERY_FEW):
        msg = f"{len(rejected)} of {len(elements)} elements are not understood, the first: {rejected[0].reason}"
        raise msgspec.ValidationError(msg)
    return good, rejected


MAX_PAGE_BYTES: Final = 8 * 2**20  # decoded; a page of markets has 0.6 MB, one of posts 0.2 MB
MOST_PARTS: Final = 400_000  # 500 books have 50,000 levels or so


class _TooManyPartsError(ValueError):
    """An answer that is too large to be mended."""


_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def _without_nul(body: Body) -> Body:
    """Return JSON with U+FFFD for NUL, which ends a text for many a reader of the database."""
    return _NUL.sub(rb"\1\\ufffd", body) if b"\\u0000" in body else body


def _repaired(body: Body) -> bytes:
    """Return JSON with U+FFFD for lone surrogates and broken UTF-8, and no numbers that are none: no field takes them.

    One of them would cost the whole answer; now it costs a letter, or the one element that has it.

    Raises:
        ValueError: it is no JSON.
        _TooManyPartsError: it is larger than any true answer: mending is slow and takes memory.
    """
    parts = body.count(b"{") + body.count(b"[")
    if parts > MOST_PARTS or len(body) > MAX_PAGE_BYTES:
        msg = f"the answer cannot be mended, with {len(body)} bytes and {parts} objects and lists"
        raise _TooManyPartsError(msg)

    def refused(text: str) -> list[str]:
        return [text]  # which is of no type that is asked for

    value = json.loads(
        body.decode("utf-8-sig", "replace"),
        strict=False,
        parse_constant=refused,
        parse_float=lambda text: number if math.isfinite(number := float(text)) else refused(text),
        parse_int=lambda text: int(text) if len(text) <= 20 else refused(text),  # noqa: PLR2004  64 bits
    )
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


# --- Records ----------------------------------------------------------------------------------------------------------
# A record is a row: its fields are the table's columns, by name. Absent values are None, never a plausible number.

MAIN_TOPICS: Final = (
    "Sports", "Esports", "Crypto", "Politics", "Elections", "Geopolitics", "Economy", "Finance", "Business", "Tech",
    "Science", "Culture", "Weather", "World", "Mentions",
)  # fmt: skip  # narrow before broad: a market on a party and the world is about politics
_TOPIC_RANK: Final = {topic.casefold(): rank for rank, topic in enumerate(MAIN_TOPICS)}


def sql_time(moment: datetime) -> str:
    """Return *moment* in the database's form, UTC to the second: ``2026-11-22 14:15:00``."""
    return moment.astimezone(UTC).isoformat(" ", "seconds")[:19]


def sql_time_ms(epoch_ms: int) -> str:
    """Return *epoch_ms* in the database's form with milliseconds: ``2026-11-22 14:15:00.250``."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=epoch_ms)
    return moment.isoformat(" ", "milliseconds")[:23]


def from_iso(text: str | None) -> str | None:
    """Return an ISO 8601 time of the exchange in the database's form, or None where it is none."""
    try:
        moment = datetime.fromisoformat(text or "")
        stored = sql_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None
    return stored if stored >= "1900" else None  # the year 1 stands for no time at all


def main_topic(labels: Sequence[str]) -> str | None:
    """Return the label that says best what a market is about: a main topic, else the first label, else None."""
    return min(labels, key=lambda label: _TOPIC_RANK.get(label.casefold(), len(_TOPIC_RANK)), default=None)


def _clean(price: float) -> float:
    """Drop the noise of binary arithmetic (0.09150000000000003), which is far below the finest tick of 0.0001."""
    return round(price, 9)


class Market(NamedTuple):
    """What a market is: one row of `markets`."""

    market_id: str
    slug: str | None
    question: str | None
    description: str | None
    category: str | None
    token_id_yes: str
    token_id_no: str
    start_time: str | None
    end_time: str | None
    condition_id: str | None
    event_slug: str | None
    outcome_yes: str | None
    outcome_no: str | None
    tags: str | None
    first_seen: str
    last_seen: str

    @classmethod
    def from_wire(cls, market: GammaMarket, *, seen_at: str) -> Self:
        """Build the row of *market*, listed at *seen_at*."""
        labels = [tag.label for tag in market.tags or ()]
        yes, no = market.outcomes or (None, None)
        return cls(
            market_id=market.market_id,
            slug=market.slug or None,
            question=market.question or None,
            description=market.description or None,
            category=(market.category or "").strip() or main_topic(labels),
            token_id_yes=market.tokens[0],
            token_id_no=market.tokens[1],
            start_time=from_iso(market.start_date),
            end_time=from_iso(market.end_date),
            condition_id=market.condition_id or None,
            event_slug=market.events[0].slug if market.events else None,
            outcome_yes=yes,
            outcome_no=no,
            tags=msgspec.json.encode(labels).decode() if labels else None,
            first_seen=seen_at,
            last_seen=seen_at,
        )


def _best(book: OrderBook | None) -> tuple[Level | None, Level | None]:
    return (book.best_bid, book.best_ask) if book else (None, None)


def _midpoint(bid: Level | None, ask: Level | None) -> float:
    return _clean(((bid.price if bid else 0) + (ask.price if ask else 1)) / 2)


class Snapshot(NamedTuple):
    """What a market was worth at one moment: one row of `snapshots`. Prices in USD per share."""

    market_id: str
    timestamp: str
    price_yes: float | None
    price_no: float | None
    volume_24h: float | None
    liquidity: float | None
    best_bid_yes: float | None
    best_ask_yes: float | None
    best_bid_no: float | None
    best_ask_no: float | None
    spread: float | None
    run_id: int
    last_trade_price: float | None
    book_time: str | None
    bid_size_yes: float | None
    ask_size_yes: float | None
    bid_size_no: float | None
    ask_size_no: float | None

    @classmethod
    def from_wire(
        cls, market: GammaMarket, yes: OrderBook | None, no: OrderBook | None, *, run_id: int, received_at: str
    ) -> Self:
        """Build the row of *market* with the books of its two tokens, as far as there are any.

        The price is the midpoint of the YES book, a missing bid counting 0 and a missing ask 1, which is how the
        exchange itself forms `outcomePrices` (on 88 of 88 recorded markets); without that book it is Gamma's own, up to
        five minutes old.
        """
        bid_yes, ask_yes = _best(yes)
        bid_no, ask_no = _best(no)
        price = _midpoint(bid_yes, ask_yes) if yes else market.outcome_prices[0] if market.outcome_prices else None
        book = yes or no
        return cls(
            market_id=market.market_id,
            timestamp=received_at,
            price_yes=price,
            price_no=None if price is None else _clean(1 - price),
            volume_24h=market.volume_24h,
            liquidity=market.liquidity if market.liquidity_num is None else market.liquidity_num,
            best_bid_yes=bid_yes.price if bid_yes else None,
            best_ask_yes=ask_yes.price if ask_yes else None,
            best_bid_no=bid_no.price if bid_no else None,
            best_ask_no=ask_no.price if ask_no else None,
            spread=_clean(ask_yes.price - bid_yes.price) if bid_yes and ask_yes else None,
            run_id=run_id,
            last_trade_price=book.traded_price if book else market.last_trade_price or None,
            book_time=sql_time_ms(changed_ms) if book and (changed_ms := book.changed_ms) is not None else None,
            bid_size_yes=bid_yes.size if bid_yes else None,
            ask_size_yes=ask_yes.size if ask_yes else None,
            bid_size_no=bid_no.size if bid_no else None,
            ask_size_no=ask_no.size if ask_no else None,
        )


class Post(NamedTuple):
    """What somebody has said, when it was read: one row of `tweets`, without what it is about."""

    tweet_id: str
    timestamp: str | None
    text: str
    author_username: str | None
    author_id: str | None
    likes: int | None
    retweets: int | None
    replies: int | None
    engagement_score: int | None  # likes + 2 x reposts + replies
    sentiment_score: float  # from -1 to 1
    created_at: str  # of the row
    run_id: int
    lang: str | None
    links: str | None

    @classmethod
    def from_wire(
        cls, post: XPost, *, sentiment: float, usernames: Mapping[str, str | None], run_id: int, received_at: str
    ) -> Self:
        """Build the row of *post*; *usernames* are by `author_id`, as far as they were asked for."""
        metrics = post.public_metrics or XMetrics()
        return cls(
            tweet_id=post.post_id,
            timestamp=from_iso(post.created_at),
            text=post.text,
            author_username=usernames.get(post.author_id or ""),
            author_id=post.author_id,
            likes=metrics.like_count,
            retweets=metrics.retweet_count,
            replies=metrics.reply_count,
            engagement_score=metrics.engagement,
            sentiment_score=sentiment,
            created_at=received_at,
            run_id=run_id,
            lang=post.lang,
            links=msgspec.json.encode(post.links).decode() if post.links else None,
        )


class Question(NamedTuple):
    """What a market is about, in words and in addresses."""

    market_id: str
    question: str | None
    slug: str | None = None
    event_slug: str | None = None


class UnmatchedPost(NamedTuple):
    """A post that belongs to no market yet."""

    tweet_id: str
    text: str
    links: str | None  # JSON array


class Match(NamedTuple):
    """Which market a post is about, and why."""

    market_id: str
    keywords: str  # the link, or the words, that decided


class Attention(NamedTuple):
    """What was said about a market in an hour."""

    market_id: str
    tweet_count: int
    tweets_before: int  # in the hour before
    total_engagement: int
    avg_sentiment: float | None  # None: nobody has measured it
    unique_users: int


class HypeSignal(NamedTuple):
    """What the attention for a market comes to: one row of `hype_signals`."""

    market_id: str
    timestamp: str
    tweet_count: int
    total_engagement: int
    avg_sentiment: float | None
    unique_users: int
    velocity: float
    hype_score: float
    run_id: int


SPLIT: Final = "split"


def outcome_of(market: GammaMarket) -> str | None:
    """Return the winning outcome's own word, or `SPLIT`, or None where Gamma leaves it open.

    Only a closed market with prices of exactly 1 and 0, or of one half each, is decided. A price near 1, an end date in
    the past and `umaResolutionStatus` decide nothing: 98 of 100 settled markets keep "proposed" for ever.
    """
    outcomes, prices = market.outcomes or (), market.outcome_prices or ()
    if not market.closed or len(outcomes) != 2 or len(prices) != 2:  # noqa: PLR2004  an outcome and its opposite
        return None
    if sorted(prices) == [0, 1]:
        return outcomes[prices.index(1)]
    return SPLIT if set(prices) == {0.5} else None


def settled_by(market: GammaMarket, on_clob: ClobMarket | None) -> str | None:
    """Return how the CLOB says that *market* has ended, in Gamma's words, or None where it does not say.

    Prices of one half each are a `SPLIT` if the CLOB has closed the market and names no winner of its two tokens.
    """
    words = dict(zip(market.clob_token_ids or (), market.outcomes or (), strict=False))
    if on_clob is None or not on_clob.closed or {token.token_id for token in on_clob.tokens} != set(words):
        return None
    winners = [words[token.token_id] for token in on_clob.tokens if token.winner]
    if not winners:
        return outcome_of(market)
    return winners[0] if len(winners) == 1 else None


class Resolution(NamedTuple):
    """How a market has ended."""

    outcome: str
    closed_at: str | None
    market_id: str


class Undecided(NamedTuple):
    """A market that is not open and whose outcome could not be had: it is asked for again later."""

    asked_at: str
    longest_minutes: int  # until it is asked for again
    market_id: str


class Failure(NamedTuple):
    """Something that a run should have stored and did not: one row of `failures`."""

    run_id: int
    market_id: str | None  # None where a whole page or answer failed
    stage: str  # list, book, outcome, save or posts
    reason: str


# --- Pacing, retries --------------------------------------------------------------------------------------------------

MAX_RATE: Final = 1_000_000  # requests per window
FIRST_BACKOFF_S: Final = 1.0
FREE_RETRIES: Final = 100  # of a run: what 10 workers use up in half a minute; and
RETRY_SHARE: Final = 0.25  # of its requests
PATIENCE_S: Final = 5.0  # with a host on which the markets do not depend
MANY_FAILURES: Final = 20  # in a row, and for
MANY_REFUSALS: Final = 100  # of requests that are too large
LONG_OUTAGE_S: Final = 30.0  # end the asking of a host: a shorter outage is what retries are for
LONGEST_QUOTA_S: Final = 15 * 60.0  # a window of X
LONGEST_WAIT_S: Final = 60.0  # what a server may ask of us at most; beyond it the request is given up


class Clock:
    """Time as this module sees it; a test hands in its own."""

    def monotonic(self) -> float:
        """Return seconds that never jump, for rates, waits and durations."""
        return time.monotonic()

    def now(self) -> datetime:
        """Return the wall time in UTC, for what is stored."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds*."""
        await asyncio.sleep(seconds)


class RateLimiter:
    """Let at most *max_requests* requests start in any *time_window* seconds.

    The guarantee holds for every window, wherever it begins, because the start of each request is remembered until
    it has left the window. Waiters start in the order in which they came; a cancelled one holds nobody up. The
    attributes may be changed at any time and count from the next start on; a longer window begins with the starts that
    the shorter one remembers.

    Args:
        max_requests: starts per window.
        time_window: the window's length in seconds.
        backoff_multiplier: how much longer each further pause is.
        clock: for tests.

    Raises:
        ConfigError: *max_requests* is below 1.
    """

    def __init__(
        self,
        max_requests: int = 10,
        time_window: float = 1.0,
        backoff_multiplier: float = 2.0,
        *,
        clock: Clock | None = None,
    ) -> None:
        """Begin with an empty window."""
        self._max_requests = whole_number("max_requests", max_requests, at_most=MAX_RATE)
        self.time_window = time_window
        self.backoff_multiplier = backoff_multiplier
        self._clock = clock or Clock()
        self._starts: deque[float] = deque()
        self._backoff_s = 0.0
        self._backoff_at = float("-inf")
        self._paused_until = float("-inf")
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    @property
    def max_requests(self) -> int:
        """Starts per window."""
        return self._max_requests

    @max_requests.setter
    def max_requests(self, value: int) -> None:
        self._max_requests = whole_number("max_requests", value, at_most=MAX_RATE)

    async def acquire(self) -> None:
        """Wait until a request may start, and count it as started."""
        async with self._queue():
            while (wait_s := self._wait_s()) > 0:
                await self._clock.sleep(wait_s)
            self._starts.append(self._clock.monotonic())

    def apply_backoff(self, retry_after: float | None = None, *, started: float | None = None) -> None:
        """Pause everybody, because a request was refused: 1 s, then `backoff_multiplier` times longer, at most 60 s.

        Refusals that arrive during the pause, or whose requests *started* before it, belong to the same burst and
        make no further step.

        Args:
            retry_after: seconds that the server asked for; they count where they are longer (60 s at most).
            started: when the refused request started, by the limiter's clock.
        """
        now = self._clock.monotonic()
        same_burst = now < self._paused_until or (started is not None and started <= self._backoff_at)
        if not same_burst:
            longer = self._backoff_s * self.backoff_multiplier if self._backoff_s else FIRST_BACKOFF_S
            self._backoff_s = min(longer, LONGEST_WAIT_S)
            self._backoff_at = now
            self._paused_until = now + self._backoff_s
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + min(retry_after, LONGEST_WAIT_S))

    def reset_backoff(self, *, started: float | None = None) -> None:
        """Begin at 1 s again with the next burst, because a request succeeded; a pause in force runs to its end.

        Args:
            started: when that request started; one from before the last step says nothing.
        """
        if started is None or started > self._backoff_at:
            self._backoff_s = 0.0

    def _queue(self) -> asyncio.Lock:
        """Return the lock that lets one waiter at a time look at the window, first come, first served."""
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = (loop, asyncio.Lock())
        return self._turn[1]

    def _wait_s(self) -> float:
        now = self._clock.monotonic()
        while self._starts and self._starts[0] + self.time_window <= now:
            self._starts.popleft()
        if len(self._starts) < self.max_requests:
            return self._paused_until - now
        leaves_at = self._starts[-self.max_requests] + self.time_window
        return max(leaves_at, self._paused_until) - now


class Quota:
    """What a host's own count leaves of our requests, as the headers of X say.

    Source: https://docs.x.com/x-api/fundamentals/rate-limits
    """

    def __init__(self, clock: Clock) -> None:
        """Know of no limit yet."""
        self._clock = clock
        self._closed_until = float("-inf")

    @property
    def closed_s(self) -> float:
        """Seconds until requests are welcome again; 0 or less where they are."""
        return self._closed_until - self._clock.monotonic()

    def learn(self, headers: Mapping[str, str], status: int, now: datetime) -> None:
        """Read off *headers* what is left; *now* is the server's time."""
        reset = headers.get("x-rate-limit-reset", "")
        used_up = headers.get("x-rate-limit-remaining") == "0" or status == HTTPStatus.TOO_MANY_REQUESTS
        if used_up and reset.isdecimal():
            wait_s = float(reset) - now.timestamp()
            self._closed_until = self._clock.monotonic() + min(max(wait_s, 0.0), LONGEST_QUOTA_S)


def backoff_delay(attempt: int, rng: random.Random) -> float:
    """Return the seconds to wait after failed *attempt* (0 is the first): 1, 2, 4, ... 60, less up to half."""
    return min(2.0 ** min(attempt, 10), LONGEST_WAIT_S) * (1 - rng.random() / 2)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, or None where it is absent or means nothing.

    Args:
        value: a number of seconds or an HTTP date (RFC 9110, 10.2.3).
        now: the time by the clock that wrote the date, which is the server's.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(slots=True)
class Traffic:
    """What a run has asked of all hosts so far."""

    requests: int = 0  # attempts on the wire, retries included
    retries: int = 0
    rate_limit_hits: int = 0  # answers with status 429

    @property
    def may_retry(self) -> bool:
        """Whether retries are few enough: a sick exchange gets no more than a fixed share on top."""
        return self.retries < FREE_RETRIES + RETRY_SHARE * self.requests


class Breaker:
    """Ends the asking of one host for the rest of a run, when it denies access or fails many times in a row."""

    def __init__(self, clock: Clock) -> None:
        """Let everything through at first."""
        self._clock = clock
        self._failures = 0
        self._since = 0.0
        self._why: ApiError | None = None

    def check(self) -> None:
        """Do nothing, or raise why the host is not asked any more."""
        if why := self._why:
            error = type(why)(f"not asked any more in this run, after {why.message}", why.url, why.status)
            error.retryable = False
            raise error

    def saw(self, error: ApiError | None) -> None:
        """Count how a request went; a 429 says nothing, for it is obeyed."""
        if self._why or isinstance(error, RateLimitedError):
            return
        if isinstance(error, AccessDeniedError):
            self._why = error
        elif error is None or not (error.retryable or error.too_large):
            self._failures = 0
        else:
            self._since = self._since if self._failures else self._clock.monotonic()
            self._failures += 1
            # what is too large for the exchange is halved, many batches at a time, before anything goes well
            many = MANY_REFUSALS if isinstance(error, RequestRejectedError) else MANY_FAILURES
            long_enough = error.too_large or self._clock.monotonic() - self._since >= LONG_OUTAGE_S
            if self._failures >= many and long_enough:
                self._why = error


async def retry(
    attempt: Callable[[], Awaitable[T]], *, max_retries: int, traffic: Traffic, clock: Clock, rng: random.Random
) -> T:
    """Return what *attempt* returns, trying again where its error says that this may help.

    Raises:
        ApiError: the last attempt's.
    """
    for number in range(max_retries + 1):
        try:
            return await attempt()
        except ApiError as error:
            asked_s = error.retry_after or 0.0
            hopeless = not error.retryable or asked_s > LONGEST_WAIT_S
            if hopeless or number >= max_retries or not traffic.may_retry:
                raise
            log.debug("attempt %d failed, trying again: %s", number + 1, error)
            traffic.retries += 1
            await clock.sleep(max(backoff_delay(number, rng), asked_s))
    raise AssertionError  # the last attempt has returned or raised


# --- APIs -------------------------------------------------------------------------------------------------------------

MARKETS_PATH: Final = "/markets/keyset"
PAGE_SIZE: Final = 100  # Gamma cuts larger pages to this
SEARCH_PATH: Final = "/2/tweets/search/recent"
SEARCHED: Final = timedelta(days=8)  # X searches the last seven
MAX_PAGES: Final = 20_000  # a listing that goes on for longer is going round in circles
MAX_TOKENS: Final = 500  # per request for books
MAX_BOOKS_BYTES: Final = 32 * 2**20  # 500 books have 2 to 5 MB
MAX_ERROR_BYTES: Final = 64 * 2**10


def server_time(headers: Mapping[str, str], now: datetime) -> datetime:
    """Return the time by the server's clock, or *now* where it does not say."""
    with suppress(ValueError, TypeError, OverflowError):
        moment = parsedate_to_datetime(headers.get("Date", ""))
        return moment if moment.tzinfo else now
    return now


BOT_CHECKS: Final = ("just a moment", "attention required", "captcha")


class Request(NamedTuple):
    """What is asked of a host; it changes nothing there, so it may be asked again."""

    method: str
    path: str
    params: Sequence[tuple[str, str]] = ()
    body: bytes | None = None  # JSON
    max_bytes: int = MAX_PAGE_BYTES  # of the decoded answer


class Answer(NamedTuple):
    """What came back for one request."""

    status: int
    headers: Mapping[str, str]
    body: bytearray

    @property
    def content_type(self) -> str:
        """What the body says it is."""
        return self.headers.get("Content-Type", "something untyped")

    @property
    def says(self) -> str:
        """The beginning of the body."""
        return self.body[:LONGEST_TEXT].decode("utf-8", "replace")

    @property
    def complaint(self) -> str | None:
        """The error that an answer with status 200 may have instead of what was asked for."""
        with suppress(ValueError, RecursionError):
            error = _COMPLAINT.decode(self.body).error
            return None if error is None else repr(error)
        return None

    @property
    def is_bot_check(self) -> bool:
        """Whether this is a page that wants to see a human being, instead of an answer."""
        page = "html" in self.content_type and any(text in self.says.casefold() for text in BOT_CHECKS)
        return page or self.headers.get("cf-mitigated") == "challenge"


def error_from(answer: Answer, url: str, now: datetime) -> ApiError | None:
    """Return what *answer* says has gone wrong at *now* (the server's time), or None if it is a success."""
    status, says = answer.status, f"HTTP {answer.status}: {answer.says!r}"
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    kind: type[ApiError]
    if answer.is_bot_check:
        kind, says = AccessDeniedError, f"a bot check instead of an answer; {says}"
    elif status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    elif status < HTTPStatus.BAD_REQUEST:
        kind, says = RequestRejectedError, f"HTTP {status}: refusing a redirect to {answer.headers.get('Location')!r}"
    elif status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS}:
        kind, says = AccessDeniedError, f"access is denied to this region, address or token; {says}"
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = RateLimitedError
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY}:
        kind = ServerError
    else:
        kind = RequestRejectedError
    return kind(says, url, status, retry_after)


def understood(answer: Answer, url: str, decode: Callable[[Body], T]) -> T:
    """Return the decoded *answer*.

    Raises:
        ServerError: with status 200 it says that something went wrong.
        MalformedResponseError: it is not JSON, or not of the documented shape.
    """
    try:
        return decode(answer.body)
    except _TooManyPartsError as error:
        raise AnswerTooLongError(str(error), url, answer.status) from error
    except msgspec.ValidationError as error:  # a ValueError as well
        if complaint := answer.complaint:
            msg = f"HTTP {answer.status}, and the error {complaint}"
            raise ServerError(msg, url, answer.status) from error
        failure = MalformedResponseError(str(error), url, answer.status)
        failure.retryable = answer.body.strip() == b"null"
        raise failure from error
    except (ValueError, RecursionError) as error:
        # cut short, or the page of some box in between: that may pass
        failure = MalformedResponseError(f"no JSON but {answer.content_type}: {error}", url, answer.status)
        failure.retryable = True
        raise failure from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What the hosts of a run share."""

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore  # bounds the requests in flight over all hosts
    settings: Settings  # timeout and retries
    traffic: Traffic  # counts what happens
    deadline: float  # of the run, by the clock
    clock: Clock
    rng: random.Random


async def _read(response: aiohttp.ClientResponse, max_bytes: int, url: str) -> bytearray:
    """Return the decoded body piece by piece, so that what is too long is never held in memory.

    Raises:
        AnswerTooLongError: it is longer than *max_bytes*.
    """
    pieces = bytearray()
    try:
        async for piece in response.content.iter_any():
            pieces += piece
            if len(pieces) > max_bytes:
                if not response.ok:  # its status says enough
                    break
                pieces.clear()  # an error keeps what its function had
                msg = f"the answer is longer than {max_bytes} bytes"
                raise AnswerTooLongError(msg, url, response.status)
    except aiohttp.ClientPayloadError:
        if response.ok:
            raise
    return pieces


CLOSED_EARLY: Final = "the connection was closed before the answer was complete"


class _Attempts:
    """The attempts on the wire of one request: aiohttp repeats a GET when a kept connection turns out closed.

    Each is paced and counted, and has the whole timeout.
    """

    def __init__(self, endpoint: Endpoint, limiter: RateLimiter, wire: Wire, url: str) -> None:
        self._endpoint = endpoint
        self._limiter = limiter
        self._wire = wire
        self._url = url
        self.started: float | None = None  # the last one
        self.deadline = asyncio.timeout(None)

    async def count(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """Let the next attempt begin when its turn has come (the first one's has)."""
        if self.started is not None:
            await self._repeat()
        self._wire.traffic.requests += 1
        self.started = self._wire.clock.monotonic()
        self.deadline.reschedule(asyncio.get_running_loop().time() + self._wire.settings.timeout_s)
        return await handler(request)

    async def _repeat(self) -> None:
        if self._endpoint.token or not self._wire.traffic.may_retry:
            raise NetworkError(CLOSED_EARLY, self._url)
        self._wire.traffic.retries += 1
        self.deadline.reschedule(None)
        await self._limiter.acquire()


class HttpHost:
    """One host: paced by its limiter, patient as the settings say, and trusted with nothing.

    A host with a token charges for its answers: what may have been paid for is not asked for again.

    Args:
        endpoint: where it is, the way there, and its token.
        limiter: asked before every attempt on the wire.
        wire: what it shares with the other hosts of the run.
        quota: what the host's headers say is left, over all runs, where it has such headers.
    """

    def __init__(self, endpoint: Endpoint, limiter: RateLimiter, wire: Wire, quota: Quota | None = None) -> None:
        """Remember how to ask; nothing is sent yet."""
        self._endpoint = endpoint
        self._limiter = limiter
        self._quota = quota
        self._wire = wire
        self._turn = asyncio.Lock()
        self._breaker = Breaker(wire.clock)

    def address(self, path: str) -> str:
        """Return the whole address of *path*."""
        return self._endpoint.url + path

    async def fetch(self, request: Request, decode: Callable[[Body], T]) -> T:
        """Return the answer to *request*, as *decode* makes it of its body, trying again where that may help.

        Raises:
            ApiError: retries are used up, or a retry would not help, or the run has no time left.
        """
        url = self.address(request.path)

        async def attempt() -> T:
            try:
                result = understood(await self._ask(request, url), url, decode)
            except ApiError as error:
                error.retryable &= self._may_repeat(error)
                self._breaker.saw(error)
                raise
            self._breaker.saw(None)
            return result

        wire = self._wire
        try:
            async with asyncio.timeout(max(0.0, wire.deadline - wire.clock.monotonic())):
                return await retry(
                    attempt,
                    max_retries=wire.settings.max_retries,
                    traffic=wire.traffic,
                    clock=wire.clock,
                    rng=wire.rng,
                )
        except TimeoutError as error:
            raise self._too_late(url) from error

    async def _ask(self, request: Request, url: str) -> Answer:
        """Send *request* once, when its turn has come, and return the answer if it is a success."""
        self._check(url)
        async with AsyncExitStack() as stack:
            async with self._turn:  # one request per host waits for the limiter in a slot; the rest leaves them free
                await stack.enter_async_context(self._wire.slots)
                await self._limiter.acquire()
            self._check(url)
            started, answer = await self._exchange(request, url)
        log.debug("%s %s: %d, %d bytes", request.method, url, answer.status, len(answer.body))
        now = server_time(answer.headers, self._wire.clock.now())
        if self._quota:
            self._quota.learn(answer.headers, answer.status, now)
        problem = error_from(answer, url, now)
        if problem is None:
            self._limiter.reset_backoff(started=started)
            return answer
        if isinstance(problem, RateLimitedError):
            self._wire.traffic.rate_limit_hits += 1
            self._limiter.apply_backoff(problem.retry_after, started=started)
        raise problem

    def _check(self, url: str) -> None:
        """Do nothing, or raise why the host is not to be asked now."""
        self._breaker.check()
        if self._wire.clock.monotonic() >= self._wire.deadline:
            raise self._too_late(url)
        if self._quota and (closed_s := self._quota.closed_s) > 0:
            msg = f"its quota is used up for {closed_s:.0f} s more"
            raise RateLimitedError(msg, url, HTTPStatus.TOO_MANY_REQUESTS, closed_s)

    def _too_late(self, url: str) -> NetworkError:
        error = NetworkError(f"the run's {self._wire.settings.run_timeout_s:g} s are over", url)
        error.retryable = False
        return error

    async def _exchange(self, request: Request, url: str) -> tuple[float | None, Answer]:
        """Send *request* now, and return when it started and what came back."""
        attempts = _Attempts(self._endpoint, self._limiter, self._wire, url)
        exchange = self._wire.session.request(
            request.method,
            url,
            params=request.params,
            data=request.body,
            headers=self._headers(request),
            proxy=self._endpoint.proxy,
            allow_redirects=False,
            middlewares=(attempts.count,),
        )
        try:
            async with attempts.deadline, exchange as response:
                body = await _read(response, request.max_bytes if response.ok else MAX_ERROR_BYTES, url)
        except TimeoutError as error:
            msg = f"no complete answer within {self._wire.settings.timeout_s:g} s"
            raise NetworkError(msg, url) from error
        except aiohttp.ClientError as error:
            # what a host that knows the token has sent may repeat it
            raise self._network_error(error, url) from (None if self._endpoint.token else error)
        return attempts.started, self._without_token(Answer(response.status, response.headers, body))

    def _headers(self, request: Request) -> dict[str, str]:
        headers = {"Content-Type": "application/json"} if request.body else {}
        if self._endpoint.token:
            headers["Authorization"] = Secret("Bearer " + self._endpoint.token)
        return headers

    def _network_error(self, error: aiohttp.ClientError, url: str) -> NetworkError:
        proxy = self._endpoint.proxy
        through = f" (through the proxy {proxy.host}:{proxy.port})" if proxy else ""
        says = self._hidden(str(error) or type(error).__name__)
        if isinstance(error, aiohttp.ServerDisconnectedError):
            says = CLOSED_EARLY
        failure = NetworkError(says + through, url)
        failure.retryable = not isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL))
        failure.sent = not isinstance(error, aiohttp.ClientConnectorError)
        return failure

    def _may_repeat(self, error: ApiError) -> bool:
        """Return whether a host may be asked again: not where the lost answer may have been paid for."""
        if self._endpoint.token is None:
            return True
        unpaid = isinstance(error, ServerError) or (isinstance(error, NetworkError) and not error.sent)
        return unpaid and (error.retry_after or 0) <= PATIENCE_S  # the next run will do

    def _hidden(self, text: str) -> str:
        """Return *text* without the token, should somebody have written it there."""
        return text.replace(self._endpoint.token, "***") if self._endpoint.token else text

    def _without_token(self, answer: Answer) -> Answer:
        """Return *answer* without the token in it."""
        if not self._endpoint.token:
            return answer
        headers = CIMultiDict((name, self._hidden(value)) for name, value in answer.headers.items())
        return Answer(answer.status, headers, answer.body.replace(self._endpoint.token.encode(), b"***"))


class MarketPage(NamedTuple):
    """A page of a listing: what was understood and what was not."""

    markets: list[GammaMarket]
    rejected: list[Rejected]
    next_cursor: str | None

    @property
    def numbers(self) -> list[int]:
        """The ids on the page, whether they belong to markets to collect or not."""
        return [int(market.market_id) for market in self.markets]


class PostPage(NamedTuple):
    """A page of posts, the newest first: what was understood and what was not."""

    posts: list[XPost]
    rejected: list[Rejected]
    newest_id: str | None
    next_token: str | None
    usernames: Mapping[str, str | None]
    problem: str | None  # that came beside the posts

    @classmethod
    def from_wire(cls, posts: list[XPost], rejected: list[Rejected], rest: _Posts | _RawPosts) -> Self:
        """Put together *posts* and what came with them, as far as it is understood."""
        users: list[XUser] = []
        with suppress(msgspec.ValidationError):
            users = msgspec.convert(rest.includes or {}, XIncludes, from_attributes=True).users or []
        problems = ["something that is not understood"] if rest.errors else []
        with suppress(msgspec.ValidationError):
            found = msgspec.convert(rest.errors or [], list[XProblem], from_attributes=True)
            problems = [problem.detail or problem.title or problem.message or "" for problem in found]
        return cls(
            posts=posts,
            rejected=rejected,
            newest_id=rest.meta.newest_id or max((post.post_id for post in posts), key=int, default=None),
            next_token=rest.meta.next_token,
            usernames={user.user_id: user.username for user in users},
            problem=f"X left something out: {printable(problems[0])}" if problems else None,
        )


def _tolerant(whole: Callable[[Body], T], piecewise: Callable[[Body], T]) -> Callable[[Body], T]:
    """Return a decoder that tries *whole* first; where that fails it mends the text, and goes on *piecewise*."""

    def decode(body: Body) -> T:
        body = _without_nul(body)
        try:
            return whole(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return piecewise(_repaired(body))

    return decode


def _whole_page(body: Body) -> MarketPage:
    page = _PAGE.decode(body)
    _check_expected(page.markets)
    return MarketPage(page.markets, [], page.next_cursor)


def _page_by_market(body: Body) -> MarketPage:
    page = _RAW_PAGE.decode(body)
    markets, rejected = _decode_most(page.markets, _MARKET)
    _check_expected(markets)
    return MarketPage(markets, rejected, page.next_cursor)


def _whole_posts(body: Body) -> PostPage:
    answer = _POSTS.decode(body)
    return PostPage.from_wire(answer.data or [], [], answer)


def _posts_one_by_one(body: Body) -> PostPage:
    answer = _RAW_POSTS.decode(body)
    return PostPage.from_wire(*_decode_each(answer.data or [], _POST), answer)


decode_page: Final = _tolerant(_whole_page, _page_by_market)
decode_books: Final = _tolerant(
    lambda body: (_BOOKS.decode(body), []), lambda body: _decode_most(_RAW_BOOKS.decode(body), _BOOK)
)
decode_posts: Final = _tolerant(_whole_posts, _posts_one_by_one)


class PolymarketApi:
    """What we ask of Polymarket: Gamma for markets, the CLOB for order books.

    Source: https://docs.polymarket.com/api-reference
    """

    def __init__(self, gamma: HttpHost, clob: HttpHost) -> None:
        """Ask *gamma* and *clob*."""
        self._gamma = gamma
        self._clob = clob
        self._most_tokens = MAX_TOKENS  # that the exchange takes in one request, as far as is known

    async def iter_market_pages(self, *, order: str, ascending: bool) -> AsyncGenerator[MarketPage]:
        """Yield the pages of every market that is not closed, 100 markets each, ordered by the field *order*.

        In an order that changes meanwhile, such as the volume, markets can come twice.

        Raises:
            ApiError: a page cannot be had, the listing is empty, or it does not end.
        """
        params = [("order", order), ("ascending", str(ascending).lower())]
        page = await self._fetch_page(params)
        if not page.markets and not page.rejected:
            msg = "the listing is empty"
            raise MalformedResponseError(msg, self._gamma.address(MARKETS_PATH))
        yield page
        used: set[str] = set()
        while (cursor := page.next_cursor) is not None:
            if not cursor or cursor in used or len(used) >= MAX_PAGES:
                msg = f"the listing does not end: page {len(used) + 1} leads to cursor {cursor!r}"
                raise MalformedResponseError(msg, self._gamma.address(MARKETS_PATH))
            used.add(cursor)
            page = await self._fetch_page([*params, ("after_cursor", cursor)])
            yield page

    async def fetch_markets(self, market_ids: Sequence[int], *, closed: bool = False) -> MarketPage:
        """Fetch those of *market_ids* that are open, or those that are closed, in one request.

        Args:
            market_ids: 1 to 100 ids.
            closed: which of the two.

        Raises:
            ApiError: retries are used up, or a retry would not help.
        """
        return await self._fetch_page([("id", str(market_id)) for market_id in market_ids], closed=closed)

    async def fetch_clob_market(self, condition_id: str) -> ClobMarket | None:
        """Fetch what the CLOB knows of a market, or None if it does not know it.

        Raises:
            ApiError: retries are used up, or a retry would not help.
        """
        if not re.fullmatch("[0-9A-Za-z_-]+", condition_id):  # it would lead to another address
            return None
        return await self._fetch_if_there(f"/markets/{condition_id}", _CLOB_MARKET.decode)

    async def _fetch_if_there(
        self, path: str, decode: Callable[[Body], T], params: Sequence[tuple[str, str]] = ()
    ) -> T | None:
        """Return what the CLOB has at *path*, or None where it says that there is nothing."""
        try:
            return await self._clob.fetch(Request("GET", path, params), decode)
        except RequestRejectedError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def _fetch_page(self, params: Sequence[tuple[str, str]], *, closed: bool = False) -> MarketPage:
        always = [("limit", str(PAGE_SIZE)), ("closed", str(closed).lower()), ("include_tag", "true")]
        return await self._gamma.fetch(Request("GET", MARKETS_PATH, [*params, *always]), decode_page)

    async def fetch_books(self, token_ids: Sequence[str]) -> tuple[dict[str, OrderBook], list[Rejected]]:
        """Fetch the current books of *token_ids* in one request, keyed by token id.

        Tokens without a book (closed, not yet open) are absent from the answer. A request that the exchange finds too
        large, or whose answer is, is repeated in halves.

        Args:
            token_ids: 1 to 500 token ids (uint256 written in decimal).

        Raises:
            ApiError: retries are used up, or a retry would not help.

        Source: https://docs.polymarket.com/market-data/prices-order-books
        """
        if len(token_ids) > self._most_tokens:
            return await self._fetch_halves(token_ids)
        wanted = msgspec.json.encode([{"token_id": token_id} for token_id in token_ids])
        try:
            request = Request("POST", "/books", body=wanted, max_bytes=MAX_BOOKS_BYTES)
            books, rejected = await self._clob.fetch(request, decode_books)
        except ApiError as error:
            if len(token_ids) == 1 or not error.too_large:
                raise
            if isinstance(error, RequestRejectedError):
                self._most_tokens = min(self._most_tokens, len(token_ids) // 2)
        else:
            return {book.token_id: book for book in books}, rejected
        return await self._fetch_halves(token_ids)

    async def _fetch_halves(self, token_ids: Sequence[str]) -> tuple[dict[str, OrderBook], list[Rejected]]:
        """Fetch the books of *token_ids* in two requests; a failure of one costs the other nothing."""
        books: dict[str, OrderBook] = {}
        rejected: list[Rejected] = []
        failed: list[ApiError] = []
        middle = len(token_ids) // 2
        for half in (token_ids[:middle], token_ids[middle:]):
            try:
                found, odd = await self.fetch_books(half)
            except ApiError as error:
                error.__cause__ = error.__context__ = None  # with their tracebacks they would keep whole answers
                failed.append(error.with_traceback(None))
                rejected += [Rejected(token_id, str(error), error=error) for token_id in half]
            else:
                books |= found
                rejected += odd
        if len(failed) > 1:
            raise failed[0]
        return books, rejected

    async def fetch_book(self, token_id: str) -> OrderBook | None:
        """Fetch the current book of one token, or None if it has none.

        Raises:
            ApiError: retries are used up, or a retry would not help.
        """
        return await self._fetch_if_there("/book", _BOOK.decode, [("token_id", token_id)])


class XApi:
    """What we ask of X: what has been said about prediction markets in the last seven days.

    Source: https://docs.x.com/x-api/posts/search-recent-posts
    """

    QUERY: Final = (
        '(url:"polymarket.com" OR "polymarket.com" OR #Polymarket OR "prediction market" OR kalshi) lang:en -is:retweet'
    )
    FIELDS: Final = "author_id,created_at,entities,lang,public_metrics"
    LARGEST_PAGE: Final = 100

    def __init__(self, host: HttpHost, *, with_usernames: bool) -> None:
        """Ask *host*; user names cost twice as much as posts."""
        self._host = host
        self._with_usernames = with_usernames

    async def iter_post_pages(self, *, since_id: str | None, at_most: int) -> AsyncGenerator[PostPage]:
        """Yield the posts that are newer than *since_id*, the newest first, and no more than *at_most* of them.

        The last page has a `next_token` if there would have been more.

        Raises:
            ApiError: a page cannot be had.
        """
        next_token: str | None = None
        while at_most >= FEWEST_POSTS:
            size = min(at_most, self.LARGEST_PAGE)
            if 0 < at_most - size < FEWEST_POSTS:  # else they could not be asked for
                size = at_most - FEWEST_POSTS
            page = await self._fetch_posts(since_id, next_token, size)
            yield page
            received = len(page.posts) + len(page.rejected)
            next_token = page.next_token
            if not (received and next_token):
                return
            at_most -= received

    async def _fetch_posts(self, since_id: str | None, next_token: str | None, size: int) -> PostPage:
        params = [("query", self.QUERY), ("max_results", str(size)), ("tweet.fields", self.FIELDS)]
        if self._with_usernames:
            params += [("expansions", "author_id"), ("user.fields", "username")]
        if since_id:
            params.append(("since_id", since_id))
        if next_token:
            params.append(("next_token", next_token))
        return await self._host.fetch(Request("GET", SEARCH_PATH, params), decode_posts)


# --- Storage ----------------------------------------------------------------------------------------------------------

BUSY_TIMEOUT_S: Final = 30.0
LOCK_WAIT_S: Final = 3.0  # an archive holds the database for a moment at a time; a collector for minutes
FILE_MODE: Final = 0o660  # less the umask: nobody but the owner and the group reads or writes a new file
WAL_LIMIT_BYTES: Final = 64 * 2**20

# A new file runs through the same scripts as an old one, so both end in the same shape. Times are UTC,
# 'YYYY-MM-DD HH:MM:SS', so that they compare with datetime('now', '-1 hour').
MIGRATIONS: Final = (
    # 1: the tables as collectors before this one made them
    """
    CREATE TABLE IF NOT EXISTS markets (
        market_id TEXT PRIMARY KEY,                 -- Gamma: id
        slug TEXT,
        question TEXT,
        description TEXT,
        category TEXT,                              -- the main topic among the tags
        token_id_yes TEXT,                          -- of the first outcome, whatever it is called
        token_id_no TEXT,                           -- of the second
        start_time TIMESTAMP,
        end_time TIMESTAMP,                         -- nominal: a market may close before or after
        resolved INTEGER DEFAULT 0,
        resolution_outcome TEXT,
        first_seen TIMESTAMP DEFAULT CURRENT_TIMESTAMP
    );
    CREATE TABLE IF NOT EXISTS snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        market_id TEXT REFERENCES markets(market_id),
        timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP, -- when the books were received
        price_yes REAL,                             -- USD: midpoint of the YES book, else Gamma's price
        price_no REAL,                              -- 1 - price_yes
        volume_24h REAL,                            -- USD, Gamma
        liquidity REAL,                             -- USD, Gamma
        best_bid_yes REAL,                          -- USD, CLOB; NULL without bids or without a book
        best_ask_yes REAL,
        best_bid_no REAL,
        best_ask_no REAL,
        -- best_ask_yes - best_bid_yes
        spread REAL,
        UNIQUE (market_id, timestamp)
    );
    CREATE TABLE IF NOT EXISTS tweets (
        tweet_id TEXT PRIMARY KEY,
        timestamp TIMESTAMP,
        text TEXT,
        author_username TEXT,
        author_id TEXT,
        likes INTEGER,
        retweets INTEGER,
        replies INTEGER,
        engagement_score INTEGER,
        sentiment_score REAL,
        market_id TEXT,
        keywords TEXT,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
    );
    CREATE TABLE IF NOT EXISTS hype_signals (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        market_id TEXT,
        timestamp TIMESTAMP,
        tweet_count INTEGER,
        total_engagement INTEGER,
        avg_sentiment REAL,
        unique_users INTEGER,
        velocity REAL,
        hype_score REAL,
        UNIQUE (market_id, timestamp)
    );
    """,
    # 2: what this collector adds
    """
    ALTER TABLE markets ADD COLUMN condition_id TEXT;       -- the market's id on the CLOB and on chain
    ALTER TABLE markets ADD COLUMN event_slug TEXT;
    ALTER TABLE markets ADD COLUMN outcome_yes TEXT;        -- the first outcome's own word: Yes, Up, a team
    ALTER TABLE markets ADD COLUMN outcome_no TEXT;
    ALTER TABLE markets ADD COLUMN tags TEXT;               -- JSON array of labels
    ALTER TABLE markets ADD COLUMN last_seen TIMESTAMP;     -- when it was last listed as open
    ALTER TABLE markets ADD COLUMN closed_at TIMESTAMP;
    ALTER TABLE markets ADD COLUMN outcome_asked INTEGER DEFAULT 0; -- how often the outcome was asked for in vain
    ALTER TABLE markets ADD COLUMN outcome_ask_at TIMESTAMP;        -- not to be asked for again before
    CREATE INDEX unresolved_markets ON markets(CAST(market_id AS INTEGER), outcome_ask_at)
        WHERE resolved = 0 AND market_id NOT GLOB '*[^0-9]*';
    ALTER TABLE snapshots ADD COLUMN run_id INTEGER;
    ALTER TABLE snapshots ADD COLUMN last_trade_price REAL; -- USD, per market: the same for both tokens
    ALTER TABLE snapshots ADD COLUMN book_time TIMESTAMP;   -- when the book last changed, with milliseconds
    ALTER TABLE snapshots ADD COLUMN bid_size_yes REAL;     -- shares at best_bid_yes
    ALTER TABLE snapshots ADD COLUMN ask_size_yes REAL;
    ALTER TABLE snapshots ADD COLUMN bid_size_no REAL;
    ALTER TABLE snapshots ADD COLUMN ask_size_no REAL;
    CREATE TABLE runs (
        run_id INTEGER PRIMARY KEY AUTOINCREMENT,
        started_at TIMESTAMP NOT NULL,
        finished_at TIMESTAMP,                      -- NULL while running, and for ever if the process died
        status TEXT NOT NULL,                       -- running, complete, partial or failed
        markets_listed INTEGER NOT NULL DEFAULT 0,  -- open markets that the exchange named
        snapshots_saved INTEGER NOT NULL DEFAULT 0,
        books_missing INTEGER NOT NULL DEFAULT 0,   -- markets without both of their books
        tweets INTEGER NOT NULL DEFAULT 0,
        requests INTEGER NOT NULL DEFAULT 0,        -- attempts on the wire, retries included
        retries INTEGER NOT NULL DEFAULT 0,
        rate_limit_hits INTEGER NOT NULL DEFAULT 0, -- answers with status 429
        errors INTEGER NOT NULL DEFAULT 0,          -- rows in failures
        listing TEXT,                               -- top: by volume; full: both walks; known: the newest and by id
        full_walk_at TIMESTAMP,                     -- start of the last complete full walk, this run's included
        follow INTEGER,                             -- 1: should have stored every market that was collected before
        duration REAL,                              -- seconds
        min_volume REAL,                            -- USD in 24 hours
        version TEXT                                -- of the collector
    );
    CREATE TABLE failures (
        run_id INTEGER NOT NULL REFERENCES runs(run_id),
        market_id TEXT,                             -- NULL where a whole answer failed
        stage TEXT NOT NULL,                        -- list, book, outcome or save
        reason TEXT NOT NULL
    );
    CREATE TABLE listed_ids (                       -- by the last full walk and since, placeholders included
        market_id INTEGER PRIMARY KEY
    );
    CREATE INDEX failures_by_run ON failures(run_id);
    CREATE VIEW latest_snapshots AS
        SELECT m.question, m.category, m.outcome_yes, m.outcome_no, s.*
        FROM markets AS m
        JOIN snapshots AS s ON s.id = (
            SELECT id FROM snapshots WHERE market_id = m.market_id ORDER BY timestamp DESC LIMIT 1
        );
    """,
    # 3: posts on X, and which runs have read them
    """
    ALTER TABLE tweets ADD COLUMN run_id INTEGER;           -- NULL in rows of other programs
    ALTER TABLE tweets ADD COLUMN lang TEXT;
    ALTER TABLE tweets ADD COLUMN links TEXT;               -- JSON array; the text only has short forms
    ALTER TABLE hype_signals ADD COLUMN run_id INTEGER;
    ALTER TABLE runs ADD COLUMN newest_tweet_id TEXT;       -- the next search goes on after it
    ALTER TABLE runs ADD COLUMN tweets_complete INTEGER;    -- 1: no post since the last search is left out
    CREATE INDEX IF NOT EXISTS tweets_by_time ON tweets(timestamp);
    CREATE INDEX IF NOT EXISTS tweets_by_market ON tweets(market_id, timestamp);
    DROP VIEW IF EXISTS gaps;
    -- the intervals between two snapshots of a market in which runs should have stored it and did not
    CREATE VIEW gaps AS
        WITH steps AS (
            SELECT market_id, lag(timestamp) OVER w AS since, timestamp AS until,
                   lag(run_id) OVER w AS last_run, run_id AS next_run
            FROM snapshots WHERE run_id IS NOT NULL
            WINDOW w AS (PARTITION BY market_id ORDER BY run_id)
        )
        SELECT market_id, since, until,
               (SELECT json_group_array(run_id) FROM (
                    SELECT run_id FROM runs WHERE run_id > last_run AND run_id < next_run AND follow = 1 ORDER BY run_id
               )) AS run_ids,
               (SELECT json_group_array(reason) FROM (
                    SELECT DISTINCT f.reason FROM failures AS f JOIN runs AS r USING (run_id)
                    WHERE run_id > last_run AND run_id < next_run AND r.follow = 1 AND f.stage <> 'posts'
                      AND (f.market_id = steps.market_id OR f.market_id IS NULL) ORDER BY f.reason
               )) AS reasons
        FROM steps
        WHERE next_run > last_run + 1
          AND EXISTS (SELECT 1 FROM runs WHERE run_id > last_run AND run_id < next_run AND follow = 1);
    """,
    # 4: whole books, what changes in every run, who is followed, which days are archived
    """
    DROP VIEW IF EXISTS latest_snapshots;
    CREATE TABLE books (                                    -- one row per content, market and UTC day
        book_id INTEGER PRIMARY KEY,
        market_id TEXT NOT NULL REFERENCES markets(market_id),
        timestamp TIMESTAMP NOT NULL,                       -- when it was first received
        bids TEXT,                                          -- of YES: JSON [[price, size], ...], the best level first;
        asks TEXT,                                          -- '[]' is an empty side, NULL: there is no YES book
        mirrored INTEGER,                                   -- 1: the NO book is the exact mirror of YES; 0: it is not;
        bids_no TEXT,                                       -- NULL: there is no NO book. Its own lists only where
        asks_no TEXT                                        -- it is no mirror
    );
    CREATE TABLE seen (                                     -- what changes in every run
        market_id TEXT PRIMARY KEY,
        last_seen TIMESTAMP,                                -- when the market was last listed as open
        snapshot_id INTEGER                                 -- the newest one: of the newest run, whatever the clocks said
    ) WITHOUT ROWID;
    INSERT INTO seen
        SELECT market_id, last_seen, (SELECT max(id) FROM snapshots AS s WHERE s.market_id = m.market_id)
        FROM markets AS m;
    ALTER TABLE markets ADD COLUMN followed INTEGER NOT NULL DEFAULT 0; -- 1: collected until it resolves
    ALTER TABLE snapshots ADD COLUMN book_id INTEGER REFERENCES books(book_id);
    ALTER TABLE failures ADD COLUMN markets INTEGER;        -- how many markets it concerns
    ALTER TABLE runs ADD COLUMN selection TEXT;             -- JSON of the names that were asked for; NULL: none
    ALTER TABLE runs ADD COLUMN depth INTEGER;              -- levels kept of each side; 0: no books; NULL: all
    ALTER TABLE runs ADD COLUMN books_saved INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE runs ADD COLUMN books_unchanged INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE runs ADD COLUMN unmirrored INTEGER NOT NULL DEFAULT 0; -- markets whose NO book is no mirror of YES
    CREATE TABLE lake (                                     -- one row, made by the first archiving
        database_id TEXT NOT NULL,                          -- a UUID
        shard TEXT NOT NULL
    );
    CREATE TABLE archived_days (                            -- rows up to these ids are in the lake
        day TEXT PRIMARY KEY,                               -- YYYY-MM-DD, UTC
        archived_at TIMESTAMP NOT NULL,
        parts INTEGER NOT NULL DEFAULT 1,                   -- files per table
        snapshots INTEGER NOT NULL,                         -- the greatest id of each table
        books INTEGER NOT NULL,
        runs INTEGER NOT NULL,
        failures INTEGER NOT NULL,
        tweets INTEGER NOT NULL,
        hype_signals INTEGER NOT NULL
    );
    CREATE INDEX snapshots_by_time ON snapshots(timestamp);
    CREATE INDEX snapshots_by_run ON snapshots(run_id);
    CREATE INDEX books_by_time ON books(timestamp);
    CREATE INDEX markets_by_event ON markets(event_slug);
    CREATE INDEX markets_by_category ON markets(category);
    CREATE VIEW latest_snapshots AS
        SELECT m.question, m.category, m.outcome_yes, m.outcome_no, s.*,
               m.slug, m.event_slug, m.end_time, m.resolved, m.resolution_outcome, seen.last_seen
        FROM seen
        JOIN snapshots AS s ON s.id = seen.snapshot_id
        JOIN markets AS m ON m.market_id = seen.market_id;
    -- each snapshot with its book; of a NO book that is a mirror, bid p is ask 1 - p of YES
    CREATE VIEW order_books AS
        SELECT s.id AS snapshot_id, s.market_id, s.timestamp, s.run_id, b.book_id, b.mirrored,
               b.bids AS bids_yes, b.asks AS asks_yes,
               CASE b.mirrored WHEN 0 THEN b.bids_no WHEN 1 THEN (
                   SELECT json_group_array(json_array(round(1 - json_extract(value, '$[0]'), 9), json_extract(value, '$[1]')))
                   FROM json_each(b.asks)
               ) END AS bids_no,
               CASE b.mirrored WHEN 0 THEN b.asks_no WHEN 1 THEN (
                   SELECT json_group_array(json_array(round(1 - json_extract(value, '$[0]'), 9), json_extract(value, '$[1]')))
                   FROM json_each(b.bids)
               ) END AS asks_no
        FROM snapshots AS s JOIN books AS b USING (book_id);
    -- one row per level of each snapshot, level 1 being the best
    CREATE VIEW book_levels AS
        WITH sides (outcome, side, mirror) AS (
            VALUES ('YES', 'bid', 0), ('YES', 'ask', 0), ('NO', 'bid', 0), ('NO', 'ask', 0), ('NO', 'bid', 1), ('NO', 'ask', 1)
        )
        SELECT s.id AS snapshot_id, s.market_id, s.timestamp, s.run_id, outcome, side, l.key + 1 AS level,
               CASE sides.mirror WHEN 1 THEN round(1 - json_extract(l.value, '$[0]'), 9) ELSE json_extract(l.value, '$[0]') END AS price,
               json_extract(l.value, '$[1]') AS size
        FROM snapshots AS s JOIN books AS b USING (book_id) JOIN sides
        JOIN json_each(CASE
            WHEN outcome = 'YES' THEN CASE side WHEN 'bid' THEN b.bids ELSE b.asks END
            WHEN sides.mirror = 1 AND b.mirrored = 1 THEN CASE side WHEN 'bid' THEN b.asks ELSE b.bids END
            WHEN sides.mirror = 0 THEN CASE side WHEN 'bid' THEN b.bids_no ELSE b.asks_no END
        END) AS l;
    """,
)


def _insert(table: str, columns: Sequence[str]) -> str:
    """Return the statement that inserts a record, whose fields are *columns*, into *table*."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608


def _newest(column: str) -> str:
    """Return the query for what the newest run that has something in *column* has there, or NULL."""
    return f"SELECT (SELECT {column} FROM runs WHERE {column} IS NOT NULL ORDER BY run_id DESC LIMIT 1)"  # noqa: S608


# what the exchange leaves out this time keeps its last known value
SAVE_MARKET: Final = (
    _insert("markets", Market._fields)
    + " ON CONFLICT (market_id) DO UPDATE SET "
    + ", ".join(
        f"{column} = coalesce(excluded.{column}, {column})"
        for column in Market._fields
        if column not in {"market_id", "first_seen"}
    )
)
# a market that is listed as open has reopened, whatever was known of its end
SAVE_REOPENED: Final = """
    UPDATE markets SET
        resolved = 0, resolution_outcome = NULL, closed_at = NULL, outcome_asked = 0, outcome_ask_at = NULL
    WHERE market_id = ? AND (resolved = 1 OR outcome_asked > 0)
"""
SAVE_SNAPSHOT: Final = _insert("snapshots", Snapshot._fields) + " ON CONFLICT (market_id, timestamp) DO NOTHING"
SAVE_POST: Final = _insert("tweets", Post._fields) + " ON CONFLICT (tweet_id) DO NOTHING"
SAVE_NEWEST_POST: Final = "UPDATE runs SET newest_tweet_id = ? WHERE run_id = ?"
NEWEST_POST: Final = _newest("newest_tweet_id")
UNMATCHED_POSTS: Final = f"""
    SELECT {", ".join(UnmatchedPost._fields)} FROM tweets
    WHERE market_id IS NULL AND timestamp > ? AND (run_id = ? OR timestamp > ? AND run_id IS NOT NULL)
"""  # noqa: S608
SAVE_MATCH: Final = "UPDATE tweets SET market_id = ?, keywords = ? WHERE tweet_id = ?"
# the markets of a run, whose rows are the newest
QUESTIONS: Final = f"""
    SELECT {", ".join(Question._fields)} FROM (
        SELECT market_id FROM snapshots WHERE run_id = ? ORDER BY id DESC LIMIT ?
    ) JOIN markets USING (market_id)
"""  # noqa: S608


def _number(column: str, least: str, most: str) -> str:
    """Return SQL for *column* within its range, or NULL where another program has stored no number."""
    return f"CASE WHEN typeof({column}) IN ('integer', 'real') THEN max({least}, min({column}, {most})) END"


def _reactions(column: str) -> str:
    return f"coalesce(CAST({_number(column, '0', '1000000000000')} AS INTEGER), 0)"


# parameters: an hour ago, two hours ago, now; other programs may have stored anything
ATTENTION: Final = f"""
    WITH posts AS (
        SELECT
            market_id,
            timestamp > ? AS recent,
            {_reactions("likes")} + 2 * {_reactions("retweets")} + {_reactions("replies")} AS engagement,
            {_number("sentiment_score", "-1.0", "1.0")} AS sentiment,
            coalesce(author_id, author_username, '') AS author
        FROM tweets
        WHERE timestamp > ? AND timestamp <= ? AND timestamp LIKE '____-__-__ __:__:__%' AND market_id IS NOT NULL
    )
    SELECT
        market_id,
        sum(recent),
        sum(NOT recent),
        sum(engagement) FILTER (WHERE recent),
        avg(sentiment) FILTER (WHERE recent),
        count(DISTINCT author) FILTER (WHERE recent)
    FROM posts GROUP BY market_id HAVING sum(recent) > 0
"""  # noqa: S608
SAVE_HYPE: Final = _insert("hype_signals", HypeSignal._fields) + " ON CONFLICT (market_id, timestamp) DO NOTHING"
NEED_COLUMNS: Final = (SAVE_MARKET, SAVE_SNAPSHOT, SAVE_POST, SAVE_HYPE, SAVE_MATCH, QUESTIONS, ATTENTION)
HAS_COLUMN: Final = "SELECT count(*) FROM pragma_table_info(?) WHERE name = ? COLLATE NOCASE"
SAVE_FAILURE: Final = _insert("failures", Failure._fields)
SAVE_CONFLICT: Final = """
    INSERT INTO failures (run_id, market_id, stage, reason)
    SELECT ?, market_id, 'save', 'it has a snapshot of the same second: the clock was set back'
    FROM snapshots WHERE market_id = ? AND timestamp = ? AND run_id IS NOT ?
"""
START_RUN: Final = "INSERT INTO runs (started_at, status, min_volume, follow, version) VALUES (?, 'running', ?, ?, ?)"
SAVE_RESOLUTION: Final = """
    UPDATE markets SET resolved = 1, resolution_outcome = ?, closed_at = ?, outcome_ask_at = NULL WHERE market_id = ?
"""
# asked again after 15 minutes, then after four times as long each time
SAVE_UNDECIDED: Final = """
    UPDATE markets SET
        outcome_ask_at = datetime(?, min(15 * (1 << (2 * min(outcome_asked, 10))), ?) || ' minutes'),
        outcome_asked = outcome_asked + 1
    WHERE market_id = ?
"""
UNRESOLVED: Final = """
    SELECT CAST(market_id AS INTEGER) FROM markets
    WHERE resolved = 0 AND market_id NOT GLOB '*[^0-9]*' AND (outcome_ask_at IS NULL OR outcome_ask_at <= ?)
    ORDER BY CAST(market_id AS INTEGER)
"""
SAVE_PROGRESS: Final = """
    UPDATE runs SET snapshots_saved = snapshots_saved + ?, tweets = tweets + ?, errors = errors + ? WHERE run_id = ?
"""
LAST_FULL_WALK: Final = _newest("full_walk_at")
LISTED_IDS: Final = "SELECT market_id FROM listed_ids ORDER BY market_id"
FORGET_IDS: Final = "DELETE FROM listed_ids"
SAVE_ID: Final = "INSERT OR IGNORE INTO listed_ids (market_id) VALUES (?)"
END_DEAD_RUNS: Final = "UPDATE runs SET status = 'failed' WHERE status = 'running'"
# batches are stored in about the order in which they were received
LAST_SNAPSHOT_AT: Final = "SELECT max(timestamp) FROM (SELECT timestamp FROM snapshots ORDER BY id DESC LIMIT 10000)"
IS_OF_ANOTHER_PROGRAM: Final = """
    SELECT count(*) > 0 AND sum(name IN ('markets', 'snapshots')) < 2
    FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'
"""


class RunSummary(TypedDict):
    """A row of `runs`, for a person or a monitor."""

    run_id: int
    started_at: str
    status: str
    markets_listed: int
    snapshots_saved: int
    books_missing: int
    errors: int
    duration: float | None


RECENT_RUNS: Final = f"SELECT {', '.join(RunSummary.__annotations__)} FROM runs ORDER BY run_id DESC LIMIT 5"  # noqa: S608
LAST_COMPLETE: Final = "SELECT started_at FROM runs WHERE status = 'complete' ORDER BY run_id DESC LIMIT 1"
STARTS_SINCE: Final = "SELECT started_at FROM runs WHERE started_at > ? ORDER BY run_id"
FIRST_START: Final = "SELECT min(started_at) FROM runs"
STORED_IDS: Final = "SELECT market_id FROM snapshots"


@dataclass(slots=True)
class Batch:
    """Rows of a run that are stored together or not at all."""

    run_id: int
    markets: list[Market] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    resolutions: list[Resolution] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    newest_post_id: str | None = None  # once these posts are stored, the next search goes on after it


class Saved(NamedTuple):
    """How many rows of a batch were new."""

    snapshots: int
    posts: int


def uninterrupted(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let *work* run to its end, also when the caller is cancelled meanwhile; the cancellation follows afterwards.

    A cancelled aiosqlite call still runs, so a transaction that stops in its middle would stay open.
    """

    @wraps(work)
    async def to_its_end(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.ensure_future(work(*args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if error := None if task.cancelled() else task.exception():
                log.warning("failed while being cancelled: %s", error)
            raise

    return to_its_end


@contextmanager
def _naming(path: Path, doing: str) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into a `StorageError` that names the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
        msg = f"{path}: cannot {doing}: {error}"
        raise (DatabaseBusy if busy else StorageError)(msg) from error


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database at *path* for reading only, beside whoever writes to it."""
    with _naming(path, "read"), closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


@contextmanager
def held_alone(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the database for this process; the lock dies with it. The file beside the database names the holder.

    Whoever writes to the file holds it, so that there is one writer at a time.

    Raises:
        DatabaseBusy: another process still holds it after *wait_s* seconds.
    """
    real_path = Path(os.path.realpath(path))
    signature = f"process {os.getpid()} since {sql_time(datetime.now(UTC))} UTC"

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, signature.encode())

    lock_path = real_path.with_name(f"{real_path.name}.lock")
    lock = filelock.FileLock(lock_path, timeout=wait_s, mode=FILE_MODE, preserve_lock_file=True, on_acquired=sign)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        holder = "another collector"
        with suppress(OSError):
            holder = printable(lock_path.read_text(errors="replace")) or holder
        msg = f"{path}: in use by {holder}"
        raise DatabaseBusy(msg) from error
    try:
        yield
    finally:
        lock.release()


def _refuse_what_is_no_file(path: Path) -> None:
    """Refuse a path that no database can be at, in clearer words than SQLite's."""
    if path.is_dir():
        msg = f"{path}: is a folder"
        raise StorageError(msg)
    if path.exists() and not path.is_file():
        msg = f"{path}: is no file"
        raise StorageError(msg)
    if not path.parent.is_dir():
        msg = f"{path}: there is no folder {path.parent}"
        raise StorageError(msg)


def _create(path: Path) -> None:
    """Make an empty file, which is an empty database, unless there is one; SQLite would let everybody read it."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, FILE_MODE))


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at *path* from any other, without opening it: that would drop SQLite's locks."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@cache
def _warn_of_old_sqlite() -> None:
    """Say once per process that this SQLite can corrupt a file that several programs write to.

    Source: https://sqlite.org/wal.html (the WAL-reset bug; fixed in 3.51.3, 3.50.7 and 3.44.6)
    """
    version = sqlite3.sqlite_version_info
    if version < (3, 51, 3) and not (3, 50, 7) <= version < (3, 51) and not (3, 44, 6) <= version < (3, 45):
        log.warning(
            "SQLite %s can corrupt a file that several programs write to: let others only read it, mode=ro",
            sqlite3.sqlite_version,
        )


_ADD_COLUMN: Final = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (\w+)")


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of *script* one by one."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


class Database:
    """The one connection that writes. Every method raises `StorageError` where the file cannot be used."""

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        """Use `Database.open`."""
        self._connection = connection
        self._path = path
        self.absolute_path: Final = path.absolute()  # the program may go to another folder meanwhile
        self._file = _identity(self.absolute_path)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Self]:
        """Open the database at *path*, upgrade it to the current schema, and close it at the end.

        Raises:
            DatabaseBusy: another collector holds it.
            StorageError: it cannot be opened, is no database, or is not one of ours.
        """
        async with AsyncExitStack() as stack:
            with _naming(path, "open"):
                _refuse_what_is_no_file(path)
                stack.enter_context(held_alone(path, LOCK_WAIT_S))
                _create(path)
                _warn_of_old_sqlite()
                # aiosqlite's thread outlives a connect that fails and may write a traceback: let it fail here
                sqlite3.connect(path).close()
                connection = aiosqlite.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
                database = cls(await stack.enter_async_context(connection), path)
                await database._prepare()
            yield database

    async def last_snapshot_at(self) -> str | None:
        """Return the timestamp of the newest snapshot."""
        return await self._text(LAST_SNAPSHOT_AT)

    async def last_full_walk_at(self) -> str | None:
        """Return when the last complete walk over all open markets began."""
        return await self._text(LAST_FULL_WALK)

    async def listed_ids(self) -> array[int]:
        """Return the ids that the last full walk and the runs since have come across, in ascending order."""
        return await self._numbers(LISTED_IDS)

    async def newest_post_id(self) -> str | None:
        """Return the newest post that a search has come across."""
        return await self._text(NEWEST_POST)

    async def unmatched_posts(self, run_id: int, now: datetime) -> list[UnmatchedPost]:
        """Return the posts that belong to no market yet: those that run *run_id* has read, and the last hour's."""
        searched, an_hour_ago = sql_time(now - SEARCHED), sql_time(now - timedelta(hours=1))
        return [UnmatchedPost(*row) for row in await self._rows(UNMATCHED_POSTS, searched, run_id, an_hour_ago)]

    async def attention(self, now: datetime) -> list[Attention]:
        """Return what was said about each market in the hour before *now*, whoever has stored it."""
        hours = (sql_time(now - timedelta(hours=number)) for number in (1, 2, 0))
        return [Attention(*row) for row in await self._rows(ATTENTION, *hours)]

    async def unresolved_ids(self, now: str) -> array[int]:
        """Return the ids of the markets to be followed at *now*, in ascending order."""
        return await self._numbers(UNRESOLVED, now)

    @uninterrupted
    async def start_run(self, *, started_at: str, min_volume: float, follow: bool = True) -> int:
        """Open a run and return its id; runs that died unfinished are marked as failed."""
        async with self._transaction("start a run"):
            await self._connection.execute(END_DEAD_RUNS)
            cursor = await self._connection.execute(START_RUN, (started_at, min_volume, follow, __version__))
        return cursor.lastrowid or 0

    @uninterrupted
    async def save(self, batch: Batch) -> Saved:
        """Store *batch* whole or not at all."""
        async with self._transaction("store a batch"):
            await self._execute(SAVE_MARKET, batch.markets)  # before the snapshots that refer to them
            await self._execute(SAVE_REOPENED, [(market.market_id,) for market in batch.markets])
            new = await self._execute(SAVE_SNAPSHOT, batch.snapshots)
            await self._execute(SAVE_FAILURE, batch.failures)
            await self._execute(SAVE_RESOLUTION, batch.resolutions)
            await self._execute(SAVE_UNDECIDED, batch.undecided)
            new_posts = await self._execute(SAVE_POST, batch.posts)
            if batch.newest_post_id:
                await self._connection.execute(SAVE_NEWEST_POST, (batch.newest_post_id, batch.run_id))
            if new < len(batch.snapshots):
                keys = [(row.run_id, row.market_id, row.timestamp, row.run_id) for row in batch.snapshots]
                await self._execute(SAVE_CONFLICT, keys)
            errors = len(batch.failures) + len(batch.snapshots) - new
            await self._connection.execute(SAVE_PROGRESS, (new, new_posts, errors, batch.run_id))
        return Saved(new, new_posts)

    @uninterrupted
    async def save_ids(self, market_ids: Iterable[int], *, instead: bool) -> None:
        """Add *market_ids* to the listed ids, or put them in their place."""
        async with self._transaction("store the listed ids"):
            if instead:
                await self._connection.execute(FORGET_IDS)
            await self._connection.executemany(SAVE_ID, ((market_id,) for market_id in market_ids))

    @uninterrupted
    async def save_matches(self, matches: Mapping[str, Match]) -> None:
        """Store which markets posts are about, by post id."""
        async with self._transaction("store what posts are about"):
            await self._execute(SAVE_MATCH, [(*match, post_id) for post_id, match in matches.items()])

    @uninterrupted
    async def save_signals(self, signals: Sequence[HypeSignal]) -> None:
        """Store what the attention for markets comes to."""
        async with self._transaction("store hype signals"):
            await self._execute(SAVE_HYPE, signals)

    @uninterrupted
    async def finish_run(self, run_id: int, columns: Mapping[str, object]) -> None:
        """Write *columns* into the row of run *run_id*."""
        assignments = ", ".join(f"{column} = ?" for column in columns)
        async with self._transaction("finish the run"):
            statement = f"UPDATE runs SET {assignments} WHERE run_id = ?"  # noqa: S608  the names are ours
            await self._connection.execute(statement, (*columns.values(), run_id))

    async def _prepare(self) -> None:
        """Refuse a file that is not ours, set the connection up, and bring the schema to this version."""
        version = await self._value("PRAGMA user_version")
        if version > len(MIGRATIONS):
            msg = f"{self._path}: has schema {version} of a newer collector; this one knows {len(MIGRATIONS)}"
            raise StorageError(msg)
        if await self._value(IS_OF_ANOTHER_PROGRAM):
            msg = f"{self._path}: is the database of another program"
            raise StorageError(msg)
        if await self._value("PRAGMA journal_mode = WAL") != "wal":
            msg = f"{self._path}: cannot have a write-ahead log there"
            raise StorageError(msg)
        for pragma in ("synchronous = FULL", f"journal_size_limit = {WAL_LIMIT_BYTES}", "foreign_keys = ON"):
            await self._connection.execute(f"PRAGMA {pragma}")
        if version < len(MIGRATIONS):
            await self._migrate(version)

    @uninterrupted
    async def _migrate(self, version: int) -> None:
        async with self._transaction("upgrade"):
            for statement in itertools.chain.from_iterable(map(_statements, MIGRATIONS[version:])):
                column = _ADD_COLUMN.search(statement)
                if column is None or not await self._value(HAS_COLUMN, *column.groups()):  # the user may have added it
                    await self._connection.execute(statement)
            for statement in NEED_COLUMNS:  # a file that others have made may lack some
                await self._connection.execute(f"EXPLAIN {statement}", [None] * statement.count("?"))
            await self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    async def _execute(self, statement: str, rows: Sequence[Sequence[object]]) -> int:
        """Execute *statement* for each of *rows*, and return how many rows of the table it has changed."""
        if not rows:  # which would be a trip to the connection's thread all the same
            return 0
        return (await self._connection.executemany(statement, rows)).rowcount

    async def _rows(self, query: str, *values: str | int) -> Iterable[Sequence[Any]]:
        with _naming(self._path, "read"):
            return await self._connection.execute_fetchall(query, values)

    async def _text(self, query: str) -> str | None:
        with _naming(self._path, "read"):
            text: str | None = await self._value(query)
        return text

    async def _numbers(self, query: str, *values: str) -> array[int]:
        with _naming(self._path, "read"):
            async with self._connection.execute(query, values) as cursor:
                return array("q", [row[0] async for row in cursor])

    async def _value(self, statement: str, *values: str) -> Any:  # noqa: ANN401  whatever SQLite has there
        rows = list(await self._connection.execute_fetchall(statement, values))
        return rows[0][0]

    @asynccontextmanager
    async def _transaction(self, doing: str) -> AsyncIterator[None]:
        with _naming(self._path, doing):
            if _identity(self.absolute_path) != self._file:
                msg = f"{self._path}: was deleted or replaced while it was in use; what was stored went with it"
                raise StorageError(msg)
            await self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                await self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:  # when the disk is full, SQLite has already rolled back
                    await self._connection.execute("ROLLBACK")


# --- Attention --------------------------------------------------------------------------------------------------------
# Pure functions: how posts become a signal. None of them needs the network or a database.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# a phrase counts as one word
GOOD: Final = _words(
    "banger bullish confident easy gem gift goat great green guaranteed juicy lfg lock love moon mooning nailed "
    "printing profit profits pump pumping safe steal underpriced undervalued win winner winning wins "
    "all_in cant_lose free_money great_bet locked_in no_brainer"
)
BAD: Final = _words(
    "awful bad bearish broke cooked crash crashing dead disaster dumb dump dumping fade fading fake fraud garbage "
    "horrendous lose loser loses losing loss lost manipulated overpriced overvalued ponzi rekt rigged robbed robbery "
    "rug rugged scam scammed scams short stupid terrible toast trash worst wrecked "
    "dead_money exit_liquidity no_chance no_way rug_pull stay_away wash_trading"
)
_PHRASE: Final = re.compile(
    rf"\b(?:{'|'.join(sorted(word for word in GOOD | BAD if '_' in word))})\b".replace("_", " ")
)
GOOD_SIGNS: Final = "🚀📈🔥💰🤑💎🟢✅🎯🏆💪🙌🐂🌕"
BAD_SIGNS: Final = "📉💀🤡🔴❌🚩🗑😭😡🤮🐻💩🥶"
NEGATIONS: Final = _words("aint arent cant didnt doesnt dont hardly isnt never nor not wasnt wont without")
NEGATION_REACH: Final = 3  # words
CALM: Final = 2.0  # words of one tone that make half of the full tone


def tone(text: str) -> float:
    """Return how a post about betting sounds, from -1 (scam, rigged, losing) to 1 (printing, free money, bullish).

    0.0 is a post that says nothing of the kind. A word after a negation counts the other way, by half. This is tone and
    not the direction of YES: "free money on NO" sounds as good as "free money on YES".
    """
    plain = text.casefold().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    score = float(sum(plain.count(sign) for sign in GOOD_SIGNS) - sum(plain.count(sign) for sign in BAD_SIGNS))
    spoken = " ".join(re.findall(r"[^\W\d_]+", plain))
    words = _PHRASE.sub(lambda phrase: phrase[0].replace(" ", "_"), spoken).split()
    for place, word in enumerate(words):
        negated = not NEGATIONS.isdisjoint(words[max(0, place - NEGATION_REACH) : place])
        score += ((word in GOOD) - (word in BAD)) * (-0.5 if negated else 1)
    return score / (abs(score) + CALM)


def is_in(numbers: Sequence[int], number: int) -> bool:
    """Return whether *number* is among *numbers*, which ascend."""
    place = bisect_left(numbers, number)
    return place < len(numbers) and numbers[place] == number


# what people write for what questions say
SAME_WORDS: Final = {
    "btc": "bitcoin", "eth": "ethereum", "ether": "ethereum", "sol": "solana", "doge": "dogecoin",
    "jan": "january", "feb": "february", "mar": "march", "apr": "april", "jun": "june", "jul": "july",
    "aug": "august", "sept": "september", "sep": "september", "oct": "october", "nov": "november", "dec": "december",
    "cut": "decrease", "cutting": "decrease", "hike": "increase", "hiking": "increase",
    "bp": "bps", "fomc": "fed", "won": "win", "winning": "win",
    "nom": "nomination", "nominee": "nomination",
}  # fmt: skip
# what says nothing on which market is meant: function words, and the words of betting itself
EMPTY_WORDS: Final = _words(
    "a about above after all am an and any are as at be been before below between but by can could did do does down et "
    "for from get go had has have he her him his how i if in into is it its just like me more most my no not now of "
    "off on one or our out over per pm she so some still than that the their them then there they this to today "
    "tonight tomorrow too up us usa vs was we were what when which who whose why will with would yes you your "
    "bet bets betting chance com everyone http https kalshi market odds percent poly polymarket prediction price "
    "probability share trade trader trading www"
)
# they say when, which nearly all posts leave out; "may" is too often a verb
TIMES: Final = _words(
    "january february march april june july august september october november december "
    "2024 2025 2026 2027 2028 2029 2030 2031 2032 2033 2034 2035"
)
_LINK: Final = re.compile(
    r"(?<![\w.-])(?:www\.)?polymarket\.com/(?:[a-z]{2}/)?(?:event/([\w-]+)(?:/([\w-]+))?|market/([\w-]+))",
    re.IGNORECASE,
)
_TOKEN: Final = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)(?:(k|m|b|bn)(?![^\W\d_]))?|([^\W\d_]+)")
_SCALES: Final = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "bn": 1e9}
FEWEST_WORDS: Final = 2  # that a post shares with a question
COVERAGE: Final = 0.6  # of a question's weight, in words that the post has as well
RARE: Final = 0.05  # of the markets: words in more of them find no candidates, they only weigh


def _normal_word(number: str, scale: str, word: str) -> str:
    if number:
        return f"{float(number.replace(',', '')) * _SCALES[scale]:.15g}"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):  # noqa: PLR2004  not "gas"
        word = word[:-1]
    return SAME_WORDS.get(word, word) if len(word) > 1 else "a"


def distinctive_words(text: str) -> set[str]:
    """Return what *text* says, word by word: lower case, without plurals, numbers in digits (150k is 150000)."""
    text = re.sub(r"https?://\S+", " ", html.unescape(text))
    text = re.sub(r"#\w+", lambda tag: f"{tag[0]} {re.sub('(?<=[a-z])(?=[A-Z])', ' ', tag[0])}", text)
    text = re.sub(r"['\N{RIGHT SINGLE QUOTATION MARK}]s?\b", "", text)
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    words = (_normal_word(*found.groups(default="")) for found in _TOKEN.finditer(plain))
    return {word for word in words if word not in EMPTY_WORDS}


class _Fit(NamedTuple):
    """How well a market fits a post; the greater the better."""

    weight: float
    words: int
    place: int
    shared: list[str]

    def fits_as_well_as(self, other: _Fit) -> bool:
        return self[:2] == other[:2]


class MarketIndex:
    """Finds the market that a post is about: by a link to it, or by words.

    Words are weighed by how rare they are among the questions. A market is found by words if the post shares at least
    two with its question, if these are 60 % of the question's weight, and if together they are so rare that by chance
    hardly one market would have them all. Months and years weigh nothing, but a post that names others than the
    question is about something else. A post that fits two markets equally well fits none. Ten thousand markets and a
    thousand posts take about a quarter of a second.

    Args:
        markets: the open markets.
    """

    def __init__(self, markets: Iterable[Question]) -> None:
        """Read all questions once."""
        self._ids: list[str] = []
        self._by_slug: dict[str, int] = {}
        self._by_event: dict[str, list[int]] = {}
        self._with_word: dict[str, array[int]] = {}  # places in `_ids`, ascending
        weights = array("d")
        for place, market in enumerate(markets):
            self._ids.append(market.market_id)
            if market.slug:
                self._by_slug[market.slug.casefold()] = place
            if market.event_slug:
                self._by_event.setdefault(market.event_slug.casefold(), []).append(place)
            for word in distinctive_words(market.question or ""):
                self._with_word.setdefault(word, array("l")).append(place)
            weights.append(0.0)
        for word, places in self._with_word.items():
            weight = self._weight(word)
            for place in places:
                weights[place] += weight
        self._weights = weights  # of whole questions
        self._rare_weight = math.log(len(self._ids) + 1)  # of words that by chance hardly one market has together

    def match(self, text: str, links: Iterable[str] = ()) -> Match | None:
        """Return the market that a post is about, and why, or None if it is about none or cannot be told.

        Args:
            text: of the post.
            links: the addresses that it leads to, in full.
        """
        words = distinctive_words(text)
        linked = list(_LINK.finditer(" ".join([*links, text])))
        for link in linked:
            event, slug, alone = link.groups(default="")
            place = self._linked(event.casefold(), (slug or alone).casefold(), words)
            if place is not None:
                return Match(self._ids[place], link[0])
        return None if linked else self._match_words(words)  # whoever links elsewhere means something else

    def _weight(self, word: str) -> float:
        return 0.0 if word in TIMES else math.log((len(self._ids) + 1) / len(self._with_word[word]))

    def _linked(self, event: str, slug: str, words: set[str]) -> int | None:
        """Return the market that a link leads to; of an event's markets, the one that *words* single out."""
        if slug:
            return self._by_slug.get(slug)
        places = self._by_event.get(event, [])
        if len(places) == 1:
            return places[0]
        known = [found for word in words if (found := self._with_word.get(word))]
        shared = Counter(place for found in known for place in places if is_in(found, place))
        best = shared.most_common(2)
        if not best or (len(best) > 1 and best[0][1] == best[1][1]):
            return None
        return best[0][0]

    def _match_words(self, words: set[str]) -> Match | None:
        known = {word: places for word in words if (places := self._with_word.get(word))}
        common = max(20, int(len(self._ids) * RARE))
        weights: defaultdict[int, float] = defaultdict(float)  # of the rare words that a market shares
        for word, places in known.items():
            if len(places) <= common:
                weight = self._weight(word)
                for place in places:
                    weights[place] += weight
        rest = sum(self._weight(word) for word, places in known.items() if len(places) > common)
        enough = (place for place, weight in weights.items() if self._is_enough(place, weight + rest))
        found = sorted(filter(None, (self._fit(place, known, words & TIMES) for place in enough)), reverse=True)
        if not found or (len(found) > 1 and found[0].fits_as_well_as(found[1])):
            return None
        return Match(self._ids[found[0].place], ", ".join(sorted(found[0].shared)))

    def _is_enough(self, place: int, weight: float) -> bool:
        """Return whether words of *weight* single out the market at *place*: rare ones, and most of its question."""
        return weight >= self._rare_weight and weight >= COVERAGE * self._weights[place]

    def _fit(self, place: int, known: Mapping[str, Sequence[int]], times: set[str]) -> _Fit | None:
        """Return how well the market at *place* fits, or None if it does not."""
        shared = [word for word, places in known.items() if is_in(places, place)]
        weight = sum(map(self._weight, shared))
        if len(shared) < FEWEST_WORDS or not self._is_enough(place, weight):
            return None
        if times and times.isdisjoint(shared) and any(is_in(self._with_word.get(time, ()), place) for time in TIMES):
            return None  # both say when, and not the same
        # rounded, for the order of adding up must not decide between equals
        return _Fit(round(weight * weight / self._weights[place], 9), len(shared), place, shared)


VOLUME_WEIGHT: Final = 30.0
ENGAGEMENT_WEIGHT: Final = 20.0
VELOCITY_WEIGHT: Final = 20.0
BREADTH_WEIGHT: Final = 20.0
TONE_WEIGHT: Final = 10.0
POSTS_PER_AUTHOR: Final = 3  # that count: one account repeating itself is not many


def velocity(posts: int, posts_before: int) -> float:
    """Return the change of *posts* against the hour before, relative to it: 0 is none, 1 is twice as many.

    After an hour without a post it is divided by 1. The range is from -1 up.
    """
    return (posts - posts_before) / max(posts_before, 1)


def _half_at(half: float, value: float) -> float:
    """Return a share of 1 that is 0 at 0 and a half at *half*, and grows ever more slowly."""
    return value / (value + half)


def hype_score(
    *, tweet_count: int, total_engagement: int, avg_sentiment: float, unique_users: int, velocity: float
) -> float:
    """Return how much attention a market has, from 0 (none) to 100; it grows with each of its parts.

    The parts are volume, engagement, velocity, breadth and tone, with the weights above. Half of a part is reached at
    10 posts, of which 3 per author count, at an engagement of 100, at three times the posts of the hour before, at 5
    authors, and at a neutral tone. Velocity and tone count by the breadth that they have.

    Args:
        tweet_count: posts in the last hour.
        total_engagement: of these posts: likes + 2 x reposts + replies.
        avg_sentiment: of these posts, from -1 to 1.
        unique_users: authors of these posts.
        velocity: see `velocity`; at least -1.
    """
    breadth = _half_at(5, unique_users)
    volume = _half_at(10, min(tweet_count, POSTS_PER_AUTHOR * unique_users))
    return (
        VOLUME_WEIGHT * volume
        + ENGAGEMENT_WEIGHT * _half_at(100, total_engagement)
        + VELOCITY_WEIGHT * _half_at(3, velocity + 1) * breadth
        + BREADTH_WEIGHT * breadth
        + TONE_WEIGHT * (avg_sentiment + 1) / 2 * breadth
    )


def signal_of(heard: Attention, *, timestamp: str, run_id: int) -> HypeSignal:
    """Return what *heard* comes to."""
    change = velocity(heard.tweet_count, heard.tweets_before)
    return HypeSignal(
        market_id=heard.market_id,
        timestamp=timestamp,
        tweet_count=heard.tweet_count,
        total_engagement=heard.total_engagement,
        avg_sentiment=heard.avg_sentiment,
        unique_users=heard.unique_users,
        velocity=change,
        hype_score=hype_score(
            tweet_count=heard.tweet_count,
            total_engagement=heard.total_engagement,
            avg_sentiment=heard.avg_sentiment or 0.0,
            unique_users=heard.unique_users,
            velocity=change,
        ),
        run_id=run_id,
    )


# --- Collector --------------------------------------------------------------------------------------------------------

BATCH_MARKETS: Final = MAX_TOKENS // 2  # one request for books, one transaction
LONGEST_ASK_MINUTES: Final = 7 * 24 * 60  # between two questions for the outcome of a closed market
LONGEST_SEARCH_MINUTES: Final = 60  # and for a market that is neither open nor closed: it may be a fault of the listing
FEWEST_KNOWN: Final = 0.5  # of the known markets must still be listed: a tenth or two close within a day
HANDOVER_BATCHES: Final = 2  # that wait between two stages
MOMENT: Final = timedelta(seconds=2)
FULL_WALK_EVERY: Final = timedelta(days=1)  # because a closed market can reopen
RATE_WINDOW_S: Final = 1.05  # a second and some room: we count starts, the exchange counts arrivals
ENOUGH: Final = 0.95  # of the listed markets, stored with their books, make a run complete


class Handover(Generic[T]):
    """A bounded queue between stages: a full one makes its givers wait, and iterating ends once all have closed it."""

    def __init__(self, size: int, givers: int = 1) -> None:
        """Hold at most *size* items."""
        self._queue: asyncio.Queue[T | None] = asyncio.Queue(size)
        self._givers = givers

    async def put(self, item: T) -> None:
        """Hand over *item*, as soon as there is room."""
        await self._queue.put(item)

    async def close(self) -> None:
        """Say that nothing more will come from this giver."""
        self._givers -= 1
        if not self._givers:
            await self._queue.put(None)

    def __aiter__(self) -> Self:
        """Take items until the end; several takers may share them."""
        return self

    async def __anext__(self) -> T:
        """Return the next item."""
        item = await self._queue.get()
        if item is None:
            self._queue.put_nowait(None)  # for the other takers
            raise StopAsyncIteration
        return item


class Stats(TypedDict):
    """How a run went, in numbers."""

    markets_fetched: int  # open markets that the listing named, over the threshold
    snapshots_saved: int
    tweets_fetched: int  # posts that X has sent, each of which costs money
    errors: int  # rows in failures
    retries: int
    rate_limit_hits: int


class CollectionResult(TypedDict):
    """What a run has stored."""

    markets: int  # with a row in this run
    snapshots: int
    tweets: int  # posts that were not stored before
    duration: float  # seconds
    stats: Stats
    run_id: int
    status: str  # complete or partial, as in the table runs
    books_missing: int  # markets without both of the books that they should have
    reason: str | None  # of the first failure of the markets
    drift: str | None  # what the exchange sends in a shape that is not known; such answers are not stored
    tweets_reason: str | None  # of the first failure of the posts; None without a token
    requests: int  # attempts on the wire
    database: str


class Progress(NamedTuple):
    """How far a run is."""

    listed: int
    stored: int
    errors: int
    all_listed: bool  # from now on `listed` does not grow


@dataclass(slots=True)
class Run:
    """One collection: its hand-overs between the stages, and what has happened so far."""

    run_id: int
    database: Database
    api: PolymarketApi
    x: XApi
    traffic: Traffic
    batches: Handover[list[GammaMarket]]  # discover -> fetch
    rows: Handover[Batch]  # fetch (and discover before it), listen -> write
    started_at: str  # the database's form
    known: Sequence[int] = ()  # ids that earlier runs have listed, ascending
    followed: Sequence[int] = ()  # ids of unresolved markets that earlier runs have collected, ascending
    last_full_walk_at: str | None = None
    walked_all: bool = False  # from both ends
    walked_newest: bool = False  # down to known ground: only then are the new ids known without a hole
    listing: str = "top"
    seen: set[int] = field(default_factory=set)  # ids that this run has listed
    filling: list[GammaMarket] = field(default_factory=list)  # the next batch
    listed: int = 0
    rejected: int = 0  # of them, because they were not understood
    all_listed: bool = False
    listing_error: ApiError | None = None
    drift: str | None = None  # what is no longer as we know it
    reason: str | None = None
    snapshots: int = 0
    books_missing: int = 0
    errors: int = 0
    posts: int = 0  # stored, and not there before
    posts_read: int = 0  # and paid for
    posts_complete: bool | None = None  # None: no search was made
    posts_reason: str | None = None  # why there are none, or not all

    def failure(self, market_id: str | None, stage: str, reason: str) -> Failure:
        """Return a row for `failures`, and remember the first one of the markets, or of the posts, as the reason."""
        if stage == "posts":
            self.posts_reason = self.posts_reason or reason
        else:
            self.reason = self.reason or reason
        return Failure(self.run_id, market_id, stage, reason)

    def learn_from(self, error: ApiError) -> None:
        """Remember it if *error* says that the exchange's answers have another shape now."""
        known_shape = error.retryable or isinstance(error, AnswerTooLongError)
        if isinstance(error, MalformedResponseError) and not known_shape:
            self.drift = self.drift or str(error)

    async def record(self, market_ids: Iterable[str | None], stage: str, reason: str) -> None:
        """Have one and the same failure of all *market_ids* stored; None stands for a whole answer."""
        failures = [self.failure(market_id, stage, reason) for market_id in market_ids]
        await self.rows.put(Batch(self.run_id, failures=failures))

    def follows(self, market_id: str | None) -> bool:
        """Return whether *market_id* is a market that stays collected until it resolves."""
        return market_id is not None and is_in(self.followed, int(market_id))

    def is_new(self, market_id: str | None) -> bool:
        """Return whether *market_id* has not been listed before in this run; from now on it has."""
        before = len(self.seen)
        if market_id is not None:
            self.seen.add(int(market_id))
        return market_id is None or len(self.seen) > before

    @property
    def status(self) -> str:
        """What the run comes to if it ends now."""
        with_books = self.snapshots - self.books_missing
        if self.all_listed and self.listing_error is None and with_books >= ENOUGH * self.listed:
            return "complete"
        return "partial" if self.snapshots else "failed"


def chunked(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield *items* in order, *size* at a time."""
    return (items[first : first + size] for first in range(0, len(items), size))


def _first_error(error: BaseException) -> BaseException:
    """Return the error that ended a group of stages."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _by_reason(missing: Mapping[str, str]) -> str:
    """Return in words why the sides of a market are missing, each reason once."""
    sides: dict[str, list[str]] = {}
    for side, why in missing.items():
        sides.setdefault(why, []).append(side)
    return "; ".join(f"{' and '.join(names)}: {why}" for why, names in sides.items())


ADVICE: Final[Mapping[int, str]] = {  # what to do about a status of X
    HTTPStatus.UNAUTHORIZED: "check TWITTER_BEARER_TOKEN; the markets are collected all the same",
    HTTPStatus.PAYMENT_REQUIRED: "the credits are used up: buy some at https://console.x.com",
    HTTPStatus.FORBIDDEN: "the account may not search: see its access and spending limit at https://console.x.com",
    HTTPStatus.TOO_MANY_REQUESTS: "X is asked again when its limit is reset; for a spending cap see https://console.x.com",
}


@cache
def _say_that_posts_are_off() -> None:
    """Say so once per process."""
    log.info("posts on X are not read: TWITTER_BEARER_TOKEN is not set")


def _match_all(posts: Sequence[UnmatchedPost], path: Path, run_id: int, newest: int) -> dict[str, Match]:
    """Return by id what *posts* are about, among the markets of the *newest* snapshots, which are those of a run."""
    with reading(path) as connection:
        index = MarketIndex(Question(*row) for row in connection.execute(QUESTIONS, (run_id, newest)))
    matches = ((post.tweet_id, index.match(post.text, json.loads(post.links or "[]"))) for post in posts)
    return {post_id: match for post_id, match in matches if match}


class AsyncCollector:
    """Take snapshots of Polymarket's open markets.

    Args:
        db_path: the SQLite file; made if it does not exist. Environment: POLYMARKET_DB.
        workers: requests in flight at most, over all hosts.
        max_retries: further attempts for a request that failed.
        timeout: seconds for one attempt, to the last byte of its answer.
        run_timeout: seconds after which a run asks nothing more, and ends with what it has.
        min_volume: USD traded in the last 24 hours, below which a market is left out; 0 takes every open market.
        twitter_max_posts: read on X at most per run, 10 to 10,000; each costs money. Environment: TWITTER_MAX_POSTS,
            else 100. Posts are only read if the environment has a TWITTER_BEARER_TOKEN.
        follow: keep collecting every market that was collected before, whatever its volume, until it resolves, and
            store its outcome.
        progress: called after each stored batch.
        clock: for tests.
        rng: for tests.

    Attributes:
        gamma_limiter: the pace on Gamma; replaceable, and its attributes may be changed. Environment: GAMMA_RATE_LIMIT.
        clob_limiter: the pace on the CLOB. Environment: CLOB_RATE_LIMIT.
        twitter_limiter: the pace on X. Environment: TWITTER_RATE_LIMIT.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(  # noqa: PLR0913  the documented settings
        self,
        db_path: str | os.PathLike[str] = DEFAULT_DB_PATH,
        workers: int = 10,
        max_retries: int = 3,
        timeout: float = 10,
        *,
        run_timeout: float = RUN_TIMEOUT_S,
        min_volume: float = 100_000,
        twitter_max_posts: int | None = None,
        follow: bool = True,
        progress: Callable[[Progress], None] | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Read the environment and check the settings; nothing is opened yet."""
        self.settings = Settings.resolve(
            db_path=db_path,
            workers=workers,
            max_retries=max_retries,
            timeout=timeout,
            run_timeout=run_timeout,
            min_volume=min_volume,
            max_posts=twitter_max_posts,
            environment=os.environ,
        )
        self._clock = clock or Clock()
        self._rng = rng or random.Random()  # noqa: S311  spreads retries, keeps no secret
        self._follows = follow
        self._progress = progress
        self.gamma_limiter = self._limiter(self.settings.gamma)
        self.clob_limiter = self._limiter(self.settings.clob)
        self.twitter_limiter = self._limiter(self.settings.twitter)
        self._twitter_quota = Quota(self._clock)

    def _limiter(self, endpoint: Endpoint) -> RateLimiter:
        return RateLimiter(endpoint.rate_limit, RATE_WINDOW_S, clock=self._clock)

    async def collect_all(self) -> CollectionResult:
        """Take one snapshot of every market that matters, and return what was stored.

        Whatever could not be had is in the table `failures`, and the run goes on without it.

        Raises:
            ApiError: the listing could not be read and nothing was stored.
            DatabaseBusy: another collector holds the database.
            StorageError: the database cannot be used; what was stored before stays.
        """
        started = self._clock.monotonic()
        try:
            async with self._open_run(started) as run:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._discover(run), name="discover")  # pages -> batches of markets
                    tasks.create_task(self._fetch_books(run), name="fetch")  # batches -> rows, `workers` at a time
                    tasks.create_task(self._listen(run), name="listen")  # posts -> rows
                    tasks.create_task(self._write(run), name="write")  # rows -> SQLite, one transaction per batch
                await self._attend(run)  # posts and markets -> hype signals
        except BaseExceptionGroup as group:
            raise _first_error(group) from group
        if run.listing_error and not run.snapshots:
            raise run.listing_error
        return self._result(run, self._clock.monotonic() - started)

    @asynccontextmanager
    async def _open_run(self, started: float) -> AsyncIterator[Run]:
        """Open what a run needs, and close the run with its true state however it ends."""
        settings = self.settings
        async with Database.open(settings.db_path) as database, self._session() as session:
            await self._wait_for_a_fresh_second(database)
            traffic = Traffic()
            polymarket, x = self._apis(session, traffic)
            started_at = sql_time(self._clock.now())
            run = Run(
                run_id=await database.start_run(
                    started_at=started_at,
                    min_volume=settings.min_volume_usd,
                    follow=self._follows or settings.min_volume_usd == 0,
                ),
                started_at=started_at,
                database=database,
                api=polymarket,
                x=x,
                traffic=traffic,
                batches=Handover(HANDOVER_BATCHES),
                rows=Handover(HANDOVER_BATCHES, givers=2),
            )
            try:
                await self._recall(run)
                yield run
            except BaseException as error:
                if not isinstance(_first_error(error), DatabaseBusy):  # it would wait for as long again
                    with suppress(StorageError):  # the first error says it
                        await self._finish(run, started)
                raise
            await self._finish(run, started)

    async def _recall(self, run: Run) -> None:
        """Recall what earlier runs have collected, and what they have listed unless it is time for a full walk."""
        if self._follows:
            run.followed = await run.database.unresolved_ids(run.started_at)
        if self.settings.min_volume_usd:
            return
        run.last_full_walk_at = await run.database.last_full_walk_at()
        now = self._clock.now()
        if sql_time(now - FULL_WALK_EVERY) < (run.last_full_walk_at or "") <= sql_time(now):
            run.known = await run.database.listed_ids()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.settings.workers, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"polymarket-async-collector/{__version__}", "Accept-Encoding": "gzip"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `HttpHost` has a deadline of its own
        )

    def _apis(self, session: aiohttp.ClientSession, traffic: Traffic) -> tuple[PolymarketApi, XApi]:
        settings = self.settings
        wire = Wire(
            session=session,
            slots=asyncio.Semaphore(settings.workers),
            settings=settings,
            traffic=traffic,
            deadline=self._clock.monotonic() + settings.run_timeout_s,
            clock=self._clock,
            rng=self._rng,
        )
        gamma = HttpHost(settings.gamma, self.gamma_limiter, wire)
        clob = HttpHost(settings.clob, self.clob_limiter, wire)
        twitter = HttpHost(settings.twitter, self.twitter_limiter, wire, self._twitter_quota)
        return PolymarketApi(gamma, clob), XApi(twitter, with_usernames=settings.with_usernames)

    async def _wait_for_a_fresh_second(self, database: Database) -> None:
        """Wait until no earlier run has a snapshot of this second or a later one: a market has one row per second.

        A clock that was set back by more than a moment is not waited for.
        """
        last_at = await database.last_snapshot_at()
        while last_at and (now := self._clock.now()) and sql_time(now) <= last_at <= sql_time(now + MOMENT):
            await self._clock.sleep(1 - now.microsecond / 1e6)

    async def _discover(self, run: Run) -> None:
        """List the markets and hand them on in batches."""
        if self.settings.min_volume_usd:
            await self._list_top(run)
        elif run.known:
            await self._list_known(run)
        else:
            await self._list_all(run)
        # a listing by volume that broke off costs those that are known nothing; of the whole exchange it would say
        # nothing of those that are not in it
        if self._follows and (run.listing_error is None or self.settings.min_volume_usd):
            await self._follow(run)
        if run.filling:
            await run.batches.put(run.filling)
        run.all_listed = True
        if run.listed and run.listed == run.rejected:
            what = f"none of {run.listed} markets is understood, the first: {run.reason}"
            run.listing_error = self._bad_listing(what)
            run.learn_from(run.listing_error)
        await run.batches.close()

    def _bad_listing(self, what: str) -> MalformedResponseError:
        return MalformedResponseError(what, self.settings.gamma.url + MARKETS_PATH)

    async def _list_top(self, run: Run) -> None:
        """List the most traded markets down to the threshold."""

        def below_threshold(page: MarketPage) -> bool:
            return self._is_below_threshold(page, first=not run.seen)

        run.listing = "top"
        await self._walk(run, order="volume24hr", ascending=False, enough=below_threshold)

    def _is_below_threshold(self, page: MarketPage, *, first: bool) -> bool:
        """Return whether a listing by volume has come to markets that are traded too little, or not at all."""
        volumes = [market.volume_24h for market in page.markets if market.volume_24h is not None]
        if not volumes:
            if first and page.markets:
                msg = "the listing has no volume24hr"
                raise self._bad_listing(msg)
            return True
        if volumes[0] < volumes[-1]:
            msg = "the listing is not in the order of volume24hr"
            raise self._bad_listing(msg)
        return volumes[-1] < self.settings.min_volume_usd

    async def _list_all(self, run: Run) -> None:
        """List every open market from both ends at once, until the walks meet.

        In the order of ids, markets that come or go meanwhile move no other from its place, so what lies behind a walk
        is complete.
        """
        reached = {True: float("-inf"), False: float("inf")}  # by the walk upwards and by the one downwards

        async def walk(*, ascending: bool) -> bool:
            furthest = max if ascending else min

            def met(page: MarketPage) -> bool:
                numbers = self._ordered_numbers(page, ascending=ascending)
                reached[ascending] = furthest(numbers, default=reached[ascending])
                return reached[True] >= reached[False]

            return await self._walk(run, order="id", ascending=ascending, enough=met)

        run.listing = "full"
        async with asyncio.TaskGroup() as tasks:
            walks = [tasks.create_task(walk(ascending=ascending), name="walk") for ascending in (True, False)]
        if any(task.result() for task in walks):  # one walk that came through has seen what the other did not
            run.listing_error = None
            run.walked_all = True

    async def _list_known(self, run: Run) -> None:
        """List every open market: new ones from the newest down to known ground, known ones by id, in parallel."""

        def known_ground(page: MarketPage) -> bool:
            numbers = self._ordered_numbers(page, ascending=False)
            return bool(numbers) and all(number < run.known[-1] and is_in(run.known, number) for number in numbers)

        run.listing = "known"
        async with asyncio.TaskGroup() as tasks:
            newest = self._walk(run, order="id", ascending=False, enough=known_ground)
            walk = tasks.create_task(newest, name="walk")
            tasks.create_task(self._in_parallel(self._take_known, run, run.known), name="ask")
        run.walked_newest = walk.result()
        if len(run.seen) < FEWEST_KNOWN * len(run.known):
            what = f"lists only {len(run.seen)} markets, of {len(run.known)} that are known"
            run.listing_error = self._bad_listing(what)
            await run.record([None], "list", what)

    def _ordered_numbers(self, page: MarketPage, *, ascending: bool) -> list[int]:
        """Return the ids of *page*, which must be in order: how far a walk has come is read off them."""
        numbers = page.numbers
        if numbers != sorted(numbers, reverse=not ascending):
            msg = "the listing is not in the order of id"
            raise self._bad_listing(msg)
        return numbers

    async def _walk(self, run: Run, *, order: str, ascending: bool, enough: Callable[[MarketPage], bool]) -> bool:
        """Take the pages of a listing until its end, or until *enough* says so; return whether that was reached."""
        pages = run.api.iter_market_pages(order=order, ascending=ascending)
        before: set[int] = set()
        try:
            async with aclosing(pages):
                async for page in pages:
                    last = enough(page)  # first of all, for it refuses a page that is not in order
                    numbers = set(page.numbers)
                    if numbers and before >= numbers and page.next_cursor is not None:
                        msg = "the listing repeats itself"
                        raise self._bad_listing(msg)
                    before = numbers
                    await self._take(run, page)
                    if last:
                        return True
        except ApiError as error:
            log.warning("a listing ended early: %s", error)
            run.listing_error = error
            run.learn_from(error)
            await run.record([None], "list", str(error))
            return False
        return True

    async def _in_parallel(
        self, ask: Callable[[Run, Sequence[int]], Awaitable[None]], run: Run, market_ids: Sequence[int]
    ) -> None:
        """Let *ask* see to *market_ids*, 100 to a request and several requests at a time."""
        chunks = iter(chunked(market_ids, PAGE_SIZE))

        async def work() -> None:
            for chunk in chunks:
                await ask(run, chunk)

        async with asyncio.TaskGroup() as tasks:
            for number in range(self.settings.workers):
                tasks.create_task(work(), name=f"ask {number}")

    async def _take_known(self, run: Run, market_ids: Sequence[int]) -> None:
        """Take those of *market_ids* that are open."""
        try:
            page = await run.api.fetch_markets(market_ids)
        except ApiError as error:
            log.warning("%d known markets could not be listed: %s", len(market_ids), error)
            run.learn_from(error)
            run.listed += len(market_ids)
            run.seen.update(market_ids)
            await run.record(map(str, market_ids), "list", str(error))
        else:
            await self._take(run, page)

    async def _take(self, run: Run, page: MarketPage) -> None:
        """Hand on the markets of *page* that are to be collected."""
        rejected = [bad for bad in page.rejected if run.is_new(bad.id) and self._may_matter(bad, run)]
        wanted = [
            market
            for market in page.markets
            if (market.is_open or not run.follows(market.market_id))  # what is followed and not open is settled later
            and run.is_new(market.market_id)
            and self._matters(market, run)
        ]
        run.listed += len(rejected) + len(wanted)
        run.rejected += len(rejected)
        run.filling += wanted
        if rejected:
            await run.rows.put(
                Batch(run.run_id, failures=[run.failure(bad.id, "list", bad.reason) for bad in rejected])
            )
        while len(run.filling) >= BATCH_MARKETS:
            batch, run.filling = run.filling[:BATCH_MARKETS], run.filling[BATCH_MARKETS:]
            await run.batches.put(batch)

    def _matters(self, market: GammaMarket, run: Run) -> bool:
        traded_enough = (market.volume_24h or 0) >= self.settings.min_volume_usd
        return market.is_open and (traded_enough or run.follows(market.market_id))

    def _may_matter(self, bad: Rejected, run: Run) -> bool:
        traded_enough = bad.volume_24h is None or bad.volume_24h >= self.settings.min_volume_usd
        return bad.is_open and (traded_enough or run.follows(bad.id))

    async def _follow(self, run: Run) -> None:
        """Take the markets of earlier runs that are still open and not listed this time; find out how others ended."""
        unlisted = array("q", (market_id for market_id in run.followed if market_id not in run.seen))
        await self._in_parallel(self._take_or_settle, run, unlisted)

    async def _take_or_settle(self, run: Run, market_ids: Sequence[int]) -> None:
        """Take those of *market_ids* that are open, and find out how the others have ended."""
        if self.settings.min_volume_usd:  # else what is not listed is not open
            await self._take_known(run, market_ids)
        closed = [market_id for market_id in market_ids if market_id not in run.seen]
        if closed:
            await self._settle(run, closed)

    async def _settle(self, run: Run, market_ids: Sequence[int]) -> None:
        """Find out how the markets *market_ids*, which are not open, have ended."""
        try:
            page = await run.api.fetch_markets(market_ids, closed=True)
        except ApiError as error:
            run.learn_from(error)
            await run.record(map(str, market_ids), "outcome", str(error))
            return
        ended = {market.market_id: market for market in page.markets}
        odd = {bad.id for bad in page.rejected}
        batch = Batch(run.run_id, failures=[run.failure(bad.id, "outcome", bad.reason) for bad in page.rejected])
        for market_id in map(str, market_ids):
            market = ended.get(market_id)
            outcome = None if market is None else await self._outcome(run, market, batch)
            if market and outcome:
                batch.resolutions.append(Resolution(outcome, from_iso(market.closed_time), market_id))
            else:
                longest = LONGEST_ASK_MINUTES if market or market_id in odd else LONGEST_SEARCH_MINUTES
                batch.undecided.append(Undecided(run.started_at, longest, market_id))
            if market is None and market_id not in odd:
                reason = "it is neither among the open markets nor among the closed ones"
                batch.failures.append(run.failure(market_id, "outcome", reason))
        await run.rows.put(batch)

    async def _outcome(self, run: Run, market: GammaMarket, batch: Batch) -> str | None:
        """Return how *market* has ended: Gamma names a winner, or the CLOB does, or it is a split, or nobody knows."""
        outcome = outcome_of(market)
        if outcome not in {None, SPLIT}:
            return outcome
        if not market.closed or not market.condition_id:
            return None
        try:
            return settled_by(market, await run.api.fetch_clob_market(market.condition_id))
        except ApiError as error:
            batch.failures.append(run.failure(market.market_id, "outcome", str(error)))
            return None

    async def _fetch_books(self, run: Run) -> None:
        """Turn batches of markets into rows, several at a time."""

        async def work() -> None:
            async for markets in run.batches:
                await run.rows.put(await self._snapshot(markets, run))

        async with asyncio.TaskGroup() as tasks:
            for number in range(self.settings.workers):
                tasks.create_task(work(), name=f"fetch {number}")
        await run.rows.close()

    async def _snapshot(self, markets: list[GammaMarket], run: Run) -> Batch:
        """Fetch the books of *markets* and build their rows; without a book a row has NULL in its place."""
        books: dict[str, OrderBook] = {}
        reasons: dict[str | None, str] = {}
        otherwise, failed = "the exchange has no book", False
        try:
            books, rejected = await run.api.fetch_books([token for market in markets for token in market.tokens])
            reasons = {bad.id: bad.reason for bad in rejected}
            for error in {bad.error for bad in rejected if bad.error}:
                run.learn_from(error)
        except ApiError as error:
            log.warning("no books for %d markets: %s", len(markets), error)
            run.learn_from(error)
            otherwise, failed = str(error), True
        now = sql_time(self._clock.now())
        batch = Batch(run.run_id)
        for market in markets:
            yes, no = (books.get(token) for token in market.tokens)
            batch.markets.append(Market.from_wire(market, seen_at=now))
            batch.snapshots.append(Snapshot.from_wire(market, yes, no, run_id=run.run_id, received_at=now))
            missing = {
                side: reasons.get(token, reasons.get(None, otherwise))
                for side, token in zip(("YES", "NO"), market.tokens, strict=True)
                if token not in books
            }
            if missing and (failed or market.has_book or not reasons.keys().isdisjoint(market.tokens)):
                run.books_missing += 1
                batch.failures.append(run.failure(market.market_id, "book", _by_reason(missing)))
        return batch

    async def _listen(self, run: Run) -> None:
        """Hand on what has been said on X since the last search; what X refuses costs the markets nothing."""
        if self.settings.twitter.token is None:
            _say_that_posts_are_off()
        else:
            run.posts_complete = False
            since_id = await run.database.newest_post_id()
            try:
                run.posts_complete = await self._read_posts(run, since_id)
            except ApiError as error:
                next_time = (
                    "older posts are left out" if run.posts_read else "the next run goes on where the last one stopped"
                )
                reason = f"{error}; {ADVICE.get(error.status or 0, next_time)}"
                log.warning("no posts: %s", reason)
                await run.record([None], "posts", reason)
        await run.rows.close()

    async def _read_posts(self, run: Run, since_id: str | None) -> bool:
        """Hand on the posts since *since_id*, page by page; return whether none of them was left out."""
        newest_id: str | None = None
        page: PostPage | None = None
        try:
            async with aclosing(run.x.iter_post_pages(since_id=since_id, at_most=self.settings.max_posts)) as pages:
                async for page in pages:
                    newest_id = newest_id or page.newest_id
                    await self._take_posts(run, page, newest_id)
        except RequestRejectedError as error:
            if since_id is None or page or "since_id" not in error.message:
                raise
            log.warning("the last search was more than a week ago, posts since then are missing: %s", error)
            await self._read_posts(run, None)
            return False
        return page is not None and page.next_token is None and run.posts_reason is None

    async def _take_posts(self, run: Run, page: PostPage, newest_id: str | None) -> None:
        """Hand on the posts of *page*; once they are stored, the next search begins after *newest_id*."""
        run.posts_read += len(page.posts) + len(page.rejected)
        now = sql_time(self._clock.now())
        posts = [
            Post.from_wire(
                post, sentiment=tone(post.text), usernames=page.usernames, run_id=run.run_id, received_at=now
            )
            for post in page.posts
        ]
        reasons = [bad.reason for bad in page.rejected] + ([page.problem] if page.problem else [])
        failures = [run.failure(None, "posts", reason) for reason in reasons]
        await run.rows.put(Batch(run.run_id, posts=posts, failures=failures, newest_post_id=newest_id))

    async def _attend(self, run: Run) -> None:
        """Find out which markets the newest posts are about, and store how much attention each market has."""
        posts = await run.database.unmatched_posts(run.run_id, self._clock.now())
        if posts and run.snapshots:
            matches = await asyncio.to_thread(_match_all, posts, run.database.absolute_path, run.run_id, run.snapshots)
            if matches:
                await run.database.save_matches(matches)
        now = self._clock.now()
        heard = await run.database.attention(now)
        signals = [signal_of(attention, timestamp=sql_time(now), run_id=run.run_id) for attention in heard]
        if signals:
            await run.database.save_signals(signals)

    async def _write(self, run: Run) -> None:
        """Store the rows, a transaction per batch."""
        async for batch in run.rows:
            await self._store(batch, run)
            if self._progress:
                self._progress(Progress(run.listed, run.snapshots, run.errors, run.all_listed))

    @uninterrupted
    async def _store(self, batch: Batch, run: Run) -> None:
        """Store *batch* and count it, which belongs together."""
        saved = await run.database.save(batch)
        run.snapshots += saved.snapshots
        run.posts += saved.posts
        run.errors += len(batch.failures) + len(batch.snapshots) - saved.snapshots

    @uninterrupted
    async def _finish(self, run: Run, started: float) -> None:
        """Write down what the run has come to; snapshots and errors are in its row since they were stored."""
        if run.walked_all or run.walked_newest:
            await run.database.save_ids(run.seen, instead=run.walked_all)
        columns = {
            "finished_at": sql_time(self._clock.now()),
            "status": run.status,
            "markets_listed": run.listed,
            "books_missing": run.books_missing,
            "requests": run.traffic.requests,
            "retries": run.traffic.retries,
            "rate_limit_hits": run.traffic.rate_limit_hits,
            "listing": run.listing,
            "tweets_complete": run.posts_complete,
            "full_walk_at": run.started_at if run.walked_all else run.last_full_walk_at,
            "duration": self._clock.monotonic() - started,
        }
        await run.database.finish_run(run.run_id, columns)
        log.info("run %d %s: %d snapshots, %d errors, %s", run.run_id, run.status, run.snapshots, run.errors, columns)

    def _result(self, run: Run, duration: float) -> CollectionResult:
        return CollectionResult(
            markets=run.snapshots,
            snapshots=run.snapshots,
            tweets=run.posts,
            duration=duration,
            stats=Stats(
                markets_fetched=run.listed,
                snapshots_saved=run.snapshots,
                tweets_fetched=run.posts_read,
                errors=run.errors,
                retries=run.traffic.retries,
                rate_limit_hits=run.traffic.rate_limit_hits,
            ),
            run_id=run.run_id,
            status=run.status,
            books_missing=run.books_missing,
            reason=run.reason,
            drift=run.drift,
            tweets_reason=run.posts_reason,
            requests=run.traffic.requests,
            database=str(self.settings.db_path),
        )


# --- Schedule ---------------------------------------------------------------------------------------------------------

LONGEST_NAP_S: Final = 30.0  # so that a wake-up from suspension or a clock that was set is noticed
TOO_SOON: Final = 0.1  # of an interval: a run that began so shortly before a tick stands for it


class Tick(NamedTuple):
    """How a run of the schedule went, and what comes next."""

    result: CollectionResult | None
    error: Exception | None
    next_run: datetime
    missed: int  # ticks without a run, since the schedule began


def next_tick(after_s: float, interval_s: float) -> float:
    """Return the first multiple of *interval_s* after *after_s*, both in seconds of Unix time."""
    return (math.floor(after_s / interval_s) + 1) * interval_s


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what *work* returns; once *stop* is set, cancel it, let it end, and return None."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
    return None if working.cancelled() else working.result()


class Schedule:
    """Aims at the multiples of an interval by the wall clock, and never catches up on what was missed.

    The wall clock only says where the next tick is; waiting goes by a clock that does not jump, in short naps. A tick
    that passes during a run, in suspension or when the clock is set forward is missed, and counted.
    """

    def __init__(self, interval_s: float, clock: Clock, on_nap: Callable[[], None]) -> None:
        """Aim at multiples of *interval_s*; *on_nap* is called after each nap."""
        self.missed = 0
        self._interval_s = interval_s
        self._clock = clock
        self._on_nap = on_nap

    def tick_after(self, started_s: float) -> float:
        """Return the next tick for a run that began at *started_s* and has just ended."""
        earliest = started_s + TOO_SOON * self._interval_s
        tick = next_tick(max(self._now_s(), earliest), self._interval_s)
        self.missed += round((tick - next_tick(earliest, self._interval_s)) / self._interval_s)
        return tick

    async def wait_for(self, tick: float, stop: asyncio.Event) -> None:
        """Wait until *tick*, or until *stop* is set; a clock that is set back brings a nearer tick."""
        while not stop.is_set() and (left_s := tick - self._now_s()) > 0:
            if left_s > self._interval_s * (1 + TOO_SOON):
                tick = next_tick(self._now_s(), self._interval_s)
            else:
                await unless_stopped(stop, self._clock.sleep(min(left_s, LONGEST_NAP_S)))
                self._on_nap()
        if not stop.is_set():
            self.missed += math.floor((self._now_s() - tick) / self._interval_s + TOO_SOON)

    def _now_s(self) -> float:
        return self._clock.now().timestamp()


async def _run_once(collector: AsyncCollector, stop: asyncio.Event) -> tuple[CollectionResult | None, Exception | None]:
    """Return the result of one run, or the error that ended it, or neither if it was stopped."""
    try:
        return await unless_stopped(stop, collector.collect_all()), None
    except CollectorError as error:
        log.error("a run failed: %s", error)  # noqa: TRY400  the text says it all
        return None, error
    except Exception as error:  # a bug must not end months of collecting
        log.exception("a run failed")
        return None, error


async def continuous_collection(  # noqa: PLR0913  a collector's settings and the schedule's
    workers: int = 10,
    interval_minutes: float = 15,
    *,
    stop: asyncio.Event | None = None,
    on_tick: Callable[[Tick], None] | None = None,
    heartbeat: Callable[[], None] | None = None,
    clock: Clock | None = None,
    **settings: Any,  # noqa: ANN401  those of AsyncCollector
) -> None:
    """Collect at once, and then at every multiple of the interval (UTC): at :00, :15, :30 and :45 by default.

    A run that outlasts its interval makes the ticks that pass meanwhile be skipped. A run that fails is logged, and the
    next tick comes all the same. Signal handlers are the caller's business.

    Args:
        workers: as in `AsyncCollector`.
        interval_minutes: between two ticks; may be a fraction.
        stop: ends everything soon after it is set; the run in progress is marked as what it is.
        on_tick: called after each run.
        heartbeat: called after each stored batch and each nap of 30 s at most, for a watchdog.
        clock: for tests.
        settings: further arguments of `AsyncCollector`; without a `run_timeout` a run ends after 10 minutes or an
            interval, whichever is shorter.

    Raises:
        ConfigError: a value cannot work.
    """
    clock = clock or Clock()
    stop = stop or asyncio.Event()
    beat = heartbeat or (lambda: None)
    tell = settings.pop("progress", None) or (lambda _: None)
    interval_s = minutes("interval_minutes", interval_minutes) * 60
    settings.setdefault("run_timeout", min(RUN_TIMEOUT_S, interval_s))

    def on_progress(progress: Progress) -> None:
        beat()
        tell(progress)

    collector = AsyncCollector(workers=workers, clock=clock, progress=on_progress, **settings)
    schedule = Schedule(interval_s, clock, beat)
    while not stop.is_set():
        started_s = clock.now().timestamp()
        result, error = await _run_once(collector, stop)
        tick = schedule.tick_after(started_s)
        if on_tick:
            on_tick(Tick(result, error, datetime.fromtimestamp(tick, UTC), schedule.missed))
        await schedule.wait_for(tick, stop)


class Status(TypedDict):
    """How a database is doing."""

    healthy: bool  # the newest complete run is younger than two intervals
    last_complete_at: str | None  # when it began
    age: float | None  # seconds since then
    missed_ticks: int  # of the last day, or since the very first run
    runs: list[RunSummary]  # the newest first
    file_bytes: int
    wal_bytes: int
    database: str


def missed_ticks(starts: Sequence[float], since: float, now: float, interval_s: float) -> int:
    """Return how many ticks after *since* have passed without one of *starts*, all in seconds of Unix time."""
    ran = {math.floor(start / interval_s + TOO_SOON) for start in starts}
    first = math.floor(since / interval_s + TOO_SOON) + 1
    return sum(tick not in ran for tick in range(first, math.floor(now / interval_s)))  # the newest may still come


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        msg = f"a run began at {printable(text)!r}, which is no time"
        raise StorageError(msg) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def read_status(
    db_path: str | os.PathLike[str] = DEFAULT_DB_PATH, interval_minutes: float = 15, *, clock: Clock | None = None
) -> Status:
    """Return how the collection into *db_path* is going, without writing to it.

    Raises:
        ConfigError: *interval_minutes* is no number above 0.
        StorageError: the database cannot be read.
    """
    path = database_path(db_path, os.environ)
    interval_s = minutes("interval_minutes", interval_minutes) * 60
    now = (clock or Clock()).now()
    with reading(path) as connection:
        connection.row_factory = sqlite3.Row
        runs = [RunSummary(**row) for row in connection.execute(RECENT_RUNS)]  # type: ignore[typeddict-item]
        (last_complete_at,) = connection.execute(LAST_COMPLETE).fetchone() or (None,)
        (first_start,) = connection.execute(FIRST_START).fetchone()
        since = max(sql_time(now - timedelta(days=1)), first_start or sql_time(now))
        starts = [row[0] for row in connection.execute(STARTS_SINCE, (since,))]
        file_bytes, wal_bytes = (_size(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))
    age = None if last_complete_at is None else (now - _moment(last_complete_at)).total_seconds()
    return Status(
        healthy=age is not None and -MOMENT.total_seconds() <= age < 2 * interval_s,
        last_complete_at=last_complete_at,
        age=age,
        missed_ticks=missed_ticks(
            [_moment(start).timestamp() for start in starts], _moment(since).timestamp(), now.timestamp(), interval_s
        ),
        runs=runs,
        file_bytes=file_bytes,
        wal_bytes=wal_bytes,
        database=str(path),
    )


# --- Benchmark --------------------------------------------------------------------------------------------------------

SAMPLE_MARKETS: Final = 100  # that the old way is measured on at most: it takes minutes for a thousand


class Measurement(TypedDict):
    """What one way of collecting took."""

    duration: float  # seconds
    markets: int
    markets_per_second: float
    requests: int
    peak_memory_mb: float | None  # of the process; None where the system does not tell


class BenchmarkResult(TypedDict):
    """Two ways of collecting the same markets."""

    one_by_one: Measurement
    async_collector: Measurement
    speed_up: float  # in markets per second
    same_markets: bool  # stored by both, as far as the sample goes
    sample: int | None  # markets that the old way was measured on; None: all of them


class _OneByOne(AsyncCollector):
    """The old way: page after page, then one request per token and one commit per market; nothing overlaps."""

    async def collect_all(self) -> CollectionResult:
        started = self._clock.monotonic()
        async with self._open_run(started) as run:
            async for market in self._sample(run):
                yes, no = [await run.api.fetch_book(token) for token in market.tokens]
                now = sql_time(self._clock.now())
                row = Snapshot.from_wire(market, yes, no, run_id=run.run_id, received_at=now)
                saved = await run.database.save(Batch(run.run_id, [Market.from_wire(market, seen_at=now)], [row]))
                run.snapshots += saved.snapshots
        return self._result(run, self._clock.monotonic() - started)

    async def _sample(self, run: Run) -> AsyncIterator[GammaMarket]:
        order = "volume24hr" if self.settings.min_volume_usd else "id"
        pages = run.api.iter_market_pages(order=order, ascending=False)
        async with aclosing(pages):
            async for page in pages:
                for market in page.markets:
                    if run.listed == SAMPLE_MARKETS:
                        return
                    if self._matters(market, run):
                        run.listed += 1
                        yield market
                if self.settings.min_volume_usd and self._is_below_threshold(page, first=not run.listed):
                    return


def _peak_memory_mb() -> float | None:
    try:
        import resource  # noqa: PLC0415  Unix only
    except ImportError:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _measure(kind: type[AsyncCollector], settings: Mapping[str, Any]) -> Measurement:
    """Collect once, in a process of its own, and return what that took; posts cost money and are left out."""
    os.environ.pop("TWITTER_BEARER_TOKEN", None)
    result = asyncio.run(kind(**settings).collect_all())
    return Measurement(
        duration=result["duration"],
        markets=result["markets"],
        markets_per_second=result["markets"] / max(result["duration"], 1e-9),
        requests=result["requests"],
        peak_memory_mb=_peak_memory_mb(),
    )


def _stored_ids(path: Path) -> set[str]:
    with reading(path) as connection:
        return {row[0] for row in connection.execute(STORED_IDS)}


def benchmark(**settings: Any) -> BenchmarkResult:  # noqa: ANN401  those of AsyncCollector
    """Collect the same markets in the old way and in this module's, and return what each took.

    Each way has a process and a temporary database of its own; the limits are the same.

    Args:
        settings: arguments of `AsyncCollector`, but for `db_path`.

    Raises:
        CollectorError: one of the two could not collect.
    """
    with TemporaryDirectory() as folder:
        measurements: list[Measurement] = []
        stored: list[set[str]] = []
        for kind in (_OneByOne, AsyncCollector):
            path = Path(folder) / f"{kind.__name__}.db"
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                measurements.append(process.submit(_measure, kind, settings | {"db_path": path}).result())
            stored.append(_stored_ids(path))
    old, new = measurements
    if not (old["markets"] and new["markets"]):
        msg = f"{settings}: there is no market to measure"
        raise ConfigError(msg)
    sampled = old["markets"] < new["markets"]
    return BenchmarkResult(
        one_by_one=old,
        async_collector=new,
        speed_up=new["markets_per_second"] / old["markets_per_second"],
        same_markets=stored[0] <= stored[1] if sampled else stored[0] == stored[1],
        sample=old["markets"] if sampled else None,
    )
