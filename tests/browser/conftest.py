from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.support.browser import chromium
from tests.support.fake_api import Behaviour, FakeApi

WAIT = 20_000  # ms


@pytest.fixture(scope="module")  # Playwright's event loop must not run on into tests of other folders
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def api() -> Iterator[FakeApi]:
    api = FakeApi()
    yield api
    api.close()


@pytest.fixture
def behaviour(api: FakeApi) -> Behaviour:
    """What the server does; changed by a test before it asks."""
    return api.behaviour


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, api: FakeApi) -> Iterator[OpenPage]:
    """Opens the page in a browser of its own; a mistake in a script or against the security policy fails the test.

    `context` opens one more tab of an earlier one; other options are Playwright's for a new context.
    """
    contexts: list[BrowserContext] = []
    mistakes: list[str] = []

    def notice(message: Any) -> None:
        # The browser itself reports every answer of 400 and more as an error.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            mistakes.append(message.text)

    def make(path: str = "", *, context: BrowserContext | None = None, **options: Any) -> Page:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1100, "height": 760}, **options})
            context.set_default_timeout(WAIT)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.on("console", notice)
        page.goto(api.url + path)
        return page

    yield make
    for context in contexts:
        context.close()
    assert mistakes == []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """The page in a window of a desktop."""
    return open_page()
