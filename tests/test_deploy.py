"""covers: the units in `deploy/`: systemd takes them, and they leave the service little to do harm with."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from conftest import PROJECT

import async_collector as ac

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = PROJECT / "deploy"
SERVICES = [f"polymarket-{name}.service" for name in ("collector", "collect", "archive", "history", "live", "metrics")]
OPERATIONS = (PROJECT / "docs/operations.md").read_text()
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that exists on this machine, as systemd looks for it."""
    for unit in DEPLOY.glob("polymarket-*"):
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ANALYZE), *args], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_systemd_takes_the_units(units: Path) -> None:
    done = analyze("verify", *(str(unit) for unit in sorted(units.iterdir())))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_the_exposure_is_what_the_docs_say(units: Path, unit: str) -> None:
    done = analyze("security", "--offline=true", "--threshold=20", str(units / unit))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    stated = re.search(r"exposure level of ([\d.]+)", OPERATIONS)
    assert found
    assert stated
    assert done.returncode == 0
    assert float(found[1]) <= float(stated[1])


def test_a_service_is_not_started_again_where_only_somebody_can_help() -> None:
    unit = (DEPLOY / "polymarket-collector.service").read_text()
    codes = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert codes == [f"{ac.StorageError.exit_code} {ac.UnknownNamesError.exit_code}"]
    assert "Restart=" not in (DEPLOY / "polymarket-collect.service").read_text(), "the timer starts it again"


def test_all_services_run_under_the_same_protection() -> None:
    protections = [
        (DEPLOY / unit).read_text().partition("# A static user")[2].partition("[Install]")[0].strip()
        for unit in SERVICES
    ]
    assert len(set(protections)) == 1
    assert protections[0] != ""
