"""covers: bodies that are cut, endless, bombs or no HTTP at all, and what they may cost the run and the machine."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import struct
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT, rows
from raw_server import GZIP, HTTP, answer, endless, raw_server, sends
from truth import failures

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fake_polymarket import FakePolymarket
    from raw_server import Talk


def bomb(megabytes: int) -> bytes:
    """Return a gzip of *megabytes* of blanks; they cost a thousandth of that."""
    blanks = b" " * 2**20
    packer = zlib.compressobj(9, wbits=-15)
    megabyte = packer.compress(blanks) + packer.flush(zlib.Z_FULL_FLUSH)  # refers to nothing before it
    checksum = 0
    for _ in range(megabytes):
        checksum = zlib.crc32(blanks, checksum)
    head, last_block = b"\x1f\x8b\x08" + bytes(6) + b"\xff", b"\x03\x00"
    return head + megabyte * megabytes + last_block + struct.pack("<II", checksum, megabytes * 2**20)


BOMB = bomb(512)
CLOSED = "the connection was closed before the answer was complete"
HOSTILE: dict[str, tuple[Talk, str]] = {
    "nothing": (sends(), CLOSED),
    "half a head": (sends(b"HTTP/1.1 200 OK\r\nContent-"), CLOSED),
    "another protocol": (sends(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "400, message="),
    "a short body": (sends(HTTP + b"Content-Length: 100\r\n\r\n[]"), "Response payload is not completed"),
    "a short chunk": (sends(HTTP + b"Transfer-Encoding: chunked\r\n\r\n64\r\n[]"), "Response payload is not completed"),
    "no length, cut": (sends(HTTP + b'\r\n[{"asset_id":'), "no JSON but something untyped: Expecting value"),
    "a trickle": (sends(HTTP + b"Content-Length: 9\r\n\r\n", *[b" "] * 50, every_s=0.05), "no complete answer within"),
    "an endless body": (endless, "the answer is longer than 33554432 bytes"),
    "an announced giant": (sends(HTTP + b"Content-Length: 99999999999\r\n\r\n["), "Response payload is not completed"),
    "a header of 70 KB": (sends(HTTP + b"X-Pad: " + b"x" * 70_000 + b"\r\n\r\n"), "Got more than"),
    "500 headers": (sends(HTTP + b"".join(b"X-%d: 1\r\n" % n for n in range(500)) + b"\r\n"), "Too many headers"),
    "10,000 cookies": (answer(b"[", b"Set-Cookie: a=%s\r\n" % (b"b;" * 4_000)), "no JSON but something untyped"),
    "no gzip": (answer(b"[]" * 50, GZIP), "Can not decode content-encoding: gzip"),
    "half a gzip": (answer(gzip.compress(b'["a"]' * 200)[:-40], GZIP), "no JSON but something untyped"),
    "60,000 gzips": (answer(gzip.compress(b"", 1) * 60_000, GZIP), "Can not decode content-encoding: gzip"),
    "a gzip bomb": (answer(BOMB, GZIP), "the answer is longer than 33554432 bytes"),
    "an unknown encoding": (answer(b"\x01\x02", b"Content-Encoding: snappy\r\n"), "no JSON but something untyped"),
    "100,000 deep": (answer(b"[" * 100_000), "no JSON but something untyped: maximum recursion depth"),
    "no content": (sends(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"), "no JSON but something untyped"),
    "a captive portal": (
        answer(b"<html>Welcome to our WiFi</html>", b"Content-Type: text/html\r\n"),
        "no JSON but text/html: Expecting value",
    ),
}  # fmt: skip


@dataclass
class Cost:
    """What something has cost the process while it was watched."""

    seconds: float = 0.0
    longest_pause_s: float = 0.0  # of the event loop
    memory_mb: float = 0.0  # at the peak, over what it was before


def resident_mb() -> float:
    """Return the memory of this process, or 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Cost]:
    """Measure what happens meanwhile."""
    cost, before, started = Cost(), resident_mb(), time.perf_counter()

    async def watch() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.002)
            now = time.perf_counter()
            cost.longest_pause_s = max(cost.longest_pause_s, now - last - 0.002)
            cost.memory_mb = max(cost.memory_mb, resident_mb() - before)
            last = now

    watching = asyncio.create_task(watch())
    yield cost
    cost.seconds = time.perf_counter() - started
    watching.cancel()


@pytest.mark.parametrize("name", HOSTILE)
async def test_whatever_comes_back_instead_of_books_costs_the_books_only(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    talk, reason = HOSTILE[name]
    assert exchange.url
    async with raw_server(talk) as (url, asked), watched() as cost:
        monkeypatch.setenv("CLOB_API", url)
        result = await make_collector(timeout=0.3 if name == "a trickle" else 10, max_retries=1).collect_all()
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 60, 60)
    assert rows(database, "SELECT DISTINCT best_bid_yes, spread FROM snapshots") == [
        {"best_bid_yes": None, "spread": None}
    ]
    assert {row["stage"] for row in failures(database)} == {"book"}
    assert reason in str(result["reason"])
    assert len(asked) <= (20 if "longer than" in reason else 2)  # too long an answer is asked for in halves
    assert cost.seconds < 15
    assert cost.memory_mb < 120


@pytest.mark.parametrize("name", ["a trickle", "a gzip bomb", "no gzip", "another protocol", "nothing"])
async def test_whatever_comes_back_instead_of_a_listing_is_an_error_that_says_so(
    make_collector: Callable[..., ac.AsyncCollector], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    talk, reason = HOSTILE[name]
    async with raw_server(talk) as (url, _):
        monkeypatch.setenv("GAMMA_API", url)
        with pytest.raises(ac.ApiError) as caught:
            await make_collector(timeout=0.3, max_retries=1).collect_all()
    assert reason.replace("33554432", "8388608") in str(caught.value)


async def test_a_bomb_of_512_mb_costs_milliseconds(
    make_collector: Callable[..., ac.AsyncCollector], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_server(answer(BOMB, GZIP)) as (url, asked):
        monkeypatch.setenv("GAMMA_API", url)
        async with watched() as cost:
            with pytest.raises(ac.AnswerTooLongError, match="longer than 8388608 bytes"):
                await make_collector().collect_all()
    assert len(asked) == 1
    assert len(BOMB) < 600_000
    assert cost.seconds < 2
    assert cost.longest_pause_s < 0.2
    assert cost.memory_mb < 40


FLOODS: dict[str, tuple[bytes, bytes, int]] = {  # a beginning, and what follows it so many times
    "objects": (b"[", b"{},", 10_000_000),
    "lists": (b'[{"asset_id":"1","bids":[', b"[],", 10_000_000),
    "letters": (b'[{"asset_id":"\\ud800","bids":["', b"x", 30_000_000),
    "posts": (b'{"meta":{},"data":[', b"{},", 2_000_000),
}


def flood(name: str) -> bytes:
    """Return it compressed, which makes it small."""
    start, unit, times = FLOODS[name]
    packer = zlib.compressobj(1, wbits=31)
    return b"".join(
        [packer.compress(start), *(packer.compress(unit * (times // 100)) for _ in range(100)), packer.flush()]
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read as Linux shows it")
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_costs_a_process_seconds_and_little_memory(
    exchange: FakePolymarket, database: Path, name: str
) -> None:
    """Measured of a process of its own: what is allocated and freed between two looks counts as well."""
    program = f"""
import pathlib, re, runpy
main = runpy.run_path({str(PROJECT / "async-collector.py")!r}, run_name="script")["main"]
code = main(["--quiet", "--max-retries", "0", "--db", {str(database)!r}])
print(code, re.search("VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""
    async with raw_server(answer(flood(name), GZIP)) as (url, _):
        started = time.monotonic()
        hostile = {"TWITTER_API": url, "TWITTER_BEARER_TOKEN": "t"} if name == "posts" else {"CLOB_API": url}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            env=os.environ | exchange.environment | hostile | {"PYTHONPATH": str(PROJECT)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    code, peak_kb = map(int, out.split())
    assert code == (0 if name == "posts" else 75)
    assert peak_kb / 1024 < 250
    assert time.monotonic() - started < 20
    assert rows(database, "SELECT count(*) AS stored FROM snapshots") == [{"stored": 60}]
    assert len(failures(database)) <= 61


@pytest.mark.slow
async def test_a_million_levels_cost_their_own_market_only(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    exchange.change(market, bids=tuple((f"0.{n % 10_000:04d}", f"{n}.0000000001") for n in range(1_000_000)))
    result = await make_collector().collect_all()
    assert (result["snapshots"], result["books_missing"], result["status"]) == (60, 1, "complete")
    (failure,) = failures(database)
    assert (failure["market_id"], failure["stage"]) == (market.id, "book")
    assert "longer than 33554432 bytes" in failure["reason"]


async def test_a_deep_book_holds_the_loop_for_less_than_a_second() -> None:
    levels = b",".join(b'{"price":"0.%05d","size":"%d"}' % (n % 100_000, n) for n in range(600_000))
    body = b'[{"asset_id":"1","bids":[' + levels + b'],"asks":[]}]'
    assert 15e6 < len(body) < ac.MAX_BOOKS_BYTES
    started = time.process_time()
    ((book,), _) = ac.decode_books(body)
    assert book.bids[0].price == 0.99999
    assert time.process_time() - started < 1
