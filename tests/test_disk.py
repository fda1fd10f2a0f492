"""covers: disk and database under stress: full, read-only, corrupt, gone, shared, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import stat
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

SCRIPT = str(PROJECT / "async-collector.py")
NOBODY = 65_534
as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")


async def shell(exchange: FakePolymarket, command: str, **env: str) -> tuple[int, str, str]:
    """Run *command* in a shell in which $collect is the collector; return exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        env=os.environ | exchange.environment | {"collect": f"{sys.executable} {SCRIPT} --quiet"} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


def is_sound(path: Path) -> bool:
    """Return whether SQLite finds nothing wrong with the file, and no run in it has half a batch."""
    return rows(path, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def crowd(exchange: FakePolymarket, markets: int) -> None:
    """Open so many more markets over the threshold."""
    for _ in range(markets):
        exchange.add_market(volume_24h=200_000.0)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the shell sets the limit")
async def test_a_full_disk_is_74_keeps_what_was_stored_and_the_next_run_recovers(
    exchange: FakePolymarket, database: Path
) -> None:
    code, _, _ = await shell(exchange, f"$collect --db {database}")
    assert code == 0
    crowd(exchange, 1_500)
    code, _, err = await shell(exchange, f"ulimit -f 600; $collect --db {database}")  # blocks of 1 KB
    assert code == 74
    assert err.startswith(f"async-collector: {database}: cannot ")
    assert err.count("\n") == 1
    assert is_sound(database)
    assert rows(database, "SELECT count(*) AS stored FROM snapshots WHERE run_id = 1") == [{"stored": 60}]
    code, _, err = await shell(exchange, f"$collect --db {database}")
    assert (code, err) == (0, "")
    (*_, last) = rows(database, "SELECT status, snapshots_saved FROM runs ORDER BY run_id")
    assert last == {"status": "complete", "snapshots_saved": 1_560}


async def test_a_full_file_rolls_back_the_batch_and_keeps_those_before(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    """`max_page_count` is kept in no file, so the connection of the run itself has to be told."""
    crowd(exchange, 940)
    stored: list[int] = []
    opened = ac.Database.open

    @contextlib.asynccontextmanager
    async def small(*args: Any, **kind: Any) -> Any:  # noqa: ANN401
        async with opened(*args, **kind) as file:
            await file._connection.execute("PRAGMA max_page_count = 300")
            yield file

    collector = make_collector(progress=lambda progress: stored.append(progress.stored))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ac.Database, "open", small)
        with pytest.raises(ac.StorageError, match="cannot store a batch: database or disk is full"):
            await collector.collect_all()
    assert stored
    assert rows(database, "SELECT count(*) AS stored FROM snapshots") == [{"stored": stored[-1]}]
    assert (await make_collector().collect_all())["snapshots"] == 1_000


async def test_a_collector_takes_no_other_file_than_in_its_runs_before(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    assert exchange.url
    collector, away = make_collector(), database.with_name("away.db")
    await collector.collect_all()
    database.rename(away)
    with pytest.raises(ac.StorageError, match=r"polymarket_data\.db: is not the file of the runs before: it was moved"):
        await collector.collect_all()
    assert not database.exists()
    await make_collector().collect_all()  # whoever begins now makes one
    with pytest.raises(ac.StorageError, match="is not the file of the runs before"):
        await collector.collect_all()
    away.replace(database)
    assert (await collector.collect_all())["run_id"] == 2


@pytest.mark.parametrize("replaced", ["", "by another"])
async def test_a_file_that_is_deleted_or_replaced_under_us_is_noticed(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, replaced: str
) -> None:
    crowd(exchange, 940)
    other = database.with_name("other.db")
    sqlite3.connect(other).execute("CREATE TABLE mine (x)").connection.close()
    content = other.read_bytes()

    def interfere(_: ac.Progress) -> None:
        if database.exists() and other.exists():
            database.unlink()
            if replaced:
                other.rename(database)

    with pytest.raises(ac.StorageError, match=r"polymarket_data\.db: was deleted or replaced while it was in use"):
        await make_collector(progress=interfere).collect_all()
    if replaced:
        assert database.read_bytes() == content
    else:
        assert (await make_collector().collect_all())["snapshots"] == 1_000


async def test_a_program_may_go_to_another_folder_meanwhile(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(database.parent)
    heard = make_collector(db_path=database.name, progress=lambda _: monkeypatch.chdir("/"))
    exchange.say("kalshi")
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", exchange.token)
    assert (await heard.collect_all())["snapshots"] == 60
    assert rows(database, "SELECT status FROM runs") == [{"status": "complete"}]


@as_root
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("chmod 444 {file}", "cannot "),
        ("chmod 000 {file}", "cannot open: unable to open database file"),
        ("chmod 555 {folder}", "you may not write to the folder "),
        ("chmod 000 {folder}", "you may not write to the folder "),
    ],
)
async def test_what_may_not_be_written_is_74_before_any_request(
    exchange: FakePolymarket, spoil: str, says: str
) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "data" / "file.db"
        file.parent.mkdir()
        program = f"""
import os, runpy, subprocess
main = runpy.run_path({SCRIPT!r}, run_name="script")["main"]
assert main(["--quiet", "--db", {str(file)!r}]) == 0
subprocess.run("chmod 755 {folder}; chown -R {NOBODY} {file.parent}; {spoil}", shell=True, check=True)
os.setgid({NOBODY})
os.setuid({NOBODY})
raise SystemExit(main(["--quiet", "--db", {str(file)!r}]))
""".format(file=file, folder=file.parent)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            env=os.environ | exchange.environment | {"PYTHONPATH": str(PROJECT)},
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), 60)
        await shell(exchange, f"chmod 755 {file.parent}; chmod 644 {file}")
        assert err.decode().startswith(f"async-collector: {file}: {says}")
        assert process.returncode == 74
        assert rows(file, "SELECT requests FROM runs") == [{"requests": len(exchange.arrivals)}]


@pytest.mark.parametrize("where", ["the header", "the middle", "everywhere"])
async def test_a_corrupt_file_is_said_and_never_made_anew(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, where: str
) -> None:
    await make_collector().collect_all()
    rng = random.Random(1)
    content = bytearray(database.read_bytes())
    start, end = {"the header": (0, 100), "the middle": (4096, 60_000), "everywhere": (0, len(content))}[where]
    content[start:end] = rng.randbytes(min(end, len(content)) - start)
    database.write_bytes(content)
    with pytest.raises(ac.StorageError, match=r"polymarket_data\.db: cannot "):
        await make_collector().collect_all()
    assert database.stat().st_size >= len(content)
    if where == "everywhere":
        assert database.read_bytes() == content
    assert exchange.url


async def test_a_lock_of_a_moment_is_waited_for(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    await make_collector().collect_all()
    holder = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    running = asyncio.create_task(make_collector().collect_all())
    await asyncio.sleep(0.3)
    assert not running.done()
    holder.execute("COMMIT")
    holder.close()
    assert (await running)["snapshots"] == 60
    assert exchange.url


@pytest.mark.skipif(os.name != "posix", reason="modes are of Unix")
@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o660), (0o022, 0o640), (0o007, 0o660), (0o077, 0o600)])
async def test_a_new_file_is_nobody_elses_business(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, umask: int, mode: int
) -> None:
    modes: dict[str, int] = {}

    def look(_: ac.Progress) -> None:
        modes.update({path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()})

    before = os.umask(umask)
    try:
        await make_collector(progress=look).collect_all()
    finally:
        os.umask(before)
    assert modes.pop("polymarket_data.db.lock") == 0o660
    assert modes == dict.fromkeys(["polymarket_data.db", "polymarket_data.db-shm", "polymarket_data.db-wal"], mode)
    database.chmod(0o644)
    await make_collector().collect_all()
    assert stat.S_IMODE(database.stat().st_mode) == 0o644  # a file that was there keeps its mode
    assert exchange.url


async def test_a_backup_made_meanwhile_is_whole_and_disturbs_nobody(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    crowd(exchange, 940)
    kept = []

    def back_up(progress: ac.Progress) -> None:
        copy = database.with_name(f"{progress.stored}.db")
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        connection.execute("VACUUM INTO ?", (str(copy),))
        connection.close()
        kept.append((progress.stored, rows(copy, "SELECT count(*) AS stored FROM snapshots")[0]["stored"]))
        assert is_sound(copy)

    assert (await make_collector(progress=back_up).collect_all())["status"] == "complete"
    assert kept[-1][0] == 1_000
    assert all(told == stored for told, stored in kept)


async def test_a_torn_log_shows_whole_batches_only(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, tmp_path: Path
) -> None:
    """What a power failure may leave: the log of the last commits, cut off or garbled anywhere."""
    crowd(exchange, 940)
    copies = tmp_path / "copies"
    copies.mkdir()

    def copy(progress: ac.Progress) -> None:
        if progress.stored == 1_000:
            for suffix in ("", "-wal"):
                shutil.copy(f"{database}{suffix}", copies)

    await make_collector(progress=copy).collect_all()
    log = (copies / f"{database.name}-wal").read_bytes()
    rng = random.Random(1)
    seen = set()
    for number in range(60):
        torn = bytearray(log[: rng.randrange(len(log))])
        if number % 2 and torn:
            place = rng.randrange(len(torn))
            torn[place : place + 8] = rng.randbytes(8)
        path = tmp_path / f"{number}.db"
        shutil.copy(copies / database.name, path)
        Path(f"{path}-wal").write_bytes(torn)
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            (stored,) = connection.execute("SELECT count(*) FROM snapshots").fetchone()
            assert connection.execute("SELECT coalesce(sum(snapshots_saved), 0) FROM runs").fetchone() == (stored,)
            seen.add(stored)
        connection.close()
    assert seen <= {0, 250, 500, 750, 1_000}
    assert len(seen) > 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
async def test_runs_leave_no_file_open(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock
) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    counts = []
    for _ in range(12):
        exchange.fail_next("/books", disconnect=True)
        await make_collector().collect_all()
        clock.elapsed_s += 900
        counts.append(opened())
    assert max(counts[6:]) <= max(counts[:6])


@pytest.mark.skipif(os.name != "posix", reason="the shell sets the limit")
@pytest.mark.parametrize(("files", "code"), [(7, 74), (8, 74), (10, 69)])
async def test_too_few_open_files_are_an_error_in_words(
    exchange: FakePolymarket, database: Path, files: int, code: int
) -> None:
    exited, _, err = await shell(exchange, f"ulimit -n {files}; $collect --max-retries 0 --db {database}")
    assert (exited, err.count("\n")) == (code, 1)
    assert err.startswith("async-collector: ")
    assert (await shell(exchange, f"$collect --db {database}"))[0] == 0


def test_an_sqlite_with_the_wal_reset_bug_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    for version in ((3, 40, 1), (3, 44, 6), (3, 50, 6), (3, 50, 7), (3, 51, 2), (3, 51, 3), (3, 53, 0)):
        ac._warn_of_old_sqlite.cache_clear()
        caplog.clear()
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        for _ in range(2):
            ac._warn_of_old_sqlite()
        said.append(len(caplog.messages))
    ac._warn_of_old_sqlite.cache_clear()
    assert said == [1, 0, 1, 0, 1, 0, 0]
