"""covers: `collector-dashboard`: the file in a browser, as its user starts it, breaks it and looks at it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sample_database
from browser import CHROMIUM, DRIVER, errors, open_browser, requested
from conftest import PROJECT
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver import Chrome

pytestmark = pytest.mark.xdist_group("dashboard")  # one process has the sample, its dashboard and the browser
SCRIPT_PATH = PROJECT / "collector-dashboard.py"
PAGES = {"market": "MARKET_PAGE", "exchange": "EXCHANGE", "collection": "COLLECTION"}  # and what the script calls them
MARKET = "will-event-3-end-in-1"
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its driver here")


@cache
def script() -> dict[str, Any]:
    """Return what the command defines."""
    return runpy.run_path(str(SCRIPT_PATH), run_name="script")


def charts(page: str) -> dict[str, dict[str, Any]]:
    """Return the cards of a page that show the answer to a query."""
    found: dict[str, dict[str, Any]] = script()[PAGES[page]]["charts"]
    return found


@dataclass
class Served:
    """A dashboard in a process of its own."""

    address: str
    process: subprocess.Popen[str]

    def get(self, path: str, **query: str | list[str]) -> tuple[int, str]:
        """Return status and text of the answer."""
        address = f"{self.address}{path}?{urllib.parse.urlencode(query, doseq=True)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310  it is ours
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def rows(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return the rows of a table or query."""
        status, text = self.get(f"{path}.json", _shape="objects", **query)
        assert status == 200, text
        found: list[dict[str, Any]] = json.loads(text)["rows"]
        return found


@contextmanager
def serve(path: Path, *options: str, **environment: str) -> Iterator[Served]:
    command = (sys.executable, "-W", "error", str(SCRIPT_PATH), "--port", "0", "--db", str(path), *options)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            assert process.stdout
            address = process.stdout.readline().strip()  # or the end, if it does not start
            assert address.startswith("http://127.0.0.1:"), process.communicate()[1]
            yield Served(address.rstrip("/"), process)
        finally:
            process.kill()


def change(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of 110 markets, one of which has words that want to be markup."""
    path = tmp_path_factory.mktemp("sample") / "sample.db"
    sample_database.fill(path, markets=110, days=2, runs_per_day=30, levels=20)
    change(
        path,
        """
        UPDATE markets SET slug = '"><script>window.hacked = 1</script>', category = '<b>bold</b>',
               question = '<img src=x onerror="window.hacked = 1">', first_seen = '2027-01-01 00:00:00'
        WHERE market_id = '900021';
        UPDATE snapshots SET volume_24h = 1e9 WHERE market_id = '900021';
        UPDATE runs SET tweets = 20 WHERE run_id % 3 = 0;
        UPDATE failures SET reason = '<b>timed out</b>';
        """,
    )
    return path


@pytest.fixture(scope="module")
def dashboard(sample: Path) -> Iterator[Served]:
    """A dashboard of the sample."""
    with serve(sample) as served:
        yield served


@pytest.fixture
def empty_file(database: Path) -> Path:
    """A file of the collector without a row."""
    with closing(sample_database.create(database)):
        return database


@pytest.fixture
def file_of_nulls(empty_file: Path) -> Path:
    """A file with a row in each table that has nothing wherever that is allowed."""
    with closing(sqlite3.connect(empty_file)) as connection:
        for table in ("markets", "snapshots", "tweets", "hype_signals", "seen", "books", "runs", "failures"):
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            needed = {name: default or "'0'" for _, name, _, not_null, default, _ in columns if not_null}
            if table in {"markets", "seen"}:
                needed["market_id"] = "'0'"
            values = ", ".join(needed.get(column[1], "NULL") for column in columns)
            connection.execute(f"INSERT INTO {table} VALUES ({values})")  # noqa: S608  names of our schema
        connection.execute("UPDATE snapshots SET market_id = '0'")
        connection.execute("UPDATE seen SET snapshot_id = (SELECT max(id) FROM snapshots)")
        connection.commit()
    return empty_file


# --- What it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "a run makes it, or --db names another"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty; a run fills it"),
        (lambda path: path.write_text("no database, " * 1_000), "cannot read: file is not a database"),
        (lambda path: change(path, "CREATE TABLE invoices (id)"), "is the database of another program"),
        (lambda path: sample_database.create(path).execute("PRAGMA user_version = 99"), "has schema 99 of a newer"),
        (lambda path: sample_database.create(path).execute("PRAGMA user_version = 2"), "has schema 2 of an older"),
        (lambda path: sample_database.create(path).execute("DROP VIEW latest_snapshots"), "lacks latest_snapshots"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed database")
def test_a_file_that_cannot_be_shown_is_said(
    database: Path, make: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(database)
    assert script()["main"](["--db", str(database)]) == 74
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.match(f"collector-dashboard: (there is no file )?{database}[:;] {message}", err)


def test_a_taken_port_is_said(empty_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert script()["main"](["--db", str(empty_file), "--port", str(port)]) == 78
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"collector-dashboard: cannot listen on 127.0.0.1 port {port}: ")
    assert "--port N takes another" in err


def test_a_port_that_is_none_is_a_bad_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script()["main"](["--port", "70000"])
    assert ended.value.code == 2
    assert "70000 is no port" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["datasette", "datasette_dashboards"])
def test_a_missing_extra_is_said(missing: str) -> None:
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_path({str(SCRIPT_PATH)!r})"
    ended = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 78
    assert "pip install '.[dashboard]'" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- What it does to the file -----------------------------------------------------------------------------------------


def test_nothing_can_write_the_file(sample: Path, dashboard: Served) -> None:
    before = hashlib.sha256(sample.read_bytes()).digest()
    for statement in ("DELETE FROM snapshots", "PRAGMA user_version = 9", "ATTACH 'x.db' AS x"):
        status, text = dashboard.get("/polymarket.json", sql=statement)
        assert (status, "Statement" in text) == (400, True)
    opened = script()["CollectorFile"](script()["Datasette"](), sample, script()["opening_mode"](sample))
    with closing(opened.connect()) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM snapshots")
    assert hashlib.sha256(sample.read_bytes()).digest() == before


def test_a_name_with_signs_of_an_address_is_a_name(tmp_path: Path) -> None:
    """SQLite reads `?` and `#` in the name of a file as something else unless they are quoted."""
    path = tmp_path / "50%25?mode=rwc#.db"
    sample_database.fill(path, markets=3, runs_per_day=2)
    with serve(path) as served:
        assert served.rows("/polymarket/what_is_in_the_file")[0]["rows"] == 6
        assert "50%25?mode=rwc#.db" in served.get("/")[1]
    assert {file.name.removesuffix("-wal").removesuffix("-shm") for file in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_however_it_ends_nothing_is_left(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """But the two files that SQLite keeps beside every file with a write-ahead log."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=3, runs_per_day=2)
    with serve(path, TMPDIR=str(scratch), HOME=str(scratch)) as served:
        assert served.get("/-/dashboards/market")[0] == 200
        served.process.send_signal(number)
        _, complaints = served.process.communicate(timeout=20)
    assert (served.process.returncode, complaints) == (code, "")
    assert list(scratch.iterdir()) == []
    assert {file.name for file in tmp_path.iterdir()} - {"file.db-wal", "file.db-shm"} == {"scratch", "file.db"}


@pytest.mark.skipif(os.name != "posix", reason="the browser is a shell script")
def test_it_opens_the_browser_that_the_user_has(empty_file: Path, tmp_path: Path) -> None:
    """The pipe holds both until the other is there."""
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" >{opened}\n')
    browser.chmod(0o755)
    os.mkfifo(opened)
    with serve(empty_file, "--open", BROWSER=f"{browser} %s") as served:
        assert opened.read_text() == f"{served.address}/\n"


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of Unix")
@pytest.mark.parametrize("used", [False, True])
def test_a_folder_that_may_not_be_written(*, used: bool) -> None:
    """An unused file is shown as it is; a used one cannot be read there, and what helps is said."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # which others may enter
        path = Path(folder) / "file.db"
        sample_database.fill(path, markets=3, runs_per_day=2)
        if used:
            path.with_name("file.db-wal").write_bytes(b"\0" * 5_000)
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        code = f"""
import os, pathlib, runpy
script = runpy.run_path({str(SCRIPT_PATH)!r}, run_name="script")
if os.getuid() == 0:
    os.setuid(65534)
try:
    print(script["opening_mode"](pathlib.Path({str(path)!r})))
except script["ac"].StorageError as error:
    print(error)
"""
        ended = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=30, check=False)
        Path(folder).chmod(0o755)
    if used:
        assert "you must be allowed to write in its folder" in ended.stdout, ended
    else:
        assert ended.stdout == "mode=ro&immutable=1\n", ended


# --- What it shows ----------------------------------------------------------------------------------------------------

FACETS = {
    "snapshots": "run_id market_id timestamp",
    "markets": "category event_slug resolved followed",
    "runs": "status version",
    "failures": "stage reason market_id run_id",
    "books": "market_id mirrored",
    "latest_snapshots": "category run_id resolved",
    "tweets": "market_id author_username",
    "hype_signals": "market_id",
    "gaps": "market_id",
    "order_books": "",
    "book_levels": "",
    "seen": "",
}


def everything(served: Served) -> dict[str, tuple[int, str]]:
    """Return the answer of each page, table with its facets, query and chart."""
    asked: dict[str, dict[str, str]] = {"/": {}, "/polymarket": {}, "/-/dashboards": {}}
    asked |= {f"/-/dashboards/{name}": {"market": MARKET} for name in PAGES}
    asked |= {f"/polymarket/{name}": {"market": MARKET} for name in script()["QUERIES"]}
    answers = {path: served.get(path, **query) for path, query in asked.items()}
    for name, columns in FACETS.items():
        answers[name] = served.get(f"/polymarket/{name}", _facet=columns.split())
    for name in PAGES:
        for key, card in charts(name).items():
            query = {"sql": card["query"], "market": MARKET, "_shape": "objects"}
            answers[f"{name}, {key}"] = served.get("/polymarket.json", **query)
    return answers


@pytest.mark.parametrize(
    "kind",
    [
        "sample",
        pytest.param("empty_file", marks=pytest.mark.slow),
        pytest.param("file_of_nulls", marks=pytest.mark.slow),
    ],
)
def test_every_page_table_query_and_chart_answers(kind: str, request: pytest.FixtureRequest) -> None:
    with serve(request.getfixturevalue(kind)) as served:
        answers = everything(served)
        served.process.terminate()
        _, complaints = served.process.communicate(timeout=20)
    assert {path: text for path, (status, text) in answers.items() if status != 200} == {}
    for path, (_, text) in answers.items():
        if ", " in path:
            assert json.loads(text)["rows"], f"{path}: a chart without a row would fail"
        assert "took too long" not in text, path
        assert 'class="message-error"' not in text, path
    assert complaints == ""


def test_queries_find_what_is_in_the_file(sample: Path, dashboard: Served) -> None:
    """The depth is computed here by hand, from the book as it is stored."""
    with closing(sqlite3.connect(sample)) as connection:
        query = """
            SELECT bids, asks, price_yes FROM latest_snapshots JOIN books USING (book_id) WHERE slug = ?
        """
        bids, asks, price = connection.execute(query, (MARKET,)).fetchone()
    bids, asks = json.loads(bids), json.loads(asks)
    found = dashboard.rows("/polymarket/depth_within_cents", market=MARKET, cents="3")[0]
    assert found["bid_shares"] == pytest.approx(sum(size for at, size in bids if at > price - 0.0300001))
    assert found["ask_shares"] == pytest.approx(sum(size for at, size in asks if at < price + 0.0300001))

    levels = dashboard.rows("/polymarket/book_at_a_moment", market=MARKET)
    assert [[row["price"], row["size"]] for row in levels if row["side"] == "bid"] == bids
    assert [[row["price"], row["size"]] for row in levels if row["side"] == "ask"] == asks
    assert dashboard.rows("/polymarket/book_at_a_moment", market=MARKET, moment="2026-10-31 00:00:00") == []

    wanted, cost, bought = 1_000.0, 0.0, 0.0
    for at, size in asks:
        part = min(size, wanted - bought)
        bought, cost = bought + part, cost + part * at
    (buying,) = dashboard.rows("/polymarket/cost_of_buying", market=MARKET)
    assert (buying["shares_bought"], buying["cost_usd"]) == (pytest.approx(bought), pytest.approx(cost, abs=0.006))

    near_bid, near_ask = (sum(s for at, s in side if abs(at - price) < 0.0200001) for side in (bids, asks))
    balance = {row["slug"]: row["imbalance"] for row in dashboard.rows("/polymarket/imbalance")}
    assert balance[MARKET] == pytest.approx((near_bid - near_ask) / (near_bid + near_ask), abs=0.0006)

    by_size = {row["shares"]: row for row in dashboard.rows("/polymarket/spread_by_size", market=MARKET)}
    assert by_size[1]["spread"] == pytest.approx(asks[0][0] - bids[0][0])
    if bought == wanted:
        assert by_size[1_000]["average_to_buy"] == pytest.approx(cost / wanted, abs=0.00006)


def test_names_and_ids_are_links(dashboard: Served) -> None:
    """Also in views, in queries, and in tables that declare no foreign key; with labels where a table is shown."""
    question = '<a href="/polymarket/markets/900010">Will event 3 end in 1? “Ja”, ça va</a>'
    run = '<a href="/polymarket/runs/60">2026-11-02 07:15:00</a>'
    for table in ("snapshots", "latest_snapshots", "books", "order_books"):
        assert question in dashboard.get(f"/polymarket/{table}", market_id="900010")[1], table
    for table in ("tweets", "hype_signals"):
        assert "Will event 0 end in 1? “Ja”, ça va</a>" in dashboard.get(f"/polymarket/{table}", run_id="60")[1], table
    for table in ("latest_snapshots", "tweets", "hype_signals", "snapshots"):
        assert run in dashboard.get(f"/polymarket/{table}", run_id="60")[1], table
    assert '<a href="/polymarket/books/' in dashboard.get("/polymarket/price_history", market=MARKET)[1]
    latest = dashboard.get("/polymarket/latest_snapshots", slug=MARKET)[1]
    assert f'<a href="/-/dashboards/market?market={MARKET}">{MARKET}</a>' in latest
    assert f'<a href="https://polymarket.com/event/event-3/{MARKET}">event-3</a>' in latest


def test_columns_are_described_with_their_units(dashboard: Served) -> None:
    text = dashboard.get("/polymarket/snapshots")[1]
    assert "<dt>volume_24h</dt><dd>USD traded in 24 hours</dd>" in re.sub(r">\s+<", "><", text)


def test_described_tables_and_columns_exist(empty_file: Path) -> None:
    with closing(sqlite3.connect(empty_file)) as connection:
        for table, (_, label, newest, columns) in script()["SCHEMA"].items():
            there = {column[1] for column in connection.execute(f"PRAGMA table_info({table})")}
            assert there >= columns.keys() | ({label, newest} - {None}), table


def test_a_file_that_is_being_written_keeps_answering(empty_file: Path) -> None:
    """Pages come while a writer holds the file, and show what it has committed."""
    with closing(sqlite3.connect(empty_file, isolation_level=None)) as writer, serve(empty_file) as served:
        for run_id in range(1, 4):
            writer.execute("BEGIN IMMEDIATE")
            writer.execute(
                "INSERT INTO runs (run_id, started_at, status) VALUES (?, datetime('now'), 'complete')", (run_id,)
            )
            assert len(served.rows("/polymarket/runs")) == run_id - 1
            assert served.get("/-/dashboards/collection")[0] == 200
            writer.execute("COMMIT")
            assert len(served.rows("/polymarket/runs")) == run_id


def test_the_documentation_has_every_option_query_and_picture() -> None:
    text = (PROJECT / "docs/dashboard.md").read_text()
    options = [action for action in script()["build_parser"]()._actions if action.dest not in {"help", "version"}]
    written = [f"{action.option_strings[0]} {action.metavar or ''}".strip() for action in options]
    assert re.findall(r"^\| `(--[^`]+)` \|", text, re.MULTILINE) == written
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(script()["QUERIES"])
    pictures = [PROJECT / "docs" / name for name in re.findall(r"\]\((\S+\.png)\)", text)]
    assert [picture.stat().st_size < 200_000 for picture in pictures] == [True, True]


# --- In a browser -----------------------------------------------------------------------------------------------------

# what is drawn in each chart: element and least number
DRAWN = {
    "market": {
        "wide_price": ("g.mark-line path, g.mark-area path", 2),
        "spread": ("g.mark-line path", 1),
        "volume": ("g.mark-line path", 1),
        "depth": ("g.mark-area path", 2),
        "hype": ("g.mark-line path", 1),
    },
    "exchange": {"categories": ("g.mark-rect.role-mark path", 7), "movers": ("g.mark-rect.role-mark path", 5)},
    "collection": {
        "share": ("g.mark-symbol.role-mark path", 60),
        "duration": ("g.mark-line path", 1),
        "misses": ("g.mark-line path", 2),
        "pauses": ("g.mark-line path", 1),
        "posts": ("g.mark-line path", 1),
    },
}
TABLES = {"market": 1, "exchange": 3, "collection": 2}
SHOWN_MARKET = "will-event-0-end-in-1"  # one with attention


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """A browser for the tests of this module."""
    with open_browser() as opened:
        yield opened


def look(browser: Chrome, address: str, page: str, width: int = 1_600) -> None:
    """Open a page in a window of *width* and wait until all its charts and tables are there."""
    metrics = {"width": width, "height": 1_000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    requested(browser), errors(browser)
    browser.get(f"{address}/-/dashboards/{page}")
    wait_for_cards(browser, page.partition("?")[0])


def wait_for_cards(browser: Chrome, page: str) -> None:
    def complete(browser: Chrome) -> bool:
        found = [len(browser.find_elements(By.CSS_SELECTOR, f".dashboard-card {tag}")) for tag in ("svg", "table")]
        return found == [len(DRAWN[page]), TABLES[page]]

    WebDriverWait(browser, 60, 0.05).until(complete)


def marks(browser: Chrome, page: str) -> dict[str, int]:
    """Return how many marks each chart of the page has."""
    count = "return document.querySelectorAll(arguments[0]).length"
    return {
        chart: browser.execute_script(count, ", ".join(f"#chart-{chart} {part}" for part in selector.split(", ")))
        for chart, (selector, _) in DRAWN[page].items()
    }


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1_600])
@pytest.mark.parametrize("page", PAGES)
def test_each_page_draws_its_charts(browser: Chrome, dashboard: Served, page: str, width: int) -> None:
    look(browser, dashboard.address, f"{page}?market={SHOWN_MARKET}" if page == "market" else page, width)
    drawn = marks(browser, page)
    assert {chart: drawn[chart] >= least for chart, (_, least) in DRAWN[page].items()} == dict.fromkeys(drawn, True)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert errors(browser) == []
    asked = [address for address in requested(browser) if not address.startswith(("data:", "chrome:"))]
    assert len(asked) > len(DRAWN[page])
    assert [address for address in asked if not address.startswith(f"{dashboard.address}/")] == []


@pytest.mark.slow
@needs_browser
def test_a_market_is_chosen_by_its_slug(browser: Chrome, dashboard: Served) -> None:
    look(browser, dashboard.address, "market")
    field = browser.find_element(By.ID, "market")
    field.clear()
    field.send_keys(MARKET)
    browser.find_element(By.CSS_SELECTOR, "input[value=Apply]").click()
    WebDriverWait(browser, 30, 0.05).until(lambda browser: f"market={MARKET}" in browser.current_url)
    wait_for_cards(browser, "market")
    question = browser.find_element(By.LINK_TEXT, "Will event 3 end in 1? “Ja”, ça va")
    assert question.get_attribute("href") == f"https://polymarket.com/event/event-3/{MARKET}"


@pytest.mark.slow
@needs_browser
def test_a_market_is_reached_from_the_exchange(browser: Chrome, dashboard: Served) -> None:
    look(browser, dashboard.address, "exchange")
    link = browser.find_element(By.CSS_SELECTOR, "#chart-widest td a")
    question = link.text
    link.click()
    WebDriverWait(browser, 30, 0.05).until(lambda browser: "/market?market=" in browser.current_url)
    wait_for_cards(browser, "market")
    assert question in browser.find_element(By.ID, "chart-wide_about").text


@pytest.mark.slow
@needs_browser
def test_words_of_the_exchange_are_never_markup(browser: Chrome, dashboard: Served) -> None:
    for page in PAGES:
        look(browser, dashboard.address, f"{page}?days=7&volume=0")
        assert browser.execute_script("return [window.hacked, document.querySelectorAll('td img, td b').length]") == [
            None,
            0,
        ]
        assert errors(browser) == []
    look(browser, dashboard.address, "exchange?volume=0")
    assert '<img src=x onerror="window.hacked = 1">' in browser.find_element(By.ID, "chart-wide_newest").text


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("kind", ["empty_file", "file_of_nulls"])
def test_where_there_is_nothing_a_page_says_what_to_do(
    browser: Chrome, kind: str, request: pytest.FixtureRequest
) -> None:
    with serve(request.getfixturevalue(kind)) as served:
        for page in PAGES:
            look(browser, served.address, page)
            assert errors(browser) == []
            text = browser.find_element(By.CSS_SELECTOR, ".dashboard-grid").text
            if page == "market":
                assert text.count("Choose another") == 2  # price and volume
                assert "No market of this name in the file: choose one above" in text
            if page == "exchange":
                assert text.count("or wait for the next run") == 4
            if page == "collection" and kind == "empty_file":
                assert "No run yet: start async-collector" in text
                assert text.count("No runs in these days") == 3


@pytest.mark.slow
@needs_browser
def test_time_is_utc_wherever_the_browser_is(browser: Chrome, dashboard: Served) -> None:
    ticks = []
    for zone in ("Etc/UTC", "America/New_York"):
        browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": zone})
        look(browser, dashboard.address, f"market?market={MARKET}")
        labels = browser.find_elements(By.CSS_SELECTOR, "#chart-wide_price .role-axis-label text")
        ticks.append([label.text for label in labels])
    assert ticks[0] == ticks[1]
    assert {"02 Nov", "06:00"} <= set(ticks[0])


@pytest.mark.slow
@needs_browser
def test_pages_are_dark_where_the_browser_asks_for_it(browser: Chrome, dashboard: Served) -> None:
    shades = []
    for scheme in ("light", "dark"):
        media = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [media]})
        look(browser, dashboard.address, "collection")
        colors = "const style = getComputedStyle(arguments[0]); return [style.backgroundColor, style.color]"
        card = browser.find_element(By.CSS_SELECTOR, ".dashboard-card")
        shades += [sum(map(int, re.findall(r"\d+", color)[:3])) > 380 for color in browser.execute_script(colors, card)]
    assert shades == [True, False, False, True]


# --- Beside a collector -----------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads processor time from /proc")
def test_each_page_costs_at_most_a_second_on_a_large_file(tmp_path: Path) -> None:
    """Of 1.5 million snapshots, while a writer has a transaction open; processor time, which neighbours leave be."""
    path = tmp_path / "large.db"
    sample_database.fill(path, markets=5_277, days=3, levels=12, change=0.02)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer, serve(path) as served:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE snapshots SET liquidity = 1 WHERE run_id = 288")
        used: dict[str, float] = {}
        for name in PAGES:
            before = cpu_s(served.process.pid)
            assert served.get(f"/-/dashboards/{name}", market=MARKET)[0] == 200
            for card in charts(name).values():
                assert served.rows("/polymarket", sql=card["query"], market=MARKET)
            used[name] = cpu_s(served.process.pid) - before
        answers = everything(served)
        writer.execute("ROLLBACK")
    assert max(used.values()) <= 1, used
    slow = {path for path, (status, text) in answers.items() if status != 200 or "took too long" in text}
    assert slow <= {"gaps", "/polymarket/gaps_of_the_last_hours"}
