"""covers: arrivals as a server counts them: in any second they stay within the rate that was set."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import pytest
from fake_polymarket import FakePolymarket
from truth import COLLECTOR, assert_true, command

GAMMA_RATE, CLOB_RATE = 10, 20  # requests a second, the defaults


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its clock is too coarse for the times of arrivals")
@pytest.mark.parametrize("latency_s", [0.0, 0.08, 0.6], ids=["near", "across a continent", "overloaded"])
async def test_a_server_that_counts_arrivals_in_any_second_refuses_almost_nothing(latency_s: float) -> None:
    """The first run walks, the second asks for 3,000 known markets by id with 50 workers.

    The collector is a process of its own, so that the fake sees when its requests arrive. One more than the rate may
    arrive in a second, since the way to the server is not equally long each time; and on a busy machine the server
    itself may stand still for a moment, so the best of three tries counts.
    """
    limits = {"/gamma": GAMMA_RATE, "/clob": CLOB_RATE}
    seen: list[tuple[int, int, int]] = []
    for _ in range(3):
        async with FakePolymarket(3_000, latency_s=latency_s, limits=limits, limit_window_s=1.0) as exchange:
            seen.append(await arrivals_of_two_runs(exchange))
        if max(seen[-1]) <= 1:
            break
    assert min(max(tried) for tried in seen) <= 1, seen


async def arrivals_of_two_runs(exchange: FakePolymarket) -> tuple[int, int, int]:
    """Return how many more than the rate arrived at Gamma and at the CLOB in a second, and how many were refused."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "poly.db"
        for _ in range(2):
            done = await command(
                exchange, COLLECTOR, "--quiet", "--min-volume", "0", "--workers", "50", "--db", str(database)
            )
            assert (done.code, done.err) == (0, "")
            assert_true(database, exchange.markets.values())
            await asyncio.sleep(1.1)  # the next process knows nothing of the starts of this one
    more = exchange.busiest("/markets/keyset", 1.0) - GAMMA_RATE, exchange.busiest("/books", 1.0) - CLOB_RATE
    return max(more[0], 0), max(more[1], 0), exchange.refused


async def test_the_default_job_still_takes_two_round_trips(tmp_path: Path) -> None:
    """Politeness does not make the small job wait: its listing and its books are asked for once each, at once."""
    async with FakePolymarket(60, limits={"/gamma": GAMMA_RATE, "/clob": CLOB_RATE}, limit_window_s=1.0) as exchange:
        for market in exchange.markets.values():
            exchange.change(market, volume_24h=200_000.0)
        exchange.add_market(volume_24h=50.0)
        done = await command(exchange, COLLECTOR, "--quiet", "--db", str(tmp_path / "poly.db"))
    assert done.code == 0
    assert [arrival.path for arrival in exchange.arrivals] == ["/gamma/markets/keyset", "/clob/books"]
