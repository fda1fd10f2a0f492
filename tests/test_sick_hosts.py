"""covers: hosts that cannot be reached, redirect, deny access or fail for long: retries, the breaker, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from conftest import PROJECT, rows
from raw_server import HTTP, raw_server, sends
from truth import failures

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket


@pytest.fixture
async def host(make_collector: Callable[..., ac.AsyncCollector]) -> AsyncIterator[ac.HttpHost]:
    """A client that sends nothing; the test tells it how requests went."""
    collector = make_collector()
    async with collector.connect() as (network, _):
        yield ac.HttpHost(collector.settings.clob, collector.clob_limiter, network)


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
    reasons = {row["reason"] for row in failures(database)}
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
