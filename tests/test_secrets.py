"""covers: no user name and no password leaves the process or enters the file, whoever words the text."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import traceback
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from truth import COLLECTOR, SERVICE, command, start

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from fake_polymarket import FakePolymarket

USER, PASSWORD = "mail@user", "p:4ss/w@rd%1"
SECRETS = (
    USER,
    PASSWORD,
    quote(USER, safe=""),
    quote(PASSWORD, safe=""),
    quote(PASSWORD),
    b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
)
INFO = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
TLS = "https://exchange.invalid"


@contextlib.asynccontextmanager
async def proxy(status: int | None) -> AsyncIterator[str]:
    """Serve a proxy that answers everything with *status*, or with nothing; yield its address without a scheme."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            if status:
                head = f"HTTP/1.1 {status} Refused by {USER}\r\nProxy-Authenticate: Basic realm=x\r\n"
                writer.write(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def assert_silent(*texts: str) -> None:
    assert [secret for secret in SECRETS for text in texts if secret in text] == []


def everything_in(database: Path) -> str:
    """Return the whole content of the file, as text."""
    if not database.exists():
        return ""
    connection = sqlite3.connect(database)
    try:
        return "\n".join(connection.iterdump())
    finally:
        connection.close()


def whole_story(error: BaseException) -> str:
    """Return the traceback of *error* with all that it was raised from, and what each of them holds."""
    texts = ["".join(traceback.format_exception(error))]
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or len(texts) > 50:
            continue
        texts += [str(link), repr(link), repr(link.args), repr(vars(link))]
        chain += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
    return "\n".join(texts)


def proxies(address: str, scheme: str) -> dict[str, Any]:
    """Return the variables that name a proxy for *scheme*, with user and password."""
    name = {"https": "HTTPS_PROXY", "http": "http_proxy", "all": "ALL_PROXY"}[scheme]
    return {name: f"http://{INFO}@{address}", "NO_PROXY": ""}


@pytest.mark.parametrize("status", [407, 502, None], ids=str)
@pytest.mark.parametrize("scheme", ["https", "http", "all"])
async def test_a_proxy_that_refuses_gives_no_password_away(
    exchange: FakePolymarket, database: Path, scheme: str, status: int | None
) -> None:
    address = TLS if scheme != "http" else "http://exchange.invalid"
    async with proxy(status) as where:
        env: dict[str, Any] = {"GAMMA_API": address, "CLOB_API": address, **proxies(where, scheme)}
        done = await command(exchange, COLLECTOR, "--db", str(database), "--max-retries", "0", "--verbose", **env)
    assert done.code in {65, 69, 75}
    assert done.err
    assert_silent(done.out, done.err, everything_in(database))


@pytest.mark.parametrize("scheme", ["https", "all"])
async def test_what_fails_through_a_proxy_is_stored_without_its_password(
    exchange: FakePolymarket, database: Path, scheme: str
) -> None:
    """Gamma is reached directly, the CLOB through the proxy: the reason is a row."""
    async with proxy(407) as where:
        env: dict[str, Any] = {"CLOB_API": TLS, **proxies(where, scheme), "NO_PROXY": "127.0.0.1"}
        done = await command(exchange, COLLECTOR, "--db", str(database), "--max-retries", "0", **env)
    assert done.code in {69, 75}
    content = everything_in(database)
    assert "407" in content
    assert_silent(done.out, done.err, content)


@pytest.mark.parametrize(
    "form", ["http://{}@host:99999", "http://{}@[::1", "https://{}@127.0.0.1:1", "socks5://{}@host", "{}@a..b"]
)
async def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    exchange: FakePolymarket, database: Path, form: str
) -> None:
    env: dict[str, Any] = {"HTTPS_PROXY": form.format(INFO), "NO_PROXY": "", "GAMMA_API": TLS, "CLOB_API": TLS}
    done = await command(exchange, COLLECTOR, "--db", str(database), "--max-retries", "0", "--verbose", **env)
    assert done.code in {69, 78}
    assert_silent(done.out, done.err, everything_in(database))


FORMS = (
    *("http://{}@127.0.0.1:1", "http://{}@[::1", "//{}@host", "ftp://{}@host", "http://{}@127.0.0.1:1/?a=b"),
    *("http://{}@host:99999", "{}@host"),
)


@pytest.mark.parametrize("name", ["GAMMA_API", "CLOB_API", "TWITTER_API", "HTTPS_PROXY"])
@pytest.mark.parametrize("info", [INFO, f"{USER}:{PASSWORD}"], ids=["encoded", "raw"])
def test_an_address_with_a_password_is_refused_without_a_word_of_it(
    make_collector: Callable[..., ac.AsyncCollector], monkeypatch: pytest.MonkeyPatch, name: str, info: str
) -> None:
    for form in FORMS:
        monkeypatch.setenv(name, form.format(info))
        with contextlib.suppress(ac.ConfigError) if name == "HTTPS_PROXY" else pytest.raises(ac.ConfigError) as caught:
            make_collector()
        if caught is not None:
            assert_silent(whole_story(caught.value))


async def test_an_address_with_a_password_is_a_bad_configuration(exchange: FakePolymarket, database: Path) -> None:
    done = await command(
        exchange, COLLECTOR, "--db", str(database), "--verbose", GAMMA_API=f"http://{INFO}@127.0.0.1:1"
    )
    assert (done.code, "GAMMA_API" in done.err) == (78, True)
    assert_silent(done.out, done.err)


@pytest.mark.parametrize("path", ["/markets/keyset", "/books"])
@pytest.mark.parametrize(
    "info", [INFO, f"{USER.replace('@', '%40')}:x{PASSWORD.replace('/', '%2F').replace('@', '%40')}"]
)
async def test_a_redirect_to_an_address_with_a_password_is_named_without_it(
    exchange: FakePolymarket, database: Path, path: str, info: str
) -> None:
    exchange.fail_next(path, status=302, headers={"Location": f"https://{info}@login.example/next"}, body=b"", times=9)
    done = await command(exchange, COLLECTOR, "--db", str(database), "--verbose")
    assert done.code != 0
    assert "login.example" in done.err
    assert_silent(done.out, done.err, everything_in(database))


@pytest.mark.parametrize("status", [407, None], ids=str)
async def test_no_link_of_the_exception_chain_holds_the_password(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int | None,
) -> None:
    """A program that uses the library may print or log the whole chain."""
    assert exchange.url
    caplog.set_level("DEBUG")
    async with proxy(status) as where:
        for name, value in {"GAMMA_API": TLS, **proxies(where, "https")}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ac.ApiError) as caught:
            await make_collector(max_retries=0).collect_all()
    assert_silent(whole_story(caught.value), caplog.text)


async def test_an_answer_that_repeats_the_password_is_stored_without_it(
    exchange: FakePolymarket, database: Path
) -> None:
    """A proxy for http sees the request, and may quote its own credentials in its error."""
    body = f'{{"error":"user {USER} with {PASSWORD} ({INFO}) may not"}}'.encode()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 400 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        env: dict[str, Any] = {"CLOB_API": "http://clob.invalid", **proxies(where, "http"), "NO_PROXY": "127.0.0.1"}
        done = await command(exchange, COLLECTOR, "--db", str(database), "--verbose", **env)
    content = everything_in(database)
    assert "may not" in content
    assert_silent(done.out, done.err, content)


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize(("user", "password"), [("me", "пароль"), ("ab", "x:y"), ("me", "")])
async def test_the_login_reaches_the_proxy_as_it_is(
    make_collector: Callable[..., ac.AsyncCollector],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    user: str,
    password: str,
) -> None:
    """In UTF-8, as curl sends it; a name of two letters hides no part of other words."""
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = b"some message for you"
        head = b"HTTP/1.1 502 " + body + b"\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        info = f"{quote(user, safe='')}:{quote(password)}"
        monkeypatch.setenv("GAMMA_API", f"{scheme}://exchange.invalid")
        monkeypatch.setenv("ALL_PROXY", f"http://{info}@127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(ac.ApiError) as caught:
            await make_collector(max_retries=0).collect_all()
    sent = b64encode(f"{user}:{password}".encode())
    assert b"Proxy-Authorization: Basic " + sent + b"\r\n" in heads[0]
    assert "some message for you" in str(caught.value)


@pytest.mark.parametrize("form", ["http://me:12/34@host", "http://me:p@ss/w?o#r@d@host:3128", "me:12/34@host"])
@pytest.mark.parametrize("name", ["GAMMA_API", "HTTPS_PROXY"])
def test_a_slash_in_a_password_makes_no_host_of_the_user(
    make_collector: Callable[..., ac.AsyncCollector], monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    monkeypatch.setenv(name, form)
    with pytest.raises(ac.ConfigError, match=r"'(http://)?\*\*\*@host"):
        make_collector()


@pytest.mark.slow
async def test_the_service_says_nothing_of_it_either(exchange: FakePolymarket, database: Path) -> None:
    async with proxy(407) as where:
        env: dict[str, Any] = {"GAMMA_API": TLS, "CLOB_API": TLS, **proxies(where, "https")}
        process = await start(exchange, SERVICE, POLYMARKET_DB=str(database), **env)
        said = b""
        assert process.stderr
        while b"next run" not in said:
            said += await asyncio.wait_for(process.stderr.readline(), 20)
        process.terminate()
        out, err = await asyncio.wait_for(process.communicate(), 10)
    assert b"407" in said
    assert_silent((said + out + err).decode(), everything_in(database))
