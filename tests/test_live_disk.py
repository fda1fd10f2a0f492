"""covers: the process collector-live where the disk is full, the file is held, or the name server is silent."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT, rows
from live_truth import LIVE, Truth
from test_live_command import started, until_stored
from truth import variables

import async_collector as ac

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

SILENT = """
import runpy, socket, sys, time
real = socket.getaddrinfo
def silent(host, *args, **kwargs):
    if host == "127.0.0.1":
        return real(host, *args, **kwargs)
    print("resolving", file=sys.stderr, flush=True)
    time.sleep(60)
socket.getaddrinfo = silent
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def said(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until *process* has said *text*."""
    assert process.stderr
    async with asyncio.timeout(40):
        while line := await process.stderr.readline():
            if text in line.decode():
                return
    raise AssertionError(text)


async def ended(process: asyncio.subprocess.Process, within_s: float) -> int:
    """End *process* by SIGTERM, and return its exit code."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 60)
    assert time.monotonic() - began < within_s
    assert process.returncode is not None
    return process.returncode


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process is set")
async def test_a_full_disk_costs_nothing_once_there_is_room(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, cup)
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=6) as process:
        exchange.live.change(cup[0], ("bid", "0.41", "3"))
        await until_stored(path, 1)
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000, most))
        for size in range(4, 300):
            exchange.live.change(cup[size % 3], ("bid", "0.41", str(size)))
        await said(process, "what comes waits")
        assert len(rows(path, "SELECT * FROM book_changes")) == 1
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        await said(process, "can be written again")
        assert await ended(process, 10) == 0
    assert len(rows(path, "SELECT * FROM book_changes")) == 297
    assert rows(path, "SELECT * FROM live_gaps WHERE reason <> 'stopped'") == []
    truth.assert_stored(path)


@pytest.mark.slow
async def test_a_transaction_of_others_that_never_ends_holds_up_no_end(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, cup)
    async with started(exchange, "--event", "cup", "--db", str(path), "--every", "1", tokens=6) as process:
        exchange.live.change(cup[0], ("bid", "0.41", "3"))
        await until_stored(path, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            exchange.live.change(cup[1], ("bid", "0.41", "4"))
            await asyncio.sleep(4)  # an anchor waits for it now
            assert await ended(process, 10) == 74
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=6) as process:
        exchange.live.change(cup[2], ("bid", "0.41", "5"))
        await until_stored(path, 2)
        assert await ended(process, 10) == 0
    truth.assert_stored(path)


@pytest.mark.slow
async def test_a_file_that_is_held_for_long_is_said(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, cup)
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=6) as process:
        exchange.live.change(cup[0], ("bid", "0.41", "3"))
        await until_stored(path, 1)
        with ac.locked(path, 5):
            exchange.live.change(cup[1], ("bid", "0.41", "4"))
            await said(process, "in use by process")
        await said(process, "can be written again")
        assert await ended(process, 10) == 0
    truth.assert_stored(path)


async def test_a_silent_name_server_holds_up_no_end(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SILENT, str(PROJECT / LIVE), "--event", "cup", "--db", str(path)),
        env=variables(exchange, {"CLOB_WS": "ws://localhost:1/ws/market"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await said(process, "resolving")
    assert await ended(process, 10) == 0
    assert len(rows(path, "SELECT * FROM markets")) == len(cup)
