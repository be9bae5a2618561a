"""The fixtures of a browser."""

from tests.browser.conftest import axe, browser, page

__all__ = ["axe", "browser", "page"]
