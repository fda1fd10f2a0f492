"""covers: the repository itself: what its tests say of themselves, what is installed, and what CI runs."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import PROJECT

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
