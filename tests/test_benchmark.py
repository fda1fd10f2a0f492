"""covers: `--benchmark`: both ways measured on the same markets, and the user's file left alone."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import PROJECT
from forked import run_script

import async_collector as ac

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakePolymarket


class Done(NamedTuple):
    """What a finished command left."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMMA_RATE_LIMIT", "1000")
    monkeypatch.setenv("CLOB_RATE_LIMIT", "1000")


async def benchmark(*args: str, cwd: Path | None = None) -> Done:
    code, out, err = await run_script(
        str(PROJECT / "async-collector.py"), "--benchmark", *args, folder=cwd, variables=os.environ
    )
    return Done(code, out.decode(), err.decode())


async def measured(*args: str) -> dict[str, Any]:
    done = await benchmark("--json", *args)
    assert (done.code, done.err) == (0, "")
    result: dict[str, Any] = json.loads(done.out)
    return result


@pytest.mark.slow
async def test_both_ways_store_the_same_markets(exchange: FakePolymarket) -> None:
    exchange.latency_s = 0.005
    result = await measured()
    old, new = result["one_by_one"], result["async_collector"]
    assert (old["markets"], new["markets"], result["same_markets"], result["sample"]) == (60, 60, True, None)
    assert (old["requests"], new["requests"]) == (121, 3)  # one proves the end
    assert len(exchange.asked("/clob/book")) == 120
    assert result["speed_up"] == new["markets_per_second"] / old["markets_per_second"] > 2
    assert (old["peak_memory_mb"] or 0) > 10
    assert (new["peak_memory_mb"] or 0) > 10


@pytest.mark.slow
async def test_of_many_markets_the_old_way_takes_a_sample(exchange: FakePolymarket) -> None:
    for _ in range(90):
        exchange.add_market()
    result = await measured("--min-volume", "0")
    assert (result["one_by_one"]["markets"], result["async_collector"]["markets"]) == (100, 150)
    assert (result["sample"], result["same_markets"]) == (100, True)


async def test_a_market_that_only_one_way_has_seen_is_told(exchange: FakePolymarket) -> None:
    gone = next(iter(exchange.markets.values()))
    measuring = asyncio.ensure_future(measured())
    await exchange.until_asked("/clob/books")
    exchange.change(gone, closed=True)
    assert not (await measuring)["same_markets"]


@pytest.mark.slow
async def test_the_command_shows_both_and_touches_no_file(exchange: FakePolymarket, tmp_path: Path) -> None:
    assert exchange.url
    shown = await benchmark(cwd=tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert re.fullmatch(r"Benchmark: .*\n  speed-up +\d+ times\n  same markets +yes\n", shown.out, re.DOTALL)
    as_json = await benchmark("--json", cwd=tmp_path)
    assert (as_json.code, as_json.err, as_json.out.count("\n")) == (0, "", 1)
    assert json.loads(as_json.out)["same_markets"] is True
    assert list(tmp_path.iterdir()) == []


async def test_both_ways_try_again_where_that_may_help(exchange: FakePolymarket) -> None:
    for market in list(exchange.markets.values())[5:]:
        exchange.change(market, closed=True)
    exchange.fail_next("/books", status=503)
    exchange.fail_next("/book", status=503)
    result = await measured()
    assert (result["one_by_one"]["requests"], result["async_collector"]["requests"]) == (12, 4)  # one proves the end
    assert (result["one_by_one"]["markets"], result["same_markets"]) == (5, True)


async def test_an_exchange_that_is_down_ends_the_benchmark_as_it_ends_a_run(
    exchange: FakePolymarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exchange.url
    monkeypatch.setenv("GAMMA_API", "http://127.0.0.1:1")
    done = await benchmark("--max-retries", "0")
    assert done.code == 69
    assert done.err.startswith("async-collector: http://127.0.0.1:1/markets/keyset: Cannot connect")
    assert done.err.count("\n") == 1


async def test_an_exchange_that_fails_one_request_at_a_time_is_named(exchange: FakePolymarket) -> None:
    exchange.fail_next("/clob/book", status=503, times=99)
    done = await benchmark("--max-retries", "0")
    assert done.code == 69
    assert done.err.startswith(f"async-collector: {exchange.url}/clob/book: 503")
    assert done.err.count("\n") == 1


async def test_a_benchmark_of_nothing_is_refused(exchange: FakePolymarket) -> None:
    assert exchange.url
    done = await benchmark("--min-volume", "1e12")
    assert (done.code, done.err.count("\n")) == (78, 1)
    assert "there is no market to measure" in done.err


def test_errors_survive_the_way_between_processes() -> None:
    error = ac.NetworkError("gone", "https://example.com/books", None, 3.0)
    error.retryable = False
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert (str(copy), vars(copy)) == (str(error), vars(error))
