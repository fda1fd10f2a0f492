"""A hostile world: what can come back over the wire, and what that may cost."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import random
import re
import socket
import ssl
import struct
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from conftest import PROJECT, rows

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

    Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

FAILURES = "SELECT * FROM failures ORDER BY rowid"
GZIP = b"Content-Encoding: gzip\r\n"


@pytest.fixture
async def host(make_collector: Callable[..., ac.AsyncCollector]) -> AsyncIterator[ac.HttpHost]:
    """A client that sends nothing; the test tells it how requests went."""
    collector = make_collector()
    async with collector.connect() as (network, _):
        yield ac.HttpHost(collector.settings.clob, collector.clob_limiter, network)


@contextlib.asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve what no HTTP library would send; yield the address, and the first lines of what was asked."""
    asked: list[bytes] = []
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.partition(b"\r\n")[0])
            length = re.search(rb"content-length: (\d+)", head.lower())
            await reader.readexactly(int(length[1]) if length else 0)
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
        await asyncio.wait_for(asyncio.gather(*filter(None, serving)), 10)


def sends(*pieces: bytes, every_s: float = 0.0) -> Talk:
    """Return a server that sends *pieces* and closes."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(every_s)

    return talk


def answer(body: bytes, headers: bytes = b"", status: bytes = b"200 OK") -> Talk:
    """Return a server that answers with *body*, and says how long it is."""
    head = b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body)
    return sends(head, body)


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send chunks of blanks until nobody listens any more."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


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
HTTP = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
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
    assert {row["stage"] for row in rows(database, FAILURES)} == {"book"}
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
    assert len(rows(database, FAILURES)) <= 61


@pytest.mark.slow
async def test_a_million_levels_cost_their_own_market_only(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    market = next(iter(exchange.markets.values()))
    exchange.change(market, bids=tuple((f"0.{n % 10_000:04d}", f"{n}.0000000001") for n in range(1_000_000)))
    result = await make_collector().collect_all()
    assert (result["snapshots"], result["books_missing"], result["status"]) == (60, 1, "complete")
    (failure,) = rows(database, FAILURES)
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


# --- the way there


async def test_a_host_that_takes_no_connection_is_left_after_the_timeout(
    make_collector: Callable[..., ac.AsyncCollector], monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as sockets:
        hole = sockets.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(3):  # nobody accepts them, so there is no room for anybody else
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003
            waiting.connect_ex(hole.getsockname())
        monkeypatch.setenv("GAMMA_API", f"http://127.0.0.1:{hole.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ac.NetworkError, match=r"no complete answer within 0\.3 s"):
            await make_collector(timeout=0.3, max_retries=1).collect_all()
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("name", "trusted", "code", "says"),
    [
        ("127.0.0.1", "nobody", 69, "CERTIFICATE_VERIFY_FAILED"),
        ("exchange.test", "its authority", 69, "IP address mismatch"),
        ("127.0.0.1", "its authority", 65, "HTTP 404"),
    ],
)
async def test_a_certificate_that_is_wrong_is_named_and_not_tried_again(
    tmp_path: Path, name: str, trusted: str, code: int, says: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(PROJECT / "async-collector.py"), "--quiet", "--db", str(tmp_path / "file.db")),
            env=os.environ
            | {"GAMMA_API": f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", "NO_PROXY": "127.0.0.1"}
            | ({"SSL_CERT_FILE": str(tmp_path / "ca.pem")} if trusted == "its authority" else {}),
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err.count(b"\n"), len(served)) == (code, 1, code == 65)
    assert says in err.decode()


async def test_a_name_with_a_dead_ipv6_address_is_reached_by_ipv4(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object, **__: object) -> list[Any]:
        port = int(exchange.url.rpartition(":")[2])
        dead = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return [dead, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    monkeypatch.setenv("GAMMA_API", exchange.environment["GAMMA_API"].replace("127.0.0.1", "gamma.test"))
    assert (await make_collector().collect_all())["status"] == "complete"


@pytest.mark.parametrize("body", [b'{"error":"Op\xe9ration"}', b'{"error":' + b"[" * 100_000, b'{"error":"a\tb"}'])
async def test_an_error_that_cannot_be_read_is_an_error_all_the_same(
    exchange: FakePolymarket, collector: ac.AsyncCollector, body: bytes
) -> None:
    exchange.fail_next("/books", body=body, times=9)
    result = await collector.collect_all()
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 60, 60)
    exchange.fail_next("/markets/keyset", body=body, times=9)
    with pytest.raises(ac.ApiError):
        await collector.collect_all()


async def test_a_host_that_finds_everything_too_large_is_left_alone(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    exchange.fail_next("/books", status=413, body=b"", times=10_000)
    result = await collector.collect_all()
    assert (result["status"], result["books_missing"]) == ("partial", 60)
    assert len(exchange.asked("/books")) <= 100


async def test_a_lower_limit_on_the_size_of_requests_costs_requests_and_no_book(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    for _ in range(1_440):
        exchange.add_market(volume_24h=200_000.0)
    exchange.odd.most_tokens = 20
    result = await collector.collect_all()
    assert (result["status"], result["books_missing"]) == ("complete", 0)


async def test_drift_is_loud_in_a_request_that_was_halved_as_well(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    exchange.fail_next("/books", status=413, body=b"")
    exchange.fail_next("/books", body=b'{"x":1}', times=99)
    result = await collector.collect_all()
    assert "Expected `array`, got `object`" in str(result["drift"])
    assert result["books_missing"] == 60


async def test_429s_that_are_obeyed_open_no_breaker(host: ac.HttpHost, clock: JumpingClock) -> None:
    for _ in range(100):
        host._update_breaker(ac.RateLimitedError("HTTP 429", "https://clob", 429))
        clock.elapsed_s += 1
        host._check()


# --- redirects, refusals, cookies


@pytest.mark.parametrize("where", ["http://{other}/else", "file:///etc/passwd", "http://127.0.0.1:1/", "/clob/books"])
async def test_a_redirect_is_refused_by_name_and_nobody_is_asked(
    exchange: FakePolymarket, collector: ac.AsyncCollector, where: str
) -> None:
    async with raw_server(sends()) as (url, asked):
        location = where.format(other=url.removeprefix("http://"))
        exchange.fail_next("/books", status=307, headers={"Location": location}, body=b"", times=9)
        result = await collector.collect_all()
    assert f"HTTP 307: refusing a redirect to '{location}'" in str(result["reason"])
    assert (asked, len(exchange.asked("/books"))) == ([], 1)


CHALLENGE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"status": 401}, "access is denied to this region, address or token; HTTP 401"),
    ({"status": 403}, "access is denied to this region, address or token; HTTP 403"),
    ({"status": 451}, "access is denied to this region, address or token; HTTP 451"),
    (
        {"status": 503, "body": b"", "headers": {"cf-mitigated": "challenge"}},
        "a bot check instead of an answer; HTTP 503",
    ),
    ({"body": CHALLENGE, "headers": {"Content-Type": "text/html"}}, "a bot check instead of an answer; HTTP 200"),
]


@pytest.mark.parametrize(("fault", "says"), REFUSALS)
async def test_a_host_that_denies_access_is_left_alone_at_once(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
    fault: dict[str, Any],
    says: str,
) -> None:
    for _ in range(1_440):
        exchange.add_market(volume_24h=200_000.0)
    collector = make_collector(workers=2)
    exchange.fail_next("/books", **fault)
    result = await collector.collect_all()
    assert says in str(result["reason"])
    assert (result["status"], result["snapshots"]) == ("partial", 1_500)
    assert len(exchange.asked("/books")) <= 2  # one may have been on its way
    reasons = {row["reason"] for row in rows(database, FAILURES)}
    assert len(reasons) <= 2
    assert all(reason.count("not asked any more") <= 1 for reason in reasons)
    exchange.fail_next("/markets/keyset", **fault)
    with pytest.raises(ac.AccessDeniedError, match=says):
        await collector.collect_all()


# --- a sick exchange


async def test_a_host_that_fails_for_long_is_not_asked_any_more(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    for _ in range(9_940):
        exchange.add_market(volume_24h=200_000.0)
    exchange.fail_next("/books", status=503, times=1_000)
    result = await make_collector(workers=2).collect_all()
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 10_000, 10_000)
    assert 20 <= len(exchange.asked("/books")) <= 22 + 2 * 4  # a failed request is tried with two single tokens
    reasons = rows(database, "SELECT reason, sum(markets) AS markets FROM failures GROUP BY reason ORDER BY markets")
    assert "not asked any more in this run, after HTTP 503" in reasons[-1]["reason"]
    assert reasons[-1]["markets"] > 8_000


async def test_a_breaker_opens_after_many_failures_over_some_time(host: ac.HttpHost, clock: JumpingClock) -> None:
    for _ in range(290):
        host._update_breaker(ac.ServerError("HTTP 503", "https://clob", 503))
        clock.elapsed_s += 0.1
        host._check()  # not yet
    clock.elapsed_s += 1
    host._update_breaker(ac.ServerError("HTTP 503", "https://clob", 503))
    with pytest.raises(ac.ServerError, match="not asked any more in this run, after HTTP 503") as caught:
        host._check()
    assert not caught.value.retryable


async def test_a_breaker_forgets_failures_at_the_first_success(host: ac.HttpHost, clock: JumpingClock) -> None:
    for number in range(200):
        host._update_breaker(None if number % 19 == 0 else ac.NetworkError("gone", "https://clob"))
        clock.elapsed_s += 1
        host._check()


@pytest.mark.slow
async def test_retries_are_a_bounded_share_of_the_requests(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    for _ in range(5_940):
        exchange.add_market(volume_24h=200_000.0)
    for _ in range(200):  # nearly all answers fail: too often to go on like that, too seldom to stop asking
        exchange.fail_next("/books", status=502, times=9)
        exchange.fail_next("/books")
    result = await make_collector(max_retries=50, run_timeout=1e6).collect_all()
    assert 100 < result["stats"]["retries"] <= 100 + result["requests"] / 4 + 1
    assert result["status"] == "partial"


# --- time


async def test_a_run_ends_at_its_deadline_with_what_it_has(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    exchange.fail_next("/books", hang=True, times=99)
    started = time.monotonic()
    result = await make_collector(timeout=60, run_timeout=0.5).collect_all()
    assert time.monotonic() - started < 3
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 60, 60)
    assert "the run's 0.5 s are over" in str(result["reason"])
    assert rows(database, "SELECT status FROM runs") == [{"status": "partial"}]


async def test_a_trickle_does_not_hold_a_run_beyond_its_deadline(
    make_collector: Callable[..., ac.AsyncCollector], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_server(sends(HTTP + b"\r\n", *[b" "] * 200, every_s=0.05)) as (url, _):
        monkeypatch.setenv("GAMMA_API", url)
        started = time.monotonic()
        with pytest.raises(ac.NetworkError, match=r"the run's 0\.5 s are over"):
            await make_collector(timeout=60, run_timeout=0.5).collect_all()
    assert time.monotonic() - started < 3


async def test_nobody_waits_for_a_retry_beyond_the_deadline(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock
) -> None:
    exchange.fail_next("/markets/keyset", status=500, times=99)
    with pytest.raises(ac.NetworkError, match="the run's 5 s are over"):
        await make_collector(max_retries=50, run_timeout=5).collect_all()
    assert sum(clock.slept) < 10


# --- what does not fit one row costs that row


BAD_VALUES: tuple[Any, ...] = (
    None, True, -1, 10**400, "", "x", "nan", "1_000", " 0.5 ", "\u0660.\u0665", "'); DROP TABLE markets;--", "%s{}",
    "\x1b[31m",    "9" * 10_000, "x" * 200_000, [], {}, [None], '["0.5"]', '["nan","1"]', '["a","b","c"]',
)  # fmt: skip
ABSENT = object()


def spoiled(sent: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """Return *sent* with another *value*, or without one."""
    return {name: old for name, old in sent.items() if name != key} | ({} if value is ABSENT else {key: value})


async def test_every_field_of_a_market_may_be_anything(exchange: FakePolymarket) -> None:
    truth = [exchange.gamma_market(market, with_tags=True) for market in list(exchange.markets.values())[:3]]
    for key in truth[1]:
        for value in (*BAD_VALUES, ABSENT):
            odd = spoiled(truth[1], key, value)
            page = ac.decode_page(json.dumps({"markets": [truth[0], odd, truth[2]]}).encode())
            understood = {market.market_id: market for market in page.markets}
            assert {truth[0]["id"], truth[2]["id"]} <= set(understood), (key, value)
            assert len(page.markets) + len(page.rejected) == 3
            if len(page.markets) == 3:
                (market,) = set(understood) - {truth[0]["id"], truth[2]["id"]}
                nothing_invented(understood[market], odd)
            else:
                assert page.rejected[0].reason.isprintable()


def nothing_invented(market: ac.GammaMarket, sent: dict[str, Any]) -> None:
    """Check that every stored value of *market* is one that was sent, or is absent."""
    if not market.is_open:
        return
    row = ac.Market.from_wire(market, seen_at="2026-11-22 14:15:00")
    for column, key in (("question", "question"), ("slug", "slug"), ("description", "description")):
        assert getattr(row, column) in (sent.get(key), None)
    assert [row.token_id_yes, row.token_id_no] == json.loads(sent["clobTokenIds"])
    snapshot = ac.Snapshot.from_wire(market, None, None, run_id=1, received_at="2026-11-22 14:15:00")
    for value, key in ((snapshot.volume_24h, "volume24hr"), (snapshot.last_trade_price, "lastTradePrice")):
        assert value is None or value == float(sent[key])
    if snapshot.price_yes is not None:
        assert snapshot.price_yes == float(json.loads(sent["outcomePrices"])[0])


async def test_every_field_of_a_book_may_be_anything(exchange: FakePolymarket) -> None:
    tokens = [market.tokens[0] for market in exchange.markets.values() if market.bids and market.asks][:3]
    truth = [json.loads(exchange.book(token) or b"") for token in tokens]
    books_as_sent, _ = ac.decode_books(json.dumps(truth).encode())
    for key in truth[1]:
        for value in (*BAD_VALUES, ABSENT):
            books, rejected = ac.decode_books(json.dumps([truth[0], spoiled(truth[1], key, value), truth[2]]).encode())
            assert {tokens[0], tokens[2]} <= {book.token_id for book in books}, (key, value)
            assert len(books) + len(rejected) == 3
    for key in ("price", "size"):
        for value in (*BAD_VALUES, ABSENT):
            level = spoiled({"price": "0.5", "size": "7"}, key, value)
            books, rejected = ac.decode_books(json.dumps([truth[0], truth[1] | {"bids": [level]}, truth[2]]).encode())
            assert [book.token_id for book in books] == tokens, (key, value)
            assert books[1].asks == books_as_sent[1].asks
            assert (books[1].bids, books[1].left_out, rejected) == ([], ("bids",), [])


def test_of_a_key_that_comes_twice_the_last_value_counts() -> None:
    body = b'[{"asset_id":"1","asset_id":"2","bids":[],"asks":[{"price":"0.5","size":"1"}],"asks":[]}]'
    assert ac.decode_books(body) == ([ac.OrderBook("2", [], [])], [])


@pytest.mark.parametrize(
    "body",
    [b'\xef\xbb\xbf[{"asset_id":"1","bids":[],"asks":[]}]', b'[{"asset_id":"1","bids":[],"asks":[],"x":"\xff"}]'],
)
def test_a_byte_order_mark_or_broken_utf_8_costs_nothing(body: bytes) -> None:
    assert ac.decode_books(body) == ([ac.OrderBook("1", [], [])], [])


async def test_hostile_texts_are_stored_as_they_are_and_shown_escaped(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [
        "'); DROP TABLE markets;--",
        "%s %d {0} {}",
        "\x1b[31mred\nline\u202ebidi",
        "=HYPERLINK(1)",
        "a\0b",
    ]
    markets = list(exchange.markets.values())
    for market, text in zip(markets, texts, strict=False):
        exchange.change(market, changes={"question": text, "slug": text, "events": [{"slug": text}]})

    def spoil(page: dict[str, Any]) -> dict[str, Any]:
        page["markets"][0]["active"] = texts[2]
        return page

    exchange.fail_next("/markets/keyset", mutate=spoil)
    exchange.fail_next("/books", status=400, body=f"<\x1b]0;pwned\x07{texts[2]}".encode(), times=3)
    result = await collector.collect_all()
    stored = {row["market_id"]: row for row in rows(database, "SELECT * FROM markets")}
    shown = [text.replace("\0", "\ufffd") for text in texts]
    for market, text in zip(markets, shown, strict=False):
        if market.id in stored:
            assert (stored[market.id]["question"], stored[market.id]["event_slug"]) == (text, text)
    reasons = [row["reason"] for row in rows(database, FAILURES)]
    assert len(reasons) == 2
    assert all(text.isprintable() for text in [*reasons, str(result["reason"]), *caplog.messages])
    assert any(r"\x1b]0;pwned\x07" in text.replace("\\\\", "\\") for text in reasons)


# --- drift: the exchange has changed


@pytest.mark.parametrize(
    "key", ["id", "active", "closed", "clobTokenIds", "question", "slug", "conditionId", "outcomes"]
)
async def test_a_renamed_field_of_markets_is_loud_and_stores_nothing(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, key: str
) -> None:
    def rename(page: dict[str, Any]) -> dict[str, Any]:
        for market in page["markets"]:
            market[f"{key}V2"] = market.pop(key)
        return page

    exchange.fail_next("/markets/keyset", times=9, mutate=rename)
    with pytest.raises(ac.MalformedResponseError, match=f"`{key}`"):
        await collector.collect_all()
    assert rows(database, "SELECT * FROM markets") == rows(database, "SELECT * FROM snapshots") == []
    assert len(exchange.asked("/markets/keyset")) == 1


@pytest.mark.parametrize("key", ["asset_id", "bids", "asks"])
async def test_a_renamed_field_of_books_is_loud_and_stores_no_book(
    exchange: FakePolymarket, collector: ac.AsyncCollector, database: Path, key: str
) -> None:
    exchange.fail_next(
        "/books", times=9, mutate=lambda books: [{**spoiled(book, key, ABSENT), "v2": book[key]} for book in books]
    )
    result = await collector.collect_all()
    assert f"the first: Object missing required field `{key}`" in str(result["drift"])
    assert (result["status"], result["snapshots"], result["books_missing"]) == ("partial", 60, 60)
    assert rows(database, "SELECT DISTINCT best_bid_yes FROM snapshots") == [{"best_bid_yes": None}]


async def test_a_change_in_the_middle_of_a_listing_keeps_what_was_understood_and_is_loud(
    exchange: FakePolymarket, collector: ac.AsyncCollector
) -> None:
    for _ in range(240):
        exchange.add_market(volume_24h=200_000.0)
    exchange.fail_next("/markets/keyset")
    exchange.fail_next(
        "/markets/keyset",
        times=9,
        mutate=lambda page: page | {"markets": [spoiled(market, "active", "soon") for market in page["markets"]]},
    )
    result = await collector.collect_all()
    assert (result["status"], result["snapshots"]) == ("partial", 100)
    assert "100 of 100 elements are not understood, the first: Expected `bool`, got `str` - at `$.active`" in str(
        result["drift"]
    )


# --- a soak


@pytest.mark.slow
async def test_two_hundred_runs_in_which_a_fifth_of_the_answers_fail(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path, clock: JumpingClock
) -> None:
    rng = random.Random(7)

    faults: list[dict[str, Any]] = [
        {"status": 500}, {"status": 503, "retry_after": 1}, {"status": 429}, {"status": 408}, {"disconnect": True},
        {"cut": True}, {"body": b"<html>"}, {"body": b""}, {"body": b'{"error":"busy"}'}, {"delay_s": 0.4},
    ]  # fmt: skip
    for _ in range(200 * 8):
        for path in ("/books", "/markets/keyset"):
            exchange.fail_next(path, **(rng.choice(faults) if rng.random() < 0.2 else {}))
    truth = {market.id: (market.best_bid, market.best_ask) for market in exchange.markets.values()}
    collector = make_collector(timeout=0.3)
    for _ in range(200):
        with contextlib.suppress(ac.ApiError):
            await collector.collect_all()
        clock.elapsed_s += 900
    stored = rows(database, "SELECT market_id, run_id, best_bid_yes, best_ask_yes FROM snapshots")
    assert len(stored) == len({(row["market_id"], row["run_id"]) for row in stored})  # nothing twice
    with_books = 0
    for row in stored:
        bid, ask = truth[row["market_id"]]
        seen = (row["best_bid_yes"], row["best_ask_yes"])
        is_true = seen == (float(bid[0]) if bid else None, float(ask[0]) if ask else None)
        assert is_true or seen == (None, None)  # nothing invented
        with_books += is_true
    assert sum(arrival.status >= 400 for arrival in exchange.arrivals) > 40
    assert len(stored) >= 0.999 * 200 * 60
    assert with_books >= 0.99 * 200 * 60
