"""Debian's Chromium without a window, for tests that click through pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_SECONDS


@contextmanager
def headless_chromium(
    kind: str, profile: Path, height: int, arguments: Sequence[str] = ()
) -> Iterator[Any]:
    """A browser on a "desktop", 1280 pixels wide and `height` high, or on a "phone" of 390x760 with touch.

    profile: folder of the browser's own data. arguments: further ones of Chromium. Skips the test where selenium, Chromium
    or its driver is missing.
    """
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        *arguments,
    ):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument(f"--window-size=1280,{height}")
    if kind == "phone":
        metrics = {"width": 390, "height": 760, "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = selenium.Chrome(options=options, service=Service(driver))
    window.set_page_load_timeout(HANG_SECONDS)
    yield window
    window.quit()
