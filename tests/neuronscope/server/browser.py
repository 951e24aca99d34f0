"""Debian's Chromium, driven by Playwright, with its own network switched off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@contextmanager
def opened(**options: Any) -> Iterator[Any]:
    """A fresh page, whose console and script errors are in its `said`."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS.split())
        try:
            yield tab(browser.new_context(**options))
        finally:
            browser.close()


def tab(context: Any) -> Any:
    """A page of a browser's context; what its console and its scripts complain about is in `said`."""
    page = context.new_page()
    page.set_default_timeout(60_000)  # the first model loads for a while where much else runs
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    return page
