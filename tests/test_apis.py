"""covers: what is asked of Gamma, the CLOB and X, and what is made of their answers."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket


@pytest.fixture
async def api(collector: ac.AsyncCollector) -> AsyncIterator[ac.PolymarketApi]:
    """The API as a run of `collector` uses it."""
    async with collector.connect() as (_, api):
        yield api


async def listed(api: ac.PolymarketApi, *, order: str = "id", ascending: bool = True) -> list[str]:
    pages = api.iter_market_pages(ac.Listing(order, ascending=ascending))
    return [market.market_id async for page in pages for market in page.markets]


async def test_a_listing_goes_through_all_pages_in_order(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    for _ in range(190):
        exchange.add_market()
    ids = sorted(exchange.markets, key=int)
    assert await listed(api) == ids
    assert await listed(api, ascending=False) == ids[::-1]
    volumes = {market.id: market.volume_24h or 0 for market in exchange.markets.values()}
    by_volume = await listed(api, order="volume24hr", ascending=False)
    assert [volumes[id_] for id_ in by_volume] == sorted(volumes.values(), reverse=True)
    assert len(exchange.asked("/markets/keyset")) == 3 * (3 + 1), "three pages and the other end"


async def test_a_full_last_page_is_followed_by_an_empty_one(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    for _ in range(40):
        exchange.add_market()
    assert len(await listed(api)) == 100
    assert len(exchange.asked("/markets/keyset")) == 3


async def test_a_cursor_that_comes_again_ends_the_listing(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    for _ in range(200):
        exchange.add_market()
    exchange.fail_next("/markets/keyset", times=9, mutate=lambda page: page | {"next_cursor": "WzEuMCwgMV0="})
    with pytest.raises(ac.MalformedResponseError, match="does not end: page 2 leads to cursor 'WzEuMCwgMV0='"):
        await listed(api)


@pytest.mark.parametrize(("page_size", "withheld"), [(60, 0), (100, 50), (100, 1)])
async def test_a_first_page_that_is_shorter_than_asked_is_asked_for_with_its_own_size(
    api: ac.PolymarketApi, exchange: FakePolymarket, page_size: int, withheld: int
) -> None:
    """Where pages are smaller, the same comes again; where some of a page is left out, it is short again."""
    for _ in range(200):
        exchange.add_market()
    exchange.odd.page_size, exchange.odd.withheld = page_size, withheld
    pages = [page async for page in api.iter_market_pages(ac.Listing("id", ascending=True))]
    assert (pages[0].incomplete is not None) == (withheld > 0)
    sizes = [arrival.query.partition("limit=")[2].partition("&")[0] for arrival in exchange.asked("/markets/keyset")]
    assert sizes[:2] == ["100", str(page_size - withheld)]
    assert sum(len(page.markets) for page in pages) == 260 or withheld


@pytest.mark.parametrize("more", [0, 40])
async def test_a_listing_goes_on_after_a_page_of_an_earlier_run(
    api: ac.PolymarketApi, exchange: FakePolymarket, more: int
) -> None:
    """Also where nothing follows: its end is that of the page before."""
    for _ in range(40 + more):
        exchange.add_market()
    listing = ac.Listing("id", ascending=True)
    async for page in api.iter_market_pages(listing):
        after = (page.next_cursor or "", str(page.ids[-1]))
        break
    rest = [id_ async for page in api.iter_market_pages(listing, after=after) for id_ in page.ids]
    assert rest == [market.number for market in exchange.markets.values()][100:]


async def test_an_empty_exchange_is_not_believed(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    exchange.fail_next("/markets/keyset", body=b'{"markets":[]}')
    with pytest.raises(ac.MalformedResponseError, match="the listing is empty"):
        await listed(api)


async def test_books_are_matched_by_token(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    first, second, third = list(exchange.markets.values())[:3]
    exchange.change(second, has_books=False)
    books, problems = await api.fetch_books([*first.tokens, *second.tokens, third.tokens[1]])
    assert books.keys() == {*first.tokens, third.tokens[1]}
    assert all(book.token_id == token for token, book in books.items())
    assert problems == {}


async def test_a_request_that_is_too_large_is_halved(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    tokens = [token for market in exchange.markets.values() for token in market.tokens]
    exchange.fail_next("/books", status=400, body=b'{"error":"Payload exceeds the limit"}', times=1)
    exchange.fail_next("/books", status=413, body=b"", times=1)
    books, _ = await api.fetch_books(tokens)
    assert books.keys() == set(tokens)
    assert [arrival.tokens for arrival in exchange.asked("/books")] == [0, 0, 30, 30, 30, 30]
    await api.fetch_books(tokens)  # what was too large once is not asked for again
    assert [arrival.tokens for arrival in exchange.asked("/books")[6:]] == [30, 30, 30, 30]


async def test_a_smaller_batch_makes_later_ones_no_smaller(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    tokens = [token for market in exchange.markets.values() for token in market.tokens]
    exchange.fail_next("/books", status=413, body=b"")
    for number in (120, 70, 120, 61, 120):
        await api.fetch_books(tokens[:number])
    assert [arrival.tokens for arrival in exchange.asked("/books")] == [0, 60, 60, 35, 35, 60, 60, 30, 31, 60, 60]


class ShuttingLimiter(ac.RateLimiter):
    """Has its host closed while a connection is being opened."""

    async def move_start(self, started: float) -> float:
        """Close the host for a minute."""
        self.quota_resets_at = self._clock.monotonic() + 60
        return await super().move_start(started)


async def test_a_request_that_does_not_leave_leaves_no_connection_open(
    monkeypatch: pytest.MonkeyPatch, make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock
) -> None:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read_to_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())
        writer.close()

    server = await asyncio.start_server(read_to_the_end, "127.0.0.1", 0)
    monkeypatch.setenv("CLOB_API", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    collector = make_collector(max_retries=0)
    collector.clob_limiter = ShuttingLimiter(20, clock=clock)
    async with server, collector.connect() as (network, api):
        with pytest.raises(ac.RateLimitedError, match="its quota is used up for 60 s more"):
            await api.fetch_books(["1"])
        assert await asyncio.wait_for(received, 5) == b""
        assert network.requests == 1


@pytest.mark.parametrize(
    ("status", "kind", "asked"),
    [
        (400, ac.RequestRejectedError, 1),
        (409, ac.RequestRejectedError, 1),
        (404, ac.RequestRejectedError, 1),
        (422, ac.RequestRejectedError, 1),
        (408, ac.ServerError, 4),
        (425, ac.ServerError, 4),
        (429, ac.RateLimitedError, 4),
        (500, ac.ServerError, 4),
        (503, ac.ServerError, 4),
        (520, ac.ServerError, 4),
    ],
)
async def test_a_status_is_retried_where_that_may_help(
    api: ac.PolymarketApi, exchange: FakePolymarket, status: int, kind: type[ac.ApiError], asked: int
) -> None:
    exchange.fail_next("/books", status=status, times=9)
    with pytest.raises(kind, match=f"/books: HTTP {status}") as caught:
        await api.fetch_books(["1"])
    assert caught.value.status == status
    assert len(exchange.asked("/books")) == asked


async def test_a_redirect_is_refused_by_name(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    exchange.fail_next("/books", status=302, headers={"Location": "http://127.0.0.1:1/else"}, body=b"")
    with pytest.raises(ac.RequestRejectedError, match=r"HTTP 302: refusing a redirect to 'http://127.0.0.1:1/else'"):
        await api.fetch_books(["1"])


async def test_a_429_pauses_as_long_as_the_server_asked(
    api: ac.PolymarketApi, exchange: FakePolymarket, clock: JumpingClock
) -> None:
    """Retry-After wins over a shorter backoff."""
    exchange.fail_next("/books", status=429, retry_after=7)
    await api.fetch_books(["1"])
    assert clock.slept == [7]


async def test_a_429_counts_also_when_its_body_is_cut(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], clock: JumpingClock
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Slow Down\r\nContent-Length: 100\r\nRetry-After: 30\r\n\r\ncut")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    collector = make_collector(max_retries=1)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    clob = dataclasses.replace(collector.settings.clob, url=url)
    collector.settings = dataclasses.replace(collector.settings, clob=clob)
    async with server, collector.connect() as (network, api):
        with pytest.raises(ac.RateLimitedError):
            await api.fetch_books(["1"])
    assert (network.rate_limit_hits, clock.slept) == (2, [30.0])
    assert exchange.url


async def test_a_date_in_retry_after_is_read_by_the_servers_own_clock(
    api: ac.PolymarketApi, exchange: FakePolymarket, clock: JumpingClock
) -> None:
    dates = {"Date": "Thu, 01 Jan 1970 00:00:00 GMT", "Retry-After": "Thu, 01 Jan 1970 00:00:09 GMT"}
    exchange.fail_next("/books", status=503, headers=dates)
    await api.fetch_books(["1"])
    assert clock.slept == [9]


@pytest.mark.parametrize("fault", [{"disconnect": True}, {"cut": True}, {"body": b'{"markets":[{"id"'}])
async def test_a_broken_answer_is_asked_for_again(
    api: ac.PolymarketApi, exchange: FakePolymarket, fault: dict[str, Any]
) -> None:
    exchange.fail_next("/markets/keyset", **fault)
    assert len(await listed(api)) == 60


async def test_html_instead_of_json_is_a_malformed_answer(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    exchange.fail_next("/books", body=b"<html>welcome to our wifi</html>", times=9)
    with pytest.raises(ac.MalformedResponseError, match="no JSON but application/octet-stream: Expecting value"):
        await api.fetch_books(["1"])
    assert len(exchange.asked("/books")) == 4


@pytest.mark.parametrize("body", [b"{}", b"17", b'["a"' + 20 * b',"b"' + b"]"])
async def test_a_wrong_shape_is_not_asked_for_again(
    api: ac.PolymarketApi, exchange: FakePolymarket, body: bytes
) -> None:
    exchange.fail_next("/books", body=body, times=9)
    with pytest.raises(ac.MalformedResponseError, match="/books: "):
        await api.fetch_books(["1"])
    assert len(exchange.asked("/books")) == 1


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"", ac.MalformedResponseError, "no JSON but something untyped"),
        (b"null", ac.MalformedResponseError, "Expected `array`, got `null`"),
        (b'{"error":"Too Many Requests"}', ac.ServerError, "HTTP 200, and the error 'Too Many Requests'"),
    ],
)
async def test_a_success_that_says_nothing_or_an_error_is_asked_for_again(
    api: ac.PolymarketApi, exchange: FakePolymarket, body: bytes, kind: type[ac.ApiError], says: str
) -> None:
    exchange.fail_next("/books", body=body, times=9)
    with pytest.raises(kind, match=says):
        await api.fetch_books(["1"])
    assert len(exchange.asked("/books")) == 4


async def test_a_server_that_hangs_is_left_after_the_timeout(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    exchange.fail_next("/books", hang=True)
    collector = make_collector(timeout=0.2, max_retries=0)
    async with collector.connect() as (_, api):
        with pytest.raises(ac.NetworkError, match=r"no complete answer within 0.2 s"):
            await api.fetch_books(["1"])


async def test_waiting_for_the_limiter_is_no_part_of_the_timeout(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    collector = make_collector(timeout=0.3, max_retries=0)
    collector.clob_limiter = ac.RateLimiter(1, 0.5)
    assert exchange.url
    async with collector.connect() as (_, api):
        await asyncio.gather(*(api.fetch_books(["1"]) for _ in range(3)))


async def test_a_nameless_host_is_a_network_error(
    monkeypatch: pytest.MonkeyPatch, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    monkeypatch.setenv("CLOB_API", "http://127.0.0.1:1")
    collector = make_collector(max_retries=0)
    async with collector.connect() as (_, api):
        with pytest.raises(ac.NetworkError, match=r"http://127.0.0.1:1/books: Cannot connect to host"):
            await api.fetch_books(["1"])


class ClosingServer:
    """Answers the first request on a connection and closes it at the second, as a tired keep-alive does."""

    def __init__(self) -> None:
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"markets":[{"id":"1","active":true,"closed":false}]}'
        for number in range(2):
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            self.requests += 1
            if number == 0:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        writer.close()


async def test_an_attempt_that_aiohttp_repeats_by_itself_passes_the_limiter_too(
    monkeypatch: pytest.MonkeyPatch, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    closing = ClosingServer()
    server = await asyncio.start_server(closing.serve, "127.0.0.1", 0)
    monkeypatch.setenv("GAMMA_API", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    collector = make_collector()
    async with server, collector.connect() as (network, api):
        for _ in range(3):
            assert await listed(api) == ["1"]
    assert network.requests == closing.requests == 11, "six requests, each but the first on a connection that ends"
    assert network.retries == 5


async def test_a_proxy_from_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, make_collector: Callable[..., ac.AsyncCollector]
) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("no_proxy", "unproxied.invalid")
    monkeypatch.setenv("CLOB_API", "http://clob.invalid")
    collector = make_collector()
    async with server, collector.connect() as (_, api):
        await api.fetch_books(["1"])
    assert asked == [b"POST http://clob.invalid/books HTTP/1.1\r\n"]


async def test_an_endless_body_is_cut_off(api: ac.PolymarketApi, exchange: FakePolymarket) -> None:
    exchange.fail_next("/books", body=b"[" + b" " * ac.MAX_BOOKS_BYTES + b"]")
    with pytest.raises(ac.AnswerTooLongError, match="longer than 33554432 bytes"):
        await api.fetch_books(["1"])
