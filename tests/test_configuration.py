"""covers: every knob: where its value comes from, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_collector import AsyncCollector, CollectorError, ConfigError, RateLimiter, read_variables


def test_the_defaults_are_those_of_the_interface() -> None:
    parameters = inspect.signature(AsyncCollector).parameters
    defaults = {name: parameters[name].default for name in ("db_path", "workers", "max_retries", "timeout")}
    assert defaults == {"db_path": "polymarket_data.db", "workers": 10, "max_retries": 3, "timeout": 10}
    assert parameters["min_volume"].default == 100_000
    limiter = {name: parameter.default for name, parameter in inspect.signature(RateLimiter).parameters.items()}
    assert (limiter["max_requests"], limiter["time_window"], limiter["backoff_multiplier"]) == (10, 1.0, 2.0)


def test_the_environment_is_read_when_a_collector_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = AsyncCollector()
    for name, value in {
        "POLYMARKET_DB": "elsewhere.db",
        "GAMMA_API": "http://127.0.0.1:1/gamma/",
        "CLOB_API": "http://127.0.0.1:2",
        "GAMMA_RATE_LIMIT": "30",
        "CLOB_RATE_LIMIT": "50",
        "TWITTER_RATE_LIMIT": "7",
        "TWITTER_MAX_POSTS": "30",
    }.items():
        monkeypatch.setenv(name, value)
    after = AsyncCollector()
    assert before.settings.db_path == Path("polymarket_data.db")
    assert before.settings.gamma.url == "https://gamma-api.polymarket.com"
    assert before.settings.clob.url == "https://clob.polymarket.com"
    assert (before.gamma_limiter.max_requests, before.clob_limiter.max_requests) == (10, 20)
    assert after.settings.db_path == Path("elsewhere.db")
    assert (after.settings.gamma.url, after.settings.clob.url) == ("http://127.0.0.1:1/gamma", "http://127.0.0.1:2")
    assert (after.gamma_limiter.max_requests, after.clob_limiter.max_requests) == (30, 50)
    assert (before.settings.twitter.url, before.twitter_limiter.max_requests) == ("https://api.x.com", 5)
    assert (after.twitter_limiter.max_requests, before.settings.max_posts, after.settings.max_posts) == (7, 100, 30)
    assert AsyncCollector(twitter_max_posts=20).settings.max_posts == 20


def test_blanks_and_line_ends_around_a_value_are_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of variables that were written on Windows end their lines with CR LF."""
    for name, value in {
        "POLYMARKET_DB": " elsewhere.db\r",
        "GAMMA_API": "http://127.0.0.1:1/gamma/ \r\n",
        "CLOB_RATE_LIMIT": "\t50\r",
        "TWITTER_BEARER_TOKEN": "AAAA\r",
        "https_proxy": "http://proxy:1\r",
    }.items():
        monkeypatch.setenv(name, value)
    settings = AsyncCollector().settings
    assert (settings.db_path, settings.gamma.url) == (Path("elsewhere.db"), "http://127.0.0.1:1/gamma")
    assert (settings.clob.rate_limit, [settings.twitter.token]) == (50, ["AAAA"])
    assert str(settings.clob.proxy) == "http://proxy:1"


@given(
    text=st.text(st.characters(exclude_characters="\"'\0", exclude_categories=["Cs"]), min_size=1),
    mark=st.sampled_from("\"'"),
    blanks=st.text(" \t\r", max_size=2),
)
def test_a_value_in_quotation_marks_is_what_stands_within_them(text: str, mark: str, blanks: str) -> None:
    """`docker --env-file` passes the marks on."""
    variables = {"POLYMARKET_DB": f"{blanks}{mark}{text}{mark}{blanks}"}
    assert read_variables(variables)["POLYMARKET_DB"] == (text.strip() or text)
    assert read_variables({"POLYMARKET_DB": f"{mark}{mark}{blanks}"}) == read_variables({})


@pytest.mark.parametrize(
    "value", ['"a.db', "a.db'", "\"'a.db'\"", '""a.db""', '"', "'''", '"a"b"', 'a"b".db', "'it's'", "\"a.db'"]
)
def test_a_quotation_mark_that_is_left_is_refused_and_the_value_not_shown(value: str) -> None:
    for name in ("POLYMARKET_DB", "TWITTER_BEARER_TOKEN"):
        with pytest.raises(ConfigError) as caught:
            read_variables({name: value})
        assert str(caught.value) == f"{name}: must have no quotation marks but for a pair around all of it"
    assert read_variables({"POLYMARKET_DB": "o'neil/x.db"})["POLYMARKET_DB"] == "o'neil/x.db"


@pytest.mark.parametrize("value", [":memory:", " ", "' '", " :memory:\r"])
def test_a_variable_that_names_no_file_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("POLYMARKET_DB", value)
    with pytest.raises(ConfigError, match=r"POLYMARKET_DB='.*': must be the name of a file"):
        AsyncCollector()
    monkeypatch.setenv("POLYMARKET_DB", "")
    assert AsyncCollector().settings.db_path == Path("polymarket_data.db")


def test_an_explicit_path_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMARKET_DB", "elsewhere.db")
    assert AsyncCollector("polymarket_data.db").settings.db_path == Path("polymarket_data.db")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GAMMA_RATE_LIMIT", "0"),
        ("GAMMA_RATE_LIMIT", "abc"),
        ("CLOB_RATE_LIMIT", "-3"),
        ("CLOB_RATE_LIMIT", "1.5"),
        ("GAMMA_API", "gamma-api.polymarket.com"),
        ("GAMMA_API", "ftp://gamma-api.polymarket.com"),
        ("CLOB_API", "https://"),
        ("CLOB_API", "https://clob.polymarket.com/?key=1"),
        ("CLOB_API", "https://[clob"),
        ("CLOB_API", "https://clob..polymarket.com"),
        ("CLOB_API", "https://clob polymarket.com"),
        ("CLOB_API", "https://clob.polymarket.com:99999"),
        ("TWITTER_API", "http://api.x.com"),
        ("TWITTER_API", "http://localhost.x.com"),
        ("TWITTER_API", "api.x.com"),
        ("TWITTER_RATE_LIMIT", "0"),
        ("TWITTER_MAX_POSTS", "9"),
        ("TWITTER_MAX_POSTS", "10001"),
        ("TWITTER_USERNAMES", "yes"),
    ],
)
def test_a_bad_variable_is_named_with_its_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        AsyncCollector()
    assert f"{name}={value!r}: must be" in str(caught.value)


def test_a_scheme_is_read_as_a_browser_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWITTER_API", "HTTP://api.x.com")
    with pytest.raises(ConfigError, match=r"TWITTER_API='http://api\.x\.com': must be an https address"):
        AsyncCollector()


def test_a_password_in_an_address_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOB_API", "https://me:secret@clob.polymarket.com")
    with pytest.raises(ConfigError, match=r"CLOB_API='https://\*\*\*@clob.polymarket.com': must be"):
        AsyncCollector()
    monkeypatch.delenv("CLOB_API")
    monkeypatch.setenv("https_proxy", "socks5://me:secret@proxy")
    with pytest.raises(ConfigError, match=r"the proxy for https://.*='socks5://\*\*\*@proxy': must be") as caught:
        AsyncCollector()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["two words", "line\nline", "t\u00f6ken", "\x00", " "])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    environment = {"TWITTER_BEARER_TOKEN": token}
    monkeypatch.setattr("os.environ", environment)
    with pytest.raises(ConfigError, match="TWITTER_BEARER_TOKEN: must be a token") as caught:
        AsyncCollector()
    assert token.strip() == "" or token not in str(caught.value)


def test_a_token_is_stripped_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", " AAAA%2Fbb=\n")
    settings = AsyncCollector().settings
    assert [settings.twitter.token] == ["AAAA%2Fbb="]
    assert "AAAA" not in f"{settings!r} {settings} {settings.twitter!r}"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8080/x", "http://[::1]:1", "http://localhost", "https://x.test"])
def test_the_token_may_travel_over_https_or_loopback(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("TWITTER_API", address)
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", "AAAA")
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    settings = AsyncCollector().settings
    assert (settings.twitter.url, settings.twitter.proxy) == (address, None)


@pytest.mark.parametrize(
    "setting",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"workers": 1_001},
        {"workers": True},
        {"max_retries": -1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"min_volume": -1},
        {"min_volume": "much"},
        {"twitter_max_posts": 9},
        {"run_timeout": 0},
        {"db_path": ""},
        {"db_path": ":memory:"},
        {"db_path": "nul\0.db"},
    ],
)
def test_a_bad_argument_is_named_with_its_value(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError) as caught:
        AsyncCollector(**setting)
    assert f"{name}={value!r}: must be" in str(caught.value)


def test_a_bad_value_is_a_value_error_for_programs_that_look_for_one() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, CollectorError)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://", "http://[::1", "http://a..b"])
def test_a_proxy_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigError) as caught:
        AsyncCollector()
    assert f"the proxy for https://gamma-api.polymarket.com={proxy!r}: must be" in str(caught.value)


def test_a_proxy_without_a_scheme_is_http_as_curl_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "localhost:3128")
    monkeypatch.setenv("no_proxy", "clob.polymarket.com")
    settings = AsyncCollector().settings
    assert (str(settings.gamma.proxy), settings.clob.proxy) == ("http://localhost:3128", None)


@pytest.mark.parametrize(
    ("address", "exceptions", "direct"),
    [
        ("http://127.0.0.1:9", "127.0.0.0/8", True),
        ("http://127.0.0.1:9", "192.168.0.0/16, 127.0.0.1/30", True),
        ("http://127.0.0.1:9", "10.0.0.0/8 127.0.0.0/8", True),
        ("http://127.0.0.1:9", "10.0.0.0/8,128.0.0.0/1,nonsense/8,/8", False),
        ("http://127.0.0.1:9", "127.0.0.2/31,127.0.0.0/99,7.0.0.1,::/0", False),
        ("http://[::1]:9", "::1/128", True),
        ("http://[::1]:9", "[::1]", True),
        ("http://[::1]:9", "fe80::/10", False),
        ("http://localhost:9", "127.0.0.0/8", False),
    ],
)
def test_no_proxy_may_name_networks(
    monkeypatch: pytest.MonkeyPatch, address: str, exceptions: str, *, direct: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", exceptions)
    monkeypatch.setenv("CLOB_API", address)
    assert (AsyncCollector().settings.clob.proxy is None) is direct


def test_a_limit_of_nothing_is_refused_wherever_it_is_set() -> None:
    with pytest.raises(ConfigError, match="max_requests=0"):
        RateLimiter(0)
    limiter = RateLimiter()
    with pytest.raises(ConfigError, match="max_requests=-1"):
        limiter.max_requests = -1
