"""covers: what somebody meets who tries the command for the first time: names, files, mistakes, Ctrl-C, help."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import runpy
import signal
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT, rows
from truth import COLLECTOR, SERVICE, command, failures, start

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import JumpingClock
    from fake_polymarket import FakePolymarket

SCRIPT: dict[str, Any] = runpy.run_path(str(PROJECT / COLLECTOR), run_name="script")


# --- a file when there is a row


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ("--market nope", 78),
        ("--event nope --tag nope --series nope", 78),
        ("--event nope --continuous", 78),
        ("--min-volume 1e15", 0),
        ("--max-retries 0 --run-timeout 0.001", 69),
        ("--market closed", 0),
        ("--market closed --market nope", 75),
        ("--market closed --json", 0),
    ],
)
async def test_a_first_run_without_a_market_leaves_nothing_behind(
    exchange: FakePolymarket, tmp_path: Path, args: str, code: int
) -> None:
    exchange.close(exchange.add_market(slug="closed"), "1", "0")
    done = await command(exchange, COLLECTOR, *args.split(), "--db", str(tmp_path / "x.db"))
    assert (done.code, list(tmp_path.iterdir())) == (code, [])
    assert "table failures" not in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_first_run_that_is_interrupted_before_a_market_leaves_nothing_behind(
    exchange: FakePolymarket, tmp_path: Path, number: signal.Signals
) -> None:
    exchange.fail_next("/books", hang=True)
    process = await start(exchange, COLLECTOR, "--db", str(tmp_path / "x.db"))
    await exchange.until_asked("/books")
    process.send_signal(number)
    await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, list(tmp_path.iterdir())) == (128 + number, [])


async def test_in_a_file_that_exists_every_run_has_its_row(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path
) -> None:
    database.touch()
    with pytest.raises(ac.UnknownNamesError, match=r"^the exchange has no market 'nope', no tag 'nope'$"):
        await make_collector(markets=["nope"], tags=["nope"]).collect_all()
    await make_collector(min_volume=1e15).collect_all()
    exchange.fail_next("/markets/keyset", status=403)
    with pytest.raises(ac.AccessDeniedError):
        await make_collector().collect_all()
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["failed", "complete", "failed"]
    assert [row["reason"] for row in failures(database, 1)] == [
        "the exchange has no market 'nope'",
        "the exchange has no tag 'nope'",
    ]


async def test_posts_are_worth_a_file(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They cost money."""
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", exchange.token)
    exchange.say("a post on polymarket")
    await make_collector(min_volume=1e15).collect_all()
    assert rows(database, "SELECT count(*) AS n FROM tweets") == [{"n": 1}]


async def test_who_waits_for_a_file_that_is_removed_makes_it_anew(
    exchange: FakePolymarket,
    make_collector: Callable[..., ac.AsyncCollector],
    database: Path,
) -> None:
    """And holds a lock that others see, though the lock that it had waited for is gone."""
    exchange.fail_next("/markets/keyset", hang=True)
    first = asyncio.ensure_future(make_collector().collect_all())
    await exchange.until_asked("/markets/keyset")
    exchange.fail_next("/books", hang=True)
    second = asyncio.ensure_future(make_collector().collect_all())
    await asyncio.sleep(0)
    first.cancel()
    await exchange.until_asked("/books")
    with pytest.raises(ac.DatabaseBusy, match=f"in use by process {os.getpid()}"), ac.locked(database):
        pass
    exchange.heal()
    second.cancel()
    await asyncio.wait([first, second])
    assert not list(database.parent.iterdir())
    assert (await make_collector().collect_all())["status"] == "complete"


# --- names that the exchange does not know


async def test_followed_markets_are_stored_beside_names_that_do_not_exist(
    exchange: FakePolymarket, database: Path
) -> None:
    """And the code is 78 all the same: nobody may take a misspelt name for a collected one."""
    assert (await command(exchange, COLLECTOR, "--quiet", "--db", str(database))).code == 0
    done = await command(exchange, COLLECTOR, "--quiet", "--event", "nope", "--db", str(database))
    assert (done.code, done.out) == (78, "")
    assert done.err == (
        "async-collector: 60 of 61 listed markets were stored with their books; "
        "first failure: the exchange has no event 'nope' (see the table failures, run 2)\n"
    )
    assert rows(database, "SELECT status, snapshots_saved AS saved FROM runs")[-1] == {"status": "partial", "saved": 60}


async def test_a_service_ends_at_the_start_only(exchange: FakePolymarket, database: Path, clock: JumpingClock) -> None:
    """A name that was found once may come back; one that never was is a mistake that somebody has to see."""
    ticks: list[ac.Tick] = []
    stop = asyncio.Event()
    event = exchange.add_event("the-cup", 2)

    def on_tick(tick: ac.Tick) -> None:
        ticks.append(tick)
        for market in exchange.markets_of(event):
            exchange.remove(market)
        exchange.events.pop("the-cup", None)
        if len(ticks) == 3:
            stop.set()

    await ac.continuous_collection(
        db_path=database, events=["the-cup"], follow=False, stop=stop, on_tick=on_tick, clock=clock
    )
    assert [tick.result and tick.result["markets"] for tick in ticks] == [2, None, None]
    assert {str(tick.error) for tick in ticks[1:]} == {"the exchange has no event 'the-cup'"}
    with pytest.raises(ac.UnknownNamesError):
        await ac.continuous_collection(db_path=database, events=["the-cup"], follow=False, clock=clock)


async def test_a_service_that_reaches_nothing_at_first_makes_its_file_later(
    exchange: FakePolymarket, database: Path, clock: JumpingClock
) -> None:
    exchange.fail_next("/markets/keyset", status=403)
    files: list[bool] = []
    stop = asyncio.Event()

    def on_tick(_: ac.Tick) -> None:
        files.append(database.exists())
        if len(files) == 2:
            stop.set()

    await ac.continuous_collection(db_path=database, stop=stop, on_tick=on_tick, clock=clock)
    assert files == [False, True]
    assert [row["status"] for row in rows(database, "SELECT status FROM runs")] == ["complete"]


async def test_the_service_says_unknown_names_and_ends_with_78(exchange: FakePolymarket, tmp_path: Path) -> None:
    done = await command(exchange, SERVICE, POLYMARKET_DB=str(tmp_path / "x.db"), COLLECTOR_EVENTS="nope")
    assert done.code == 78
    assert done.err.endswith("CRITICAL the exchange has no event 'nope'\n")
    assert list(tmp_path.iterdir()) == []


# --- mistakes on the command line


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        ("--min-volum 5", "--min-volume"),
        ("--min_volume=5", "--min-volume"),
        ("--minvolume 5", "--min-volume"),
        ("--MARKET x", "--market"),
        ("--markets x", "--market"),
        ("--cont", "--continuous"),
        ("--ends-in 5", "--ends-within"),
        ("-quiet", "--quiet"),
        ("--retries 5", "--max-retries"),
        ("--benchmarks", "--benchmark"),
        ("--max", "--max-retries"),
        ("--m", "--min-volume or --market or --max-retries or --metrics"),
    ],
)
def test_a_near_miss_is_one_line_with_what_was_meant(args: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        SCRIPT["main"](args.split())
    assert ended.value.code == 2
    said = f"async-collector: error: unrecognized arguments: {args}; did you mean {meant}?\n"
    assert capsys.readouterr() == ("", said)


def test_a_name_without_an_option_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        SCRIPT["main"](["https://polymarket.com/event/the-cup"])
    assert capsys.readouterr().err == (
        "async-collector: error: unrecognized arguments: https://polymarket.com/event/the-cup; "
        "a name has --market, --event, --series or --tag before it, a file --db\n"
    )


@pytest.mark.parametrize("args", ["--xyz", "-", "--workers 0", "--interval 5", "--status --benchmark"])
def test_any_other_mistake_is_one_line_without_a_guess(args: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        SCRIPT["main"](args.split())
    said = capsys.readouterr().err
    assert re.fullmatch(r"async-collector: error: .*\n", said)
    assert "did you mean" not in said


def test_the_help_of_the_service_has_examples_variables_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    service = runpy.run_path(str(PROJECT / SERVICE), run_name="script")
    with pytest.raises(SystemExit):
        service["main"](["--help"])
    shown = capsys.readouterr().out
    assert len(re.findall(r"^  (?:[A-Z_]+=\S+ )*collector-service\n      \w", shown, re.MULTILINE)) == 2
    listed = set(re.findall(r"\b[A-Z_]{6,}\b", shown.partition("variables:")[2]))
    proxies = {"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"}
    assert listed == {*service["ENVIRONMENT"], *ac.ENVIRONMENT, *proxies}
    codes = set(re.findall(r"\b(\d+)(?= [a-z]|, 143)", shown.partition("exit codes:")[2]))
    assert codes == {"0", "1", "2", "74", "78", "130", "143"}


def test_the_help_has_examples_variables_and_exit_codes() -> None:
    shown = SCRIPT["build_parser"]().format_help()
    examples = re.findall(r"^  async-collector(.*)\n      \w", shown, re.MULTILINE)
    assert len(examples) == 2
    for line in examples:
        SCRIPT["parse"](line.split())
    for name in ac.ENVIRONMENT:
        assert re.search(rf"\b{name}\b", shown.partition("variables")[2])
    codes = {int(number) for number in re.findall(r"\b(\d+)(?= [a-z]|, 143)", shown.partition("exit codes:")[2])}
    readme = (PROJECT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    table = re.findall(r"^\| (\d+(?:, \d+)*) \|", readme, re.MULTILINE)
    assert codes - {95} == {int(code) for cell in table for code in cell.split(", ")}


# --- at a terminal


async def screen_of(exchange: FakePolymarket, *args: str, stop: tuple[str, signal.Signals]) -> tuple[int, list[str]]:
    """Return the exit code of the command on a terminal, and its lines there; *stop* is after what, and how."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 120))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROJECT / COLLECTOR), *args),
        env=os.environ | exchange.environment,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    screen = ""
    with contextlib.suppress(OSError):  # the end of a terminal
        while more := await asyncio.wait_for(asyncio.to_thread(os.read, master, 100_000), 30):
            if stop[0] not in screen and stop[0] in screen + more.decode():
                process.send_signal(stop[1])
            screen += more.decode()
    os.close(master)
    return await asyncio.wait_for(process.wait(), 30), screen.splitlines()


@pytest.mark.parametrize(("number", "quiet"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--json",))])
async def test_the_end_of_a_continuous_collection_is_one_line(
    exchange: FakePolymarket, database: Path, number: signal.Signals, quiet: tuple[str, ...]
) -> None:
    args = ("--continuous", "--db", str(database), *quiet)
    code, lines = await screen_of(exchange, *args, stop=("run 1 is complete", number))
    assert code == 0
    assert lines[-1] == "async-collector: stopped; runs: 1, snapshots stored: 60"


async def test_the_end_of_a_benchmark_is_one_line_and_leaves_no_process(exchange: FakePolymarket) -> None:
    exchange.fail_next("/books", hang=True)
    process = await start(exchange, COLLECTOR, "--benchmark")
    await exchange.until_asked("/books")
    process.terminate()
    out, err = await asyncio.wait_for(process.communicate(), 10)  # which waits for the children, for they have the pipe
    assert (process.returncode, out) == (143, b"")
    assert err.decode() == "async-collector: interrupted; a benchmark keeps nothing\n"


async def test_from_the_second_run_on_there_is_a_percentage_before_all_are_listed(
    exchange: FakePolymarket, make_collector: Callable[..., ac.AsyncCollector], capsys: pytest.CaptureFixture[str]
) -> None:
    collector = make_collector(min_volume=0)
    assert SCRIPT["expected_markets"](collector.settings) == 0
    listed = (await collector.collect_all())["stats"]["markets_fetched"]
    assert SCRIPT["expected_markets"](collector.settings) == listed == len(exchange.markets)
    assert SCRIPT["expected_markets"](make_collector(min_volume=1).settings) == 0
    for expected, shown in ((0, "30 markets"), (60, "50%|"), (20, "100%|")):
        bar = SCRIPT["Bar"](shown=True)
        bar.expected = expected
        bar.show(ac.Progress(listed=30, stored=30, errors=0, all_listed=False))
        bar.close()
        assert capsys.readouterr().err.rpartition("\r")[2].lstrip().startswith(shown)


# --- what --status says


@pytest.mark.parametrize(
    ("runs", "age", "said"),
    [
        (0, None, "0 complete runs in 7 days"),
        (1, 61, "1 complete run in 7 days, the last one 1 minute ago"),
        (2, 20, "2 complete runs in 7 days, the last one 0 minutes ago"),
    ],
)
def test_the_status_counts_in_words_that_agree(runs: int, age: float | None, said: str) -> None:
    chosen = {"label": "over $1", "healthy": False, "judged": False, "replaced": False, "missed_ticks": 0}
    line = SCRIPT["selection_line"](chosen | {"complete_runs": runs, "age": age})
    assert line == f"  over $1: not judged, for that takes two complete runs; {said}"
