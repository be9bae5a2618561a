"""A pool behind its gateway, as a browser sees it: TLS, a WebSocket, and server-sent events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.certificates import certificate
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FILE = """
[gateway]
bind = {{ bind = "127.0.0.1:{port}", tls = {{ cert = "localhost.pem", key = "localhost.key" }} }}
[[server]]
name = "web"
bind = "127.0.0.1:{web}"
app = "tests.load.apps:app"
app_dir = "{root}"
[[server]]
name = "api"
bind = "127.0.0.1:{api}"
app = "tests.load.apps:app"
app_dir = "{root}"
[[route]]
to = "web"
[[route]]
path = "/api"
to = "api"
"""
PROTOCOLS = """async () => {
    const [text, body] = await Promise.all([
        fetch("/api?from=api").then((response) => response.text()),
        fetch("/api", {method: "POST", body: "x".repeat(100000)}).then((response) => response.text()),
    ]);
    const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
    return [text, body.length, [...new Set(entries.map((entry) => entry.nextHopProtocol))]];
}"""
SAID = """() => new Promise((resolve, reject) => {
    const socket = new WebSocket(`wss://${location.host}/ws`);
    socket.onerror = () => reject("no WebSocket");
    socket.onopen = () => socket.send("hello");
    socket.onmessage = (message) => { resolve(message.data); socket.close(); };
})"""
EVENTS = """() => new Promise((resolve, reject) => {
    const found = [], source = new EventSource("/events");
    source.onerror = () => reject("no events");
    source.onmessage = (event) => {
        if (found.push(event.data) === 3) { source.close(); resolve(found); }
    };
})"""


def test_browser_speaks_tls_opens_a_websocket_and_receives_events(
    browser: Browser, real_pool: RealPool
) -> None:
    port = claim_port(3)
    certificate(real_pool.directory)
    real_pool.write(
        "pool.toml", FILE.format(port=port, web=port + 1, api=port + 2, root=Path(__file__).parents[2])
    )
    real_pool.ok("start")
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(30_000)  # a busy machine
    try:
        tab = context.new_page()
        tab.goto(f"https://127.0.0.1:{port}/?to=web")
        assert tab.locator("body").inner_text() == "to=web"
        assert tab.evaluate(PROTOCOLS) == ["from=api", 100_000, ["h2"]]
        assert tab.evaluate(SAID) == "hello"
        assert tab.evaluate(EVENTS) == ["tick"] * 3
    finally:
        context.close()
