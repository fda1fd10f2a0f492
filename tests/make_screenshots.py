#!/usr/bin/env python3
"""Make the pictures of `docs/dashboard.md`: pages of a sample file as a browser shows them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sample_database
from browser import open_browser
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PROJECT: Final = Path(__file__).parent.parent
WIDTH: Final = 1_000  # pixels
# picture: (address of the page, dark, pixels from its top, number of its charts and tables)
PICTURES: Final = {
    "dashboard-market.png": ("market?market=will-event-0-end-in-1", False, 1_800, 6),
    "dashboard-exchange.png": ("exchange?volume=1000", True, 1_180, 5),
}


def main() -> int:
    """Write the pictures into `docs`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "polymarket_data.db"
        sample_database.fill(path, markets=150, days=3, change=0.4)
        command = (sys.executable, str(PROJECT / "collector-dashboard.py"), "--port", "0", "--db", str(path))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout
                address = process.stdout.readline().strip()
                for name, (page, dark, height, cards) in PICTURES.items():
                    with open_browser(WIDTH, height, dark=dark) as browser:
                        take(browser, f"{address}-/dashboards/{page}", PROJECT / "docs" / name, cards)
            finally:
                process.terminate()
    return 0


def take(browser: Chrome, address: str, picture: Path, cards: int) -> None:
    """Write a picture of the page at *address*, once it has drawn its *cards*."""
    browser.get(address)
    drawn = ".dashboard-card svg, .dashboard-card table"
    WebDriverWait(browser, 60, 0.05).until(lambda browser: len(browser.find_elements(By.CSS_SELECTOR, drawn)) >= cards)
    browser.save_screenshot(str(picture))


if __name__ == "__main__":
    sys.exit(main())
