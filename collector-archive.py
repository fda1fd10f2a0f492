#!/usr/bin/env python3
"""Move finished days of a collector's file into a lake of Parquet files: the command `collector-archive`.

A day goes through these steps, each of which may be repeated, by anybody, after a kill:

    read in one transaction -> Parquet files under names that no other attempt has -> read back and compared
    -> one manifest, put if there is none, decides which attempt counts, and is read back
    -> files of other attempts are removed -> row in `archived_days`
    -> the lake is asked for all of it again -> `pruned_at` -> deleted from the file, a few thousand rows at a time

A manifest that is there already is compared with the file row by row, whoever wrote it. A row is in the lake if its day
is in `archived_days` and its id is at most the greatest that stands there for its table; else it is in the file.
`docs/lake.md` describes the lake, how to read it, and what happens to rows that come late.
"""

from __future__ import annotations

import argparse
import errno
import gc
import hashlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TextIO
from urllib.parse import urlsplit

from tqdm import tqdm

import async_collector as ac

try:
    import obstore
    import obstore.exceptions
    import obstore.store
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    MISSING: str | None = error.name
else:
    MISSING = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

FORMAT: Final = 2  # of the lake; version 0.2 wrote 1, whose files are named after day and shard alone
ATTEMPT: Final = "[0-9a-f]{16}"  # random: no two attempts share the name of a file
INTERRUPTED: Final = 130
PATIENCE_S: Final = 20 * 60.0  # with a collector that holds the file: a run ends before the next one begins
HOLD_S: Final = 0.04  # the file is held for about so long at a time
MAX_DELETED: Final = 5_000  # rows in a transaction
PAUSE_S: Final = 0.06  # a collector that waits for the file looks every 0.05 s
PAUSE_EVERY_S: Final = 0.25
RETRY: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}  # of a request to object storage
SECRETS: Final = ("AWS_", "AZURE_", "GOOGLE_", "GCS_")
KEYS: Final = {  # by scheme: what to set
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
LOCK_WAIT_S: Final = 20.0  # for an archive that writes a manifest where there are no hard links
STAGING: Final = "_staging"
PROBE: Final = "_put_if_absent"


class LakeError(ac.StorageError):
    """The lake cannot be read or written, or does not hold what it should; the text names the place."""


class DayError(LakeError):
    """What the lake has of a day is not what it should be: the day stays in the file, and the other days go on."""


class LostError(DayError):
    """The lake has no such file."""


class TornError(DayError):
    """A manifest is no JSON: its writing was cut off."""


# --- Tables -----------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table of the file, and how its rows are laid out in the lake; `TABLES` has them all.

    To archive another table, add a row there, and give the table `archived_days` a column of its name (INTEGER NOT NULL
    DEFAULT 0). What readers need to know of it stands in docs/lake.md.
    """

    name: str
    number: str  # the id, an integer that grows with every row
    time: str  # SQL for the time that decides on the day
    order: str  # of the rows in a file
    rows: int = 20_000  # in a row group, and in memory
    level: int = 3  # of compression
    is_pruned: bool = True  # archived rows are deleted from the file
    is_indexed: bool = True  # by its time; else its days are found in one scan
    reuses_ids: bool = False  # the id of the newest row is given again once that row is deleted
    kept: str = "0"  # SQL for archived rows that stay in the file all the same

    @property
    def condition(self) -> str:
        """SQL for the rows of a day whose ids are in a range."""
        return f"{self.time} >= :day AND {self.time} < :next AND +{self.number} > :after AND +{self.number} <= :upto"


# the last row of a market that is missing now: without it, the view `gaps` would not know of it any more
KEPT_SNAPSHOTS: Final = "id IN (SELECT snapshot_id FROM gaps JOIN seen USING (market_id) WHERE until IS NULL)"
SNAPSHOTS: Final = Table("snapshots", "id", "timestamp", "market_id, timestamp", kept=KEPT_SNAPSHOTS)
MARKETS: Final = Table("markets", "", "", "market_id", is_pruned=False)  # of the day's snapshots
# what the next runs go on from, what --status judges by, and where a market went missing that still is
KEPT_RUNS: Final = """run_id IN (
    SELECT max(run_id) FROM runs
    UNION SELECT max(run_id) FROM runs WHERE newest_tweet_id IS NOT NULL
    UNION SELECT max(run_id) FROM runs WHERE full_walk_at IS NOT NULL
    UNION SELECT run_id FROM (
        SELECT run_id, row_number() OVER (PARTITION BY min_volume, names, depth, follow ORDER BY run_id DESC) AS place
        FROM (
            SELECT *, row_number() OVER (
                PARTITION BY min_volume, selection_id, depth, follow ORDER BY run_id DESC
            ) AS place_of_day FROM runs WHERE status = 'complete'
        ) LEFT JOIN selections USING (selection_id) WHERE place_of_day <= 2
    ) WHERE place <= 2
    UNION SELECT json_extract(run_ids, '$[0]') FROM gaps WHERE until IS NULL
    UNION SELECT run_id FROM failures
)"""
RUNS: Final = Table("runs", "run_id", "started_at", "run_id", kept=KEPT_RUNS)
RUN_START: Final = "(SELECT started_at FROM runs WHERE runs.run_id = failures.run_id)"
# in the order in which they are deleted: a book goes after the snapshots that refer to it, a run after all of its rows
TABLES: Final = (
    Table("failures", "rowid", RUN_START, "rowid", rows=50_000, reuses_ids=True),
    Table("tweets", "rowid", "created_at", "market_id, timestamp, rowid", reuses_ids=True),
    Table("hype_signals", "id", "timestamp", "market_id, timestamp", rows=50_000),
    Table("past_prices", "price_id", "fetched_at", "market_id, width, timestamp", rows=50_000, is_pruned=False),
    Table("trades", "trade_id", "fetched_at", "market_id, timestamp, trade_id", is_pruned=False),
    Table("streams", "stream_id", "ended_at", "stream_id", is_pruned=False),
    Table("book_changes", "change_id", "timestamp", "market_id, change_id", rows=50_000, is_indexed=False),
    Table("live_trades", "trade_id", "timestamp", "market_id, trade_id", rows=50_000, is_indexed=False),
    Table("live_gaps", "gap_id", "until", "market_id, gap_id", is_pruned=False),  # an open one has no day yet
    SNAPSHOTS,
    Table("books", "book_id", "timestamp", "market_id, timestamp, book_id", rows=5_000, level=9, reuses_ids=True),
    RUNS,
    Table(
        "selections",
        "selection_id",
        "first_used_at",
        "selection_id",
        kept="selection_id IN (SELECT selection_id FROM runs)",
    ),
)
LEVELS: Final = {"bids", "asks", "bids_no", "asks_no"}
COMMENTS: Final = ac.column_comments()  # a time with milliseconds says so
OWN_COLUMNS: Final = ("shard", "as_stored")  # of every file; a column of the database with such a name has no other
DAY: Final = r"\d{4}-\d\d-\d\d"
SHARD: Final = "[A-Za-z0-9_-]{1,64}"


class Place(NamedTuple):
    """A part of a day in the lake under the name of a database: what one manifest decides."""

    day: str
    shard: str
    part: int  # from 1

    @property
    def stem(self) -> str:
        """How the names of its files begin."""
        return self.shard if self.part == 1 else f"{self.shard}.{self.part}"

    @property
    def manifest(self) -> str:
        """Where its manifest is."""
        return f"_manifest/date={self.day}/{self.stem}.json"

    @classmethod
    def of(cls, name: str) -> Place | None:
        """Return whose manifest *name* is, or None for another file, such as the copies that sync programs make."""
        found = re.fullmatch(rf"_manifest/date=({DAY})/({SHARD})(?:\.([2-9]|[1-9][0-9]+))?\.json", name)
        return cls(found[1], found[2], int(found[3] or 1)) if found else None


class Window(NamedTuple):
    """The rows of a day that go into one part: with ids above `after`, by table, and up to `upto`."""

    place: Place
    after: dict[str, int]
    upto: dict[str, int]

    def values(self, table: str) -> dict[str, object]:
        """Return the parameters of `Table.condition`."""
        following = date.fromisoformat(self.place.day) + timedelta(days=1)
        return {
            "day": self.place.day,
            "next": following.isoformat(),
            "after": self.after.get(table, 0),
            "upto": self.upto.get(table, 2**63 - 1),
        }


def query(table: Table, columns: Sequence[Column]) -> str:
    """Return the query for the rows of a window, in the order of the file."""
    names = ", ".join(f"t.{quoted(column.name)}" for column in columns)
    if table is MARKETS:
        return f"SELECT {names} FROM markets AS t WHERE {OF_THE_DAY} ORDER BY market_id"  # noqa: S608
    # ids are sorted before wide rows are read
    keys = f"SELECT {table.number} AS number FROM {table.name} WHERE {table.condition} ORDER BY {table.order}"  # noqa: S608
    return f"SELECT {names} FROM ({keys} LIMIT -1) CROSS JOIN {table.name} AS t ON t.{table.number} = number"  # noqa: S608


# each market once a day: with its first snapshots of the day that go into the lake, or because its outcome came
OF_THE_DAY: Final = f"""
    (EXISTS (SELECT 1 FROM snapshots WHERE market_id = t.market_id AND {SNAPSHOTS.condition})
     OR outcome_stored_at >= :day AND outcome_stored_at < :next)
    AND market_id NOT IN (SELECT value FROM json_each(:there))
"""  # noqa: S608


def quoted(name: str) -> str:
    """Return *name* as SQL has it; another program may have added any column."""
    return '"' + name.replace('"', '""') + '"'


# --- Values -----------------------------------------------------------------------------------------------------------
# A column of SQLite becomes one column of Parquet, or two for the levels of a book. What a column cannot hold exactly,
# such as text among numbers, is null there and stands in `as_stored`, a JSON object by column.

PRICE: Final = r"(0|[1-9][0-9]{0,4})(\.[0-9]{0,3}[1-9])?"  # fits decimal(9, 4) and is written one way only
SIZE: Final = r"((0|[1-9][0-9]{0,11})(\.[0-9]{0,5}[1-9])?|[1-9]e-6)"  # decimal(18, 6)
EXPONENT: Final = (r"^0\.00000([1-9])$", r"\1e-6")  # how the collector writes a size below 0.00001
FORMS: Final = {
    "levels": rf"^\[(\[{PRICE},{SIZE}\](,\[{PRICE},{SIZE}\])*)?\]$",
    "time": r"^[0-9]{4}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]$",
    "time_ms": r"^[0-9]{4}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]\.[0-9]{3}$",
}
PYTHON_TYPES: Final = {"integer": int, "real": float, "blob": bytes, "unnamed": NoneType}  # else text


class Column(NamedTuple):
    """A column of a table: `kind` is integer, real, text, blob, time, time_ms, levels, or unnamed.

    An unnamed one has no column in the lake, for that name is taken there: all its values stand in `as_stored`.
    """

    name: str
    kind: str

    @classmethod
    def of(cls, table: str, name: str, declared: str) -> Column:
        """Choose the kind by the declared type, as SQLite chooses an affinity."""
        declared = declared.upper()
        if table == "books" and name in LEVELS:
            return cls(name, "levels")
        if "TIMESTAMP" in declared or "DATE" in declared:
            return cls(name, "time_ms" if "milliseconds" in COMMENTS.get(table, {}).get(name, "") else "time")
        if "INT" in declared or "BOOL" in declared:
            return cls(name, "integer")
        if any(word in declared for word in ("REAL", "FLOA", "DOUB", "NUMERIC", "DECIMAL")):
            return cls(name, "real")
        return cls(name, "blob" if "BLOB" in declared else "text")

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of the Parquet file."""
        if self.kind == "unnamed":
            return []
        if self.kind != "levels":
            return [pa.field(self.name, pa.timestamp("ms", "UTC") if self.kind in FORMS else self._type)]
        side, outcome = self.name[:3], self.name[4:]  # bids_no: bid_prices_no, bid_sizes_no
        kinds = {"prices": pa.decimal128(9, 4), "sizes": pa.decimal128(18, 6)}
        return [
            pa.field(f"{side}_{what}{outcome}", pa.list_(pa.field("element", kind, nullable=False)))
            for what, kind in kinds.items()
        ]

    def take(self, values: Sequence[object]) -> tuple[pa.Array, dict[int, object]]:
        """Return *values* as they are in SQLite, and by row those that this column cannot hold."""
        wanted = PYTHON_TYPES.get(self.kind, str)
        exceptions: dict[int, object] = {}
        if not set(map(type, values)) <= {wanted, NoneType}:
            exceptions = {row: value for row, value in enumerate(values) if not isinstance(value, wanted | NoneType)}
        try:
            converted = self._array(values, exceptions)
        except UnicodeEncodeError:
            exceptions |= {row: value for row, value in enumerate(values) if not _is_unicode(value)}
            converted = self._array(values, exceptions)
        if self.kind in FORMS:
            misfits = self._misfits(converted)
            exceptions |= {row: values[row] for row in misfits}
            converted = self._array(values, exceptions) if misfits else converted
        return converted, exceptions

    def _array(self, values: Sequence[object], exceptions: Mapping[int, object]) -> pa.Array:
        if exceptions:
            values = [None if row in exceptions else value for row, value in enumerate(values)]
        return pa.array(values, self._type)

    @property
    def _type(self) -> pa.DataType:
        """The type of what `take` returns."""
        return {"integer": pa.int64(), "real": pa.float64(), "blob": pa.binary()}.get(self.kind, pa.string())

    def _misfits(self, converted: pa.Array) -> list[int]:
        """Return the rows whose texts are not in the one form that `decode` writes."""
        fits = pc.match_substring_regex(converted, FORMS[self.kind])
        if self.kind == "levels":
            fits = pc.and_not(fits, pc.match_substring(converted, ",0.00000"))  # has an exponent, see EXPONENT
        if pc.all(fits).as_py() in {True, None}:
            with suppress(pa.ArrowInvalid):  # of a 30th of February
                if self.kind != "levels":
                    converted.cast(pa.timestamp("ms"))
                return []
        is_right = bool if self.kind == "levels" else _is_time
        texts = zip(converted.to_pylist(), fits.to_pylist(), strict=True)
        return [row for row, (text, is_fit) in enumerate(texts) if text is not None and not (is_fit and is_right(text))]

    def encode(self, converted: pa.Array) -> list[pa.Array]:
        """Return the columns of the Parquet file for what `take` has returned."""
        if self.kind == "unnamed":
            return []
        if self.kind == "levels":
            return parse_levels(converted, [item.type for item in self.fields])
        if self.kind in FORMS:
            return [converted.cast(pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC"))]
        return [converted]

    def decode(self, stored: Sequence[pa.Array]) -> pa.Array:
        """Return what `take` has returned, from the columns of a Parquet file."""
        if self.kind == "levels":
            return write_levels(*stored)
        if self.kind in FORMS:
            unit = "s" if self.kind == "time" else "ms"
            return stored[0].cast(pa.timestamp("ms")).cast(pa.timestamp(unit)).cast(pa.string())
        return stored[0]


def _is_unicode(value: object) -> bool:
    return not isinstance(value, str) or not any("\ud800" <= char <= "\udfff" for char in value)


def _is_time(text: str) -> bool:
    try:
        return bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _lists(counts: pa.Array, values: pa.Array, absent: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return lists of *values* of the lengths *counts*, null where *absent*."""
    ends = pc.cumulative_sum(counts.fill_null(0)).cast(pa.int32())
    return pa.ListArray.from_arrays(pa.concat_arrays([pa.array([0], pa.int32()), ends]), values, type=kind, mask=absent)


def parse_levels(text: pa.Array, kinds: Sequence[pa.DataType]) -> list[pa.Array]:
    """Return the prices and the sizes of each side of a book, `[[0.51,120],[0.5,7]]`, as decimals."""
    inner = pc.replace_substring(pc.ascii_trim(text, "[]"), "],[", ",")
    parts = pc.split_pattern(inner, ",")
    counts = pc.if_else(pc.equal(inner, ""), 0, pc.divide(pc.list_value_length(parts), 2))
    numbers = parts.flatten()
    pairs = pa.FixedSizeListArray.from_arrays(numbers.filter(pc.not_equal(numbers, "")), 2)
    return [
        _lists(counts, pc.list_element(pairs, place).cast(kind.value_type), text.is_null(), kind)
        for place, kind in enumerate(kinds)
    ]


def write_levels(prices: pa.Array, sizes: pa.Array) -> pa.Array:
    """Return each side of a book as the file has it: JSON, trailing zeros off."""
    numbers = [pc.ascii_rtrim(pc.ascii_rtrim(side.flatten().cast(pa.string()), "0"), ".") for side in (prices, sizes)]
    numbers[1] = pc.replace_substring_regex(numbers[1], *EXPONENT)
    pairs = pc.binary_join_element_wise(*numbers, ",")
    levels = _lists(pc.list_value_length(prices), pairs, prices.is_null(), pa.list_(pa.string()))
    inner = pc.binary_join(levels, "],[")
    return pc.if_else(pc.equal(inner, ""), "[]", pc.binary_join_element_wise("[[", inner, "]]", ""))


def as_json(exceptions: Mapping[str, object]) -> str:
    """Return the values that columns cannot hold; bytes as hexadecimal digits."""
    return json.dumps(exceptions, default=lambda value: {"hex": value.hex()})


def from_json(text: str) -> dict[str, object]:
    """Return what `as_json` was given."""
    return {
        name: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
        for name, value in json.loads(text).items()
    }


class Digests:
    """A digest per column, over rows in the order of the file and in the same pieces."""

    def __init__(self) -> None:
        """Begin with no rows."""
        self.rows = 0
        self._hashes: dict[str, Any] = {}

    def add(self, batch: Mapping[str, pa.Array]) -> None:
        """Add rows: by column, as `Column.take` returns them."""
        self.rows += len(next(iter(batch.values())))
        for name, values in batch.items():
            empty = {pa.string(): "", pa.binary(): b""}.get(values.type, 0)
            parts = [values.fill_null(pa.scalar(empty, values.type)), values.is_null().cast(pa.uint8())]
            serialized = pa.record_batch(parts, ["values", "absent"]).serialize()
            self._hashes.setdefault(name, hashlib.blake2b(digest_size=16)).update(serialized)

    def by_column(self) -> dict[str, str]:
        """Return the digests in hexadecimal digits."""
        return {name: found.hexdigest() for name, found in self._hashes.items()}


# --- The lake ---------------------------------------------------------------------------------------------------------


def without_secrets(text: str) -> str:
    """Return *text* on one line, without logins and the values of variables that give access to object storage."""
    for name, value in os.environ.items():
        if name.startswith(SECRETS) and len(value) > 3 and re.search("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name):  # noqa: PLR2004
            text = text.replace(value, "***")
    return ac.printable(re.sub(r"//[^/\s]*@", "//***@", text))


def reason_of(error: Exception) -> str:
    """Return what is of use in the text of *error*, or what to do where it does not say that."""
    reason, _, details = str(error).partition("\n\n")
    if "No CA certificates" in details:  # the client is not even made, also for an address without TLS
        return "no CA certificates: install those of the system (ca-certificates), or name a file in SSL_CERT_FILE"
    answer = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", reason, re.DOTALL)  # of object storage
    return f"{answer[1]}: {answer[2]}" if answer else reason


class Lake:
    """A folder, or a bucket of object storage with a prefix. Nothing in it is ever overwritten.

    Every method raises `LakeError`.
    """

    _store: Any

    def __init__(self, address: str, *, must_exist: bool = False) -> None:
        """Open the lake at *address*: a path, or `s3://`, `gs://` or `az://` with bucket and prefix."""
        self.address: Final = address
        is_folder = address.strip() and not re.match("[A-Za-z][A-Za-z0-9+.-]+:", address)  # one letter is a drive
        self.folder: Final = Path(address) if is_folder else None
        if self.folder:
            self._open_folder(self.folder, must_exist=must_exist)
            return
        parts = urlsplit(address)
        if parts.scheme not in KEYS or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            raise ac.ConfigError(
                "LAKE: must be a folder or s3://bucket/prefix (or gs://, az://), with the keys in the environment"
            )
        with self.lake_errors("open"):
            self._store = obstore.store.from_url(address, retry_config=RETRY)

    def _open_folder(self, folder: Path, *, must_exist: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise LakeError(f"{folder}: is no folder")
        if must_exist and not folder.is_dir():
            raise LakeError(f"{folder}: there is no such folder")
        with self.lake_errors("open"):
            new = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for path in new:
                _sync_folder(path.parent)
            self._store = obstore.store.LocalStore(str(folder.resolve()))
            self._place_on_disk = folder.stat()[1:3]

    @contextmanager
    def lake_errors(self, doing: str) -> Iterator[None]:
        """Turn errors of the file system, of object storage and of Parquet into a `LakeError` that names the lake."""
        try:
            yield
        except (OSError, obstore.exceptions.BaseError, ValueError) as error:
            if re.search(r"//(169\.254\.169\.254|metadata\.google)", str(error)):  # where machines in a cloud get keys
                raise ac.ConfigError(f"{self.address}: no keys: set {KEYS[urlsplit(self.address).scheme]}") from None
            text = without_secrets(f"{self.address}: cannot {doing}: {reason_of(error)}")
            if isinstance(error, obstore.exceptions.NotFoundError | FileNotFoundError) and "NoSuchBucket" not in text:
                raise LostError(f"{self.address}: cannot {doing}: it is lost") from None
            raise LakeError(text) from None  # the error of the library may show more than it should

    def staging(self, database: Path, attempt: str) -> Path:
        """Return the folder for the unfinished files of *attempt*; a rename within a file system makes them final."""
        return self.folder / STAGING / attempt if self.folder else database.with_name(f"{database.name}.archive")

    def put(self, name: str, source: Path) -> str | None:
        """Move the file *source* to *name*, which is of this attempt alone, and return the ETag of object storage."""
        with self.lake_errors(f"write {name}"):
            if not self.folder:
                return str(self._store.put(name, source, max_concurrency=4)["e_tag"])
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            self._sync_folders(target)
        return None

    def create(self, name: str, content: bytes) -> None:
        """Put *content* at *name* if there is nothing, whole and durably. Whether it is there now, only reading tells.

        An answer may be lost, and a put that is sent again meets its own success.
        """
        with self.lake_errors(f"write {name}"):
            if not self.folder:
                with suppress(obstore.exceptions.AlreadyExistsError):
                    self._store.put(name, content, mode="create")
                return
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f"{target.name}.{secrets.token_hex(8)}")
            try:
                with unfinished.open("xb") as file:
                    _write(file, content)
                os.link(unfinished, target)
            except FileExistsError:
                pass
            except OSError:  # the disk has no hard links
                with suppress(FileExistsError), self._locked(), target.open("xb") as file:
                    _write(file, content)
            finally:
                unfinished.unlink(missing_ok=True)
            self._sync_folders(target)

    def refuse_unconditional(self) -> None:
        """Raise `ConfigError` for object storage that overwrites what is there although it is asked not to."""
        if self.folder:
            return
        with self.lake_errors(f"write {PROBE}"):
            for _ in range(2):  # the first put is refused where an earlier run has asked
                try:
                    self._store.put(PROBE, b"", mode="create")
                except obstore.exceptions.AlreadyExistsError:
                    return
                except obstore.exceptions.NotSupportedError:
                    break
        raise ac.ConfigError(f"{self.address}: does not refuse a second put (If-None-Match), and can be no lake")

    def sha256(self, name: str, copy: Path | None = None) -> str:
        """Return the SHA-256 of the file *name*, read as a whole, and write it to *copy*."""
        digest = hashlib.sha256()
        with self.lake_errors(f"read {name}"), copy.open("wb") if copy else nullcontext() as file:
            for piece in self._store.get(name).stream(min_chunk_size=2**20):
                digest.update(piece)
                if file:
                    file.write(piece)
        return digest.hexdigest()

    def has_etag(self, described: Mapping[str, Any]) -> bool:
        """Return whether a file of object storage has the size and the ETag that it had after its put."""
        with self.lake_errors(f"read {described['file']}"):
            found = self._store.head(described["file"])
        return not self.folder and (found["size"], found["e_tag"]) == (described["bytes"], described.get("etag"))

    def names(self, prefix: str) -> list[str]:
        """Return the names of all files in the folder *prefix*, in order; "" is the whole lake."""
        with self.lake_errors(f"list {prefix}"):
            if self.folder and self.folder.stat()[1:3] != self._place_on_disk:
                raise LakeError(f"{self.address}: is another folder than before: was a disk exchanged?")
            return sorted(item["path"] for page in self._store.list(prefix or None) for item in page)

    def places(self, day: str | None = None) -> set[Place]:
        """Return what has a manifest, of all days or of one, in one listing."""
        names = self.names(f"_manifest/date={day}" if day else "_manifest")
        return {place for name in names if (place := Place.of(name))}

    def manifest(self, place: Place) -> dict[str, Any]:
        """Return the manifest of *place*.

        Raises:
            LostError: there is none.
            TornError: it is no JSON.
            DayError: it is of another place or of a newer version.
        """
        with self.lake_errors(f"read {place.manifest}"):
            content = bytes(self._store.get(place.manifest).bytes())
        address = f"{self.address}/{place.manifest}"
        try:
            manifest: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise TornError(f"{address}: is damaged: {error}") from error
        try:
            newer = manifest["format"] > FORMAT or manifest["schema"] > ac.SCHEMA_VERSION
            named = Place(manifest["day"], manifest["shard"], manifest["part"])
            _ = manifest["database"], dict(manifest["upto"])
            _ = [
                (found["file"], found["rows"], found["bytes"], found["sha256"]) for found in manifest["tables"].values()
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DayError(f"{address}: is damaged: {error!r}") from error
        if newer:
            version = f"format {manifest['format']}, schema {manifest['schema']}"
            raise DayError(f"{address}: was written by a newer version: {version}")
        if named != place:
            raise DayError(f"{address}: is the manifest of {named.manifest}")
        return manifest

    def decision(self, place: Place) -> dict[str, Any] | None:
        """Return the manifest of *place*, which the file has not noted, or None; a torn one counts for nothing."""
        with suppress(LostError):
            try:
                return self.manifest(place)
            except TornError:
                if not self.folder:  # which never has half of a put
                    raise
            with self._locked():  # no other archive is writing it
                try:
                    return self.manifest(place)
                except TornError:
                    with self.lake_errors(f"remove {place.manifest}"):
                        Path(self.address, place.manifest).unlink()
        return None

    def remove_undecided(self, place: Place, manifest: Mapping[str, Any], staging: Path) -> None:
        """Remove what attempts at *place* have left beside what *manifest* names: nobody can commit it any more.

        Where that is not allowed it is named on stderr. The folder *staging* is of this attempt.
        """
        spared = {other.stem for other in self.places(place.day) if other != place}  # which may look like an attempt
        stem = re.escape(place.stem)
        for table in (*TABLES, MARKETS):
            folder = f"{table.name}/date={place.day}"
            for name in self.names(folder):
                found = re.fullmatch(f"{folder}/({stem}(?:-{ATTEMPT})?)[.]parquet", name)
                if not found or found[1] in spared or name in files_of(manifest):
                    continue
                try:
                    with suppress(LostError), self.lake_errors(f"remove {name}"):
                        self._store.delete(name)
                except LakeError as error:
                    say(f"{error}; no manifest names it", sys.stderr)
        for path in (self.folder / STAGING).glob("*") if self.folder else ():  # the last form is of version 0.2
            if path != staging and re.fullmatch(f"{place.day}-{stem}-{ATTEMPT}|{place.shard}", path.name):
                shutil.rmtree(path, ignore_errors=True)
        for path in Path(self.address, place.manifest).parent.glob(f"{place.stem}.json.*") if self.folder else ():
            path.unlink(missing_ok=True)

    def _locked(self) -> AbstractContextManager[Path]:
        """Hold what writes manifests without hard links, and what removes them, one process at a time."""
        return ac.locked(Path(self.address, "_lake"), LOCK_WAIT_S)

    def _sync_folders(self, target: Path) -> None:
        """Make the name of *target* durable, and those of the folders above it."""
        for path in target.parents:
            _sync_folder(path)
            if path == self.folder:
                break


def files_of(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the files that *manifest* names."""
    return [described["file"] for described in manifest["tables"].values()]


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return by what a manifest is recognised, wherever the lake is copied to."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write(file: BinaryIO, content: bytes = b"") -> None:
    """Write *content* to *file*, and make all of it durable."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in the folder *path* durable, where the system and the disk offer that."""
    with suppress(PermissionError):  # to pass through it is allowed, to read it is not; Windows has no such descriptors
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}:
                raise
        finally:
            os.close(descriptor)


# --- The file ---------------------------------------------------------------------------------------------------------


def _text(stored: bytes) -> str:
    """Return a text that another program may have stored in another encoding than UTF-8."""
    return stored.decode(errors="surrogateescape")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the collector's file for reading, in one transaction, beside whoever writes to it."""
    with ac.open_read_only(path) as connection:
        connection.isolation_level = None
        connection.text_factory = _text
        connection.execute("BEGIN")
        yield connection


class Writer:
    """Writes to the file beside a running collector: holds it for one short transaction at a time.

    It is one file from the first look at it: another one that takes its place has other rows, and is not written to.
    """

    def __init__(self, path: Path) -> None:
        """Open the file at *path*."""
        self.path: Final = path
        with reading(path):
            self._place_on_disk = path.stat()[1:3]
        self.last_hold_s = 0.0
        self._since_pause_s = 0.0
        with ac.storage_errors(path, "write"):
            self.connection = sqlite3.connect(
                f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=ac.BUSY_TIMEOUT_S
            )
            # a deleted parent would look for its children in all of `snapshots`
            self.connection.execute("PRAGMA foreign_keys = OFF")
            # a note that a power cut takes, with all that was deleted after it, is made again
            self.connection.execute("PRAGMA synchronous = NORMAL")
            self.connection.execute("PRAGMA wal_autocheckpoint = 0")  # `prune_table` does it by itself
            self.connection.execute("PRAGMA cache_size = -32768")

    def execute(self, statement: str, values: Mapping[str, object] | None = None) -> int:
        """Execute one statement in a transaction of its own, holding the file, and return how many rows it changed."""
        if self._since_pause_s > PAUSE_EVERY_S:  # whoever waits for the file gets it now
            time.sleep(PAUSE_S)
            self._since_pause_s = 0.0
        with ac.storage_errors(self.path, "write"), ac.locked(self.path, PATIENCE_S):
            if self.path.stat()[1:3] != self._place_on_disk:
                raise ac.StorageError(
                    f"{self.path}: was replaced meanwhile; nothing is noted of the new file or deleted"
                )
            started = time.monotonic()
            changed = self.connection.execute(statement, values or {}).rowcount
            self.last_hold_s = time.monotonic() - started
        self._since_pause_s += self.last_hold_s
        return changed

    def close(self) -> None:
        """Close the file; the last to do so writes the log back, so it is held unless a collector has it open."""
        with ExitStack() as stack:
            with suppress(ac.DatabaseBusy):
                stack.enter_context(ac.locked(self.path))
            self.connection.close()


# --- What is archived -------------------------------------------------------------------------------------------------

NAMES: Final = [table.name for table in TABLES]
NOTED: Final = f"SELECT day, shard, parts, manifests, is_behind, {', '.join(NAMES)} FROM archived_days"  # noqa: S608
NOTE: Final = f"""
    INSERT INTO archived_days (day, shard, archived_at, parts, manifests, is_behind, {", ".join(NAMES)})
    VALUES (:day, :shard, :now, :parts, :manifests, :is_behind, {", ".join(f":{name}" for name in NAMES)})
    ON CONFLICT (day, shard) DO UPDATE SET archived_at = excluded.archived_at, parts = excluded.parts,
        manifests = excluded.manifests, is_behind = excluded.is_behind,
        {", ".join(f"{name} = excluded.{name}" for name in NAMES)}
"""  # noqa: S608
OPEN_RUNS: Final = "SELECT run_id FROM runs WHERE status = 'running' AND started_at < ? ORDER BY run_id"
# of a table that is not pruned only those rows count that are not in the lake
NEW_DAYS: Final = """
    SELECT DISTINCT substr({table.time}, 1, 10) FROM {table.name}
    LEFT JOIN (SELECT day, max({table.name}) AS archived FROM archived_days GROUP BY day)
        ON day = substr({table.time}, 1, 10)
    WHERE day IS NULL OR {table.number} > archived
"""


class Noted(NamedTuple):
    """A row of `archived_days`."""

    day: str
    shard: str
    parts: int
    digests: list[str | None]  # of the manifests; None: version 0.2 wrote it
    is_behind: bool
    ids: dict[str, int]

    @property
    def places(self) -> list[Place]:
        """What has a manifest in the lake of this file."""
        return [Place(self.day, self.shard, part) for part in range(1, self.parts + 1)]


def noted_days(connection: sqlite3.Connection, day: str | None = None) -> list[Noted]:
    """Return the rows of `archived_days`, of all days or of one."""
    found = []
    rows = connection.execute(f"{NOTED} WHERE day = coalesce(?, day) ORDER BY day, archived_at", (day,))
    for of_day, shard, parts, manifests, is_behind, *ids in rows:
        known = json.loads(manifests)
        digests = [None] * (parts - len(known)) + known
        found.append(Noted(of_day, shard, parts, digests, bool(is_behind), dict(zip(NAMES, ids, strict=True))))
    return found


def is_day(text: object) -> bool:
    """Return whether *text* is a date, as `YYYY-MM-DD`."""
    try:
        return isinstance(text, str) and bool(re.fullmatch(DAY, text)) and bool(date.fromisoformat(text))
    except ValueError:
        return False


def days_before(connection: sqlite3.Connection, end: str) -> list[str]:
    """Return the days before *end* of which the file has rows, the oldest first."""
    days: set[str] = set()
    for table in TABLES:
        if not table.is_pruned:
            days.update(day for (day,) in connection.execute(NEW_DAYS.format(table=table)))
            continue
        if not table.is_indexed:
            found = connection.execute(f"SELECT DISTINCT substr({table.time}, 1, 10) FROM {table.name}")  # noqa: S608
            days.update(day for (day,) in found)
            continue
        after = "0"
        find = f"SELECT min({table.time}) FROM {table.name} WHERE {table.time} > ? AND {table.time} < ?"  # noqa: S608
        while text := connection.execute(find, (after, end)).fetchone()[0]:
            days.add(text[:10])
            after = f"{text[:10]}~" if is_day(text[:10]) else text
    return sorted(day for day in days if is_day(day) and day < end)


def finished_days(path: Path, keep: int) -> list[str]:
    """Return the days of which the file has rows and which are to be archived; those with an open run are named."""
    # a post's market may still be found an hour after it was stored
    today = (datetime.now(UTC) - timedelta(hours=2)).date()
    with reading(path) as connection:
        days = days_before(connection, (today - timedelta(days=keep)).isoformat())
        for number, day in enumerate(days):
            following = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
            if run := connection.execute(OPEN_RUNS, (following,)).fetchone():
                say(f"{day}: not archived: run {run[0]} is not finished", sys.stderr)
                return days[:number]
    return days


def window_of(connection: sqlite3.Connection, day: str, shard: str) -> tuple[Window, dict[str, int]]:
    """Return the rows of *day* that are not in the lake, and how many there are by table."""
    noted = noted_days(connection, day)
    part = sum(row.parts for row in noted if row.shard == shard) + 1
    after = {name: max((row.ids[name] for row in noted), default=0) for name in NAMES}
    window = Window(Place(day, shard, part), after, {})
    found = {table.name: count_and_last(connection, table, window) for table in TABLES}
    upto = {name: last for name, (_, last) in found.items()}
    return window._replace(upto=upto), {name: count for name, (count, _) in found.items()}


def count_and_last(connection: sqlite3.Connection, table: Table, window: Window) -> tuple[int, int]:
    """Return how many rows of *table* are in *window*, and their greatest id, or the one before the window."""
    find = f"SELECT count(*), max({table.number}) FROM {table.name} WHERE {table.condition}"  # noqa: S608
    count, last = connection.execute(find, window.values(table.name)).fetchone()
    return count, last or window.after[table.name]


# --- Rows -------------------------------------------------------------------------------------------------------------


def columns_of(connection: sqlite3.Connection, table: str) -> list[Column]:
    """Return the columns of *table* as they are declared."""
    taken = set(OWN_COLUMNS)
    columns = []
    for name, declared in connection.execute("SELECT name, type FROM pragma_table_info(?)", (table,)):
        column = Column.of(table, name, declared)
        names = {field.name.lower() for field in column.fields}
        columns.append(column._replace(kind="unnamed") if names & taken else column)
        taken |= names
    return columns


def read_rows(
    connection: sqlite3.Connection, table: Table, window: Window, there: Sequence[str]
) -> Iterator[dict[str, pa.Array]]:
    """Yield the rows of *window* in pieces, by column, as `Column.take` returns them; of markets those not *there*."""
    columns = columns_of(connection, table.name)
    values = window.values("snapshots" if table is MARKETS else table.name) | {"there": json.dumps(there)}
    cursor = connection.execute(query(table, columns), values)
    while rows := cursor.fetchmany(table.rows):
        cells_by_column = zip(*rows, strict=True)
        size = len(rows)
        del rows  # before the next ones come
        exceptions_by_row: dict[int, dict[str, object]] = {}
        batch = {}
        for column, cells in zip(columns, cells_by_column, strict=True):
            batch[column.name], exceptions = column.take(cells)
            for row, value in exceptions.items():
                exceptions_by_row.setdefault(row, {})[column.name] = value
        texts = [as_json(exceptions_by_row[row]) if row in exceptions_by_row else None for row in range(size)]
        yield batch | {"as_stored": pa.array(texts, pa.string())}


def decoded(rows: pa.Table, columns: Sequence[Column]) -> dict[str, pa.Array]:
    """Return the rows of a Parquet file by column, as `Column.take` has returned them."""
    batch = {}
    for column in columns:
        stored = [rows.column(item.name).combine_chunks() for item in column.fields]
        batch[column.name] = column.decode(stored) if stored else pa.nulls(rows.num_rows, pa.string())
    return batch | {"as_stored": rows.column("as_stored").combine_chunks()}


def digests_of(path: Path, columns: Sequence[Column]) -> Digests:
    """Return the digests of a Parquet file, of its values as SQLite has them."""
    digests = Digests()
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            digests.add(decoded(file.read_row_group(number), columns))
    return digests


# --- Out of the lake --------------------------------------------------------------------------------------------------

DECLARED: Final = {"int64": "INTEGER", "double": "REAL", "string": "TEXT", "binary": "BLOB"}  # else a time
FILL_SEEN: Final = (
    "INSERT INTO seen (market_id, snapshot_id) SELECT market_id, max(id) FROM snapshots GROUP BY market_id"
)


def fetch(lake: Lake, manifests: Sequence[Mapping[str, Any]], path: Path, tables: Sequence[str] = ()) -> None:
    """Make a collector's file at *path* of the rows that *manifests* name, of all tables or of some.

    Raises:
        DayError: a file is lost, or is not the one that its manifest describes.
    """
    copy = path.with_name("copy.parquet")
    with ac.storage_errors(path, "write"):
        path.touch(ac.FILE_MODE, exist_ok=False)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.executescript(f"{ac.SCHEMA}; PRAGMA user_version = {ac.SCHEMA_VERSION}; BEGIN")
            for manifest in manifests:
                for table, described in manifest["tables"].items():
                    if table in (tables or manifest["tables"]):
                        if lake.sha256(described["file"], copy) != described["sha256"]:
                            raise DayError(f"{lake.address}/{described['file']}: was changed")
                        with pq.ParquetFile(copy) as file:
                            insert_rows(connection, table, file)
            connection.execute("COMMIT")


def insert_rows(connection: sqlite3.Connection, table: str, file: pq.ParquetFile) -> None:
    """Insert the rows of *file*; a market that is there already is replaced. Columns of other programs are added."""
    has = set(file.schema_arrow.names)
    known = {item.name for column in columns_of(connection, table) for item in column.fields}
    for item in file.schema_arrow:
        if item.name not in known | set(OWN_COLUMNS):
            add_column(connection, table, item.name, DECLARED.get(str(item.type), "TIMESTAMP"))
    columns = [c for c in columns_of(connection, table) if c.fields and {item.name for item in c.fields} <= has]
    there = {column.name for column in columns_of(connection, table)}
    for number in range(file.num_row_groups):
        batch = decoded(file.read_row_group(number), columns)
        texts = batch.pop("as_stored").to_pylist()
        rows = list(zip(*(cells.to_pylist() for cells in batch.values()), strict=True))
        plain = [row for row, text in zip(rows, texts, strict=True) if text is None]
        connection.executemany(insertion(table, dict.fromkeys(batch)), plain)
        for row, text in zip(rows, texts, strict=True):
            if text is not None:
                values = dict(zip(batch, row, strict=True)) | from_json(text)
                for name in values.keys() - there:
                    add_column(connection, table, name, "")
                    there.add(name)
                # a text that is no UTF-8 is bound as bytes
                bound = [v if _is_unicode(v) else str(v).encode(errors="surrogateescape") for v in values.values()]
                connection.execute(insertion(table, values), bound)


def add_column(connection: sqlite3.Connection, table: str, name: str, declared: str) -> None:
    """Add a column that another program had in its file."""
    connection.execute(f"ALTER TABLE {table} ADD COLUMN {quoted(name)} {declared}")


def insertion(table: str, values: Mapping[str, object]) -> str:
    """Return the statement that inserts *values*."""
    names = ", ".join(quoted(name) for name in values)
    places = ", ".join("?" if _is_unicode(value) else "CAST(? AS TEXT)" for value in values.values())
    return f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({places})"  # noqa: S608


def restore(path: Path, lake: Lake, day: str, shard: str | None) -> None:
    """Make a new file at *path* with the rows of *day*, which every reader of a collector's file opens.

    It has no name in the lake yet; its rows count as archived under the one that they have there.
    """
    places = sorted(place for place in lake.places(day) if shard in {None, place.shard})
    shards = sorted({place.shard for place in places})
    if len(shards) != 1:
        what = f"choose one with --shard: {', '.join(shards)}" if shards else "is not there"
        raise LakeError(f"{lake.address}: {day} {what}")
    if len(places) != places[-1].part:
        raise LakeError(f"{lake.address}: {day} lacks the manifest of a part")
    refuse_taken(path)
    with ac.storage_errors(path, "write"), TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        new = Path(folder, path.name)
        manifests = [lake.manifest(place) for place in places]
        fetch(lake, manifests, new)
        with closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute(FILL_SEEN)
            # what is collected there has greater ids; those of posts and failures were given anew
            greatest = "SELECT coalesce(max({table.number}), 0) FROM {table.name}"
            ids = {table.name: connection.execute(greatest.format(table=table)).fetchone()[0] for table in TABLES}
            connection.execute(NOTE, note(places[-1], [digest_of(manifest) for manifest in manifests], ids))
        try:
            os.link(new, path)  # never over a file that has come meanwhile
        except FileExistsError:
            raise
        except OSError:  # the disk has no hard links
            refuse_taken(path)
            new.rename(path)


def refuse_taken(path: Path) -> None:
    """Raise `StorageError` if there is a file at *path*, or what SQLite would take for its log."""
    for taken in (path, *(Path(f"{path}{end}") for end in ("-wal", "-shm", "-journal"))):
        if taken.exists():
            raise ac.StorageError(f"{taken}: exists; --restore makes a new file")


def note(
    last: Place, digests: Sequence[str | None], ids: Mapping[str, int], *, is_behind: bool = False
) -> dict[str, object]:
    """Return the parameters of `NOTE`."""
    values = {"day": last.day, "shard": last.shard, "parts": last.part, "is_behind": is_behind, **ids}
    return values | {"manifests": json.dumps(digests), "now": ac.sql_time(datetime.now(UTC))}


# --- Into the lake ----------------------------------------------------------------------------------------------------


class Part:
    """The rows of a window on their way into the lake: one Parquet file per table that has any."""

    def __init__(self, lake: Lake, staging: Path, window: Window, attempt: str) -> None:
        """Prepare the *attempt* to put the rows of *window* there."""
        self._lake = lake
        self._staging = staging
        self._window = window
        self._attempt = attempt
        self._tables: dict[str, dict[str, Any]] = {}

    def write(self, connection: sqlite3.Connection, bar: tqdm[Any]) -> dict[str, Any]:
        """Read, write, read back, put into the lake, and offer a manifest; return the one that counts."""
        place = self._window.place
        there = self._markets_there()
        with ThreadPoolExecutor(2) as pool:
            checks = []
            for table in (*reversed(TABLES), MARKETS):  # the largest first: its check takes longest
                path = self._staging / f"{table.name}.parquet"
                columns = columns_of(connection, table.name)
                digests = self._write_table(
                    columns, read_rows(connection, table, self._window, there), table, path, bar
                )
                if digests.rows:
                    checks.append(pool.submit(self._check_and_put, table, columns, path, digests))
            for check in checks:
                check.result()
        self._lake.create(place.manifest, json.dumps(self._manifest(connection), indent=1).encode())
        return self._lake.manifest(place)

    def _markets_there(self) -> list[str]:
        """Return the markets that the earlier parts of the day have: of each there is one row a day."""
        place = self._window.place
        if place.part == 1:
            return []
        manifests = [self._lake.manifest(place._replace(part=part)) for part in range(1, place.part)]
        path = self._staging / "markets.db"
        fetch(self._lake, manifests, path, ["markets"])
        with closing(sqlite3.connect(path)) as connection:
            return [market_id for (market_id,) in connection.execute("SELECT market_id FROM markets")]

    def _write_table(
        self,
        columns: Sequence[Column],
        rows: Iterator[dict[str, pa.Array]],
        table: Table,
        path: Path,
        bar: tqdm[Any],
    ) -> Digests:
        """Write *rows* to the file *path*, durably; another thread encodes what this one has read."""
        schema = pa.schema(
            [item for column in columns for item in column.fields]
            + [pa.field(name, pa.string()) for name in OWN_COLUMNS]
        )
        digests = Digests()
        layout: dict[str, Any] = {
            "compression": "zstd",
            "compression_level": table.level,
            # of levels and numbers it would hide from the compression that the next row repeats them
            "use_dictionary": [item.name for item in schema if item.type == pa.string()],
        }
        with self._lake.lake_errors(f"write {path.name}"), path.open("wb") as file:
            # the thread ends before the writer is closed, also after Ctrl-C
            with pq.ParquetWriter(file, schema, **layout) as writer, ThreadPoolExecutor(1) as pool:

                def write(batch: dict[str, pa.Array]) -> None:
                    digests.add(batch)
                    arrays = [array for column in columns for array in column.encode(batch[column.name])]
                    size = len(batch["as_stored"])
                    arrays += [pa.repeat(self._window.place.shard, size), batch["as_stored"]]
                    writer.write_table(pa.table(arrays, schema=schema), row_group_size=size)

                pending = None
                for batch in rows:
                    if pending:
                        pending.result()
                    pending = pool.submit(write, batch)
                    bar.update(len(batch["as_stored"]))
                if pending:
                    pending.result()
            _write(file)
        return digests

    def _check_and_put(self, table: Table, columns: Sequence[Column], path: Path, written: Digests) -> None:
        """Read the file back, compare it with what SQLite had, and put it into the lake."""
        place = self._window.place
        with self._lake.lake_errors(f"read {path.name} back"):
            if digests_of(path, columns).by_column() != written.by_column():
                raise LakeError(f"{path}: does not hold what the database has of {place.day}; nothing was deleted")
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = path.stat().st_size
        name = f"{table.name}/date={place.day}/{place.stem}-{self._attempt}.parquet"
        etag = self._lake.put(name, path)
        if self._lake.sha256(name) != sha256:
            raise LakeError(f"{self._lake.address}/{name}: is not what was written there")
        self._tables[table.name] = {"file": name, "rows": written.rows, "bytes": size, "sha256": sha256, "etag": etag}

    def _manifest(self, connection: sqlite3.Connection) -> dict[str, Any]:
        find = f"SELECT min(run_id), max(run_id) FROM runs WHERE {RUNS.condition}"  # noqa: S608
        return {
            "format": FORMAT,
            "schema": ac.SCHEMA_VERSION,
            "database": connection.execute("SELECT database_id FROM lake").fetchone()[0],
            **self._window.place._asdict(),
            "attempt": self._attempt,
            "written_at": ac.sql_time(datetime.now(UTC)),
            "version": ac.__version__,
            "run_ids": connection.execute(find, self._window.values("runs")).fetchone(),
            "after": self._window.after,
            "upto": self._window.upto,
            "tables": dict(sorted(self._tables.items())),
        }


# --- Out of the file --------------------------------------------------------------------------------------------------

# rows of a market are neighbours in the index by market: in this order a transaction touches a fifth of the pages
TO_DELETE: Final = """
    CREATE TEMP TABLE to_delete AS
    SELECT {table.number} AS number FROM {table.name} WHERE {table.condition} {but_newest} AND ({table.kept}) IS NOT 1
    ORDER BY {table.order}
"""
SPARE_USED: Final = (
    "DELETE FROM temp.to_delete WHERE number IN (SELECT book_id FROM snapshots WHERE book_id IS NOT NULL)"
)
DELETE: Final = """
    DELETE FROM {table.name}
    WHERE {table.number} IN (SELECT number FROM temp.to_delete WHERE rowid > :done AND rowid <= :done + :most)
    {but_used}
"""
# a row that came late for its day may refer to a book that went into the lake before
BUT_USED: Final = """
    AND book_id NOT IN (
        SELECT book_id FROM snapshots WHERE timestamp >= :day AND timestamp < :next AND book_id IS NOT NULL
    )
"""
PRUNED: Final = "UPDATE archived_days SET pruned_at = coalesce(pruned_at, :now) WHERE day = :day"
CHECKPOINT: Final = "PRAGMA wal_checkpoint(PASSIVE)"


def list_to_delete(writer: Writer, table: Table, archived: Window) -> int:
    """List the rows of one table that may be deleted in a temporary table, and return how many there are."""
    # SQLite gives the id of the newest row again once it is deleted: a late row would pass for an archived one
    but_newest = f"AND {table.number} < (SELECT max({table.number}) FROM {table.name})" if table.reuses_ids else ""  # noqa: S608
    temporary = writer.connection  # to change its temporary tables nothing is held
    with ac.storage_errors(writer.path, "read"):
        temporary.execute("DROP TABLE IF EXISTS temp.to_delete")
        temporary.execute(TO_DELETE.format(table=table, but_newest=but_newest), archived.values(table.name))
        if table.name == "books":
            temporary.execute(SPARE_USED)
        return int(temporary.execute("SELECT coalesce(max(rowid), 0) FROM temp.to_delete").fetchone()[0])


def delete_listed(writer: Writer, table: Table, archived: Window, to_delete: int, bar: tqdm[Any]) -> int:
    """Delete the rows that are listed, some thousands at a time, with the file free in between."""
    delete = DELETE.format(table=table, but_used=BUT_USED if table.name == "books" else "")
    done = deleted = transactions = 0
    most = MAX_DELETED
    while done < to_delete:
        deleted += writer.execute(delete, archived.values(table.name) | {"done": done, "most": most})
        bar.update(min(most, to_delete - done))
        done += most
        most = max(MAX_DELETED // 10, min(MAX_DELETED, int(most * HOLD_S / max(writer.last_hold_s, 0.001))))
        transactions += 1
        if transactions % 2 == 0 or done >= to_delete:
            writer.execute(CHECKPOINT)
    return deleted


# --- What the lake proves ---------------------------------------------------------------------------------------------


def faults(lake: Lake, manifest: Mapping[str, Any], *, believe_etag: bool = False) -> Iterator[str]:
    """Yield what is wrong with the files of *manifest*: they are read, but for those with the ETag of their put."""
    for described in manifest["tables"].values():
        try:
            is_known = believe_etag and lake.has_etag(described)
            if not is_known and lake.sha256(described["file"]) != described["sha256"]:
                yield f"{lake.address}/{described['file']}: was changed"
        except LostError as error:
            yield str(error)


def doubts(lake: Lake, noted: Noted, connection: sqlite3.Connection) -> Iterator[str]:
    """Yield why a manifest of the lake is not the one that the file has noted."""
    for place, digest in zip(noted.places, noted.digests, strict=True):
        try:
            manifest = lake.manifest(place)
        except DayError as error:
            yield str(error)
            continue
        if digest is None:  # of version 0.2
            (database_id,) = connection.execute("SELECT max(database_id) FROM lake").fetchone()
            is_last = place.part == noted.parts
            if manifest["database"] == database_id and (not is_last or manifest["upto"].items() <= noted.ids.items()):
                continue
        if digest != digest_of(manifest):
            yield f"{lake.address}/{place.manifest}: is not the one that the database has noted"


def check(lake: Lake, path: Path | None) -> None:
    """Read every file of the lake and compare it with its manifest, and the manifests with what the file at *path* has.

    Raises:
        LakeError: something is lost, changed, or there without being named; each is named on stderr.
    """
    places = lake.places()
    problems: list[str] = []
    named: list[str] = []
    rows = 0
    for place in sorted(places):
        if place.part > 1 and place._replace(part=place.part - 1) not in places:
            problems.append(f"{lake.address}/{place.manifest}: the part before it is lost")
        try:
            manifest = lake.manifest(place)
        except DayError as error:
            problems.append(str(error))
            continue
        problems += faults(lake, manifest)
        named += files_of(manifest)
        rows += sum(described["rows"] for described in manifest["tables"].values())
    found = {name for name in lake.names("") if name.endswith(".parquet") and not name.startswith("_")}
    problems += [f"{lake.address}/{name}: no manifest names it" for name in sorted(found.difference(named))]
    if path:
        with reading(path) as connection:
            problems += [doubt for noted in noted_days(connection) for doubt in doubts(lake, noted, connection)]
    for problem in problems:
        say(problem, sys.stderr)
    if problems:
        raise LakeError(f"{lake.address}: {len(problems)} of {len(named)} files or manifests are not as they should be")
    if not places:
        raise LakeError(f"{lake.address}: no manifest is there: nothing was archived, or it is no lake")
    say(f"{lake.address}: {len(places)} manifests, {len(named)} files, {rows:,} rows: all as they were written")


# --- What the command does --------------------------------------------------------------------------------------------

# of version 0.2 it is not known; a day is whole as long as the file has all that the counters of its runs have counted
PRUNED_DAYS: Final = """
    SELECT count(*) FROM archived_days AS noted WHERE pruned_at IS NOT NULL OR manifests = '[]' AND (
        SELECT min(snapshots_saved <= (SELECT count(*) FROM snapshots WHERE run_id = r.run_id)
                   AND errors <= (SELECT count(*) FROM failures WHERE run_id = r.run_id)
                   AND r.tweets <= (SELECT count(*) FROM tweets WHERE run_id = r.run_id))
        FROM runs AS r WHERE started_at >= noted.day AND started_at < date(noted.day, '1 day')
    ) IS NOT 1
"""


def forget_lake(writer: Writer) -> None:
    """Forget which days are in the lake, for they are in the file as well.

    Raises:
        ac.StorageError: some are in the lake alone.
    """
    with reading(writer.path) as connection:
        (pruned,) = connection.execute(PRUNED_DAYS).fetchone()
    if pruned:
        raise ac.StorageError(f"{writer.path}: cannot forget its lake, which alone has the rows of {pruned} days")
    writer.execute("DELETE FROM archived_days")


COLUMNS_THERE: Final = "SELECT name FROM pragma_table_info(?, 'there')"
COPY: Final = ": the database is a copy or from a backup; --shard NAME gives it a name of its own"


class Archive:
    """A run of the command: days of the file that *writer* has open go into *lake*."""

    def __init__(self, writer: Writer, address: str, bar: tqdm[Any]) -> None:
        """Open the lake at *address*.

        Raises:
            LakeError: it lacks a manifest that the file has noted, which it has wherever it is copied or moved to.
        """
        self._writer = writer
        self._path = path = writer.path
        self._bar = bar
        self._proven: set[str] = set()  # days
        with reading(path) as connection:
            noted = [place for row in noted_days(connection) for place in row.places]
            self._shard = (connection.execute("SELECT shard FROM lake").fetchone() or [""])[0]
        self._lake = Lake(address, must_exist=bool(noted))
        self._places = self._lake.places()
        if missing := [place.manifest for place in noted if place not in self._places]:
            raise LakeError(
                f"{address}: is not the lake of {path}, or its disk is not mounted: {len(missing)} of {len(noted)}"
                f" manifests are not there, first {missing[0]}; --forget-lake begins anew while no row was deleted"
            )
        self._lake.refuse_unconditional()

    def name(self, shard: str | None) -> None:
        """Give the file an id and a name in the lake, or another name: what is there already stays where it is."""
        if self._shard and shard in {None, self._shard}:
            return
        for day in sorted({place.day for place in self._places if place.shard == self._shard}):
            with suppress(DayError):
                while self._archive_part(day, only_there=True):
                    pass
        change = "UPDATE lake SET shard = :shard" if self._shard else "INSERT INTO lake VALUES (:id, :shard)"
        database_id = str(uuid.uuid4())
        self._shard = shard or database_id[:8]
        self._writer.execute(change, {"id": database_id, "shard": self._shard})

    def archive_day(self, day: str, *, prunes: bool) -> bool:
        """Archive and prune *day*, and return whether that was possible; what is noted is pruned if it was not, too."""
        started = time.monotonic()
        tables: list[dict[str, Any]] = []
        deleted = 0
        problems = []
        try:
            while manifest := self._archive_part(day):
                tables += manifest["tables"].values()
        except DayError as error:
            problems.append(error)
        try:
            if prunes:
                deleted = self._prune(day)
        except DayError as error:
            problems.append(error)
        for problem in problems:
            say(f"{day}: {without_secrets(str(problem))}", sys.stderr)
        if tables or deleted:
            rows, size = (sum(described[key] for described in tables) for key in ("rows", "bytes"))
            took = time.monotonic() - started
            say(f"{day}: {rows:,} rows in {size / 1e6:.1f} MB to the lake, {deleted:,} rows deleted, {took:.1f} s")
        elif not problems and sys.stdout.isatty():
            say(f"{day}: nothing to archive")
        return not problems

    def _archive_part(self, day: str, *, only_there: bool = False) -> dict[str, Any] | None:
        """Put the rows of *day* that are not in the lake there, and note it; with *only_there* note what is there.

        Returns:
            The manifest that counts, or None where there is nothing (more) to do.
        """
        attempt = secrets.token_hex(8)
        with ExitStack() as stack:
            connection = stack.enter_context(reading(self._path))
            window, counts = window_of(connection, day, self._shard)
            place = window.place
            if not any(counts.values()) or (only_there and place not in self._places):
                return None
            self._bar.set_description(f"{day} to the lake")
            self._bar.reset(sum(counts.values()))
            staging = self._lake.staging(self._path, f"{day}-{place.stem}-{attempt}")
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            shutil.rmtree(staging, ignore_errors=True)
            with self._lake.lake_errors("write"):
                staging.mkdir(parents=True)
            manifest = self._lake.decision(place)
            if manifest is None:
                self._refuse_used_ids(connection, window, staging)
                manifest = Part(self._lake, staging, window, attempt).write(connection, self._bar)
            self._lake.remove_undecided(place, manifest, staging)
            if manifest.get("attempt") != attempt:
                window = self._matched(connection, window, manifest, staging)
            noted = [row for row in noted_days(connection, day) if row.shard == self._shard]
        has_more = any(last > window.upto.get(name, 0) for name, last in manifest["upto"].items())
        digests = [digest for row in noted for digest in row.digests] + [digest_of(manifest)]
        is_behind = has_more or any(row.is_behind for row in noted)
        self._writer.execute(NOTE, note(place, digests, window.upto, is_behind=is_behind))
        return manifest

    @contextmanager
    def _beside(
        self, manifest: Mapping[str, Any], staging: Path, tables: Sequence[str] = ()
    ) -> Iterator[sqlite3.Connection]:
        """Open the file with what *manifest* names attached as `there`."""
        with TemporaryDirectory(dir=staging) as folder:
            fetch(self._lake, [manifest], Path(folder, "there.db"), tables)
            with ac.open_read_only(self._path) as connection:
                connection.execute("ATTACH ? AS there", (f"{folder}/there.db",))
                yield connection

    def _matched(
        self, connection: sqlite3.Connection, window: Window, manifest: Mapping[str, Any], staging: Path
    ) -> Window:
        """Return the rows of *window* that the lake has by *manifest*, whoever wrote it.

        They reach up to the greatest id that the file has: what it collects later has greater ones, also where the lake
        has more rows of the day than this file, which is a copy or from a backup then.

        Raises:
            DayError: a row of the file is not there, though ids up to its own are.
        """
        there = window._replace(upto={name: manifest["upto"].get(name, 0) for name in NAMES})
        with self._beside(manifest, staging) as both:
            for table in TABLES:
                known = {name for (name,) in both.execute(COLUMNS_THERE, (table.name,))}
                columns = columns_of(connection, table.name)
                ours = ", ".join(quoted(column.name) for column in columns)
                theirs = ", ".join(quoted(c.name) if c.name in known else "NULL" for c in columns)
                # of equal rows of a table without ids there are as many
                number = f", row_number() OVER (PARTITION BY {ours})" if table.number == "rowid" else ""
                differ = f"""
                    SELECT {ours}{number} FROM main.{table.name} WHERE {table.condition}
                    EXCEPT SELECT {theirs}{number} FROM there.{table.name} LIMIT 1
                """  # noqa: S608
                if both.execute(differ, there.values(table.name)).fetchone():
                    raise DayError(f"{self._lake.address}/{window.place.manifest}: tells of other {table.name}{COPY}")
        return there._replace(upto={table.name: count_and_last(connection, table, there)[1] for table in TABLES})

    def _refuse_used_ids(self, connection: sqlite3.Connection, window: Window, staging: Path) -> None:
        """Raise `DayError` if the lake has other rows under an id of *window* and its shard.

        What the file has noted has none of them, unless the lake has more of that day than the file ever had.
        """
        noted = {place for row in noted_days(connection) if not row.is_behind for place in row.places}
        for place in sorted(place for place in self._places - noted if place.shard == window.place.shard):
            try:
                manifest = self._lake.manifest(place)
            except (LostError, TornError):  # it counts for nothing
                continue
            tables = [
                table
                for table in TABLES
                if table.name in manifest["tables"]
                and table.number != "rowid"  # which the lake lacks
                and window.after[table.name] < min(manifest["upto"][table.name], window.upto[table.name])
            ]
            if not tables:
                continue
            with self._beside(manifest, staging, [table.name for table in tables]) as both:
                for table in tables:
                    same = f"""
                        SELECT 1 FROM main.{table.name} WHERE {table.condition}
                        AND {table.number} IN (SELECT {table.number} FROM there.{table.name}) LIMIT 1
                    """  # noqa: S608
                    if both.execute(same, window.values(table.name)).fetchone():
                        raise DayError(f"{self._lake.address}/{place.manifest}: has ids of these {table.name}{COPY}")

    def _prove(self, day: str) -> None:
        """Ask the lake whether it has all that `archived_days` says of *day*, once a run, and note that rows will go.

        Raises:
            DayError: it has not; nothing may be deleted.
        """
        if day in self._proven:
            return
        with reading(self._path) as connection:
            for noted in noted_days(connection, day):
                problems = list(doubts(self._lake, noted, connection))
                for place in () if problems else noted.places:
                    problems += faults(self._lake, self._lake.manifest(place), believe_etag=True)
                if problems:
                    raise DayError(f"{problems[0]}; nothing of the day is deleted")
        self._writer.execute(PRUNED, {"day": day, "now": ac.sql_time(datetime.now(UTC))})
        self._proven.add(day)

    def _prune(self, day: str) -> int:
        """Delete the rows of *day* that are in the lake from the file, and return how many there were."""
        with reading(self._path) as connection:
            later, _ = window_of(connection, day, self._shard)
        archived = Window(later.place, {}, later.after)
        self._bar.set_description(f"{day} from the file")
        deleted = 0
        for table in TABLES:
            if table.is_pruned and (to_delete := list_to_delete(self._writer, table, archived)):
                self._prove(day)
                deleted += delete_listed(self._writer, table, archived, to_delete, self._bar)
        return deleted


def archive(writer: Writer, options: argparse.Namespace, bar: tqdm[Any]) -> None:
    """Archive and prune all days that are due, the oldest first.

    Raises:
        LakeError: some stay in the file; each is named on stderr.
    """
    if options.forget_lake:
        forget_lake(writer)
    run = Archive(writer, options.lake, bar)
    run.name(options.shard)
    days = finished_days(writer.path, options.keep)
    refused = [day for day in days if not run.archive_day(day, prunes=not options.no_prune)]
    if refused:
        raise LakeError(f"{writer.path}: {len(refused)} of {len(days)} days are not archived: see above")
    if not days and sys.stdout.isatty():
        say(f"nothing to archive: no finished day is older than the last {options.keep}")


def announce(path: Path, options: argparse.Namespace) -> None:
    """Say what would be archived."""
    days = finished_days(path, options.keep)
    with reading(path) as connection:
        known = connection.execute("SELECT shard FROM lake").fetchone() or [""]
        for day in days:
            window, counts = window_of(connection, day, options.shard or known[0])
            if any(counts.values()):
                found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
                say(f"{day}: part {window.place.part}: {found}")


# --- The command ------------------------------------------------------------------------------------------------------


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line, whatever the terminal can show; what has been archived stays so if nobody reads on."""
    stream = stream or sys.stdout
    with suppress(BrokenPipeError):
        tqdm.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream)
        stream.flush()


def argument(is_right: Callable[[str], object], form: str, kind: Callable[[str], object] = str) -> Callable[[str], Any]:
    """Return a type for argparse that refuses what is not of *form*."""

    def read(text: str) -> object:
        if not is_right(text):
            raise argparse.ArgumentTypeError(f"{text!r}: must be {form}")
        return kind(text)

    return read


EPILOG: Final = """\
examples:
  collector-archive /data/lake
  collector-archive s3://bucket/prefix --keep 2 --db /data/polymarket.db

variables:
  POLYMARKET_DB, and for object storage the usual ones, such as AWS_ACCESS_KEY_ID

exit codes:
  0 done; 2 bad command line; 74 the file or the lake cannot be used;
  75 the file is in use; 78 bad configuration; 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; docs/lake.md has the same options."""
    parser = argparse.ArgumentParser(
        prog="collector-archive",
        description="Move finished days from a collector's file into a lake of Parquet files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lake", metavar="LAKE", help="a folder, or s3://bucket/prefix (gs://, az://)")
    parser.add_argument(
        "--db", metavar="PATH", default=ac.DEFAULT_DB_PATH, help="database file (POLYMARKET_DB, polymarket_data.db)"
    )
    parser.add_argument(
        "--keep",
        metavar="DAYS",
        type=argument(re.compile("[0-9]{1,5}").fullmatch, "a whole number of days from 0", int),
        default=7,
        help="finished days that stay in the file (7)",
    )
    parser.add_argument(
        "--shard",
        metavar="NAME",
        type=argument(re.compile(SHARD).fullmatch, "up to 64 letters, digits, - and _"),
        help="name of this database in the lake for what is not there yet; made once and kept in the file",
    )
    parser.add_argument("--no-prune", action="store_true", help="leave archived rows in the file")
    parser.add_argument(
        "--forget-lake", action="store_true", help="begin anew with LAKE; refused once rows are in another lake alone"
    )
    parser.add_argument(
        "--shrink", action="store_true", help="give freed space back at the end (VACUUM): the file is locked meanwhile"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="say what would be archived, and do nothing")
    instead.add_argument("--check", action="store_true", help="read the whole lake and compare it with its manifests")
    instead.add_argument(
        "--restore",
        metavar="DAY",
        type=argument(is_day, "a day: YYYY-MM-DD"),
        help="make the new file --db from a day of the lake",
    )
    parser.add_argument("--version", action="version", version=f"collector-archive {ac.__version__}")
    return parser


def run(options: argparse.Namespace) -> None:
    """Do what the options say."""
    path = ac.database_path(options.db, os.environ)
    if options.check:
        check(Lake(options.lake, must_exist=True), None if options.db is ac.DEFAULT_DB_PATH else path)
    elif options.restore:
        restore(path, Lake(options.lake, must_exist=True), options.restore, options.shard)
        say(f"{path}: {options.restore} is restored from {options.lake}")
    elif options.dry_run:
        announce(path, options)
    else:
        path = Path(os.path.realpath(path))  # a link is no second file
        bar: tqdm[Any] = tqdm(unit=" rows", unit_scale=True, disable=not sys.stderr.isatty(), leave=False)
        # one archive of a file at a time
        with bar, ac.locked(path.with_name(f"{path.name}.archiving")), closing(Writer(path)) as writer:
            archive(writer, options, bar)
            if options.shrink:
                writer.execute("VACUUM")


def progress(options: argparse.Namespace) -> str:
    """Return which days are in the lake, for somebody who has interrupted the command."""
    path = ac.database_path(options.db, os.environ)
    with suppress(ac.StorageError), reading(path) as connection:
        days = [row.day for row in noted_days(connection)]
        return f"{len(days)} days up to {days[-1]} are in the lake" if days else "no day is in the lake"
    return "nothing was read"


def main(argv: Sequence[str] | None = None) -> int:
    """Archive, and return the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.restore and options.db is ac.DEFAULT_DB_PATH:
        parser.error("--restore needs --db NEW.db")
    if options.forget_lake and (options.check or options.dry_run or options.restore):
        parser.error("--forget-lake is for archiving")
    if MISSING:
        say(f"collector-archive: {MISSING} is missing: install the extra, pip install '.[archive]'", sys.stderr)
        return ac.ConfigError.exit_code
    try:
        run(options)
    except ac.CollectorError as error:
        say(f"collector-archive: {without_secrets(str(error))}", sys.stderr)
        return error.exit_code
    except OSError as error:  # no right to lock the file, no room for a line
        with suppress(OSError):
            say(f"collector-archive: {error}", sys.stderr)
        return ac.StorageError.exit_code
    except KeyboardInterrupt:
        say(f"interrupted; {progress(options)}; what was begun is done again by the next run", sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    gc.disable()  # rows are no cycles, and to look for some among millions takes as long as to read them
    sys.exit(main())
