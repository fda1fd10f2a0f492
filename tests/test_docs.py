"""covers: README, `docs/`, changelog and packaging against the program, in both directions."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import runpy
import signal
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows

import async_collector
from async_collector import ENVIRONMENT, AsyncCollector, CollectionResult, CollectorError, Database

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakePolymarket

README = (PROJECT / "README.md").read_text()
DATA = (PROJECT / "docs/data.md").read_text()
OPERATIONS = (PROJECT / "docs/operations.md").read_text()
OURS_ALONE = (
    "selections",
    "listed_ids",
    "seen",
    "lake",
    "archived_days",
    "past_done",
    "walk",
    "names",
)  # tables that hardly anybody reads
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted(PROJECT.glob("docs/*.md"))]
SERVICE = (PROJECT / "collector-service.py").read_text()
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
SCRIPT: dict[str, Any] = runpy.run_path(str(PROJECT / "async-collector.py"), run_name="script")


def section(heading: str, page: str = README) -> str:
    """Return what stands under *heading* of *page* up to the next heading."""
    found = re.search(rf"^##+ `?{re.escape(heading)}`?\n(.*?)(?=^##+ |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def first_cells(heading: str, page: str = README) -> list[str]:
    """Return what stands in code quotes in the first column of the tables under *heading*."""
    lines = [line for line in section(heading, page).splitlines() if line.startswith("| `")]
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def anchors(page: str) -> list[str]:
    """Return the anchors of the headings of *page*, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def names_of(database: Path) -> list[str]:
    """Return the tables and views of *database*."""
    schema = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    return sorted(row["name"] for row in rows(database, schema))


def columns_of(database: Path, table: str) -> list[str]:
    return [row["name"] for row in rows(database, f"PRAGMA table_info({table})")]


async def run_example(code: str, folder: Path, environment: dict[str, str]) -> bytes:
    """Return what *code* prints when it runs in *folder*."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", code),
        cwd=folder,
        env=os.environ | environment | {"PYTHONPATH": str(PROJECT)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return out


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


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


def test_every_variable_is_in_a_table() -> None:
    read = {*ENVIRONMENT, *re.findall(r'"(COLLECTOR_\w+)": "', SERVICE)}
    documented = first_cells("Environment") + first_cells("Environment of the service", OPERATIONS)
    documented += first_cells("Posts and hype", DATA)
    assert sorted(documented) == sorted(read)


async def test_every_table_and_view_is_in_the_docs(database: Path) -> None:
    async with Database.open(database):
        pass
    assert sorted(re.findall(r"^### `(\w+)`$", DATA, re.MULTILINE)) == names_of(database)
    assert sorted([*first_cells("What is stored"), *OURS_ALONE]) == names_of(database)


async def test_every_column_is_in_the_docs(database: Path) -> None:
    async with Database.open(database):
        pass
    for table in names_of(database):
        columns = set(columns_of(database, table))
        if table == "latest_snapshots":  # of which the docs only list what it adds
            assert columns > set(columns_of(database, "snapshots"))
            columns -= set(columns_of(database, "snapshots"))
        assert sorted(first_cells(table, DATA)) == sorted(columns), table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_every_query_runs(database: Path, page: Path) -> None:
    async with Database.open(database):
        pass
    text = page.read_text()
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert [rows(database, query) for query in blocks] == [[]] * len(blocks)
    assert bool(blocks) == (page.name in {"README.md", "data.md", "operations.md"})
    for query in re.findall(r"""[`"](SELECT [^`"{]+)[`"]""", text):
        rows(database, query)


@pytest.mark.parametrize(("heading", "page"), [("Exit codes", README), ("Exit codes in depth", OPERATIONS)])
def test_every_exit_code_is_in_the_docs(heading: str, page: str) -> None:
    codes = re.findall(r"^\| (\d+(?:, \d+)*) \|", section(heading, page), re.MULTILINE)
    documented = {int(code) for cell in codes for code in cell.split(", ")}
    errors = {kind for kind in vars(async_collector).values() if isinstance(kind, type)}
    returned = {kind.exit_code for kind in errors if issubclass(kind, CollectorError)}
    returned |= {SCRIPT["PARTIAL"], SCRIPT["DRIFT"], SCRIPT["UNWRITTEN"]}
    interrupted = {SCRIPT["INTERRUPTED"] + number for number in (signal.SIGINT, signal.SIGTERM)}
    assert documented == returned | interrupted | {0, 1, 2}  # success, Python's own for a bug, and argparse's


def test_every_key_of_a_result_is_in_the_docs() -> None:
    documented = [name for name in first_cells("The library", DATA) if name.isidentifier()]
    assert sorted(documented) == sorted(CollectionResult.__annotations__)


def test_the_example_output_has_the_lines_of_the_program() -> None:
    labels = [line[:18].strip() for line in SCRIPT["SUMMARY"].splitlines()[1:]]
    shown = re.search(r"```console\n(.*?)\$ ", section("Quick start"), re.DOTALL)
    assert shown
    assert [line[:18].strip() for line in shown[1].splitlines()[2:]] == labels


async def test_the_library_example_runs(exchange: FakePolymarket, tmp_path: Path) -> None:
    code = examples(README)[1]
    out = await run_example(code, tmp_path, exchange.environment)
    assert re.fullmatch(rb"complete 60 markets in \d+\.\d+ s\n", out)


@pytest.mark.slow  # which pandas is to load
async def test_the_pandas_example_runs(exchange: FakePolymarket, tmp_path: Path) -> None:
    assert (await AsyncCollector(tmp_path / "stand_in.db").collect_all())["markets"] == len(exchange.markets)
    out = (await run_example(examples(README)[0], tmp_path, {})).decode()
    categories = rows(tmp_path / "stand_in.db", "SELECT DISTINCT category FROM markets WHERE category IS NOT NULL")
    assert all(row["category"] in out for row in categories)


async def test_the_reading_example_runs(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "polymarket_data.db"):
        pass
    (code,) = examples(DATA)
    assert await run_example(code, tmp_path, {}) == b"0 snapshots\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    repeats = page.name == "CHANGELOG.md"  # each version has its own Added, Changed and Fixed
    assert repeats or len(set(anchors(text))) == len(anchors(text))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_is_in_the_source_distribution() -> None:
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for page in PAGES:
        assert not {f"/{page.relative_to(PROJECT).parts[0]}"}.isdisjoint(included), page


@pytest.mark.parametrize("script", sorted(PROJECT.glob("*-*.py")), ids=lambda script: script.name)
def test_the_help_of_every_command_has_examples_variables_and_exit_codes(script: Path) -> None:
    shown = re.search(r"\nexamples:\n(.*?)\n(?:variables|environment):.*?\nexit codes:", script.read_text(), re.DOTALL)
    assert shown, "the epilog of --help, as in async-collector.py"
    assert len(re.findall(rf"^ +(?:[A-Z_]+=\S+ )*{script.stem}\b", shown[1], re.MULTILINE)) >= 2


def test_an_old_python_is_told_so_before_any_dependency() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    requirements = PYPROJECT["project"]["dependencies"] + [line for extra in extras for line in extra]
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"
    assert [line for line in requirements if not line.endswith("; python_version >= '3.11'")] == []


def test_the_ci_runs_the_readmes_test_command() -> None:
    assert re.search(r"^python3 -m venv .* \.venv/bin/pytest -n 3$", section("Development"), re.MULTILINE)
    assert "eval" in (PROJECT / ".ci/run").read_text()


def test_every_promise_names_a_test_that_exists() -> None:
    promises = (PROJECT / "RELIABILITY.md").read_text()
    tests = "".join(path.read_text() for path in (PROJECT / "tests").glob("test_*.py"))
    assert set(re.findall(r"`(test_\w+)`", promises)) <= set(re.findall(r"def (test_\w+)\(", tests))
    lines = [line for line in promises.splitlines() if re.match(r"\| (\d+ \| )?[a-z0-9]", line, re.IGNORECASE)]
    assert all("`test_" in line or line.startswith(("| promise", "| # |")) for line in lines)
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", promises, re.MULTILINE)]
    assert numbers == sorted(set(numbers))
