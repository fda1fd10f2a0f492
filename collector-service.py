#!/usr/bin/env python3
"""Collect Polymarket's markets for months: the command `collector-service`, to be run by a service manager.

All settings come from the environment. SIGTERM and SIGINT end it cleanly; a second one ends it at once. Under systemd
it speaks the notify protocol: READY, STATUS with the last result and the next run, WATCHDOG from the progress of the
work, and STOPPING.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  said before an import fails without it
    sys.exit(f"collector-service needs Python 3.11 or newer, and this is {sys.version.split()[0]}")

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import textwrap
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import aiohttp

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Sequence

ENVIRONMENT: Final = {
    "COLLECTOR_WORKERS": "10",
    "COLLECTOR_INTERVAL_MINUTES": "15",
    "COLLECTOR_MIN_VOLUME": "100000",
    "COLLECTOR_DEPTH": "",  # all levels
    "COLLECTOR_MARKETS": "",  # names with commas between them
    "COLLECTOR_EVENTS": "",
    "COLLECTOR_SERIES": "",
    "COLLECTOR_TAGS": "",
    "COLLECTOR_ENDS_WITHIN": "",  # minutes; no limit
}
VARIABLES: Final = textwrap.fill(
    ", ".join([*ENVIRONMENT, *ac.ENVIRONMENT]), 78, initial_indent="  ", subsequent_indent="  "
)
EPILOG: Final = f"""\
examples:
  collector-service
      every market over $100,000 in 24 hours, every 15 minutes, to polymarket_data.db
  COLLECTOR_EVENTS=the-cup COLLECTOR_INTERVAL_MINUTES=1 collector-service
      all markets of an event, every minute

variables:
{VARIABLES}
  and HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY

exit codes:
  0 ended by a signal; 1 a bug; 2 bad command line; 74 the file cannot be used;
  78 bad configuration, or none of the names exists; 130, 143 a second signal
"""
LEVEL_PREFIXES: Final = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}

log = logging.getLogger("collector-service")


class JournalFormatter(logging.Formatter):
    """Lines as journald reads them: the level in front, and no time, which the journal knows."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, whatever the text has in it."""
        return LEVEL_PREFIXES.get(record.levelno, "<5>") + super().format(record).replace("\n", " | ")


def set_up_logging() -> None:
    """Log to stderr, for the journal where stderr is the journal."""
    handler = logging.StreamHandler()
    status = os.fstat(sys.stderr.fileno())
    if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def notify(*lines: str) -> None:
    """Tell systemd, if it listens; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall("\n".join(lines).encode())
    except OSError as error:
        log.warning("cannot notify %s: %s", address, error)


def settings_from_environment() -> dict[str, Any]:
    """Return the arguments of `continuous_collection`; the collector itself reads the other variables."""
    given = ac.read_variables(os.environ, ENVIRONMENT)
    settings: dict[str, Any] = {
        "workers": ac.whole_number("COLLECTOR_WORKERS", given["COLLECTOR_WORKERS"]),
        "interval_minutes": ac.minutes("COLLECTOR_INTERVAL_MINUTES", given["COLLECTOR_INTERVAL_MINUTES"]),
    }
    if os.environ.get("COLLECTOR_MIN_VOLUME", "").strip("\"'"):  # the default does not hold for what is named
        settings["min_volume"] = ac.finite_number("COLLECTOR_MIN_VOLUME", given["COLLECTOR_MIN_VOLUME"])
    if levels := given["COLLECTOR_DEPTH"]:
        settings["depth"] = ac.whole_number("COLLECTOR_DEPTH", levels, at_least=0, at_most=ac.MAX_DEPTH)
    for kind in ac.NAMES:
        name = f"COLLECTOR_{kind.upper()}"
        settings[kind] = ac.exchange_names(name, given[name], kind)
    if within := given["COLLECTOR_ENDS_WITHIN"]:
        settings["ends_within"] = ac.minutes("COLLECTOR_ENDS_WITHIN", within)
    return settings


def report_tick(tick: ac.Tick) -> None:
    """Say how a run went and when the next one is."""
    if tick.result:
        result = tick.result
        went = f"run {result['run_id']} {result['status']}: {result['markets']} markets in {result['duration']:.1f} s"
        if result["reason"]:
            went += f", {result['stats']['errors']} errors, the first: {result['reason']}"
    else:
        went = f"failed: {tick.error}"
    text = f"{went}; next run {tick.next_run:%H:%M:%S} UTC; {tick.missed} ticks missed"
    is_well = tick.result and tick.result["status"] == "complete" and not tick.result["drift"]
    (log.info if is_well else log.warning)("%s", text)
    notify("READY=1", f"STATUS={text}", "WATCHDOG=1")


async def serve(settings: dict[str, Any]) -> None:
    """Collect until a signal is caught."""
    stop = asyncio.Event()
    done: Counter[str] = Counter()

    def count(progress: ac.Progress) -> None:
        done["under way"] = progress.stored

    def on_tick(tick: ac.Tick) -> None:
        done["runs"] += 1
        done["snapshots"] += done.pop("under way", 0)
        report_tick(tick)

    def handle(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("stopping")
        notify("STOPPING=1")
        stop.set()

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ac.DaemonThreads())
    with suppress(NotImplementedError):  # Windows has no signals on the loop; there Ctrl-C is a KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, handle, number)
    beat = partial(notify, "READY=1", "WATCHDOG=1")
    await ac.continuous_collection(stop=stop, on_tick=on_tick, heartbeat=beat, progress=count, **settings)
    cut = f", and {done['under way']} by the run under way" if done["under way"] else ""
    log.info("stopped; runs: %d, snapshots stored: %d%s", done["runs"], done["snapshots"], cut)


def be_fast() -> None:
    """Inflate answers by isal where it is installed (the extra `fast`), and look for cyclic garbage less often.

    Both are settings of the process, which a library leaves alone.
    """
    with suppress(ImportError):
        from isal import isal_zlib  # noqa: PLC0415

        aiohttp.set_zlib_backend(isal_zlib)
    gc.set_threshold(50_000, 20, 20)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service and return its exit code; it takes no arguments."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="collector-service",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"collector-service {ac.__version__}")
    if unknown := parser.parse_known_args(argv)[1]:
        text = ac.printable(" ".join(unknown))
        parser.exit(2, f"{parser.prog}: error: it takes no options, but variables (see --help): {text}\n")
    set_up_logging()
    be_fast()
    try:
        asyncio.run(serve(settings_from_environment()))
    except ac.CollectorError as error:
        log.critical("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
