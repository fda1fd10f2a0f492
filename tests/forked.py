"""A script in a process of its own that costs no new interpreter: a process that has loaded what it needs is forked."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import runpy
import sys
import time
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext

IS_POSSIBLE = "forkserver" in multiprocessing.get_all_start_methods()
LOADED = ["argparse", "platform", "tqdm", "async_collector", "forked"]  # by the scripts, and this module
FOLDERS = (Path(__file__).parent.parent, Path(__file__).parent)


@cache
def server() -> ForkServerContext:
    """Start the process that is forked; it ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, FOLDERS))):
        forkserver.ensure_running()
    return context


def be_script(
    script: str,
    args: Sequence[str],
    folder: Path | None,
    variables: Mapping[str, str],
    out: Connection,
    err: Connection,
) -> None:
    """Run *script* as the program of this process."""
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()
    if folder:
        os.chdir(folder)
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.argv = [script, *args]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def everything_from(pipe: Connection) -> bytes:
    """Return what comes through *pipe* until its other end is closed."""
    with pipe, os.fdopen(pipe.fileno(), "rb", closefd=False) as file:
        return file.read()


async def run_script(
    script: str, *args: str, folder: Path | None, variables: Mapping[str, str], within_s: float = 60
) -> tuple[int, bytes, bytes]:
    """Run *script* to its end and return its exit code and what it has written to stdout and stderr.

    Args:
        script: its path.
        args: of its command line.
        folder: where it runs; None: here.
        variables: its whole environment.
        within_s: the time that it has; after that it is killed.

    Raises:
        TimeoutError: it was killed.
    """
    run = forked if IS_POSSIBLE else started
    return await run(script, args, folder, dict(variables), within_s)


async def forked(
    script: str, args: Sequence[str], folder: Path | None, variables: dict[str, str], within_s: float
) -> tuple[int, bytes, bytes]:
    context = server()
    ours, its = zip(*(context.Pipe(duplex=False) for _ in range(2)), strict=True)
    process = context.Process(target=be_script, args=(script, args, folder, variables, *its))
    process.start()
    for pipe in its:
        pipe.close()
    try:
        texts = asyncio.gather(*(asyncio.to_thread(everything_from, pipe) for pipe in ours))
        out, err = await asyncio.wait_for(texts, within_s)
        await asyncio.to_thread(process.join, within_s)
        if process.exitcode is None:
            raise TimeoutError
        return process.exitcode, out, err
    finally:
        process.kill()
        process.join()
        process.close()


async def started(
    script: str, args: Sequence[str], folder: Path | None, variables: dict[str, str], within_s: float
) -> tuple[int, bytes, bytes]:
    """Run *script* in a new interpreter, where the system does not fork."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, script, *args),
        cwd=folder,
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
    return process.returncode or 0, out, err
