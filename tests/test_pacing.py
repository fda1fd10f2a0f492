"""covers: how fast we ask and how patient we are: `RateLimiter`, retries, `Retry-After`."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from conftest import JumpingClock, VirtualClock
from hypothesis import given
from hypothesis import strategies as st

from async_collector import (
    ApiError,
    NetworkError,
    RateLimitedError,
    RateLimiter,
    RequestRejectedError,
    ServerError,
    backoff_delay,
    parse_retry_after,
)

if TYPE_CHECKING:
    from fake_polymarket import FakePolymarket

    from async_collector import AsyncCollector

NOW = datetime(2026, 11, 22, 14, 15, tzinfo=UTC)
instants = st.integers(0, 400).map(lambda hundredths: hundredths / 100)


class Script:
    """Requests that arrive at given times, some of which give up, while the limit changes."""

    def __init__(self, limiter: RateLimiter, clock: VirtualClock) -> None:
        self.limiter = limiter
        self.clock = clock
        self.starts: list[tuple[float, int, int]] = []  # when, whose, and the limit at that time

    async def request(self, number: int, arrives: float, gives_up_after: float | None = None) -> None:
        await self.clock.sleep(arrives)
        waiting = asyncio.ensure_future(self.limiter.acquire())
        waiting.add_done_callback(lambda task: None if task.cancelled() else self.started(number))
        if gives_up_after is not None:
            await self.clock.sleep(gives_up_after)
            waiting.cancel()
        await asyncio.wait([waiting])

    def started(self, number: int) -> None:
        self.starts.append((self.clock.time, number, self.limiter.max_requests))

    async def change_limit(self, at: float, limit: int) -> None:
        await self.clock.sleep(at)
        self.limiter.max_requests = limit


def assert_window_holds(starts: list[tuple[float, int, int]], window_s: float) -> None:
    for position, (start, _, limit) in enumerate(starts):
        earlier = [time for time, _, _ in starts[: position + 1] if time + window_s > start]
        assert len(earlier) <= limit


@given(
    arrivals=st.lists(instants, max_size=40).map(sorted),
    max_requests=st.integers(1, 6),
    window_s=st.sampled_from((0.1, 1.0, 1.7)),
)
def test_no_window_ever_holds_more_starts_than_allowed(
    arrivals: list[float], max_requests: int, window_s: float
) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        script = Script(RateLimiter(max_requests, window_s, clock=clock), clock)
        await clock.run(*(script.request(number, arrives) for number, arrives in enumerate(arrivals)))
        assert_window_holds(script.starts, window_s)
        assert [number for _, number, _ in script.starts] == list(range(len(arrivals))), "first come, first served"
        for (time, number, _), earliest in zip(
            script.starts, earliest_starts(arrivals, max_requests, window_s), strict=True
        ):
            assert time == pytest.approx(earliest), f"request {number} waited longer than it had to"

    asyncio.run(scenario())


def earliest_starts(arrivals: list[float], max_requests: int, window_s: float) -> list[float]:
    """Return the best schedule that there is, computed the plain way."""
    starts: list[float] = []
    for arrives in arrivals:
        after = starts[-max_requests] + window_s if len(starts) >= max_requests else 0.0
        starts.append(max(arrives, after, starts[-1] if starts else 0.0))
    return starts


@given(
    requests=st.lists(st.tuples(instants, st.none() | instants), min_size=1, max_size=30),
    limits=st.lists(st.tuples(instants, st.integers(1, 6)), max_size=4),
)
def test_who_gives_up_or_changes_the_limit_breaks_no_promise(
    requests: list[tuple[float, float | None]], limits: list[tuple[float, int]]
) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        script = Script(RateLimiter(3, 1.0, clock=clock), clock)
        asked = (script.request(number, *request) for number, request in enumerate(requests))
        await clock.run(*asked, *(script.change_limit(at, limit) for at, limit in limits))
        assert_window_holds(script.starts, 1.0)
        started = {number for _, number, _ in script.starts}
        patient = {number for number, (_, gives_up_after) in enumerate(requests) if gives_up_after is None}
        assert patient <= started

    asyncio.run(scenario())


@given(
    requests=st.lists(st.tuples(instants, st.sampled_from((0.0, 0.05, 0.3, 1.5))), min_size=1, max_size=30),
    max_requests=st.integers(1, 6),
)
def test_a_start_counts_from_when_its_connection_is_open(
    requests: list[tuple[float, float]], max_requests: int
) -> None:
    """No window holds more requests that left than allowed, however long their connections took to open."""

    async def scenario() -> None:
        clock = VirtualClock()
        limiter = RateLimiter(max_requests, clock=clock)
        left: list[tuple[float, int, int]] = []

        async def request(number: int, arrives: float, connects_within: float) -> None:
            await clock.sleep(arrives)
            started = await limiter.acquire()
            await clock.sleep(connects_within)
            assert await limiter.move_start(started) == clock.time
            left.append((clock.time, number, max_requests))

        await clock.run(*(request(number, *times) for number, times in enumerate(requests)))
        assert_window_holds(left, 1.0)
        assert len(left) == len(requests)

    asyncio.run(scenario())


async def test_a_restart_with_room_waits_for_nobody_who_waits() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(2, clock=clock)
    left: list[float] = []

    async def request(connects_within: float) -> None:
        started = await limiter.acquire()
        await clock.sleep(connects_within)
        left.append(await limiter.move_start(started))

    await clock.run(request(0.2), request(0.3), request(0.0))
    assert left == [0.2, 0.3, 1.2]


async def test_a_cancelled_waiter_holds_nobody_up() -> None:
    clock = VirtualClock()
    script = Script(RateLimiter(1, 1.0, clock=clock), clock)
    await clock.run(script.request(0, 0.0), script.request(1, 0.1, gives_up_after=0.2), script.request(2, 0.2))
    assert script.starts == [(0.0, 0, 1), (1.0, 2, 1)]


async def test_a_lower_limit_counts_for_those_who_wait() -> None:
    clock = VirtualClock()
    script = Script(RateLimiter(2, 1.0, clock=clock), clock)
    await clock.run(*(script.request(number, 0.0) for number in range(5)), script.change_limit(0.5, 1))
    assert [time for time, _, _ in script.starts] == [0.0, 0.0, 1.0, 2.0, 3.0]


async def test_ten_refusals_that_arrive_together_are_one_step() -> None:
    clock = JumpingClock()
    limiter = RateLimiter(100, clock=clock)
    started = clock.monotonic()
    clock.elapsed_s += 0.1
    for _ in range(10):
        limiter.apply_backoff(started=started)
    await limiter.acquire()
    limiter.apply_backoff(started=started)  # a late answer to a request from before the pause
    await limiter.acquire()
    assert clock.slept == [1.0]


async def test_the_pause_grows_from_1_s_to_60_s_and_starts_anew_after_a_success() -> None:
    clock = JumpingClock()
    limiter = RateLimiter(100, backoff_multiplier=3.0, clock=clock)
    for _ in range(6):
        limiter.apply_backoff()
        await limiter.acquire()
    limiter.reset_backoff()
    limiter.apply_backoff()
    await limiter.acquire()
    assert clock.slept == [1.0, 3.0, 9.0, 27.0, 60.0, 60.0, 1.0]


async def test_a_success_from_before_the_pause_resets_nothing() -> None:
    clock = JumpingClock()
    limiter = RateLimiter(100, clock=clock)
    for _ in range(3):
        started = clock.monotonic()
        clock.elapsed_s += 0.1
        limiter.apply_backoff(started=started)
        limiter.reset_backoff(started=started)
        await limiter.acquire()
    assert clock.slept == [1.0, 2.0, 4.0]


async def test_a_longer_retry_after_extends_the_pause_for_everybody() -> None:
    clock = JumpingClock()
    limiter = RateLimiter(100, clock=clock)
    limiter.apply_backoff(retry_after=0.5)
    limiter.apply_backoff(retry_after=7)
    await limiter.acquire()
    await limiter.acquire()
    assert clock.slept == [7.0]


def test_a_limiter_serves_one_event_loop_after_another() -> None:
    limiter = RateLimiter(2, 0.01)

    async def crowd() -> None:
        await asyncio.gather(*(limiter.acquire() for _ in range(6)))

    asyncio.run(crowd())
    asyncio.run(crowd())


@given(attempt=st.integers(0, 2_000), seed=st.integers())
def test_a_wait_is_shortened_by_half_at_most(attempt: int, seed: int) -> None:
    longest = min(2**attempt, 60)
    assert longest / 2 <= backoff_delay(attempt, random.Random(seed)) <= longest


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        ("Sun, 22 Nov 2026 14:15:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 14:00:00 GMT", 0.0),
        ("-5", None),
        ("1.5e3", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        ("9" * 400, float("inf")),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


async def attempts_until(error: type[ApiError], exchange: FakePolymarket, collector: AsyncCollector) -> int:
    """Return how many attempts are made at a request that never works, and fails with *error*."""
    async with collector.connect() as (network, api):
        with pytest.raises(error):
            await api.fetch_books(["1"])
        attempts = len(exchange.asked("/books"))
        assert (network.requests, network.retries) == (attempts, attempts - 1)
    return attempts


@pytest.mark.parametrize(
    ("fault", "error"),
    [({"disconnect": True}, NetworkError), ({"status": 503}, ServerError), ({"status": 429}, RateLimitedError)],
)
async def test_three_retries_are_four_attempts_after_1_2_and_4_s(
    exchange: FakePolymarket,
    collector: AsyncCollector,
    clock: JumpingClock,
    fault: dict[str, Any],
    error: type[ApiError],
) -> None:
    exchange.fail_next("/books", times=9, **fault)
    assert await attempts_until(error, exchange, collector) == 4
    assert clock.slept == [1.0, 2.0, 4.0]


async def test_what_asking_again_will_not_help_is_asked_once(
    exchange: FakePolymarket, collector: AsyncCollector
) -> None:
    exchange.fail_next("/books", status=400, times=9)
    assert await attempts_until(RequestRejectedError, exchange, collector) == 1


async def test_a_longer_retry_after_wins_over_the_backoff(
    exchange: FakePolymarket, collector: AsyncCollector, clock: JumpingClock
) -> None:
    exchange.fail_next("/books", status=503, retry_after=3, times=9)
    await attempts_until(ServerError, exchange, collector)
    assert clock.slept == [3, 3, 4.0]


async def test_a_server_that_wants_more_than_a_minute_is_given_up(
    exchange: FakePolymarket, collector: AsyncCollector
) -> None:
    exchange.fail_next("/books", status=503, retry_after=86_400, times=9)
    assert await attempts_until(ServerError, exchange, collector) == 1
