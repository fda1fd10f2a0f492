"""A server for the tests that sends what no HTTP library would send."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

GZIP = b"Content-Encoding: gzip\r\n"


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


HTTP = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
