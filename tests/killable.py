"""Runs `collector-archive` so that it ends, or another one runs, at a given call of the lake, the file or its system.

`InProcess` does that in this process: a kill is an exception that every later call raises as well, so that nothing of
the command reaches lake, file or file system any more. What only a process shows (a log that nobody writes back, a lock
that dies with it) is for `Processes`, which are forked from one that has loaded what the command needs.
Object storage is a folder here, which the library takes for a store with ETags.
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
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND: Final = str(Path(__file__).parent.parent / "collector-archive.py")
FILE_SYSTEM: Final = ((os, ("link", "fsync", "rename", "unlink", "mkdir", "rmdir")), (shutil, ("rmtree",)))
LIMIT_S: Final = 60  # of a command
NOT_COUNTED: Final = ("__init__", "lake_errors", "staging", "_locked")
KILLED: Final = 137


class Killed(BaseException):
    """The process would be dead now."""


class Calls:
    """Counts calls, and does something before or after one of them: an even number is before, an odd one after it.

    Instead of a number, "create" is after the first call of that method, and "before create" is before it.
    """

    def __init__(self, which: int | str, act: Callable[[], None]) -> None:
        self._left = which if isinstance(which, int) else -1
        self._name = None if isinstance(which, int) else which
        self._act = act
        self._lock = threading.Lock()
        self._is_dead = False

    def count(self, place: str) -> None:
        with self._lock:
            if self._is_dead:
                raise Killed
            self._left -= 1
            is_now = self._left == -1 or place == self._name
            if is_now:
                self._name = None
        if is_now:
            try:
                self._act()
            except Killed:
                self._is_dead = True
                raise

    def wrap(self, owner: Any, name: str, patch: Callable[[Any, str, Any], None]) -> None:  # noqa: ANN401
        function = getattr(owner, name)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.count(f"before {name}")
            found = function(*args, **kwargs)
            self.count(name)
            return found

        patch(owner, name, counted)


def die() -> None:
    """Be killed, within a process."""
    raise Killed


def be_interrupted() -> None:
    """Be where Ctrl-C comes."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def changed(
    script: dict[str, Any], what: str | None, which: int | str, act: Callable[[], None], buckets: str | None
) -> Iterator[None]:
    """Do *act* at a call of the command, or lose the answer of its put ("lose"); take folders for *buckets*."""
    with contextlib.ExitStack() as undo:

        def patch(owner: Any, name: str, value: Any) -> None:  # noqa: ANN401
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        lake, store = script["Lake"], script["obstore"].store
        if buckets:  # s3://NAME/... is the folder NAME there

            def open_store(address: str, **_: object) -> Any:  # noqa: ANN401
                return store.LocalStore(Path(buckets, address.removeprefix("s3://")), mkdir=True)

            patch(store, "from_url", open_store)
        if what == "lose":  # the answer of a put that was carried out
            create = lake.create

            def and_lose(self: Any, name: str, content: bytes) -> None:  # noqa: ANN401
                create(self, name, content)
                raise script["LakeError"](f"{name}: connection reset")

            patch(lake, "create", and_lose)
        elif what:
            calls = Calls(which, act)
            for name in [name for name, value in vars(lake).items() if callable(value) and name not in NOT_COUNTED]:
                calls.wrap(lake, name, patch)
            calls.wrap(script["Writer"], "execute", patch)
            for module, names in FILE_SYSTEM:
                for name in names:
                    calls.wrap(module, name, patch)
        yield


class InProcess:
    """Runs the command in this process."""

    def __init__(self, script: dict[str, Any]) -> None:
        self._script = script

    def run(
        self,
        *args: object,
        what: str | None = None,
        call: int | str = 0,
        buckets: str | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> int:
        """Run the command, do *what* at a call (with "stop" *meanwhile*), and return the exit code."""
        act = {"kill": die, "interrupt": be_interrupted, "stop": meanwhile}.get(what or "", die)
        try:
            with changed(self._script, what, call, act, buckets):
                code: int = self._script["main"]([str(arg) for arg in args])
                return code
        except Killed:
            return KILLED


class Processes:
    """Runs the command in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, *args: object, what: str | None = None, meanwhile: Callable[[], None] = lambda: None, **more: object
    ) -> int:
        """Run the command as `InProcess` does; one that was told to stop goes on after *meanwhile*."""
        request = {"args": [str(arg) for arg in args], "what": what, "call": 0, "buckets": None}
        answer = self._ask(request | {"output": str(self._output)} | more)
        if "stopped" in answer:
            meanwhile()
            answer = self._ask({"go_on": answer["stopped"]})
        return answer["code"]

    def _ask(self, request: dict[str, object]) -> dict[str, int]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


# --- the process that makes the others


def be_command(script: dict[str, Any], request: dict[str, Any]) -> int:
    """Be the command of *request* in this process, and return its exit code."""
    acts = {
        "kill": lambda: os._exit(KILLED),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    }
    act = acts.get(request["what"], die)
    with changed(script, request["what"], request["call"], act, request["buckets"]):
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
    """Answer requests, a line each, until there are no more."""
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
