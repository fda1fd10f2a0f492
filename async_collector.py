"""Collect Polymarket prices, order books and attention into SQLite, fast and without inventing anything.

Markets come from Gamma (``https://gamma-api.polymarket.com``), order books from the CLOB
(``https://clob.polymarket.com``), posts about them from X (``https://api.x.com``) if there is a token. One run stores
one row per market in ``snapshots``; what the markets are is in ``markets``, how a run went in ``runs``, everything that
could not be stored in ``failures``, posts in ``tweets`` and the hype scores in ``hype_signals``. Other programs may
read the file at any time.

    import asyncio
    from async_collector import AsyncCollector

    result = asyncio.run(AsyncCollector("polymarket_data.db").collect_all())
    print(result["snapshots"], "snapshots in", result["duration"], "seconds")

How a price gets from the exchange into its row:

    Discovery                    which markets: pages of `GammaMarket`, handed on in batches of 250
    AsyncCollector._snapshot     one batch: fetches its books, builds its rows
      PolymarketApi.fetch_books  one request per batch
        HttpHost.fetch_divided   in halves where the host refuses the request or fails
        HttpHost.fetch           rate limit, retries, limits on size and time; the body goes to
        decode_books             -> {token_id: OrderBook}
      Snapshot.from_wire         GammaMarket + the books of YES and NO -> the row
    Database.save                one transaction per batch

The module reads from top to bottom: a section uses names of the sections above it. Posts on X come last, and the
collector runs them as a stage of their own; whoever cares for prices alone may skip them. Signals are left to the
scripts: on SIGTERM they set the `stop` of `continuous_collection`, or cancel the one run.
"""

from __future__ import annotations

import asyncio
import errno
import html
import ipaddress
import itertools
import json
import logging
import math
import os
import random
import re
import sqlite3
import threading
import time
import unicodedata
from array import array
from base64 import b64encode
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache, partial, wraps
from http import HTTPStatus
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NamedTuple, ParamSpec, Self, TypedDict, TypeVar
from urllib.parse import quote, unquote
from urllib.request import getproxies, proxy_bypass

import aiohttp
import aiosqlite
import filelock
import msgspec
from yarl import URL

__all__ = [
    "AccessDeniedError", "AnswerTooLongError", "ApiError", "AsyncCollector", "Clock", "CollectionResult",
    "CollectorError", "ConfigError", "DatabaseBusy", "MalformedResponseError", "MarketIndex", "NetworkError",
    "Progress", "Question", "RateLimitedError", "RateLimiter", "RequestRejectedError", "ServerError", "StorageError",
    "Tick", "UnknownNamesError", "continuous_collection", "hype_score", "sentiment", "tone", "velocity",
]  # fmt: skip

__version__ = "0.3.0"

log = logging.getLogger("async_collector")
log.addHandler(logging.NullHandler())  # a library says nothing until its program asks for it

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
K = TypeVar("K")
Body = bytes | bytearray  # of an answer


# --- Errors -----------------------------------------------------------------------------------------------------------


class CollectorError(Exception):
    """Anything that this module raises on purpose.

    Attributes:
        exit_code: what a command that ends with it returns. A new one is a class with it, and a line in the tables of
            README.md and docs/operations.md. Codes of runs without an error stand in async-collector.py.
    """

    exit_code: ClassVar[int] = 1


class ConfigError(CollectorError, ValueError):
    """A setting has a value that cannot work. The text names the setting, the value and the allowed form."""

    exit_code = 78


class UnknownNamesError(ConfigError):
    """The exchange has none of the markets, events, series and tags that were named, and nothing else was collected."""


class StorageError(CollectorError):
    """The database cannot be opened, read or written. The text names the file.

    Attributes:
        lasting: whether somebody has to change the file or its folder. A locked file, a full disk, an error of the
            disk and a missing file may pass by themselves.
    """

    exit_code = 74

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class DatabaseBusy(StorageError):  # noqa: N818  a state of the file, not a defect
    """The database is locked by another collector, or by a program that kept writing for 30 s."""

    exit_code = 75


MAX_SHOWN_CHARS: Final = 500  # of what others send, in an error
_LOGIN: Final = re.compile(r'(?<=//)[^\s"<>]{0,1000}@')  # user and password of an address in a text


def printable(text: str) -> str:
    """Return *text* for a terminal or a log: one line, control characters escaped, cut after 500 characters."""
    shown = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text)} characters)"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)


class ApiError(CollectorError):
    """A request to the exchange or to X failed. Its text is safe to show.

    Attributes:
        message: what happened, without logins; `str` escapes it and cuts it off.
        url: the address without the query.
        status: the HTTP status, or None where there was no answer.
        retry_after: seconds that the server asked to wait, or None.
        retryable: whether the same request may succeed later. The class has the default.
        billable: whether a host that charges for its answers may charge for this one.
    """

    exit_code = 69
    retryable: bool = False
    billable: bool = True

    def __init__(
        self,
        message: str,
        url: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        *,
        retryable: bool | None = None,
    ) -> None:
        self.message = _LOGIN.sub("***@", message)
        super().__init__(self.message)
        self.url = url
        self.status = status
        self.retry_after = retry_after
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.url}: {printable(self.message)}"

    @property
    def too_large(self) -> bool:
        """Whether a smaller request may succeed."""
        return self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or "Payload exceeds the limit" in self.message


class NetworkError(ApiError):
    """No complete answer: name not resolved, not connected, connection lost, or too slow."""

    retryable = True


class RateLimitedError(ApiError):
    """429, or a request not sent because a 429 would follow."""

    exit_code = 75
    retryable = True


class ServerError(ApiError):
    """The server failed or is overloaded: 5xx, 408, 425, or a 200 whose body is an error object."""

    retryable = True
    billable = False


class RequestRejectedError(ApiError):
    """Another 3xx or 4xx: the same request will be refused again."""

    exit_code = 65


class AccessDeniedError(RequestRejectedError):
    """401, 403, 451 or a bot check. The host is not asked again in the run."""

    exit_code = 69


class MalformedResponseError(ApiError):
    """2xx, but not the documented shape. The text has the path of the first difference."""

    exit_code = 65


class AnswerTooLongError(MalformedResponseError):
    """2xx, but larger than any true answer; the rest was not read or not decoded."""

    too_large = True


# --- Configuration ----------------------------------------------------------------------------------------------------

# A function that checks a setting raises a `ConfigError` that names the setting.

# Both are recognised by identity, so they are objects of their own, which no literal is. Unlike explicit arguments of
# the same value, the path gives way to POLYMARKET_DB, and the volume (USD in 24 hours) does not hold for what is named.
DEFAULT_DB_PATH: Final = b"polymarket_data.db".decode()
DEFAULT_MIN_VOLUME: Final[float] = int("100_000")

# every variable that is read, but for those of proxies, and its default
ENVIRONMENT: Final[Mapping[str, str]] = {
    "POLYMARKET_DB": DEFAULT_DB_PATH,
    "GAMMA_API": "https://gamma-api.polymarket.com",
    "GAMMA_RATE_LIMIT": "10",  # requests per second
    "CLOB_API": "https://clob.polymarket.com",
    "CLOB_RATE_LIMIT": "20",
    "TWITTER_API": "https://api.x.com",
    "TWITTER_RATE_LIMIT": "5",
    "TWITTER_BEARER_TOKEN": "",  # without it no posts are read
    "TWITTER_MAX_POSTS": "100",  # per run
    "TWITTER_USERNAMES": "0",  # 1: buy the authors' names as well
}
RUN_TIMEOUT_S: Final = 600.0
MIN_PAGE_POSTS: Final = 10  # X sends no smaller page
MAX_POSTS: Final = 10_000
MAX_DEPTH: Final = 1_000_000  # levels


def read_variables(environment: Mapping[str, str], defaults: Mapping[str, str] = ENVIRONMENT) -> dict[str, str]:
    """Return the values of the variables in *defaults*, stripped, and without quotation marks around all of one.

    `docker --env-file` and others keep the marks of a line as it stands. An empty variable has its default. One of
    blanks alone is kept as it is, and fails its check.
    """
    values: dict[str, str] = {}
    for name, default in defaults.items():
        value = environment.get(name) or default
        marked = re.fullmatch(r"""\s*(["'])(.*)\1\s*""", value, re.DOTALL)
        value = (marked[2] if marked else value) or default
        values[name] = value = value.strip() or value
        if '"' in value or "'" in (value if marked else value[:1] + value[-1:]):  # not shown: it may be a secret
            raise ConfigError(f"{name}: must have no quotation marks but for a pair around all of it")
    return values


def file_name(name: str, value: str | os.PathLike[str]) -> str:
    """Return *value* if it can be the name of a file."""
    text = os.fspath(value)
    if not text.strip() or text == ":memory:" or "\0" in text:
        raise ConfigError(f"{name}={text!r}: must be the name of a file, for what is collected has to be stored in one")
    return text


def database_path(db_path: str | os.PathLike[str], environment: Mapping[str, str]) -> Path:
    """Return where the database is: the explicit path, else that of POLYMARKET_DB, else the default."""
    if db_path is DEFAULT_DB_PATH:
        return Path(file_name("POLYMARKET_DB", read_variables(environment)["POLYMARKET_DB"]))
    return Path(file_name("db_path", db_path))


def whole_number(name: str, value: object, *, at_least: int = 1, at_most: int = 1_000) -> int:
    """Return *value* as an int from *at_least* to *at_most*."""
    with suppress(ValueError):
        number = int(str(value))
        if at_least <= number <= at_most:
            return number
    raise ConfigError(f"{name}={value!r}: must be a whole number from {at_least} to {at_most}")


def finite_number(name: str, value: object, *, positive: bool = False, at_most: float = 1e18) -> float:
    """Return *value* as a float from 0, or above 0 if it must be *positive*, to *at_most*."""
    with suppress(ValueError):
        number = float(str(value))
        if 0 <= number <= at_most and not (positive and number == 0):
            return number
    least = "above 0" if positive else "of at least 0"
    raise ConfigError(f"{name}={value!r}: must be a number {least} and at most {at_most:,g}")


def minutes(name: str, value: object) -> float:
    """Return *value* as an interval in minutes, of a year at most."""
    return finite_number(name, value, positive=True, at_most=366 * 24 * 60)


def _http_url(name: str, value: str, *, may_have_login: bool = False) -> URL:
    """Return *value* as an http or https address without a query. The error does not show a login."""
    with suppress(ValueError):
        url = URL(value)
        has_host = url.scheme in {"http", "https"} and re.fullmatch(rb"\S+", (url.host or "").encode("idna"))
        has_login = "@" in (url.path if may_have_login else value)  # a password with a slash in it looks like a path
        if has_host and not (has_login or url.query_string or url.fragment):
            return url
    shown = re.sub(r"^([^/@]*//)?.*@", r"\1***@", value, flags=re.DOTALL)
    raise ConfigError(f"{name}={shown!r}: must be an address such as https://example.com")


def _is_in_network(host: str, networks: str) -> bool:
    """Return whether *host* is an IP address that is one of *networks*, or in one such as 10.0.0.0/8."""
    for network in re.split(r"[\s,]+", networks):
        with suppress(ValueError):  # one of the two is a name
            if ipaddress.ip_address(host) in ipaddress.ip_network(network.strip("[]"), strict=False):
                return True
    return False


def _proxy_for(url: URL) -> URL | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name for *url*, as curl reads them."""
    proxies = getproxies()
    value = (proxies.get(url.scheme) or proxies.get("all") or "").strip()
    host = url.host or ""
    if not value or proxy_bypass(f"{host}:{url.port}") or _is_in_network(host, proxies.get("no", "")):
        return None
    address = value if "://" in value else f"http://{value}"
    return _http_url(f"the proxy for {url.origin()}", address, may_have_login=True)


class Secret(str):
    """A text whose repr is stars, and so are those of the objects that hold it, in tracebacks and logs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One host: its address, its rate limit, its token, and the proxy on the way there.

    The login of the proxy is in no address, because the errors of libraries show addresses.
    """

    url: str
    rate_limit: int  # requests per second
    token: Secret  # or empty; a host with a token charges for its answers
    headers: dict[str, str] = field(compare=False)  # of every request
    proxy: URL | None  # without user and password
    proxy_login: Secret  # user:password, or empty
    proxy_headers: dict[str, str] = field(compare=False)  # when it is asked for a tunnel to an https address

    @classmethod
    def resolve(cls, name: str, environment: Mapping[str, str]) -> Self:
        """Check the variables NAME_API, NAME_RATE_LIMIT and NAME_BEARER_TOKEN."""
        api, rate_limit, bearer = f"{name}_API", f"{name}_RATE_LIMIT", f"{name}_BEARER_TOKEN"
        url = _http_url(api, environment[api])
        is_local = url.host == "localhost" or _is_in_network(url.host or "", "127.0.0.0/8 ::1")
        token = environment.get(bearer, "")
        if bearer in environment and url.scheme == "http" and not is_local:
            raise ConfigError(f"{api}={str(url)!r}: must be an https address, for others would see the token")
        if token and not re.fullmatch("[!-~]+", token):
            raise ConfigError(f"{bearer}: must be a token of visible ASCII characters (it is not shown here)")
        proxy = None if token and url.scheme == "http" else _proxy_for(url)  # a proxy would see the token
        login = f"{proxy.user or ''}:{proxy.password or ''}" if proxy and (proxy.user or proxy.password) else ""
        headers: dict[str, str] = {"Authorization": Secret(f"Bearer {token}")} if token else {}
        basic = Secret(f"Basic {b64encode(login.encode()).decode()}")
        proxy_headers: dict[str, str] = {"Proxy-Authorization": basic} if login else {}
        return cls(
            url=str(url).rstrip("/"),
            rate_limit=whole_number(rate_limit, environment[rate_limit]),
            token=Secret(token),
            # a proxy passes a request to an http address on, and takes its own headers from it
            headers=headers | proxy_headers if url.scheme == "http" else headers,
            proxy=proxy and proxy.with_user(None),
            proxy_login=Secret(login),
            proxy_headers=proxy_headers,
        )

    def redacted(self, text: str, *, token_only: bool = False) -> str:
        """Return *text* with stars for the token and for the proxy's login, in every form in which they travel.

        With *token_only* the login stays, because its words may be data.
        """
        parts: list[str] = [self.token]
        if not token_only:
            parts += [b64encode(self.proxy_login.encode()).decode(), *self.proxy_login.split(":", 1)]
        secrets = {
            form for part in parts for form in (part, quote(part), quote(part, safe=""), part.replace("/", r"\/"))
        }
        # a short one only as a word of its own, for it may be a part of many
        forms = [
            re.escape(secret) if len(secret) > 3 else rf"(?<!\w){re.escape(secret)}(?!\w)"  # noqa: PLR2004
            for secret in sorted(filter(None, secrets), key=len, reverse=True)
        ]
        return re.sub("|".join(forms), "***", text, flags=re.IGNORECASE) if forms else text  # %2f is %2F


MAX_NAMES: Final = 1_000  # of a kind
# what a name begins with that is an address; a label may have a slash as well
_ADDRESS: Final = re.compile(r"(?i)\W|\w*:?//|[^/ ]*[.][a-z]{2,}(?::[0-9]+)?/|(?:tags?|predictions)/")
_SITE: Final = "(?:(?:https?://)?(?:www[.])?polymarket[.]com/)?(?:[a-z]{2}(?:-[a-z0-9]+)?/)?"  # and a language
_EVENT: Final = "event/([^/]+)"
_MATCH: Final = "e?sports/(?:[^/]+/)+(?<!/week/)(?!games/*$)([^/]+)"  # games and week/N end pages of many
# of each kind: the paths of its addresses, and how it may be named
NAMES: Final[Mapping[str, tuple[str, str]]] = {
    "markets": (
        f"(?:market|event/[^/]+)/([^/]+)|{_EVENT}|{_MATCH}",
        "an id, a slug or https://polymarket.com/event/EVENT/MARKET, or the address of an event with one market",
    ),
    "events": (
        f"{_EVENT}(?:/[^/]+)?|{_MATCH}",
        "a slug or https://polymarket.com/event/EVENT, /sports/... or /esports/...",
    ),
    "series": ("series/([^/]+)", "a slug or https://polymarket.com/series/SERIES"),
    "tags": (
        "(?:tags?|predictions)/([^/]+)|(?!(?:event|market|series|tags?|predictions)/*$)([^/]+)",
        "a label, a slug or https://polymarket.com/predictions/TAG",
    ),
}


def _slug_of(label: str) -> str:
    """Return what the exchange makes of most labels: "S&P 500" is sp-500, "Pokémon" is pokemon."""
    plain = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", label.lower()))
    return "-".join(re.findall(r"\w+", re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFC", plain))))


def exchange_name(option: str, value: object, kind: str) -> str:
    """Return the id or slug that *value* is, or that stands in it if it is an address; *kind* is a key of `NAMES`.

    Where that alone could be read as another name, the page of the site stands before it: market/2028 is a slug and no
    id, event/EVENT the only market of an event, tag/15M a slug and no label. Such a name is a name again.
    """
    form, examples = NAMES[kind]
    name = unicodedata.normalize("NFC", str(value).strip())
    address: re.Match[str] | None = None
    if kind == "tags" and not _ADDRESS.match(name):
        name = _slug_of(name)
    else:
        if "/" in name:
            address = re.fullmatch(f"(?i:{_SITE}(?:{form})/*)", re.split("[?#]", name)[0])
            name = next(filter(None, address.groups())) if address else ""
        name = unicodedata.normalize("NFC", unquote(name))
    if not re.fullmatch(r"\w[\w.~-]{0,299}", name):
        raise ConfigError(f"{option}={str(value)[:100]!r}: must be {examples}")
    if address and kind == "markets" and not address[1]:
        return f"event/{name}"
    if address and kind == "markets" and re.fullmatch("[0-9]+", name):
        return f"market/{name}"
    return f"tag/{name}" if kind == "tags" and _slug_of(name) != name else name


def exchange_names(option: str, values: str | Iterable[object], kind: str) -> tuple[str, ...]:
    """Return each of *values*, a list or a text with commas, as `exchange_name` does, without repetitions."""
    given = [name for name in values.split(",") if name.strip()] if isinstance(values, str) else list(values)
    if isinstance(values, str) and values.strip() and not given:
        raise ConfigError(f"{option}={values!r}: names nothing")
    if len(given) > MAX_NAMES:
        raise ConfigError(f"{option}={len(given)} names: must be at most {MAX_NAMES:,}")
    return tuple(dict.fromkeys(exchange_name(option, value, kind) for value in given))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which markets a run takes: the whole exchange, those over a threshold, or those that are named."""

    min_volume_usd: float  # of the last 24 hours; 0 takes every open market; markets and events have no threshold
    markets: tuple[str, ...] = ()  # ids and slugs
    events: tuple[str, ...] = ()  # slugs, as the others
    series: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ends_within_min: float | None = None  # for series and tags; what is past its end counts as well

    @classmethod
    def resolve(cls, min_volume: float, ends_within: float | None, **names: str | Iterable[object]) -> Self:
        """Check a collector's arguments, and whether they go together."""
        chosen = {kind: exchange_names(kind, values, kind) for kind, values in names.items()}
        within = None if ends_within is None else minutes("ends_within", ends_within)
        if within is not None and not (chosen["series"] or chosen["tags"]):
            raise ConfigError(f"ends_within={ends_within!r}: must come with series or tags, the only ones it is for")
        is_default = min_volume is DEFAULT_MIN_VOLUME and any(chosen.values())
        return cls(0 if is_default else finite_number("min_volume", min_volume), ends_within_min=within, **chosen)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """What is named, by kind."""
        return {kind: names for kind in NAMES if (names := getattr(self, kind))}

    @property
    def count(self) -> int:
        """How many names there are."""
        return sum(map(len, self.names.values()))

    @property
    def whole_exchange(self) -> bool:
        """Whether every open market is taken. They are listed by id then, not by volume."""
        return self.min_volume_usd == 0 and not self.names

    @property
    def columns(self) -> dict[str, object]:
        """What `runs` and `selections` have of it."""
        if not self.names:
            return {"min_volume": self.min_volume_usd, "names": None}
        within = {"ends_within": self.ends_within_min} if self.ends_within_min else {}
        return {"min_volume": self.min_volume_usd or None, "names": json.dumps({**self.names, **within})}

    def takes(self, volume_24h: float | None) -> bool:
        """Return whether a market with this volume in USD is taken; None counts as 0."""
        return (volume_24h or 0) >= self.min_volume_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of a collector: the explicit argument, else the environment, else the default."""

    db_path: Path
    workers: int  # requests in flight, over all hosts
    max_retries: int  # repeated attempts after the first
    timeout_s: float  # for one attempt, from its start to the last byte of the answer
    run_timeout_s: float  # no request starts later in a run
    selection: Selection
    depth: int | None  # levels of each side of a book that are stored; None: all
    max_posts: int  # read on X per run; each costs money
    with_usernames: bool  # of authors on X; each costs twice as much as a post
    gamma: Endpoint
    clob: Endpoint
    twitter: Endpoint


# --- Wire types: Gamma and the CLOB -----------------------------------------------------------------------------------
# Unknown keys are skipped, absent keys are None. A number may come as a text (strict=False); NaN and Infinity fail the
# bounds. An element of an answer takes as few of these steps as it needs:
#
#   the outer shape               -> elements, as sent: `decode_answer`
#   as sent                       -> its type: nearly every element
#   usual forms                   "0.5" for ".5", a text for an id that is a number, [] for null: `_usual_forms`
#   repaired JSON                 without lone surrogates, broken UTF-8, NaN and 1e400: `_repaired`
#   without unreadable parts      the rest of it, the keys of what is lost in `unreadable`: `_without_unreadable_parts`
#   Undecoded                     its id, why, and whether it may be an open market: `_decode_element`

Text = Annotated[str, msgspec.Meta(max_length=100_000)]
ConditionId = Annotated[str, msgspec.Meta(max_length=100)]
MarketId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,18}\Z")]  # grows with time
TokenId = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]  # a uint256 in decimal: 78 digits
Price = Annotated[float, msgspec.Meta(ge=0, le=1)]  # USD per share, which pays 0 or 1
Size = Annotated[float, msgspec.Meta(ge=0, le=1e18)]  # shares
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]  # USD
EpochMs = Annotated[int, msgspec.Meta(ge=10**12, le=8 * 10**12)]  # from 2001 to 2223, where a float holds it exactly
# keys as they were sent, a list's once for each element of it that cannot be read; never taken from the wire itself
Unreadable = Annotated[tuple[str, ...], msgspec.Meta(max_length=0)]


class JsonInString(tuple[T, ...]):
    """A list that Gamma sends as JSON inside a string; no text is an empty list."""

    __slots__ = ()


class GammaTag(msgspec.Struct, gc=False):
    """A topic of a market."""

    label: Text
    id: Any = None


class Named(msgspec.Struct, gc=False):
    """An event, a series or a tag, as far as an answer says which one."""

    id: Any = None  # a text of digits, as a rule
    slug: Text | None = None
    label: Text | None = None  # of a tag
    recurrence: Any = None  # of a series: 5m, daily; "" if there is only one of it


class FeeSchedule(msgspec.Struct, gc=False):
    """What takers pay; of exponent, rate, takerOnly and rebateRate what is used."""

    rate: Price | None = None


class GammaMarket(msgspec.Struct, rename="camel", gc=False):
    """One market as Gamma lists it, with the fields that are used; how to store a further one is told at `SCHEMA`.

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
    outcomes: JsonInString[str] | None = None
    outcome_prices: JsonInString[Price] | None = None
    clob_token_ids: JsonInString[TokenId] | None = None
    start_date: str | None = None
    end_date: str | None = None
    closed_time: str | None = None
    accepting_orders: bool = True
    enable_order_book: bool = True
    volume_24h: Amount | None = msgspec.field(name="volume24hr", default=None)
    volume_num: Amount | None = None  # since it opened
    volume: Amount | None = None
    liquidity_num: Amount | None = None
    liquidity: Amount | None = None
    neg_risk: bool | None = None  # whether the outcomes of its event exclude each other
    order_price_min_tick_size: Price | None = None
    order_min_size: Size | None = None
    fees_enabled: bool | None = None
    fee_schedule: FeeSchedule | None = None
    last_trade_price: Price | None = None
    uma_resolution_status: Any = None  # of the oracle
    uma_resolution_statuses: Any = None  # the same from the first to the newest, JSON in a string
    events: list[Named] | None = None
    tags: list[GammaTag] | None = None
    unreadable: Unreadable = ()

    def __post_init__(self) -> None:
        """Refuse an open market that names tokens, but not two different ones."""
        tokens = self.clob_token_ids or ()
        if not self.active or self.closed:
            return
        if "clobTokenIds" in self.unreadable:
            raise ValueError("Expected 2 clobTokenIds, got something else - at `$.clobTokenIds`")
        if tokens and (len(tokens) != 2 or tokens[0] == tokens[1]):  # noqa: PLR2004  YES and NO
            raise ValueError(f"Expected 2 different clobTokenIds, got {tokens!r}")

    @property
    def is_open(self) -> bool:
        """Whether this is a market to collect, and not a settled one or a placeholder that never opened."""
        return self.active and not self.closed and bool(self.clob_token_ids)

    @property
    def state(self) -> str:
        """Why it is not open, in words for a person."""
        tokens = "" if self.clob_token_ids else ", without tokens"
        return f"the exchange names it as active: {self.active}, closed: {self.closed}{tokens}"

    @property
    def disputed(self) -> bool:
        """Whether its outcome is disputed at the oracle; its prices do not count then."""
        history = self.uma_resolution_statuses
        ends_disputed = isinstance(history, str) and history.rstrip("] ").endswith('"disputed"')
        return self.uma_resolution_status == "disputed" or (ends_disputed and self.uma_resolution_status != "resolved")

    @property
    def tokens(self) -> tuple[str, str]:
        """The token ids of the first outcome (YES) and the second (NO), empty where there are not two of them."""
        tokens = self.clob_token_ids or ()
        return (tokens[0], tokens[1]) if len(tokens) == 2 else ("", "")  # noqa: PLR2004

    @property
    def fee_rate(self) -> float | None:
        """The rate in the formula of the taker's fee; 0 where there is no fee."""
        if self.fees_enabled is False:
            return 0.0
        return self.fee_schedule.rate if self.fee_schedule else None

    @property
    def max_volume_24h(self) -> float | None:
        """The most that it may have traded in USD: infinity where the figure cannot be read."""
        return math.inf if "volume24hr" in self.unreadable else self.volume_24h


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
    """The book of one token, the best level of each side first, without levels of size 0.

    The exchange sends the best level last; that is not relied on. A price that it sends twice stays twice (`_best`).

    Source: https://docs.polymarket.com/market-data/prices-order-books
    """

    token_id: TokenId = msgspec.field(name="asset_id")
    bids: list[Level]
    asks: list[Level]
    changed_ms: EpochMs | None = msgspec.field(name="timestamp", default=None)  # Unix time
    market: Text | None = None  # the condition id of its market
    unreadable: Unreadable = ()

    def __post_init__(self) -> None:
        """Sort the levels, and drop those of size 0."""
        self.bids = sorted([level for level in self.bids if level.size], key=attrgetter("price"), reverse=True)
        self.asks = sorted([level for level in self.asks if level.size], key=attrgetter("price"))


class Undecoded(NamedTuple):
    """One element of an answer that could not be decoded, with what can be read of it; unvalidated."""

    id: str | None
    reason: str
    is_open: bool = True  # as far as can be told
    max_volume_24h: float = math.inf


class MarketPage(NamedTuple):
    """A page of a listing."""

    markets: list[GammaMarket]
    undecoded: list[Undecoded]
    next_cursor: str | None  # None on the last page
    incomplete: str | None = None  # why the listing lacks markets before the next page
    events: list[str] | None = None  # slugs, where its elements are events, with these markets
    others: Sequence[str] = ()  # elements that say that they are of something else than what was asked for

    @property
    def size(self) -> int:
        """The number of its elements, decoded or not."""
        of_markets = len(self.markets) + len(self.undecoded) + len(self.others)
        return of_markets if self.events is None else len(self.events)

    @property
    def names(self) -> set[str]:
        """The slugs of its events, else the ids of its markets, decoded or not."""
        if self.events is not None:
            return set(self.events)
        undecoded = {bad.id for bad in self.undecoded if bad.id is not None}
        return {market.market_id for market in self.markets} | undecoded | set(self.others)

    @property
    def ids(self) -> list[int]:
        """The ids of its decoded markets, in their order."""
        return [int(market.market_id) for market in self.markets]


class _Event(msgspec.Struct):
    """An event with its markets, open and closed, which have neither events nor tags of their own there.

    Any object is one; what of it is odd costs only itself.
    """

    id: Any = None
    slug: Any = None
    series: Any = None
    markets: msgspec.Raw = msgspec.Raw(b"null")  # an event may have none yet
    tags: msgspec.Raw = msgspec.Raw(b"[]")


class _Page(msgspec.Struct):
    """The answer of Gamma's keyset listing, of markets or of events; `next_cursor` is there on a full page only."""

    markets: list[msgspec.Raw] | None = None
    events: list[msgspec.Raw] | None = None
    next_cursor: str | None = None
    error: None = None  # an error object is refused here, for `HttpHost._decoded` to see


# A decoder raises ValueError for what is no JSON, msgspec.ValidationError (a ValueError as well) for JSON of another
# shape, and OverflowError for an answer with more parts than any true one.

MAX_PAGE_BYTES: Final = 8 * 2**20  # decoded; a page of markets has 0.6 MB, one of posts 0.2 MB
MAX_PARTS: Final = 2_000_000  # objects of an answer, each of which takes memory; 500 books have 50,000 levels or so
MAX_REPAIRED_PARTS: Final = 400_000  # of an element that is repaired, which is slow
MAX_ELEMENTS: Final = 10_000  # of an answer: no request asks for more than 500, but an event has had 2,000 markets
MAX_BAD_ELEMENTS: Final = 10  # up to so many do not count as a changed format
MAX_ONLY_BAD_ELEMENTS: Final = 3  # the same where there is no good one
MAX_UNREADABLE: Final = 1_000  # elements of a list

_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
# other forms of what the exchange sends, and the usual one; its documentation writes prices without the zero
_NUMBER_KEY: Final = (
    rb'"(?:price|size|rate|lastTradePrice|volume(?:24hr|Num)?|liquidity(?:Num)?|order(?:PriceMinTick|Min)Size)"'
)
_OTHER_FORMS: Final = (
    (re.compile(rb"(" + _NUMBER_KEY + rb'\s*:\s*")\+?(?=\.[0-9])'), rb"\g<1>0"),
    (re.compile(rb"(" + _NUMBER_KEY + rb'\s*:\s*")(?:\+0*|0+)(?=[0-9])'), rb"\1"),
    (re.compile(rb"(" + _NUMBER_KEY + rb'\s*:\s*"[0-9]+)\.(?=["eE])'), rb"\1"),
    (re.compile(rb'("(?:id|asset_id)"\s*:\s*)([0-9]+)(?=\s*[,}])'), rb'\1"\2"'),
    (re.compile(rb'("clobTokenIds"\s*:\s*)"?\[\s*([0-9]+)\s*,\s*([0-9]+)\s*\]"?'), rb'\1["\2","\3"]'),
    (re.compile(rb'("(?:bids|asks)"\s*:\s*)null'), rb"\1[]"),
)


def _without_nul(body: Body) -> Body:
    """Return JSON with U+FFFD for NUL, at which many readers of the database end a text."""
    # books have no backslash at all, which is found out much faster
    return _NUL.sub(rb"\1\\ufffd", body) if b"\\" in body and b"\\u0000" in body else body


def _repaired(body: Body) -> bytes:
    """Return JSON with U+FFFD for lone surrogates and broken UTF-8, and an object for each NaN, 1e400 and the like.

    No field that could be such a number takes an object.
    """
    parts = body.count(b"{") + body.count(b"[")
    if parts > MAX_REPAIRED_PARTS or len(body) > MAX_PAGE_BYTES:
        raise OverflowError(f"the answer cannot be repaired, with {len(body)} bytes and {parts} objects and lists")

    def refused(text: str) -> dict[str, None]:
        return {text: None}

    value = json.loads(
        body.decode("utf-8-sig", "replace"),
        strict=False,
        parse_constant=refused,
        parse_float=lambda text: number if math.isfinite(number := float(text)) else refused(text),
        parse_int=lambda text: int(text) if len(text) <= 100 else refused(text),  # noqa: PLR2004  a token id has 78
    )
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def decode_answer(decoder: msgspec.json.Decoder[T], body: Body) -> T:
    """Decode the outer shape of an answer; its elements stay `msgspec.Raw`, for `decode_elements`."""
    if len(body) > 2 * MAX_PARTS and (parts := body.count(b"{")) > MAX_PARTS:  # an object has two bytes or more
        raise OverflowError(f"the answer has {parts} objects")
    body = _without_nul(body)
    try:
        return decoder.decode(body)
    except ValueError:
        return decoder.decode(_repaired(body))


_PAIR: Final = msgspec.Meta(min_length=2, max_length=2)  # of YES and NO
_JSON_IN_STRING: Final[Mapping[Any, msgspec.json.Decoder[Any]]] = {  # by the type of the list's elements
    str: msgspec.json.Decoder(Annotated[tuple[str, ...], _PAIR]),
    Price: msgspec.json.Decoder(Annotated[tuple[Price, ...], _PAIR], strict=False),
    TokenId: msgspec.json.Decoder(tuple[TokenId, ...]),
}


def _decode_json_in_string(kind: Any, value: object) -> object:  # noqa: ANN401  a generic alias
    """Decode `JsonInString`, which msgspec does not know (its `dec_hook`)."""
    if value in (None, "", "null", "[]", []):
        return JsonInString()
    body = _without_nul(value.encode() if isinstance(value, str) else msgspec.json.encode(value))
    of = kind.__args__[0]
    try:
        return JsonInString(_JSON_IN_STRING[of].decode(body))
    except ValueError:
        return JsonInString(decode_answer(_JSON_IN_STRING[of], body.replace(b'".', b'"0.') if of is Price else body))


def json_decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """Return a decoder that also takes numbers written as strings."""
    return msgspec.json.Decoder(kind, strict=False, dec_hook=_decode_json_in_string)


_MARKET: Final = json_decoder(GammaMarket)
_PAGE: Final = json_decoder(_Page)
_MARKET_TAG: Final = json_decoder(GammaTag)
_EVENT_WITH_MARKETS: Final = json_decoder(_Event)
_BOOK: Final = json_decoder(OrderBook)
_ELEMENTS: Final = json_decoder(list[msgspec.Raw])
_ERROR_OBJECT: Final = json_decoder(dict[str, Any])


_fields = cache(msgspec.structs.fields)


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401  a type, of a field
    try:
        msgspec.convert(value, kind, strict=False, dec_hook=_decode_json_in_string)
    except ValueError:
        return False
    return True


def _valid_elements(elements: list[Any], kind: Any) -> list[Any]:  # noqa: ANN401
    """Return those of *elements* that fit *kind*, which is the type of the list."""
    if _fits(elements, kind):
        return elements
    good: list[Any] = []
    for count, element in enumerate(elements):
        if _fits([element], kind):
            good.append(element)
        elif count - len(good) == MAX_UNREADABLE:
            raise msgspec.ValidationError(f"more than {MAX_UNREADABLE} elements of a list cannot be read")
    return good


def _without_unreadable_parts(decoder: msgspec.json.Decoder[S], sent: dict[str, Any]) -> S:
    """Decode what of *sent* fits its type, and put the keys of the rest into `unreadable`, if the type has that field.

    What may be lost: elements of lists, items of objects, and fields that are optional. No text is no value.
    """
    kind: Any = decoder.type  # a type[S], which msgspec 0.23 calls a TypeForm[S]
    readable: dict[str, object] = {}
    unreadable: list[str] = []
    for field_ in _fields(kind):
        key, value = field_.encode_name, sent.get(field_.encode_name)
        lost: list[str] = []
        if field_.type is Unreadable:
            continue
        if isinstance(value, list):
            value, count = _valid_elements(value, field_.type), len(value)
            lost = [key] * (count - len(value))
        elif isinstance(value, dict) and _fits({}, field_.type):
            lost = [name for name, item in value.items() if not _fits({name: item}, field_.type)]
            value = {name: value[name] for name in value.keys() - set(lost)}
        if (key in sent and field_.required) or _fits(value, field_.type):
            readable[key] = value
            unreadable += lost
        elif value not in ("", None):
            unreadable.append(key)
    read: S = msgspec.convert(readable, kind, strict=False, dec_hook=_decode_json_in_string)
    if unreadable and "unreadable" in kind.__struct_fields__:
        return msgspec.structs.replace(read, unreadable=tuple(unreadable))
    return read


def _usual_forms(body: bytes) -> Iterator[bytes]:
    """Yield JSON with one more kind of other form replaced by the usual one, as often as it has one."""
    for other_form, usual_form in _OTHER_FORMS:
        body, found = other_form.subn(usual_form, body)
        if found:
            yield body


def _decode_element(decoder: msgspec.json.Decoder[S], element: msgspec.Raw) -> S | Undecoded:
    """Decode an element in the steps that the map of this section lists."""
    try:
        return decoder.decode(element)
    except (ValueError, RecursionError):
        body = bytes(element)
    for body in _usual_forms(body):  # noqa: B020  the last one is what the next step takes
        with suppress(ValueError, RecursionError):
            return decoder.decode(body)
    sent: dict[str, Any] = {}
    try:
        sent = _ERROR_OBJECT.decode(_repaired(body))
        return _without_unreadable_parts(decoder, sent)
    except (ValueError, RecursionError) as error:
        key, digits = ("asset_id", 78) if decoder is _BOOK else ("id", 18)
        sent_id = re.fullmatch(f"[0-9]{{1,{digits}}}", str(sent.get(key)))
        volume: Any = sent.get("volume24hr")
        return Undecoded(
            id=sent_id[0] if sent_id else None,
            reason=printable(str(error)),
            is_open=sent.get("active") is not False and sent.get("closed") is not True,
            max_volume_24h=volume if type(volume) in {int, float} else math.inf,
        )


def decode_elements(
    elements: list[msgspec.Raw], decoder: msgspec.json.Decoder[S], *, mostly_good: bool = False
) -> tuple[list[S], list[Undecoded]]:
    """Decode the elements of an answer one by one: a bad one costs only itself, a bad part of one only that part.

    With *mostly_good* it is an error if most of them are bad: the shape of the answer has changed then.
    """
    if len(elements) > MAX_ELEMENTS:
        raise msgspec.ValidationError(f"{len(elements)} elements, which no request asked for")
    decoded = [_decode_element(decoder, element) for element in elements]
    good = [element for element in decoded if not isinstance(element, Undecoded)]
    bad = [element for element in decoded if isinstance(element, Undecoded)]
    if mostly_good and len(bad) > (max(len(good), MAX_BAD_ELEMENTS) if good else MAX_ONLY_BAD_ELEMENTS):
        raise msgspec.ValidationError(
            f"{len(bad)} of {len(elements)} elements are not understood, the first: {bad[0].reason}"
        )
    return good, bad


# keys of nearly every open market: where most lack one, it has another name now
_EXPECTED: Final = {"question", "slug", "conditionId", "outcomes", "clobTokenIds"}


def _decode_markets(elements: list[msgspec.Raw] | None) -> tuple[list[GammaMarket], list[Undecoded]]:
    """Decode markets, most of which must be good and have the fields that they should have."""
    if elements is None:
        raise msgspec.ValidationError("Object missing required field `markets`")
    markets, bad = decode_elements(elements, _MARKET, mostly_good=True)
    opened = [market for market in markets if market.active and not market.closed]
    for expected in (field_ for field_ in _fields(GammaMarket) if field_.encode_name in _EXPECTED):
        lacking = sum(not getattr(market, expected.name) for market in opened)
        if lacking > max(len(opened) - lacking, MAX_BAD_ELEMENTS):
            raise msgspec.ValidationError(f"{lacking} of {len(opened)} open markets have no `{expected.encode_name}`")
    return markets, bad


Filters = Sequence[tuple[str, str]]  # of a listing: names and values


def _is_other(asked: Filters, said: Mapping[str, Iterable[object]]) -> bool:
    """Return whether an element is another one than what was *asked* for, by what it has *said* of itself.

    Silence is no contradiction.
    """
    values = ((value, {str(one) for one in said.get(name, ()) if one is not None}) for name, value in asked)
    return any(of and value not in of for value, of in values)


def decode_page(body: Body, asked: Filters = ()) -> MarketPage:
    """Decode a page of Gamma's listing with the filters *asked*."""
    page = decode_answer(_PAGE, body)
    markets, bad = _decode_markets(page.markets)
    others = [one.market_id for one in markets if _is_other(asked, {"tag_id": [tag.id for tag in one.tags or ()]})]
    markets = [one for one in markets if one.market_id not in others]
    return MarketPage(markets, bad, page.next_cursor, others=others)


def _markets_of(event: _Event, named: Named) -> tuple[list[GammaMarket], list[Undecoded]]:
    """Decode the markets of *event*, and give each its event and its tags."""
    sent = bytes(event.markets)
    markets, bad = _decode_markets([] if sent == b"null" else decode_answer(_ELEMENTS, sent))
    tags: list[GammaTag] = []
    with suppress(ValueError):
        tags, _ = decode_elements(decode_answer(_ELEMENTS, bytes(event.tags)), _MARKET_TAG)
    for market in markets:
        market.events, market.tags = [named], tags or None
    return markets, bad


def objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in *value*, if it is a list."""
    return [element for element in value if isinstance(element, dict)] if isinstance(value, list) else []


def decode_events(body: Body, asked: Filters = ()) -> MarketPage:
    """Decode a page of Gamma's listing of events into their markets; an event that is odd costs only itself."""
    page = decode_answer(_PAGE, body)
    if page.events is None:
        raise msgspec.ValidationError("Object missing required field `events`")
    events, bad = decode_elements(page.events, _EVENT_WITH_MARKETS, mostly_good=True)
    # the id of an event is no market's
    undecoded = [one._replace(id=None, reason=f"an event of the listing: {one.reason}") for one in bad]
    slugs, others = [one.reason for one in undecoded], list[str]()
    found = MarketPage([], undecoded, page.next_cursor, events=slugs, others=others)
    errors: list[Exception] = []
    for event in events:
        named = Named(event.id, event.slug if isinstance(event.slug, str) else None)
        slugs.append(named.slug or str(event.id))
        of_series = [one.get("id") for one in objects(event.series)]
        if _is_other(asked, {"id": [event.id], "slug": [named.slug], "series_id": of_series}):
            others.append(slugs[-1])
            continue
        try:
            markets, bad = _markets_of(event, named)
        except (ValueError, RecursionError) as error:
            errors.append(error)
            markets, bad = [], [Undecoded(None, printable(f"the markets of the event {slugs[-1]}: {error}"))]
        found.markets.extend(markets)
        undecoded += bad
    if errors and len(errors) == len(events):
        raise errors[0]
    return found


def decode_books(body: Body) -> tuple[list[OrderBook], list[Undecoded]]:
    """Decode the CLOB's answer to a request for books; most of the books, and of their levels, must be good."""
    books, bad = decode_elements(decode_answer(_ELEMENTS, body), _BOOK, mostly_good=True)
    lost = sum(len(book.unreadable) - book.unreadable.count("timestamp") for book in books)
    if lost > MAX_BAD_ELEMENTS and lost > sum(len(book.bids) + len(book.asks) for book in books):
        raise msgspec.ValidationError(f"{lost} levels of {len(books)} books are not understood")
    return books, bad


# --- Records ----------------------------------------------------------------------------------------------------------
# A record is a row of a table, and its fields are columns of the same name. An absent value is None.

# narrow before broad: of a market's topics the first of these is the main one
_MAIN_TOPICS: Final = (
    "esports", "sports", "crypto", "elections", "geopolitics", "politics", "economy", "finance", "business", "tech",
    "weather", "science", "culture", "world", "mentions",
)  # fmt: skip
_TOPIC_RANK: Final = {topic: rank for rank, topic in enumerate(_MAIN_TOPICS)}
# labels that group the exchange's pages and name no topic
_NO_TOPIC: Final = re.compile(
    r"""\s* (?: all | hide\ from\ new | recurring | featured | games | other | parent\ for\ derivative
    | hourly | daily | weekly | monthly | yearly | [0-9]+ \s? (?: m | h | min | minutes | hours )
    | trending .* | breaking\ news | rewards .* | earn\ [0-9.,]+ \s? % | pre[-\ ]?market | parlays
    | hit\ (?: first | price ) | (?: [0-9]+\ )? predictions | macro\ (?: single | graph ) )? \s*""",
    re.IGNORECASE | re.VERBOSE,
)


def sql_time(moment: datetime, timespec: str = "seconds") -> str:
    """Return *moment* in the database's form, UTC to the second (``2026-11-22 14:15:00``) or to *timespec*."""
    return moment.astimezone(UTC).isoformat(" ", timespec).removesuffix("+00:00")


# nearly all times of the exchange; all that it leaves open is whether there is such a day
_USUAL_TIME: Final = re.compile(
    r"(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?Z"
)
_END_OF_DAY: Final = re.compile(r"(?<=[T ])24(?=(?::?00){0,2}(?:[.,]0*)?(?:Z|[+-]|$))")
_LEAP_SECOND: Final = re.compile(r"(?<=:[0-5][0-9]:)60|(?<=T[0-2][0-9][0-5][0-9])60")


def _moment(text: str) -> datetime:
    """Return the moment that *text* names in ISO 8601; 24:00 is the next midnight, and second 60 is 59."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        text, days = _END_OF_DAY.subn("00", _LEAP_SECOND.sub("59", text.upper()))
        return datetime.fromisoformat(text) + timedelta(days=days)


@lru_cache(maxsize=10_000)  # a start is needed twice, and many markets have the same end
def sql_time_of(value: object) -> str | None:
    """Return a time in the database's form, to the second, or None where *value* is no time.

    Times are ISO 8601 since 1900, with a zone or in UTC, and Unix time in seconds or milliseconds since 2001.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        value = value.strip()
        if _USUAL_TIME.fullmatch(value):  # takes half as long as the rest
            with suppress(ValueError):
                datetime.fromisoformat(value)
                return f"{value[:10]} {value[11:19]}"
        if re.fullmatch(r"[0-9]{10,18}(\.[0-9]*)?", value):
            value = float(value)
    with suppress(ValueError, OverflowError):
        if isinstance(value, str):
            moment = _moment(value)
            stored = sql_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
            return stored if stored >= "1900" else None  # the year 1 stands for no time at all
        if isinstance(value, int | float) and 10**9 <= value < 253_402_300_800_000:  # noqa: PLR2004  year 9999
            seconds = value // 1_000 if value >= 10**12 else value // 1  # seconds reach it in the year 33658
            return sql_time(datetime.fromtimestamp(seconds, UTC))
    return None


@lru_cache(maxsize=10_000)  # a label is that of many markets
def _topic_rank(label: str) -> int:
    """Return the place of *label* among the topics: after the main ones the others, and at last what is no topic."""
    return len(_TOPIC_RANK) + 1 if _NO_TOPIC.fullmatch(label) else _TOPIC_RANK.get(label.casefold(), len(_TOPIC_RANK))


def main_topic(labels: Sequence[str]) -> str | None:
    """Return the main topic among the labels of a market's tags, else the first topic, else None."""
    topic = min(labels, key=_topic_rank, default=None)
    return None if topic is None or _topic_rank(topic) > len(_TOPIC_RANK) else topic


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
    neg_risk: bool | None
    tick_size: float | None
    min_order_size: float | None
    fee_rate: float | None
    first_seen: str

    @classmethod
    def from_wire(cls, market: GammaMarket, *, seen_at: str) -> Self:
        """Build the row of *market*, listed at *seen_at*."""
        labels = [tag.label for tag in market.tags or () if tag.label]
        yes, no = market.outcomes or ("", "")
        return cls(
            market_id=market.market_id,
            slug=market.slug or None,
            question=market.question or None,
            description=market.description or None,
            category=(market.category or "").strip() or main_topic(labels),
            token_id_yes=market.tokens[0],
            token_id_no=market.tokens[1],
            start_time=sql_time_of(market.start_date),
            end_time=sql_time_of(market.end_date),
            condition_id=market.condition_id or None,
            event_slug=(market.events[0].slug or None) if market.events else None,
            outcome_yes=yes or None,
            outcome_no=no or None,
            tags=msgspec.json.encode(labels).decode() if labels else None,
            neg_risk=market.neg_risk,
            tick_size=market.order_price_min_tick_size,
            min_order_size=market.order_min_size,
            fee_rate=market.fee_rate,
            first_seen=seen_at,
        )


def _best(levels: Sequence[Level]) -> tuple[float | None, float | None]:
    """Return the price of the first of *levels* and all that is on offer at it, or None for both."""
    if not levels:
        return None, None
    best, size = levels[0], levels[0].size
    for level in itertools.islice(levels, 1, None):
        if level.price != best.price:
            break
        size = round(size + level.size, 9)  # the exchange may name a price more than once
    return best.price, size


def _rounded(price: float) -> float:
    """Return *price* without the noise of binary arithmetic (0.09150000000000003); the finest tick is 0.0001."""
    return round(price, 9)


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
    volume: float | None

    @classmethod
    def from_wire(
        cls, market: GammaMarket, yes: OrderBook | None, no: OrderBook | None, *, run_id: int, received_at: str
    ) -> Self:
        """Build the row of *market* with the books of its two tokens, as far as there are any.

        The price is the midpoint of the YES book, a missing bid counting 0 and a missing ask 1, which is how the
        exchange itself forms `outcomePrices` (on 88 of 88 recorded markets); without that book it is Gamma's own, up to
        five minutes old.
        """
        bid_yes, bid_size_yes = _best(yes.bids if yes else ())
        ask_yes, ask_size_yes = _best(yes.asks if yes else ())
        bid_no, bid_size_no = _best(no.bids if no else ())
        ask_no, ask_size_no = _best(no.asks if no else ())
        price = market.outcome_prices[0] if market.outcome_prices else None
        if yes:
            price = _rounded(((bid_yes or 0) + (1 if ask_yes is None else ask_yes)) / 2)
        book = yes or no
        changed_ms = book and book.changed_ms
        return cls(
            market_id=market.market_id,
            timestamp=received_at,
            price_yes=price,
            price_no=None if price is None else _rounded(1 - price),
            volume_24h=market.volume_24h,
            liquidity=market.liquidity if market.liquidity_num is None else market.liquidity_num,
            best_bid_yes=bid_yes,
            best_ask_yes=ask_yes,
            best_bid_no=bid_no,
            best_ask_no=ask_no,
            spread=None if bid_yes is None or ask_yes is None else _rounded(ask_yes - bid_yes),
            run_id=run_id,
            last_trade_price=market.last_trade_price or None,  # a book's own may be in terms of the other token
            book_time=sql_time(datetime.fromtimestamp(changed_ms / 1_000, UTC), "milliseconds") if changed_ms else None,
            bid_size_yes=bid_size_yes,
            ask_size_yes=ask_size_yes,
            bid_size_no=bid_size_no,
            ask_size_no=ask_size_no,
            volume=market.volume if market.volume_num is None else market.volume_num,
        )


@lru_cache(maxsize=100_000)
def mirrored_price(price: float) -> float | None:
    """Return 1 - *price* exactly, or None for a price of more than 9 decimals, which the views could not restore."""
    exact = Decimal(repr(price))
    return float(1 - exact) if exact == round(exact, 9) else None


def _mirrors(side: Sequence[Level], other: Sequence[Level]) -> bool:
    """Return whether each level of *side* (bids of NO, say) is one of *other* (asks of YES) at 1 less its price."""
    return [level.size for level in side] == [level.size for level in other] and [level.price for level in side] == [
        mirrored_price(level.price) for level in other
    ]


def levels_text(levels: Sequence[Level]) -> str:
    """Return *levels* as JSON: [[price, size], ...], in the digits that the exchange sent less trailing zeros."""
    # a decimal of up to 15 digits survives being a float
    text = msgspec.json.encode([(level.price, level.size) for level in levels]).decode()
    return text.replace(".0]", "]").replace(".0,", ",")


class Book(NamedTuple):
    """The content of a market's order books: one row of `books`, without its id."""

    market_id: str
    timestamp: str  # when it was first received
    bids: str | None  # of YES, the best level first; None without a YES book
    asks: str | None
    mirrored: bool | None  # whether the NO book is the exact mirror of YES; None without a NO book
    bids_no: str | None  # only of a book that is no mirror
    asks_no: str | None

    @property
    def content(self) -> tuple[str | bool | None, ...]:
        """All that is compared: two books with this in common are equal."""
        return self[2:]

    @classmethod
    def from_wire(
        cls, market_id: str, yes: OrderBook | None, no: OrderBook | None, *, depth: int | None, received_at: str
    ) -> Self | None:
        """Build the row of a market's books with the best *depth* levels of each side (None: all), if there are any."""
        if depth == 0 or not (yes or no):
            return None
        mirrored = None
        if no:
            mirrored = yes is not None and _mirrors(no.bids, yes.asks) and _mirrors(no.asks, yes.bids)
        own = no if mirrored is False else None
        return cls(
            market_id=market_id,
            timestamp=received_at,
            bids=levels_text(yes.bids[:depth]) if yes else None,
            asks=levels_text(yes.asks[:depth]) if yes else None,
            mirrored=mirrored,
            bids_no=levels_text(own.bids[:depth]) if own else None,
            asks_no=levels_text(own.asks[:depth]) if own else None,
        )


SPLIT: Final = "split"


def outcome_of(market: GammaMarket) -> str | None:
    """Return the winning outcome's own word, or `SPLIT`, or None where Gamma leaves it open.

    Only a closed market with prices of exactly 1 and 0, or of one half each, is decided. A price near 1, an end date in
    the past and `umaResolutionStatus` decide nothing: 98 of 100 settled markets keep "proposed" for ever. While it is
    "disputed", the outcome is open.
    """
    outcomes, prices = market.outcomes or (), market.outcome_prices or ()
    if not market.closed or market.disputed or not outcomes or not prices:
        return None
    if sorted(prices) == [0, 1]:
        return outcomes[prices.index(1)]
    return SPLIT if set(prices) == {0.5} else None


def outcome_on_clob(market: GammaMarket, on_clob: ClobMarket | None) -> str | None:
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
    look_again_at: str | None  # None: never
    stored_at: str
    market_id: str


class Unsettled(NamedTuple):
    """A market that is not open and has no outcome yet; it is asked for again."""

    asked_at: str
    max_wait_minutes: int  # until it is asked for again
    market_id: str


def next_look(closed_at: str | None, now: datetime) -> str | None:
    """Return when the outcome of a market is asked for again, 1 and 7 days after it closed, or None for never."""
    closed = datetime.fromisoformat(closed_at).replace(tzinfo=UTC) if closed_at else now
    looks = (closed + timedelta(days=days) for days in (1, 7))
    return next((sql_time(look) for look in looks if look > now), None)


class StoredIdentity(NamedTuple):
    """What is stored of a market and never changes: its condition, its tokens and their order."""

    condition_id: str | None
    token_id_yes: str | None
    token_id_no: str | None
    outcome_yes: str | None
    outcome_no: str | None


def align_with_stored(market: GammaMarket, known: StoredIdentity) -> str | None:
    """Bring the outcomes of *market* into the stored order, or return why it is another market than *known*.

    A value that is not stored yet is no difference.
    """
    tokens, stored = market.tokens, (known.token_id_yes, known.token_id_no)
    if known.condition_id and market.condition_id and known.condition_id != market.condition_id:
        return f"its condition was {known.condition_id}, and now another market has its id: {market.condition_id}"
    if all(tokens) and all(stored) and set(stored) != set(tokens):
        return f"its tokens were {' and '.join(map(str, stored))}, and now they are {' and '.join(tokens)}"
    if all(stored) and stored == tokens[::-1]:
        market.clob_token_ids = JsonInString(stored)
        market.outcomes = market.outcomes and JsonInString(market.outcomes[::-1])
        market.outcome_prices = market.outcome_prices and JsonInString(market.outcome_prices[::-1])
        market.last_trade_price = market.last_trade_price and _rounded(1 - market.last_trade_price)
    words = (known.outcome_yes, known.outcome_no)
    if all(words) and market.outcomes == words[::-1] != words:
        return f"the outcomes of its tokens were {' and '.join(map(str, words))}, and now they are the other way round"
    return None


class Failure(NamedTuple):
    """Something that a run should have stored and did not: one row of `failures`."""

    run_id: int
    market_id: str | None  # None where a whole page or answer failed
    stage: str  # list, book, outcome, save or posts
    reason: str
    markets: int | None = 1  # that it concerns; None where that is not known


@dataclass(slots=True)
class Batch:
    """Rows of a run that are stored together or not at all."""

    run_id: int
    markets: list[Market] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    resolutions: list[Resolution] = field(default_factory=list)
    unsettled: list[Unsettled] = field(default_factory=list)
    unlisted: list[tuple[str]] = field(default_factory=list)  # ids that the exchange names as closed
    books: dict[str, Book] = field(default_factory=dict)  # by market, of these snapshots
    names: list[tuple[str, str, str]] = field(default_factory=list)  # kind, name and id of what had markets to collect
    follow: bool = False  # whether to collect these markets until they resolve; if not, the whole exchange was listed


@dataclass(slots=True)
class ListingState:
    """How far the listing of the whole exchange is: the one row of `walk`."""

    cursor: str | None = None
    began: str | None = None
    last_id: int = 0
    unread: str | None = None
    oldest: int | None = None
    newest: int | None = None
    listed_at: str | None = None


class Saved(NamedTuple):
    """How many rows of a batch were stored."""

    snapshots: int = 0
    books: int = 0  # anew
    books_unchanged: int = 0  # since the snapshot before
    errors: int = 0  # rows in failures

    def plus(self, other: Saved) -> Saved:
        """Return the sum of both."""
        return Saved(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Stats(TypedDict):
    """The counts of a run."""

    markets_fetched: int  # open markets that the listing named and the run should store
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
    books_saved: int  # anew, because they changed or a UTC day began
    books_unchanged: int
    unmirrored: int  # markets whose NO book is not the mirror of their YES book
    reason: str | None  # of the first failure of the markets
    drift: str | None  # what the exchange sends in a shape that is not known; such answers are not stored
    tweets_reason: str | None  # of the first failure of the posts; None without a token
    notes: list[str]  # which names have no market to collect, because it is over or there is none just now
    unknown: list[str]  # which names the exchange does not have
    requests: int  # attempts on the wire
    database: str


# --- Pacing, retries --------------------------------------------------------------------------------------------------

FIRST_WAIT_S: Final = 1.0  # wait before the first retry (`backoff_delay`), and pause after the first 429; both double
MAX_WAIT_S: Final = 60.0  # a server that asks for a longer wait is not waited for


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

    The guarantee holds for every window, wherever it begins, because each start is remembered until it has left the
    window. Waiters start in the order in which they came; a cancelled one holds nobody up. The attributes may be
    changed at any time and count from the next start on; a longer window begins with the starts that the shorter one
    remembers.

    Until `quota_resets_at`, by the clock, the host refuses everything: callers look, `acquire` does not wait for it.

        limiter = RateLimiter(max_requests=20, time_window=1.0)
        await limiter.acquire()  # then send the request
    """

    def __init__(
        self,
        max_requests: int = 10,
        time_window: float = 1.0,
        backoff_multiplier: float = 2.0,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.max_requests = max_requests
        self.time_window = time_window
        self.backoff_multiplier = backoff_multiplier
        self.quota_resets_at = float("-inf")
        self._clock = clock or Clock()
        self._starts: deque[float] = deque()
        self._pause_s = 0.0  # the last one's length, until a request succeeds
        self._pause_began = float("-inf")
        self._paused_until = float("-inf")
        self._queue: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def __repr__(self) -> str:
        started = sum(start + self.time_window > self._clock.monotonic() for start in self._starts)
        return f"<RateLimiter: {started} of {self.max_requests} requests started in the last {self.time_window:g} s>"

    @property
    def max_requests(self) -> int:
        """Starts per window."""
        return self._max_requests

    @max_requests.setter
    def max_requests(self, value: int) -> None:
        self._max_requests = whole_number("max_requests", value, at_most=1_000_000)

    async def acquire(self) -> float:
        """Wait until a request may start, count it as started, and return when that is."""
        loop = asyncio.get_running_loop()
        if self._queue is None or self._queue[0] is not loop:  # a lock belongs to one event loop
            self._queue = (loop, asyncio.Lock())
        async with self._queue[1]:  # one waiter at a time looks at the window, first come, first served
            while (wait_s := self._wait_s()) > 0:
                await self._clock.sleep(wait_s)
            self._starts.append(self._clock.monotonic())
            return self._starts[-1]

    async def move_start(self, started: float) -> float:
        """Move a start to now, because its connection is open only now; wait if the window is full, return the time."""
        with suppress(ValueError):  # it has left the window
            self._starts.remove(started)
        if self._wait_s() > 0:
            return await self.acquire()
        self._starts.append(self._clock.monotonic())
        return self._starts[-1]

    def _wait_s(self) -> float:
        now = self._clock.monotonic()
        while self._starts and self._starts[0] + self.time_window <= now:
            self._starts.popleft()
        if len(self._starts) < self.max_requests:
            return self._paused_until - now
        leaves_at = self._starts[-self.max_requests] + self.time_window
        return max(leaves_at, self._paused_until) - now

    def apply_backoff(self, retry_after: float | None = None, *, started: float | None = None) -> None:
        """Pause everybody after a 429: 1 s, then `backoff_multiplier` times longer, at most 60 s.

        Refusals that arrive during the pause, or whose requests *started* before it, belong to the same burst and
        make no further step.

        Args:
            retry_after: seconds that the server asked for; they count where they are longer (60 s at most).
            started: when the refused request started, by the limiter's clock.
        """
        now = self._clock.monotonic()
        same_burst = now < self._paused_until or (started is not None and started <= self._pause_began)
        if not same_burst:
            self._pause_s = min(max(FIRST_WAIT_S, self._pause_s * self.backoff_multiplier), MAX_WAIT_S)
            self._pause_began = now
            self._paused_until = now + self._pause_s
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + min(retry_after, MAX_WAIT_S))

    def reset_backoff(self, *, started: float | None = None) -> None:
        """Let the next pause be 1 s again, because a request succeeded that *started* after the last pause.

        A pause in force runs to its end.
        """
        if started is None or started > self._pause_began:
            self._pause_s = 0.0


def backoff_delay(attempt: int, rng: random.Random) -> float:
    """Return the seconds to wait after failed *attempt* (0 is the first): 1, 2, 4, ... 60, less up to half."""
    return min(FIRST_WAIT_S * 2.0 ** min(attempt, 10), MAX_WAIT_S) * (1 - rng.random() / 2)


def _http_date(value: str) -> datetime | None:
    """Return the time in a header, or None if there is none with a zone."""
    with suppress(ValueError, TypeError, OverflowError):
        date = parsedate_to_datetime(value)
        return date if date.tzinfo else None
    return None


def parse_retry_after(value: str | None, server_now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, or None if it is absent or invalid (RFC 9110, 10.2.3)."""
    if value and value.isascii() and value.isdigit():
        return float(value)
    date = _http_date(value or "")
    return max(0.0, (date - server_now).total_seconds()) if date else None


# --- Hosts, APIs ------------------------------------------------------------------------------------------------------

MAX_BOOKS_BYTES: Final = 32 * 2**20  # 500 books have 2 to 5 MB
MAX_ERROR_BYTES: Final = 64 * 2**10
# a run may retry FREE_RETRIES + RETRY_SHARE x its requests; 10 workers use up the first in half a minute
FREE_RETRIES: Final = 100
RETRY_SHARE: Final = 0.25
MAX_PAID_WAIT_S: Final = 5.0  # for a host that charges for its answers; the markets do not depend on it
MAX_QUOTA_S: Final = 15 * 60.0  # a window of X
# a host is not asked any more after so many failures in a row, if they last for OUTAGE_S
MAX_FAILURES: Final = 20
MAX_REFUSALS: Final = 100  # of requests that are too large: 413s are normal while batches are halved
OUTAGE_S: Final = 30.0
BOT_CHECKS: Final = ("just a moment", "attention required", "captcha")
MAX_TOKENS: Final = 500  # per request for books
MAX_FAILED_PIECES: Final = 40  # in a row, until a request is not halved any more; 31 if every 16th key is at fault


@dataclass(slots=True, kw_only=True)
class Network:
    """What the hosts of one run share, and counts of their requests."""

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore  # bounds the requests in flight over all hosts
    settings: Settings  # timeout and retries
    deadline: float  # of the run, by the clock
    clock: Clock
    rng: random.Random
    requests: int = 0  # attempts on the wire, retries included
    retries: int = 0
    rate_limit_hits: int = 0  # answers with status 429


class Request(NamedTuple):
    """A request to a host. It changes nothing there, so it may be repeated."""

    path: str
    params: Sequence[tuple[str, str]] = ()
    body: bytes | None = None  # JSON; without it the request is a GET, else a POST
    max_bytes: int = MAX_PAGE_BYTES  # of the decoded answer


async def _before_sending(_: object, request: Any, __: object) -> None:  # noqa: ANN401  aiohttp's, of any attributes
    """Await what the request brought along, when its connection is open and nothing is sent yet."""
    await request.trace_request_ctx()


class HttpHost:
    """HTTP client for one host: rate-limited, retried, with limits on the size and time of every answer.

    `fetch` makes up to `max_retries` + 1 attempts. Each waits for a slot and for the limiter, is sent (`_send`), and
    ends in an `ApiError` (`_error_in`, `_decoded`) or in the decoded answer.

    A host with a token charges for its answers: what may have been paid for is not asked for again.
    """

    def __init__(self, endpoint: Endpoint, limiter: RateLimiter, network: Network) -> None:
        self.url: Final = endpoint.url
        self._endpoint = endpoint
        self.answered_at: datetime | None = None  # the Date of the newest answer; while one is decoded, its own
        self._limiter = limiter
        self._network = network
        self._slot_order = asyncio.Lock()
        self._failed_at: list[float] = []  # when, since the last success
        self._final_error: ApiError | None = None  # after which the host is not asked any more in this run
        self._max_keys = MAX_TOKENS  # that the host takes in one request, as far as is known

    async def fetch(self, request: Request, decode: Callable[[Body], T], *, retry_server_errors: bool = True) -> T:
        """Send *request*, with retries, and return its answer, decoded by *decode*.

        Raises:
            ApiError: retries are used up, or a retry would not help, or the run has no time left.
        """
        network = self._network
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, network.deadline - network.clock.monotonic())):
                for retries in itertools.count():
                    try:
                        answer = await self._attempt(request, decode)
                    except ApiError as error:
                        error.message = self._endpoint.redacted(error.message)
                        error.url = error.url or self.url + request.path
                        error.args = (error.message,)
                        error.__cause__ = error.__context__ = None  # not redacted, and they keep whole answers
                        self._update_breaker(error)
                        if not self._may_retry(error, retries, retry_server_errors=retry_server_errors):
                            raise
                        log.debug("attempt %d failed, trying again: %s", retries + 1, error)
                        network.retries += 1
                        await network.clock.sleep(max(backoff_delay(retries, network.rng), error.retry_after or 0.0))
                    else:
                        self._update_breaker(None)
                        return answer
        raise self._too_late()

    def _may_retry(self, error: ApiError, retries: int, *, retry_server_errors: bool) -> bool:
        """Return whether a request that failed with *error* is sent again, after so many *retries* of it."""
        network, wait_s = self._network, error.retry_after or 0.0
        if retries >= network.settings.max_retries or network.retries >= FREE_RETRIES + RETRY_SHARE * network.requests:
            return False
        if self._endpoint.token and (error.billable or wait_s > MAX_PAID_WAIT_S):
            return False
        allowed = retry_server_errors or not isinstance(error, ServerError)
        return allowed and error.retryable and wait_s <= MAX_WAIT_S

    def _update_breaker(self, error: ApiError | None) -> None:
        """Count failures in a row. After too many, or a denial, the host is not asked any more.

        A success (None) and an error that a retry would not mend end the row. A 429 does neither: the limiter waits.
        """
        if self._final_error or isinstance(error, RateLimitedError):
            return
        if isinstance(error, AccessDeniedError):
            self._final_error = error
        elif error is None or not (error.retryable or error.too_large):
            self._failed_at.clear()
        else:
            self._failed_at.append(self._network.clock.monotonic())
            most = MAX_REFUSALS if isinstance(error, RequestRejectedError) else MAX_FAILURES
            lasting = error.too_large or self._failed_at[-1] - self._failed_at[0] >= OUTAGE_S
            if len(self._failed_at) >= most and lasting:
                self._final_error = error

    async def _attempt(self, request: Request, decode: Callable[[Body], T]) -> T:
        """Send *request* once, when the limiter lets it, and return its decoded answer."""
        self._check()
        async with AsyncExitStack() as stack:
            # one request per host waits for the limiter in a slot; the rest leaves them free
            async with self._slot_order:
                await stack.enter_async_context(self._network.slots)
                started = await self._limiter.acquire()
            self._check()
            self._network.requests += 1
            response, body, started = await self._send(request, started)
        log.debug("%s %s: %d, %d bytes", response.method, self.url + request.path, response.status, len(body))
        self.answered_at = _http_date(response.headers.get("Date", ""))
        server_now = self.answered_at or self._network.clock.now()
        self._read_quota(response, server_now)
        error = self._error_in(response, body, server_now)
        if error is None:
            self._limiter.reset_backoff(started=started)
            return self._decoded(response, body, decode)
        if isinstance(error, RateLimitedError):
            self._network.rate_limit_hits += 1
            self._limiter.apply_backoff(error.retry_after, started=started)
        raise error

    def _check(self) -> None:
        """Raise where nothing is to be sent now: the host has failed, the run is over, or the quota is used up."""
        if error := self._final_error:
            message = f"not asked any more in this run, after {error.message}"
            raise type(error)(message, error.url, error.status, retryable=False)
        if self._network.clock.monotonic() >= self._network.deadline:
            raise self._too_late()
        if (wait_s := self._limiter.quota_resets_at - self._network.clock.monotonic()) > 0:
            message = f"its quota is used up for {wait_s:.0f} s more"
            raise RateLimitedError(message, self.url, HTTPStatus.TOO_MANY_REQUESTS, wait_s)

    def _too_late(self) -> NetworkError:
        return NetworkError(f"the run's {self._network.settings.run_timeout_s:g} s are over", self.url, retryable=False)

    async def _send(self, request: Request, started: float) -> tuple[aiohttp.ClientResponse, bytearray, float]:
        """Send *request*; return the response, its body and when it started, which is when its connection is open.

        Waiting for the limiter is no part of the timeout.
        """
        timeout_s, json_type = self._network.settings.timeout_s, {"Content-Type": "application/json"}

        async def move_start() -> None:
            nonlocal started
            left_s = (timeout.when() or 0.0) - loop.time()
            timeout.reschedule(None)
            started = await self._limiter.move_start(started)
            self._check()  # much may have happened meanwhile
            timeout.reschedule(loop.time() + left_s)

        exchange = self._network.session.request(
            "POST" if request.body else "GET",
            self.url + request.path,
            params=request.params,
            data=request.body,
            headers=self._endpoint.headers | (json_type if request.body else {}),
            proxy=self._endpoint.proxy,
            proxy_headers=self._endpoint.proxy_headers,
            allow_redirects=False,
            trace_request_ctx=move_start,
        )
        loop, timeout = asyncio.get_running_loop(), asyncio.timeout(timeout_s)
        try:
            async with timeout, exchange as response:
                return response, await self._read(response, request.max_bytes), started
        except TimeoutError as error:
            raise NetworkError(f"no complete answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise self._network_error(error) from error

    async def _read(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytearray:
        """Return the decoded body, without the secrets that it repeats; a success loses nothing but the token.

        It is read piece by piece, so that an answer that is too long is never held in memory.
        """
        pieces = bytearray()
        max_bytes = max_bytes if response.ok else MAX_ERROR_BYTES
        try:
            async for piece in response.content.iter_any():
                pieces += piece
                if len(pieces) > max_bytes:
                    break
        except aiohttp.ClientPayloadError:
            if response.ok:  # else its status says enough
                raise
        if response.ok and len(pieces) > max_bytes:
            pieces.clear()  # an error keeps the locals of its function alive
            raise AnswerTooLongError(f"the answer is longer than {max_bytes} bytes", status=response.status)
        if self._endpoint.token or not response.ok:
            text = self._endpoint.redacted(pieces.decode("utf-8", "surrogateescape"), token_only=response.ok)
            return bytearray(text.encode("utf-8", "surrogateescape"))
        return pieces

    def _network_error(self, error: aiohttp.ClientError) -> NetworkError:
        text = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ServerDisconnectedError):
            text = "the connection was closed before the answer was complete"
        if proxy := self._endpoint.proxy:
            text += f" (through the proxy {proxy.host}:{proxy.port})"
        permanent = isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL))
        failure = NetworkError(text, retryable=not permanent)
        failure.billable = not isinstance(error, aiohttp.ClientConnectorError)
        return failure

    def _read_quota(self, response: aiohttp.ClientResponse, server_now: datetime) -> None:
        """Tell the limiter where X's headers say that its quota is used up.

        Source: https://docs.x.com/x-api/fundamentals/rate-limits
        """
        reset = response.headers.get("x-rate-limit-reset", "")
        refused = response.status == HTTPStatus.TOO_MANY_REQUESTS
        if reset.isdecimal() and (refused or response.headers.get("x-rate-limit-remaining") == "0"):
            wait_s = min(max(float(reset) - server_now.timestamp(), 0.0), MAX_QUOTA_S)
            self._limiter.quota_resets_at = self._network.clock.monotonic() + wait_s

    @staticmethod
    def _error_in(response: aiohttp.ClientResponse, body: bytearray, server_now: datetime) -> ApiError | None:
        """Return the error that the status of *response* stands for, or None if it is a success."""
        status, headers = response.status, response.headers
        said = body[:MAX_SHOWN_CHARS].decode("utf-8", "replace")
        text = f"HTTP {status}: {said!r}"
        is_check = "html" in headers.get("Content-Type", "") and any(sign in said.casefold() for sign in BOT_CHECKS)
        kind: type[ApiError] = RequestRejectedError
        if is_check or headers.get("cf-mitigated") == "challenge":
            kind, text = AccessDeniedError, f"a bot check instead of an answer; {text}"
        elif status < HTTPStatus.MULTIPLE_CHOICES:
            return None
        elif status < HTTPStatus.BAD_REQUEST:
            text = f"HTTP {status}: refusing a redirect to {headers.get('Location', '')!r}"
        elif status in {401, 403, 451}:
            kind, text = AccessDeniedError, f"access is denied to this region, address or token; {text}"
        elif status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = RateLimitedError
        elif status in {408, 425} or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = ServerError
        return kind(text, status=status, retry_after=parse_retry_after(headers.get("Retry-After"), server_now))

    @staticmethod
    def _decoded(response: aiohttp.ClientResponse, body: bytearray, decode: Callable[[Body], T]) -> T:
        """Return the decoded *body* of a success; raise what is wrong with it. What is no JSON may pass."""
        status = response.status
        try:
            return decode(body)
        except OverflowError as error:
            raise AnswerTooLongError(str(error), status=status) from error
        except msgspec.ValidationError as error:  # a ValueError as well
            with suppress(ValueError, RecursionError):
                if (said := _ERROR_OBJECT.decode(body).get("error")) is not None:
                    raise ServerError(f"HTTP {status}, and the error {said!r}", status=status) from error
            raise MalformedResponseError(str(error), status=status, retryable=body.strip() == b"null") from error
        except (ValueError, RecursionError) as error:  # cut short, or the page of a proxy in between
            sent = response.headers.get("Content-Type", "something untyped")
            raise MalformedResponseError(f"no JSON but {sent}: {error}", status=status, retryable=True) from error

    def _may_be_halved(self, error: ApiError) -> bool:
        """Return whether some of the keys may succeed alone: not after a redirect or a final error."""
        refused = isinstance(error, RequestRejectedError) and (error.status or 0) >= HTTPStatus.BAD_REQUEST
        return self._final_error is None and (refused or isinstance(error, (ServerError, AnswerTooLongError)))

    async def _one_key_succeeds(
        self, keys: Sequence[K], request_for: Callable[[Sequence[K]], Request], decode: Callable[[Body], T]
    ) -> bool:
        for key in (keys[:1], keys[-1:]):
            with suppress(ApiError):
                await self.fetch(request_for(key), decode, retry_server_errors=False)
                return True
        return False

    async def fetch_divided(
        self, keys: Sequence[K], request_for: Callable[[Sequence[K]], Request], decode: Callable[[Body], T]
    ) -> list[tuple[Sequence[K], T | ApiError]]:
        """Return the answers to a request for *keys*, each with its keys: one answer if the host gives it.

        A request that fails after its retries is repeated in halves, down to the key at fault: 2 x log2(keys)
        requests. A half is not retried after a `ServerError`, because its own halves are asked for. In an outage
        nothing is halved: the first or the last key alone has to succeed before.
        """
        answers: list[tuple[Sequence[K], T | ApiError]] = []
        pieces = deque([keys])
        was_divided = False
        seeks_bad_key = False  # else a smaller request may be what helps
        failures_in_row = 0
        while pieces:
            piece = pieces.popleft()
            halves = (piece[: len(piece) // 2], piece[len(piece) // 2 :])
            if len(piece) > self._max_keys:
                pieces += halves
                continue
            try:
                answer = await self.fetch(request_for(piece), decode, retry_server_errors=not seeks_bad_key)
                answers.append((piece, answer))
                failures_in_row = 0
                continue
            except ApiError as caught:
                error = caught.with_traceback(None)  # it would keep whole answers
            failures_in_row += 1
            divide = len(piece) > 1 and failures_in_row < MAX_FAILED_PIECES and self._may_be_halved(error)
            if divide and not (error.too_large or seeks_bad_key):
                seeks_bad_key = divide = await self._one_key_succeeds(piece, request_for, decode)
            if not divide:
                answers.append((piece, error))
                continue
            if error.too_large and isinstance(error, RequestRejectedError):
                self._max_keys = min(self._max_keys, len(halves[0]))
            was_divided = True
            pieces += halves
        if was_divided and not any(isinstance(answer, ApiError) for _, answer in answers):  # this size works
            self._max_keys = min(self._max_keys, max(len(piece) for piece, _ in answers))
        return answers


MARKETS_PATH: Final = "/markets/keyset"
EVENTS_PATH: Final = "/events/keyset"
PAGE_SIZE: Final = 100  # Gamma cuts larger pages to this
EVENTS_SIZE: Final = 20  # of a page of events, each with all its markets
MAX_EVENTS_BYTES: Final = 64 * 2**20  # an event of 2,000 markets has 10 MB
MAX_PAGES: Final = 20_000  # of a listing; the whole exchange has 1,600
MAX_EMPTY_PAGES: Final = 3  # in a row
_NAMED: Final = json_decoder(Named)
_CLOB_MARKET: Final = json_decoder(ClobMarket)
# why there is no book for a token; None stands for the tokens of which nothing else is known
Problems = dict[str | None, str | ApiError]


class Listing(NamedTuple):
    """What is listed, and in which order: every market that is not closed, or those that pass the filters."""

    order: str  # a field of Gamma's
    ascending: bool
    filters: Sequence[tuple[str, str]] = ()
    path: str = MARKETS_PATH  # or that of events


@dataclass
class PolymarketApi:
    """What is asked of Polymarket: Gamma for markets, the CLOB for order books.

    Every method raises `ApiError` when retries are used up, or would not help.

    Source: https://docs.polymarket.com/api-reference
    """

    _gamma: HttpHost
    _clob: HttpHost

    def bad_listing(self, what: str) -> MalformedResponseError:
        """Return the error of a listing that cannot be relied on."""
        return MalformedResponseError(what, self._gamma.url + MARKETS_PATH)

    async def iter_market_pages(
        self, listing: Listing, *, after: tuple[str, str] | None = None
    ) -> AsyncGenerator[MarketPage]:
        """Yield the pages of *listing*; or go on *after* a page, given as the cursor that it names and its last id.

        In an order that changes meanwhile, such as the volume, markets can come twice. Only with filters may a listing
        be empty.

        How the end of a listing is recognised: the first page shows the size of a full one, and the next ones are asked
        for with that size, as is the first one itself if it is smaller than what was asked for. A page that names a
        next one is full; where it is not, it is `incomplete`, and the listing goes on. A page that names no next one is
        the last. Whoever reads on beyond it learns whether it is: it must have the first element of the same listing in
        the opposite order.

        Raises:
            ApiError: a page cannot be had, or the listing is empty, repeats a cursor, or breaks off.
        """
        largest = EVENTS_SIZE if listing.path == EVENTS_PATH else PAGE_SIZE
        cursor, last = (after[0], {after[1]}) if after else (None, set[str]())
        page = await self._fetch_page(listing, limit=largest, after=cursor)
        if not (page.size or listing.filters or after):
            raise self.bad_listing("the listing is empty")
        size = min(page.size, largest)
        if page.next_cursor is not None and 0 < size < largest:  # where pages are smaller, the same comes again
            page = self._compared(await self._fetch_page(listing, limit=size, after=cursor), 1, size)
        yield page
        last = page.names or last
        used: set[str] = set()
        empty = 0  # pages in a row
        while (cursor := page.next_cursor) is not None:
            if not cursor or cursor in used or len(used) >= MAX_PAGES or empty == MAX_EMPTY_PAGES:
                raise self.bad_listing(f"the listing does not end: page {len(used) + 1} leads to cursor {cursor!r}")
            used.add(cursor)
            page = await self._fetch_page(listing, limit=size or largest, after=cursor)
            page = self._compared(page, len(used) + 1, size)
            size = largest if page.incomplete else size
            yield page
            empty = 0 if page.size else empty + 1
            last = page.names or last
        other_end = await self._fetch_page(listing._replace(ascending=not listing.ascending), limit=1)
        if not other_end.names & last and (other_end.names or last):
            what = f"page {len(used) + 1} names no next one, but from its other end it begins with {other_end.names}"
            raise self.bad_listing(f"the listing has not been read to its end: {what}")

    @staticmethod
    def _compared(page: MarketPage, number: int, size: int) -> MarketPage:
        """Return *page*, as incomplete if it names a next one and has less than the *size* that was asked for."""
        if page.size >= size or page.next_cursor is None:
            return page
        what = f"page {number} has {page.size} of {size} markets, and names a next one"
        return page._replace(incomplete=f"the listing has not been read to its end: {what}")

    async def _fetch_page(
        self, listing: Listing, *, limit: int, after: str | None = None, closed: bool = False
    ) -> MarketPage:
        params = [*listing.filters, ("order", listing.order), ("ascending", str(listing.ascending).lower())]
        if after is not None:
            params.append(("after_cursor", after))
        request = self._page_request(params, limit=limit, closed=closed)
        decode = decode_page
        if listing.path == EVENTS_PATH:
            request, decode = request._replace(path=EVENTS_PATH, max_bytes=MAX_EVENTS_BYTES), decode_events
        return await self._gamma.fetch(request, partial(decode, asked=listing.filters))

    @staticmethod
    def _page_request(params: Sequence[tuple[str, str]], *, limit: int = PAGE_SIZE, closed: bool) -> Request:
        always = [("limit", str(limit)), ("closed", str(closed).lower()), ("include_tag", "true")]
        return Request(MARKETS_PATH, [*params, *always])

    async def fetch_markets(
        self, names: Sequence[K], *, by: str = "id", closed: bool = False
    ) -> tuple[MarketPage, list[K], list[tuple[Sequence[K], ApiError]]]:
        """Fetch the open markets with these *names*, or the *closed* ones; *by* says what they are: "id" or "slug".

        Returns:
            The markets, the names that are not among them, and the names that could not be asked for.
        """

        def request_for(some: Sequence[K]) -> Request:
            return self._page_request([(by, str(name)) for name in some], closed=closed)

        found = MarketPage([], [], None)
        absent: list[K] = []
        failed: list[tuple[Sequence[K], ApiError]] = []
        rest = names
        while rest:
            asked, rest = rest, []
            for some, page in await self._gamma.fetch_divided(asked, request_for, decode_page):
                if isinstance(page, ApiError):
                    failed.append((some, page))
                    continue
                markets: defaultdict[str, list[GammaMarket]] = defaultdict(list)  # a slug may be that of several
                for market in page.markets:  # one that does not say its slug is one of those that were asked for
                    markets[market.market_id if by == "id" else market.slug or str(some[0])].append(market)
                found.markets.extend(market for name in some for market in markets.get(str(name), ()))
                found.undecoded.extend(page.undecoded)
                others = [name for name in some if str(name) not in markets and str(name) not in page.names]
                if page.next_cursor is not None:  # they can be asked for without those of this page
                    rest = [*rest, *others]
                elif len(others) == len(some) and page.markets:
                    why = f"{by} {some[0]} was asked for, and {next(iter(markets))} came"
                    failed.append((some, self.bad_listing(why)))
                else:
                    absent += others
            if len(rest) == len(asked):
                failed.append((rest, self.bad_listing("the answer has none of the markets, and names a next page")))
                break
        return found, absent, failed

    async def fetch_event(self, name: str, *, by: str = "slug") -> MarketPage | None:
        """Fetch all markets of an event, open and closed, in one request if one is open; None if there is no event.

        *by* says what *name* is: "slug" or "id". Where the exchange has several events of that slug, all are there.
        """
        listing = Listing("id", ascending=True, filters=[(by, name)], path=EVENTS_PATH)
        for closed in (False, True):
            found = page = await self._fetch_page(listing, limit=EVENTS_SIZE, closed=closed)
            used: set[str] = set()
            while (cursor := page.next_cursor) is not None and (len(page.others) < page.size or not page.size):
                if not (cursor and page.size) or cursor in used:
                    return found._replace(incomplete=f"the event {name!r} does not end: {cursor!r} is its next cursor")
                used.add(cursor)
                page = await self._fetch_page(listing, limit=EVENTS_SIZE, after=cursor, closed=closed)
                found.markets.extend(page.markets)
                found.undecoded.extend(page.undecoded)
            if len(found.others) < found.size:
                return found
            if found.others:
                raise self.bad_listing(f"the event {name!r} was asked for, and {found.others[0]!r} came")
        return None

    async def fetch_groups(self, kind: str, slug: str) -> list[Named]:
        """Fetch the "series" or the "tag" of that slug: none, one, or several that the exchange calls so."""
        if kind == "tag":
            tag = await self._fetch_known(self._gamma, f"/tags/slug/{quote(slug, safe='')}", _NAMED)
            found, bad = [tag] if tag else [], list[Undecoded]()
        else:
            request = Request("/series", [("slug", slug)], max_bytes=MAX_EVENTS_BYTES)
            elements = await self._gamma.fetch(request, partial(decode_answer, _ELEMENTS))
            found, bad = decode_elements(elements, _NAMED)
        same = [one for one in found if (one.slug or slug).casefold() == slug.casefold()]
        if (found or bad) and not same:
            came = found[0].slug if found else bad[0].reason
            raise self.bad_listing(f"the {kind} {slug!r} was asked for, and {came!r} came")
        if odd := [one.id for one in same if not re.fullmatch("[0-9]{1,18}", str(one.id))]:
            raise self.bad_listing(f"the {kind} {slug!r} has no id but {odd[0]!r}")
        return same

    @staticmethod
    async def _fetch_known(host: HttpHost, path: str, decoder: msgspec.json.Decoder[T]) -> T | None:
        """Fetch the one thing at *path*, or None if the host does not know it."""
        try:
            return await host.fetch(Request(path), decoder.decode)
        except RequestRejectedError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def fetch_clob_market(self, condition_id: str) -> ClobMarket | None:
        """Fetch what the CLOB knows of a market, or None if it does not know it."""
        if not re.fullmatch("[0-9A-Za-z_-]+", condition_id):  # it would lead to another address
            return None
        return await self._fetch_known(self._clob, f"/markets/{condition_id}", _CLOB_MARKET)

    async def fetch_books(self, token_ids: Sequence[str]) -> tuple[dict[str, OrderBook], Problems]:
        """Fetch the current books of 1 to 500 *token_ids* in one request, keyed by token id.

        Tokens without a book (closed, not yet open) are absent from the answer. A request that fails is repeated in
        halves: what fails even so is among the problems, unless nothing at all can be had.

        Source: https://docs.polymarket.com/market-data/prices-order-books
        """

        def request_for(tokens: Sequence[str]) -> Request:
            wanted = msgspec.json.encode([{"token_id": token_id} for token_id in tokens])
            return Request("/books", body=wanted, max_bytes=MAX_BOOKS_BYTES)

        books: dict[str, OrderBook] = {}
        problems: Problems = {}
        answers = await self._clob.fetch_divided(token_ids, request_for, decode_books)
        errors = [answer for _, answer in answers if isinstance(answer, ApiError)]
        if len(errors) == len(answers):
            raise errors[0]
        for tokens, answer in answers:
            if isinstance(answer, ApiError):
                problems |= dict.fromkeys(tokens, answer)
            else:
                books |= {book.token_id: book for book in answer[0]}
                problems |= {bad.id: bad.reason for bad in answer[1]}
        return books, problems


# --- Schema -----------------------------------------------------------------------------------------------------------

# the other token's side: bid p of a NO book that mirrors YES is ask 1 - p of YES
_MIRROR: Final = (
    "(SELECT json_group_array(json_array(round(1 - json_extract(value, '$[0]'), 9), json_extract(value, '$[1]')))"
    " FROM json_each({0}))"
)
# of a YES share, by the outcome
_PAYOUT: Final = "CASE {} WHEN outcome_yes THEN 1 WHEN outcome_no THEN 0 WHEN 'split' THEN 0.5 END"
SCHEMA_VERSION: Final = 15
# What a new file consists of. An older file, also one that another collector has made, gets what it lacks of this by
# comparison (`Database._upgrade`); what else is taken from an older one stands in `MOVES`. To add or change anything:
#   - write it here; a column on a line of its own, with a comment that says what it means to whoever reads the file
#     (`column_comments`); one that older files lack may be NULL or has a constant default;
#   - raise SCHEMA_VERSION, by one for each change that lands;
#   - a column of a record is a field of `Market` or `Snapshot` and of its `from_wire` as well, and one of `GammaMarket`
#     if Gamma sends it. Tests name what else has to know of it, such as docs/data.md.
# Nothing of markets, snapshots, tweets and hype_signals is ever renamed or removed: other programs read them. Times are
# UTC, 'YYYY-MM-DD HH:MM:SS', so that they compare with datetime('now', '-1 hour').
SCHEMA: Final = f"""
    CREATE TABLE markets (
        market_id TEXT PRIMARY KEY, -- the exchange's id, from Gamma
        slug TEXT, -- the last part of the market's address
        question TEXT, -- as the exchange asks it
        description TEXT, -- the rules, from Gamma
        category TEXT, -- the main topic among the tags
        token_id_yes TEXT, -- of the first outcome, whatever it is called
        token_id_no TEXT, -- of the second outcome
        start_time TIMESTAMP, -- UTC, from Gamma
        end_time TIMESTAMP, -- UTC, nominal: a market may close before or after
        resolved INTEGER DEFAULT 0, -- 1: its outcome is known
        resolution_outcome TEXT, -- the winning outcome's own word, or split
        first_seen TIMESTAMP DEFAULT CURRENT_TIMESTAMP, -- UTC: when it was first listed as open
        condition_id TEXT, -- the market's id on the CLOB and on chain
        event_slug TEXT, -- the last part of its event's address
        outcome_yes TEXT, -- the first outcome's own word: Yes, Up, a team
        outcome_no TEXT, -- the second outcome's own word
        tags TEXT, -- JSON array of labels
        neg_risk INTEGER, -- 1: of its event's markets at most one ends as Yes; 0: any may; NULL: Gamma did not say
        tick_size REAL, -- USD: the step of prices, from Gamma; NULL: it did not say
        min_order_size REAL, -- shares: the smallest order, from Gamma; NULL: it did not say
        fee_rate REAL, -- of takers, from Gamma's feeSchedule; 0: no fee; NULL: it did not say
        payout_yes REAL, -- USD that a YES share has paid: 1, 0 or 0.5; NULL: not resolved
        closed_at TIMESTAMP, -- UTC: when it closed, from Gamma; filled together with the outcome
        outcome_stored_at TIMESTAMP, -- UTC: when that outcome was stored; NULL: there is none, or before version 0.3
        outcome_asked INTEGER DEFAULT 0, -- how often the outcome was asked for in vain
        outcome_ask_at TIMESTAMP, -- UTC: the outcome is not asked for again before
        followed INTEGER NOT NULL DEFAULT 0 -- 1: collected in every run until it resolves
    );
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with time
        market_id TEXT REFERENCES markets(market_id), -- the market
        timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP, -- UTC: when the books of this market were received
        price_yes REAL, -- USD, or probability: midpoint of the YES book (no bid: 0, no ask: 1), else Gamma's price
        price_no REAL, -- USD: 1 - price_yes
        volume_24h REAL, -- USD traded in 24 hours
        liquidity REAL, -- USD, as the exchange states it
        best_bid_yes REAL, -- USD, CLOB; NULL without a bid or without a book
        best_ask_yes REAL, -- USD, CLOB; NULL without an ask or without a book
        best_bid_no REAL, -- USD, CLOB, from the book of NO itself
        best_ask_no REAL, -- USD, CLOB, from the book of NO itself
        spread REAL, -- USD: best_ask_yes - best_bid_yes
        run_id INTEGER, -- the run that stored it; NULL in rows of other programs
        last_trade_price REAL, -- USD, Gamma, in terms of YES
        book_time TIMESTAMP, -- UTC, with milliseconds: when the book last changed
        bid_size_yes REAL, -- shares at best_bid_yes
        ask_size_yes REAL, -- shares at best_ask_yes
        bid_size_no REAL, -- shares at best_bid_no
        ask_size_no REAL, -- shares at best_ask_no
        book_id INTEGER REFERENCES books(book_id), -- the whole book of this snapshot; NULL: no book, or none was kept
        volume REAL, -- USD traded since the market opened, from Gamma; NULL: none yet, or before version 0.3
        UNIQUE (market_id, timestamp)
    );
    CREATE TABLE tweets (
        tweet_id TEXT PRIMARY KEY, -- the post's id on X
        timestamp TIMESTAMP, -- UTC: when it was posted
        text TEXT, -- of the post
        author_username TEXT, -- without @; only if it was bought
        author_id TEXT, -- on X
        likes INTEGER, -- when it was read
        retweets INTEGER, -- when it was read
        replies INTEGER, -- when it was read
        engagement_score INTEGER, -- likes + 2 x retweets + replies
        sentiment_score REAL, -- from -1 (scam, losing) to 1 (winning)
        market_id TEXT, -- the market that it is about; NULL: none, or several equally well
        keywords TEXT, -- the link, or the words, by which that market was found
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, -- UTC: when the row was stored
        run_id INTEGER, -- the run that stored it; NULL in rows of other programs
        lang TEXT, -- the language, as X names it
        links TEXT -- JSON array of full addresses; the text only has short forms
    );
    CREATE TABLE hype_signals (
        id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with time
        market_id TEXT, -- the market
        timestamp TIMESTAMP, -- UTC: the end of the hour that is counted
        tweet_count INTEGER, -- posts of that hour
        total_engagement INTEGER, -- sum of likes + 2 x retweets + replies
        avg_sentiment REAL, -- from -1 to 1
        unique_users INTEGER, -- authors of the posts
        velocity REAL, -- change of posts against the hour before; 1: twice as many
        hype_score REAL, -- from 0 to 100
        run_id INTEGER, -- the run that stored it; NULL in rows of other programs
        UNIQUE (market_id, timestamp)
    );
    CREATE TABLE runs (
        run_id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with time
        started_at TIMESTAMP NOT NULL, -- UTC
        finished_at TIMESTAMP, -- UTC; NULL while running, and for ever if the process died
        status TEXT NOT NULL, -- running, complete, partial or failed
        markets_listed INTEGER NOT NULL DEFAULT 0, -- open markets that the exchange named and the run had to store
        snapshots_saved INTEGER NOT NULL DEFAULT 0, -- rows in snapshots
        books_missing INTEGER NOT NULL DEFAULT 0, -- markets without both of their books
        tweets INTEGER NOT NULL DEFAULT 0, -- rows added to tweets
        requests INTEGER NOT NULL DEFAULT 0, -- attempts on the wire, retries included
        retries INTEGER NOT NULL DEFAULT 0, -- how many of them were repetitions
        rate_limit_hits INTEGER NOT NULL DEFAULT 0, -- answers with status 429
        errors INTEGER NOT NULL DEFAULT 0, -- rows in failures
        listing TEXT, -- top: by volume; full: by start date; known: the newest and by id; named: what was named
        full_walk_at TIMESTAMP, -- UTC: when the last walk by id came to its end, this run's included
        follow INTEGER, -- 1: should have stored every market that was collected before
        duration REAL, -- seconds
        min_volume REAL, -- USD in 24 hours; NULL: all that was named
        version TEXT, -- of the collector
        newest_tweet_id TEXT, -- the next search goes on after it
        tweets_complete INTEGER, -- 1: no post since the last search is left out; NULL: none was searched
        selection_id INTEGER, -- the names that were asked for, in selections; NULL: none
        depth INTEGER, -- levels kept of each side of a book; 0: none; NULL: all
        books_saved INTEGER NOT NULL DEFAULT 0, -- rows added to books: changed, or the first of a day
        books_unchanged INTEGER NOT NULL DEFAULT 0, -- snapshots with the book of the snapshot before
        unmirrored INTEGER NOT NULL DEFAULT 0 -- markets whose NO book is not the mirror of their YES book
    );
    CREATE TABLE selections ( -- one row per UTC day and list of names
        selection_id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with time
        names TEXT NOT NULL, -- JSON of the names that were asked for
        first_used_at TIMESTAMP NOT NULL -- UTC: start of the first run of the day that asked for them
    );
    CREATE TABLE failures (
        run_id INTEGER NOT NULL REFERENCES runs(run_id), -- the run
        market_id TEXT, -- NULL where a whole answer failed
        stage TEXT NOT NULL, -- list, book, outcome, save or posts
        reason TEXT NOT NULL, -- what the exchange or the file said
        markets INTEGER -- how many markets it concerns; NULL where that is not known
    );
    CREATE TABLE listed_ids ( -- by runs over the whole exchange, until the exchange names them as closed
        market_id INTEGER PRIMARY KEY -- the exchange's id, as a number
    );
    CREATE TABLE walk ( -- one row: how far the listing of the whole exchange is
        cursor TEXT, -- where the walk by id goes on; NULL: at its beginning
        began TIMESTAMP, -- UTC: when it began; NULL: none is under way
        last_id INTEGER, -- the last id that it has come to
        unread TEXT, -- JSON [[from, to], ...]: start dates, Unix time, that the first listing lacks; NULL: none
        oldest INTEGER, -- the first start date, in Unix time
        newest INTEGER, -- markets up to this id are listed; above it there may be unknown ones
        listed_at TIMESTAMP -- UTC: start of the run in which the first listing came through
    );
    CREATE TABLE books ( -- one row per content, market and UTC day
        book_id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice
        market_id TEXT NOT NULL REFERENCES markets(market_id), -- the market
        timestamp TIMESTAMP NOT NULL, -- UTC: when this content was first received
        bids TEXT, -- of YES: JSON [[price in USD, shares], ...], the best first; [] is an empty side; NULL: no YES book
        asks TEXT, -- of YES: JSON [[price in USD, shares], ...], the best first; [] is an empty side; NULL: no YES book
        mirrored INTEGER, -- 1: the NO book is the exact mirror of YES, and not stored; 0: it is not; NULL: no NO book
        bids_no TEXT, -- of NO, only where it is no mirror
        asks_no TEXT -- of NO, only where it is no mirror
    );
    CREATE TABLE seen ( -- what changes in every run
        market_id TEXT PRIMARY KEY, -- the market
        last_seen TIMESTAMP, -- UTC: when the market was last listed as open
        snapshot_id INTEGER -- its snapshot of the newest run
    ) WITHOUT ROWID;
    CREATE TABLE names ( -- whom a name means that the exchange may not know any more
        kind TEXT NOT NULL, -- market, event, series or tag
        name TEXT NOT NULL, -- a slug; of a market an earlier one
        id TEXT NOT NULL, -- the exchange's id
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    CREATE TABLE lake ( -- one row, made by the first archiving
        database_id TEXT NOT NULL, -- a UUID
        shard TEXT NOT NULL -- the name of its files in the lake
    );
    CREATE TABLE archived_days ( -- rows of the day with ids up to the greatest in its rows are in the lake
        day TEXT NOT NULL, -- YYYY-MM-DD, UTC
        shard TEXT NOT NULL DEFAULT '', -- the name under which they are there
        archived_at TIMESTAMP NOT NULL, -- UTC: when the newest part was
        parts INTEGER NOT NULL DEFAULT 1, -- how often rows of the day were archived under that name
        manifests TEXT NOT NULL DEFAULT '[]', -- JSON array: SHA-256 of each part's manifest, [] before version 0.3
        is_behind INTEGER NOT NULL DEFAULT 0, -- 1: the lake has later rows of the day, which this file never had
        pruned_at TIMESTAMP, -- UTC: when their deletion from this file began, NULL before version 0.3
        snapshots INTEGER NOT NULL DEFAULT 0, -- the greatest archived id, as in the columns that follow
        books INTEGER NOT NULL DEFAULT 0, -- the greatest archived book_id
        runs INTEGER NOT NULL DEFAULT 0, -- the greatest archived run_id
        failures INTEGER NOT NULL DEFAULT 0, -- the greatest archived rowid
        tweets INTEGER NOT NULL DEFAULT 0, -- the greatest archived rowid
        hype_signals INTEGER NOT NULL DEFAULT 0, -- the greatest archived id
        past_prices INTEGER NOT NULL DEFAULT 0, -- the greatest archived price_id
        trades INTEGER NOT NULL DEFAULT 0, -- the greatest archived trade_id
        streams INTEGER NOT NULL DEFAULT 0, -- the greatest archived stream_id
        book_changes INTEGER NOT NULL DEFAULT 0, -- the greatest archived change_id
        live_trades INTEGER NOT NULL DEFAULT 0, -- the greatest archived trade_id
        live_gaps INTEGER NOT NULL DEFAULT 0, -- the greatest archived gap_id
        selections INTEGER NOT NULL DEFAULT 0, -- the greatest archived selection_id
        PRIMARY KEY (day, shard)
    );
    CREATE TABLE past_prices ( -- the exchange's own history of YES, which `collector-history` asks for
        price_id INTEGER PRIMARY KEY AUTOINCREMENT, -- row number
        market_id TEXT NOT NULL REFERENCES markets(market_id), -- the market
        width INTEGER NOT NULL, -- seconds of a bucket: 10800 or 300
        timestamp TIMESTAMP NOT NULL, -- UTC: of the bucket
        price REAL NOT NULL, -- USD: the exchange's midpoint as far as is known, neither a trade nor ours
        fetched_at TIMESTAMP NOT NULL, -- UTC: when it was stored
        UNIQUE (market_id, width, timestamp)
    );
    CREATE TABLE trades ( -- those of takers, which `collector-history --trades` asks for
        trade_id INTEGER PRIMARY KEY AUTOINCREMENT, -- row number
        market_id TEXT NOT NULL REFERENCES markets(market_id), -- the market
        timestamp TIMESTAMP NOT NULL, -- UTC: of its block
        outcome TEXT NOT NULL, -- YES or NO
        side TEXT NOT NULL, -- of the taker: BUY or SELL
        price REAL NOT NULL, -- USD per share of that outcome
        size REAL NOT NULL, -- shares
        wallet TEXT NOT NULL, -- of the taker
        transaction_hash TEXT NOT NULL, -- on chain; one has many trades
        occurrence INTEGER NOT NULL, -- 1, 2, ... among trades that are equal in all the columns before
        fetched_at TIMESTAMP NOT NULL -- UTC: when it was stored
    );
    CREATE TABLE past_done ( -- how far `collector-history` has come
        market_id TEXT NOT NULL, -- the market
        what TEXT NOT NULL, -- 10800 or 300 (the width of prices), or trades
        until TIMESTAMP, -- UTC: all before is stored
        top TIMESTAMP, -- UTC: the newest trade of a walk under way
        cursor TEXT, -- with which that walk goes on
        PRIMARY KEY (market_id, what)
    ) WITHOUT ROWID;
    CREATE INDEX trades_by_market ON trades(market_id, timestamp);
    CREATE INDEX trades_by_fetch ON trades(fetched_at);
    CREATE INDEX past_prices_by_fetch ON past_prices(fetched_at);
    CREATE TABLE streams ( -- one row per connection of `collector-live`
        stream_id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with every connection
        started_at TIMESTAMP NOT NULL, -- UTC
        ended_at TIMESTAMP, -- UTC; NULL while it is open; if the process died, the last verified moment
        verified_at TIMESTAMP, -- UTC of the exchange, with milliseconds: nothing of its markets is missing up to then
        tokens INTEGER NOT NULL, -- that were subscribed at most, two per market
        frames INTEGER NOT NULL, -- received
        bytes INTEGER NOT NULL, -- of these frames
        changes INTEGER NOT NULL, -- rows in book_changes
        trades INTEGER NOT NULL, -- rows in live_trades
        repeated INTEGER NOT NULL, -- changes and trades that came again, or are older than the book; not stored
        reason TEXT -- why it ended; NULL while it is open
    );
    CREATE TABLE book_changes ( -- one row per changed level of a YES book
        change_id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows in the order of receipt
        market_id TEXT NOT NULL, -- of `markets`
        timestamp TIMESTAMP NOT NULL, -- UTC of the exchange, with milliseconds
        lag_ms INTEGER NOT NULL, -- milliseconds until it was received, by our clock
        side TEXT NOT NULL, -- bid or ask
        price REAL NOT NULL, -- USD
        size REAL NOT NULL, -- shares that are there now; 0: the level is gone
        stream_id INTEGER NOT NULL -- of `streams`
    );
    CREATE TABLE live_trades ( -- one row per announced trade
        trade_id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows in the order of receipt
        market_id TEXT NOT NULL, -- of `markets`
        timestamp TIMESTAMP NOT NULL, -- UTC of the exchange, with milliseconds
        lag_ms INTEGER NOT NULL, -- milliseconds until it was received, by our clock
        outcome TEXT NOT NULL, -- YES or NO: which token was traded
        side TEXT, -- BUY or SELL of the taker
        price REAL NOT NULL, -- USD, of that token
        size REAL, -- shares
        transaction_hash TEXT, -- on chain
        stream_id INTEGER NOT NULL -- of `streams`
    );
    CREATE TABLE live_gaps ( -- what is stamped after `since` and up to `until` may be missing
        gap_id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows in the order in which they were noticed
        market_id TEXT NOT NULL, -- of `markets`
        since TIMESTAMP NOT NULL, -- UTC of the exchange, with milliseconds: the last verified moment
        until TIMESTAMP, -- UTC of the exchange, with milliseconds: the book from which it went on; NULL: still open
        reason TEXT NOT NULL -- why it began
    );
    CREATE INDEX unresolved_markets ON markets(CAST(market_id AS INTEGER), outcome_ask_at)
        WHERE resolved = 0 AND market_id NOT GLOB '*[^0-9]*';
    CREATE INDEX second_looks ON markets(outcome_ask_at) WHERE resolved = 1 AND outcome_ask_at IS NOT NULL;
    CREATE INDEX failures_by_run_and_market ON failures(run_id, market_id);
    CREATE INDEX tweets_by_time ON tweets(timestamp);
    CREATE INDEX tweets_by_market ON tweets(market_id, timestamp);
    CREATE INDEX snapshots_by_time ON snapshots(timestamp);
    CREATE INDEX snapshots_by_run ON snapshots(run_id);
    CREATE INDEX books_by_time ON books(timestamp);
    CREATE INDEX runs_by_start ON runs(started_at);
    CREATE INDEX book_changes_by_market ON book_changes(market_id, timestamp);
    CREATE INDEX open_live_gaps ON live_gaps(market_id) WHERE until IS NULL;
    -- without these, SQLite looks for the snapshots of a slug by walking all of snapshots_by_time
    CREATE INDEX markets_by_slug ON markets(slug);
    CREATE INDEX markets_by_event ON markets(event_slug);
    CREATE INDEX markets_by_category ON markets(category);
    CREATE TRIGGER market_renamed AFTER UPDATE OF slug ON markets WHEN old.slug <> new.slug
    BEGIN INSERT OR REPLACE INTO names VALUES ('market', old.slug, old.market_id); END;
    CREATE VIEW latest_snapshots AS
    SELECT m.question, m.category, m.outcome_yes, m.outcome_no, s.*,
           m.slug, m.event_slug, m.end_time, m.resolved, m.resolution_outcome, m.payout_yes,
           m.neg_risk, m.tick_size, m.min_order_size, m.fee_rate, seen.last_seen
    FROM seen JOIN snapshots AS s ON s.id = seen.snapshot_id JOIN markets AS m ON m.market_id = seen.market_id;
    CREATE VIEW order_books AS
    SELECT s.id AS snapshot_id, s.market_id, s.timestamp, s.run_id, b.book_id, b.mirrored,
           b.bids AS bids_yes, b.asks AS asks_yes,
           CASE b.mirrored WHEN 0 THEN b.bids_no WHEN 1 THEN {_MIRROR.format("b.asks")} END AS bids_no,
           CASE b.mirrored WHEN 0 THEN b.asks_no WHEN 1 THEN {_MIRROR.format("b.bids")} END AS asks_no
    FROM snapshots AS s JOIN books AS b USING (book_id);
    -- one row per level of each snapshot, level 1 being the best
    CREATE VIEW book_levels AS
    SELECT snapshot_id, market_id, timestamp, run_id, outcome, side, level.key + 1 AS level,
           CAST(json_extract(level.value, '$[0]') AS REAL) AS price,
           CAST(json_extract(level.value, '$[1]') AS REAL) AS size
    FROM order_books
    JOIN (SELECT 'YES' AS outcome UNION ALL SELECT 'NO') JOIN (SELECT 'bid' AS side UNION ALL SELECT 'ask')
    JOIN json_each(CASE outcome || side
        WHEN 'YESbid' THEN bids_yes WHEN 'YESask' THEN asks_yes WHEN 'NObid' THEN bids_no ELSE asks_no
    END) AS level;
    -- our own prices, and the exchange's where there is none of ours, the finer of two
    CREATE VIEW price_path AS
    SELECT market_id, timestamp, price_yes AS price, 'book' AS source, NULL AS width
    FROM snapshots WHERE book_time IS NOT NULL
    UNION ALL SELECT market_id, timestamp, price, 'exchange', width FROM past_prices AS p
    WHERE NOT EXISTS (SELECT 1 FROM snapshots WHERE market_id = p.market_id AND book_time IS NOT NULL
                      AND timestamp >= p.timestamp AND timestamp < datetime(p.timestamp, p.width || ' seconds'))
      AND (width = 300 OR NOT EXISTS (SELECT 1 FROM past_prices WHERE market_id = p.market_id AND width = 300
                      AND timestamp >= p.timestamp AND timestamp < datetime(p.timestamp, '3 hours')));
    -- the runs that should have stored a market and did not; until is NULL while it is still missing
    CREATE VIEW gaps AS
    WITH spans AS MATERIALIZED ( -- the runs of a market's first and last row
        SELECT market_id,
               (SELECT run_id FROM snapshots WHERE market_id = g.market_id AND timestamp = first_at) AS first_run,
               (SELECT run_id FROM snapshots WHERE market_id = g.market_id AND run_id IS NOT NULL
                ORDER BY timestamp DESC LIMIT 1) AS last_run
        FROM (SELECT market_id, min(timestamp) AS first_at FROM snapshots GROUP BY market_id) AS g
    ), spanned AS ( -- how many markets have rows before and after the runs of a range, or in them
        SELECT first, lead(first) OVER (ORDER BY first) AS next, sum(sum(change)) OVER (ORDER BY first) AS markets
        FROM (
            SELECT coalesce(first_run, 0) AS first, 1 AS change FROM spans WHERE last_run IS NOT NULL
            UNION ALL SELECT last_run + 1, -1 FROM spans WHERE last_run IS NOT NULL
        ) GROUP BY first
    ), holed AS MATERIALIZED ( -- the runs with fewer rows than that
        SELECT run_id, started_at, min_volume, coalesce((
            SELECT iif(later.started_at > r.started_at, later.started_at, 'never')
            FROM runs AS later WHERE later.run_id > r.run_id ORDER BY later.run_id LIMIT 1
        ), 'never') AS ended_before
        FROM spanned CROSS JOIN runs AS r ON r.run_id >= first AND r.run_id < next
        WHERE markets > (SELECT count(*) FROM snapshots WHERE run_id = r.run_id) AND follow = 1 AND status <> 'running'
    ), missed AS (
        SELECT market_id, run_id,
               (SELECT max(timestamp) FROM snapshots
                WHERE market_id = e.market_id AND timestamp < started_at) AS since,
               (SELECT min(timestamp) FROM snapshots
                WHERE market_id = e.market_id AND timestamp >= started_at) AS until
        FROM spans AS e CROSS JOIN markets AS m USING (market_id)
        CROSS JOIN holed ON coalesce(first_run, 0) < run_id AND last_run > run_id
        WHERE (m.followed = 1 OR min_volume = 0) AND NOT EXISTS (
            SELECT 1 FROM snapshots
            WHERE market_id = e.market_id AND timestamp >= started_at AND timestamp < ended_before
              AND (ended_before <> 'never' OR run_id = holed.run_id) -- the clock was set back
        )
        UNION ALL  -- still missing
        SELECT seen.market_id, r.run_id, s.timestamp, NULL
        FROM seen CROSS JOIN snapshots AS s ON s.id = seen.snapshot_id
        CROSS JOIN markets AS m ON m.market_id = seen.market_id
        JOIN runs AS r ON r.run_id > s.run_id
        WHERE m.resolved = 0 AND m.outcome_asked = 0 AND r.follow = 1 AND r.status <> 'running'
          AND (m.followed = 1 OR r.min_volume = 0)
    ), of_all AS MATERIALIZED ( -- why whole answers failed
        SELECT DISTINCT run_id, reason FROM failures WHERE market_id IS NULL AND stage <> 'posts'
    )
    SELECT market_id, since, until, run_ids,
           (SELECT json_group_array(reason) FROM (
                SELECT reason FROM json_each(run_ids) AS run CROSS JOIN failures ON run_id = run.value
                WHERE market_id = gap.market_id AND stage <> 'posts'
                UNION SELECT reason FROM json_each(run_ids) AS run JOIN of_all ON run_id = run.value ORDER BY reason
           )) AS reasons
    FROM (
        SELECT market_id, since, until, json_group_array(run_id) AS run_ids
        FROM (SELECT * FROM missed ORDER BY run_id) GROUP BY market_id, since
    ) AS gap;
"""  # noqa: S608
# What an older file has in another place or form: the query that finds it, and what moves it. May be repeated.
MOVES: Final = {
    # schemas 2 and 3
    "SELECT 1 FROM pragma_table_info('markets') WHERE name = 'last_seen'": """
        INSERT OR IGNORE INTO seen (market_id, last_seen)
            SELECT market_id, last_seen FROM markets WHERE market_id IS NOT NULL;
        ALTER TABLE markets DROP COLUMN last_seen;
    """,
    # schema 4 at first
    "SELECT 1 FROM pragma_table_info('failures') WHERE name = 'markets' AND \"notnull\" = 1": """
        ALTER TABLE failures RENAME COLUMN markets TO markets_before;
        ALTER TABLE failures ADD COLUMN markets INTEGER;
        UPDATE failures SET markets = markets_before;
        ALTER TABLE failures DROP COLUMN markets_before;
    """,
    # schemas 4 and 5, where a database had one name in the lake; the table is made anew, with another key
    "SELECT 1 FROM pragma_table_info('archived_days') WHERE name = 'shard' AND pk = 0": """
        ALTER TABLE archived_days RENAME TO archived_days_before;
    """,
    "SELECT 1 FROM pragma_table_info('archived_days_before')": """
        INSERT INTO archived_days
            (day, shard, archived_at, parts, snapshots, books, runs, failures, tweets, hype_signals)
            SELECT day, shard_before, archived_at, parts, snapshots, books, runs, failures, tweets, hype_signals
            FROM archived_days_before, (SELECT coalesce(max(shard), '') AS shard_before FROM lake);
        DROP TABLE archived_days_before;
    """,
    # schemas up to 14, where each run had the names
    "SELECT 1 FROM pragma_table_info('runs') WHERE name = 'selection'": """
        INSERT INTO selections (names, first_used_at)
            SELECT selection, min(started_at) FROM runs WHERE selection IS NOT NULL
            GROUP BY selection, date(started_at) ORDER BY min(run_id);
        UPDATE runs SET selection_id = (
            SELECT selection_id FROM selections WHERE names = selection AND date(first_used_at) = date(started_at)
        ) WHERE selection IS NOT NULL;
        ALTER TABLE runs DROP COLUMN selection;
    """,
    # any; other collectors wrote a bool in any spelling, and what is not true is not resolved
    "SELECT 1": f"""
        DROP INDEX IF EXISTS failures_by_run;
        INSERT OR IGNORE INTO seen (market_id) SELECT market_id FROM markets WHERE market_id IS NOT NULL;
        UPDATE seen SET snapshot_id = (SELECT max(id) FROM snapshots WHERE market_id = seen.market_id)
            WHERE snapshot_id IS NULL;
        UPDATE markets SET resolved = coalesce(lower(CAST(resolved AS TEXT)), '') IN ('1', 'true', 'yes')
            WHERE typeof(resolved) <> 'integer' OR resolved NOT IN (0, 1);
        UPDATE markets SET followed = 1 WHERE resolved IS NOT 1 AND market_id IN (
            SELECT market_id FROM snapshots
            WHERE run_id IS NULL OR run_id IN (SELECT run_id FROM runs WHERE min_volume > 0)
        );
        UPDATE markets SET payout_yes = {_PAYOUT.format("resolution_outcome")}
            WHERE resolved = 1 AND payout_yes IS NULL;
    """,  # noqa: S608
}


@cache
def _schema_columns() -> dict[str, dict[str, tuple[str, str]]]:
    """Return the definition and the comment of every column in `SCHEMA`, by table and by name."""
    tables = re.findall(r"^ +CREATE TABLE (\w+) \(.*\n((?:.*\n)*?) +\)", SCHEMA, re.MULTILINE)
    column = re.compile(r"^ +([a-z]\w*) (.+?),?(?: +-- (.*))?$", re.MULTILINE)  # a constraint begins with a capital
    return {table: {name: (kind, says) for name, kind, says in column.findall(body)} for table, body in tables}


def column_comments() -> dict[str, dict[str, str]]:
    """Return what each column of each table means, for a person: {table: {column: comment}}."""
    return {table: {name: says for name, (_, says) in columns.items()} for table, columns in _schema_columns().items()}


def insert_into(table: str, columns: Sequence[str]) -> str:
    """Return the statement that inserts a record, whose fields are *columns*, into *table*."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608


def newest_run(column: str) -> str:
    """Return the query for the newest value of *column* in `runs` that is not NULL."""
    return f"SELECT {column} FROM runs WHERE {column} IS NOT NULL ORDER BY run_id DESC LIMIT 1"  # noqa: S608


# How the row of a known market changes: a value that is absent this time stays, the category is replaced together with
# the tags, and a market that is listed as open is not resolved (any more).
_MARKET_CHANGES: Final = {
    **{column: f"coalesce(excluded.{column}, {column})" for column in Market._fields[1:] if column != "first_seen"},
    "category": "CASE WHEN excluded.tags IS NULL THEN coalesce(excluded.category, category) ELSE excluded.category END",
    "followed": "max(excluded.followed, followed)",
    **dict.fromkeys(("resolved", "outcome_asked"), "0"),
    **dict.fromkeys(("resolution_outcome", "payout_yes", "closed_at", "outcome_stored_at", "outcome_ask_at"), "NULL"),
}
# a row that would not change is not written
SAVE_MARKET: Final = f"""
    {insert_into("markets", (*Market._fields, "followed"))} ON CONFLICT (market_id) DO UPDATE SET
        {", ".join(f"{column} = {value}" for column, value in _MARKET_CHANGES.items())}
    WHERE ({", ".join(_MARKET_CHANGES.values())}) IS NOT ({", ".join(_MARKET_CHANGES)})
"""
SAVE_SEEN: Final = """
    INSERT INTO seen (market_id, last_seen, snapshot_id) SELECT market_id, timestamp, id FROM snapshots WHERE id > ?
    ON CONFLICT (market_id) DO UPDATE SET last_seen = excluded.last_seen, snapshot_id = excluded.snapshot_id
"""
SAVE_LISTED: Final = "INSERT OR IGNORE INTO listed_ids (market_id) VALUES (?)"
SAVE_FAILURE: Final = insert_into("failures", Failure._fields)
# of the markets in a JSON array: those with a snapshot of a certain second, and the newest snapshot's book and UTC day
SAME_SECOND: Final = """
    SELECT market_id FROM snapshots WHERE timestamp = ? AND market_id IN (SELECT value FROM json_each(?))
"""
LAST_BOOKS: Final = """
    SELECT s.market_id, book_id, date(b.timestamp), b.bids, b.asks, b.mirrored, b.bids_no, b.asks_no
    FROM seen JOIN snapshots AS s ON s.id = seen.snapshot_id JOIN books AS b USING (book_id)
    WHERE seen.market_id IN (SELECT value FROM json_each(?))
"""
LAST_IDS: Final = """
    SELECT coalesce(max(id), 0), coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'books'), 0) FROM snapshots
"""
COUNT_SAVED: Final = """
    UPDATE runs SET snapshots_saved = snapshots_saved + ?, books_saved = books_saved + ?,
        books_unchanged = books_unchanged + ?, errors = errors + ?
    WHERE run_id = ?
"""
# the time of an outcome that is stored already stays
SAVE_RESOLUTION: Final = f"""
    UPDATE markets SET
        resolved = 1, resolution_outcome = ?1, payout_yes = {_PAYOUT.format("?1")}, closed_at = ?2, outcome_ask_at = ?3,
        outcome_stored_at = iif(resolved = 1 AND resolution_outcome IS ?1, outcome_stored_at, ?4)
    WHERE market_id = ?5
"""  # noqa: S608  a constant of ours
MAX_OUTCOME_WAIT_MINUTES: Final = 7 * 24 * 60  # until the outcome of a closed market is asked for again
# asked for again after 15 minutes, then each time after four times as long
SAVE_UNSETTLED: Final = """
    UPDATE markets SET
        resolved = 0, resolution_outcome = NULL, payout_yes = NULL, outcome_stored_at = NULL,
        outcome_ask_at = datetime(?, min(15 * (1 << (2 * min(outcome_asked, 10))), ?) || ' minutes'),
        outcome_asked = outcome_asked + 1
    WHERE market_id = ?
"""
# an `outcome_ask_at` beyond the longest wait was set by a clock that was ahead
UNRESOLVED: Final = f"""
    SELECT CAST(market_id AS INTEGER) FROM markets
    WHERE resolved = 0 AND market_id NOT GLOB '*[^0-9]*'
      AND (outcome_ask_at IS NULL OR outcome_ask_at <= ?1
           OR outcome_ask_at > datetime(?1, '{MAX_OUTCOME_WAIT_MINUTES} minutes'))
      AND (followed = 1 OR ?2)
    ORDER BY CAST(market_id AS INTEGER)
"""  # noqa: S608  a number of ours
# resolved markets whose outcome is due to be looked at again
SECOND_LOOKS: Final = """
    SELECT CAST(market_id AS INTEGER), resolution_outcome, closed_at FROM markets
    WHERE resolved = 1 AND outcome_ask_at <= ? AND market_id NOT GLOB '*[^0-9]*'
"""
# the markets with a book among the last ? snapshots, the longest without one first
LAST_WITH_BOOK: Final = """
    SELECT CAST(market_id AS INTEGER) FROM snapshots
    WHERE id > (SELECT max(id) FROM snapshots) - ? AND book_time IS NOT NULL GROUP BY market_id ORDER BY max(id)
"""
SAVE_NAME: Final = "INSERT OR REPLACE INTO names (kind, name, id) VALUES (?, ?, ?)"
# the ids that a name has stood for
KNOWN_AS: Final = """
    SELECT id FROM names WHERE kind = ?1 AND name = ?2
    UNION SELECT market_id FROM markets WHERE slug = ?2 AND ?1 = 'market'
"""
SELECTION_ID: Final = "SELECT selection_id FROM selections WHERE names = ?1 AND date(first_used_at) = date(?2)"
SAVE_SELECTION: Final = f"INSERT INTO selections (names, first_used_at) SELECT ?1, ?2 WHERE NOT EXISTS ({SELECTION_ID})"
LAST_STATUS: Final = "SELECT status FROM runs WHERE run_id < ? ORDER BY run_id DESC LIMIT 1"
# how many markets the last complete run of the same selection has listed, if it is not older than a week
LAST_LISTED: Final = """
    SELECT markets_listed FROM runs JOIN (SELECT min_volume, follow FROM runs WHERE run_id = ?)
        USING (min_volume, follow)
    WHERE selection_id IS NULL AND status = 'complete' AND started_at > datetime(?, '-7 days')
    ORDER BY run_id DESC LIMIT 1
"""
IDENTITIES: Final = f"""
    SELECT market_id, {", ".join(StoredIdentity._fields)} FROM markets
    WHERE market_id IN (SELECT value FROM json_each(?))
"""  # noqa: S608  the names are ours
TIME_FORM: Final = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]"
# rows are stored in about the order of their times; other programs may have stored values of any type
LAST_SNAPSHOT_AT: Final = f"""
    SELECT max(timestamp) FROM (SELECT timestamp FROM snapshots ORDER BY id DESC LIMIT 10000)
    WHERE typeof(timestamp) = 'text' AND timestamp GLOB '{TIME_FORM}'
"""  # noqa: S608  a pattern of ours
# the schema of a file, and whether it is of another program
FILE_OWNER: Final = """
    SELECT (SELECT user_version FROM pragma_user_version), count(*) > 0 AND sum(name IN ('markets', 'snapshots')) < 2
    FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'
"""
# what a file consists of, in the order in which it was made
OBJECTS: Final = "SELECT type, lower(name), sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT GLOB 'sqlite_*'"


# --- Database ---------------------------------------------------------------------------------------------------------

FILE_MODE: Final = 0o660  # less the umask: nobody but the owner and the group reads or writes a new file
BUSY_TIMEOUT_S: Final = 30.0
LOCK_WAIT_S: Final = 3.0  # an archive holds the lock for a moment at a time
LOCK_POLL_S: Final = 0.05
WAL_LIMIT_BYTES: Final = 64 * 2**20
# errors that may pass without anybody's help
PASSING_CODES: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
PASSING_ERRNOS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def shielded(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let *work* run to its end even if the caller is cancelled meanwhile; the cancellation follows afterwards.

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
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into a `StorageError` that names the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = DatabaseBusy if code == sqlite3.SQLITE_BUSY else StorageError
        passing = code in PASSING_CODES or getattr(error, "errno", None) in PASSING_ERRNOS
        raise kind(f"{path}: cannot {doing}: {error}", lasting=not passing) from error


def _real_path(path: Path) -> Path:
    """Return *path* without links; refuse one that cannot be a database, in clearer words than SQLite's."""
    real_path = Path(os.path.realpath(path))
    is_file = real_path.is_file()
    complaints = {
        "is a link that leads in a circle": real_path.is_symlink(),
        "is a folder": real_path.is_dir(),
        f"there is no folder {real_path.parent}": not real_path.parent.is_dir(),
        "is no file": real_path.exists() and not is_file,
        # SQLite has a log per name, and we have a lock
        "has a second name (a hard link), under which others would not see its log and its lock": (
            is_file and real_path.stat().st_nlink > 1
        ),
    }
    for complaint, applies in complaints.items():
        if applies:
            raise StorageError(f"{path}: {complaint}", lasting=True)
    return real_path


def _check_owner(path: Path, version: int, of_another_program: int) -> None:
    """Refuse a file of a newer collector or of another program; the numbers are the answer to `FILE_OWNER`."""
    if version > SCHEMA_VERSION:
        known = f"this one knows {SCHEMA_VERSION}"
        raise StorageError(f"{path}: has schema {version} of a newer collector; {known}", lasting=True)
    if of_another_program:
        raise StorageError(f"{path}: is the database of another program", lasting=True)


def reading_mode(path: Path, *, leave_no_log: bool = False) -> str:
    """Return SQLite's mode for reading the file at *path*: "ro", or "ro&immutable=1" to take it as it is.

    Beside a file that nobody has open a reader makes a log and an index, which it may not remove at its end. Where it
    must not (*leave_no_log*), or has no right to, such a file is immutable: it must be read at once then.
    """
    may_leave_log = not leave_no_log and os.access(path.parent, os.W_OK)
    has_log = any(Path(f"{os.path.realpath(path)}{suffix}").exists() for suffix in ("-wal", "-journal"))
    return "ro" if has_log or may_leave_log else "ro&immutable=1"


@contextmanager
def open_read_only(path: Path, *, current: bool = True, leave_no_log: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the database at *path* for reading only, beside whoever writes to it; refuse what a collector refuses.

    With *current* a file of an older schema, which may lack columns, is refused as well. *leave_no_log* is told at
    `reading_mode`.
    """
    with storage_errors(path, "read"):
        real_path = _real_path(path)
        if not real_path.exists():
            raise StorageError(f"there is no file {path}; a run makes it, or --db names another")
        address = f"{real_path.as_uri()}?mode={reading_mode(path, leave_no_log=leave_no_log)}"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            version, of_another_program = connection.execute(FILE_OWNER).fetchone()
            _check_owner(path, version, of_another_program)
            if current and version < SCHEMA_VERSION:
                what = f"has schema {version} of an older collector, not {SCHEMA_VERSION}; a run upgrades it"
                raise StorageError(f"{path}: {what if real_path.stat().st_size else 'is empty; a run fills it'}")
            yield connection


@contextmanager
def locked(path: Path, wait_s: float = 0.0) -> Iterator[Path]:
    """Hold the lock that every writer of the database at *path* holds, and yield the path without links.

    The lock dies with its process. The file of the lock, beside the database, names the holder.

    Raises:
        DatabaseBusy: another process still holds it after *wait_s* seconds.
    """
    folder = Path(os.path.realpath(path)).parent
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):  # the lock and SQLite's log stand in it as well
        raise StorageError(f"{path}: you may not write to the folder {folder}", lasting=True)
    real_path = _real_path(path)

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} since {sql_time(datetime.now(UTC))} UTC".encode())

    lock_path = real_path.with_name(f"{real_path.name}.lock")
    lock = filelock.FileLock(lock_path, timeout=wait_s, mode=FILE_MODE, preserve_lock_file=True, on_acquired=sign)
    try:
        with lock:
            yield real_path
    except filelock.Timeout as error:
        holder = "another collector"
        with suppress(OSError):
            holder = printable(lock_path.read_text(errors="replace")) or holder
        raise DatabaseBusy(f"{path}: in use by {holder}") from error


async def _lock(path: Path, stack: AsyncExitStack, wait_s: float) -> Path:
    """Enter `locked` without holding up the event loop, as soon as nobody else holds the lock within *wait_s*."""
    for _ in range(round(wait_s / LOCK_POLL_S)):
        with suppress(DatabaseBusy):
            return stack.enter_context(locked(path))
        await asyncio.sleep(LOCK_POLL_S)
    return stack.enter_context(locked(path))


def _file_id(path: Path) -> tuple[int, int] | None:
    """Return what identifies the file at *path*, without opening it: that would drop SQLite's locks."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


@cache
def _warn_of_old_sqlite() -> None:
    """Log once per process that this SQLite has the WAL-reset bug. Source: https://sqlite.org/wal.html."""
    version = sqlite3.sqlite_version_info
    is_fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    if not is_fixed:
        advice = "let others only read it, mode=ro"
        log.warning("SQLite %s can corrupt a file that several programs write to: %s", sqlite3.sqlite_version, advice)


class Database:
    """The one connection that writes, one transaction at a time.

        async with Database.open(Path("polymarket_data.db")) as database:
            run_id = await database.start_run(started_at="2026-11-22 14:15:00", min_volume=0)

    Every method raises `StorageError` where the file cannot be used, `DatabaseBusy` where another program holds it.
    """

    def __init__(self, connection: aiosqlite.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._one_at_a_time = asyncio.Lock()
        self.absolute_path: Final = path.absolute()  # the program may go to another folder meanwhile
        self.file: Final = _file_id(self.absolute_path)
        self.is_kept = True  # at the end; False only for a new file without markets and posts

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, file: tuple[int, int] | None = None, *, wait_s: float = LOCK_WAIT_S, keep_empty: bool = True
    ) -> AsyncIterator[Self]:
        """Open the database at *path*, or make one; upgrade it to the current schema, and close it at the end.

        With the *file* of an earlier `Database`, no other file is opened and none is made. A lock that another program
        holds is waited for, *wait_s* seconds at most. Unless *keep_empty*, a file that was made is removed at the end
        if neither markets nor posts were stored.
        """
        async with AsyncExitStack() as stack:
            with storage_errors(path, "open"):
                if file and _file_id(path) != file:
                    moved = "it was moved or replaced, or its disk is not mounted"
                    raise StorageError(f"{path}: is not the file of the runs before: {moved}")
                real_path = await _lock(path, stack, wait_s)
                if is_new := not real_path.exists():
                    real_path.touch(FILE_MODE)  # an empty file is an empty database; SQLite's everybody could read
                connection = aiosqlite.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
                database = cls(connection, path)
                if is_new:
                    database.is_kept = False  # nor if it cannot be opened
                    stack.callback(database._remove_unless_kept)
                _warn_of_old_sqlite()
                # aiosqlite's thread outlives a connect that fails and may write a traceback: let it fail here
                sqlite3.connect(path).close()
                stack.push_async_callback(shielded(connection.close))
                await shielded(connection.__aenter__)()
                ((version, of_another_program),) = await connection.execute_fetchall(FILE_OWNER)
                _check_owner(path, version, of_another_program)
                ((journal_mode,),) = await connection.execute_fetchall("PRAGMA journal_mode = WAL")
                if journal_mode != "wal":
                    raise StorageError(f"{path}: cannot have a write-ahead log there", lasting=True)
                wal_limit = f"journal_size_limit = {WAL_LIMIT_BYTES}"
                for pragma in ("synchronous = FULL", wal_limit, "foreign_keys = ON", "analysis_limit = 400"):
                    await connection.execute(f"PRAGMA {pragma}")
                if version < SCHEMA_VERSION:
                    await database._upgrade()
                database.is_kept = database.is_kept or keep_empty
            yield database

    def _remove_unless_kept(self) -> None:
        """Remove the file and what stands beside it; who waits for the lock meanwhile makes a lock and a file anew."""
        if not self.is_kept and _file_id(self.absolute_path) == self.file:
            for suffix in ("", "-wal", "-shm", "-journal", ".lock"):
                with suppress(OSError):  # as far as can be: Windows removes no open file
                    Path(os.path.realpath(self.absolute_path) + suffix).unlink()

    @shielded
    async def _upgrade(self) -> None:
        """Make what the file lacks of `SCHEMA`, and what differs of its indexes and views, and do the `MOVES`."""
        with closing(sqlite3.connect(":memory:")) as new_file:
            new_file.executescript(SCHEMA)
            objects = new_file.execute(OBJECTS).fetchall()
        async with self.transaction("upgrade"):
            await self._make(objects)
            for found, statements in MOVES.items():
                if await self.value(found):
                    for statement in statements.split(";"):
                        await self._connection.execute(statement)
                    await self._make(objects)  # what has another name now
            await self._connection.create_function("sql_time_of", 1, sql_time_of, deterministic=True)
            for table, columns in _schema_columns().items():
                for column, (definition, says) in columns.items():
                    if definition.startswith("TIMESTAMP") and "milliseconds" not in says:  # which are ours
                        await self._normalise(table, column)
            await self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    async def _make(self, objects: Sequence[tuple[str, str, str]]) -> None:
        """Make those of *objects*, the rows of `OBJECTS` of a new file, that are not there, or not so."""
        there = {(kind, name): sql for kind, name, sql in await self.rows(OBJECTS)}
        for kind, name, sql in objects:
            if kind == "table" and (kind, name) in there:
                await self._add_columns(name)
            elif there.get((kind, name), "").split() != sql.split():
                await self._connection.execute(f"DROP {kind} IF EXISTS {name}")
                await self._connection.execute(sql)

    async def _add_columns(self, table: str) -> None:
        """Add to *table* the columns that it lacks; rows that are there have their defaults, or NULL for a time."""
        there = {name.lower() for (name,) in await self.rows("SELECT name FROM pragma_table_info(?)", table)}
        for column, (definition, _) in _schema_columns()[table].items():
            if column not in there:
                constant = definition.removesuffix(" DEFAULT CURRENT_TIMESTAMP")  # which SQLite cannot add
                with storage_errors(self._path, f"add the column {table}.{column}"):
                    await self._connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {constant}")

    async def _normalise(self, table: str, column: str) -> None:
        """Bring the times of *column* into the form that queries compare.

        A value that is no time stays as it is, and so does the later of two rows that would get the same time.
        """
        other_form = f"{column} IS NOT NULL AND NOT (typeof({column}) = 'text' AND {column} GLOB '{TIME_FORM}')"
        time = f"sql_time_of({column})"
        await self._connection.execute(
            f"UPDATE OR IGNORE {table} SET {column} = {time} WHERE {other_form} AND {time} IS NOT NULL"  # noqa: S608
        )
        if kept := await self.value(f"SELECT count(*) FROM {table} WHERE {other_form}"):  # noqa: S608
            why = "are no times, or would be those of another row; they stay as they are"
            log.warning("%s: %d values of %s.%s %s", self._path, kept, table, column, why)

    async def rows(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        """Return the rows that *query* finds."""
        with storage_errors(self._path, "read"):
            return [tuple(row) for row in await self._connection.execute_fetchall(query, values)]

    async def value(self, query: str, *values: str | int) -> Any:  # noqa: ANN401  whatever SQLite has there
        """Return the first value of the first row that *query* finds, or None without a row."""
        return next((row[0] for row in await self.rows(query, *values)), None)

    async def ids(self, query: str, *values: str | int) -> array[int]:
        """Return the first column that *query* finds, integers in its order, as 8 bytes each."""
        return array("q", [row[0] for row in await self.rows(query, *values)])

    @shielded
    async def start_run(self, **columns: object) -> int:
        """Open a run with these columns and return its id; runs that died unfinished are marked as failed.

        The `names` that it asks for, if there are any, go into `selections`.
        """
        names, started_at = columns.pop("names", None), columns["started_at"]
        columns |= {"status": "running", "version": __version__}
        async with self.transaction("start a run"):
            await self._connection.execute("UPDATE runs SET status = 'failed' WHERE status = 'running'")
            if names:
                await self.execute(SAVE_SELECTION, [(names, started_at)])
                columns["selection_id"] = await self.value(SELECTION_ID, str(names), str(started_at))
            cursor = await self._connection.execute(insert_into("runs", list(columns)), list(columns.values()))
        return cursor.lastrowid or 0

    @shielded
    async def save(self, batch: Batch) -> Saved:
        """Store *batch* in one transaction."""
        async with self.transaction("store a batch"):
            # before the snapshots that refer to them
            await self.execute(SAVE_MARKET, [(*market, batch.follow) for market in batch.markets])
            saved = await self._save_snapshots(batch) if batch.snapshots else Saved()
            await self.execute(SAVE_FAILURE, batch.failures)
            await self.execute(SAVE_RESOLUTION, batch.resolutions)
            await self.execute(SAVE_UNSETTLED, batch.unsettled)
            await self.execute(SAVE_NAME, batch.names)
            if not batch.follow:
                await self.execute(SAVE_LISTED, [(market.market_id,) for market in batch.markets])
            await self.execute("DELETE FROM listed_ids WHERE market_id = ?", batch.unlisted)
            saved = saved.plus(Saved(errors=len(batch.failures)))
            await self.execute(COUNT_SAVED, [(*saved, batch.run_id)])
        self.is_kept = self.is_kept or saved.snapshots > 0
        return saved

    async def _save_snapshots(self, batch: Batch) -> Saved:
        """Store the snapshots of *batch*, which have one time, and the books that differ from the snapshot before.

        A market that already has a snapshot of that second becomes a failure.
        """
        ids = msgspec.json.encode([snapshot.market_id for snapshot in batch.snapshots]).decode()
        stored = {market_id for (market_id,) in await self.rows(SAME_SECOND, batch.snapshots[0].timestamp, ids)}
        last_books = {market_id: row for market_id, *row in await self.rows(LAST_BOOKS, ids)}
        ((last_snapshot_id, last_book_id),) = await self.rows(LAST_IDS)
        snapshots: list[Sequence[object]] = []
        books: list[Sequence[object]] = []
        for snapshot in batch.snapshots:
            if snapshot.market_id in stored:
                continue
            book = batch.books.get(snapshot.market_id)
            book_id, *before = last_books.get(snapshot.market_id, (None,))
            if book is None:
                book_id = None
            elif before != [book.timestamp[:10], *book.content]:
                book_id = last_book_id + len(books) + 1
                books.append((book_id, *book))
            snapshots.append((*snapshot, book_id))
        await self.execute(insert_into("books", ("book_id", *Book._fields)), books)
        await self.execute(insert_into("snapshots", (*Snapshot._fields, "book_id")), snapshots)
        await self.execute(SAVE_SEEN, [(last_snapshot_id,)])
        reason = "the market has a snapshot of the same second: the clock was set back"
        await self.execute(SAVE_FAILURE, [Failure(batch.run_id, market_id, "save", reason) for market_id in stored])
        with_book = sum(row[-1] is not None for row in snapshots)
        return Saved(len(snapshots), len(books), with_book - len(books), errors=len(stored))

    @shielded
    async def finish_run(self, run_id: int, columns: Mapping[str, object]) -> None:
        """Write *columns* into the row of run *run_id*."""
        assignments = ", ".join(f"{column} = ?" for column in columns)
        async with self.transaction("finish the run"):
            statement = f"UPDATE runs SET {assignments} WHERE run_id = ?"  # noqa: S608  the names are ours
            await self._connection.execute(statement, (*columns.values(), run_id))
            await self._connection.execute("PRAGMA optimize")

    async def execute(self, statement: str, rows: Sequence[Sequence[object]]) -> int:
        """Execute *statement* for each of *rows* in a transaction, and return how many rows of the table it changed."""
        if not rows:  # saves a call of the connection's thread
            return 0
        return (await self._connection.executemany(statement, rows)).rowcount

    @asynccontextmanager
    async def transaction(self, doing: str) -> AsyncIterator[None]:
        """Begin a transaction, and commit it at the end or undo it; *doing* is for the text of an error.

        The caller is `shielded`, for a cancellation in the middle would meet a statement that still runs.
        """
        async with self._one_at_a_time:
            with storage_errors(self._path, doing):
                if _file_id(self.absolute_path) != self.file:
                    lost = "was deleted or replaced while it was in use; what was stored went with it"
                    raise StorageError(f"{self._path}: {lost}")
                await self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    await self._connection.execute("COMMIT")
                finally:
                    if self._connection.in_transaction:  # when the disk is full, SQLite has already rolled back
                        await self._connection.execute("ROLLBACK")


# --- Discovery --------------------------------------------------------------------------------------------------------

BATCH_MARKETS: Final = MAX_TOKENS // 2  # one request for books, one transaction
MAX_SEARCH_WAIT_MINUTES: Final = 60  # until a market that is neither open nor closed is asked for again
MIN_KNOWN_SHARE: Final = 0.5  # a listing with less than half of the last run's is not believed
MAX_WAITING_BATCHES: Final = 2  # between two stages; a full queue makes the faster one wait


def roughly_descending(volumes: Sequence[float]) -> bool:
    """Return whether *volumes* descend, as far as a listing by volume does; fewer than 11 always do.

    The index that a listing is ordered by lags behind the figures that it shows, by a tenth or so.
    """
    steps = list(itertools.pairwise(volumes))
    rises = sum(after > before for before, after in steps)
    jumps = sum(after > 1.5 * before + 1 for before, after in steps)
    return len(steps) < 10 or (rises <= 0.75 * len(steps) and jumps <= 0.1 * len(steps))  # noqa: PLR2004


@dataclass(slots=True)
class Run:
    """What the stages of one run share: its row in `runs`, the way to the tables, and why it is not complete."""

    run_id: int
    started_at: str  # the database's form
    database: Database
    api: PolymarketApi
    network: Network
    # to `AsyncCollector._write`; None is the end
    rows: asyncio.Queue[Batch | None] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING_BATCHES))
    reason: str | None = None  # of the first failure
    drift: str | None = None  # what the exchange sends in a shape that is not known
    books_missing: int = 0  # markets that lack one or both of their books
    unmirrored: int = 0  # markets whose NO book is not the mirror of their YES book
    unreadable: Counter[str] = field(default_factory=Counter)  # markets by what of them cannot be read
    saved: Saved = field(default_factory=Saved)

    def failure(self, stage: str, reason: str | ApiError, *market_ids: object) -> Failure:
        """Return the one row of `failures` for what happened to all of *market_ids*, or without ids to a listing.

        The first failure is the reason why the run is not complete.
        """
        if isinstance(reason, ApiError):
            self.check_drift(reason)
        text = printable(str(reason))
        self.reason = self.reason or text
        only = market_ids[0] if len(market_ids) == 1 else None
        return Failure(self.run_id, None if only is None else str(only), stage, text, len(market_ids) or None)

    def check_drift(self, error: ApiError) -> None:
        """Remember *error* if it says that the exchange's answers have another shape now."""
        known_shape = error.retryable or isinstance(error, AnswerTooLongError)
        if isinstance(error, MalformedResponseError) and not known_shape:
            self.drift = self.drift or str(error)

    def log_unreadable(self) -> None:
        """Log what could not be read; where most of the stored markets lack something, the exchange has changed."""
        counts, markets = self.unreadable.most_common(), self.saved.snapshots
        if counts:
            parts = ", ".join(f"{key} of {count} markets" for key, count in counts)
            log.warning("left out, for it cannot be read: %s", parts)
        for key, count in counts:
            if count > max(markets - count, MAX_BAD_ELEMENTS):
                self.drift = self.drift or f"`{key}` of {count} of {markets} markets cannot be read"

    async def put(self, *failures: Failure) -> None:
        """Queue *failures* for `AsyncCollector._write`."""
        if failures:
            await self.rows.put(Batch(self.run_id, failures=list(failures)))


async def same_as_stored(run: Run, markets: Sequence[GammaMarket]) -> list[GammaMarket]:
    """Return *markets* in the stored order of their outcomes, without those that are others under the same id."""
    ids = msgspec.json.encode([market.market_id for market in markets]).decode()
    stored = {row[0]: StoredIdentity._make(row[1:]) for row in await run.database.rows(IDENTITIES, ids)}
    same: list[GammaMarket] = []
    for market in markets:
        known = stored.get(market.market_id)
        if known and (why_not := align_with_stored(market, known)):
            await run.put(run.failure("list", why_not, market.market_id))
        else:
            same.append(market)
    return same


@dataclass
class Outcomes:
    """Finds out how the markets have ended that are not listed any more, and stores it.

    Nothing is concluded from absence alone: what is neither open nor closed is asked for again later. Ids are numbers.
    """

    _run: Run
    _clock: Clock
    resolved: dict[int, tuple[str, str | None]] = field(default_factory=dict)  # due for a second look: outcome, end
    not_open: dict[int, str] = field(default_factory=dict)  # what the listing says of ids that are not open
    absent: list[int] = field(default_factory=list)  # ids that were asked for and are not among the closed ones
    closed: int = 0  # markets that the exchange names as closed

    async def fetch(self, market_ids: Sequence[int]) -> None:
        """Store how *market_ids* have ended; those that are not closed are `absent`."""
        run = self._run
        page, not_closed, failed = await run.api.fetch_markets(market_ids, closed=True)
        batch = Batch(run.run_id, failures=[run.failure("outcome", error, *ids) for ids, error in failed])
        batch.failures += [run.failure("outcome", bad.reason, bad.id) for bad in page.undecoded]
        open_ended = {name for name in page.names if int(name) not in self.resolved}
        for market in await same_as_stored(run, page.markets):
            await self._settle(market, batch)
            open_ended.discard(market.market_id)
        batch.unsettled += [Unsettled(run.started_at, MAX_OUTCOME_WAIT_MINUTES, market_id) for market_id in open_ended]
        closed = [market.market_id for market in page.markets if market.closed]
        closed += [bad.id for bad in page.undecoded if bad.id and not bad.is_open and int(bad.id) in market_ids]
        batch.unlisted += [(market_id,) for market_id in closed]
        self.closed += len(closed)
        self.absent += not_closed
        await run.rows.put(batch)

    async def report_absent(self, market_ids: Sequence[int], known: int) -> int:
        """Record that *market_ids* are neither open nor closed, as one failure if they are many of the *known*.

        Return how many of them count as listed, for the run should have stored them.
        """
        run, batch = self._run, Batch(self._run.run_id)
        neither = "neither among the open markets nor among the closed ones"
        unresolved = [id_ for id_ in market_ids if id_ not in self.resolved]
        listed = sum(id_ not in self.not_open for id_ in unresolved)
        if len(unresolved) > max(MAX_BAD_ELEMENTS, MIN_KNOWN_SHARE * known):
            reason = f"{len(unresolved)} of {known} that are known are {neither}"
            await run.put(run.failure("outcome", reason, *unresolved))
            return listed
        for id_ in market_ids:
            outcome, closed_at = self.resolved.get(id_, ("", None))
            if outcome:
                look_at = next_look(closed_at, self._clock.now())
                batch.resolutions.append(Resolution(outcome, closed_at, look_at, sql_time(self._clock.now()), str(id_)))
            else:
                batch.unsettled.append(Unsettled(run.started_at, MAX_SEARCH_WAIT_MINUTES, str(id_)))
            batch.failures.append(run.failure("outcome", self.not_open.get(id_, f"it is {neither}"), id_))
        if batch.failures:
            await run.rows.put(batch)
        return listed

    async def _settle(self, market: GammaMarket, batch: Batch) -> None:
        """Put into *batch* how *market*, which is not open, has ended, and what has changed since it was resolved."""
        market_id = market.market_id
        before, closed_before = self.resolved.get(int(market_id), (None, None))
        outcome = await self._outcome(market, batch)
        if not outcome and not market.disputed:
            outcome = before
        if before and outcome != before:
            reason = f"its outcome was {before}, and now it is {outcome or 'disputed'}"
            batch.failures.append(self._run.failure("outcome", reason, market_id))
        closed_at = sql_time_of(market.closed_time) or closed_before
        if market.closed_time and not sql_time_of(market.closed_time):
            reason = f"left out, for it cannot be read: closedTime {market.closed_time}"
            batch.failures.append(self._run.failure("outcome", reason, market_id))
        if outcome:
            look_at = next_look(closed_at, self._clock.now()) if closed_at or not before else None
            batch.resolutions.append(Resolution(outcome, closed_at, look_at, sql_time(self._clock.now()), market_id))
        else:
            batch.unsettled.append(Unsettled(self._run.started_at, MAX_OUTCOME_WAIT_MINUTES, market_id))

    async def _outcome(self, market: GammaMarket, batch: Batch) -> str | None:
        """Return how *market* has ended: Gamma names a winner, or the CLOB does, or it is a split, or nobody knows."""
        outcome = outcome_of(market)
        if outcome not in {None, SPLIT}:
            return outcome
        if not market.closed or not market.condition_id or market.disputed:
            return None
        try:
            return outcome_on_clob(market, await self._run.api.fetch_clob_market(market.condition_id))
        except ApiError as error:
            batch.failures.append(self._run.failure("outcome", str(error), market.market_id))
            return None


@dataclass
class Discovery:
    """Finds the markets of a run and hands them on in `batches`.

    A run with a threshold lists the most traded markets down to it. What is named is listed by `NamedDiscovery`, the
    whole exchange by `ExchangeDiscovery`. How the end of a listing is recognised is told at
    `PolymarketApi.iter_market_pages`; a walk stops before that where it has come to the threshold
    (`_is_below_threshold`) or to known ids.

    Then every market that earlier runs know, and this one has not listed, is asked for by id: those that are open are
    collected, of the others the outcome is stored (`Outcomes`), and what is neither is counted as missing.

    A further way of listing is a method like `_list_top`, with a line in `_choose_listing` and its word in the comment
    of `runs.listing`.
    """

    _run: Run
    _selection: Selection
    _workers: int
    _follow: bool
    _clock: Clock
    _outcomes: Outcomes
    # of 250 markets to collect at most; None is the end
    batches: asyncio.Queue[list[GammaMarket] | None] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING_BATCHES))
    notes: list[str] = field(default_factory=list)  # which names have no market to collect just now
    listed: int = 0  # markets that the run should store
    unknown: list[str] = field(default_factory=list)  # names among them that the exchange does not have
    all_listed: bool = False  # whether `listed` is final
    error: ApiError | None = None  # why the listing is not complete
    # what earlier runs know; ids are numbers here, for there may be a million
    _followed: set[int] = field(default_factory=set)  # unresolved markets that they have collected
    _listed_before: set[int] = field(default_factory=set)
    _last_books: dict[int, int] = field(default_factory=dict)  # places in the order of the last books, from 1
    # what this run knows
    _listing: str = ""  # how it lists: the column `listing`
    _asked: set[int] = field(default_factory=set)  # known ids that its listing has asked for
    _strict_order: bool = True  # whether the volumes have descended strictly so far
    _ends_by: str | None = None  # when a market of a series or a tag has to end
    _seen: set[int] = field(default_factory=set)  # ids that it has listed
    _undecoded: int = 0  # of the listed ones: they could not be decoded
    _next_batch: list[GammaMarket] = field(default_factory=list)

    async def run(self) -> None:
        """List the markets, and hand them on in batches."""
        await self._read_earlier_runs()
        self._listing, list_markets = self._choose_listing()
        await list_markets()
        await self._ask_for_unlisted()
        await self._hand_on()
        await self._check_count()
        self.all_listed = True
        await self.batches.put(None)

    @property
    def share_read(self) -> float | None:
        """How much of the time since the oldest start date is read, while a first listing is under way."""
        return None

    async def save(self) -> dict[str, object]:
        """Return the columns of `runs`."""
        return {"markets_listed": self.listed, "listing": self._listing}

    async def _read_earlier_runs(self) -> None:
        """Read what earlier runs have collected and listed."""
        database, run = self._run.database, self._run
        if self._follow:
            self._followed = set(await database.ids(UNRESOLVED, run.started_at, self._selection.whole_exchange))
            looks = await database.rows(SECOND_LOOKS, run.started_at)
            self._outcomes.resolved = {market_id: (outcome, closed_at) for market_id, outcome, closed_at in looks}
        # after a complete run any order is as good
        if await database.value(LAST_STATUS, run.run_id) not in {None, "complete"}:
            last_rows = 2 * max(len(self._followed), len(self._listed_before))
            ids = await database.ids(LAST_WITH_BOOK, last_rows)
            self._last_books = {market_id: place for place, market_id in enumerate(ids, 1)}

    def _choose_listing(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        """Return how this run lists, as a word for `runs.listing` and as a method."""
        return "top", self._list_top

    async def _list_top(self) -> None:
        """List the markets from the most traded one down to the threshold."""
        await self._walk(Listing("volume24hr", ascending=False), self._is_below_threshold)

    def _is_below_threshold(self, page: MarketPage) -> bool:
        """Return whether a listing by volume has come to markets that are traded too little, or not at all.

        Where its order is not strict, a whole page has to be below.
        """
        volumes = [market.volume_24h for market in page.markets if market.volume_24h is not None]
        if not volumes:
            if page.markets and not (self._seen or self._selection.names):
                raise self._run.api.bad_listing("the listing has no volume24hr")
            return bool(page.markets)
        if not roughly_descending(volumes):
            raise self._run.api.bad_listing("the listing is not in the order of volume24hr")
        self._strict_order = self._strict_order and volumes == sorted(volumes, reverse=True)
        return not self._selection.takes(volumes[-1] if self._strict_order else max(volumes))

    async def _walk(self, listing: Listing, is_last: Callable[[MarketPage], bool]) -> bool:
        """Take the pages of *listing* to its end, or to the one that *is_last*; return whether nothing is missing."""
        by_id = listing.order == "id" and not listing.filters
        before: set[int] = set()
        incomplete: str | None = None
        try:
            async with aclosing(self._run.api.iter_market_pages(listing)) as pages:
                async for page in pages:
                    ids = page.ids
                    if by_id and ids != sorted(ids, reverse=not listing.ascending):
                        raise self._run.api.bad_listing("the listing is not in the order of id")
                    last = is_last(page)  # before the page is taken, for it refuses one that is not in order
                    if ids and before.issuperset(ids) and page.next_cursor is not None:
                        raise self._run.api.bad_listing("the listing repeats itself")
                    before = set(ids)
                    await self._take(page)
                    incomplete = incomplete or page.incomplete
                    if last:
                        break
            if incomplete:
                raise self._run.api.bad_listing(incomplete)
        except ApiError as error:
            await self._fail(error)
            return False
        return True

    async def _fail(self, error: ApiError) -> None:
        """Record that the listing is not complete."""
        log.warning("a listing ended early: %s", error)
        self.error = error
        await self._run.put(self._run.failure("list", error))

    async def _ask_for_unlisted(self) -> None:
        """Ask by id for the known markets that were not listed, first whether they are open, then how they have ended.

        Resolved markets that are due for a second look are asked for the other way round.
        """
        outcomes = self._outcomes
        await self._take_open((self._followed | self._listed_before) - self._seen - self._asked)
        gone = (self._followed | self._listed_before | outcomes.resolved.keys()) - self._seen
        await self._in_parallel(outcomes.fetch, sorted(gone))
        await self._take_open(outcomes.resolved.keys() & outcomes.absent)
        absent = [id_ for id_ in outcomes.absent if id_ not in self._seen and self._is_followed(str(id_))]
        self.listed += await outcomes.report_absent(absent, known=len(self._followed))

    async def _in_parallel(
        self, ask: Callable[[Sequence[K]], Awaitable[None]], keys: Sequence[K], *, size: int = PAGE_SIZE
    ) -> None:
        """Call *ask* with *keys*, *size* at a time, and several of these at a time."""
        chunks = (keys[first : first + size] for first in range(0, len(keys), size))

        async def work() -> None:
            for chunk in chunks:
                try:
                    await ask(chunk)
                except ApiError as error:
                    await self._fail(error)

        async with asyncio.TaskGroup() as tasks:
            for number in range(self._workers):
                tasks.create_task(work(), name=f"ask {number}")

    async def _take_open(self, market_ids: Iterable[int]) -> None:
        """Take those of *market_ids* that are open, the ones longest without a book first."""
        await self._in_parallel(self._ask_open, self._by_last_book(market_ids))

    def _by_last_book(self, market_ids: Iterable[int]) -> list[int]:
        return sorted(sorted(market_ids), key=lambda id_: self._last_books.get(id_, 0))

    async def _ask_open(self, market_ids: Sequence[int]) -> None:
        page, _, failed = await self._run.api.fetch_markets(market_ids)
        await self._take(page)
        for ids, error in failed:
            log.warning("%d known markets could not be listed: %s", len(ids), error)
            unseen = [id_ for id_ in ids if id_ not in self._seen]  # another listing may have some
            self.listed += len(unseen)
            self._seen.update(unseen)
            await self._run.put(self._run.failure("list", error, *unseen))

    async def _take(self, page: MarketPage, *, named: bool = False) -> None:
        """Hand on the markets of *page* that are to be collected: those that are *named* whatever they trade."""
        undecoded = [
            bad for bad in page.undecoded if self._is_new(bad.id) and self._is_selected(bad.id, bad, named=named)
        ]
        wanted: list[GammaMarket] = []
        for market in page.markets:
            if not market.is_open and self._is_followed(market.market_id):  # its outcome is asked for later
                self._outcomes.not_open[int(market.market_id)] = market.state
            elif self._is_new(market.market_id) and self._is_selected(market.market_id, market, named=named):
                wanted.append(market)
        self.listed += len(undecoded) + len(wanted)
        self._undecoded += len(undecoded)
        await self._run.put(*(self._run.failure("list", bad.reason, bad.id) for bad in undecoded))
        self._next_batch += wanted
        while len(self._next_batch) >= BATCH_MARKETS:
            await self._hand_on()

    async def _hand_on(self) -> None:
        batch, self._next_batch = self._next_batch[:BATCH_MARKETS], self._next_batch[BATCH_MARKETS:]
        if same := await same_as_stored(self._run, batch):
            await self.batches.put(same)

    def _is_new(self, market_id: str | None) -> bool:
        """Return whether *market_id* has not been listed before in this run; from now on it has."""
        before = len(self._seen)
        if market_id is not None:
            self._seen.add(int(market_id))
        return market_id is None or len(self._seen) > before

    def _is_followed(self, market_id: str | None) -> bool:
        """Return whether *market_id* is a market that stays collected until it resolves, or that may have reopened."""
        number = -1 if market_id is None else int(market_id)
        return number in self._followed or number in self._outcomes.resolved

    def _is_selected(self, market_id: str | None, market: GammaMarket | Undecoded, *, named: bool = False) -> bool:
        """Return whether a market is open and to be collected."""
        if not market.is_open or named:
            return market.is_open
        end = sql_time_of(market.end_date) if self._ends_by and isinstance(market, GammaMarket) else None
        in_time = end is None or self._ends_by is None or end <= self._ends_by  # one without a known end may end now
        return (in_time and self._selection.takes(market.max_volume_24h)) or self._is_followed(market_id)

    async def _check_count(self) -> None:
        """Fail if no market is understood, or if more than half of the last complete run's are gone without an end."""
        run = self._run
        if self.listed and self.listed == self._undecoded:
            what = f"none of {self.listed} markets is understood, the first: {run.reason}"
            await self._fail(run.api.bad_listing(what))
        if self.error or self._selection.names:  # names are listed one by one, and what was followed is asked for by id
            return
        before = await run.database.value(LAST_LISTED, run.run_id, run.started_at) or 0
        if self.listed + self._outcomes.closed < MIN_KNOWN_SHARE * before:
            what = f"{self.listed} markets are listed, after {before} in the last complete run"
            await self._fail(run.api.bad_listing(what))


LISTING_HOLDS: Final = timedelta(hours=1)  # at most, until a series is listed anew


@dataclass(slots=True)
class ListedGroup:
    """What was listed of a series or a tag."""

    listed_at: datetime
    ends: dict[int, str | None] = field(default_factory=dict)  # of its open markets, by id; None: not known
    has_open: bool = False  # whether any is to be collected
    came_to_end: bool = False
    undecoded: int = 0  # what could not be decoded


@dataclass
class NamedDiscovery(Discovery):
    """Finds the markets that are named: one by one, by their event, or by a series or a tag.

    - Ids are keys, names are not. Whom a name meant is in the table `names`: where the exchange does not know the name
      any more, this id is asked for, and a note says so. A name that is lost altogether is a failure.
    - With `ends_within` a series is listed to its end all the same, because its events are not in the order in which
      their markets end. The next runs ask by id for what of `listed_series` is due, until the last market there is due,
      or the listing is as old as `ends_within`, or an hour. A market misses no run that is listed at least twice that
      time before its end.
    - A series that recurs, had open markets and lists none any more is a listing that failed.
    """

    listed_series: dict[str, ListedGroup] = field(default_factory=dict)  # by slug

    def _choose_listing(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        return "named", self._list_named

    async def _list_named(self) -> None:
        """List what is named: first what is taken whatever it trades, for it is listed only once."""
        chosen = self._selection
        if chosen.ends_within_min is not None:
            self._ends_by = sql_time(self._clock.now() + timedelta(minutes=chosen.ends_within_min))
        only_ones = [name.removeprefix("event/") for name in chosen.markets if name.startswith("event/")]
        await self._in_parallel(self._take_markets, [name for name in chosen.markets if not name.startswith("event/")])
        for kind, names in (("market", only_ones), ("event", chosen.events)):
            await self._in_parallel(self._take_events, [(kind, name) for name in names], size=1)
        for kind, names in (("series", chosen.series), ("tag", chosen.tags)):
            slugs = [(kind, name.removeprefix("tag/")) for name in names]
            await self._in_parallel(self._take_groups, slugs, size=1)
        for note in self.notes:
            log.info("%s", note)

    def _note(self, text: str) -> None:
        self.notes.append(printable(text))

    async def _known_as(self, kind: str, name: str) -> list[str]:
        """Return the ids that *name* has stood for."""
        return [id_ for (id_,) in await self._run.database.rows(KNOWN_AS, kind, name)]

    async def _remember(self, kind: str, name: str, ids: Iterable[object]) -> None:
        """Store whom *name* means, if that is one and not known yet."""
        known, found = await self._known_as(kind, name), list({str(id_) for id_ in ids if id_ is not None})
        if len(found) == 1 and found != known:
            await self._run.rows.put(Batch(self._run.run_id, names=[(kind, name, found[0])]))

    async def _take_markets(self, names: Sequence[str]) -> None:
        """Take the markets with these ids and slugs; digits are an id, or else a slug."""
        ids = [name for name in names if re.fullmatch("[0-9]+", name)]
        _, absent = await self._take_by("id", ids)
        slugs = [name.removeprefix("market/") for name in names if name not in ids]
        _, absent = await self._take_by("slug", slugs + absent)
        for slug in absent:
            renamed, _ = await self._take_by("id", await self._known_as("market", slug))
            for market in renamed:
                if market.slug != slug:
                    self._note(f"the market {slug} is now called {market.slug}")
            if not renamed:
                await self._report_unknown("market", slug)

    async def _take_by(self, by: str, names: Sequence[str]) -> tuple[list[GammaMarket], list[str]]:
        """Take the markets with these ids or slugs; return them, and the names that the exchange does not have."""
        markets: list[GammaMarket] = []
        undecoded: list[Undecoded] = []
        for closed in (False, True):
            page, names, failed = await self._run.api.fetch_markets(names, by=by, closed=closed)
            await self._take(page, named=True)
            markets += page.markets
            undecoded += page.undecoded
            for _, error in failed:
                await self._fail(error)
        for market in markets:
            if not market.is_open:
                self._note(f"the market {market.slug} is not open: {market.state}")
        for slug, count in Counter(market.slug for market in markets).items():
            if count > 1 and slug:
                self._note(f"the slug {slug} is that of {count} markets, all of which are taken")
        return markets, [] if undecoded and by == "slug" else list(names)  # one of them may be what is missing

    async def _take_events(self, events: Sequence[tuple[str, str]]) -> None:
        """Take all markets of events; of an event that a "market" is named by, the only one."""
        api = self._run.api
        for kind, slug in events:
            page = await api.fetch_event(slug)
            if page is None and (known := await self._known_as("event", slug)):
                page = await api.fetch_event(known[0], by="id")
                if page and page.events:
                    self._note(f"the event {slug} is now called {page.events[0]}")
            if page is None and kind == "market":  # the last part of its address may be the market's own
                await self._take_markets([slug])
            elif page is None:
                await self._report_unknown(kind, slug)
            elif kind == "market" and len(page.markets) + len(page.undecoded) > 1:
                what = f"it is an event of {len(page.markets)} markets: name one of them, or the event"
                await self._report_unknown(kind, slug, what)
            else:
                await self._take_event(slug, page)

    async def _take_event(self, slug: str, page: MarketPage) -> None:
        await self._remember("event", slug, (event.id for one in page.markets for event in one.events or ()))
        if page.events and len(page.events) > 1:
            self._note(f"the slug {slug} is that of {len(page.events)} events, all of which are taken")
        await self._take(page, named=True)
        if page.incomplete:
            await self._fail(self._run.api.bad_listing(page.incomplete))
        if not (page.undecoded or any(market.is_open for market in page.markets)):
            self._note(f"the event {slug} has no open market to take")

    async def _take_groups(self, groups: Sequence[tuple[str, str]]) -> None:
        """Take the markets of series and tags, each given as its kind and its slug."""
        for kind, slug in groups:
            listed = self.listed_series.get(slug) if kind == "series" else None
            if listed and self._still_holds(listed):
                due = [id_ for id_, end in listed.ends.items() if end is None or end <= (self._ends_by or "")]
                self._asked.update(due)
                await self._take_open(due)
                has_open = bool(due)
            else:
                has_open = await self._list_groups(kind, slug)
            if not has_open:
                self._note(f"the {kind} {slug} has no open market to take")

    def _still_holds(self, listed: ListedGroup) -> bool:
        """Return whether a series need not be listed anew."""
        within = self._selection.ends_within_min
        if within is None or self._ends_by is None or not listed.ends:
            return False
        holds = min(timedelta(minutes=within), LISTING_HOLDS)
        last_due = max(end or "" for end in listed.ends.values())
        return self._ends_by < last_due and timedelta(0) <= self._clock.now() - listed.listed_at < holds

    async def _list_groups(self, kind: str, slug: str) -> bool:
        """Take the markets that are listed under a series or a tag; return whether there are any, or may be."""
        known = await self._known_as(kind, slug)
        groups = await self._run.api.fetch_groups(kind, slug)
        walks = [await self._walk_group(kind, group) for group in groups or [Named(id_, slug) for id_ in known]]
        is_whole = all(walk.came_to_end and not walk.undecoded for walk in walks)
        ends = {id_: end for walk in walks for id_, end in walk.ends.items()}
        if not groups and not ends and is_whole:
            await self._report_unknown(kind, slug)
            return True
        if not groups:
            self._note(f"the {kind} {slug} is called otherwise now, and listed by its id {known[0]}")
        if len(groups) > 1:
            ids = ", ".join(str(group.id) for group in groups)
            self._note(f"the {kind} {slug} is several, all of which are taken: {ids}")
        if ends:
            await self._remember(kind, slug, (group.id for group in groups))
        elif kind == "series" and known and is_whole and any(group.recurrence != "" for group in groups):
            await self._fail(self._run.api.bad_listing(f"the series {slug} has had open markets, and lists none now"))
        if kind == "series" and is_whole:
            self.listed_series[slug] = ListedGroup(walks[0].listed_at, ends)
        return any(walk.has_open for walk in walks) or not is_whole

    async def _walk_group(self, kind: str, group: Named) -> ListedGroup:
        """Take the markets that are listed under a series or a tag."""
        filters = [(f"{kind}_id", str(group.id))]
        by_volume = kind == "tag" and self._selection.min_volume_usd > 0
        if kind == "tag" and self._ends_by:
            filters.append(("end_date_max", self._ends_by.replace(" ", "T") + "Z"))
        path = MARKETS_PATH if kind == "tag" else EVENTS_PATH
        listing = Listing("volume24hr" if by_volume else "id", ascending=not by_volume, filters=filters, path=path)
        listed = ListedGroup(self._clock.now())
        others: list[str] = []

        def is_last(page: MarketPage) -> bool:
            others.extend(page.others)
            what = f"the {kind} {group.slug!r} was asked for, and what came is of another"
            if page.others and len(page.others) == page.size:  # an unknown filter is ignored
                raise self._run.api.bad_listing(f"{what}: {page.others[0]}")
            opened = [market for market in page.markets if market.is_open]
            listed.ends.update((int(market.market_id), sql_time_of(market.end_date)) for market in opened)
            listed.undecoded += len(page.undecoded)
            listed.has_open = listed.has_open or any(self._is_selected(one.market_id, one) for one in opened)
            return by_volume and self._is_below_threshold(page)

        listed.came_to_end = await self._walk(listing, is_last)
        reasons = (
            f"left out: {other} was listed under the {kind} {group.slug}, and says that it is of another"
            for other in others
        )
        await self._run.put(*(self._run.failure("list", reason) for reason in reasons))
        return listed

    async def _report_unknown(self, kind: str, name: str, why: str = "") -> None:
        """Record that the exchange does not know a name; it counts as listed, and no run is complete with it."""
        what = f"{kind} {name!r}" + (f" ({why})" if why else "")
        self.listed += 1
        self.unknown.append(what)
        await self._run.put(self._run.failure("list", f"the exchange has no {what}", None))


MAX_DENSITY: Final = 1.0  # markets that start in a second; the exchange opens 0.4, and more is a burst
NEVER: Final = 2**40  # Unix time


@dataclass(slots=True, eq=False)
class Slice:
    """A part of a listing by start date: the open markets from `start` up to the start of the slice above.

    `add` goes on by a page. The slice is read when it has come to a market of the slice above, and that is proven when
    the slice above has listed this market as well. Between its ends the density, which is the number of markets that
    start in a second, is taken to grow by a constant factor. Times are Unix seconds.
    """

    start: int
    above: Slice | None = None  # None: nothing follows
    density: float = 0.0  # about `read_to`; 0: not known yet
    first_density: float = 0.0  # about `start`
    first_ids: Collection[int] | None = None  # of its first page
    read_to: int = field(init=False)
    ended: bool = False  # whether its last page names no next one
    _page_start: int = field(init=False)  # where its last page began
    _began: int = 0  # when its first market starts
    _markets: int = 0  # that are read
    _last_page: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        """Begin at the start."""
        self.read_to = self._page_start = self.start

    @property
    def end(self) -> int:
        """Where the slice above starts."""
        return self.above.start if self.above else NEVER

    @property
    def is_read(self) -> bool:
        """Whether it has come to its end."""
        return self.ended or self.read_to >= self.end

    @property
    def is_proven(self) -> bool | None:
        """Whether the slice above begins with what this one ends with; None as long as that is not known."""
        if self.start >= self.end:  # nothing has started since the listing was cut off
            return True
        above = self.above.first_ids if self.above else None
        if not self.is_read or above is None:
            return None
        return any(id_ in above for start, id_ in self._last_page if start >= self.end) or (self.ended and not above)

    @property
    def unread(self) -> tuple[int, int]:
        """From where to where it is not read, or not proven."""
        return self._page_start if self.is_read else self.read_to, self.end

    def add(self, markets: Sequence[tuple[int, int]], *, is_last: bool) -> str | None:
        """Go on by a page, given as the start and the id of its *markets*; return why it cannot be part of it."""
        starts = [start for start, _ in markets]
        if starts != sorted(starts):
            return "the listing is not in the order of startDate"
        if starts and starts[0] < self.read_to:
            return f"markets that start from {self.read_to} on were asked for, and one that starts at {starts[0]} came"
        self._page_start, self.read_to = self.read_to, starts[-1] if starts else self.read_to
        self._began = self._began or (starts[0] if starts else 0)
        self._markets += len(starts)
        self.density = min(self._markets / max(self.read_to - self._began, 1), MAX_DENSITY)
        if self.first_ids is None:
            self.first_ids, self.first_density = {id_ for _, id_ in markets}, self.density
        self._last_page = markets or self._last_page
        self.ended = is_last
        return None

    def cover(self, markets: Sequence[tuple[int, int]]) -> str | None:
        """Become the topmost slice, which the first page from the other end of the listing has whole, as `add` does."""
        self.start = self.read_to = markets[-1][0]
        why = self.add(markets[::-1], is_last=True)
        self.start += 1  # of those that start with the last one some may be on the next page
        self.first_ids = {id_ for start, id_ in markets if start >= self.start}
        return why

    @property
    def left(self) -> float:
        """About how many markets follow on `read_to`; 0 where that cannot be told."""
        if not self.density or self.end == NEVER:
            return 0.0
        factor = self._factor
        return max(self.end - self.read_to, 0) * self.density * ((factor - 1) / math.log(factor) if factor != 1 else 1)

    @property
    def _factor(self) -> float:
        """By how much denser the markets are at the end than at `read_to`."""
        return (self.above.first_density or self.density) / self.density if self.above else 1.0

    def split(self) -> Slice | None:
        """Cut off the upper half of what follows, by markets, and return it; None if that is not worth a request.

        The page that is being asked for and another one stay.
        """
        if self.left < 2 * PAGE_SIZE:
            return None
        factor = self._factor
        share = math.log((1 + factor) / 2) / math.log(factor) if factor != 1 else 0.5
        middle = self.read_to + int((self.end - self.read_to) * share)
        if not self.read_to < middle < self.end:
            return None
        density = self.density * (1 + factor) / 2
        self.above = Slice(middle, self.above, density, density)
        return self.above


SLICE_READERS: Final = 4  # one reader in so many reads slices while known markets wait
WALK_SHARE: Final = 20  # of so many pages that a run asks for one is that of the walk by id
MAX_UNTRIED: Final = 16  # slices until one has shown that the exchange filters by start date: half a second of requests
LISTING_LASTS: Final = timedelta(days=2)  # until all is listed anew, if no walk by id comes through before
FULL_WALK_EVERY: Final = timedelta(days=1)  # from its end to the next one's beginning


def dated(page: MarketPage) -> list[tuple[int, int]]:
    """Return start, in Unix seconds, and id of those markets of *page* that have a start date, in their order."""
    starts = ((sql_time_of(market.start_date), int(market.market_id)) for market in page.markets)
    return [(int(datetime.fromisoformat(f"{start}+00:00").timestamp()), id_) for start, id_ in starts if start]


def is_contradiction(error: ApiError) -> bool:
    """Return whether the exchange does not list what was asked for, and another listing may be what helps."""
    is_refusal = isinstance(error, RequestRejectedError) and not isinstance(error, AccessDeniedError)
    return is_refusal or (isinstance(error, MalformedResponseError) and not error.retryable)


@dataclass
class ExchangeDiscovery(Discovery):
    """Finds every open market of the exchange, a little further in each run where one is too short for all of them.

    What earlier runs have listed is asked for by id. The rest is found in three ways:

    - The first listing is cut into slices of start dates, which readers share (`_read_slices`). An exchange that does
      not list by start date is walked by id instead.
    - Once all slices are proven, each run walks from the newest id down to known ones.
    - A walk by id goes from the oldest market to the newest, a few pages in each run (`_walk_by_id`). It finds what the
      content of no page can prove: who has no start date, or another one than a moment before.

    How far both are stands in the table `walk`, and the next run goes on there.
    """

    _state: ListingState = field(default_factory=ListingState)
    _full_walk_at: str | None = None  # when the last walk by id came to its end
    _slices: list[Slice] = field(default_factory=list)  # of the first listing; empty once it is through
    _waiting: list[Slice] = field(default_factory=list)  # those that nobody has begun to read
    _being_read: set[Slice] = field(default_factory=set)
    _top: Slice = field(default_factory=lambda: Slice(NEVER))  # above all of them
    _is_tried: bool = False  # whether a page has begun where its slice does
    _refused: bool = False  # whether the exchange cannot be listed by start date
    _cut_off: ApiError | None = None  # why a slice is not read to its end
    _pages: int = 0  # that the run has asked for, but for those of the walk by id
    _walked: int = 0  # pages with markets of the walk by id
    _walk_waits: bool = True  # whether it has nothing in hand
    _is_over: bool = False  # whether it is not to go on, for the others are done
    _found: set[int] = field(default_factory=set)  # ids that it alone has listed
    _changed: asyncio.Event = field(default_factory=asyncio.Event)  # set, and replaced, after each page

    @property
    def share_read(self) -> float | None:
        """How much of the time since the oldest start date is read, while the first listing is under way."""
        oldest, newest = self._state.oldest, self._top.start
        if not self._slices or oldest is None or newest == NEVER:
            return None
        return 1 - sum(end - max(start, oldest) for start, end in self._unread()) / max(newest - oldest, 1)

    def _unread(self) -> list[tuple[int, int]]:
        """Return from where to where the first listing is not read and proven, joined where these meet."""
        unread: list[tuple[int, int]] = []
        for start, end in sorted(part.unread for part in self._slices if not part.is_proven):
            begins = unread.pop()[0] if unread and unread[-1][1] >= start else start
            unread.append((begins, end))
        return unread

    async def save(self) -> dict[str, object]:
        """Store the listed ids and how far the listing is, and return the columns of `runs`."""
        if self._listing:  # else the run has not read what was stored before
            database, state, unread = self._run.database, self._state, self._unread()
            if self._slices and not (unread or self._refused or self.error):
                state.listed_at, state.newest = self._run.started_at, max(self._seen, default=None)
            if unread and unread[-1][1] < self._top.start:
                unread.append((self._top.start, NEVER))
            elif unread:  # what starts from now on is unread as well
                unread[-1] = (unread[-1][0], NEVER)
            state.unread = json.dumps(unread) if unread and not self._refused else None
            async with database.transaction("store the listed ids"):
                await database.execute(SAVE_LISTED, [(market_id,) for market_id in self._seen - self._listed_before])
                await database.execute("DELETE FROM walk", [()])
                await database.execute(insert_into("walk", ListingState.__slots__), [astuple(state)])
        return await super().save() | {"full_walk_at": self._full_walk_at}

    async def _read_earlier_runs(self) -> None:
        database = self._run.database
        self._listed_before = set(await database.ids("SELECT market_id FROM listed_ids"))
        self._full_walk_at = await database.value(newest_run("full_walk_at"))
        for row in await database.rows(f"SELECT {', '.join(ListingState.__slots__)} FROM walk"):  # noqa: S608
            self._state = ListingState(*row)
        await super()._read_earlier_runs()

    def _choose_listing(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        if self._is_recent(self._full_walk_at, LISTING_LASTS) or self._is_recent(self._state.listed_at, LISTING_LASTS):
            return "known", self._list_exchange
        for start, end in json.loads(self._state.unread or f"[[0, {NEVER}]]"):
            above = self._top if end == NEVER else Slice(end, first_ids=self._listed_before)  # which is read
            self._slices.append(Slice(start, above))
        self._waiting += self._slices
        return "full", self._list_exchange

    def _is_recent(self, at: str | None, span: timedelta) -> bool:
        now = self._clock.now()
        return at is not None and sql_time(now - span) < at <= sql_time(now)

    async def _list_exchange(self) -> None:
        """Ask for what is known and list what is not; the walk by id delays neither."""
        self._asked = self._listed_before | self._followed
        known = self._unseen(self._by_last_book(self._asked))
        async with asyncio.TaskGroup() as tasks:
            walk = tasks.create_task(self._walk_by_id(), name="walk by id")
            async with asyncio.TaskGroup() as others:
                others.create_task(self._read_top() if self._slices else self._walk_newest(), name="newest")
                for number in range(self._workers):
                    others.create_task(self._read(known, number), name=f"read {number}")
            self._is_over = not self._refused
            if self._is_over and self._walk_waits:
                walk.cancel()
        walk_error = None if walk.cancelled() else walk.result()
        if walk_error and self._refused:
            await self._fail(walk_error)
        elif walk_error:
            await self._run.put(self._run.failure("list", f"the walk by id goes on in the next run: {walk_error}"))
        if self._unread() and not self._refused:
            await self._fail(self._cut_off or self._run.api.bad_listing("the listing by start date has no other end"))
        elif self._found and not self._refused:
            self.notes.append(f"the walk by id has found {len(self._found)} markets that no other listing has")

    def _unseen(self, market_ids: Iterable[int]) -> Iterator[list[int]]:
        """Yield those of *market_ids* that are not listed by then, 100 at a time."""
        unseen = (id_ for id_ in market_ids if id_ not in self._seen)
        while some := list(itertools.islice(unseen, PAGE_SIZE)):
            yield some

    async def _read(self, known: Iterable[Sequence[int]], number: int) -> None:
        """Read slices and ask for *known* markets, until neither is left."""
        if number % SLICE_READERS == 0:
            await self._read_slices()
        for ids in known:
            self._count()
            await self._ask_open(ids)
        await self._read_slices()

    def _count(self, page: MarketPage | None = None) -> None:
        """Count a page for the walk by id, whose turn it may be then."""
        self._pages += 1
        self._found.difference_update(page.ids if page else ())
        self._wake()

    def _wake(self) -> None:
        """Let those go on that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _walk_newest(self) -> None:
        """Walk from the newest id down to known ground; what lies above has been seen, but not all between."""
        newest = self._state.newest or max(self._listed_before, default=0)

        def is_known(page: MarketPage) -> bool:
            self._count(page)
            return bool(page.markets) and page.ids[0] <= newest and self._listed_before.issuperset(page.ids)

        if await self._walk(Listing("id", ascending=False), is_known):
            self._state.newest = max(self._seen, default=newest)

    async def _read_top(self) -> None:
        """Read the listing by start date from its other end to the first page with dates, which ends the topmost slice.

        Markets without a date come first there, if they come at all.
        """
        async with self._reading(Listing("startDate", ascending=False)) as pages:
            async for page in pages:
                markets = dated(page)
                if why := page.incomplete or (markets and self._top.cover(markets)):
                    raise self._run.api.bad_listing(why)
                self._count(page)
                await self._take(page)
                if markets:
                    return
            self._top.first_ids = ()  # nobody has a date

    async def _read_slices(self) -> None:
        """Read one slice after the other, until nobody reads any more."""
        while not self._refused and (self._cut_off is None or self._cut_off.retryable):
            if part := self._next_slice():
                self._being_read.add(part)
                try:
                    await self._read_slice(part)
                finally:
                    self._being_read.discard(part)
            elif self._being_read:
                await self._changed.wait()
            else:
                return

    def _next_slice(self) -> Slice | None:
        """Return a slice that waits, or the upper half of the one with most left, where that is worth a request."""
        if self._waiting:
            return self._waiting.pop(0)  # the newest last: it comes again in the next run
        if len(self._slices) > MAX_UNTRIED and not self._is_tried:
            return None
        largest = max(self._being_read, key=lambda part: part.left, default=None)
        if upper := largest and largest.split():
            self._slices.append(upper)
        return upper

    async def _read_slice(self, part: Slice) -> None:
        """Take the pages of *part* to its end."""
        since = sql_time(datetime.fromtimestamp(part.read_to, UTC)).replace(" ", "T") + "Z"
        async with self._reading(Listing("startDate", ascending=True, filters=[("start_date_min", since)])) as pages:
            async for page in pages:
                markets = dated(page)
                why = page.incomplete or part.add(markets, is_last=page.next_cursor is None)
                if any(one.is_proven is False for one in self._slices):
                    why = why or "a slice of the listing does not begin with what the one below ends with"
                if why:
                    raise self._run.api.bad_listing(why)
                self._is_tried = self._is_tried or part.start > 0
                if self._state.oldest is None and markets and not part.start:
                    self._state.oldest = markets[0][0]
                self._count(page)
                await self._take(page)
                if part.is_read:
                    return

    @asynccontextmanager
    async def _reading(self, listing: Listing) -> AsyncIterator[AsyncIterator[MarketPage]]:
        """Read the pages of a *listing* by start date; an error ends it, and a refusal all of them."""
        try:
            async with aclosing(self._run.api.iter_market_pages(listing)) as pages:
                yield pages
        except ApiError as error:
            if is_contradiction(error) and not self._refused:
                self._refused = True
                what = f"the exchange is walked by id, for it cannot be listed by start date: {error.message}"
                log.warning("%s", what)
                await self._run.put(self._run.failure("list", what))
            self._cut_off = error
        finally:
            self._wake()

    async def _walk_by_id(self) -> ApiError | None:
        """Go on with the walk by id, and return the error that ends it.

        It takes a page for each 19 of the others, and does not wait for them if the exchange is not listed by start
        date. It begins anew where its stored cursor is refused, or leads to what cannot follow.
        """
        state = self._state
        if not state.began and self._is_recent(self._full_walk_at, FULL_WALK_EVERY):
            return None
        state.began = state.began or self._run.started_at
        while True:
            try:
                await self._walk_on()
            except ApiError as error:
                if self._walked or not state.cursor or not is_contradiction(error):
                    return error
                log.info("the walk by id begins anew: %s", error)
                state.cursor, state.last_id, state.began = None, 0, self._run.started_at
                self._walk_waits = True
            else:
                return None

    async def _walk_on(self) -> None:
        state, incomplete = self._state, None
        listing = Listing("id", ascending=True)
        after = (state.cursor, str(state.last_id)) if state.cursor else None
        async with aclosing(self._run.api.iter_market_pages(listing, after=after)) as pages:
            async for page in pages:
                self._walk_waits, ids = False, page.ids
                if ids != sorted(ids):
                    raise self._run.api.bad_listing("the listing is not in the order of id")
                if ids and ids[0] <= state.last_id:
                    raise self._run.api.bad_listing("the listing repeats itself")
                opened = {int(market.market_id) for market in page.markets if market.is_open}
                self._found |= opened - self._seen - self._listed_before
                await self._take(page)
                incomplete = incomplete or page.incomplete
                if page.next_cursor and ids and not incomplete:  # the next run goes on after it
                    state.cursor, state.last_id = page.next_cursor, ids[-1]
                self._walked, self._walk_waits = self._walked + bool(ids), page.next_cursor is not None
                if self._walk_waits and self._is_over:
                    return
                while self._walk_waits and self._walked * (WALK_SHARE - 1) > self._pages and not self._refused:
                    await self._changed.wait()
        if incomplete:
            raise self._run.api.bad_listing(incomplete)
        self._full_walk_at = sql_time(self._clock.now())
        state.cursor, state.began, state.last_id = None, None, 0


# --- Collector --------------------------------------------------------------------------------------------------------

MAX_CLOCK_STEP: Final = timedelta(seconds=2)  # a clock set back by at most this is waited for
RATE_WINDOW_S: Final = 1.1  # a second and some room: we count starts, the exchange counts arrivals
MAX_HEADER_BYTES: Final = 65_536  # a line of an answer's head: company networks add long ones
MAX_FETCHED_BATCHES: Final = 10  # at a time; 8 are enough for 30 pages of 100 markets a second at 650 ms a request
MIN_COMPLETE_SHARE: Final = 0.95  # of the listed markets, stored with their books
# parts of an element whose loss is a failure: a reader of the rows would take what is absent for what is not there
REPORTED_KEYS: Final = frozenset({
    "volume24hr", "volumeNum", "outcomes", "outcomePrices", "startDate", "endDate", "negRisk", "orderPriceMinTickSize",
    "orderMinSize", "feesEnabled", "feeSchedule", "rate", "bids", "asks",
})  # fmt: skip


class Progress(NamedTuple):
    """How far a run is."""

    listed: int
    stored: int
    errors: int
    all_listed: bool  # from now on `listed` does not grow
    # of the time since the oldest start date, while the exchange is listed for the first time
    share_read: float | None = None


@asynccontextmanager
async def first_error_of_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a task group that raises its first error, not a group of them."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


def remove_books_of_other_markets(books: dict[str, OrderBook], markets: Iterable[GammaMarket]) -> Problems:
    """Remove from *books* those that name another market than that of *markets* whose token they belong to."""
    problems: Problems = {}
    for market in markets:
        for token in market.tokens:
            named = books[token].market if token in books else None
            if named and market.condition_id and named != market.condition_id:
                del books[token]
                problems[token] = printable(f"the book is that of another market, {named}")
    return problems


def missing_books(
    run: Run, markets: Iterable[GammaMarket], books: Collection[str], problems: Problems
) -> list[Failure]:
    """Count the markets that should have books which are not among *books* (by token), and return their failures.

    Markets whose request failed share one row.
    """
    groups: defaultdict[tuple[str, object], list[str]] = defaultdict(list)  # markets that share a row
    for market in markets:
        missing: defaultdict[str, list[str]] = defaultdict(list)  # sides by reason
        for side, token in zip(("YES", "NO"), market.tokens, strict=True):
            if token not in books:
                problem = problems.get(token) or problems.get(None) or "the exchange has no book"
                missing[str(problem)].append(side)
        # orders stop some time before a market closes
        should_have_books = market.accepting_orders and market.enable_order_book
        if not missing or not (should_have_books or problems.keys() & market.tokens):
            continue
        run.books_missing += 1
        reason = "; ".join(f"{' and '.join(sides)}: {why}" for why, sides in missing.items())
        errors = [error for token in market.tokens if isinstance(error := problems.get(token), ApiError)]
        for error in errors:
            run.check_drift(error)
        shared = errors[0] if errors and len(missing) == 1 else None
        groups[reason, shared or market.market_id].append(market.market_id)
    return [run.failure("book", reason, *ids) for (reason, _), ids in groups.items()]


def unreadable_parts(
    run: Run, markets: Iterable[GammaMarket], rows: Iterable[Market], books: Mapping[str, OrderBook]
) -> list[Failure]:
    """Count what of *markets* and their books cannot be read; return failures for what a reader would miss.

    What more than ten markets lack is one failure. Their *rows* say which times could not be read.
    """
    lacking: defaultdict[tuple[str, str], list[str]] = defaultdict(list)  # markets by stage and by what they lack
    for market, row in zip(markets, rows, strict=True):
        of_books = [key for token in market.tokens if token in books for key in books[token].unreadable]
        if row.start_time and row.end_time and not (market.unreadable or of_books):  # nearly all
            continue
        times = (("startDate", market.start_date, row.start_time), ("endDate", market.end_date, row.end_time))
        # the year 1 stands for no time at all
        odd_times = (key for key, sent, stored in times if sent and not stored and not sent.startswith("0001"))
        of_market = {*market.unreadable, *odd_times}
        run.unreadable.update(of_market.union(of_books))
        if keys := sorted(of_market & REPORTED_KEYS):
            lacking["list", ", ".join(keys)].append(market.market_id)
        if sides := [f"{key} ({of_books.count(key)})" for key in ("bids", "asks") if key in of_books]:
            lacking["book", ", ".join(sides)].append(market.market_id)
    failures: list[Failure] = []
    for (stage, keys_text), ids in lacking.items():
        reason = f"left out, for it cannot be read: {keys_text}"
        if len(ids) > MAX_BAD_ELEMENTS:
            failures.append(Failure(run.run_id, None, stage, reason, len(ids)))
        else:
            failures += [Failure(run.run_id, market_id, stage, reason) for market_id in ids]
    return failures


class AsyncCollector:
    """Take snapshots of Polymarket's open markets.

        collector = AsyncCollector("polymarket_data.db", min_volume=1_000)
        result = asyncio.run(collector.collect_all())

    Args:
        db_path: the SQLite file; made if it does not exist. Environment: POLYMARKET_DB.
        workers: requests in flight at most, over all hosts.
        max_retries: further attempts for a request that failed.
        timeout: seconds for one attempt, to the last byte of its answer.
        run_timeout: seconds after which a run asks nothing more, and ends with what it has.
        min_volume: USD traded in the last 24 hours, below which a market is left out; 0 takes every open market. Where
            anything is named it holds for series and tags alone, and only if it is given.
        markets: ids, slugs or addresses of markets; these and all that follow add up, and nothing else is listed.
        events: slugs or addresses of events, each with all its markets.
        series: slugs or addresses of recurring series, each with the markets that are open at that moment.
        tags: labels, slugs or addresses of tags, each with all its markets.
        ends_within: minutes within which a market of a series or a tag has to end; None takes all.
        depth: levels of each side of a book to store, the best ones; 0 stores no books, None all levels.
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
        file: device and inode of the database once a run has opened it; later runs of this collector take no other.

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
        min_volume: float = DEFAULT_MIN_VOLUME,
        markets: Iterable[object] = (),
        events: Iterable[object] = (),
        series: Iterable[object] = (),
        tags: Iterable[object] = (),
        ends_within: float | None = None,
        depth: int | None = None,
        twitter_max_posts: int | None = None,
        follow: bool = True,
        progress: Callable[[Progress], None] | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        given = read_variables(os.environ)
        posts: tuple[str, object] = ("twitter_max_posts", twitter_max_posts)
        if twitter_max_posts is None:
            posts = ("TWITTER_MAX_POSTS", given["TWITTER_MAX_POSTS"])
        self.settings = Settings(
            db_path=database_path(db_path, os.environ),
            workers=whole_number("workers", workers),
            max_retries=whole_number("max_retries", max_retries, at_least=0),
            timeout_s=finite_number("timeout", timeout, positive=True),
            run_timeout_s=finite_number("run_timeout", run_timeout, positive=True),
            selection=Selection.resolve(
                min_volume, ends_within, markets=markets, events=events, series=series, tags=tags
            ),
            depth=None if depth is None else whole_number("depth", depth, at_least=0, at_most=MAX_DEPTH),
            max_posts=whole_number(*posts, at_least=MIN_PAGE_POSTS, at_most=MAX_POSTS),
            with_usernames=whole_number("TWITTER_USERNAMES", given["TWITTER_USERNAMES"], at_least=0, at_most=1) == 1,
            gamma=Endpoint.resolve("GAMMA", given),
            clob=Endpoint.resolve("CLOB", given),
            twitter=Endpoint.resolve("TWITTER", given),
        )
        self._clock = clock or Clock()
        self._rng = rng or random.Random()  # noqa: S311  spreads retries, keeps no secret
        self.file: tuple[int, int] | None = None
        self._follow = follow
        self._listed_series: dict[str, ListedGroup] = {}  # by slug, for the next runs
        self._progress = progress or (lambda _: None)
        self.gamma_limiter = RateLimiter(self.settings.gamma.rate_limit, RATE_WINDOW_S, clock=self._clock)
        self.clob_limiter = RateLimiter(self.settings.clob.rate_limit, RATE_WINDOW_S, clock=self._clock)
        self.twitter_limiter = RateLimiter(self.settings.twitter.rate_limit, RATE_WINDOW_S, clock=self._clock)

    def __repr__(self) -> str:
        return f"<AsyncCollector: {self.settings.selection} to {self.settings.db_path}>"

    async def collect_all(self) -> CollectionResult:
        """Take one snapshot of every selected market, and return what was stored.

        Whatever could not be had is in the table `failures`, and the run goes on without it.

        Raises:
            ApiError: the listing could not be read and nothing was stored.
            UnknownNamesError: the exchange has none of the names, and nothing was stored.
            DatabaseBusy: another collector holds the database.
            StorageError: the database cannot be used; what was stored before stays.
        """
        started = self._clock.monotonic()
        async with self._open_run() as (run, discovery, posts):
            try:
                async with first_error_of_tasks() as tasks:
                    tasks.create_task(discovery.run(), name="discover")  # pages -> batches of markets
                    tasks.create_task(self._fetch_books(run, discovery), name="fetch")  # batches -> rows
                    tasks.create_task(self._write(run, discovery), name="write")  # rows -> SQLite
                    tasks.create_task(posts.read(), name="posts")  # posts -> SQLite
                await posts.score(run.saved.snapshots)  # posts and markets -> hype signals
            except BaseException as error:
                if not isinstance(error, DatabaseBusy):  # it would wait for as long again
                    with suppress(StorageError):  # the first error says it
                        await self._finish(run, discovery, posts, started)
                raise
            result = await self._finish(run, discovery, posts, started)
        if discovery.error and not run.saved.snapshots:
            raise discovery.error
        if discovery.unknown and discovery.listed == len(discovery.unknown) == self.settings.selection.count:
            raise UnknownNamesError(printable(f"the exchange has no {', no '.join(discovery.unknown)}"))
        return result

    @asynccontextmanager
    async def _open_run(self) -> AsyncIterator[tuple[Run, Discovery, Posts]]:
        """Open the database and the session with the hosts, and start a run; the caller finishes it."""
        settings = self.settings
        opened = Database.open(settings.db_path, self.file, keep_empty=False)
        async with opened as database, self.connect() as (network, api):
            self.file = database.file if database.is_kept else None
            # a market has one row per second; a clock that was set back by more than two is not waited for
            last_at: str | None = await database.value(LAST_SNAPSHOT_AT)
            while last_at and (now := self._clock.now()) and sql_time(now) <= last_at <= sql_time(now + MAX_CLOCK_STEP):
                await self._clock.sleep(1 - now.microsecond / 1e6)
            started_at = sql_time(self._clock.now())
            run_id = await database.start_run(
                started_at=started_at,
                **settings.selection.columns,
                follow=self._follow or settings.selection.whole_exchange,
                depth=settings.depth,
            )
            run = Run(run_id, started_at, database, api, network)
            outcomes = Outcomes(run, self._clock)
            way: Callable[..., Discovery] = ExchangeDiscovery if settings.selection.whole_exchange else Discovery
            if settings.selection.names:
                way = partial(NamedDiscovery, listed_series=self._listed_series)
            discovery = way(run, settings.selection, settings.workers, self._follow, self._clock, outcomes)
            x_host = HttpHost(settings.twitter, self.twitter_limiter, network)
            yield run, discovery, Posts(run_id, database, x_host, settings, self._clock)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[Network, PolymarketApi]]:
        """Open a session with the hosts; its run timeout begins now."""
        settings = self.settings
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_before_sending)  # awaited before they are sent; an error closes
        session = aiohttp.ClientSession(
            trace_configs=[trace],
            connector=aiohttp.TCPConnector(limit=settings.workers, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"polymarket-async-collector/{__version__}", "Accept-Encoding": "gzip"},
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `HttpHost` has a deadline of its own
        )
        session._retry_connection = False  # noqa: SLF001  aiohttp would repeat a GET unpaced and uncounted
        async with session:
            network = Network(
                session=session,
                slots=asyncio.Semaphore(settings.workers),
                settings=settings,
                deadline=self._clock.monotonic() + settings.run_timeout_s,
                clock=self._clock,
                rng=self._rng,
            )
            gamma = HttpHost(settings.gamma, self.gamma_limiter, network)
            clob = HttpHost(settings.clob, self.clob_limiter, network)
            yield network, PolymarketApi(gamma, clob)

    async def _fetch_books(self, run: Run, discovery: Discovery) -> None:
        """Turn batches of markets into rows, as many at a time as there are workers, but no more than 10.

        Where the file is slower than the hosts, each of these holds a batch of rows that waits for it.
        """

        async def work() -> None:
            while markets := await discovery.batches.get():
                await run.rows.put(await self._snapshot(markets, run))
            discovery.batches.put_nowait(None)  # for the others

        async with asyncio.TaskGroup() as tasks:
            for number in range(min(self.settings.workers, MAX_FETCHED_BATCHES)):
                tasks.create_task(work(), name=f"fetch {number}")
        await run.rows.put(None)

    async def _snapshot(self, markets: list[GammaMarket], run: Run) -> Batch:
        """Fetch the books of *markets* and build their rows; without a book a row has NULL in its place."""
        tokens = [token for market in markets for token in market.tokens]
        books: dict[str, OrderBook] = {}
        try:
            books, problems = await run.api.fetch_books(tokens)
            problems |= remove_books_of_other_markets(books, markets)
        except ApiError as error:
            log.warning("no books for %d markets: %s", len(markets), error)
            problems = dict.fromkeys(tokens, error)
        now = sql_time(self._clock.now())
        batch = Batch(run.run_id, follow=not self.settings.selection.whole_exchange)
        for market in markets:
            yes, no = (books.get(token) for token in market.tokens)
            batch.markets.append(Market.from_wire(market, seen_at=now))
            batch.snapshots.append(Snapshot.from_wire(market, yes, no, run_id=run.run_id, received_at=now))
            book = Book.from_wire(market.market_id, yes, no, depth=self.settings.depth, received_at=now)
            if book:
                batch.books[market.market_id] = book
                run.unmirrored += book.mirrored is False
        batch.failures += missing_books(run, markets, books, problems)
        batch.failures += unreadable_parts(run, markets, batch.markets, books)
        return batch

    async def _write(self, run: Run, discovery: Discovery) -> None:
        """Store the rows, a transaction per batch."""
        while batch := await run.rows.get():
            await self._store(batch, run)
            counts = (discovery.listed, run.saved.snapshots, run.saved.errors)
            self._progress(Progress(*counts, discovery.all_listed, discovery.share_read))

    @shielded
    async def _store(self, batch: Batch, run: Run) -> None:
        """Store *batch* and count it, without a cancellation in between."""
        saved = await run.database.save(batch)
        run.saved = run.saved.plus(saved)
        self.file = run.database.file if run.database.is_kept else None
        if saved.errors > len(batch.failures):
            run.reason = run.reason or "a row could not be stored: see the failures of stage save"

    @shielded
    async def _finish(self, run: Run, discovery: Discovery, posts: Posts, started: float) -> CollectionResult:
        """Complete the row of the run; its snapshots and errors were counted as they were stored."""
        columns = await discovery.save()
        run.log_unreadable()
        result = self._result(run, discovery, posts, self._clock.monotonic() - started)
        figures = dict(result) | dict(result["stats"])
        shared = ("status", "duration", "books_missing", "unmirrored", "requests", "retries", "rate_limit_hits")
        columns |= {name: figures[name] for name in shared}
        columns |= {"finished_at": sql_time(self._clock.now()), "tweets_complete": posts.complete}
        await run.database.finish_run(run.run_id, columns)
        log.info(
            "run %d %s: %d snapshots, %d errors", run.run_id, result["status"], run.saved.snapshots, run.saved.errors
        )
        return result

    def _result(self, run: Run, discovery: Discovery, posts: Posts, duration: float) -> CollectionResult:
        status = "partial" if run.saved.snapshots else "failed"
        with_books = run.saved.snapshots - run.books_missing
        all_found = discovery.all_listed and not discovery.error and not discovery.unknown
        if all_found and with_books >= MIN_COMPLETE_SHARE * discovery.listed:
            status = "complete"
        return CollectionResult(
            markets=run.saved.snapshots,
            snapshots=run.saved.snapshots,
            tweets=posts.stored,
            duration=duration,
            stats=Stats(
                markets_fetched=discovery.listed,
                snapshots_saved=run.saved.snapshots,
                tweets_fetched=posts.received,
                errors=run.saved.errors + posts.errors,
                retries=run.network.retries,
                rate_limit_hits=run.network.rate_limit_hits,
            ),
            run_id=run.run_id,
            status=status,
            books_missing=run.books_missing,
            books_saved=run.saved.books,
            books_unchanged=run.saved.books_unchanged,
            unmirrored=run.unmirrored,
            reason=run.reason,
            drift=run.drift,
            tweets_reason=posts.reason,
            notes=discovery.notes,
            unknown=discovery.unknown,
            requests=run.network.requests,
            database=str(self.settings.db_path),
        )


# --- Schedule ---------------------------------------------------------------------------------------------------------


class Tick(NamedTuple):
    """How a run of the schedule went, and what comes next."""

    result: CollectionResult | None
    error: Exception | None
    next_run: datetime
    missed: int  # ticks without a run, since the schedule began


def tick_number(time_s: float, interval_s: float) -> int:
    """Return the number, since 1970, of the tick that a run beginning at *time_s* (Unix time) stands for.

    A run that begins a tenth of an interval before a tick, or later, stands for that tick.
    """
    return math.floor(time_s / interval_s + 0.1)


async def _wait_for(tick: int, interval_s: float, clock: Clock, on_nap: Callable[[], None]) -> int:
    """Wait until *tick* and return it; if the wall clock is set back, until the nearest tick instead.

    The wall clock, which may be set or go on in suspension, is read after each 30 s of sleep.
    """
    while (now_s := clock.now().timestamp()) < tick * interval_s:
        tick = min(tick, tick_number(now_s, interval_s) + 1)
        await clock.sleep(min(tick * interval_s - now_s, 30))
        on_nap()
    return tick


async def _run_once(collector: AsyncCollector) -> tuple[CollectionResult | None, Exception | None]:
    """Return the result of one run, or the error that ended it: even a bug must not end months of collecting."""
    try:
        return await collector.collect_all(), None
    except Exception as error:
        if isinstance(error, StorageError) and error.lasting and collector.file is None:
            raise
        is_bug = not isinstance(error, CollectorError)
        log.error("a run failed: %s", error, exc_info=is_bug)  # noqa: TRY400  a traceback for a bug alone
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

    A tick that passes during a run, in suspension or when the clock is set forward is counted as missed, and never
    caught up on. A run that fails is logged, and the next tick comes all the same. No run takes another file than the
    first: one that is moved, or whose disk is not mounted, is a `StorageError` at each tick until it is back. Signal
    handlers are the caller's business.

    Args:
        workers: as in `AsyncCollector`.
        interval_minutes: between two ticks; may be a fraction.
        stop: ends everything soon after it is set; the run in progress is marked as what it is.
        on_tick: called after each run that was not stopped.
        heartbeat: called after each stored batch and each nap of 30 s at most, for a watchdog.
        clock: for tests.
        settings: further arguments of `AsyncCollector`; without a `run_timeout` a run ends after 10 minutes or an
            interval, whichever is shorter.

    Raises:
        ConfigError: a value cannot work.
        UnknownNamesError: the exchange has none of the names, and no run has found any; later it is an error of a tick.
        StorageError: nothing can be stored before somebody changes the file or its folder, from the start.
    """
    clock = clock or Clock()
    stop = stop or asyncio.Event()
    on_heartbeat = heartbeat or (lambda: None)
    report = settings.pop("progress", None) or (lambda _: None)
    interval_s = minutes("interval_minutes", interval_minutes) * 60
    settings.setdefault("run_timeout", min(RUN_TIMEOUT_S, interval_s))

    def on_progress(progress: Progress) -> None:
        on_heartbeat()
        report(progress)

    collector = AsyncCollector(workers=workers, clock=clock, progress=on_progress, **settings)

    async def collect() -> None:
        missed, due, found = 0, tick_number(clock.now().timestamp(), interval_s), False
        while not stop.is_set():
            number = tick_number(clock.now().timestamp(), interval_s)
            result, error = await _run_once(collector)
            if isinstance(error, UnknownNamesError) and not found:
                raise error
            found = found or result is not None
            coming = max(number, math.floor(clock.now().timestamp() / interval_s)) + 1
            missed += coming - due - 1
            if on_tick:
                on_tick(Tick(result, error, datetime.fromtimestamp(coming * interval_s, UTC), missed))
            if not stop.is_set():
                due = await _wait_for(coming, interval_s, clock, on_heartbeat)

    async with first_error_of_tasks() as tasks:
        collecting = tasks.create_task(collect(), name="collect")
        await stop.wait()
        collecting.cancel()


class DaemonThreads(ThreadPoolExecutor):
    """Executor for a program's event loop; a thread that a silent name server holds does not delay the end of it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run *fn* in a daemon thread of its own."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  it is the caller's
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future


# --- End of the price path --------------------------------------------------------------------------------------------
# Without TWITTER_BEARER_TOKEN nothing is asked of X; posts that other programs store are scored all the same.

# --- Posts: X as it answers -------------------------------------------------------------------------------------------

PostId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,19}\Z")]  # and of a user, on X
Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class XMetrics(msgspec.Struct, gc=False):
    """Reactions to a post when it was read."""

    like_count: Count | None = None
    retweet_count: Count | None = None
    reply_count: Count | None = None


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
    entities: Any = None
    author_username: str | None = None  # as far as it was asked for: X sends it beside the posts
    unreadable: Unreadable = ()


class XMeta(msgspec.Struct, gc=False):
    """Where a page of posts stands."""

    newest_id: PostId | None = None
    next_token: str | None = None


class XPage(msgspec.Struct):
    """A page of X's search, the newest post first. A user or an error of another shape costs no post."""

    meta: XMeta
    data: list[msgspec.Raw] | None = None  # absent without a single post
    includes: Any = None
    errors: Any = None


_X_PAGE: Final = json_decoder(XPage)
_X_POST: Final = json_decoder(XPost)


def decode_posts(body: Body) -> tuple[XPage, list[XPost], list[str]]:
    """Decode a page of X's search into the page, its posts, and what cannot be read or was left out by X.

    Raises:
        ValueError: it is no such page.
    """
    page = decode_answer(_X_PAGE, body)
    posts, undecoded = decode_elements(page.data or [], _X_POST)
    users = objects(page.includes.get("users")) if isinstance(page.includes, dict) else []
    names = {str(user.get("id")): name for user in users if isinstance(name := user.get("username"), str)}
    for post in posts:
        post.author_username = names.get(post.author_id or "")
    problems = [bad.reason for bad in undecoded]
    if page.errors:
        texts = (error.get(key) for error in objects(page.errors) for key in ("detail", "title", "message"))
        what = next((text for text in texts if text and isinstance(text, str)), "something that is not understood")
        problems.append(f"X left something out: {printable(what)}")
    unreadable = Counter(key for post in posts for key in set(post.unreadable))
    problems += [f"left out, for it cannot be read: {key} of {count} posts" for key, count in unreadable.items()]
    return page, posts, problems


# --- Posts: tone, matching, hype --------------------------------------------------------------------------------------
# Pure functions: how posts become a signal. None of them needs the network or a database.


class Question(NamedTuple):
    """What a market is about, in words and in addresses."""

    market_id: str
    question: str | None
    slug: str | None = None
    event_slug: str | None = None


class Match(NamedTuple):
    """Which market a post is about, and why."""

    market_id: str
    keywords: str  # the link, or the words, that decided


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# a phrase counts as one word
POSITIVE_WORDS: Final = _words(
    "banger bullish confident easy gem gift goat great green guaranteed juicy lfg lock love moon mooning nailed "
    "printing profit profits pump pumping safe steal underpriced undervalued win winner winning wins "
    "all_in cant_lose free_money great_bet locked_in no_brainer"
)
NEGATIVE_WORDS: Final = _words(
    "awful bad bearish broke cooked crash crashing dead disaster dumb dump dumping fade fading fake fraud garbage "
    "horrendous lose loser loses losing loss lost manipulated overpriced overvalued ponzi rekt rigged robbed robbery "
    "rug rugged scam scammed scams short stupid terrible toast trash worst wrecked "
    "dead_money exit_liquidity no_chance no_way rug_pull stay_away wash_trading"
)
_PHRASE: Final = re.compile(
    rf"\b(?:{'|'.join(sorted(word for word in POSITIVE_WORDS | NEGATIVE_WORDS if '_' in word))})\b".replace("_", " ")
)
POSITIVE_EMOJI: Final = "🚀📈🔥💰🤑💎🟢✅🎯🏆💪🙌🐂🌕"
NEGATIVE_EMOJI: Final = "📉💀🤡🔴❌🚩🗑😭😡🤮🐻💩🥶"
NEGATIONS: Final = _words("aint arent cant didnt doesnt dont hardly isnt never nor not wasnt wont without")


def sentiment(text: str) -> float:
    """Return how a post about betting sounds, from -1 (scam, rigged, losing) to 1 (printing, free money, bullish).

    0.0 is a post without such words, or with as many of either kind; two words of one kind make half of the full tone.
    A word at most three words after a negation counts the other way, by half. This is tone and not the direction of
    YES: "free money on NO" sounds as good as "free money on YES".
    """
    plain = text.casefold().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    score = float(sum(plain.count(sign) for sign in POSITIVE_EMOJI) - sum(plain.count(sign) for sign in NEGATIVE_EMOJI))
    spoken = " ".join(re.findall(r"[^\W\d_]+", plain))
    words = _PHRASE.sub(lambda phrase: phrase[0].replace(" ", "_"), spoken).split()
    for place, word in enumerate(words):
        negated = not NEGATIONS.isdisjoint(words[max(0, place - 3) : place])
        score += ((word in POSITIVE_WORDS) - (word in NEGATIVE_WORDS)) * (-0.5 if negated else 1)
    return score / (abs(score) + 2)


tone = sentiment  # its name until version 0.2


# words of posts, and the words that questions have for them
SYNONYMS: Final = {
    "btc": "bitcoin", "eth": "ethereum", "ether": "ethereum", "sol": "solana", "doge": "dogecoin",
    "jan": "january", "feb": "february", "mar": "march", "apr": "april", "jun": "june", "jul": "july",
    "aug": "august", "sept": "september", "sep": "september", "oct": "october", "nov": "november", "dec": "december",
    "cut": "decrease", "cutting": "decrease", "hike": "increase", "hiking": "increase",
    "bp": "bps", "fomc": "fed", "won": "win", "winning": "win",
    "nom": "nomination", "nominee": "nomination",
}  # fmt: skip
# words that do not tell markets apart: function words and betting terms
STOP_WORDS: Final = _words(
    "a about above after all am an and any are as at be been before below between but by can could did do does down et "
    "for from get go had has have he her him his how i if in into is it its just like me more most my no not now of "
    "off on one or our out over per pm she so some still than that the their them then there they this to today "
    "tonight tomorrow too up us usa vs was we were what when which who whose why will with would yes you your "
    "bet bets betting chance com everyone http https kalshi market odds percent poly polymarket prediction price "
    "probability share trade trader trading www"
)
# most posts leave them out, so they weigh nothing; "may" is too often a verb
MONTHS_AND_YEARS: Final = _words(
    "january february march april june july august september october november december "
    "2024 2025 2026 2027 2028 2029 2030 2031 2032 2033 2034 2035"
)
_LINK: Final = re.compile(
    r"(?<![\w.-])(?:www\.)?polymarket\.com/(?:[a-z]{2}/)?(?:event/([\w-]+)(?:/([\w-]+))?|market/([\w-]+))",
    re.IGNORECASE,
)
# a number and its scale, or a word
_TOKEN: Final = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)(?:(k|m|b|bn)(?![^\W\d_]))?|([^\W\d_]+)")
_SCALES: Final = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "bn": 1e9}
MIN_SHARED_WORDS: Final = 2  # that a post shares with a question
MIN_COVERAGE: Final = 0.6  # of a question's weight, in words that the post has as well


def _normal_word(number: str, scale: str, word: str) -> str:
    if number:
        return f"{float(number.replace(',', '')) * _SCALES[scale]:.15g}"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):  # noqa: PLR2004  not "gas"
        word = word[:-1]
    return SYNONYMS.get(word, word) if len(word) > 1 else "a"  # which is a stop word


def distinctive_words(text: str) -> set[str]:
    """Return what *text* says, word by word: lower case, without plurals, numbers in digits (150k is 150000)."""
    text = re.sub(r"https?://\S+", " ", html.unescape(text))
    text = re.sub(r"#\w+", lambda tag: f"{tag[0]} {re.sub('(?<=[a-z])(?=[A-Z])', ' ', tag[0])}", text)
    text = re.sub(r"['\N{RIGHT SINGLE QUOTATION MARK}]s?\b", "", text)
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    words = (_normal_word(*found.groups(default="")) for found in _TOKEN.finditer(plain))
    return {word for word in words if word not in STOP_WORDS}


def _single_best(scores: Mapping[int, Any]) -> int | None:
    """Return the key of the highest score, or None if there is none or two share it."""
    highest = max(scores.values(), default=None)
    best = [key for key, score in scores.items() if score == highest]
    return best[0] if len(best) == 1 else None


def is_in(numbers: Sequence[int], number: int) -> bool:
    """Return whether *number* is among *numbers*, which ascend."""
    place = bisect_left(numbers, number)
    return place < len(numbers) and numbers[place] == number


class MarketIndex:
    """Finds the market that a post is about: by a link to it, or by words.

    Words are weighed by how rare they are among the questions. A market is found by words if the post shares at least
    two with its question, if these are 60 % of the question's weight, and if together they are so rare that by chance
    hardly one market would have them all. Months and years weigh nothing, but a post that names others than the
    question is about something else. A post that fits two markets equally well fits none.

        index = MarketIndex([Question("1", "Will Bitcoin reach $150,000 in December?")])
        index.match("bitcoin to 150k by december")  # Match(market_id="1", keywords="150000, bitcoin, december")
    """

    def __init__(self, markets: Iterable[Question]) -> None:
        self._ids: list[str] = []
        self._by_slug: dict[str, int] = {}  # places in `_ids`
        self._by_event: dict[str, list[int]] = {}
        self._by_word: dict[str, array[int]] = {}  # ascending
        for place, market in enumerate(markets):
            self._ids.append(market.market_id)
            if market.slug:
                self._by_slug[market.slug.casefold()] = place
            if market.event_slug:
                self._by_event.setdefault(market.event_slug.casefold(), []).append(place)
            for word in distinctive_words(market.question or ""):
                self._by_word.setdefault(word, array("l")).append(place)
        count = len(self._ids) + 1
        self._word_weights: dict[str, float] = {}
        self._weights = array("d", [0.0]) * count  # of whole questions
        for word, places in self._by_word.items():
            weight = self._word_weights[word] = 0.0 if word in MONTHS_AND_YEARS else math.log(count / len(places))
            for place in places:
                self._weights[place] += weight
        rare = math.log(count)  # the weight of words that by chance hardly one market has together
        self._needed = array("d", [max(rare, MIN_COVERAGE * weight) for weight in self._weights])

    def match(self, text: str, links: Iterable[str] = ()) -> Match | None:
        """Return the market that a post is about, or None if it is about none or fits several equally well.

        *text* is the post's, *links* are the full addresses behind its links.
        """
        words = distinctive_words(text)
        linked = list(_LINK.finditer(" ".join([*links, text])))
        for link in linked:
            event, slug, alone = link.groups(default="")
            place = self._linked(event.casefold(), (slug or alone).casefold(), words)
            if place is not None:
                return Match(self._ids[place], link[0])
        return None if linked else self._match_words(words)  # words do not overrule a link elsewhere

    def _linked(self, event: str, slug: str, words: set[str]) -> int | None:
        """Return the market that a link leads to; of an event's markets, the one that shares most *words*."""
        if slug:
            return self._by_slug.get(slug)
        found = [self._by_word[word] for word in words & self._by_word.keys()]
        shared = {place: sum(is_in(places, place) for places in found) for place in self._by_event.get(event, [])}
        return _single_best(shared)

    def _match_words(self, words: set[str]) -> Match | None:
        known = {word: self._by_word[word] for word in words & self._by_word.keys()}
        common = max(20, len(self._ids) // 20)  # questions; a word that more of them have finds no candidates
        # a question shares at most its rare words and all the common ones, which rules out most candidates
        common_weight = sum(self._word_weights[word] for word, places in known.items() if len(places) > common)
        rare_weights: defaultdict[int, float] = defaultdict(float)
        for word, places in known.items():
            if len(places) <= common:
                weight = self._word_weights[word]
                for place in places:
                    rare_weights[place] += weight
        fits: dict[int, tuple[float, int]] = {}
        for place, rare_weight in rare_weights.items():
            if rare_weight + common_weight < self._needed[place]:
                continue
            shared = [word for word, places in known.items() if is_in(places, place)]
            weight = sum(self._word_weights[word] for word in shared)
            is_enough = len(shared) >= MIN_SHARED_WORDS and weight >= self._needed[place]
            if is_enough and not self._is_of_another_time(place, words):
                # rounded: float sums depend on the order of the words, which must not break a tie
                fits[place] = round(weight * weight / self._weights[place], 9), len(shared)
        best = _single_best(fits)
        if best is None:
            return None
        return Match(self._ids[best], ", ".join(sorted(word for word in known if is_in(known[word], best))))

    def _is_of_another_time(self, place: int, words: set[str]) -> bool:
        """Return whether *words* and the question both say when, and not the same."""
        times = {time for time in MONTHS_AND_YEARS & self._by_word.keys() if is_in(self._by_word[time], place)}
        return bool(times and words & MONTHS_AND_YEARS) and times.isdisjoint(words)


def velocity(posts: int, posts_before: int) -> float:
    """Return the change of *posts* against the hour before, relative to it: 0 is none, 1 is twice as many.

    After an hour without a post it is divided by 1. The range is from -1 up.
    """
    return (posts - posts_before) / max(posts_before, 1)


def hype_score(
    *, tweet_count: int, total_engagement: int, avg_sentiment: float, unique_users: int, velocity: float
) -> float:
    """Return how much attention a market has, from 0 (none) to 100; it grows with each of its parts.

    Half of a part is reached at 10 posts, of which 3 per author count, at an engagement of 100, at three times the
    posts of the hour before, at 5 authors, and at a neutral tone. Velocity and tone count in full only with many
    authors.

    The figures are those of the last hour. Engagement is likes + 2 x reposts + replies, sentiment goes from -1 to 1.
    """
    counted = min(tweet_count, 3 * unique_users)
    growth = velocity + 1
    breadth = unique_users / (unique_users + 5)
    return (
        30 * (counted / (counted + 10))
        + 20 * (total_engagement / (total_engagement + 100))
        + 20 * (growth / (growth + 3)) * breadth
        + 20 * breadth
        + 10 * (avg_sentiment + 1) / 2 * breadth
    )


# --- Posts: rows and stages -------------------------------------------------------------------------------------------

SEARCH_PATH: Final = "/2/tweets/search/recent"
SEARCH_QUERY: Final = (
    '(url:"polymarket.com" OR "polymarket.com" OR #Polymarket OR "prediction market" OR kalshi) lang:en -is:retweet'
)
X_ADVICE: Final[Mapping[int, str]] = {  # what to do about a status of X
    HTTPStatus.UNAUTHORIZED: "check TWITTER_BEARER_TOKEN; the markets are collected all the same",
    HTTPStatus.PAYMENT_REQUIRED: "the credits are used up: buy some at https://console.x.com",
    HTTPStatus.FORBIDDEN: "the account may not search: see its access and spending limit at https://console.x.com",
    HTTPStatus.TOO_MANY_REQUESTS: "X is asked again when its limit is reset; for a spending cap see https://console.x.com",
}
_log_once: Final = cache(log.info)  # per process


class Post(NamedTuple):
    """A post as read from X: one row of `tweets`. `market_id` and `keywords` are filled in later."""

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
    def from_wire(cls, post: XPost, run_id: int, received_at: str) -> Self:
        """Build the row of *post*."""
        likes, retweets, replies = msgspec.structs.astuple(post.public_metrics or XMetrics())
        has_all = None not in (likes, retweets, replies)
        urls = objects(post.entities.get("urls")) if isinstance(post.entities, dict) else []
        links = [address for url in urls if isinstance(address := url.get("expanded_url"), str) and address]
        return cls(
            tweet_id=post.post_id,
            timestamp=sql_time_of(post.created_at),
            text=post.text,
            author_username=post.author_username,
            author_id=post.author_id,
            likes=likes,
            retweets=retweets,
            replies=replies,
            engagement_score=likes + 2 * retweets + replies if has_all else None,
            sentiment_score=sentiment(post.text),
            created_at=received_at,
            run_id=run_id,
            lang=post.lang or None,
            links=msgspec.json.encode(links).decode() if links else None,
        )


# parameters: new posts, failures, the newest post of the search, the run
COUNT_POSTS: Final = """
    UPDATE runs SET tweets = tweets + ?, errors = errors + ?, newest_tweet_id = coalesce(?, newest_tweet_id)
    WHERE run_id = ?
"""
# parameters: eight days ago, the run, an hour ago; a run matches what it has read, however late, and recent posts
UNMATCHED_POSTS: Final = """
    SELECT tweet_id, text, links FROM tweets
    WHERE market_id IS NULL AND timestamp > ? AND (run_id = ? OR timestamp > ? AND run_id IS NOT NULL)
"""
# the markets of a run, whose rows are the newest
QUESTIONS: Final = f"""
    SELECT {", ".join(Question._fields)} FROM (
        SELECT market_id FROM snapshots WHERE run_id = ? ORDER BY id DESC LIMIT ?
    ) JOIN markets USING (market_id)
"""  # noqa: S608
# a count that another program may have stored; what is no number counts as 0
_COUNT: Final = "iif(typeof({0}) IN ('integer', 'real'), max(0, min(CAST({0} AS INTEGER), 1000000000000)), 0)"
# parameters: an hour ago, two hours ago, now
ATTENTION: Final = f"""
    WITH posts AS (
        SELECT
            market_id,
            timestamp > ? AS recent,
            {_COUNT.format("likes")} + 2 * {_COUNT.format("retweets")} + {_COUNT.format("replies")} AS engagement,
            CASE WHEN typeof(sentiment_score) IN ('integer', 'real')
                THEN max(-1.0, min(sentiment_score, 1.0)) END AS sentiment,
            coalesce(author_id, author_username, '') AS author
        FROM tweets
        WHERE timestamp > ? AND timestamp <= ? AND timestamp LIKE '____-__-__ __:__:__%' AND market_id IS NOT NULL
    )
    SELECT
        market_id,
        sum(recent) AS tweet_count,
        sum(engagement) FILTER (WHERE recent) AS total_engagement,
        avg(sentiment) FILTER (WHERE recent) AS avg_sentiment,
        count(DISTINCT author) FILTER (WHERE recent) AS unique_users,
        sum(NOT recent) AS posts_before
    FROM posts GROUP BY market_id HAVING sum(recent) > 0
"""  # noqa: S608
SAVE_HYPE: Final = """
    INSERT INTO hype_signals (
        market_id, tweet_count, total_engagement, avg_sentiment, unique_users, velocity, hype_score, timestamp, run_id
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (market_id, timestamp) DO NOTHING
"""


def _hype_signal(attention: Sequence[Any]) -> tuple[object, ...]:
    """Return a row of `ATTENTION` with velocity and score in place of the posts of the hour before."""
    market_id, posts, engagement, sentiment, users, posts_before = attention
    change = velocity(posts, posts_before)
    score = hype_score(
        tweet_count=posts,
        total_engagement=engagement,
        avg_sentiment=sentiment or 0.0,
        unique_users=users,
        velocity=change,
    )
    return market_id, posts, engagement, sentiment, users, change, score


def _match_all(posts: Iterable[Sequence[Any]], path: Path, run_id: int, newest: int) -> list[tuple[str, str, str]]:
    """Return (market id, keywords, post id) of each post that is about one of the markets of a run.

    A post is (id, text, JSON array of links). The run's snapshots are the *newest* ones in the file.
    """
    with open_read_only(path) as connection:  # row by row: a list of all questions takes 20 MB for 60,000 markets
        index = MarketIndex(Question(*row) for row in connection.execute(QUESTIONS, (run_id, newest)))
    matches = ((post_id, index.match(text, json.loads(links or "[]"))) for post_id, text, links in posts)
    return [(*match, post_id) for post_id, match in matches if match]


@dataclass
class Posts:
    """The stage of a run that fetches posts from X, matches them to markets and stores the attention for each."""

    _run_id: int
    _database: Database
    _host: HttpHost
    _settings: Settings
    _clock: Clock
    stored: int = 0  # posts that were not stored before
    received: int = 0  # posts that X has sent, each of which costs money
    errors: int = 0  # rows in `failures`
    complete: bool | None = None  # whether no post since the last search is left out; None without a search
    reason: str | None = None  # of the first failure

    async def read(self) -> None:
        """Store the posts since the last search; an error of X becomes a failure of the run, which goes on."""
        if not self._settings.twitter.token:
            _log_once("posts on X are not read: TWITTER_BEARER_TOKEN is not set")
            return
        self.complete = False
        try:
            await self._search(await self._database.value(newest_run("newest_tweet_id")))
        except ApiError as error:
            later = "older posts are left out" if self.received else "the next run goes on where the last one stopped"
            reason = f"{error}; {X_ADVICE.get(error.status or 0, later)}"
            log.warning("no posts: %s", reason)
            await self._save([], [reason], None)

    async def _search(self, since_id: str | None) -> None:
        """Store the posts since *since_id*, or since a week ago if X refuses an older id."""
        try:
            self.complete = await self._save_pages(since_id)
        except RequestRejectedError as error:
            if since_id is None or self.received or "since_id" not in error.message:
                raise
            log.warning("the last search was more than a week ago, posts since then are missing: %s", error)
            await self._save_pages(None)

    async def _save_pages(self, since_id: str | None) -> bool:
        """Store the posts since *since_id*, the newest first; return whether all of them were read and understood."""
        params = {"query": SEARCH_QUERY, "tweet.fields": "author_id,created_at,entities,lang,public_metrics"}
        if self._settings.with_usernames:
            params |= {"expansions": "author_id", "user.fields": "username"}
        if since_id:
            params["since_id"] = since_id
        newest_id: str | None = None
        while (left := self._settings.max_posts - self.received) >= MIN_PAGE_POSTS:
            size = min(left, 100)  # X sends no larger page
            if 0 < left - size < MIN_PAGE_POSTS:  # the next page would be too small for X
                size = left - MIN_PAGE_POSTS
            params["max_results"] = str(size)
            page, posts, problems = await self._host.fetch(Request(SEARCH_PATH, [*params.items()]), decode_posts)
            self.received += len(page.data or ())
            newest_id = newest_id or page.meta.newest_id or max((post.post_id for post in posts), key=int, default=None)
            now = sql_time(self._clock.now())
            rows = [Post.from_wire(post, self._run_id, received_at=now) for post in posts]
            await self._save(rows, problems, newest_id)
            if not page.meta.next_token:
                return self.reason is None
            if not page.data:
                return False
            params["next_token"] = page.meta.next_token
        return False

    @shielded
    async def _save(self, posts: Sequence[Post], problems: Sequence[str], newest_id: str | None) -> None:
        """Store a page, and that the next search begins after *newest_id*, in one transaction, and count it."""
        self.reason = self.reason or next(iter(problems), None)
        failures = [Failure(self._run_id, None, "posts", problem) for problem in problems]
        async with self._database.transaction("store posts"):
            insert = insert_into("tweets", Post._fields)
            new = await self._database.execute(f"{insert} ON CONFLICT (tweet_id) DO NOTHING", posts)
            await self._database.execute(SAVE_FAILURE, failures)
            await self._database.execute(COUNT_POSTS, [(new, len(failures), newest_id, self._run_id)])
        self._database.is_kept = True
        self.stored += new
        self.errors += len(failures)

    async def score(self, snapshots: int) -> None:
        """Match the newest posts to the markets of the run's *snapshots*, and store the attention for each market."""
        database, run_id, now = self._database, self._run_id, self._clock.now()
        an_hour_ago, two_hours_ago = (sql_time(now - timedelta(hours=hours)) for hours in (1, 2))
        searched = sql_time(now - timedelta(days=8))  # X searches the last seven
        posts = await database.rows(UNMATCHED_POSTS, searched, run_id, an_hour_ago)
        matches: list[tuple[str, str, str]] = []
        if posts and snapshots:
            matches = await asyncio.to_thread(_match_all, posts, database.absolute_path, run_id, snapshots)
        await self._save_signals(matches, an_hour_ago, two_hours_ago, sql_time(now))

    @shielded
    async def _save_signals(self, matches: Sequence[tuple[str, str, str]], *times: str) -> None:
        """Store which markets the posts are about, and the attention of the last of *times* for each market."""
        database = self._database
        async with database.transaction("store the attention for markets"):
            await database.execute("UPDATE tweets SET market_id = ?, keywords = ? WHERE tweet_id = ?", matches)
            attention = await database.rows(ATTENTION, *times)
            await database.execute(SAVE_HYPE, [(*_hype_signal(row), times[-1], self._run_id) for row in attention])
