"""The dashboard as people use it: in a real Chromium, by mouse and by keyboard, in the dark and on a telephone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from poolctl.features.dashboard._signed_ids import new_login_code
from poolctl.json_form import to_json
from poolctl.logs.log_line import stamp
from poolctl.routing.route_report import ROUTE_COLUMNS, BackendReport, RouteReport
from tests.features.dashboard.recorded_pool import RecordedPool
from tests.features.dashboard.stage import TOKEN, Stage, dashboard_of
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=30_000)  # a busy machine


@pytest.fixture
def stage() -> Iterator[Stage]:
    with dashboard_of() as found:
        yield found


def enter(page: Page, stage: Stage, view: str = "") -> None:
    """Log in by the link, and wait for the servers."""
    page.goto(f"{stage.url}#token={TOKEN}")
    page.locator("#rows tr").first.wait_for()
    if view:
        page.goto(f"{stage.url}#{view}")


def press(page: Page, action: str, name: str) -> None:
    """Press an action in the menu of the server's row."""
    page.locator("#rows").get_by_label(f"Actions for {name}", exact=True).first.click()
    page.get_by_role("button", name=f"{action} {name}", exact=True).click()


def row(page: Page, name: str) -> Any:
    return page.locator("#rows tr").filter(has=page.get_by_role("link", name=name, exact=True))


def test_login_accepts_the_token_and_refuses_a_wrong_one(page: Page, stage: Stage) -> None:
    page.goto(stage.url)
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("wrong token").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Servers").wait_for()
    expect(page.locator("#rows tr")).to_have_count(8)
    page.reload()
    page.locator("#rows tr").first.wait_for()  # the cookie is enough
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").wait_for()
    page.reload()
    page.get_by_label("Token").wait_for()
    assert page.locator("#rows tr").count() == 0


def test_a_link_with_the_token_logs_in_and_the_token_leaves_the_address_bar(page: Page, stage: Stage) -> None:
    enter(page, stage)
    assert TOKEN not in page.url
    page.locator("#link.live").wait_for()


def test_link_logs_one_browser_in_and_no_other(browser: Browser, page: Page, stage: Stage) -> None:
    link = f"{stage.url}#token={new_login_code(TOKEN, time.time())}"
    page.goto(link)
    page.locator("#rows tr").first.wait_for()
    page.goto("about:blank")
    page.goto(link)  # whoever is logged in needs no link
    page.locator("#rows tr").first.wait_for()
    context = browser.new_context()
    try:
        other = context.new_page()
        other.goto(link)
        other.get_by_text("this link was used already").wait_for()
        expect(other.get_by_label("Token")).to_be_focused()
    finally:
        context.close()


@pytest.mark.parametrize("view", ["servers", "server/web-1", "logs", "routes"])
def test_nothing_is_asked_for_after_a_log_out_and_other_tabs_show_the_login(
    page: Page, stage: Stage, view: str
) -> None:
    page.clock.install()
    enter(page, stage, view)
    page.locator("#link.live").wait_for()
    other = page.context.new_page()
    other.goto(stage.url)
    other.locator("#rows tr").first.wait_for()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").wait_for()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(6):
        page.clock.run_for(10_000)
    assert asked == []
    other.get_by_text("The session has ended: log in again.").or_(
        other.get_by_label("Token")
    ).first.wait_for()


def test_action_after_the_end_of_the_session_leads_to_the_login(page: Page, stage: Stage) -> None:
    enter(page, stage)
    page.context.clear_cookies()
    press(page, "Restart", "web-1")
    page.get_by_role("dialog").get_by_role("button", name="Restart").click()
    page.get_by_text("The session has ended: log in again.").wait_for()
    expect(page.get_by_label("Token")).to_be_focused()
    assert page.locator(".note").count() == 0


def test_silent_connection_is_not_called_live(page: Page, stage: Stage) -> None:
    enter(page, stage)
    page.locator("#link.live").wait_for()
    with stage.hung():
        page.locator("#link.lost").wait_for()
    page.locator("#link.live").wait_for()


def test_ten_tabs_work_because_hidden_ones_hold_no_connection(page: Page, stage: Stage) -> None:
    hidden = "Object.defineProperty(document, 'hidden', { get: () => !window.isFront })"
    page.context.add_init_script(hidden)
    for number in range(1, 10):
        tab = page.context.new_page()
        if number == 1:
            tab.goto(f"{stage.url}#token={TOKEN}")
            tab.locator("#rows tr").first.wait_for(state="attached")
        tab.goto(f"{stage.url}#server/web-{number % 8 + 1}")
        tab.locator("#server-workers td").first.wait_for()
    page.add_init_script("window.isFront = true")
    enter(page, stage, "server/web-2")
    page.locator("#link.live").wait_for()
    page.get_by_role("button", name="Stop web-2").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    page.locator("#server-state").get_by_text("stopped").wait_for()
    tab.evaluate("window.isFront = true; document.dispatchEvent(new Event('visibilitychange'))")
    tab.locator("#link.live").wait_for()
    stage.pool.become("web-2", state="failed", ready=False)
    tab.locator("#server-state").get_by_text("failed").wait_for()


@pytest.mark.parametrize("address", ["#server/%E0%A4%A", "#nowhere", "?state=%zz#events", "#%"])
def test_damaged_address_shows_a_view(page: Page, stage: Stage, address: str) -> None:
    enter(page, stage)
    page.goto("about:blank")
    page.goto(f"{stage.url}{address}")
    page.locator("#link.live").wait_for()
    expect(page.locator("main h1:visible")).to_have_count(1)


def test_action_is_requested_confirmed_done_and_reported(page: Page, stage: Stage) -> None:
    enter(page, stage)
    press(page, "Stop", "web-2")
    dialog = page.get_by_role("dialog", name="Stop web-2?")
    dialog.get_by_role("button", name="Cancel").click()
    assert stage.pool.asked == []
    press(page, "Stop", "web-2")
    dialog.get_by_role("button", name="Stop").click()
    row(page, "web-2").get_by_text("stopped").wait_for()
    page.locator(".note").get_by_text("web-2 stopped.").wait_for()
    (asked,) = stage.pool.asked
    assert (asked["verb"], asked["selector"]["targets"]) == ("stop", ["web-2"])
    menu = row(page, "web-2").locator("summary")
    expect(menu).to_be_focused()
    menu.click()
    expect(row(page, "web-2").locator(".menu button:visible")).to_have_text(["Start"])
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()
    expect(row(page, "web-2").locator(".menu button:visible")).to_have_count(0)


def test_an_action_applies_to_all_selected_servers(page: Page, stage: Stage) -> None:
    enter(page, stage)
    page.get_by_role("searchbox", name="Search").fill("public")
    page.get_by_label("Select all servers shown").check()
    bulk = page.get_by_role("group", name="Selected servers")
    bulk.get_by_text("4 servers selected").wait_for()
    bulk.get_by_role("button", name="Restart").click()
    page.get_by_role("dialog", name="Restart 4 servers?").get_by_role("button", name="Restart").click()
    page.locator(".note").get_by_text("4 servers restarted.").wait_for()
    assert stage.pool.asked[0]["selector"]["targets"] == ["web-2", "web-4", "web-6", "web-8"]


def test_a_stop_reports_only_the_servers_that_ran(page: Page, stage: Stage) -> None:
    for name in ("web-2", "web-4"):
        stage.pool.become(name, state="stopped", ready=False, pids=[])
    enter(page, stage)
    page.get_by_role("searchbox", name="Search").fill("public")
    page.get_by_label("Select all servers shown").check()
    bulk = page.get_by_role("group", name="Selected servers")
    for said in ("2 servers stopped.", "Nothing was running."):
        bulk.get_by_role("button", name="Stop").click()
        page.get_by_role("dialog", name="Stop 4 servers?").get_by_role("button", name="Stop").click()
        page.locator(".note").get_by_text(said).wait_for()


def test_a_failure_stays_until_it_is_dismissed(page: Page, stage: Stage) -> None:
    stage.pool.refuses = "exited with status 3 before it was ready"
    enter(page, stage)
    press(page, "Restart", "web-1")
    page.get_by_role("dialog").get_by_role("button", name="Restart").click()
    note = page.locator(".note.bad")
    note.get_by_text("exited with status 3").wait_for()
    note.get_by_role("button", name="Dismiss").click()
    assert note.count() == 0


def test_everything_can_be_done_by_keyboard(page: Page, stage: Stage) -> None:
    page.goto(stage.url)
    page.get_by_label("Token").wait_for()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.locator("#rows tr").first.wait_for()
    menu = row(page, "web-1").locator("summary")
    tab_to(page, menu)
    assert menu.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Restart web-1")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("document.activeElement.id") == "confirm-no"  # what does nothing comes first
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()
    assert stage.pool.asked == []
    for key in ("Enter", "Tab", "Enter"):
        page.keyboard.press(key)
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator(".note").get_by_text("web-1 restarted.").wait_for()
    expect(menu).to_be_focused()


def tab_to(page: Page, wanted: Any) -> None:
    for _ in range(120):
        page.keyboard.press("Tab")
        if wanted.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError("Tab does not reach it")


@pytest.mark.parametrize("width", [1280, 640, 360])
def test_tour_of_all_views_by_keyboard_alone(browser: Browser, stage: Stage, width: int) -> None:
    long = "a-server-with-a-name-of-sixty-characters-which-is-too-long-9"
    stage.pool.servers[long] = {**stage.pool.servers["web-1"], "name": long, "tags": ["x" * 60]}
    add_routes(stage)
    Path(stage.logs, "web-1.log").write_text("2026-11-20T08:47:34.123456Z first line\n")
    context = browser.new_context(viewport={"width": width, "height": 740})
    try:
        tab = context.new_page()
        tab.goto(stage.url)
        tab.get_by_label("Token").wait_for()
        tab.keyboard.type(TOKEN)
        tab.keyboard.press("Enter")
        tab.locator("#rows tr").first.wait_for()

        def go(wanted: Any, heading: str) -> None:
            tab_to(tab, wanted)
            assert tab.evaluate(SEEN)
            tab.keyboard.press("Enter")
            expect(tab.get_by_role("heading", level=1, name=heading, exact=True)).to_be_focused()
            assert tab.evaluate("document.documentElement.scrollWidth") <= width

        go(row(tab, long).get_by_role("link", name=long), long)
        chart = tab.locator("#server-charts").get_by_role("slider").first
        tab_to(tab, chart)
        tab.keyboard.press("ArrowLeft")
        expect(chart).to_have_attribute("aria-valuetext", re.compile("· 2s ago"))
        go(tab.get_by_role("link", name="Events"), "Events")
        tab.keyboard.press("/")
        tab.keyboard.type(long)
        expect(tab.locator("#event-list li")).to_have_count(0)
        go(tab.get_by_role("link", name="Logs"), "Logs")
        tab.locator("#log div").first.wait_for()
        tab_to(tab, tab.get_by_label("Follow"))
        tab.keyboard.press("Space")
        expect(tab.get_by_label("Follow")).not_to_be_checked()
        go(tab.get_by_role("link", name="Routes"), "Routes")
        tab_to(tab, tab.get_by_role("region", name="Table of routes"))
        tab_to(tab, tab.get_by_role("button", name="Log out"))
        tab.keyboard.press("Enter")
        expect(tab.get_by_label("Token")).to_be_focused()
    finally:
        context.close()


def test_focus_stays_among_the_actions_on_the_page_of_a_server(page: Page, stage: Stage) -> None:
    enter(page, stage, "server/web-2")
    drain = page.get_by_role("button", name="Drain web-2", exact=True)
    tab_to(page, drain)
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Undrain web-2").wait_for()
    expect(drain).to_be_hidden()
    expect(page.locator("#server-actions button:focus")).to_have_count(1)


@pytest.mark.parametrize(
    ("width", "height"),
    [(1440, 900), (1100, 760), (1024, 700), (901, 700), (900, 700), (640, 400), (390, 844), (360, 740)],
)  # fmt: skip
def test_failing_server_is_seen_first_at_every_width(
    browser: Browser, stage: Stage, width: int, height: int
) -> None:
    stage.pool.become("web-8", state="failed", ready=False, health="ko", pids=[])
    stage.pool.servers["web-7"]["tags"] = ["x" * 60]
    context = browser.new_context(viewport={"width": width, "height": height})
    try:
        tab = context.new_page()
        enter(tab, stage)
        name = tab.locator("#rows th").first
        expect(name.locator(".why")).to_have_text("exited with status 3 before it was ready")
        box = name.bounding_box()
        assert box is not None
        assert box["width"] >= 160
        if height >= 700:
            assert box["y"] + box["height"] <= height, "above the fold"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("#rows button:visible, #rows summary:visible").count() == 8, "one for each row"
        for _ in range(45):
            tab.keyboard.press("Tab")
            assert tab.evaluate(SEEN), tab.evaluate("document.activeElement.outerHTML")
    finally:
        context.close()


# Whether what has focus is in view, and nothing lies above it.
SEEN = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return true;
  const box = node.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return box.width >= 4 && box.height >= 4 && Boolean(top) && (node.contains(top) || top.contains(node));
}"""


def test_crashes_in_a_row_are_one_line(page: Page, stage: Stage) -> None:
    cause = "exited with status 1 before it was ready: database gone"
    for crash in range(15):
        ago = {"server": "web-2", "ago_seconds": 240 - crash * 16}
        crashed = {"message": "exited with status 1", "cause": cause, "before": "starting", "after": "ended"}
        stage.pool.happened("lifecycle", "worker ended", status=1, next="restarting", **crashed, **ago)
        stage.pool.happened(
            "lifecycle", "backoff", message="starting → backoff", before="starting", after="backoff", **ago
        )
        stage.pool.happened("health", "ko", server="web-3", message=f"number {crash}")
        stage.pool.happened(
            "lifecycle", "starting", message="backoff → starting", before="backoff", after="starting", **ago
        )
    stage.pool.become("web-2", state="running")
    enter(page, stage, "events")
    lines = page.locator("#event-list li").filter(has_text="web-2")
    expect(lines.filter(has_text="times in")).to_have_text(
        re.compile("15 times in 4 min: exited with status 1, database gone$")
    )
    expect(lines).to_have_count(3)  # beside it: the first start, and the end of the loop
    expect(page.locator("#event-list li").filter(has_text="number")).to_have_count(15)
    day = page.evaluate("new Date().toLocaleDateString([], { month: 'short', day: 'numeric' })")
    expect(lines.first.locator("time")).to_have_text(re.compile(f"^{day}"))
    page.goto(f"{stage.url}#server/web-2")
    expect(page.locator("#server-events li").filter(has_text="15 times")).to_have_count(1)


def test_question_asked_while_another_closes_is_answered_by_its_buttons(page: Page, stage: Stage) -> None:
    enter(page, stage)
    press(page, "Restart", "web-1")
    page.get_by_role("dialog").wait_for()
    page.evaluate(
        """() => {
            document.getElementById("confirm").close();
            document.querySelector('[aria-label="Restart web-1"]').click();
        }"""
    )
    page.get_by_role("dialog").get_by_role("button", name="Restart").click()
    page.locator(".note").get_by_text("web-1 restarted.").wait_for()


def test_every_control_has_a_label_and_a_landmark(page: Page, stage: Stage) -> None:
    enter(page, stage)
    for landmark in ("banner", "main", "navigation"):
        assert page.get_by_role(landmark).count() == 1, landmark
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a, [role=img], table")]
            .filter((node) => node.checkVisibility())
            .filter((node) => !(node.textContent.trim() || node.getAttribute("aria-label") || node.labels?.length
                || node.caption || node.querySelector("title")))
            .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("#rows .history svg").first.get_attribute("aria-label")
    assert "highest" in str(page.locator("#overview svg").first.get_attribute("aria-label"))


def test_server_that_has_ended_by_itself_is_called_so_and_found_by_it(page: Page, stage: Stage) -> None:
    end = {"status": 0, "signal": None, "at": None}
    changes = {"state": "stopped", "ready": False, "health": "unknown", "ended": end, "last_line": "no jobs"}
    stage.pool.become("web-2", **changes)
    stage.pool.become("web-3", state="stopped", ready=False, health="unknown")
    enter(page, stage)
    row(page, "web-2").get_by_text("ended", exact=True).wait_for()
    row(page, "web-2").get_by_text('last line: "no jobs"').wait_for()
    row(page, "web-3").get_by_text("stopped", exact=True).wait_for()
    page.get_by_role("button", name="1 ended").click()
    row(page, "web-3").wait_for(state="detached")
    row(page, "web-2").get_by_role("link").first.click()
    page.locator("#server-failure").get_by_text('last line: "no jobs"').wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser: Browser, stage: Stage, scheme: Any) -> None:
    stage.pool.become("web-1", state="failed", ready=False, health="ko")
    stage.pool.become("web-2", health="warn")
    stage.pool.become("web-3", state="sleeping", ready=False, health="unknown")
    stage.pool.become("web-4", state="stopped", ready=False, health="unknown")
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    try:
        tab = context.new_page()
        enter(tab, stage)
        worst = tab.evaluate(CONTRAST)
        assert worst[0] >= 4.5, worst
        other = "dark" if scheme == "light" else "light"
        before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.get_by_label("Theme").select_option(other)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
        assert tab.evaluate(CONTRAST)[0] >= 4.5
    finally:
        context.close()


# The lowest contrast of any text with what is behind it (WCAG 2.2, 1.4.3), and that text.
CONTRAST = """() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parsed = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parsed(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest(".quiet, .skip, option, script")) continue;
    const [one, other] = [light(parsed(getComputedStyle(node).color).slice(0, 3)), light(behind(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < worst[0]) worst = [ratio, walker.currentNode.data];
  }
  return worst;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 640, 360])
def test_no_view_has_a_barrier(browser: Browser, stage: Stage, axe: str, scheme: Any, width: int) -> None:
    stage.pool.become("web-1", state="failed", ready=False, health="ko")
    stage.pool.become("web-2", health="warn")
    stage.pool.become("web-3", state="sleeping", ready=False, health="unknown")
    add_routes(stage)
    Path(stage.logs, "web-1.log").write_text("2026-11-20T08:47:34.123456Z ERROR: \x1b[31mred\x1b[0m\n")
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    try:
        tab = context.new_page()

        def violations() -> list[str]:
            tab.evaluate(axe)
            found = tab.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
            return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]

        tab.goto(stage.url)
        tab.get_by_label("Token").wait_for()
        assert violations() == []
        enter(tab, stage)
        for view in ("servers", "server/web-1", "events", "logs", "routes"):
            tab.goto(f"{stage.url}#{view}")
            tab.locator(f"#view-{view.partition('/')[0]}").wait_for()
            if view == "routes":
                tab.locator("#route-list td").first.wait_for()
            assert violations() == [], view
        tab.goto(f"{stage.url}#servers")
        row(tab, "web-2").locator("summary").click()
        assert violations() == []
        tab.get_by_role("button", name="Restart web-2").click()
        tab.get_by_role("dialog").wait_for()
        assert violations() == []
    finally:
        context.close()


def test_changes_are_announced_several_at_once_by_their_number(page: Page, stage: Stage) -> None:
    enter(page, stage)
    live = page.locator("#live")
    page.evaluate("""() => {
        window.said = [];
        new MutationObserver(() => said.push(document.getElementById("live").textContent))
            .observe(document.getElementById("live"), { childList: true });
    }""")
    row(page, "web-4").wait_for()
    page.evaluate("() => new Promise(done => setTimeout(done, 700))")  # until the first states are known
    stage.pool.become("web-1", state="stopped", ready=False, health="unknown")
    expect(live).to_have_text("web-1 is stopped.")
    for name in ("web-2", "web-3", "web-4"):
        stage.pool.become(name, state="failed", ready=False, health="ko")
    expect(live).to_have_text("3 servers are failed, health ko.")
    assert [text for text in page.evaluate("said") if text] == [
        "web-1 is stopped.", "3 servers are failed, health ko.",
    ]  # fmt: skip


def test_title_and_icon_have_the_number_of_failing_servers(page: Page, stage: Stage) -> None:
    enter(page, stage)
    expect(page).to_have_title("Servers · shop")
    for name in ("web-2", "web-3"):
        stage.pool.become(name, state="failed", ready=False, health="ko")
    expect(page).to_have_title("(2) Servers · shop")
    expect(page.locator("#icon")).to_have_attribute("href", f"{stage.url}icon/2.svg")
    assert ">2</text>" in page.context.request.get(f"{stage.url}icon/2.svg").text()
    for name in ("web-2", "web-3"):
        stage.pool.become(name, state="running", ready=True, health="ok")
    expect(page).to_have_title("Servers · shop")
    expect(page.locator("#icon")).to_have_attribute("href", re.compile("/icon.svg$"))


def test_routes_and_hosts_are_shown_with_their_figures(page: Page, stage: Stage) -> None:
    page.clock.install()
    enter(page, stage, "routes")
    page.get_by_text("This pool has no routes.").wait_for()
    add_routes(stage)
    page.goto(f"{stage.url}#servers")
    page.goto(f"{stage.url}#routes")
    routes = page.locator("#route-list tr")
    expect(routes).to_have_text([
        "apiapi.example.com/v1api, http://10.0.0.7:9000http––healthy1205434.0 ms12 ms–",
    ])  # fmt: skip
    titles = page.locator("#route-head th").all_inner_texts()
    assert [title.lower() for title in titles] == list(ROUTE_COLUMNS), "those of `routes -o wide`"
    assert titles[ROUTE_COLUMNS.index("refused")] == "Refused"
    hosts = page.locator("#backend-list tr")
    expect(hosts).to_have_text(
        [
            "apiapiactivehealthy–––70000–",
            "http://10.0.0.7:9000apiactiveunhealthy––open012403breaker open: 5 failures",
        ]
    )
    gateway = page.locator("#gateway")
    expect(gateway).to_have_text(
        "running · http://127.0.0.1:80 · 1 route · 12 requests/s · 0.5 errors/s · 1 connection · "
        "19.0 MiB · 1.5 % CPU"
    )
    expect(page.locator("#gateway-problem")).to_be_hidden()
    assert page.evaluate(CONTRAST)[0] >= 4.5
    stage.pool.hosts.pop()
    assert stage.pool.gateway is not None
    stage.pool.gateway |= {"problem": "port 443 is in use"}
    page.clock.fast_forward(5000)
    expect(hosts).to_have_count(1)
    expect(page.locator("#gateway-problem")).to_have_text("port 443 is in use")


def add_routes(stage: Stage) -> None:
    to = ("api", "http://10.0.0.7:9000")
    route = RouteReport(
        alias="api", host="api.example.com", path="/v1", to=to, state="healthy",
        requests=120, refused=5, waiting=4, errors=3, p50_seconds=0.004, p99_seconds=0.012,
    )  # fmt: skip
    open_ = BackendReport(
        host=to[1], routes=("api",), available=False, health="unhealthy", why="breaker open: 5 failures",
        breaker="open", in_flight=1, waiting=2, requests=40, errors=3,
    )  # fmt: skip
    stats = {
        "requests_per_second": 12.0, "errors_per_second": 0.5, "connections": 1, "memory_bytes": 19 * 2**20,
        "cpu_percent": 1.5,
    }  # fmt: skip
    stage.pool.gateway = {
        "state": "running", "problem": "", "addresses": ["http://127.0.0.1:80"], "routes": 1, "stats": stats,
    }  # fmt: skip
    stage.pool.routes = [to_json(route)]
    stage.pool.hosts = [
        to_json(BackendReport(host="api", routes=("api",), health="healthy", connections=7)),
        to_json(open_),
    ]


def test_the_page_fits_on_a_telephone(browser: Browser, stage: Stage) -> None:
    add_routes(stage)
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    try:
        tab = context.new_page()
        enter(tab, stage)
        for view in ("servers", "server/web-1", "events", "logs", "routes"):
            tab.goto(f"{stage.url}#{view}")
            tab.locator(f"#view-{view.partition('/')[0]}").wait_for()
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360, view
        tab.goto(f"{stage.url}#servers")
        row(tab, "web-1").locator("summary").tap()
        tab.get_by_role("button", name="Restart web-1").tap()
        tab.get_by_role("dialog", name="Restart web-1?").wait_for()
    finally:
        context.close()


def test_one_server_is_shown_with_its_failure_its_events_and_its_log(page: Page, stage: Stage) -> None:
    stage.pool.become("web-3", state="failed", ready=False, health="ko", pids=[])
    Path(stage.logs, "web-3.log").write_text(
        "2026-11-20T08:47:34.123456Z \x1b[31m<b>cannot bind</b>\x1b[0m\n"
    )
    enter(page, stage)
    page.get_by_role("link", name="web-3").click()
    page.get_by_role("heading", name="web-3").wait_for()
    page.locator("#server-failure").get_by_text("exited with status 3 before it was ready").wait_for()
    page.get_by_text("web-3 is failed").wait_for()
    page.locator("#server-log").get_by_text("<b>cannot bind</b>").wait_for()
    expect(page.locator("#server-charts svg")).to_have_count(4)
    configuration = page.get_by_role("region", name="Configuration")
    expect(configuration.locator("tbody tr")).to_have_text(
        ['name"web-3"pool.toml:3', "http.keep_alive7more.toml:9"]
    )
    page.get_by_text("Environment: SECRET", exact=True).wait_for()


def test_an_event_is_shown_at_once(page: Page, stage: Stage) -> None:
    enter(page, stage, "events")
    page.get_by_role("heading", name="Events").wait_for()
    by = {"uid": 1000, "user": "ada", "command": "dashboard stop", "address": "10.1.2.3"}
    stage.pool.happened("audit", "stop", server="web-5", message="stop web-5", by=by)
    page.get_by_text("dashboard stop by ada from 10.1.2.3").wait_for()
    page.get_by_label("Kind").select_option("audit")
    expect(page.locator("#event-list li")).to_have_count(1)


def test_an_event_has_the_severity_and_title_of_the_command_line(page: Page, stage: Stage) -> None:
    enter(page, stage, "events")
    stage.pool.happened(
        "lifecycle",
        "starting",
        server="web-1",
        message="backoff → starting",
        before="backoff",
        after="starting",
    )
    stage.pool.happened(
        "recovery",
        "recovered",
        server="web-2",
        message="it was stuck: restarted",
        lines=["<i>last</i>", "words"],
    )
    started = page.locator("#event-list li").filter(has_text="web-1").first
    expect(started.locator(".what")).to_have_text("backoff → starting")
    assert "ko" not in (started.locator(".badge").get_attribute("class") or "").split()
    recovered = page.locator("#event-list li").filter(has_text="web-2").first
    recovered.get_by_text("recovered: it was stuck: restarted").wait_for()
    assert "warn" in (recovered.locator(".badge").get_attribute("class") or "").split()
    recovered.get_by_text("Last output").click()
    expect(recovered.locator("pre")).to_have_text("<i>last</i>\nwords")
    expect(recovered.locator("pre")).to_be_visible()


def test_a_press_on_a_state_shows_only_its_servers(page: Page, stage: Stage) -> None:
    stage.pool.become("web-3", state="failed", ready=False, health="ko", pids=[])
    enter(page, stage)
    found = page.get_by_role("list", name="Servers by state").get_by_role("button", name="1 failed")
    found.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(found).to_have_attribute("aria-pressed", "true")
    stage.pool.become("web-4", state="backoff", ready=False, health="ko", pids=[])
    page.get_by_role("button", name="1 backoff").wait_for()
    expect(found).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#rows tr")).to_have_count(8)
    stage.pool.become("web-5", ready=False)
    page.get_by_role("button", name="1 not ready").click()
    expect(page.get_by_label("Sort by")).to_have_value("trouble")


@pytest.mark.heavy
def test_link_keeps_the_filter_the_order_and_the_span_of_the_charts(page: Page, stage: Stage) -> None:
    stage.pool.become("web-3", state="failed", ready=False, health="ko", pids=[])
    page.goto(f"{stage.url}?span=hour&state=failed#token={TOKEN}")
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(row(page, "web-3").locator(".why")).to_have_text("exited with status 3 before it was ready")
    requests = page.locator("#overview svg").first
    expect(requests).to_have_attribute("aria-label", re.compile("per second, last hour: now .* 1 restart$"))
    expect(page.locator("#overview .mark[d^=M]")).to_have_count(4)
    page.locator("#state").select_option("")
    page.locator("#servers-title").focus()
    page.keyboard.press("/")
    page.keyboard.type("public")
    page.get_by_role("button", name="Errors/s").click()
    page.get_by_role("button", name="Errors/s").click()
    expect(page).to_have_url(f"{stage.url}?q=public&sort=errors&span=hour&reversed=1")
    page.reload()
    expect(page.locator("#rows tr")).to_have_count(4)
    expect(page.locator("#table [aria-sort]")).to_have_attribute("aria-sort", "ascending")
    page.locator("#span").select_option("day")
    expect(requests).to_have_attribute("aria-label", re.compile("last 24 hours: now"))
    page.get_by_role("link", name="web-2").click()
    expect(page.locator("#server-charts svg").first).to_have_attribute(
        "aria-label", re.compile("last 24 hours: now")
    )


def test_a_log_line_cannot_inject_a_script(page: Page, stage: Stage) -> None:
    evil = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    Path(stage.logs, "web-1.log").write_text(f"2026-11-20T08:47:34.123456Z {evil}\n")
    stage.pool.servers["web-1"]["tags"] = [evil]
    stage.pool.servers["web-1"]["expose"] = "javascript:document.title='taken'"
    enter(page, stage)
    page.goto(f"{stage.url}#logs")
    page.locator("#log").get_by_text("onerror").wait_for()
    assert page.locator("#log img, #rows img").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    assert "taken" not in page.title()


def test_log_has_the_colours_of_a_terminal_and_is_selected_copied_and_downloaded(
    page: Page, stage: Stage
) -> None:
    now = stamp(time.time() - 60)
    lines = [
        "2026-11-20T08:47:34.000000Z INFO: \x1b[32mold\x1b[0m",
        f"{now} INFO: \x1b[1;91mbright\x1b[39m bold \x1b[22m\x1b[38;5;30mplain\x1b[0m",
        f"{now} ERROR: \x1b[31mred\x1b[m " + "\x1b[33m." * 1000 + "end",
        f"{now} " + "\x1b[99999999999m" * 3 + "odd\x1b]0;title\x07",
    ]
    Path(stage.logs, "web-1.log").write_text("\n".join(lines) + "\n")
    enter(page, stage, "logs")
    log = page.locator("#log")
    log.get_by_text("end").wait_for()
    expect(log.locator(".ansi9.bold")).to_have_text("bright")
    expect(log.locator(".bold:not([class*=ansi])")).to_have_text(" bold ")
    expect(log.locator(".ansi2")).to_have_text("old")
    expect(log.locator("div").nth(2)).to_contain_text("red " + "." * 1000 + "end")
    assert log.locator("div").nth(2).locator("span").count() <= 202
    page.locator("#log-age").select_option("hour")
    expect(log.locator("div")).to_have_count(3)
    page.get_by_label("Level").select_option("error and above")
    expect(log.locator("div")).to_have_text([re.compile("ERROR: red")])
    page.get_by_label("Level").select_option("")
    page.get_by_label("Regular expression").fill("b[a-z]+t")
    expect(log.locator("div")).to_have_text([re.compile("bright bold plain$")])
    expect(page).to_have_url(f"{stage.url}?lines=b%5Ba-z%5D%2Bt&age=3600#logs")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_text() == f"{now} web-1 INFO: bright bold plain\n"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("1 line copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f"{now} web-1 INFO: bright bold plain\n"
    page.get_by_label("Regular expression").fill("b(")
    page.get_by_role("alert").get_by_text("invalid regular expression 'b('").wait_for()
    page.get_by_label("Regular expression").fill("")
    expect(log.locator("div")).to_have_count(3)
    expect(page.locator("#log-problem")).to_be_hidden()


def test_lines_that_are_read_stay_while_others_arrive(page: Page, stage: Stage) -> None:
    log = Path(stage.logs, "web-1.log")

    def write(first: int, count: int) -> None:
        with log.open("a") as file:
            for number in range(first, first + count):
                file.write(f"2026-11-20T08:47:34.{number:06}Z line {number}.\n")

    write(1, 300)
    enter(page, stage, "logs")
    lines = page.locator("#log div")
    lines.filter(has_text="line 300.").wait_for()
    page.get_by_label("Follow").uncheck()
    first, top = lines.first.inner_text(), "document.getElementById('log').scrollTop"
    page.evaluate(f"{top} = 0")
    write(1000, 1500)
    page.get_by_text("1000 or more new lines wait: Follow shows them.").wait_for()
    assert (lines.first.inner_text(), page.evaluate(top)) == (first, 0)
    page.get_by_label("Follow").check()
    lines.filter(has_text="line 2499.").wait_for()
    expect(lines).to_have_count(1000)
    page.evaluate(f"{top} = 0")  # reading without the box
    first = lines.first.inner_text()
    write(3000, 1)
    page.get_by_text("1 new line waits: scroll to the end shows them.").wait_for()
    assert lines.first.inner_text() == first
    page.evaluate(f"{top} = 1e6")
    lines.filter(has_text="line 3000.").wait_for()


def test_chart_is_read_by_arrow_keys_and_gathers_restarts(page: Page, stage: Stage) -> None:
    page.clock.install()
    enter(page, stage)
    page.locator("#span").select_option("hour")
    chart = page.get_by_role("slider", name=re.compile("Requests per second, last hour"))
    chart.and_(page.locator("[aria-valuetext$='· now']")).wait_for()
    expect(page.locator("#overview .scale").first.locator("span")).to_have_text(
        [re.compile(r"\d"), re.compile(r"\d")]
    )
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(chart).to_have_attribute("aria-valuetext", re.compile("· 1m ago$"))
    expect(page.locator("#overview .card").nth(1).locator(".now")).to_have_text(re.compile("· 1m ago$"))
    page.keyboard.press("Home")
    expect(chart).to_have_attribute("aria-valuenow", "-59")
    page.keyboard.press("Tab")
    expect(page.locator("#overview .card").nth(1).locator(".now")).not_to_have_text(re.compile("ago"))
    for restarts in range(1, 6):
        stage.pool.become("web-1", restarts=restarts)
        page.clock.run_for(2000)
    page.locator("#span").select_option("now")
    marks = page.locator("#overview .mark").first
    expect(marks).to_have_attribute("d", re.compile("^M[^M]+$"))  # one for all


def test_log_lines_have_the_colour_of_their_level_in_json_and_in_text(page: Page, stage: Stage) -> None:
    lines = {
        "Exception in the application": ("ERROR:    Exception in the application", "bad"),
        "nearly full": ("2026-11-20 08:47:34,123 shop WARNING nearly full", "odd"),
        "card refused": ('{"level": "fatal", "message": "card refused"}', "bad"),
        "one query": ("level=debug msg='one query'", "faint"),
        "no error at all": ("INFO:     no error at all", ""),
    }
    text = "".join(f"2026-11-20T08:47:34.123456Z {line}\n" for line, _ in lines.values())
    Path(stage.logs, "web-1.log").write_text(text)
    enter(page, stage)
    page.goto(f"{stage.url}#logs")
    for words, (_, mark) in lines.items():
        expect(page.locator("#log div").filter(has_text=words)).to_have_class(mark)


def test_the_page_reports_an_unreachable_pool_and_recovers_with_it(page: Page, stage: Stage) -> None:
    enter(page, stage)
    stage.gone()
    page.get_by_role("alert").get_by_text("The pool does not answer").wait_for()
    stage.back()
    page.locator("#link.live").wait_for()
    assert not page.locator("#gone").is_visible()
    stage.end()
    page.get_by_role("alert").get_by_text("The dashboard does not answer").wait_for()
    stage.begin()
    page.locator("#link.live").wait_for()
    expect(page.locator("#rows tr")).to_have_count(8)


@pytest.mark.heavy
def test_changed_files_are_reported_in_the_words_of_the_commands(page: Page, stage: Stage) -> None:
    stage.pool.changed_files = {"files": ["/srv/pool.toml"], "added": 1, "removed": 0, "changed": 1}
    enter(page, stage)
    message = "pool.toml has changed since the pool read it; `poolctl reload` applies it (+1 ~1)"
    page.get_by_text(message, exact=True).wait_for()
    secret = {"file": "/srv/pool.toml", "line": 6, "message": "'s3cret' is not allowed here"}
    stage.pool.changed_files = {"files": ["/srv/pool.toml"], "problems": 1, "problem": secret}
    page.get_by_text("and is not valid: pool.toml:6 (poolctl validate shows the fix)").wait_for()
    assert "s3cret" not in page.content()
    stage.pool.changed_files = None
    expect(page.locator("#files")).to_be_hidden()


@pytest.mark.heavy
def test_the_page_stays_responsive_with_five_hundred_servers(page: Page) -> None:
    with dashboard_of(RecordedPool(500)) as stage:
        stage.pool.become("web-400", state="failed", ready=False, health="ko")
        enter(page, stage)
        page.locator("#rows tr").nth(499).wait_for()
        page.get_by_text("500 servers", exact=True).wait_for()
        page.get_by_label("Sort by").select_option("trouble")
        expect(page.locator("#rows tr").first.get_by_role("link", name="web-400")).to_have_count(1)
        page.get_by_role("searchbox", name="Search").fill("web-499")
        expect(page.locator("#rows tr")).to_have_count(1)
        # Rows out of view are not drawn.
        page.get_by_role("searchbox", name="Search").fill("")
        expect(page.locator("#rows tr")).to_have_count(500)
        drawn = "document.querySelectorAll('#rows .spark path[d]').length"
        page.wait_for_function(f"{drawn} > 0")
        assert page.evaluate(drawn) < 300


def test_a_real_pool_through_its_own_page(page: Page, real_pool: RealPool, until: Callable[..., Any]) -> None:
    port = claim_port()
    real_pool.write_hello("web", "api")
    path = real_pool.directory / "pool.toml"
    path.write_text(f'[dashboard]\nbind = "127.0.0.1:{port}"\n{path.read_text()}')
    real_pool.ok("start")
    page.goto(real_pool.ok("dashboard").stdout.strip())
    row(page, "api").get_by_text("running").wait_for()
    press(page, "Stop", "api")
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    row(page, "api").get_by_text("stopped").wait_for()
    assert real_pool.items()["api"]["state"] == "stopped"
    supervisor = real_pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not is_alive(supervisor))
    press(page, "Start", "api")
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    row(page, "api").get_by_text("running").wait_for()
    events = [event for event in _journal(real_pool) if event["kind"] == "audit"]
    (stop, *_) = [event for event in events if event["event"] == "stop"]
    assert stop["by"]["command"] == "dashboard stop"
    assert stop["by"]["address"] == "127.0.0.1"
    real_pool.ok("stop")
    page.get_by_role("alert").get_by_text("The dashboard does not answer").wait_for()


def _journal(pool: RealPool) -> list[dict[str, Any]]:
    import json

    (path,) = pool.runtime.glob("**/events.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_problems_come_first_and_the_others_in_the_order_of_the_file(page: Page, stage: Stage) -> None:
    stage.pool.become("web-7", state="failed", ready=False, health="ko")
    enter(page, stage)
    expect(page.locator("#rows th > a").first).to_have_text("web-7")
    assert page.locator("#rows th > a").all_inner_texts()[1:4] == ["web-1", "web-2", "web-3"]
    page.get_by_label("Sort by").select_option("file")
    expect(page.locator("#rows th > a").first).to_have_text("web-1")


def test_page_of_an_unknown_server_shows_nothing_of_another(page: Page, stage: Stage) -> None:
    enter(page, stage, "server/web-1")
    page.locator("#server-workers").get_by_text("web-1.1.0").wait_for()
    page.goto(f"{stage.url}#server/nobody")
    page.get_by_text("The pool has no server of this name.").wait_for()
    assert not page.locator("#server-parts").is_visible()
    assert page.locator("#view-server").inner_text().split("\n")[-1] == "The pool has no server of this name."
    page.goto(f"{stage.url}#server/web-2")
    page.locator("#server-workers").get_by_text("web-2.1.0").wait_for()
    assert page.locator("#server-workers tr").count() == 1


def test_page_is_loading_before_the_first_answer(page: Page, stage: Stage) -> None:
    held: list[Any] = []
    page.route("**/poolctl/routes", lambda request: held.append(request))
    page.route("**/poolctl/stream", lambda request: held.append(request))
    page.goto(f"{stage.url}#token={TOKEN}")
    page.locator("#view-servers").get_by_text("Loading").wait_for()
    page.get_by_role("link", name="Routes").click()
    page.locator("#view-routes").get_by_text("Loading").wait_for()
    assert not page.get_by_text("This pool has no routes.").is_visible()
    for each in held:
        each.continue_()
    page.get_by_text("This pool has no routes.").wait_for()
    assert not page.locator("#view-routes").get_by_text("Loading").is_visible()
