"""covers: the repository itself: what its tests say of themselves, what is installed, and what CI runs."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from conftest import PROJECT
from packaging.requirements import Requirement

TESTS = sorted((PROJECT / "tests").glob("test_*.py"))
PAGE = (PROJECT / "tests/README.md").read_text()


def test_every_test_file_says_what_it_covers() -> None:
    silent = [path.name for path in TESTS if not path.read_text().startswith('"""covers: ')]
    assert silent == [], 'the first line of a test file is """covers: ...'


def test_the_page_of_the_tests_names_what_is_there() -> None:
    sources = "".join(path.read_text() for path in (PROJECT / "tests").glob("*.py"))
    named = re.findall(r"`(?:\w+\.)?([a-zA-Z_]+)(?:\([^`]*\))?`", PAGE)
    assert {"exchange", "assert_true", "odd", "VirtualClock"} < set(named)
    assert [name for name in named if not re.search(rf"(def|class|\.)[ ]?{name}\b|\"{name}\"|{name}:", sources)] == []
    for page in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (PROJECT / "tests" / page).is_file()
    for file in re.findall(r"`(\w+\.py)`", PAGE):
        assert Path(PROJECT / "tests" / file).is_file()


def test_all_that_tests_install_is_pinned_and_within_the_bounds() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    assert "--upgrade" in lines[1], "the line that renews it"
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    extras = itertools.chain(*project["project"]["optional-dependencies"].values())
    wanted = [Requirement(line) for line in (*project["project"]["dependencies"], *extras)]
    wanted += [Requirement(line) for line in project["build-system"]["requires"]]
    for requirement in wanted:
        if requirement.name != project["project"]["name"]:
            versions = [str(pin.specifier)[2:] for pin in pins if pin.name == requirement.name]
            assert versions, f"{requirement} is not pinned: renew constraints.txt"
            assert all(version in requirement.specifier for version in versions), requirement
    development = (PROJECT / "README.md").read_text().partition("## Development")[2]
    assert "pip install -c constraints.txt -e '.[dev]'" in development


def test_a_program_that_uses_the_installed_package_is_type_checked(tmp_path: Path) -> None:
    """What an empty environment gets from the wheel, with a right and a wrong use of it."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site_packages,) = tmp_path.glob("venv/[Ll]ib/**/site-packages")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site_packages)
    assert (site_packages / "async_collector/__init__.py").read_text() == (PROJECT / "async_collector.py").read_text()
    assert (site_packages / "async_collector/dashboard.toml").read_text() == (PROJECT / "dashboard.toml").read_text()
    (tmp_path / "program.py").write_text(
        "from async_collector import AsyncCollector\n"
        "AsyncCollector('file.db', workers=7).clob_limiter.max_requests = 40\n"
        "AsyncCollector('file.db', workers='ten')\n"
    )
    python = next(path for path in tmp_path.glob("venv/*/python*") if path.stem == "python")
    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "program.py"]
    done = subprocess.run(check, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.stdout == (
        'program.py:3: error: Argument "workers" to "AsyncCollector" has incompatible type "str"; expected "int"'
        "  [arg-type]\nFound 1 error in 1 file (checked 1 source file)\n"
    )
