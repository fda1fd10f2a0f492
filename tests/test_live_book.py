"""covers: the pure parts of collector-live: a book that is kept from changes, and frames that are taken apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_truth import live

import async_collector as ac

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS = st.tuples(st.sampled_from(("bid", "ask")), st.sampled_from((0.1, 0.2, 0.3)))
STEPS = st.tuples(LEVELS, st.sampled_from((0.0, 1.0, 2.0)), st.integers(0, 2))  # level, size, milliseconds later


def changes_of(steps: Sequence[tuple[tuple[str, float], float, int]], began_ms: int) -> list[Any]:
    """Return changes with these levels and sizes, each with a hash of its own."""
    changes, time_ms = [], began_ms
    for number, ((side, price), size, later) in enumerate(steps):
        time_ms += later
        changes.append(live.Change(time_ms, str(number), side, price, size))
    return changes


@given(st.dictionaries(LEVELS, st.sampled_from((1.0, 2.0))), st.lists(STEPS, max_size=20), st.randoms())
def test_a_book_had_every_state_that_it_went_through_and_no_other(first: Any, steps: Any, rng: Any) -> None:  # noqa: ANN401
    book, model = live.LiveBook(), dict(first)
    book.restart(1_000, first)
    states = [(1_000, dict(model))]
    for change in changes_of(steps, 1_000):
        assert book.take(change, 0.0)
        model.pop((change.side, change.price), None)
        if change.size:
            model[change.side, change.price] = change.size
        states.append((change.time_ms, dict(model)))
        time_ms, state = rng.choice(states)
        assert book.had(time_ms, state)
        assert not book.take(rng.choice(changes_of(steps, 1_000)[: len(states) - 1]), 0.0), "it came before"
        assert not book.had(time_ms, state | {("bid", 0.4): 7.0})
        assert not book.had(change.time_ms + 1, model)
    assert book.levels == model


@given(st.lists(STEPS, min_size=1, max_size=20), st.data())
def test_a_book_goes_on_from_any_later_book_as_if_it_had_missed_nothing(steps: Any, data: Any) -> None:  # noqa: ANN401
    changes = changes_of([(level, size, 1) for level, size, _ in steps], 1_000)
    whole, other = live.LiveBook(), live.LiveBook()
    whole.restart(1_000, {("bid", 0.05): 3.0})
    states = []
    for change in changes:
        whole.take(change, 0.0)
        states.append((change.time_ms, dict(whole.levels)))
    missed = data.draw(st.sets(st.integers(0, len(changes) - 1)))
    other.restart(1_000, {})
    for number, change in enumerate(changes):
        if number not in missed:
            other.take(change, 0.0)
    last_missed = max(missed, default=0)
    other.restart(*states[data.draw(st.integers(last_missed, len(changes) - 1))])
    assert other.levels == whole.levels


def test_what_is_older_than_half_a_minute_is_forgotten_and_recognised_all_the_same() -> None:
    book = live.LiveBook()
    book.restart(1_000, {})
    old, new = live.Change(2_000, "a", "bid", 0.1, 1.0), live.Change(40_000, "b", "bid", 0.2, 1.0)
    assert book.take(old, 0.0)
    assert book.take(new, live.KEPT_S + 1)
    assert not book.take(old, live.KEPT_S + 1)
    assert not book.take(live.Change(999, "c", "bid", 0.3, 1.0), live.KEPT_S + 1), "older than the book"
    assert book.had(2_000, {("bid", 0.1): 1.0})
    assert book.began_ms == 2_000
    for _ in range(1_000):
        book.forget(live.KEPT_S * 3)
    assert not book.take(new, live.KEPT_S * 3)
    assert book.levels == {("bid", 0.1): 1.0, ("bid", 0.2): 1.0}


def test_changes_before_the_first_book_are_kept_for_it() -> None:
    book = live.LiveBook()
    assert book.take(live.Change(3_000, "b", "ask", 0.6, 2.0), 0.0)
    assert book.take(live.Change(1_000, "a", "ask", 0.7, 2.0), 0.0)
    book.restart(2_000, {("ask", 0.6): 1.0, ("ask", 0.8): 1.0})
    assert book.levels == {("ask", 0.6): 2.0, ("ask", 0.8): 1.0}
    assert book.had(2_000, {("ask", 0.6): 1.0, ("ask", 0.8): 1.0})


@pytest.mark.parametrize("price", ["0.48", ".48", "0.480"])
def test_a_frame_is_an_object_or_an_array_and_numbers_are_texts(price: str) -> None:
    entry = f'{{"asset_id":"7","price":"{price}","size":"3","side":"BUY","hash":"h","best_bid":"0","best_ask":"1"}}'
    frame = f'{{"market":"0x1","price_changes":[{entry}],"timestamp":"1790000000000","event_type":"price_change"}}'
    for sent in (frame, f"[{frame}]"):
        (message,) = live.decode(sent.encode())
        assert message.price_changes == [live.Entry("7", 0.48, 3.0, "BUY", "h")]
        assert (message.timestamp, message.event_type) == (1_790_000_000_000, "price_change")


def test_one_unreadable_element_costs_only_itself() -> None:
    book = '{"event_type":"book","market":"0x2","asset_id":"7","timestamp":"1790000000000","bids":[],"asks":[]}'
    bad = '{"event_type":"price_change","market":"0x1","timestamp":"yesterday"}'
    found = list(live.decode(f"[{bad},{book},5]".encode()))
    assert found[0] == {"event_type": "price_change", "market": "0x1", "timestamp": "yesterday"}
    assert found[1].bids == found[1].asks == []
    assert found[2] == 5
    with pytest.raises(msgspec.DecodeError):
        list(live.decode(b"NOTHING"))
    assert list(live.decode(b"[]\n")) == []


@given(st.integers(10**12, 8 * 10**12))
def test_times_keep_their_milliseconds(unix_ms: int) -> None:
    text = live.ms_text(unix_ms)
    assert len(text) == 23
    assert live.ms_of(text) == unix_ms


def test_a_price_that_a_book_has_twice_counts_twice() -> None:
    levels = [ac.Level(0.4, 1.0), ac.Level(0.4, 2.0), ac.Level(0.3, 0.0)]
    assert live.levels_of(levels, []) == {("bid", 0.4): 3.0}
