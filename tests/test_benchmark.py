"""The benchmark measures both ways on the same markets, and leaves the user's file alone."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT

import async_collector as ac

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakePolymarket


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMMA_RATE_LIMIT", "1000")
    monkeypatch.setenv("CLOB_RATE_LIMIT", "1000")


async def measured(**settings: float) -> ac.BenchmarkResult:
    return await asyncio.to_thread(ac.benchmark, **settings)


@pytest.mark.slow
async def test_both_ways_store_the_same_markets(exchange: FakePolymarket) -> None:
    exchange.latency_s = 0.005
    result = await measured()
    old, new = result["one_by_one"], result["async_collector"]
    assert (old["markets"], new["markets"], result["same_markets"], result["sample"]) == (60, 60, True, None)
    assert (old["requests"], new["requests"]) == (121, 2)
    assert len(exchange.asked("/clob/book")) == 120
    assert result["speed_up"] == new["markets_per_second"] / old["markets_per_second"] > 2
    assert (old["peak_memory_mb"] or 0) > 10
    assert (new["peak_memory_mb"] or 0) > 10


@pytest.mark.slow
async def test_of_many_markets_the_old_way_takes_a_sample(exchange: FakePolymarket) -> None:
    for _ in range(90):
        exchange.add_market()
    result = await measured(min_volume=0)
    assert (result["one_by_one"]["markets"], result["async_collector"]["markets"]) == (100, 150)
    assert (result["sample"], result["same_markets"]) == (100, True)


async def test_a_market_that_only_one_way_has_seen_is_told(exchange: FakePolymarket) -> None:
    gone = next(iter(exchange.markets.values()))
    measuring = asyncio.ensure_future(measured())
    await exchange.until_asked("/clob/book")
    exchange.change(gone, closed=True)
    assert not (await measuring)["same_markets"]


@pytest.mark.slow
async def test_the_command_shows_both_and_touches_no_file(exchange: FakePolymarket, tmp_path: Path) -> None:
    for args, expected in (
        (("--benchmark",), r"Benchmark: .*\n  speed-up +\d+ times\n  same markets +yes\n"),
        (("--benchmark", "--json"), r"\{.*\}\n"),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(PROJECT / "async-collector.py"), *args),
            cwd=tmp_path,
            env=os.environ | exchange.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, err) == (0, b"")
        assert re.fullmatch(expected, out.decode(), re.DOTALL)
    assert json.loads(out)["same_markets"] is True
    assert list(tmp_path.iterdir()) == []


async def test_an_exchange_that_is_down_ends_the_benchmark_as_it_ends_a_run(
    exchange: FakePolymarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exchange.url
    monkeypatch.setenv("GAMMA_API", "http://127.0.0.1:1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROJECT / "async-collector.py"), "--benchmark", "--max-retries", "0"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 69
    assert err.startswith(b"async-collector: http://127.0.0.1:1/markets/keyset: Cannot connect")
    assert err.count(b"\n") == 1


async def test_a_benchmark_of_nothing_is_refused(exchange: FakePolymarket) -> None:
    assert exchange.url
    with pytest.raises(ac.ConfigError, match="there is no market to measure"):
        await measured(min_volume=1e12)


def test_errors_survive_the_way_between_processes() -> None:
    error = ac.NetworkError("gone", "https://example.com/books", None, 3.0)
    error.retryable = False
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert (str(copy), vars(copy)) == (str(error), vars(error))
