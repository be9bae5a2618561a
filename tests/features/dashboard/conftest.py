"""The fixtures of a browser."""

from tests.browser.conftest import browser, page

__all__ = ["browser", "page"]
