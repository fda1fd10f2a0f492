"""covers: changes, trades, gaps and connections of collector-live on their way into the lake."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from conftest import rows
from lakes import DAY, LIVE, OF_THE_ARCHIVE, archive, change, documented, lake_files
from live_truth import Truth, following

if TYPE_CHECKING:
    from pathlib import Path

    from fake_polymarket import FakeMarket, FakePolymarket

pytestmark = OF_THE_ARCHIVE
CHANGE = "INSERT INTO book_changes (market_id, timestamp, lag_ms, side, price, size, stream_id) VALUES ({}, 1)"
NEXT = "2026-11-02"


def fill(sample: Path) -> None:
    """Add what collector-live stores in two days."""
    change(
        sample,
        "INSERT INTO streams VALUES (1, '2026-11-01 08:00:00', '2026-11-02 09:00:00', '2026-11-02 08:59:59.250',"
        " 4, 7, 900, 3, 1, 2, 'lost:')",
        "INSERT INTO streams VALUES (2, '2026-11-02 09:00:01', NULL, NULL, 4, 7, 900, 3, 1, 2, NULL)",
        CHANGE.format("'900004', '2026-11-01 08:00:00.750', 12, 'bid', 0.41, 0"),
        CHANGE.format("'900003', '2026-11-01 23:59:59.999', 12, 'ask', 0.425, 30.25"),
        CHANGE.format("'900003', '2026-11-02 00:00:00.000', -3, 'ask', 0.425, 0"),
        CHANGE.format("'900003', '2026-11-01 23:59:59.998', 1500, 'bid', 0.12345, 7"),
        "INSERT INTO live_trades VALUES (1, '900003', '2026-11-01 09:00:00.001', 8, 'NO', 'SELL', 0.575, 3, '0xab', 1)",
        "INSERT INTO live_gaps VALUES (1, '900003', '2026-11-01 23:00:00.500', '2026-11-02 00:10:00.125', 'lost:')",
        "INSERT INTO live_gaps VALUES (2, '900004', '2026-11-01 23:00:00.500', NULL, 'stopped')",
    )


def stored(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {table: rows(path, f"SELECT * FROM {table}") for table in LIVE}  # noqa: S608


def test_what_is_live_is_in_the_lake_by_its_day_once_and_comes_back(sample: Path, tmp_path: Path) -> None:
    fill(sample)
    before = stored(sample)
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    every_row = documented()["every_row"]
    columns = ["change_id", "market_id", "timestamp", "side", "price", "size"]
    found = every_row(str(lake), str(sample), "book_changes", columns)
    assert [len(lake_files(lake, "book_changes", day)) for day in (DAY, NEXT)] == [1, 1]
    assert found.sort("change_id")["size"].to_list() == [0.0, 30.25, 0.0, 7.0]
    assert found.sort("change_id")["timestamp"].dt.strftime("%d %H:%M:%S%.3f").to_list() == [
        *("01 08:00:00.750", "01 23:59:59.999", "02 00:00:00.000", "01 23:59:59.998")
    ]
    assert stored(sample) == before | {"book_changes": [], "live_trades": []}, "the others stay"
    assert len(every_row(str(lake), str(sample), "live_gaps", ["gap_id", "since", "until"])) == 2
    assert [path.name for path in (lake / "live_gaps").iterdir()] == [f"date={NEXT}"]
    new = tmp_path / "new.db"
    assert archive(lake, "--db", new, "--restore", DAY) == 0
    in_order = [before["book_changes"][number] for number in (0, 1, 3)]
    assert rows(new, "SELECT * FROM book_changes ORDER BY change_id") == in_order
    assert rows(new, "SELECT * FROM live_trades") == before["live_trades"]
    assert archive(lake, "--db", sample, "--check") == 0


def test_a_late_change_goes_into_a_further_file_of_its_day(sample: Path, tmp_path: Path) -> None:
    fill(sample)
    lake = tmp_path / "lake"
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    change(sample, CHANGE.format("'900004', '2026-11-01 12:00:00.000', 90000, 'bid', 0.3, 1"))
    change(sample, "UPDATE live_gaps SET until = '2026-11-02 07:00:00.000' WHERE gap_id = 2")
    assert archive(lake, "--db", sample, "--keep", "0") == 0
    assert len(lake_files(lake, "book_changes")) == 2
    assert len(documented()["every_row"](str(lake), str(sample), "book_changes", ["change_id"])) == 5
    assert len(lake_files(lake, "live_gaps", NEXT)) == 2


async def test_the_archive_and_a_running_live_take_turns(
    exchange: FakePolymarket, cup: list[FakeMarket], path: Path, tmp_path: Path
) -> None:
    truth = Truth(exchange, cup)
    lake = tmp_path / "lake"
    async with following(exchange, path, events=["cup"]) as f:
        await f.opened(3)
        await f.received()
        change(
            path,
            *(
                CHANGE.format(f"'{cup[0].id}', '2026-11-01 08:00:00.{number:03d}', 12, 'bid', 0.41, {number}")
                for number in range(1_000)
            ),
        )
        archiving = asyncio.create_task(asyncio.to_thread(archive, lake, "--db", path, "--keep", "1"))
        size = 0
        while not archiving.done():
            size += 1
            exchange.live.change(cup[0], ("bid", "0.41", str(size)))
            await f.received()
        assert await archiving == 0
        assert f.gaps() == []
        assert len(rows(path, "SELECT change_id FROM book_changes")) == size > 0
    truth.assert_stored(path)
    assert len(lake_files(lake, "book_changes", DAY)) == 1
