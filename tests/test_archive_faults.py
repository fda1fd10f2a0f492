"""covers: what the archive refuses, and what a full disk, a changed lake or a missing package costs: no row."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import rows
from lakes import COMMAND, DAY, OF_THE_ARCHIVE, archive, change, everything, lake_files, script
from sample_database import fill

import async_collector as ac

pytestmark = OF_THE_ARCHIVE


def test_check_names_what_was_changed_or_lost(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = tmp_path / "lake"
    archive(lake, "--db", sample, "--shard", "north")
    (changed,), (lost,) = lake_files(lake, "books"), lake_files(lake, "runs", "2026-11-02")
    there = len(list(lake.glob("*/date=*/*.parquet")))
    content = bytearray(changed.read_bytes())
    content[100] ^= 1
    changed.write_bytes(content)
    lost.unlink()
    assert archive(lake, "--check") == 74
    errors = capsys.readouterr().err
    assert f"{changed}: was changed" in errors
    assert f"cannot read {lost.relative_to(lake)}: it is lost" in errors
    assert f"2 of {there} files" in errors
    assert archive(lake, "--restore", DAY, "--db", tmp_path / "new.db") == 74
    assert not (tmp_path / "new.db").exists()


def test_a_lake_that_cannot_be_is_said_and_costs_nothing(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(sample)
    (tmp_path / "file").write_text("")
    (tmp_path / "text.db").write_text("no database" * 1_000)
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (74, "is no folder", (tmp_path / "file", "--db", sample)),
        (74, "cannot open", (tmp_path / "file" / "lake", "--db", sample)),
        (74, "there is no file", (tmp_path / "lake", "--db", tmp_path / "none.db")),
        (74, "cannot read", (tmp_path / "lake", "--db", tmp_path / "text.db")),
        (78, "LAKE: must be", ("ftp://host/lake", "--db", sample)),
        *(
            (78, "LAKE: must be", (lake, "--db", sample))
            for lake in ("", " ", "s3:", "s3://", "s3:/bucket/lake", "gs://")
        ),
        (78, "LAKE: must be", ("s3://key:secret@bucket/lake", "--db", sample)),
        (74, "there is no such folder", (tmp_path / "none", "--check")),
        (74, "no manifest is there", (tmp_path, "--check")),
        (74, "is not there", (tmp_path, "--restore", DAY, "--db", tmp_path / "new.db")),
    ]
    for code, text, args in cases:
        assert (archive(*args), args) == (code, args)
        error = capsys.readouterr().err
        assert text in error
        assert "secret" not in error
        assert error.count("\n") == 1
    assert everything(sample) == before
    assert rows(sample, "SELECT * FROM archived_days") == []


def test_a_disk_that_fills_deletes_nothing(tmp_path: Path) -> None:
    sample = tmp_path / "x.db"
    fill(sample, markets=400, days=1, runs_per_day=6)
    before = everything(sample)
    limited = f"""
import resource, runpy, signal, sys
sys.dont_write_bytecode = True  # half of it would stay
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.argv = sys.argv[1:]
runpy.run_path({COMMAND!r}, run_name="__main__")
"""
    args = [sys.executable, "-c", limited, COMMAND, str(tmp_path / "lake"), "--db", str(sample)]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(sample) == before
    assert not list((tmp_path / "lake").glob("_manifest/**/*.json"))
    assert archive(tmp_path / "lake", "--db", sample) == 0


def test_other_versions_are_refused(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = tmp_path / "lake"
    change(sample, "PRAGMA user_version = 3")
    assert archive(lake, "--db", sample) == 74
    assert "has schema 3" in capsys.readouterr().err
    change(sample, f"PRAGMA user_version = {ac.SCHEMA_VERSION}")
    assert archive(lake, "--db", sample, "--no-prune") == 0
    for path in lake.glob("_manifest/*/*.json"):
        path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    change(sample, "DELETE FROM archived_days")
    before = everything(sample)
    for args in (("--db", str(sample)), ("--check",), ("--restore", DAY, "--db", str(tmp_path / "new.db"))):
        capsys.readouterr()
        assert archive(lake, *args) == 74
        assert "was written by a newer version" in capsys.readouterr().err
    assert everything(sample) == before


def test_a_day_that_the_lake_has_otherwise_is_not_deleted(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file from a backup, or one that was edited: the manifest there tells of other rows."""
    archive(tmp_path / "lake", "--db", sample, "--no-prune")
    change(sample, "DELETE FROM archived_days", "UPDATE snapshots SET price_yes = 0.123 WHERE id = 5")
    before = rows(sample, "SELECT * FROM snapshots WHERE timestamp < ? ORDER BY id", f"{DAY}~")
    for _ in range(2):
        assert archive(tmp_path / "lake", "--db", sample) == 74
        errors = capsys.readouterr().err
        assert f"{DAY}: " in errors
        assert "tells of other snapshots" in errors
        assert "--shard" in errors
        assert rows(sample, "SELECT * FROM snapshots ORDER BY id") == before  # the day after it has gone


@pytest.mark.parametrize("where", ["encoded", "stored"])
def test_what_is_not_read_back_as_it_was_counts_for_nothing(
    sample: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another value in a Parquet file, or another byte in the lake."""
    import pyarrow.compute as pc  # noqa: PLC0415

    lake, before = tmp_path / "lake", everything(sample)
    encode, put = script()["Column"].encode, script()["Lake"].put

    def encode_otherwise(column: Any, taken: Any) -> Any:  # noqa: ANN401
        return encode(column, pc.add(taken, 1) if column.name == "price_yes" else taken)

    def put_otherwise(self: Any, name: str, source: Path) -> Any:  # noqa: ANN401
        etag = put(self, name, source)
        with (lake / name).open("ab") as file:
            file.write(b"-")
        return etag

    with monkeypatch.context() as patch:
        if where == "encoded":
            patch.setattr(script()["Column"], "encode", encode_otherwise)
        else:
            patch.setattr(script()["Lake"], "put", put_otherwise)
        assert archive(lake, "--db", sample) == 74
    text = {"encoded": "does not hold what the database has", "stored": "is not what was written there"}[where]
    assert text in capsys.readouterr().err
    assert everything(sample) == before
    assert not list(lake.glob("_manifest/*/*.json"))
    assert archive(lake, "--db", sample) == 0
    assert archive(lake, "--check", "--db", sample) == 0


def test_a_file_is_durable_before_its_name_and_its_name_before_the_manifest(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a manifest of files that are not there, and of rows that are deleted."""
    done: list[tuple[str, str]] = []
    calls = {name: getattr(os, name) for name in ("fsync", "link", "rename")}

    def fsync(descriptor: int) -> None:
        calls["fsync"](descriptor)
        done.append(("synced", os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH115

    def name_it(how: str, old: str, new: str) -> None:
        assert ("synced", str(old)) in done
        calls[how](old, new)
        done.append(("named", str(new)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", partial(name_it, "link"))
    monkeypatch.setattr(os, "rename", partial(name_it, "rename"))
    execute = script()["Writer"].execute

    def note(*args: Any) -> int:  # noqa: ANN401
        done.append(("noted", ""))
        changed: int = execute(*args)
        return changed

    monkeypatch.setattr(script()["Writer"], "execute", note)
    lake = tmp_path / "new" / "lake"
    assert archive(lake, "--db", sample) == 0
    files = [str(path) for path in lake.glob("*/date=*/*") if path.suffix in {".parquet", ".json"}]
    assert files
    manifests = {path.parent.name: str(path) for path in lake.glob("_manifest/*/*.json")}
    for file in map(Path, files):
        named = done.index(("named", str(file)))
        last = len(done) - done[::-1].index(("noted", ""))
        until = last if file.suffix == ".json" else done.index(("named", manifests[file.parent.name]))
        for folder in file.parents:
            assert ("synced", str(folder)) in done[named:until], (file, folder)
            if folder == lake:
                break
    assert ("synced", str(lake.parent)) in done
    assert ("synced", str(tmp_path)) in done


def test_one_archive_at_a_time_and_none_while_the_file_is_held(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ac.locked(sample.with_name(f"{sample.name}.archiving")):
        assert archive(tmp_path / "lake", "--db", sample) == 75
    monkeypatch.setitem(script()["main"].__globals__, "PATIENCE_S", 0.1)
    with ac.locked(sample):
        assert archive(tmp_path / "lake", "--db", sample) == 75
    assert archive(tmp_path / "lake", "--db", sample) == 0


def test_a_file_to_which_another_program_writes_is_busy(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which may pass, unlike a file that cannot be written: 75, and the next archiving goes on."""
    monkeypatch.setattr(ac, "BUSY_TIMEOUT_S", 0.1)
    with contextlib.closing(sqlite3.connect(sample, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert archive(tmp_path / "lake", "--db", sample) == 75
        assert f"{sample}: cannot write: database is locked" in capsys.readouterr().err
        other.execute("ROLLBACK")
    assert archive(tmp_path / "lake", "--db", sample) == 0


def test_without_its_packages_it_names_the_extra(sample: Path, tmp_path: Path) -> None:
    without = f"""
import runpy, sys
sys.modules["pyarrow"] = None
sys.argv = sys.argv[1:]
runpy.run_path({COMMAND!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", without, COMMAND, str(tmp_path / "lake"), "--db", str(sample)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "[archive]" in done.stderr


@pytest.mark.parametrize("args", [(), ("--check",), ("--dry-run",), ("--restore", DAY)])
def test_an_empty_name_is_not_that_of_the_default_file(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    """`--db "$FILE"` without that variable must prune nothing."""
    monkeypatch.setenv("POLYMARKET_DB", str(sample))
    before = sample.read_bytes()
    (tmp_path / "lake").mkdir()
    assert archive(tmp_path / "lake", "--db", "", *args) == 78
    assert (sample.read_bytes(), list((tmp_path / "lake").iterdir())) == (before, [])


@pytest.mark.parametrize(
    "args", [("--restore", "1st"), ("--restore", DAY), ("--shard", "a/b"), ("--keep", "-1"), ("--check", "--dry-run")]
)
def test_a_bad_command_line_is_refused(args: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        archive(tmp_path / "lake", *args)
    assert stopped.value.code == 2
