#!/usr/bin/env python3
"""Make the pictures of `docs/dashboard.md`: pages of a sample file as a browser shows them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import sample_database
from browser import open_browser
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

PROJECT: Final = Path(__file__).parent.parent
WIDTH: Final = 1_000  # pixels
HEIGHT: Final = 1_250
# picture: (address of the page, dark, number of its charts and tables)
PICTURES: Final = {
    "dashboard-market.png": ("market?market=will-event-0-end-in-1", False, 6),
    "dashboard-exchange.png": ("exchange?volume=1000", True, 5),
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
                for name, (page, dark, cards) in PICTURES.items():
                    take(f"{address}-/dashboards/{page}", PROJECT / "docs" / name, cards, dark=dark)
            finally:
                process.terminate()
    return 0


def take(address: str, picture: Path, cards: int, *, dark: bool) -> None:
    """Write a picture of the page at *address*, once it has drawn its *cards*."""
    with open_browser(WIDTH, HEIGHT, dark=dark) as browser:
        browser.get(address)
        drawn = ".dashboard-card svg, .dashboard-card table"
        WebDriverWait(browser, 60, 0.05).until(
            lambda browser: len(browser.find_elements(By.CSS_SELECTOR, drawn)) >= cards
        )
        browser.save_screenshot(str(picture))


if __name__ == "__main__":
    sys.exit(main())
