"""covers: how posts become a signal: tone, what a post is about, and the score; all of it pure."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PROJECT
from fake_polymarket import Maker
from hypothesis import given
from hypothesis import strategies as st

from async_collector import MarketIndex, Question, distinctive_words, hype_score, sentiment, velocity

if TYPE_CHECKING:
    from collections.abc import Sequence

LABELLED: dict[str, Any] = json.loads((PROJECT / "tests/labelled_posts.json").read_text())
MARKETS = [
    Question(market["slug"], market["question"], market["slug"], market["event_slug"]) for market in LABELLED["markets"]
]


def others(count: int) -> list[Question]:
    """Return questions of the stand-in."""
    maker = Maker(seed=3)
    markets = (maker.market(number) for number in range(500_000, 500_000 + count))
    return [Question(market.id, market.question, market.slug, market.event_slug) for market in markets]


def bitcoin_markets() -> list[Question]:
    """Return questions as there are hundreds of: the same words, and a number."""
    return [Question(f"btc-{price}", f"Will Bitcoin reach ${price},000 in November?") for price in range(80, 180)]


# --- tone


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("This is free money 🚀", 1),
        ("Absolutely PRINTING. Locked in.", 1),
        ("great bet, I am bullish", 1),
        ("📈📈📈", 1),
        ("Not losing sleep over this one", 1),
        ("it isn't rigged", 1),
        ("NO is free money", 1),
        ("bought NO: easy win", 1),
        ("Total scam, the market is rigged", -1),
        ("I am losing and bearish", -1),
        ("📉 rekt 💀", -1),
        ("that is not a great bet", -1),
        ("don’t call it guaranteed", -1),
        ("stay away, exit liquidity", -1),
        ("", 0),
        ("Polymarket gives it 64%", 0),
        ("the decision is on Thursday", 0),
        ("surely a scammer's paradise", 0),  # words are compared whole
    ],
)
def test_tone_is_that_of_betting_talk(text: str, sign: int) -> None:
    value = sentiment(text)
    assert (value > 0) - (value < 0) == sign
    assert sign or value == 0.0


def test_more_of_the_same_tone_is_more_tone() -> None:
    assert 0 < sentiment("rocket 🚀") < sentiment("bullish 🚀") < sentiment("bullish free money 🚀🚀🚀") < 1
    assert sentiment("free money") < sentiment("free money free money")


@given(st.text())
def test_tone_is_always_in_range(text: str) -> None:
    assert -1 <= sentiment(text) <= 1


# --- what a post is about


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$150,000 150k 0.15m", {"150000"}),
        ("25bps 25 bp", {"25", "bps"}),
        ("BTC hits #Bitcoin", {"bitcoin", "hit"}),
        ("#FedDecision", {"feddecision", "fed", "decision"}),
        ("Trump’s Trump's TRUMP", {"trump"}),
        ("Élysée", {"elysee"}),
        ("𝐁𝐈𝐓𝐂𝐎𝐈𝐍 𝟏𝟓𝟎𝐊", {"bitcoin", "150000"}),
        ("Lakers vs. Celtics", {"laker", "celtic"}),
        ("nov 30, 2026", {"november", "30", "2026"}),
        ("AT&amp;T https://t.co/abc123", set()),
        ("9" * 400, {"inf"}),
    ],
)
def test_words_are_compared_in_one_form(text: str, words: set[str]) -> None:
    assert distinctive_words(text) == words


def outcomes(markets: Sequence[Question]) -> Counter[str]:
    """Return how many of the labelled posts are matched rightly, wrongly, or not although they should be."""
    index = MarketIndex(markets)
    counted: Counter[str] = Counter()
    for post in LABELLED["posts"]:
        match = index.match(post["text"], post["links"])
        found = match.market_id if match else None
        if found == post["market"]:
            counted["right" if found else "rightly none"] += 1
        else:
            counted["wrong" if found else "missed"] += 1
    return counted


def test_labelled_posts_find_their_markets_as_often_as_the_docs_say() -> None:
    assert len(LABELLED["posts"]) >= 60
    alone, among_others = outcomes(MARKETS), outcomes(MARKETS + others(10_000))
    assert (alone["right"], alone["wrong"], alone["missed"]) == (33, 1, 32)
    assert (among_others["right"], among_others["wrong"], among_others["missed"]) == (32, 1, 33)
    data = " ".join((PROJECT / "docs/data.md").read_text().split())
    assert f"{len(LABELLED['posts'])} hand-written posts" in data
    assert "33 of 34 matches are right (precision 97 %), and 33 of the 65 posts" in data


def test_a_question_on_bitcoin_does_not_catch_every_post_about_bitcoin() -> None:
    index = MarketIndex(bitcoin_markets() + others(1_000))
    for text in ("Bitcoin!", "bitcoin will reach the moon in november", "BTC 200k in November", "150k steps today"):
        assert index.match(text) is None, text
    match = index.match("I say BTC will reach 150k this month")
    assert match
    assert (match.market_id, match.keywords) == ("btc-150", "150000, bitcoin, reach")


def test_a_post_on_another_month_is_about_something_else() -> None:
    index = MarketIndex(bitcoin_markets() + others(1_000))
    assert index.match("Bitcoin will reach 150k in november") is not None
    assert index.match("Bitcoin will reach 150k in december") is None


def test_a_post_that_fits_two_markets_equally_well_fits_none() -> None:
    index = MarketIndex(
        [Question("1", "Lakers vs. Celtics"), Question("2", "Celtics vs. Lakers"), *bitcoin_markets()],
    )
    assert index.match("Lakers Celtics tonight") is None


@given(st.permutations(["amber", "birch", "cedar", "drift", "ember", "flint"]))
def test_a_tie_is_a_tie_in_whatever_order_the_words_come(words: list[str]) -> None:
    index = MarketIndex(
        [Question("1", "Amber birch cedar 7 times?"), Question("2", "Drift ember flint 7 times?"), *bitcoin_markets()]
    )
    assert index.match(" ".join(words)) is None


@pytest.mark.parametrize(
    ("link", "market_id"),
    [
        ("https://polymarket.com/event/fed-decision/fed-cuts", "1"),
        ("https://www.polymarket.com/event/fed-decision/fed-holds/?tid=17", "2"),
        ("HTTPS://POLYMARKET.COM/event/Fed-Decision/FED-HOLDS#comments", "2"),
        ("https://polymarket.com/event/gta-vi", "3"),
        ("https://polymarket.com/event/fed-decision", None),  # of two markets, and no word says which
        ("https://polymarket.com/event/fed-decision/fed-hikes", None),
        ("https://polymarket.com/market/fed-holds", "2"),
        ("https://polymarket.com/es/event/fed-decision/fed-holds", "2"),
        ("https://polymarket.com/@somebody", None),
        ("https://notpolymarket.com/event/gta-vi", None),
        ("https://kalshi.com/event/gta-vi", None),
    ],
)
def test_a_link_names_the_market(link: str, market_id: str | None) -> None:
    index = MarketIndex(
        [
            Question("1", "Will the Fed cut rates?", "fed-cuts", "fed-decision"),
            Question("2", "Will the Fed hold rates?", "fed-holds", "fed-decision"),
            Question("3", "GTA VI released in 2026?", "gta-vi-2026", "gta-vi"),
        ]
    )
    match = index.match("look at this", [link])
    assert (match and match.market_id) == market_id
    if match:
        assert match.keywords in link


def test_a_link_to_another_market_is_not_overruled_by_words() -> None:
    index = MarketIndex([Question("1", "Will Zaphod Beeblebrox win?", "zaphod-wins", "zaphod"), *bitcoin_markets()])
    text = "Zaphod Beeblebrox will win"
    assert index.match(text) is not None
    assert index.match(text, ["https://polymarket.com/event/galaxy/trillian-wins"]) is None
    assert index.match(text, ["https://polymarket.com/event/galaxy"]) is None
    assert index.match(text, ["https://polymarket.com/leaderboard"]) is not None


def test_words_choose_among_the_markets_of_a_linked_event() -> None:
    index = MarketIndex(
        [
            Question("1", "Will Bitcoin dip to $90,000 in November?", "dip-90k", "bitcoin-november"),
            Question("2", "Will Bitcoin dip to $80,000 in November?", "dip-80k", "bitcoin-november"),
        ]
    )
    match = index.match("taking the 80k one", ["https://polymarket.com/event/bitcoin-november"])
    assert match
    assert match.market_id == "2"


def test_ten_thousand_markets_and_a_thousand_posts_match_in_under_a_second() -> None:
    markets = MARKETS + others(10_000)
    posts = [LABELLED["posts"][number % len(LABELLED["posts"])] for number in range(1_000)]
    started = time.process_time()
    index = MarketIndex(markets)
    for post in posts:
        index.match(post["text"], post["links"])
    assert time.process_time() - started < 1


@given(st.text(), st.lists(st.text(), max_size=3))
def test_any_text_is_about_something_or_nothing(text: str, links: list[str]) -> None:
    match = MarketIndex(MARKETS).match(text, links)
    assert match is None or match.market_id


# --- the score


@pytest.mark.parametrize(
    ("posts", "before", "change"),
    [(3, 3, 0), (6, 3, 1), (1, 4, -0.75), (0, 4, -1), (5, 0, 5), (1, 0, 1), (1, 1, 0)],
)
def test_velocity_is_relative_to_the_hour_before(posts: int, before: int, change: float) -> None:
    assert velocity(posts, before) == change


PARTS: dict[str, st.SearchStrategy[Any]] = {
    "tweet_count": st.integers(0, 10**6),
    "total_engagement": st.integers(0, 10**12),
    "avg_sentiment": st.floats(-1, 1),
    "unique_users": st.integers(0, 10**6),
    "velocity": st.floats(-1, 1e6),
}


@given(st.fixed_dictionaries(PARTS), st.data())
def test_the_score_never_falls_when_a_part_grows(parts: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(PARTS)))
    greater = data.draw(PARTS[name].filter(lambda value: value >= parts[name]))
    assert 0 <= hype_score(**parts) <= hype_score(**parts | {name: greater}) <= 100


@pytest.mark.parametrize("name", PARTS)
def test_the_score_rises_with_every_part(name: str) -> None:
    parts: dict[str, Any] = {
        "tweet_count": 5, "total_engagement": 40, "avg_sentiment": 0.1, "unique_users": 4, "velocity": 0.5,
    }  # fmt: skip
    assert hype_score(**parts) < hype_score(**parts | {name: parts[name] + 1 if name != "avg_sentiment" else 0.5})


def test_neither_one_account_nor_one_viral_post_fills_the_score() -> None:
    silent = hype_score(tweet_count=0, total_engagement=0, avg_sentiment=0, unique_users=0, velocity=0)
    repeating = hype_score(tweet_count=10**6, total_engagement=0, avg_sentiment=1, unique_users=1, velocity=10**6)
    viral = hype_score(tweet_count=1, total_engagement=10**9, avg_sentiment=1, unique_users=1, velocity=1)
    crowd = hype_score(tweet_count=200, total_engagement=5_000, avg_sentiment=0.5, unique_users=150, velocity=10)
    assert silent == 0
    assert repeating < 20
    assert viral < 35
    assert crowd > 85
