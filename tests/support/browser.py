"""A real Chromium for tests of the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--headless",
    "--no-sandbox",  # tests run as root in containers; the page comes from this very process
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browser_required() -> bool:
    """Whether tests fail where there is no browser; otherwise they are skipped."""
    return os.environ.get("DLLAMA_GPU_REQUIRE_BROWSER_TESTS") == "1"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Runs the machine's Chromium, or skips (fails, where one is required) with the reason."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        _unavailable("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        except Error as error:
            _unavailable(f"{path} does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


def _unavailable(reason: str) -> None:
    if browser_required():
        pytest.fail(f"DLLAMA_GPU_REQUIRE_BROWSER_TESTS=1, but {reason}")
    pytest.skip(reason)
