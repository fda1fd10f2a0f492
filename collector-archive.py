#!/usr/bin/env python3
"""Move finished days of a collector's file into a lake of Parquet files: the command `collector-archive`.

A day goes through these steps, each of which may be repeated after a kill:

    read in one transaction -> Parquet files -> read back and compared -> put into the lake -> manifest
    -> row in `archived_days` -> deleted from the file, a few thousand rows at a time

A row is in the lake if its day is in `archived_days` and its id is at most the one that stands there for its table;
else it is in the file. `docs/lake.md` describes the lake, how to read it, and what happens to rows that come late.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO
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

FORMAT: Final = 1  # of the lake
INTERRUPTED: Final = 130
PATIENCE_S: Final = 20 * 60.0  # with a collector that holds the file: a run ends before the next one begins
HOLD_S: Final = 0.04  # the file is held for about so long at a time
MAX_DELETED: Final = 5_000  # rows in a transaction
PAUSE_S: Final = 0.06  # a collector that waits for the file looks every 0.05 s
PAUSE_EVERY_S: Final = 0.25
RETRY: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}  # of a request to object storage
SECRETS: Final = ("AWS_", "AZURE_", "GOOGLE_", "GCS_")


class LakeError(ac.StorageError):
    """The lake cannot be read or written, or does not hold what it should; the text names the place."""


class LostError(LakeError):
    """The lake has no such file."""


# --- Tables -----------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table of the file, and how its rows are laid out in the lake; `TABLES` has them all.

    To archive another table, add a row there, and give the table `archived_days` a column of its name (INTEGER NOT NULL
    DEFAULT 0). Its time should have an index. What readers need to know of it stands in docs/lake.md.
    """

    name: str
    number: str  # the id, an integer that grows with every row
    time: str  # SQL for the time that decides on the day
    order: str  # of the rows in a file
    rows: int = 20_000  # in a row group, and in memory
    level: int = 3  # of compression
    is_pruned: bool = True  # archived rows are deleted from the file
    reuses_ids: bool = False  # the id of the newest row is given again once that row is deleted

    @property
    def condition(self) -> str:
        """SQL for the rows of a day whose ids are in a range."""
        return f"{self.time} >= :day AND {self.time} < :next AND +{self.number} > :after AND +{self.number} <= :upto"


SNAPSHOTS: Final = Table("snapshots", "id", "timestamp", "market_id, timestamp")
MARKETS: Final = Table("markets", "", "", "market_id", is_pruned=False)  # of the day's snapshots
RUN_START: Final = "(SELECT started_at FROM runs WHERE runs.run_id = failures.run_id)"
# in the order in which they are deleted: a book goes after the snapshots that refer to it
TABLES: Final = (
    Table("runs", "run_id", "started_at", "run_id", is_pruned=False),
    Table("failures", "rowid", RUN_START, "rowid", rows=50_000, reuses_ids=True),
    Table("tweets", "rowid", "created_at", "market_id, timestamp, rowid", reuses_ids=True),
    Table("hype_signals", "id", "timestamp", "market_id, timestamp", rows=50_000),
    SNAPSHOTS,
    Table("books", "book_id", "timestamp", "market_id, timestamp, book_id", rows=5_000, level=9, reuses_ids=True),
)
LEVELS: Final = {"bids", "asks", "bids_no", "asks_no"}
MILLISECONDS: Final = {"book_time"}  # the other times are to the second
OWN_COLUMNS: Final = ("shard", "as_stored")


class Window(NamedTuple):
    """The rows of a day that go into one part: with ids above `after`, by table, and up to `upto`."""

    day: str
    part: int
    after: dict[str, int]
    upto: dict[str, int]

    def values(self, table: str) -> dict[str, object]:
        """Return the parameters of `Table.condition`."""
        following = date.fromisoformat(self.day) + timedelta(days=1)
        return {
            "day": self.day,
            "next": following.isoformat(),
            "after": self.after.get(table, 0),
            "upto": self.upto.get(table, 2**63 - 1),
        }


def query(table: Table, columns: Sequence[Column]) -> str:
    """Return the query for the rows of a window, in the order of the file."""
    names = ", ".join(f't."{column.name}"' for column in columns)
    if table is MARKETS:
        seen = f"SELECT 1 FROM snapshots WHERE market_id = t.market_id AND {SNAPSHOTS.condition}"  # noqa: S608
        return f"SELECT {names} FROM markets AS t WHERE EXISTS ({seen}) ORDER BY market_id"  # noqa: S608
    # ids are sorted before wide rows are read
    keys = f"SELECT {table.number} AS number FROM {table.name} WHERE {table.condition} ORDER BY {table.order}"  # noqa: S608
    return f"SELECT {names} FROM ({keys} LIMIT -1) CROSS JOIN {table.name} AS t ON t.{table.number} = number"  # noqa: S608


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
PYTHON_TYPES: Final = {"integer": int, "real": float, "blob": bytes}  # else text


class Column(NamedTuple):
    """A column of a table: `kind` is integer, real, text, blob, time, time_ms or levels."""

    name: str
    kind: str

    @classmethod
    def of(cls, table: str, name: str, declared: str) -> Column:
        """Choose the kind by the declared type, as SQLite chooses an affinity."""
        declared = declared.upper()
        if table == "books" and name in LEVELS:
            return cls(name, "levels")
        if "TIMESTAMP" in declared or "DATE" in declared:
            return cls(name, "time_ms" if name in MILLISECONDS else "time")
        if "INT" in declared or "BOOL" in declared:
            return cls(name, "integer")
        if any(word in declared for word in ("REAL", "FLOA", "DOUB", "NUMERIC", "DECIMAL")):
            return cls(name, "real")
        return cls(name, "blob" if "BLOB" in declared else "text")

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of the Parquet file."""
        if self.kind != "levels":
            kinds = {"integer": pa.int64(), "real": pa.float64(), "blob": pa.binary(), "text": pa.string()}
            return [pa.field(self.name, kinds.get(self.kind, pa.timestamp("ms", "UTC")))]
        side, outcome = self.name[:3], self.name[4:]  # bids_no: bid_prices_no, bid_sizes_no
        kinds = {"prices": pa.decimal128(9, 4), "sizes": pa.decimal128(18, 6)}
        return [
            pa.field(f"{side}_{what}{outcome}", pa.list_(pa.field("element", kind, nullable=False)))
            for what, kind in kinds.items()
        ]

    def take(self, values: Sequence[object]) -> tuple[pa.Array, dict[int, object]]:
        """Return *values* as they are in SQLite, and by row those that this column cannot hold."""
        wanted = PYTHON_TYPES.get(self.kind, str)
        odd: dict[int, object] = {}
        if not set(map(type, values)) <= {wanted, NoneType}:
            odd = {row: value for row, value in enumerate(values) if not isinstance(value, wanted | NoneType)}
        try:
            taken = self._array(values, odd)
        except UnicodeEncodeError:
            odd |= {row: value for row, value in enumerate(values) if not _is_unicode(value)}
            taken = self._array(values, odd)
        if self.kind in FORMS:
            misfits = self._misfits(taken)
            odd |= {row: values[row] for row in misfits}
            taken = self._array(values, odd) if misfits else taken
        return taken, odd

    def _array(self, values: Sequence[object], odd: Mapping[int, object]) -> pa.Array:
        kind = {"integer": pa.int64(), "real": pa.float64(), "blob": pa.binary()}.get(self.kind, pa.string())
        if odd:
            values = [None if row in odd else value for row, value in enumerate(values)]
        return pa.array(values, kind)

    def _misfits(self, taken: pa.Array) -> list[int]:
        """Return the rows whose texts are not in the one form that `decode` writes."""
        fits = pc.match_substring_regex(taken, FORMS[self.kind])
        if self.kind == "levels":
            fits = pc.and_not(fits, pc.match_substring(taken, ",0.00000"))  # has an exponent, see EXPONENT
        if pc.all(fits).as_py() in {True, None}:
            with suppress(pa.ArrowInvalid):  # of a 30th of February
                if self.kind != "levels":
                    taken.cast(pa.timestamp("ms"))
                return []
        is_right = bool if self.kind == "levels" else _is_time
        texts = zip(taken.to_pylist(), fits.to_pylist(), strict=True)
        return [row for row, (text, is_fit) in enumerate(texts) if text is not None and not (is_fit and is_right(text))]

    def encode(self, taken: pa.Array) -> list[pa.Array]:
        """Return the columns of the Parquet file for what `take` has returned."""
        if self.kind == "levels":
            return parse_levels(taken, [item.type for item in self.fields])
        if self.kind in FORMS:
            return [taken.cast(pa.timestamp("ms")).cast(pa.timestamp("ms", "UTC"))]
        return [taken]

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


def as_json(odd: Mapping[str, object]) -> str:
    """Return the values that columns cannot hold; bytes as hexadecimal digits."""
    return json.dumps(odd, default=lambda value: {"hex": value.hex()})


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
    """Return *text* on one line, without the values of the variables that give access to object storage."""
    for name, value in os.environ.items():
        if name.startswith(SECRETS) and len(value) > 3 and re.search("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name):  # noqa: PLR2004
            text = text.replace(value, "***")
    return ac.printable(text)


def reason_of(error: Exception) -> str:
    """Return the first paragraph of *error*, or what to do where it does not say that."""
    reason, _, details = str(error).partition("\n\n")
    if "No CA certificates" in details:  # the client is not even made, also for an address without TLS
        return "no CA certificates: install those of the system (ca-certificates), or name a file in SSL_CERT_FILE"
    return reason


class Lake:
    """A folder, or a bucket of object storage with a prefix. Every method raises `LakeError`."""

    def __init__(self, address: str, *, must_exist: bool = False) -> None:
        """Open the lake at *address*: a path, or `s3://`, `gs://` or `az://` with bucket and prefix."""
        self.address: Final = address
        self.folder: Path | None = None
        if address.strip() and not re.match("[A-Za-z][A-Za-z0-9+.-]+:", address):  # one letter is a drive
            self.folder = Path(address)
            if self.folder.exists() and not self.folder.is_dir():
                raise LakeError(f"{address}: is no folder")
            if must_exist and not self.folder.is_dir():
                raise LakeError(f"{address}: there is no such folder")
            with self.naming("open"):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._store: Any = obstore.store.LocalStore(str(self.folder.resolve()))
            return
        parts = urlsplit(address)
        if (
            parts.scheme not in {"s3", "gs", "az"}
            or not parts.netloc
            or "@" in parts.netloc
            or parts.query
            or parts.fragment
        ):
            raise ac.ConfigError(
                "LAKE: must be a folder or s3://bucket/prefix (or gs://, az://), with the keys in the environment"
            )
        with self.naming("open"):
            self._store = obstore.store.from_url(address, retry_config=RETRY)

    @contextmanager
    def naming(self, doing: str) -> Iterator[None]:
        """Turn errors of the file system, of object storage and of Parquet into a `LakeError` that names the lake."""
        try:
            yield
        except (OSError, obstore.exceptions.BaseError, ValueError) as error:
            raise LakeError(
                without_secrets(f"{self.address}: cannot {doing}: {reason_of(error)}")
            ) from None  # the error of the library may show more than it should

    def staging(self, database: Path, shard: str) -> Path:
        """Return the folder for unfinished files; a rename within one file system makes them final."""
        if self.folder:
            return self.folder / "_staging" / shard
        return database.with_name(f"{database.name}.archive")

    def put(self, name: str, source: Path) -> None:
        """Move the file *source* to *name*, whole or not at all."""
        with self.naming(f"write {name}"):
            if self.folder:
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
                _sync_folders(target.parent, self.folder)
            else:
                self._store.put(name, source, max_concurrency=4)

    def create(self, name: str, content: bytes) -> bool:
        """Write *content* to *name* unless there is something already, and return whether it was written."""
        with self.naming(f"write {name}"):
            try:
                self._store.put(name, content, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
            if self.folder:
                with (self.folder / name).open("rb+") as file:
                    os.fsync(file.fileno())
                _sync_folders((self.folder / name).parent, self.folder)
        return True

    def _pieces(self, name: str) -> Iterator[bytes]:
        with self.naming(f"read {name}"):
            try:
                yield from map(bytes, self._store.get(name).stream(min_chunk_size=2**20))
            except (obstore.exceptions.NotFoundError, FileNotFoundError):
                raise LostError(f"{self.address}/{name}: is lost") from None

    def sha256(self, name: str, copy: Path | None = None) -> str:
        """Return the SHA-256 of the file *name*, read as a whole, and write it to *copy*."""
        digest = hashlib.sha256()
        with copy.open("wb") if copy else nullcontext() as file:
            for piece in self._pieces(name):
                digest.update(piece)
                if file:
                    file.write(piece)
        return digest.hexdigest()

    def rows(self, name: str) -> int:
        """Return the number of rows that the Parquet file *name* says it has."""
        with self.naming(f"read {name}"):
            size = self._store.head(name)["size"]
            end = bytes(self._store.get_range(name, start=max(0, size - 8), end=size))
            length = int.from_bytes(end[:4], "little") + 8  # the metadata are the last part, and their length follows
            metadata = self._store.get_range(name, start=max(0, size - length), end=size)
            return int(pq.read_metadata(pa.BufferReader(bytes(metadata))).num_rows)

    def manifests(self, day: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield names and contents of the manifests, of all days or of one, in order."""
        with self.naming("list manifests"):
            prefix = f"_manifest/date={day}/" if day else "_manifest/"
            names = sorted(item["path"] for page in self._store.list(prefix) for item in page)
        for name in names:
            if name.endswith(".json"):
                yield name, self.manifest(name) or {}

    def manifest(self, name: str) -> dict[str, Any] | None:
        """Return the manifest *name*, or None where there is none."""
        try:
            content = b"".join(self._pieces(name))
        except LostError:
            return None
        try:
            manifest: dict[str, Any] = json.loads(content)
            newer = manifest["format"] > FORMAT or manifest["schema"] > ac.SCHEMA_VERSION
        except (ValueError, KeyError, TypeError) as error:
            raise LakeError(f"{self.address}/{name}: is damaged: {error}") from error
        if newer:
            version = f"format {manifest['format']}, schema {manifest['schema']}"
            raise LakeError(f"{self.address}/{name}: was written by a newer version: {version}")
        return manifest

    def claim(self, shard: str, database_id: str) -> None:
        """Make *shard* the name of this database, unless another one has it."""
        name = f"_shards/{shard}.json"
        claim = {"format": FORMAT, "schema": ac.SCHEMA_VERSION, "database": database_id}
        self.create(name, json.dumps(claim).encode())
        owner = (self.manifest(name) or {}).get("database")
        if owner != database_id:
            raise LakeError(
                f"{self.address}: another database ({owner}) archives there as {shard}; choose another --shard"
            )


def _sync_folders(folder: Path, top: Path) -> None:
    """Make the names in *folder* durable, and those of the folders above it up to *top*."""
    if os.name == "nt":  # which has no descriptors of folders
        return
    for path in (folder, *folder.parents):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if path == top:
            break


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
    """Writes to the file beside a running collector: holds it for one short transaction at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file at *path*."""
        self.path: Final = path
        self.last_hold_s = 0.0
        self._since_pause_s = 0.0
        with ac.storage_errors(path, "write"):
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=ac.BUSY_TIMEOUT_S)
            # a deleted parent would look for its children in all of `snapshots`
            self.connection.execute("PRAGMA foreign_keys = OFF")
            self.connection.execute("PRAGMA synchronous = NORMAL")  # what is deleted stays in the order of the log
            self.connection.execute("PRAGMA wal_autocheckpoint = 0")  # `prune_table` does it by itself
            self.connection.execute("PRAGMA cache_size = -32768")

    def execute(self, statement: str, values: Mapping[str, object] | None = None) -> int:
        """Execute one statement in a transaction of its own, holding the file, and return how many rows it changed."""
        if self._since_pause_s > PAUSE_EVERY_S:  # whoever waits for the file gets it now
            time.sleep(PAUSE_S)
            self._since_pause_s = 0.0
        with ac.storage_errors(self.path, "write"), ac.locked(self.path, PATIENCE_S):
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


# --- Archiving --------------------------------------------------------------------------------------------------------

NOTE: Final = f"""
    INSERT OR REPLACE INTO archived_days (day, shard, archived_at, parts, {", ".join(table.name for table in TABLES)})
    VALUES (:day, :shard, :now, :part, {", ".join(f":{table.name}" for table in TABLES)})
"""  # noqa: S608
OPEN_RUNS: Final = "SELECT run_id FROM runs WHERE status = 'running' AND started_at < ? ORDER BY run_id"
# of a table that is not pruned only those rows count that are not in the lake
NEW_DAYS: Final = """
    SELECT DISTINCT substr({table.time}, 1, 10) FROM {table.name}
    LEFT JOIN archived_days AS known ON day = substr({table.time}, 1, 10)
    WHERE day IS NULL OR {table.number} > known.{table.name}
"""
DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
WHOLE: Final = re.compile(r"[0-9]{1,5}")
SHARD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_day(text: object) -> bool:
    """Return whether *text* is a date, as `YYYY-MM-DD`."""
    try:
        return isinstance(text, str) and bool(DAY.fullmatch(text)) and bool(date.fromisoformat(text))
    except ValueError:
        return False


def days_before(connection: sqlite3.Connection, end: str) -> list[str]:
    """Return the days before *end* of which the file has rows, the oldest first."""
    days: set[str] = set()
    for table in TABLES:
        if not table.is_pruned:
            days.update(day for (day,) in connection.execute(NEW_DAYS.format(table=table)))
            continue
        after = "0"
        find = f"SELECT min({table.time}) FROM {table.name} WHERE {table.time} > ? AND {table.time} < ?"  # noqa: S608
        while text := connection.execute(find, (after, end)).fetchone()[0]:
            days.add(text[:10])
            after = f"{text[:10]}~" if is_day(text[:10]) else text
    return sorted(day for day in days if is_day(day) and day < end)


def window_of(connection: sqlite3.Connection, day: str) -> tuple[Window, dict[str, int]]:
    """Return the rows of *day* that are not in the lake, and how many there are by table."""
    names = ", ".join(("parts", *(table.name for table in TABLES)))
    known = connection.execute(f"SELECT {names} FROM archived_days WHERE day = ?", (day,)).fetchone()  # noqa: S608
    parts, *ids = known or [0] * (1 + len(TABLES))
    after = {table.name: number for table, number in zip(TABLES, ids, strict=True)}
    window = Window(day, parts + 1, after, dict(after))
    counts = {}
    for table in TABLES:
        find = f"SELECT count(*), max({table.number}) FROM {table.name} WHERE {table.condition}"  # noqa: S608
        values = window.values(table.name) | {"upto": 2**63 - 1}
        counts[table.name], greatest = connection.execute(find, values).fetchone()
        window.upto[table.name] = greatest or after[table.name]
    return window, counts


def columns_of(connection: sqlite3.Connection, table: str) -> list[Column]:
    """Return the columns of *table* as they are declared."""
    found = connection.execute("SELECT name, type FROM pragma_table_info(?)", (table,)).fetchall()
    return [Column.of(table, name, declared) for name, declared in found if name not in OWN_COLUMNS]


def read_rows(connection: sqlite3.Connection, table: Table, window: Window) -> Iterator[dict[str, pa.Array]]:
    """Yield the rows of *window* in pieces, by column, as `Column.take` returns them."""
    columns = columns_of(connection, table.name)
    values = window.values("snapshots" if table is MARKETS else table.name)
    cursor = connection.execute(query(table, columns), values)
    while rows := cursor.fetchmany(table.rows):
        cells_by_column = zip(*rows, strict=True)
        size = len(rows)
        del rows  # before the next ones come
        odd_rows: dict[int, dict[str, object]] = {}
        batch = {}
        for column, cells in zip(columns, cells_by_column, strict=True):
            batch[column.name], odd = column.take(cells)
            for row, value in odd.items():
                odd_rows.setdefault(row, {})[column.name] = value
        texts = [as_json(odd_rows[row]) if row in odd_rows else None for row in range(size)]
        yield batch | {"as_stored": pa.array(texts, pa.string())}


class Part:
    """The rows of a window on their way into the lake: one Parquet file per table that has any."""

    def __init__(self, lake: Lake, staging: Path, window: Window, owner: tuple[str, str]) -> None:
        """Prepare a part for the database and the shard that *owner* names."""
        self.window = window
        self._lake = lake
        self._staging = staging
        self._database_id, self.shard = owner
        self._tables: dict[str, dict[str, Any]] = {}

    @property
    def _file_name(self) -> str:
        return self.shard if self.window.part == 1 else f"{self.shard}.{self.window.part}"

    @property
    def manifest_name(self) -> str:
        """Where the manifest of this part is."""
        return f"_manifest/date={self.window.day}/{self._file_name}.json"

    def write(self, connection: sqlite3.Connection, bar: tqdm[Any]) -> dict[str, Any]:
        """Read, write, read back, put into the lake, and claim it all with a manifest, which is returned."""
        with ThreadPoolExecutor(2) as pool:
            checks = []
            for table in (*reversed(TABLES), MARKETS):  # the largest first: its check takes longest
                path = self._staging / f"{table.name}.parquet"
                columns = columns_of(connection, table.name)
                digests = self._write_table(connection, table, columns, path, bar)
                if digests.rows:
                    checks.append(pool.submit(self._check_and_put, table, columns, path, digests))
            for check in checks:
                check.result()
        manifest = self._manifest(connection)
        if not self._lake.create(self.manifest_name, json.dumps(manifest, indent=1).encode()):
            raise LakeError(f"{self._lake.address}/{self.manifest_name}: was written meanwhile; run again")
        return manifest

    def _write_table(
        self, connection: sqlite3.Connection, table: Table, columns: Sequence[Column], path: Path, bar: tqdm[Any]
    ) -> Digests:
        """Write the rows of *table* to the file *path*, durably; another thread encodes what this one has read."""
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
        with self._lake.naming(f"write {path.name}"), path.open("wb") as file:
            # the thread ends before the writer is closed, also after Ctrl-C
            with pq.ParquetWriter(file, schema, **layout) as writer, ThreadPoolExecutor(1) as pool:

                def write(batch: dict[str, pa.Array]) -> None:
                    digests.add(batch)
                    arrays = [array for column in columns for array in column.encode(batch[column.name])]
                    rows = len(batch["as_stored"])
                    arrays += [pa.repeat(self.shard, rows), batch["as_stored"]]
                    writer.write_table(pa.table(arrays, schema=schema), row_group_size=rows)

                pending = None
                for batch in read_rows(connection, table, self.window):
                    if pending:
                        pending.result()
                    pending = pool.submit(write, batch)
                    bar.update(len(batch["as_stored"]))
                if pending:
                    pending.result()
            file.flush()
            os.fsync(file.fileno())
        return digests

    def _check_and_put(self, table: Table, columns: Sequence[Column], path: Path, written: Digests) -> None:
        """Read the file back, compare it with what SQLite had, and put it into the lake."""
        with self._lake.naming(f"read {path.name} back"):
            if digests_of(path, columns).by_column() != written.by_column():
                raise LakeError(
                    f"{path}: does not hold what the database has of {self.window.day}; nothing was deleted"
                )
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = path.stat().st_size
        name = f"{table.name}/date={self.window.day}/{self._file_name}.parquet"
        self._lake.put(name, path)
        if self._lake.sha256(name) != sha256:
            raise LakeError(f"{self._lake.address}/{name}: is not what was written there")
        described = {"file": name, "rows": written.rows, "bytes": size, "sha256": sha256}
        self._tables[table.name] = described | {"digests": written.by_column()}

    def _manifest(self, connection: sqlite3.Connection) -> dict[str, Any]:
        find = f"SELECT min(run_id), max(run_id) FROM runs WHERE {TABLES[0].condition}"  # noqa: S608
        return {
            "format": FORMAT,
            "schema": ac.SCHEMA_VERSION,
            "database": self._database_id,
            "shard": self.shard,
            "day": self.window.day,
            "part": self.window.part,
            "written_at": ac.sql_time(datetime.now(UTC)),
            "version": ac.__version__,
            "run_ids": connection.execute(find, self.window.values("runs")).fetchone(),
            "after": self.window.after,
            "upto": self.window.upto,
            "tables": dict(sorted(self._tables.items())),
        }

    def adopt(self, connection: sqlite3.Connection, manifest: Mapping[str, Any]) -> None:
        """Check that *manifest*, which an interrupted run has left, tells of the rows that the file has."""
        self.window = Window(self.window.day, self.window.part, manifest["after"], manifest["upto"])
        for table in TABLES:
            found = Digests()
            for batch in read_rows(connection, table, self.window):
                found.add(batch)
            there = manifest["tables"].get(table.name, {"rows": 0, "digests": {}})
            digests = found.by_column()
            same = found.rows == there["rows"] and all(
                digests.get(name) == digest for name, digest in there["digests"].items()
            )
            if manifest["database"] != self._database_id or not same:
                raise LakeError(
                    f"{self._lake.address}/{self.manifest_name}: tells of other {table.name} than the database has"
                )
        if problems := list(faults(self._lake, manifest)):
            raise LakeError(problems[0])


def digests_of(path: Path, columns: Sequence[Column]) -> Digests:
    """Return the digests of a Parquet file, of its values as SQLite has them."""
    digests = Digests()
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            digests.add(decoded(file.read_row_group(number), columns))
    return digests


def decoded(rows: pa.Table, columns: Sequence[Column]) -> dict[str, pa.Array]:
    """Return the rows of a Parquet file by column, as `Column.take` has returned them."""
    batch = {}
    for column in columns:
        stored = [rows.column(item.name).combine_chunks() for item in column.fields]
        batch[column.name] = column.decode(stored)
    return batch | {"as_stored": rows.column("as_stored").combine_chunks()}


# --- Pruning ----------------------------------------------------------------------------------------------------------

# rows of a market are neighbours in the index by market: in this order a transaction touches a fifth of the pages
DOOMED: Final = """
    CREATE TEMP TABLE doomed AS
    SELECT {table.number} AS number FROM {table.name} WHERE {table.condition} {but_newest} ORDER BY {table.order}
"""
SPARE_USED: Final = "DELETE FROM temp.doomed WHERE number IN (SELECT book_id FROM snapshots WHERE book_id IS NOT NULL)"
DELETE: Final = """
    DELETE FROM {table.name}
    WHERE {table.number} IN (SELECT number FROM temp.doomed WHERE rowid > :done AND rowid <= :done + :most) {but_used}
"""
# a row that came late for its day may refer to a book that went into the lake before
BUT_USED: Final = """
    AND book_id NOT IN (
        SELECT book_id FROM snapshots WHERE timestamp >= :day AND timestamp < :next AND book_id IS NOT NULL
    )
"""
CHECKPOINT: Final = "PRAGMA wal_checkpoint(PASSIVE)"


def prune(path: Path, day: str, bar: tqdm[Any]) -> int:
    """Delete the rows of *day* that are in the lake from the file at *path*, and return how many there were."""
    with reading(path) as connection:
        later, _ = window_of(connection, day)
    archived = Window(day, later.part - 1, {}, later.after)
    with closing(Writer(path)) as writer, ac.storage_errors(path, "write"):
        return sum(prune_table(writer, table, archived, bar) for table in TABLES if table.is_pruned)


def prune_table(writer: Writer, table: Table, archived: Window, bar: tqdm[Any]) -> int:
    """Delete the rows of one table, some thousands at a time, with the file free in between."""
    # SQLite gives the id of the newest row again once it is deleted: a late row would pass for an archived one
    but_newest = f"AND {table.number} < (SELECT max({table.number}) FROM {table.name})" if table.reuses_ids else ""  # noqa: S608
    values = archived.values(table.name)
    temporary = writer.connection  # to change its temporary tables nothing is held
    temporary.execute("DROP TABLE IF EXISTS temp.doomed")
    temporary.execute(DOOMED.format(table=table, but_newest=but_newest), values)
    if table.name == "books":
        temporary.execute(SPARE_USED)
    delete = DELETE.format(table=table, but_used=BUT_USED if table.name == "books" else "")
    (doomed,) = temporary.execute("SELECT coalesce(max(rowid), 0) FROM temp.doomed").fetchone()
    done = deleted = transactions = 0
    most = MAX_DELETED
    while done < doomed:
        deleted += writer.execute(delete, values | {"done": done, "most": most})
        bar.update(min(most, doomed - done))
        done += most
        most = max(MAX_DELETED // 10, min(MAX_DELETED, int(most * HOLD_S / max(writer.last_hold_s, 0.001))))
        transactions += 1
        if transactions % 2 == 0 or done >= doomed:
            writer.execute(CHECKPOINT)
    return deleted


# --- What the command does --------------------------------------------------------------------------------------------


def identity(path: Path, shard: str | None) -> tuple[str, str]:
    """Return the id of the database and its shard, both made once and kept in it.

    Raises:
        ConfigError: the database has another shard than *shard*, and days in the lake under that name.
    """
    with reading(path) as connection:
        known = connection.execute("SELECT database_id, shard FROM lake").fetchone()
        (days,) = connection.execute("SELECT count(*) FROM archived_days").fetchone()
    if known and shard in {None, known[1]}:
        return known[0], known[1]
    if known and days:
        raise ac.ConfigError(f"--shard {shard}: {path} has days in a lake as {known[1]}")
    database_id = known[0] if known else str(uuid.uuid4())
    chosen = shard or database_id[:8]
    with closing(Writer(path)) as writer:
        if known:
            writer.execute("UPDATE lake SET shard = :shard", {"shard": chosen})
        else:
            values = {"id": database_id, "shard": chosen}
            writer.execute("INSERT INTO lake SELECT :id, :shard WHERE NOT EXISTS (SELECT 1 FROM lake)", values)
    return database_id, chosen


def archive_day(path: Path, lake: Lake, owner: tuple[str, str], day: str, bar: tqdm[Any]) -> dict[str, Any] | None:
    """Put the rows of *day* that are not in the lake there, and return the manifest; None if there are none."""
    with ExitStack() as stack:
        connection = stack.enter_context(reading(path))
        window, counts = window_of(connection, day)
        if not any(counts.values()):
            return None
        staging = lake.staging(path, owner[1])
        with lake.naming("write"):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        part = Part(lake, staging, window, owner)
        bar.set_description(f"{day} to the lake")
        bar.reset(sum(counts.values()))
        manifest = lake.manifest(part.manifest_name)
        if manifest:
            part.adopt(connection, manifest)
        else:
            manifest = part.write(connection, bar)
    with closing(Writer(path)) as writer:
        values = part.window.upto | {
            "day": day,
            "shard": owner[1],
            "part": window.part,
            "now": ac.sql_time(datetime.now(UTC)),
        }
        writer.connection.execute("PRAGMA synchronous = FULL")
        writer.execute(NOTE, values)
    return manifest


def finished_days(path: Path, keep: int) -> list[str]:
    """Return the days of which the file has rows and which are to be archived; those with an open run are named."""
    # a post's market may still be found an hour after it was stored
    today = (datetime.now(UTC) - timedelta(hours=2)).date()
    with reading(path) as connection:
        days = days_before(connection, (today - timedelta(days=keep)).isoformat())
        ready = []
        for day in days:
            following = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
            run = connection.execute(OPEN_RUNS, (following,)).fetchone()
            if run:
                say(f"{day}: not archived: run {run[0]} is not finished", sys.stderr)
                break
            ready.append(day)
    return ready


def archive(path: Path, lake: Lake, options: argparse.Namespace, bar: tqdm[Any]) -> None:
    """Archive and prune all days that are due, the oldest first."""
    owner = identity(path, options.shard)
    lake.claim(owner[1], owner[0])
    for day in finished_days(path, options.keep):
        started = time.monotonic()
        manifests = []
        while manifest := archive_day(path, lake, owner, day, bar):
            manifests.append(manifest)
        rows = sum(item["rows"] for manifest in manifests for item in manifest["tables"].values())
        size = sum(item["bytes"] for manifest in manifests for item in manifest["tables"].values())
        deleted = 0
        if not options.no_prune:
            bar.set_description(f"{day} from the file")
            bar.reset(rows)
            deleted = prune(path, day, bar)
        if manifests or deleted:
            took = time.monotonic() - started
            say(f"{day}: {rows:,} rows in {size / 1e6:.1f} MB to the lake, {deleted:,} rows deleted, {took:.1f} s")


def announce(path: Path, options: argparse.Namespace) -> None:
    """Say what would be archived."""
    days = finished_days(path, options.keep)
    with reading(path) as connection:
        for day in days:
            window, counts = window_of(connection, day)
            if any(counts.values()):
                found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
                say(f"{day}: part {window.part}: {found}")


def faults(lake: Lake, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the files of *manifest*."""
    for table in manifest["tables"].values():
        name = table["file"]
        try:
            if lake.sha256(name) != table["sha256"]:
                yield f"{lake.address}/{name}: was changed"
            elif lake.rows(name) != table["rows"]:
                yield f"{lake.address}/{name}: does not have {table['rows']} rows"
        except LostError as error:
            yield str(error)


def check(lake: Lake) -> None:
    """Read every file of the lake and compare it with its manifest.

    Raises:
        LakeError: some are not as their manifests say; each is named on stderr.
    """
    manifests = files = rows = bad = 0
    for _, manifest in lake.manifests():
        manifests += 1
        for problem in faults(lake, manifest):
            say(problem, sys.stderr)
            bad += 1
        files += len(manifest["tables"])
        rows += sum(table["rows"] for table in manifest["tables"].values())
    if bad:
        raise LakeError(f"{lake.address}: {bad} of {files} files are not as they were written")
    say(f"{lake.address}: {manifests} manifests, {files} files, {rows:,} rows: all as they were written")


def restore(path: Path, lake: Lake, day: str, shard: str | None) -> None:
    """Make a new file at *path* with the rows of *day*, which every reader of a collector's file opens."""
    if path.exists():
        raise ac.StorageError(f"{path}: exists; --restore makes a new file")
    found = [manifest for _, manifest in lake.manifests(day) if shard in {None, manifest["shard"]}]
    shards = sorted({manifest["shard"] for manifest in found})
    if len(shards) != 1:
        what = f"choose one with --shard: {', '.join(shards)}" if shards else "is not there"
        raise LakeError(f"{lake.address}: {day} {what}")
    unfinished = path.with_name(f"{path.name}.unfinished")
    copy = path.with_name(f"{path.name}.parquet")
    with ExitStack() as stack:
        for used in (
            unfinished,
            copy,
            *(unfinished.with_name(unfinished.name + end) for end in ("-wal", "-shm", ".lock")),
        ):
            used.unlink(missing_ok=True)
            stack.callback(used.unlink, missing_ok=True)
        asyncio.run(_make_database(unfinished))
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            for manifest in found:
                for table, described in manifest["tables"].items():
                    _restore_table(connection, lake, table, described, copy)
            connection.execute(FILL_SEEN)
            connection.execute("COMMIT")
        unfinished.rename(path)


FILL_SEEN: Final = (
    "INSERT INTO seen (market_id, snapshot_id) SELECT market_id, max(id) FROM snapshots GROUP BY market_id"
)


async def _make_database(path: Path) -> None:
    async with ac.Database.open(path):
        pass


def _restore_table(
    connection: sqlite3.Connection, lake: Lake, table: str, described: Mapping[str, Any], copy: Path
) -> None:
    """Insert the rows of one file, which is fetched to *copy*; a market that is there already is replaced."""
    if lake.sha256(described["file"], copy) != described["sha256"]:
        raise LakeError(f"{lake.address}/{described['file']}: was changed")
    with pq.ParquetFile(copy) as parquet:
        there = set(parquet.schema_arrow.names)
        columns = [column for column in columns_of(connection, table) if column.fields[0].name in there]
        for number in range(parquet.num_row_groups):
            batch = decoded(parquet.read_row_group(number), columns)
            odd = batch.pop("as_stored").to_pylist()
            for row, text in zip(zip(*(cells.to_pylist() for cells in batch.values()), strict=True), odd, strict=True):
                values = dict(zip(batch, row, strict=True)) | (from_json(text) if text else {})
                connection.execute(_insert(table, values), [_bindable(value) for value in values.values()])


def _insert(table: str, values: Mapping[str, object]) -> str:
    """Return the statement that inserts *values*; texts that are no UTF-8 are bound as bytes."""
    places = ("?" if _is_unicode(value) else "CAST(? AS TEXT)" for value in values.values())
    return f"INSERT OR REPLACE INTO {table} ({', '.join(values)}) VALUES ({', '.join(places)})"  # noqa: S608


def _bindable(value: object) -> object:
    return value if _is_unicode(value) else str(value).encode(errors="surrogateescape")


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
    parser.add_argument("--db", metavar="PATH", help="database file (POLYMARKET_DB, else polymarket_data.db)")
    parser.add_argument(
        "--keep",
        metavar="DAYS",
        type=argument(WHOLE.fullmatch, "a whole number of days from 0", int),
        default=7,
        help="finished days that stay in the file (7)",
    )
    parser.add_argument(
        "--shard",
        metavar="NAME",
        type=argument(SHARD.fullmatch, "up to 64 letters, digits, - and _"),
        help="name of this database in the lake; made once and kept in the file",
    )
    parser.add_argument("--no-prune", action="store_true", help="leave archived rows in the file")
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
    path = ac.database_path(options.db or ac.DEFAULT_DB_PATH, os.environ)
    if options.check:
        check(Lake(options.lake, must_exist=True))
    elif options.restore:
        restore(path, Lake(options.lake, must_exist=True), options.restore, options.shard)
    elif options.dry_run:
        announce(path, options)
    else:
        bar: tqdm[Any] = tqdm(unit=" rows", unit_scale=True, disable=not sys.stderr.isatty(), leave=False)
        with bar, ac.locked(path.with_name(f"{path.name}.archiving")):  # one archive of a file at a time
            archive(path, Lake(options.lake), options, bar)
            if options.shrink:
                with closing(Writer(path)) as writer:
                    writer.execute("VACUUM")


def main(argv: Sequence[str] | None = None) -> int:
    """Archive, and return the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.restore and not options.db:
        parser.error("--restore needs --db NEW.db")
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
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    gc.disable()  # rows are no cycles, and to look for some among millions takes as long as to read them
    sys.exit(main())
