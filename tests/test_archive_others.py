"""covers: an archive that is not alone: other lakes, other names, copies and backups of its file, and version 0.2."""

# ruff: noqa: S608  the statements of tests are their own

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import rows
from killable import InProcess
from lakes import DAY, OF_THE_ARCHIVE, archive, change, documented, everything, lake_files, script, view
from older_schemas import LANDED, script_of

import async_collector as ac

pytestmark = OF_THE_ARCHIVE
KEEP_ONE = str((datetime.now(UTC).date() - datetime(2026, 11, 1, tzinfo=UTC).date()).days - 1)
ONE_LATE_ROW = (
    "INSERT INTO snapshots (market_id, timestamp, price_yes) SELECT market_id, '2026-11-01 23:59:58', 0.5 FROM markets"
)


def count(database: Path, table: str = "snapshots") -> int:
    number: int = rows(database, f"SELECT count(*) AS n FROM {table}")[0]["n"]
    return number


def copy_of(database: Path, name: str) -> Path:
    """Return a copy of a file that nobody has open."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(shutil.copy(database, database.with_name(name)))


# --- another lake


def test_a_lake_that_lacks_what_the_file_has_noted_gets_nothing_and_costs_nothing(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A try into one lake, and then the real one; a disk that is not mounted; a lake that lost a manifest."""
    before = everything(sample)
    assert archive(tmp_path / "try", "--db", sample, "--no-prune") == 0
    (tmp_path / "empty").mkdir()
    for lake in ("none", "empty"):
        assert archive(tmp_path / lake, "--db", sample) == 74
    assert "is not the lake of" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    shutil.copytree(tmp_path / "try", tmp_path / "half")
    next((tmp_path / "half/_manifest/date=2026-11-02").iterdir()).unlink()
    assert archive(tmp_path / "half", "--db", sample) == 74
    assert everything(sample) == before
    shutil.rmtree(tmp_path / "try")
    expected = view(tmp_path, copy_without_notes(sample))
    assert archive(tmp_path / "real", "--db", sample, "--forget-lake") == 0
    assert count(sample) == 0
    assert view(tmp_path / "real", sample) == expected
    assert archive(tmp_path / "other", "--db", sample, "--forget-lake") == 74
    assert "cannot forget its lake" in capsys.readouterr().err
    assert archive(tmp_path / "real", "--check", "--db", sample) == 0
    assert archive(tmp_path / "real", "--check", "--db", tmp_path / "none.db") == 74


def copy_without_notes(database: Path) -> Path:
    copy = copy_of(database, "without.db")
    change(copy, "DELETE FROM archived_days")
    return copy


def test_a_copied_or_moved_lake_is_the_same(sample: Path, tmp_path: Path) -> None:
    expected = view(tmp_path, sample)
    assert archive(tmp_path / "lake", "--db", sample, "--no-prune") == 0
    shutil.copytree(tmp_path / "lake", tmp_path / "copy")
    shutil.rmtree(tmp_path / "lake")
    assert archive(tmp_path / "copy", "--db", sample) == 0
    assert count(sample) == 0
    assert view(tmp_path / "copy", sample) == expected


@pytest.mark.parametrize("what", ["lost", "changed", "another manifest"])
def test_nothing_of_a_day_is_deleted_that_the_lake_cannot_show(
    sample: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--no-prune") == 0
    (file,) = lake_files(lake, "books")
    if what == "lost":
        file.unlink()
    elif what == "changed":
        file.write_bytes(bytes(reversed(file.read_bytes())))
    else:
        (manifest,) = (lake / f"_manifest/date={DAY}").iterdir()
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"upto": {}}))
    before = rows(sample, "SELECT * FROM snapshots WHERE timestamp < '2026-11-02'")
    for _ in range(2):
        assert archive(lake, "--db", sample) == 74
        assert "nothing of the day is deleted" in capsys.readouterr().err
        assert rows(sample, "SELECT * FROM snapshots") == before
    assert rows(sample, "SELECT day FROM archived_days WHERE pruned_at IS NULL") == [{"day": DAY}]


# --- another name


def test_another_name_is_for_what_is_not_in_the_lake(sample: Path, tmp_path: Path) -> None:
    """Also where the first archiving has ended between the manifest and the file's note."""
    lake = tmp_path / "lake"
    expected = view(tmp_path, sample)
    assert archive(lake, "--db", sample, "--no-prune", "--shard", "first", "--keep", KEEP_ONE) == 0
    change(sample, "DELETE FROM archived_days")
    assert archive(lake, "--db", sample, "--shard", "second") == 0
    assert rows(sample, "SELECT day, shard FROM archived_days ORDER BY day") == [
        {"day": DAY, "shard": "first"},
        {"day": "2026-11-02", "shard": "second"},
    ]
    assert view(lake, sample) == expected
    change(sample, ONE_LATE_ROW)
    late = view(lake, sample)
    assert late["snapshots"][0] == expected["snapshots"][0] + 40
    assert archive(lake, "--db", sample) == 0
    assert rows(sample, "SELECT shard, parts FROM archived_days WHERE day = ? ORDER BY shard", DAY) == [
        {"shard": "first", "parts": 1},
        {"shard": "second", "parts": 1},
    ]
    assert view(lake, sample) == late
    assert count(sample) == 0


# --- copies and backups


@pytest.mark.parametrize("is_noted", [False, True], ids=["before the archiving", "after it"])
def test_a_file_from_a_backup_goes_on_under_a_name_of_its_own(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_noted: bool
) -> None:
    """What it has and the lake has is in the lake; ids that the lake has of other rows are refused."""
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--no-prune", "--shard", "home", "--keep", KEEP_ONE) == 0
    if not is_noted:
        change(sample, "DELETE FROM archived_days")
    backup = copy_of(sample, "backup.db")
    change(backup, "DELETE FROM snapshots WHERE timestamp > '2026-11-01 12:00:00'")
    change(backup, "UPDATE sqlite_sequence SET seq = (SELECT max(id) FROM snapshots) WHERE name = 'snapshots'")
    for table in ("books", "hype_signals"):
        change(backup, f"DELETE FROM {table} WHERE timestamp > '2026-11-01 12:00:00'")
    change(backup, "DELETE FROM runs WHERE started_at > '2026-11-01 12:00:00'")
    change(backup, "DELETE FROM tweets", "DELETE FROM failures")
    assert archive(lake, "--db", sample) == 0
    change(backup, ONE_LATE_ROW.replace("2026-11-01", "2026-11-05"))
    collected = rows(backup, "SELECT * FROM snapshots WHERE timestamp > '2026-11-05'")
    for _ in range(2):
        assert archive(lake, "--db", backup) == 74
        errors = capsys.readouterr().err
        assert "2026-11-05: " in errors
        assert "has ids of these snapshots" in errors
        assert "--shard NAME" in errors
        assert rows(backup, "SELECT * FROM snapshots") == collected
    assert archive(lake, "--db", backup, "--shard", "again") == 0
    assert count(backup) == 0
    assert archive(lake, "--check", "--db", backup) == 0
    assert archive(lake, "--check", "--db", sample) == 0
    assert [row["shard"] for row in rows(backup, "SELECT shard FROM archived_days ORDER BY day")] == ["home", "again"]


def test_a_copy_that_differs_keeps_its_day(sample: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    change(sample, "INSERT INTO failures (run_id, stage, reason) SELECT max(run_id), 'list', 'one' FROM runs")
    assert archive(lake, "--db", sample, "--keep", KEEP_ONE) == 0
    copy = copy_of(sample, "copy.db")
    change(copy, "UPDATE failures SET reason = 'another' WHERE reason = 'one'")
    expected = view(lake, copy)
    assert archive(lake, "--db", sample) == 0
    files = sorted(lake.rglob("*.parquet"))
    for _ in range(2):
        assert archive(lake, "--db", copy) == 74
    assert view(lake, copy) == expected
    assert sorted(lake.rglob("*.parquet")) == files, "nothing of the copy is left there"


def test_a_copy_that_is_behind_counts_as_archived_what_it_has(sample: Path, tmp_path: Path) -> None:
    """What it collects later has ids that the lake has given to rows of the other: they are no rows of its own."""
    lake = tmp_path / "lake"
    copy = copy_of(sample, "copy.db")
    change(sample, ONE_LATE_ROW)
    assert archive(lake, "--db", sample, "--no-prune", "--shard", "home") == 0
    assert archive(lake, "--db", copy, "--shard", "home") == 0
    change(copy, ONE_LATE_ROW.replace("0.5", "0.123"))
    late = view(lake, copy)
    for _ in range(2):
        assert archive(lake, "--db", copy) == 74
        assert count(copy) == 40
        assert view(lake, copy) == late
    assert archive(lake, "--db", copy, "--shard", "again") == 0
    assert count(copy) == 0
    assert view(lake, copy)["snapshots"] == late["snapshots"]


@pytest.mark.parametrize("is_equal", [True, False])
@pytest.mark.parametrize("call", ["decision", "put", "before create", "create"])
def test_of_two_copies_at_one_moment_one_manifest_decides(
    sample: Path, tmp_path: Path, call: str, *, is_equal: bool
) -> None:
    """The other one archives when this one has looked, has put a file, is about to put its manifest, or has put it."""
    lake = tmp_path / "lake"
    copy = copy_of(sample, "copy.db")
    if not is_equal:
        change(copy, "UPDATE snapshots SET price_yes = 0.123 WHERE timestamp < '2026-11-02'")
    expected = {path: view(tmp_path, path) for path in (sample, copy)}
    codes = []

    def archive_copy() -> None:
        codes.append(archive(lake, "--db", copy, "--shard", "home"))

    codes.append(
        InProcess(script()).run(lake, "--db", sample, "--shard", "home", what="stop", call=call, meanwhile=archive_copy)
    )
    assert sorted(codes) in ([[0, 0], [0, 74]] if is_equal else [[0, 74]])  # what it was writing may be removed
    for path, before in expected.items():
        again = archive(lake, "--db", path)
        assert again == 0 or not is_equal
        assert view(lake, path) == before
        assert count(path) == (0 if again == 0 else 40 * 12)
    assert archive(lake, "--check", "--db", sample) == 0
    assert archive(lake, "--check", "--db", copy) == 0


@pytest.mark.parametrize("lake", ["folder", "s3://lake"])
def test_a_put_that_is_sent_again_meets_its_own_success(
    sample: Path, tmp_path: Path, lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an answer that was lost on its way."""
    expected = view(tmp_path, sample)
    real = script()["Lake"].create

    def twice(*args: Any) -> None:  # noqa: ANN401
        real(*args)
        real(*args)

    monkeypatch.setattr(script()["Lake"], "create", twice)
    address = lake if ":" in lake else tmp_path / "lake"
    assert InProcess(script()).run(address, "--db", sample, buckets=str(tmp_path)) == 0
    assert view(tmp_path / "lake", sample) == expected
    assert count(sample) == 0


def test_of_equal_rows_without_ids_there_are_as_many_in_the_lake(sample: Path, tmp_path: Path) -> None:
    """A failure has no id there: where the file has it twice and the lake once, the lake has other rows."""
    one = "INSERT INTO failures (rowid, run_id, stage, reason) VALUES ({}, 1, 'list', 'again')"
    change(sample, "DELETE FROM failures", one.format(5))
    assert archive(tmp_path / "lake", "--db", sample, "--no-prune") == 0
    change(sample, one.format(4), "DELETE FROM archived_days")
    assert archive(tmp_path / "lake", "--db", sample) == 74
    assert count(sample, "failures") == 2


@pytest.mark.parametrize("call", ["create", "manifest", "has_etag"])
def test_a_file_that_takes_the_place_of_another_meanwhile_keeps_its_rows(
    sample: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backup is put back while the archive writes, reads back, or asks the lake: its rows are others."""
    backup = copy_of(sample, "backup.db")
    change(backup, "UPDATE snapshots SET price_yes = 0.123", "UPDATE books SET bids = '[[0.1,1]]'")
    before = everything(backup)
    real = getattr(script()["Lake"], call)

    def and_replace(*args: Any) -> Any:  # noqa: ANN401
        if backup.exists():
            backup.replace(sample)
            for end in ("-wal", "-shm"):
                sample.with_name(sample.name + end).unlink(missing_ok=True)
        return real(*args)

    monkeypatch.setattr(script()["Lake"], call, and_replace)
    assert archive(tmp_path / "lake", "--db", sample) == 74
    assert "was replaced meanwhile" in capsys.readouterr().err
    assert everything(sample) == before
    assert rows(sample, "SELECT * FROM archived_days") == []
    assert archive(tmp_path / "lake", "--db", sample, "--shard", "again") == 0
    assert count(sample) == 0


# --- restored files


def test_a_restored_day_knows_where_it_is(sample: Path, tmp_path: Path) -> None:
    """The disk is lost, and the newest day is fetched into its place: collecting and archiving go on."""
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--shard", "home") == 0
    new = tmp_path / "new.db"
    assert archive(lake, "--restore", "2026-11-02", "--db", new) == 0
    assert rows(new, "SELECT * FROM lake") == []
    expected = view(lake, new)
    assert expected["snapshots"][0] == 40 * 12
    change(new, ONE_LATE_ROW.replace("2026-11-01", "2026-11-02"))
    late = view(lake, new)
    assert late["snapshots"][0] == 40 * 13
    assert archive(lake, "--db", new) == 0
    assert count(new) == 0
    assert view(lake, new) == late
    assert archive(lake, "--check", "--db", new) == 0


def test_what_comes_late_into_a_restored_day_is_not_taken_for_archived(sample: Path, tmp_path: Path) -> None:
    """Posts and failures have no id in the lake: in the restored file theirs begin at 1 again."""
    lake, new = tmp_path / "lake", tmp_path / "new.db"
    change(sample, "UPDATE failures SET rowid = rowid + 1000", "UPDATE tweets SET rowid = rowid + 1000")
    assert archive(lake, "--db", sample) == 0
    assert archive(lake, "--restore", DAY, "--db", new) == 0
    change(
        new,
        "INSERT INTO failures (run_id, stage, reason) SELECT max(run_id), 'list', 'late' FROM runs",
        f"INSERT INTO tweets (tweet_id, created_at) VALUES ('late', '{DAY} 23:59:59')",
        f"INSERT INTO tweets (tweet_id, created_at) VALUES ('later', '{DAY} 23:59:59')",
    )
    late = view(lake, new)
    found = {table: late[table][0] for table in ("failures", "tweets")}
    assert found == {table: count(new, table) for table in found}
    assert archive(lake, "--db", new) == 0
    assert count(new, "tweets") == 1  # the newest one
    assert view(lake, new) == late
    assert archive(lake, "--check", "--db", new) == 0


def test_restore_takes_no_name_that_is_taken_and_no_log_of_another_file(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, new = tmp_path / "lake", tmp_path / "new.db"
    assert archive(lake, "--db", sample) == 0
    for name in ("new.db", "new.db-wal", "new.db-shm", "new.db-journal"):
        (tmp_path / name).write_bytes(b"another")
        assert archive(lake, "--restore", DAY, "--db", new) == 74
        assert f"{name}: exists" in capsys.readouterr().err
        (tmp_path / name).unlink()
    assert archive(lake, "--restore", DAY, "--db", new) == 0
    assert sorted(path.name for path in tmp_path.glob("new*")) == ["new.db"]


def test_a_day_without_its_first_part_is_refused(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--shard", "home") == 0
    change(sample, ONE_LATE_ROW)
    assert archive(lake, "--db", sample) == 0
    (lake / f"_manifest/date={DAY}/home.json").unlink()
    assert archive(lake, "--check") == 74
    assert "home.2.json: the part before it is lost" in capsys.readouterr().err
    assert archive(lake, "--check", "--db", sample) == 74
    assert f"_manifest/date={DAY}/home.json: it is lost" in capsys.readouterr().err
    assert archive(lake, "--restore", DAY, "--db", tmp_path / "new.db") == 74
    assert "lacks the manifest of a part" in capsys.readouterr().err


def test_a_file_whose_manifest_is_lost_for_good_goes_on(sample: Path, tmp_path: Path) -> None:
    """As docs/lake.md says: the day's files are moved away, and the day is forgotten."""
    lake, kept = tmp_path / "lake", tmp_path / "kept"
    assert archive(lake, "--db", sample, "--shard", "home") == 0
    expected = view(lake, sample)
    kept.mkdir()
    (lake / f"_manifest/date={DAY}/home.json").unlink()
    assert archive(lake, "--db", sample) == 74
    for path in lake.glob(f"*/date={DAY}/home-*.parquet"):
        path.rename(kept / f"{path.parent.parent.name}.parquet")
    change(sample, f"DELETE FROM archived_days WHERE day = '{DAY}'", ONE_LATE_ROW)
    assert archive(lake, "--db", sample) == 0
    assert archive(lake, "--check", "--db", sample) == 0
    assert view(lake, sample)["snapshots"][0] == expected["snapshots"][0] - 40 * 12 + 40
    assert len(list(kept.iterdir())) > 5


def test_columns_of_other_programs_come_back(sample: Path, tmp_path: Path) -> None:
    """Also those whose names the lake uses itself, and those that exist in no other file."""
    change(
        sample,
        "ALTER TABLE snapshots ADD COLUMN shard TEXT",
        "ALTER TABLE snapshots ADD COLUMN stars INTEGER",
        'ALTER TABLE snapshots ADD COLUMN "my note""s" TEXT',
        "ALTER TABLE books ADD COLUMN bid_prices TEXT",
        """UPDATE snapshots SET shard = 'mine', stars = id, "my note""s" = x'00' WHERE id % 2""",
        "UPDATE books SET bid_prices = '[1]' WHERE book_id < 9",
    )
    names = 'SELECT id, shard, stars, "my note""s" FROM snapshots WHERE timestamp < \'2026-11-02\' ORDER BY id'
    books = "SELECT book_id, bids, bid_prices FROM books WHERE timestamp < '2026-11-02' ORDER BY book_id"
    before = rows(sample, names), rows(sample, books)
    assert archive(tmp_path / "lake", "--db", sample) == 0
    new = tmp_path / "new.db"
    assert archive(tmp_path / "lake", "--restore", DAY, "--db", new) == 0
    assert (rows(new, names), rows(new, books)) == before


# --- what another program, a power cut or a sync program leaves in a folder


def test_a_manifest_that_was_cut_off_counts_for_nothing_until_its_day_is_noted(sample: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    expected = view(tmp_path, sample)
    assert archive(lake, "--db", sample, "--no-prune", "--shard", "home") == 0
    manifest = lake / f"_manifest/date={DAY}/home.json"
    manifest.write_bytes(b"")
    assert archive(lake, "--db", sample) == 74
    assert count(sample) == 40 * 12, "the other day has gone"
    change(sample, f"DELETE FROM archived_days WHERE day = '{DAY}'")
    assert archive(lake, "--db", sample) == 0
    assert view(lake, sample) == expected
    assert archive(lake, "--check", "--db", sample) == 0


@pytest.mark.parametrize("lacks", ["tables", "upto", "database", "sha256"])
def test_a_manifest_that_lacks_something_keeps_its_day(
    sample: Path, tmp_path: Path, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--no-prune", "--shard", "home") == 0
    path = lake / f"_manifest/date={DAY}/home.json"
    manifest = json.loads(path.read_text())
    del (manifest["tables"]["books"] if lacks == "sha256" else manifest)[lacks]
    path.write_text(json.dumps(manifest))
    for args in (("--db", sample), ("--check",), ("--restore", DAY, "--db", tmp_path / "new.db")):
        assert archive(lake, *args) == 74
        assert f"home.json: is damaged: KeyError('{lacks}')" in capsys.readouterr().err
    assert count(sample) == 40 * 12, "the other day has gone"
    change(sample, f"DELETE FROM archived_days WHERE day = '{DAY}'")
    assert archive(lake, "--db", sample) == 74
    assert count(sample) == 40 * 12


def test_what_attempts_leave_is_removed_and_what_others_leave_is_named(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "lake"
    folder = lake / f"books/date={DAY}"
    folder.mkdir(parents=True)
    left = [folder / f"home{end}.parquet" for end in ("", "-0123456789abcdef")]
    staging = lake / "_staging" / f"{DAY}-home-0123456789abcdef"
    for path in (*left, staging / "books.parquet", lake / "_staging/home/books.parquet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")
    others = [folder / name for name in ("home.2.parquet", "north.parquet", "home (conflicted copy).parquet")]
    for path in others:
        path.write_bytes(b"of others")
    assert archive(lake, "--db", sample, "--shard", "home") == 0
    assert not any(path.exists() for path in (*left, staging, lake / "_staging/home"))
    assert all(path.exists() for path in others)
    assert archive(lake, "--check") == 74
    errors = capsys.readouterr().err
    assert all(f"{path.name}: no manifest names it" in errors for path in others)
    (lake / f"_manifest/date={DAY}/home (1).json").write_text("{}")
    assert archive(lake, "--db", sample) == 0


def test_a_link_is_no_second_file(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(sample)
    with ac.locked(sample.with_name(f"{sample.name}.archiving")):
        assert archive(tmp_path / "lake", "--db", tmp_path / "link.db") == 75
    assert archive(tmp_path / "lake", "--db", tmp_path / "link.db") == 0
    assert count(sample) == 0


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_a_folder_without_hard_links_or_without_synced_names_is_one(
    sample: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = view(tmp_path, sample)
    real = os.fsync

    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, call, {"link": link, "fsync": fsync}[call])
    assert archive(tmp_path / "lake", "--db", sample) == 0
    assert view(tmp_path / "lake", sample) == expected
    new = tmp_path / "new.db"
    assert archive(tmp_path / "lake", "--restore", DAY, "--db", new) == 0
    assert count(new) == 40 * 12


# --- what is in a day


def test_each_market_is_once_in_a_day_and_its_outcome_on_the_day_on_which_it_came(sample: Path, tmp_path: Path) -> None:
    import polars as pl  # noqa: PLC0415

    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample) == 0
    change(
        sample,
        "INSERT INTO markets (market_id, question) VALUES ('new', 'late')",
        ONE_LATE_ROW,
        """UPDATE markets SET resolved = 1, resolution_outcome = 'Yes', outcome_stored_at = '2026-11-06 10:00:00'
           WHERE market_id = '900007'""",
        "INSERT INTO runs (started_at, status) VALUES ('2026-11-06 09:59:00', 'complete')",
    )
    assert archive(lake, "--db", sample) == 0
    markets = pl.read_parquet(f"{lake}/markets/*/*.parquet", hive_partitioning=True)
    assert len(markets) == len(markets.unique(["date", "shard", "market_id"])) == 40 + 1 + 40 + 1
    day = datetime(2026, 11, 6, tzinfo=UTC).date()
    outcome = markets.filter(pl.col("resolution_outcome") == "Yes", pl.col("date") == day)
    assert outcome["market_id"].to_list() == ["900007"]


# --- version 0.2


def as_version_0_2(sample: Path, lake: Path) -> None:
    """Make of an archived file and its lake what version 0.2 has left: other names, notes and manifests."""
    for path in lake.glob("_manifest/*/*.json"):
        manifest = json.loads(path.read_text())
        for described in manifest["tables"].values():
            old = lake / described["file"]
            described["file"] = str(old.with_name(f"{path.stem}.parquet").relative_to(lake))
            old.rename(lake / described["file"])
            del described["etag"]
        del manifest["attempt"]
        path.write_text(json.dumps(manifest | {"format": 1, "schema": 4}, indent=1))
    (lake / "_shards").mkdir()
    (lake / "_shards/home.json").write_text(json.dumps({"format": 1, "schema": 4, "database": "a UUID"}))
    (before,) = [landed for landed in LANDED if landed.name == "0.2.0"]
    noted = rows(sample, "SELECT * FROM archived_days")
    change(sample, "DROP TABLE archived_days")
    (table,) = [part for part in script_of(before).split(";") if "CREATE TABLE archived_days" in part]
    change(sample, table, "PRAGMA user_version = 4")
    for row in noted:
        columns = ("day", "archived_at", "parts", "snapshots", "books", "runs", "failures", "tweets", "hype_signals")
        values = ", ".join(repr(row[column]) for column in columns)
        change(sample, f"INSERT INTO archived_days ({', '.join(columns)}) VALUES ({values})")


async def upgraded(path: Path) -> None:
    async with ac.Database.open(path):
        pass


@pytest.mark.parametrize("is_pruned", [False, True])
async def test_a_lake_and_a_file_of_version_0_2_go_on(sample: Path, tmp_path: Path, *, is_pruned: bool) -> None:
    lake = tmp_path / "lake"
    expected = view(tmp_path, sample)
    pruning = () if is_pruned else ("--no-prune",)
    assert archive(lake, "--db", sample, "--shard", "home", "--keep", KEEP_ONE, *pruning) == 0
    as_version_0_2(sample, lake)
    await upgraded(sample)
    assert view(lake, sample) == expected
    copy = copy_of(sample, "copy.db")
    assert archive(tmp_path / "other", "--db", copy, "--forget-lake", "--no-prune") == (74 if is_pruned else 0)
    assert archive(lake, "--db", sample) == 0
    assert view(lake, sample) == expected
    assert count(sample) == 0
    change(sample, ONE_LATE_ROW)
    assert archive(lake, "--db", sample) == 0
    assert view(lake, sample)["snapshots"][0] == expected["snapshots"][0] + 40
    assert archive(lake, "--check", "--db", sample) == 0
    assert archive(lake, "--restore", DAY, "--db", tmp_path / "new.db") == 0
    assert count(tmp_path / "new.db") == 40 * 13


def test_a_name_of_version_0_2_that_looks_like_an_attempt_is_left_alone(sample: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    other = copy_of(sample, "other.db")
    assert archive(lake, "--db", other, "--shard", "home-0123456789abcdef") == 0
    as_version_0_2(other, lake)
    assert archive(lake, "--db", sample, "--shard", "home") == 0
    assert archive(lake, "--check") == 0


def test_an_interrupt_says_what_is_in_the_lake(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert archive(tmp_path / "lake", "--db", sample, "--keep", KEEP_ONE) == 0

    def interrupted(*_: Any) -> None:  # noqa: ANN401
        raise KeyboardInterrupt

    monkeypatch.setattr(script()["Lake"], "create", interrupted)
    assert archive(tmp_path / "lake", "--db", sample) == 130
    assert f"interrupted; 1 days up to {DAY} are in the lake" in capsys.readouterr().err
    assert documented()["finished_files"](str(tmp_path / "lake"), "books")


async def test_a_file_that_another_program_holds_is_busy(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ac, "BUSY_TIMEOUT_S", 0.1)
    with contextlib.closing(sqlite3.connect(sample, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert archive(tmp_path / "lake", "--db", sample) == 75
    assert archive(tmp_path / "lake", "--db", sample) == 0
