"""covers: the command collector-live as a process: options, variables, signals, exit codes, secrets."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT, rows
from fake_polymarket import stir
from live_truth import LIVE, Truth, live
from truth import command, variables

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket


@asynccontextmanager
async def started(
    exchange: FakePolymarket, *args: str, tokens: int, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the command beside the test, from its first subscription on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROJECT / LIVE), *args),
        env=variables(exchange, env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await asyncio.wait_for(exchange.live.until_listeners(1, with_tokens=tokens), 30)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_stored(path: Path, count: int, table: str = "book_changes") -> None:
    deadline = time.monotonic() + 30
    while len(rows(path, f"SELECT market_id FROM {table}")) < count:  # noqa: S608
        assert time.monotonic() < deadline, "it was never stored"
        await asyncio.sleep(0.05)


async def test_what_a_newcomer_follows_on_the_stand_in_changes(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    stirring = asyncio.create_task(stir(exchange, random.Random(1)))
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=2 * len(cup)):
        await until_stored(path, 20)
        await until_stored(path, 2, "live_trades")
        stirring.cancel()
        await until_stored(path, len(exchange.live.changes))
        await until_stored(path, len(exchange.live.trades), "live_trades")
    assert [tuple(row.values()) for row in rows(path, "SELECT market_id, side, price, size FROM book_changes")] == [
        (change.market_id, change.side, change.price, change.size) for change in exchange.live.changes
    ]
    assert rows(path, "SELECT reason FROM live_gaps") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_all_that_came_and_says_so(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path, number: int
) -> None:
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=6) as process:
        exchange.live.change(cup[0], ("bid", "0.41", "3"))
        await until_stored(path, 1)
        exchange.live.change(cup[0], ("bid", "0.41", "4"))
        await asyncio.sleep(0.1)
        process.send_signal(number)
        began = time.monotonic()
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, err
        assert time.monotonic() - began < 10
        counts = "2 changes and 0 trades are stored, 0 gaps are closed; what comes until the next start is one"
        assert out.decode() == f"{path}: {counts}\n"
    assert rows(path, "SELECT reason FROM streams") == [{"reason": "stopped"}]
    assert rows(path, "SELECT status FROM runs") == [{"status": "complete"}]


@pytest.mark.slow
async def test_a_signal_during_an_anchor_ends_it_as_partial(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    async with started(exchange, "--event", "cup", "--db", str(path), "--every", "0.5", tokens=6) as process:
        exchange.fail_next("/books", hang=True, times=100)
        asked = len(exchange.asked("/books"))
        await asyncio.wait_for(exchange.until_asked("/books", asked + 1), 30)
        process.terminate()
        await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
    assert {row["status"] for row in rows(path, "SELECT status FROM runs")} <= {"complete", "partial", "failed"}
    assert rows(path, "SELECT count(*) AS n FROM runs WHERE finished_at IS NULL") == [{"n": 0}]
    assert len(cup) == 3


@pytest.mark.slow
async def test_a_killed_process_loses_nothing_outside_of_a_gap(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path
) -> None:
    truth = Truth(exchange, cup)
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=6) as process:
        exchange.live.change(cup[0], ("bid", "0.41", "3"))
        await until_stored(path, 1)
        exchange.live.change(cup[0], ("bid", "0.41", "4"))
        process.kill()
        await process.wait()
    exchange.live.change(cup[1], ("bid", "0.41", "5"))
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=6) as process:
        exchange.live.change(cup[2], ("bid", "0.41", "6"))
        await until_stored(path, 2)
        process.terminate()
        await asyncio.wait_for(process.communicate(), 30)
    truth.assert_stored(path)
    assert [row["reason"] for row in rows(path, "SELECT reason FROM streams")] == ["the process died", "stopped"]


async def test_there_is_one_of_them_per_file(exchange: FakePolymarket, path: Path) -> None:
    path.touch()
    with ac.locked(path.with_name(f"{path.name}.live")):
        done = await command(exchange, LIVE, "--event", "cup", POLYMARKET_LIVE_DB=str(path))
    assert done.code == 75
    assert "in use by process" in done.err


async def test_a_name_that_the_exchange_does_not_have_ends_it(exchange: FakePolymarket, path: Path) -> None:
    done = await command(exchange, LIVE, "--event", "cpu", "--db", str(path))
    assert (done.code, done.out) == (78, "")
    assert "the exchange has no event 'cpu'" in done.err
    assert not path.exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "name at least one market, event, series or tag"),
        (("--event", "a b"), "must be a slug"),
        (("--event", "cup", "--every", "0"), "--every='0': must be a number above 0"),
        (("--event", "cup", "--ends-within", "5"), "must come with series or tags"),
        (("--events", "cup", "--nonsense"), "unrecognized arguments"),
    ],
)
async def test_a_bad_command_line_is_2(exchange: FakePolymarket, args: tuple[str, ...], says: str) -> None:
    done = await command(exchange, LIVE, *args)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


@pytest.mark.parametrize(
    "address",
    [
        *("ws://ws-subscriptions-clob.polymarket.com/ws/market", "https://127.0.0.1/ws", "127.0.0.1:80", "wss://"),
        *("ws://10.0.0.1/ws", "wss://user:hunter2@127.0.0.1/ws", "wss://127.0.0.1/ws?token=hunter2", "wss://a b/"),
    ],
)
def test_an_address_that_others_could_read_along_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("CLOB_WS", address)
    with pytest.raises(
        ac.ConfigError, match=r"^CLOB_WS=.*: must be a wss:// address, or a ws:// address on loopback$"
    ) as e:
        live.channel_address()
    assert "user:hunter2" not in str(e.value)


@pytest.mark.parametrize(
    ("address", "no_proxy", "proxy"),
    [
        ("wss://exchange.test/ws/market", "", "http://proxy.test:3128"),
        ("wss://exchange.test/ws/market", "exchange.test", None),
        ("ws://127.0.0.1:8080/ws/market", "127.0.0.1", None),
        ("ws://localhost/ws", "localhost", None),
        ("ws://[::1]:8080/ws", "::1", None),
    ],
)
def test_the_proxy_is_that_of_the_https_address(
    monkeypatch: pytest.MonkeyPatch, address: str, no_proxy: str, proxy: str | None
) -> None:
    monkeypatch.setenv("CLOB_WS", address)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    url, endpoint = live.channel_address()
    assert url == address
    assert (endpoint.proxy and str(endpoint.proxy)) == proxy
    assert "hunter2" not in repr(endpoint)


@pytest.mark.slow
async def test_no_posts_are_bought(exchange: FakePolymarket, cup: list[FakeMarket], path: Path) -> None:
    exchange.say("polymarket is buzzing about the cup")
    async with started(exchange, "--event", "cup", "--db", str(path), tokens=6):
        await asyncio.wait_for(exchange.until_asked("/books"), 30)
    assert exchange.asked("/recent") == []
    assert len(cup) == 3


def test_help_and_docs_name_every_option_variable_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        live.main(["--help"])
    shown = capsys.readouterr().out
    page = (PROJECT / "docs/live.md").read_text()
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help", "--version"}
    assert options == set(re.findall(r"`(--[a-z-]+)", page))
    codes = re.findall(r"^  (\d+) ", shown, re.MULTILINE)
    assert codes == re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "2", "74", "75", "78"]
    for name, default in live.ENVIRONMENT.items():
        assert f"| `{name}` | `{default}` |" in page
        assert default in shown
    assert len(re.findall(r"^  collector-live ", shown, re.MULTILINE)) == 2
