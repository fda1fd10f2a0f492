"""covers: `--status` of several selections and of a live file, its metrics, and the rules that alert on them."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from conftest import PROJECT, rows
from prometheus_client.parser import text_string_to_metric_families
from sample_database import create, fill, insert
from test_docs import first_cells
from truth import COLLECTOR, command

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket
    from prometheus_client import Metric

SCRIPT: dict[str, Any] = runpy.run_path(str(PROJECT / "async-collector.py"), run_name="script")
NOW = datetime(2026, 11, 22, 14, 15, tzinfo=UTC)
OPERATIONS = (PROJECT / "docs/operations.md").read_text()
ALERTS = yaml.safe_load((PROJECT / "deploy/alerts.yml").read_text())


class Ran(NamedTuple):
    """Runs of one selection: from so many minutes ago to so many minutes ago, one each so many minutes."""

    first: float
    last: float
    every: float
    status: str = "complete"
    volume: float | None = 100_000.0
    names: str | None = None
    depth: int | None = None

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield rows of `runs`."""
        minutes = self.first
        while minutes >= self.last:
            yield {
                "started_at": ac.sql_time(NOW - timedelta(minutes=minutes)),
                "status": self.status,
                "min_volume": self.volume,
                "names": self.names,
                "depth": self.depth,
                "version": ac.__version__,
                "follow": 1,
            }
            minutes -= self.every


def by_name(first: float, last: float, every: float, status: str = "complete") -> Ran:
    return Ran(first, last, every, status, None, '{"events": ["the-cup"]}')


WEEK = 7 * 24 * 60
FIRST_RUN = Ran(5, 5, 15)
REGULAR = Ran(3 * 24 * 60 + 10, 10, 15)
STOPPED = Ran(3 * 24 * 60, 60, 15)
LONG_GONE = Ran(3 * 24 * 60, 25 * 60, 15)


def store(database: Path, *ran: Ran) -> None:
    """Make a file that has these runs, in the order of their starts."""
    runs = sorted((row for some in ran for row in some.rows()), key=lambda row: str(row["started_at"]))
    names = sorted({some.names for some in ran if some.names})
    ids = {each: number for number, each in enumerate(names, 1)}
    with contextlib.closing(create(database)) as connection:
        insert(connection, "selections", ({"names": each, "first_used_at": ac.sql_time(NOW)} for each in names))
        insert(connection, "runs", ({**row, "selection_id": ids.get(str(row["names"]))} for row in runs))
        connection.commit()


def read_status(database: Path) -> dict[str, Any]:
    status: dict[str, Any] = SCRIPT["read_status"](database, 15, NOW)
    return status


def metrics(database: Path) -> list[Metric]:
    text = SCRIPT["exposition"](database, SCRIPT["read_samples"](database, read_status(database), NOW))
    return list(text_string_to_metric_families(f"{text}\n"))


def value(database: Path, name: str) -> dict[str, float]:
    """Return the values of a metric, by selection."""
    return {
        sample.labels.get("selection", ""): sample.value
        for metric in metrics(database)
        for sample in metric.samples
        if sample.name == f"polymarket_collector_{name}"
    }


@pytest.mark.parametrize(
    ("ran", "healthy", "judged"),
    [
        ([REGULAR], True, ["over $100,000"]),
        ([STOPPED], False, ["over $100,000"]),
        ([FIRST_RUN], False, []),
        ([], False, []),
        ([Ran(3 * WEEK, 2 * WEEK, 60)], False, []),
        ([STOPPED, Ran(1, 1, 1, names='{"markets": ["will-it-rain"]}', volume=None)], False, ["over $100,000"]),
        ([STOPPED, by_name(30, 0.05, 0.05)], False, ["events the-cup", "over $100,000"]),
        ([REGULAR, by_name(30, 0.05, 0.05)], True, ["events the-cup", "over $100,000"]),
        ([LONG_GONE, by_name(26 * 60, 1, 15)], True, ["events the-cup"]),
        ([LONG_GONE, by_name(26 * 60, 60, 15)], False, ["events the-cup", "over $100,000"]),
        ([LONG_GONE, by_name(3, 3, 1)], False, ["over $100,000"]),
        ([REGULAR, Ran(200, 100, 15, depth=5)], False, ["over $100,000", "over $100,000; depth 5"]),
        ([LONG_GONE, Ran(24 * 60 - 5, 5, 15, "partial")], False, ["over $100,000"]),
        ([REGULAR, Ran(-24 * 60, -24 * 60, 1)], True, ["over $100,000"]),
    ],
)
def test_each_selection_is_judged_by_its_own_runs(
    database: Path, ran: list[Ran], *, healthy: bool, judged: list[str]
) -> None:
    store(database, *ran)
    status = read_status(database)
    found = [chosen["label"] for chosen in status["selections"] if chosen["judged"]]
    assert (status["healthy"], sorted(found)) == (healthy, sorted(judged))
    said = SCRIPT["status_lines"](status, NOW)
    assert all(chosen["label"] in said for chosen in status["selections"])
    assert ("nothing to judge" in said) is (not judged)


async def test_a_run_by_hand_of_one_market_does_not_make_the_collection_well(
    make_collector: Callable[..., ac.AsyncCollector], exchange: FakePolymarket, database: Path, clock: JumpingClock
) -> None:
    for _ in range(2):
        await make_collector().collect_all()
        clock.elapsed_s += 15 * 60
    clock.elapsed_s += 24 * 60 * 60
    await make_collector(markets=[next(iter(exchange.markets))]).collect_all()
    status = SCRIPT["read_status"](database, 15, clock.now())
    assert [(chosen["judged"], chosen["healthy"]) for chosen in status["selections"]] == [(False, False), (True, False)]
    assert (status["healthy"], status["missed_ticks"]) == (False, 95)


def test_a_label_is_short_and_of_one_selection_alone() -> None:
    def label(number: int) -> str:
        names = {"markets": [f"a-market-with-a-long-name-{each}" for each in range(number)]}
        text: str = SCRIPT["selection_label"]({"min_volume": None, "names": json.dumps(names), "depth": None})
        return text

    assert label(1) == "markets a-market-with-a-long-name-0"
    assert label(500) != label(501)
    assert len(label(500)) == len(label(501)) == 100


@pytest.mark.parametrize(
    ("streams", "gaps", "healthy"),
    [
        ([("14:00:00", "14:14:30.250", None)], [], True),
        ([("14:14:30", None, None)], [], True),
        ([("14:00:00", "14:12:30.000", None)], [], False),
        ([("14:00:00", "14:14:30.250", None), ("14:00:00", "14:10:00.000", None)], [], False),
        ([("14:00:00", "14:01:00.000", "the process died"), ("14:02:00", "14:14:30.000", None)], [], True),
        ([("14:00:00", "14:14:30.250", None)], [("14:13:20.000", None)], True),
        ([("14:00:00", "14:14:30.250", None)], [("14:05:00.000", None)], False),
        ([("14:00:00", "14:14:30.250", None)], [("14:05:00.000", "14:05:10.000")], True),
        ([("14:00:00", "14:10:00.000", "stopped")], [("14:10:00.000", None)], False),
        ([("14:00:00", "14:10:00.000", "1000: all has settled")], [], True),
    ],
)
def test_a_live_file_is_judged_by_its_streams(
    database: Path, streams: list[tuple[str, ...]], gaps: list[tuple[str, ...]], *, healthy: bool
) -> None:
    store(database, by_name(10, 5, 5))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for started, verified, reason in streams:
            verified_at = verified and f"2026-11-22 {verified}"
            connection.execute(
                "INSERT INTO streams (started_at, verified_at, tokens, frames, bytes, changes, trades, repeated, "
                "reason) VALUES (?, ?, 4, 30, 900, 20, 1, 0, ?)",
                (f"2026-11-22 {started}", verified_at, reason),
            )
        for since, until in gaps:
            ends = until and f"2026-11-22 {until}"
            row = ("1", f"2026-11-22 {since}", ends, "closed")
            connection.execute("INSERT INTO live_gaps (market_id, since, until, reason) VALUES (?, ?, ?, ?)", row)
        connection.commit()
    status = read_status(database)
    assert status["healthy"] is healthy
    still_open = sum(reason is None for *_, reason in streams)
    assert f"{still_open} open, " in SCRIPT["status_lines"](status, NOW)
    assert value(database, "streams_open") == {"": still_open}
    assert value(database, "streams_open_gaps") == {"": sum(until is None for _, until in gaps)}
    assert value(database, "streams_frames") == {"": 30 * still_open}


def test_the_metrics_say_what_the_file_says(database: Path) -> None:
    fill(database, markets=20, days=2, levels=3, first_day=(NOW - timedelta(days=1)).date(), failed=0.05)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM snapshots WHERE timestamp > ?", (ac.sql_time(NOW),))
        connection.execute("DELETE FROM runs WHERE started_at > ?", (ac.sql_time(NOW),))
        connection.execute("UPDATE runs SET min_volume = 100000")
        connection.commit()
    newest = rows(database, "SELECT * FROM runs ORDER BY run_id DESC LIMIT 1")[0]
    for name, column in (
        ("run_markets_listed", "markets_listed"),
        ("run_markets_stored", "snapshots_saved"),
        ("run_books_missing", "books_missing"),
        ("run_duration_seconds", "duration"),
        ("run_requests", "requests"),
        ("run_retries", "retries"),
        ("run_rate_limit_hits", "rate_limit_hits"),
    ):
        assert value(database, name) == {"over $100,000": newest[column]}
    assert value(database, "last_run_timestamp_seconds") == {"over $100,000": NOW.timestamp()}
    complete = datetime.fromisoformat(read_status(database)["last_complete_at"]).replace(tzinfo=UTC)
    assert value(database, "last_complete_run_timestamp_seconds") == {"over $100,000": complete.timestamp()}
    assert value(database, "unarchived_days") == {"": 1}
    assert value(database, "file_bytes") == {"": database.stat().st_size}
    by_stage = {
        sample.labels["stage"]: sample.value
        for metric in metrics(database)
        if metric.name == "polymarket_collector_run_failures"
        for sample in metric.samples
    }
    stored = Counter(
        row["stage"] for row in rows(database, "SELECT * FROM failures") if row["run_id"] == newest["run_id"]
    )
    assert {stage: count for stage, count in by_stage.items() if count} == stored
    assert set(by_stage) == set(SCRIPT["STAGES"])


def test_only_what_is_archived_is_no_unarchived_day(database: Path) -> None:
    fill(database, markets=3, days=4, runs_per_day=2, levels=2, first_day=(NOW - timedelta(days=3)).date())
    assert value(database, "unarchived_days") == {"": 3}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        day = (NOW - timedelta(days=2)).date().isoformat()
        note = "INSERT INTO archived_days (day, shard, archived_at, snapshots) SELECT ?, 'x', ?, max(id) FROM snapshots"
        connection.execute(f"{note} WHERE date(timestamp) = ?", (day, ac.sql_time(NOW), day))
        connection.commit()
    assert value(database, "unarchived_days") == {"": 2}


def test_a_market_that_is_missing_is_an_open_gap(database: Path) -> None:
    fill(database, markets=6, runs_per_day=10, levels=2, first_day=NOW.date())
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE markets SET followed = 1, resolved = 0")
        assert value(database, "open_gaps") == {"": 0}
        connection.execute("DELETE FROM snapshots WHERE market_id = '900003' AND run_id > 5")
        newest = "(SELECT max(id) FROM snapshots WHERE market_id = seen.market_id)"
        connection.execute(f"UPDATE seen SET snapshot_id = {newest}")  # noqa: S608
        connection.commit()
    assert value(database, "open_gaps") == {"": 1}


def test_every_metric_has_a_name_a_help_and_a_type_by_the_conventions(database: Path) -> None:
    store(database, REGULAR, by_name(30, 1, 1), Ran(100, 10, 10, names='{"tags": ["a\\"b\\\\c"]}'))
    found = metrics(database)
    assert [metric.name for metric in found] == [
        f"polymarket_collector_{name}"
        for name in SCRIPT["METRICS"]
        if not name.startswith("streams") and name != "run_duration_seconds"  # which these runs do not have
    ]
    series = [(sample.name, *sorted(sample.labels.items())) for metric in found for sample in metric.samples]
    assert len(set(series)) == len(series)
    for metric in found:
        assert (metric.type, metric.documentation[-1:]) == ("gauge", ".")
        assert re.fullmatch(r"polymarket_collector_[a-z]+(_[a-z0-9]+)*", metric.name)
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket", "_ms", "_minutes", "_mb", "_info"))
        assert all(sample.labels["database"] == str(database) for sample in metric.samples)
    assert 'tags a"b\\c; over $100,000' in value(database, "missed_ticks")


def test_every_metric_is_in_the_docs() -> None:
    assert first_cells("Metrics", OPERATIONS) == [f"polymarket_collector_{name}" for name in SCRIPT["METRICS"]]


def test_the_alert_rules_ask_for_metrics_that_there_are() -> None:
    (group,) = ALERTS["groups"]
    assert len(group["rules"]) == 5
    for rule in group["rules"]:
        asked = re.findall(r"polymarket_collector_(\w+)", rule["expr"])
        assert asked
        assert set(asked) <= set(SCRIPT["METRICS"])
        assert rule["alert"] in first_cells("Alerts", OPERATIONS)
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert str(ac.WAL_LIMIT_BYTES) in str(group["rules"])


async def test_the_lines_for_cron_and_systemd_write_a_whole_file(exchange: FakePolymarket, tmp_path: Path) -> None:
    """Also where the collection is not well; where nothing can be said, the last file stays."""
    folder = tmp_path / "polymarket"
    (folder / ".venv/bin").mkdir(parents=True)
    program = folder / ".venv/bin/async-collector"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {PROJECT}/async-collector.py "$@"\n')
    program.chmod(0o755)
    line = re.search(r"^\* \* \* \* \* (.*)$", (PROJECT / "deploy/crontab").read_text(), re.MULTILINE)
    unit = re.search(
        r"^ExecStart=/bin/sh -c '(.*)'$", (PROJECT / "deploy/polymarket-metrics.service").read_text(), re.MULTILINE
    )
    assert line
    assert unit
    in_folder = unit[1].replace("/opt/polymarket", str(folder)).replace("/run/polymarket-metrics", str(tmp_path))
    assert (await command(exchange, COLLECTOR, "--quiet", "--db", str(folder / "polymarket_data.db"))).code == 0
    for shell_line, written in (
        (line[1], folder / "metrics/polymarket.prom"),
        (in_folder.replace("$$", "$"), tmp_path / "polymarket.prom"),
    ):
        environment = {
            "HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "POLYMARKET_DB": str(folder / "polymarket_data.db"),
        }
        ways = {"well or not": 0, "no file": 74}
        before = ""
        for way, code in ways.items():
            if way == "no file":
                before = written.read_text()
                environment["POLYMARKET_DB"] = str(folder / "none.db")
            done = subprocess.run(["/bin/sh", "-c", shell_line], env=environment, capture_output=True, check=False)
            assert (done.returncode == 0) is (code == 0), done.stderr
            assert list(text_string_to_metric_families(written.read_text()))
            assert written.stat().st_mode & 0o044 == 0o044, "the exporter is another user"
            assert before in {"", written.read_text()}
    assert shutil.which("sh")


@pytest.mark.parametrize("args", ["--metrics", "--status --metrics --json", "--continuous --metrics"])
async def test_metrics_go_with_status_alone(exchange: FakePolymarket, database: Path, args: str) -> None:
    done = await command(exchange, COLLECTOR, "--db", str(database), *args.split())
    assert (done.code, done.out) == (2, "")
    assert "argument --metrics: only with --status" in done.err
