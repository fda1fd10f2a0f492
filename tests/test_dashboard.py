"""covers: `collector-dashboard`: the file in a browser, as its user starts it, breaks it and looks at it."""

from __future__ import annotations

import hashlib
import html
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
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection
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
    from http.client import HTTPMessage

    from selenium.webdriver import Chrome

pytestmark = pytest.mark.xdist_group("dashboard")  # one process has the sample, its dashboard and the browser
SCRIPT_PATH = PROJECT / "collector-dashboard.py"
PAGES = ("market", "exchange", "collection")
MARKET = "will-event-3-end-in-1"
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its driver here")


@cache
def script() -> dict[str, Any]:
    """Return what the command defines."""
    return runpy.run_path(str(SCRIPT_PATH), run_name="script")


def charts(page: str) -> dict[str, dict[str, Any]]:
    """Return the cards of a page that show the answer to a query."""
    found: dict[str, dict[str, Any]] = script()["PAGES"][page]["charts"]
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


def test_an_empty_name_is_not_that_of_the_default_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script()["main"](["--db", ""])
    assert ended.value.code == 2
    assert "must be the name of a file" in capsys.readouterr().err


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
        assert dashboard.get("/polymarket.json", sql=statement)[0] == 403
    opened = script()["CollectorFile"](script()["Datasette"](), sample)
    with closing(opened.connect()) as connection:
        connection.set_authorizer(None)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
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
        _, words = served.process.communicate(timeout=20)
    assert served.process.returncode == code
    assert re.fullmatch(r"(Ended after [\d,]+ minutes: 2 requests were answered\.\n)?", words), words
    assert bool(words) == (number != signal.SIGKILL)
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


# --- Whom it lets in --------------------------------------------------------------------------------------------------


def ask(served: Served, path: str, method: str = "GET", **headers: str | list[str]) -> tuple[int, str, HTTPMessage]:
    """Send exactly these headers, and return status, text and headers of the answer."""
    with closing(HTTPConnection(served.address.removeprefix("http://"), timeout=60)) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        sent = {"host": served.address.removeprefix("http://")} | {k.replace("_", "-"): v for k, v in headers.items()}
        for name, values in sent.items():
            for value in values if isinstance(values, list) else [values]:
                connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost", "LOCALHOST:8001"])
def test_it_answers_to_its_own_address(dashboard: Served, host: str) -> None:
    assert ask(dashboard, "/polymarket/runs.json", host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:8001",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.2",
            "[::1]",
        ),
        *("", "evil@127.0.0.1", "127.0.0.1@evil.example", ["127.0.0.1", "evil.example"], []),
    ],
)
def test_it_answers_to_no_other_name(dashboard: Served, host: str | list[str]) -> None:
    """A page of another name that this machine is made to resolve to itself, is still a page of others."""
    for path in ("/polymarket/runs.json", "/", "/-/static/app.css"):
        status, text, _ = ask(dashboard, path, host=host)
        assert status in {421, 400}, (path, text)  # 400 by the server: not exactly one Host
        assert "complete" not in text


def test_the_name_that_it_was_started_with_is_its_own(empty_file: Path) -> None:
    with serve(empty_file, "--host", "localhost") as served:
        assert ask(served, "/", host="LocalHost:99")[0] == 200
        assert ask(served, "/", host="evil.example")[0] == 421


def test_pages_of_others_can_neither_read_nor_frame_it(dashboard: Served) -> None:
    """A link on another page is followed; a script, a picture or a frame of it gets nothing."""
    for site in ("cross-site", "same-site"):  # the latter is another port of this machine
        for mode, dest in (("no-cors", "image"), ("cors", "empty"), ("no-cors", "script"), ("navigate", "iframe")):
            fetch = {"sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": dest}
            assert ask(dashboard, "/polymarket/runs.json", **fetch)[0] == 403, fetch
        fetch = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert ask(dashboard, "/polymarket/runs", **fetch)[0] == 200
    status, _, headers = ask(dashboard, "/polymarket/runs.json", origin="http://evil.example")
    assert (status, headers.get("access-control-allow-origin")) == (200, None)
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "DATA", "AS_CSV"])
def test_it_only_reads(dashboard: Served, method: str) -> None:
    assert ask(dashboard, "/polymarket/runs", method)[0] == 405


def test_only_the_head_is_sent_where_only_the_head_is_asked_for(dashboard: Served) -> None:
    for path in ("/", "/polymarket/runs", "/-/dashboards/market?days=7", "/polymarket/runs.csv"):
        assert ask(dashboard, path, "HEAD")[:2] == (200, "")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        *((f"/polymarket{form}", {"sql": "select 424242"}) for form in ("", ".json", ".csv", ".blob")),
        *((f"/~70olymarket{form}", {"sql": "select 424242"}) for form in ("", ".json")),
        ("/%70olymarket.json", {"sql": "select 424242"}),
        ("/polymarket/runs.json", {"_where": "1 = 1 and 424242"}),
        ("/polymarket/runs.json", {"_where": "1 = 1 and 424242", "sql": "own"}),
        ("/polymarket/latest_prices.json", {"sql": "select 424242"}),
        ("/polymarket.json", {"sql": ["own", "select 424242"]}),
        ("/polymarket.json", {"sql": ["select 424242", "own"]}),
        ("/polymarket.json", {"sql": "own ; select 424242"}),
        ("/_internal.json", {"sql": "select 424242"}),
        ("/_memory.json", {"sql": "select 424242"}),
        *((f"/-/{page}", {}) for page in ("threads.json", "versions.json", "databases.json", "metadata.json", "actor")),
        *((f"/-/{page}", {}) for page in ("permissions", "allow-debug", "settings", "plugins", "patterns", "messages")),
        ("//evil.example/", {}),
    ],
)
def test_a_visitor_gets_no_row_by_sql_and_nothing_of_the_machine(
    dashboard: Served, path: str, query: dict[str, Any]
) -> None:
    own = charts("collection")["duration"]["query"]
    encoded = urllib.parse.urlencode(query, doseq=True).replace("own", urllib.parse.quote(own))
    status, text, _ = ask(dashboard, f"{path}?{encoded}")
    assert status in {403, 404}, text
    assert "424242" not in text


def test_own_queries_are_answered(dashboard: Served) -> None:
    rows = dashboard.rows("/polymarket", sql=charts("collection")["duration"]["query"])
    assert len(rows) == 60
    assert dashboard.get("/polymarket", sql=charts("collection")["duration"]["query"])[0] == 200


@pytest.fixture(scope="module")
def open_dashboard(sample: Path) -> Iterator[Served]:
    """A dashboard that answers SQL of its visitors."""
    with serve(sample, "--allow-sql") as served:
        yield served


def test_sql_of_the_visitor_is_answered_where_it_is_allowed(open_dashboard: Served) -> None:
    assert open_dashboard.rows("/polymarket", sql="SELECT count(*) AS n FROM runs") == [{"n": 60}]
    assert len(open_dashboard.rows("/polymarket/runs", _where="run_id <= 7")) == 7


@pytest.mark.parametrize(
    "expression",
    [
        *("fts3_tokenizer('simple')", "fts3_tokenizer('simple', x'41414141')", "load_extension('/tmp/x.so')"),
        *("readfile('/etc/passwd')", "writefile('/tmp/x', 'x')", "edit('x')", "instr(hex(zeroblob(9)), 'x')"),
        *("replace('a', 'a', 'b')", "trim('a', 'b')", "hex(printf('%.490000c', 'x'))"),
        *("(SELECT count(*) FROM DBstat)", "(SELECT count(*) FROM PRAGMA_page_count())"),
        *("(SELECT count(*) FROM dbstat)", "(SELECT sql FROM sqlite_stmt)", "(SELECT * FROM fts3tokenize('simple'))"),
        *("(SELECT file FROM pragma_database_list())", "(SELECT count(*) FROM pragma_page_count())"),
        *("(SELECT name FROM pragma_function_list())", "'a' LIKE printf('%.101c', 'a')"),
    ],
)
def test_sql_of_the_visitor_reads_tables_and_nothing_else(open_dashboard: Served, expression: str) -> None:
    status, text = open_dashboard.get("/polymarket.json", sql=f"SELECT {expression} FROM runs LIMIT 1")  # noqa: S608
    assert status == 400, text
    assert '"rows": []' in text or '"ok": false' in text


ENDLESS = "WITH RECURSIVE r (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"


def memory_peak(served: Served) -> int:
    """Return the largest memory that the process has had, bytes."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1_024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
@pytest.mark.parametrize(
    "sql",
    [
        ENDLESS,
        "SELECT " + ", ".join(["printf('%.490000c', 1)"] * 190),
        "SELECT printf('%.490000c', char(8364)) FROM runs",
        "SELECT printf('%.300c', char(8364)) FROM snapshots",
        "SELECT " + ", ".join([f"printf('%.490000c', 1) LIKE '%{'1' * 95}2%'"] * 99),
        "SELECT a.*, b.* FROM snapshots AS a, snapshots AS b ORDER BY a.volume_24h * b.id",
    ],
)
def test_after_a_hundred_slow_queries_a_page_comes_first(sample: Path, sql: str) -> None:
    """Long before they are all answered; in little memory; and a signal ends it in the middle of them."""
    with serve(sample, "--allow-sql") as served, ThreadPoolExecutor(100) as visitors:
        path = f"/polymarket.json?{urllib.parse.urlencode({'sql': sql, '_shape': 'objects'})}"
        asked = [visitors.submit(ask, served, path) for _ in range(100)]
        wait(asked, return_when=FIRST_COMPLETED)
        for _ in range(3):
            status, text = served.get("/polymarket/runs", _size="5")
            assert status == 200, text
        assert sql != ENDLESS or sum(not each.done() for each in asked) >= 20
        wait(asked[:50], timeout=20)
        assert memory_peak(served) < 250_000_000
        served.process.terminate()
        assert served.process.wait(timeout=10) == 0


@pytest.mark.slow
def test_a_query_whose_visitor_has_gone_holds_nothing(tmp_path: Path) -> None:
    """The write-ahead log can be cut again."""
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=5, runs_per_day=4)
    with serve(path, "--allow-sql") as served, closing(sqlite3.connect(path, timeout=60)) as writer:
        sql = urllib.parse.urlencode({"sql": ENDLESS.replace("FROM r)", "FROM r, (SELECT 1 FROM runs LIMIT 1))")})
        with closing(socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2])))) as visitor:
            visitor.sendall(f"GET /polymarket.json?{sql} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert served.rows("/polymarket/runs")  # the other one is being answered
        writer.execute("UPDATE runs SET requests = 1")
        writer.commit()
        assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def test_csv_is_whole(tmp_path: Path) -> None:
    """However many rows it has; one that cannot be whole is an error."""
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=3, runs_per_day=2)
    change(
        path,
        """
        INSERT INTO snapshots (market_id, timestamp, price_yes, book_id)
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
            SELECT '900001', datetime('2026-11-03', '+' || i || ' seconds'), 0.5, 1 FROM n
        """,
    )
    with closing(sqlite3.connect(path)) as connection:
        (slug,) = connection.execute("SELECT slug FROM markets WHERE market_id = '900001'").fetchone()
        (all_of_it,) = connection.execute("SELECT count(*) FROM snapshots").fetchone()
        (with_book,) = connection.execute("SELECT count(*) FROM order_books").fetchone()
        (of_market,) = connection.execute("SELECT count(*) FROM snapshots WHERE market_id = '900001'").fetchone()
    asked: dict[str, tuple[dict[str, str], int]] = {
        "price_history": ({"market": slug}, of_market),
        "snapshots": ({}, all_of_it),
        "order_books": ({"_size": "max"}, with_book),
    }
    with serve(path) as served:
        for name, (query, expected) in asked.items():
            assert expected > 6_000
            status, text = served.get(f"/polymarket/{name}.csv", **query)
            assert (status, len(text.splitlines()) - 1) == (200, expected), name
        status, text = served.get("/polymarket/price_history.json", market=slug, _shape="array")
        assert (status, "more than 5,000 rows" in text) == (400, True)
        assert json.loads(served.get("/polymarket/price_history.json", market=slug)[1])["truncated"]


def test_a_file_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    path, other, foreign = (tmp_path / f"{name}.db" for name in ("file", "other", "foreign"))
    sample_database.fill(path, markets=3, runs_per_day=2)
    sample_database.fill(other, markets=3, runs_per_day=5)
    change(foreign, "CREATE TABLE invoices (id)")
    with serve(path) as served:
        assert len(served.rows("/polymarket/runs")) == 2
        for logs in ("-wal", "-shm"):
            path.with_name(f"file.db{logs}").unlink()
        other.replace(path)
        assert len(served.rows("/polymarket/runs")) == 5
        assert served.get("/-/dashboards/collection")[0] == 200
        path.rename(other)
        status, text = served.get("/polymarket/runs")
        assert (status, "there is no file" in text) == (503, True)
        foreign.replace(path)
        status, text = served.get("/polymarket/runs")
        assert (status, "is the database of another program" in text) == (503, True)


def test_the_file_is_found_as_the_collector_finds_it(tmp_path: Path) -> None:
    sample_database.fill(tmp_path / "x.db", markets=3, runs_per_day=2)
    command = (sys.executable, str(SCRIPT_PATH), "--port", "0")
    environment = os.environ | {"POLYMARKET_DB": f" {tmp_path}/x.db\n"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            served = Served(process.stdout.readline().strip().rstrip("/"), process)
            assert len(served.rows("/polymarket/runs")) == 2
        finally:
            process.kill()


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
    assert complaints.startswith("Ended after ")
    assert complaints.count("\n") == 1, complaints


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


def test_the_past_of_a_market_is_drawn_where_there_is_no_price_of_ours(tmp_path: Path) -> None:
    """In another colour, and of the days that are chosen."""
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=3, days=1, runs_per_day=4)
    change(
        path,
        """
        CREATE TEMP TABLE market AS
            SELECT market_id, max(timestamp) AS newest FROM snapshots
            WHERE market_id = '900001' AND book_time IS NOT NULL;
        INSERT INTO past_prices (market_id, width, timestamp, price, fetched_at)
            SELECT market_id, 300, datetime(newest, '-2 days'), 0.25, newest FROM market
            UNION ALL SELECT market_id, 300, newest, 0.5, newest FROM market
            UNION ALL SELECT market_id, 300, datetime(newest, '-9 days'), 0.75, newest FROM market;
        UPDATE markets SET slug = 'the-one' WHERE market_id = '900001';
        """,
    )
    card = charts("market")["wide_price"]
    with serve(path) as served:
        found = served.rows("/polymarket", sql=card["query"], market="the-one")
    assert [row["past"] for row in found if row["past"] is not None] == [0.25]
    assert any(row["price_yes"] is not None for row in found)
    drawn = [layer["encoding"] for layer in card["display"]["layer"] if "encoding" in layer]
    (past,) = (encoding for encoding in drawn if encoding["y"].get("field") == "past")
    assert past["color"] == {"value": script()["COLORS"]["green"]}
    assert "green: the exchange's own" in card["title"]


def test_the_spread_of_each_minute_of_the_last_live_hour_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=3, days=1, runs_per_day=4)
    change(
        path,
        """
        UPDATE markets SET slug = 'the-one' WHERE market_id = '900001';
        UPDATE books SET bids = '[[0.4,5],[0.39,7]]', asks = '[[0.5,3],[0.6,9]]' WHERE market_id = '900001';
        CREATE TEMP TABLE anchor AS SELECT market_id, max(book_time) AS at FROM snapshots
            WHERE market_id = '900001' AND book_id IS NOT NULL;
        INSERT INTO book_changes (market_id, timestamp, lag_ms, side, price, size, stream_id)
            SELECT market_id, strftime('%Y-%m-%d %H:%M:%f', at, seconds || ' seconds'), 5, side, price, size, 1
            FROM anchor, (SELECT 60 AS seconds, 'bid' AS side, 0.45 AS price, 2 AS size UNION ALL
                SELECT 90, 'ask', 0.5, 0 UNION ALL SELECT 150, 'bid', 0.45, 0 UNION ALL SELECT 180, 'bid', 0.01, 8);
        """,
    )
    card = charts("market")["live_spread"]
    with serve(path) as served:
        found = served.rows("/polymarket", sql=card["query"], market="the-one")
        nothing = served.rows("/polymarket", sql=card["query"], market=MARKET)
    last = [(row["bid"], row["ask"], row["spread"]) for row in found][-4:]
    assert last == [(0.4, 0.5, 0.1), (0.45, 0.5, 0.05), (0.45, 0.6, 0.15), (0.4, 0.6, 0.2)]
    assert {row["x"] for row in nothing} == {None}, "which says what is missing"


def test_of_two_markets_with_one_slug_the_open_one_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=6, runs_per_day=4)
    change(
        path,
        """
        UPDATE markets SET slug = 'a&b=c', resolved = 0, closed_at = NULL WHERE market_id IN ('900001', '900002');
        UPDATE markets SET resolved = 1, closed_at = '2026-11-01 10:00:00', first_seen = '2030-01-01 00:00:00',
               question = 'the closed one' WHERE market_id = '900001';
        UPDATE markets SET question = 'the open one' WHERE market_id = '900002';
        """,
    )
    with closing(sqlite3.connect(path)) as connection, serve(path) as served:
        query = "SELECT price_yes FROM snapshots WHERE market_id = '900002' ORDER BY timestamp DESC"
        prices = [row[0] for row in connection.execute(query)]
        found = served.rows("/polymarket/price_history", market="a&b=c")
        assert [row["price_yes"] for row in found] == prices
        facts = served.rows("/polymarket", sql=charts("market")["wide_about"]["query"], market="a&b=c")
        text = json.dumps(facts)
        assert "the open one" in text
        assert "the closed one" not in text
        links = [html.unescape(each) for each in re.findall(r"/polymarket/[^ ]*?market=[^\\\"]*", text)]
        assert len(links) == 3
        for each in links:
            assert urllib.parse.parse_qs(urllib.parse.urlsplit(each).query) == {"market": ["a&b=c"]}


@pytest.mark.parametrize(
    ("moment", "as_stored"),
    [
        ("2026-11-01T12:00:00", "2026-11-01 12:00:00"),
        ("2026-11-01T13:00:00+01:00", "2026-11-01 12:00:00"),
        ("2026-11-01T12:00Z", "2026-11-01 12:00:00"),
        ("2026-11-01", "2026-11-01 00:00:00"),
    ],
)
def test_a_moment_is_read_in_any_usual_form(dashboard: Served, moment: str, as_stored: str) -> None:
    found = dashboard.rows("/polymarket/book_at_a_moment", market=MARKET, moment=moment)
    assert found == dashboard.rows("/polymarket/book_at_a_moment", market=MARKET, moment=as_stored)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("book_at_a_moment", {"moment": "yesterday"}),
        ("price_history", {"days": "a week"}),
        ("price_history", {"days": "-1"}),
        ("price_history", {"days": "nan"}),
        ("depth_within_cents", {"cents": "inf"}),
        ("snapshots", {"timestamp__gt": "2026-11-01T12:00:00"}),
        ("snapshots", {"timestamp__gt": "2026-11-01 12:00:00+01:00"}),
    ],
)
def test_what_cannot_be_read_is_refused(dashboard: Served, path: str, query: dict[str, str]) -> None:
    status, text = dashboard.get(f"/polymarket/{path}", market=MARKET, **query)
    assert (status, text.startswith(f"{next(iter(query))}=")) == (400, True), text


def test_what_is_missing_now_stands_first_among_the_gaps(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=6, runs_per_day=4)
    change(
        path,
        """
        UPDATE markets SET followed = 1, resolved = 0, outcome_asked = 0;
        UPDATE runs SET follow = 1, status = 'complete';
        DELETE FROM snapshots WHERE market_id = '900001' AND run_id IN (SELECT max(run_id) FROM runs);
        UPDATE seen SET snapshot_id = (SELECT max(id) FROM snapshots WHERE market_id = '900001')
            WHERE market_id = '900001';
        """,
    )
    with serve(path) as served:
        found = served.rows("/polymarket/gaps_of_the_last_hours", hours="24")
        assert found[0]["until"] is None


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


def test_figures_are_rounded_and_nothing_is_said(dashboard: Served) -> None:
    for path in ("snapshots", "runs", "price_history"):
        text = (
            dashboard.get(f"/polymarket/{path}", market=MARKET)[1]
            if "_" in path
            else dashboard.get(f"/polymarket/{path}")[1]
        )
        assert not re.search(r">\s*-?\d+\.\d{7,}", text), path
    assert '<span class="figure">' in dashboard.get("/polymarket/snapshots")[1]
    assert '<span class="none">none</span>' in dashboard.get("/polymarket/runs")[1]
    assert all(row["change"] for row in dashboard.rows("/polymarket/movers"))


def test_the_first_market_shown_has_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    sample_database.fill(path, markets=12, runs_per_day=4)
    change(
        path,
        """
        UPDATE snapshots SET volume_24h = 1e9, spread = NULL, best_bid_yes = NULL WHERE market_id = '900001';
        UPDATE snapshots SET volume_24h = 1e8, spread = 0.01 WHERE market_id = '900002';
        """,
    )
    with closing(sqlite3.connect(path)) as connection:
        (slug,) = connection.execute("SELECT slug FROM markets WHERE market_id = '900002'").fetchone()
    assert script()["most_traded"](path, "mode=ro") == slug


def test_columns_are_described_with_their_units(dashboard: Served) -> None:
    text = dashboard.get("/polymarket/snapshots")[1]
    assert "<dt>volume_24h</dt><dd>USD traded in 24 hours</dd>" in re.sub(r">\s+<", "><", text)


def test_described_tables_and_columns_exist(empty_file: Path) -> None:
    described = script()["metadata"](empty_file, None)["databases"]["polymarket"]["tables"]
    with closing(sqlite3.connect(empty_file)) as connection:
        for table in script()["SCHEMA"]:
            there = {column[1] for column in connection.execute(f"PRAGMA table_info({table})")}
            names = {described[table].get("label_column"), described[table].get("sort_desc")} - {None}
            assert there >= described[table]["columns"].keys() | names, table


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
        "live_spread": ("g.mark-text text", 1),  # which says that there is none
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
def test_a_file_with_one_run_has_ink_in_every_chart(browser: Chrome, tmp_path: Path) -> None:
    """A point on axes that have a length and a date, but where two runs, posts or a live file are needed."""
    path = tmp_path / "one.db"
    sample_database.fill(path, markets=12, runs_per_day=1)
    with serve(path) as served:
        for page in PAGES:
            look(browser, served.address, f"{page}?volume=0" if page == "exchange" else page, 1_400)
            assert errors(browser) == []
            for name in DRAWN[page]:
                card = browser.find_element(By.ID, f"card-{name}")
                if name in {"hype", "live_spread", "movers", "pauses", "posts"}:
                    assert card.find_elements(By.CSS_SELECTOR, "g.mark-text.role-mark text"), name
                    continue
                seen = card.find_elements(By.CSS_SELECTOR, "g.role-mark path:not([opacity='0'])")
                assert [each for each in seen if each.size["height"] > 0], name
                if page != "exchange" and name != "depth":
                    labels = card.find_elements(By.CSS_SELECTOR, ".role-axis-label text")
                    assert len({label.text for label in labels}) > 4, name
                    assert any("Nov" in label.text or "Oct" in label.text for label in labels), name


@pytest.mark.slow
@needs_browser
def test_a_market_is_chosen_by_words_of_its_question(browser: Chrome, dashboard: Served) -> None:
    look(browser, dashboard.address, "market")
    options = browser.execute_script("return [...document.querySelectorAll('#market-list option')].map(o => o.value)")
    assert f"Will event 3 end in 1? “Ja”, ça va ({MARKET})" in options
    for words in ("event 3 end", "WILL 3 end", f"Will event 3 end in 1? “Ja”, ça va ({MARKET})"):
        look(browser, dashboard.address, f"market?{urllib.parse.urlencode({'market': words})}")
        found = re.search(r"Will event (\d+) end in \d", browser.find_element(By.ID, "chart-wide_about").text)
        assert found
        assert found[1] == "3" or (words.startswith("WILL") and "3" in found[1])


@pytest.mark.slow
@needs_browser
def test_pages_lead_to_each_other_and_fit_a_telephone(browser: Chrome, dashboard: Served) -> None:
    for page in PAGES:
        look(browser, dashboard.address, page, 400)
        links = browser.find_elements(By.CSS_SELECTOR, ".dashboard-header a")
        assert [link.text for link in links] == ["Market", "Exchange", "Collection", "Queries", "Tables"]
        for cell in browser.find_elements(By.CSS_SELECTOR, ".dashboard-card td"):
            assert cell.rect["x"] + cell.rect["width"] <= 400, cell.text
    look(browser, dashboard.address, "exchange", 400)
    figures = browser.find_elements(By.CSS_SELECTOR, "#chart-widest td .figure")
    ends = {round((each.rect["x"] + each.rect["width"]) / 10) for each in figures if each.is_displayed()}
    assert len(ends) == 2  # spread and volume, each at the right of its column
    assert browser.find_element(By.CSS_SELECTOR, "#chart-widest td a").rect["width"] > 150


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
                assert "No market with this slug or these words in the file: choose one above" in text
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
        ticks.append(" ".join(label.text for label in labels).split("\n"))
    assert ticks[0] == ticks[1]
    assert {"02 Nov", "06:00"} <= set(re.findall(r"\d\d Nov|\d\d:\d\d", " ".join(ticks[0])))


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
