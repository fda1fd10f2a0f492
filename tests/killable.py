"""Runs `collector-archive` in processes that end, or stop, at a given call of the lake, the file or the file system.

It reads a request a line, and answers each with a line: a process is forked from this one, which has loaded what the
command needs. Object storage is a folder here, which the library takes for a store with ETags.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND: Final = str(Path(__file__).parent.parent / "collector-archive.py")
FILE_SYSTEM: Final = ((os, ("link", "fsync", "rename", "unlink", "mkdir", "rmdir")), (shutil, ("rmtree",)))
LIMIT_S: Final = 60  # of a command
NOT_COUNTED: Final = ("__init__", "naming", "staging", "_locked")


class Calls:
    """Counts calls, and does something before or after one of them: an even number is before, an odd one after it."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self._left = number
        self._act = act
        self._lock = threading.Lock()

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            is_now = self._left == -1
        if is_now:
            self._act()

    def wrap(self, owner: Any, name: str) -> None:  # noqa: ANN401
        function = getattr(owner, name)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.count()
            found = function(*args, **kwargs)
            self.count()
            return found

        setattr(owner, name, counted)


def be_command(script: dict[str, Any], request: dict[str, Any]) -> int:
    """Be the command of *request* in this process, and return its exit code."""
    lake, store = script["Lake"], script["obstore"].store
    if request["buckets"]:  # s3://NAME/... is the folder NAME there

        def open_store(address: str, **_: object) -> Any:  # noqa: ANN401
            return store.LocalStore(Path(request["buckets"], address.removeprefix("s3://")), mkdir=True)

        store.from_url = open_store
    if request["what"] == "lose":  # the answer of a put that was carried out
        create = lake.create

        def and_lose(self: Any, name: str, content: bytes) -> None:  # noqa: ANN401
            create(self, name, content)
            raise script["LakeError"](f"{name}: connection reset")

        lake.create = and_lose
    elif request["what"]:
        act = {
            "kill": lambda: os._exit(137),
            "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
            "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
        }
        calls = Calls(request["call"], act[request["what"]])
        for name in [name for name, value in vars(lake).items() if callable(value) and name not in NOT_COUNTED]:
            calls.wrap(lake, name)
        calls.wrap(script["Writer"], "execute")
        for module, names in FILE_SYSTEM:
            for name in names:
                calls.wrap(module, name)
    code: int = script["main"](request["args"])
    return code


def start(script: dict[str, Any], request: dict[str, Any]) -> int:
    """Start the command in a process of its own and return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(SystemExit):
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        code = be_command(script, request)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Answer requests until there are no more."""
    script = runpy.run_path(COMMAND, run_name="script")
    with contextlib.suppress(ImportError):
        importlib.import_module("pandas")  # pyarrow does where it is installed, and each process would
    for line in sys.stdin:
        request = json.loads(line)
        child = request.get("go_on") or start(script, request)
        if "go_on" in request:
            os.kill(child, signal.SIGCONT)
        if after_s := request.get("kill_after_s"):
            time.sleep(after_s)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, os.WUNTRACED)
        answer = {"stopped": child} if os.WIFSTOPPED(status) else {"code": os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
