"""The README and the program say the same, in both directions."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import runpy
import signal
import sys
from typing import TYPE_CHECKING, Any

from conftest import PROJECT, rows

from async_collector import ENVIRONMENT, Database

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakePolymarket

README = (PROJECT / "README.md").read_text()
SERVICE = (PROJECT / "collector-service.py").read_text()
SCRIPT: dict[str, Any] = runpy.run_path(str(PROJECT / "async-collector.py"), run_name="script")


def section(heading: str) -> str:
    """Return what stands under *heading* up to the next heading."""
    title, following = rf"^(?:## |\*\*`){re.escape(heading)}(?:`\*\*(?:, a view)?)?\n", r"^## |^\*\*`|\Z"
    found = re.search(f"{title}(.*?)(?={following})", README, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def first_cells(heading: str) -> list[str]:
    """Return what stands in code quotes in the first column of the table under *heading*."""
    lines = [line for line in section(heading).splitlines() if line.startswith("| `")]
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def test_every_option_is_in_the_readme_with_its_default() -> None:
    parser: argparse.ArgumentParser = SCRIPT["build_parser"]()
    actions = [action for action in parser._actions if action.dest != "help"]
    assert first_cells("Options") == [
        f"{action.option_strings[0]} {action.metavar or ''}".strip() for action in actions
    ]
    for action in actions:
        if action.default and action.default != argparse.SUPPRESS:
            assert f"| `{action.option_strings[0]} {action.metavar}` | {action.default} |" in section("Options")
    assert f"| `--interval MIN` | {SCRIPT['INTERVAL_MIN']} |" in section("Options")


def test_every_variable_is_in_the_readme() -> None:
    read = {*ENVIRONMENT, *re.findall(r'[( ]value\("(\w+)"\)', SERVICE)}
    assert sorted(first_cells("Environment")) == sorted(read)


async def test_every_column_is_in_the_readme(database: Path) -> None:
    async with Database.open(database):
        pass
    for table in ("snapshots", "markets", "runs", "failures", "gaps", "tweets", "hype_signals"):
        columns = [row["name"] for row in rows(database, f"PRAGMA table_info({table})")]
        assert sorted(first_cells(table)) == sorted(columns), table


async def test_every_query_in_the_readme_runs(database: Path) -> None:
    async with Database.open(database):
        pass
    queries = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    assert len(queries) == 4
    assert [rows(database, query) for query in queries] == [[]] * 4


def test_every_exit_code_is_in_the_readme() -> None:
    codes = re.findall(r"^\| (\d+(?:, \d+)*) \|", section("Exit codes"), re.MULTILINE)
    documented = {int(code) for cell in codes for code in cell.split(", ")}
    returned = {code for _, code in SCRIPT["EXIT_CODES"]} | {SCRIPT["PARTIAL"], SCRIPT["DRIFT"], SCRIPT["UNWRITTEN"]}
    interrupted = {SCRIPT["INTERRUPTED"] + number for number in (signal.SIGINT, signal.SIGTERM)}
    assert documented == returned | interrupted | {0, 1, 2}  # success, Python's own for a bug, and argparse's


def test_the_example_output_has_the_lines_of_the_program() -> None:
    labels = [line[:18].strip() for line in SCRIPT["SUMMARY"].splitlines()[1:]]
    shown = re.search(r"```text\n(.*?)```", section("Quick start"), re.DOTALL)
    assert shown
    assert [line[:18].strip() for line in shown[1].splitlines()[2:]] == labels


async def test_the_library_example_runs(exchange: FakePolymarket, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", section("Use as a library"), re.DOTALL)
    assert code
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", code[1]),
        cwd=tmp_path,
        env=os.environ | exchange.environment | {"PYTHONPATH": str(PROJECT)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert re.fullmatch(rb"complete 60 markets in \d\.\d+ s\n", out)


def test_the_ci_runs_the_readmes_test_command() -> None:
    assert re.search(r"^python3 -m venv .* \.venv/bin/pytest$", section("Development"), re.MULTILINE)
    assert "eval" in (PROJECT / ".ci/run").read_text()


def test_every_promise_names_a_test_that_exists() -> None:
    promises = (PROJECT / "RELIABILITY.md").read_text()
    tests = "".join(path.read_text() for path in (PROJECT / "tests").glob("test_*.py"))
    assert set(re.findall(r"`(test_\w+)`", promises)) <= set(re.findall(r"def (test_\w+)\(", tests))
    lines = [line for line in promises.splitlines() if re.match(r"\| (\d+ \| )?[a-z0-9]", line, re.IGNORECASE)]
    assert all("`test_" in line or line.startswith(("| promise", "| # |")) for line in lines)
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", promises, re.MULTILINE)] == list(range(1, 110))
