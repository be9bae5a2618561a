"""What the dashboard refuses, over plain HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from poolctl.features.dashboard._log_search import LogSearch
from poolctl.features.dashboard._signed_ids import CODE_SECONDS, new_login_code
from poolctl.features.dashboard.site import FIRST_LINES, STATIC, log_line_events, with_heartbeats
from poolctl.json_form import to_json
from poolctl.logs.log_line import stamp
from poolctl.logs.log_tail import Follower
from poolctl.routing.route_report import BACKEND_COLUMNS, ROUTE_COLUMNS, BackendReport, RouteReport
from poolctl.selection.regular_expressions import SLOW
from poolctl.web.bearer_tokens import MAX_WRONG_TOKENS
from tests.features.dashboard.stage import TOKEN, Stage, dashboard_of
from tests.http_get import Reply
from tests.slow_expression import HOSTILE_TEXT, SLOW_EXPRESSION
from tests.virtual_loop import run_in_virtual_time

HEARTBEAT = "event: heartbeat\ndata: 0\n\n"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with dashboard_of() as found:
        yield found


class Client:
    """Speaks to a dashboard as the client that the headers describe."""

    def __init__(self, stage: Stage) -> None:
        self.port = stage.port
        self.source = "127.0.0.1"
        self.headers: dict[str, str] = {}

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=60, source_address=(self.source, 0)
        )
        try:
            sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def login(self) -> Reply:
        reply = self.send("POST", "/poolctl/login", {"token": TOKEN})
        self.headers["Cookie"] = reply.headers["set-cookie"].partition(";")[0]
        self.csrf = reply.json()["csrf"]
        return reply

    def act(self, action: Any, servers: Any, **headers: str) -> Reply:
        return self.send("POST", "/poolctl/actions", {"action": action, "servers": servers}, **headers)


@pytest.fixture
def client(stage: Stage) -> Client:
    return Client(stage)


GUARDED = [
    "session", "stream", "logs", "server?name=web-1", "history?span=hour", "routes",
]  # fmt: skip


@pytest.mark.parametrize("path", GUARDED)
def test_page_reports_nothing_without_a_login(client: Client, path: str) -> None:
    assert client.send("GET", f"/poolctl/{path}").status == 401
    assert client.send("GET", f"/poolctl/{path}", Cookie="poolctl_0123456789ab=x.9999999999.y").status == 401


def test_nothing_is_done_without_a_login(client: Client, stage: Stage) -> None:
    assert client.act("stop", ["web-1"]).status == 401
    assert stage.pool.asked == []


def test_the_cookie_is_for_the_page_alone(client: Client) -> None:
    cookie = client.login().headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/poolctl;" in cookie
    assert "Max-Age=" in cookie
    assert "Secure" not in cookie, "this page has no certificate"
    assert TOKEN not in cookie
    assert client.send("GET", "/poolctl/session").json() == {"csrf": client.csrf, "pool": "shop"}


def test_an_action_needs_the_csrf_token_and_is_audited_with_its_client(client: Client, stage: Stage) -> None:
    client.login()
    assert client.act("restart", ["web-1"]).status == 403
    assert client.act("restart", ["web-1"], X_CSRF_Token="0" * 64).status == 403
    assert stage.pool.asked == []
    reply = client.act("restart", ["web-1"], X_CSRF_Token=client.csrf)
    assert (reply.status, reply.json()["errors"]) == (200, [])
    (asked,) = stage.pool.asked
    assert (asked["verb"], asked["selector"]) == ("restart", {"targets": ["web-1"]})
    assert asked["by"] == {"command": "dashboard restart", "address": "127.0.0.1"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_an_action_of_another_site_is_refused_even_with_the_tokens(
    client: Client, stage: Stage, headers: dict[str, str]
) -> None:
    client.login()
    token = {"X-CSRF-Token": client.csrf}
    refusal = client.act("restart", ["web-1"], **headers, **token)
    assert (refusal.status, refusal.headers["x-content-type-options"]) == (403, "nosniff")
    assert stage.pool.asked == []
    assert client.send("GET", "/poolctl/session", **headers).status == 200
    for own in ({"Sec-Fetch-Site": "none"}, {"Origin": f"http://127.0.0.1:{stage.port}"}):
        assert client.act("restart", ["web-1"], **own, **token).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "page.example.evil:9465",
        "127.0.0.1.evil.example",
        "",
        "a@page.example",
        "page.example/",
        "[::1",
    ],
)
def test_foreign_host_name_is_refused(client: Client, host: str) -> None:
    assert client.send("GET", "/", Host=host).status == 421
    assert client.send("POST", "/poolctl/login", {"token": TOKEN}, Host=host).status == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:9465", "10.0.0.7", "PAGE.example:8443"]
)
def test_addresses_and_known_names_are_accepted(client: Client, host: str) -> None:
    assert client.send("GET", "/", Host=host).status == 200


@pytest.mark.parametrize(
    ("action", "servers"),
    [
        ("stop", []), ("stop", ["*"]), ("stop", ["web-*"]), ("stop", "web-1"), ("stop", [""]), ("stop", [None]),
        ("stop", None), ("remove", ["web-1"]), ("", ["web-1"]), (None, ["web-1"]), ("stop", ["127.0.0.1:8081"]),
        ("stop", ["tag:api"]),
    ],
)  # fmt: skip
def test_only_servers_by_their_names_are_acted_on(
    client: Client, stage: Stage, action: Any, servers: Any
) -> None:
    client.login()
    assert client.act(action, servers, X_CSRF_Token=client.csrf).status == 400
    assert stage.pool.asked == []


def test_failure_is_reported_with_its_reason(client: Client, stage: Stage) -> None:
    client.login()
    stage.pool.refuses = "exited with status 3 before it was ready"
    reply = client.act("start", ["web-1"], X_CSRF_Token=client.csrf)
    assert reply.json()["errors"][0]["message"] == stage.pool.refuses
    stage.gone()
    reply = client.act("start", ["web-1"], X_CSRF_Token=client.csrf)
    assert (reply.status, reply.json()["error"]) == (503, "no supervisor is running for this pool")


def test_bearer_token_is_accepted_without_a_session(client: Client, stage: Stage) -> None:
    assert client.send("GET", "/poolctl/server?name=web-1", Authorization=f"Bearer {TOKEN}").status == 200
    assert client.send("GET", "/poolctl/server?name=web-1", Authorization="Bearer wrong").status == 401
    assert client.act("drain", ["web-2"], Authorization=f"Bearer {TOKEN}").status == 200


def test_the_cookie_is_invalid_after_a_logout(client: Client) -> None:
    client.login()
    assert client.send("POST", "/poolctl/logout").status == 403
    assert client.send("POST", "/poolctl/logout", X_CSRF_Token=client.csrf).status == 204
    assert client.send("GET", "/poolctl/session").status == 401


@pytest.mark.parametrize("wrong", ["", "a-toke", f"{TOKEN}x", TOKEN.upper(), "ä", f"{TOKEN}\0", "\ud800"])
def test_only_the_token_logs_in(client: Client, wrong: str) -> None:
    assert client.send("POST", "/poolctl/login", {"token": wrong}).status == 401
    assert client.send("POST", "/poolctl/login", {"token": f" {TOKEN}\n"}).status == 200


@pytest.mark.parametrize("token", ["short", "a-token-of-32-characters-or-more"])
def test_after_many_wrong_tokens_only_a_right_one_of_32_characters_is_accepted(
    client: Client, stage: Stage, token: str
) -> None:
    stage.end()
    stage.token = token
    stage.begin()
    for _ in range(MAX_WRONG_TOKENS):
        assert client.send("POST", "/poolctl/login", {"token": "wrong"}).status == 401
    wrong = client.send("POST", "/poolctl/login", {"token": "wrong"})
    seconds = wrong.headers["retry-after"]
    assert (wrong.status, wrong.json()["error"]) == (429, f"too many wrong tokens; wait {seconds} s")
    assert 0 < int(seconds) < 8
    is_long = len(token) >= 32
    assert client.send("POST", "/poolctl/login", {"token": token}).status == (200 if is_long else 429)
    reply = client.send("GET", "/poolctl/server?name=web-1", Authorization=f"Bearer {token}")
    assert (reply.status, "retry-after" in reply.headers) == ((200, False) if is_long else (429, True))


def test_wrong_tokens_of_one_address_let_no_other_wait(client: Client, stage: Stage) -> None:
    for _ in range(MAX_WRONG_TOKENS + 1):
        refusal = client.send("POST", "/poolctl/login", {"token": "wrong"})
    assert refusal.status == 429
    client.source = "127.0.0.2"
    assert client.send("POST", "/poolctl/login", {"token": "wrong"}).status == 401
    assert client.send("POST", "/poolctl/login", {"token": TOKEN}).status == 200, "a short one"


def test_code_of_a_link_logs_in_once_within_ten_minutes(client: Client, stage: Stage) -> None:
    def login(code: str) -> Reply:
        return client.send("POST", "/poolctl/login", {"token": code})

    code = new_login_code(TOKEN, time.time())
    for _ in range(MAX_WRONG_TOKENS + 1):
        assert login(code[:-1] + ("A" if code[-1] != "A" else "B")).status in (401, 429)
    cookie = login(code).headers["set-cookie"].partition(";")[0]
    assert client.send("GET", "/poolctl/session", Cookie=cookie).status == 200
    stage.end()
    stage.begin()
    used, late = login(code), login(new_login_code(TOKEN, time.time() - CODE_SECONDS))
    assert [used.status, late.status] == [401, 401]
    assert "used already" in used.json()["error"]
    for _ in range(MAX_WRONG_TOKENS + 1):
        assert login(code).status == 401, "it is no guess"
    assert login(new_login_code("another token", time.time())).status == 401
    assert login(new_login_code(TOKEN, time.time())).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [(None, 401), ([], 401), ({"token": 7}, 401), ({"token": None}, 401), ("x" * 300_000, 413)],
)
def test_a_login_of_another_shape_is_refused(client: Client, body: Any, status: int) -> None:
    assert client.send("POST", "/poolctl/login", body).status == status


@pytest.mark.parametrize(
    "path", ["/", "/static/main.js", "/static/style.css", "/poolctl/session", "/nowhere"]
)
def test_every_answer_has_a_strict_policy(client: Client, path: str) -> None:
    headers = client.send("GET", path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_names_nothing_of_another_host_and_has_no_inline_program_or_style(client: Client) -> None:
    page = client.send("GET", "/").text
    assert "//" not in page.replace("<!doctype", "")
    assert "<style" not in page
    assert " style=" not in page
    assert "<script>" not in page
    assert " onclick" not in page


def test_files_of_the_page_are_kept_by_the_browser_below_a_hash_and_compressed(client: Client) -> None:
    page = client.send("GET", "/", Accept_Encoding="gzip")
    assert page.headers["content-encoding"] == "gzip"
    html = client.send("GET", "/").text
    files = re.findall(r'(?:href|src)="(/static/[^"]+)"', html)
    assert {path.rpartition("/")[2] for path in files} == {
        path.name for path in STATIC.iterdir() if path.suffix != ".html"
    }, "the page names every file, so that a browser asks for all at once"
    assert len({path.rpartition("/")[0] for path in files}) == 1
    for path in files:
        reply = client.send("GET", path, Accept_Encoding="gzip")
        assert (reply.status, reply.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
        assert reply.headers.get("content-encoding") == (
            "gzip" if len(client.send("GET", path).body) >= 500 else None
        )
    plain = client.send("GET", "/static/main.js")
    assert plain.headers["cache-control"] == "no-cache"
    assert client.send("GET", "/static/main.js", If_None_Match=plain.headers["etag"]).status == 304
    for private in ("/", "/poolctl/session", "/poolctl/routes", "/nowhere"):
        assert client.send("GET", private).headers["cache-control"] == "no-store"


def test_stream_is_compressed_message_by_message(user: Client) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", user.port, timeout=60)) as connection:
        connection.request("GET", "/poolctl/stream", headers={**user.headers, "Accept-Encoding": "gzip"})
        response = connection.getresponse()
        assert response.headers["content-encoding"] == "gzip"
        text, decompressor = "", zlib.decompressobj(31)
        while "event: stats" not in text:
            text += decompressor.decompress(response.read1()).decode()
    assert text.index("event: pool") < text.index("event: series") < text.index("event: stats")


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/..%2fapp.py", "/static/", "/static"])
def test_only_the_page_s_own_files_are_served(client: Client, path: str) -> None:
    assert client.send("GET", path).status in (307, 404)


def test_values_of_the_environment_are_not_shown(client: Client) -> None:
    client.login()
    reply = client.send("GET", "/poolctl/server?name=web-1")
    assert reply.json()["items"][0]["name"] == "web-1"
    assert "do not show" not in reply.text


def test_no_element_has_the_name_of_a_view_to_which_the_browser_would_scroll() -> None:
    (views,) = re.findall(r"const VIEWS = (\[.*\]);", (STATIC / "main.js").read_text())
    ids = set(re.findall(r'\bid="([^"]+)"', (STATIC / "index.html").read_text()))
    assert {f"view-{view}" for view in json.loads(views)} <= ids
    assert not ids & set(json.loads(views))


@pytest.fixture
def user(client: Client) -> Client:
    """A client that has logged in."""
    client.login()
    client.headers["X-CSRF-Token"] = client.csrf
    return client


def test_details_of_a_server_have_its_configuration_and_the_names_of_its_environment(
    user: Client, stage: Stage
) -> None:
    stage.pool.become("web-1", state="failed")
    reply = user.send("GET", "/poolctl/server?name=web-1").json()
    (found,) = reply["items"]
    assert (found["name"], found["worker_list"][0]["pid"]) == ("web-1", 20001)
    assert found["failure"]["message"] == "exited with status 3 before it was ready"
    assert found["configuration"] == [
        ["name", '"web-1"', "/srv/pool.toml:3"], ["http.keep_alive", "7", "/srv/more.toml:9"],
    ]  # fmt: skip
    assert found["environment"] == ["SECRET"]
    assert reply["errors"] == []


@pytest.mark.parametrize(("query", "server"), [("span=hour", []), ("span=day&server=web-2", ["web-2"])])
def test_history_of_the_pool_or_of_one_server(
    user: Client, stage: Stage, query: str, server: list[str]
) -> None:
    reply = user.send("GET", f"/poolctl/history?{query}").json()
    assert reply.keys() == {"slot_seconds", "slots", "series"}
    assert (reply["slots"], reply["slot_seconds"]) == ((60, 60) if "hour" in query else (96, 900))
    verb, body = stage.requests[-1]
    assert (verb, body["selector"]["targets"]) == ("history", server)


@pytest.mark.parametrize(
    "query", ["", "span=week", "span=hour&server=web-*", "span=hour&server=127.0.0.1:80"]
)
def test_history_of_anything_else_is_refused(user: Client, stage: Stage, query: str) -> None:
    assert user.send("GET", f"/poolctl/history?{query}").status == 400
    assert stage.requests == []


@pytest.mark.parametrize(
    ("action", "waits"),
    [("start", True), ("stop", True), ("restart", True), ("drain", False), ("undrain", False)],
)
def test_action_is_waited_for_unless_it_lasts(user: Client, stage: Stage, action: str, waits: bool) -> None:
    reply = user.act(action, ["web-1"]).json()
    assert reply["items"][0]["name"] == "web-1"
    assert reply["exit_code"] == 0
    assert reply.keys() <= {"items", "errors", "warnings", "exit_code", "dependents", "unchanged"}
    (asked,) = stage.pool.asked
    assert asked["options"]["progress"] is False
    assert asked["options"].get("wait", False) is waits
    assert ("timeout" in asked["options"]) is waits


def test_server_that_was_stopped_already_is_named(user: Client, stage: Stage) -> None:
    stage.pool.become("web-1", state="stopped")
    assert user.act("stop", ["web-1"]).json()["unchanged"] == ["web-1"]


@pytest.mark.parametrize(("count", "more"), [(3, 0), (500, 0), (507, 7)])
def test_page_shows_a_limited_number_of_routes_and_hosts(
    user: Client, stage: Stage, count: int, more: int
) -> None:
    stage.pool.gateway = {
        "state": "running", "pid": 7, "addresses": ["http://127.0.0.1:80"], "routes": count, "uptime_seconds": 1.0,
        "restarts": 0,
    }  # fmt: skip
    stage.pool.routes = [to_json(RouteReport(alias=f"r{number}")) for number in range(count)]
    stage.pool.hosts = [to_json(BackendReport(host=f"h{number}")) for number in range(count)]
    found = user.send("GET", "/poolctl/routes").json()
    assert [len(found[name]) for name in ("routes", "hosts")] == [count - more] * 2
    assert (found["more_routes"], found["more_hosts"], found["problem"]) == (more, more, "")
    assert (found["routes"][0]["alias"], found["hosts"][0]["host"]) == ("r0", "h0")
    assert found["gateway"]["pid"] == 7
    assert found["route_columns"] == [*ROUTE_COLUMNS]
    assert found["backend_columns"] == [*BACKEND_COLUMNS]


def test_state_and_log_come_in_one_stream_also_while_the_pool_does_not_answer(
    user: Client, stage: Stage
) -> None:
    Path(stage.logs, "web-1.log").write_text("2026-11-20T08:47:30.000000Z first\n")
    stage.gone()
    with streamed(user, "/poolctl/stream?log=web-1") as response:
        assert "no supervisor" in next_event(response, "gone")["message"]
        stage.back()
        names = set()
        while names != {"pool", "lines"}:
            name = response.readline().decode().strip().removeprefix("event: ")
            names |= {name} & {"pool", "lines"}


@pytest.mark.parametrize(
    ("query", "lines"),
    [
        ("level=warning", ["WARN  second n=1", "ERROR: third 7", "  a detail"]),
        ("grep=th.rd%20%5Cd%24", ["ERROR: third 7"]),
        ("age=3600", ["ERROR: third 7", "  a detail"]),
        ("level=error&grep=second", []),
        ("level=nothing&age=x", ["first", "WARN  second n=1", "ERROR: third 7", "  a detail"]),
    ],
)
def test_log_lines_are_selected_by_level_age_and_expression(
    user: Client, stage: Stage, query: str, lines: list[str]
) -> None:
    old, now = "2026-11-20T08:47:30.000000Z", stamp(time.time() - 60)
    warning = '{"level": "warn", "message": "second", "n": 1}'
    log = Path(stage.logs, "web-1.log")
    log.write_text(f"{old} first\n{old} {warning}\n{now} ERROR: third 7\n{now}   a detail\n")
    with streamed(user, f"/poolctl/stream?log=web-1&{query}") as response:
        assert [line[2] for line in next_event(response, "lines")] == lines


@pytest.mark.parametrize(
    ("expression", "problem"),
    [("a(", "invalid regular expression 'a('"), (SLOW_EXPRESSION, SLOW)],
)
def test_expression_that_cannot_be_used_is_reported_and_the_state_goes_on(
    user: Client, stage: Stage, expression: str, problem: str
) -> None:
    Path(stage.logs, "web-1.log").write_text(f"2026-11-20T08:47:30.000000Z {HOSTILE_TEXT}\n")
    with streamed(user, f"/poolctl/stream?log=web-1&grep={quote(expression)}") as response:
        assert problem in next_event(response, "search")["problem"]
        assert next_event(response, "stats")


def test_search_ends_after_its_time_and_says_so(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("2026-11-20T08:47:30.000000Z INFO: fine\n" * 1000)
    search = LogSearch({"level": "error"}, 0)
    search.stop()
    follower = Follower({"web": str(log)}, lines=10, wanted=search)
    with closing(follower):
        assert (follower.first, search.is_incomplete) == ([], True)
        with log.open("a") as file:
            file.write("2026-11-20T08:47:31.000000Z ERROR: new\n")
        assert [line.text for line in follower.read()] == ["ERROR: new"]


def test_log_of_an_unknown_server_is_not_found(user: Client) -> None:
    reply = user.send("GET", "/poolctl/logs?server=nowhere")
    assert (reply.status, reply.json()["error"]) == (404, "there is no such server")


@contextmanager
def streamed(user: Client, path: str) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", user.port, timeout=60)) as connection:
        connection.request("GET", path, headers=user.headers)
        with connection.getresponse() as response:
            assert str(response.headers["content-type"]).startswith("text/event-stream")
            yield response


def next_event(response: http.client.HTTPResponse, name: str) -> Any:
    while (line := response.readline()) != f"event: {name}\n".encode():
        assert line, "the stream has ended"
    return json.loads(response.readline().removeprefix(b"data: "))


def test_log_is_streamed_from_its_last_lines_on_until_the_page_ends(user: Client, stage: Stage) -> None:
    at = [f"2026-11-20T08:47:3{second}.000000Z" for second in range(3)]
    log = Path(stage.logs, "web-1.log")
    log.write_text(f'{at[0]} first\n{at[1]} {{"level": "warn", "message": "second", "n": 1}}\n')
    Path(stage.logs, "web-2.log").write_text(f"{at[0]} other\n")
    with streamed(user, "/poolctl/logs?server=web-1") as response:
        assert next_event(response, "lines") == [
            [at[0], "web-1", "first", ""], [at[1], "web-1", "WARN  second n=1", "warning"],
        ]  # fmt: skip
        with log.open("a") as file:
            file.write(f"{at[2]} ERROR third\n")
        assert next_event(response, "lines") == [[at[2], "web-1", "ERROR third", "error"]]
        stage.end()
        assert b"event" not in response.read()


def test_logs_of_all_servers_are_streamed_together_each_with_its_share(user: Client, stage: Stage) -> None:
    for name in ("web-1", "web-2"):
        lines = [f"2026-11-20T08:47:34.000000Z {number}\n" for number in range(400)]
        Path(stage.logs, f"{name}.log").write_text("".join(lines))
    with streamed(user, "/poolctl/logs") as response:
        lines = next_event(response, "lines")
    servers = len(stage.pool.servers)
    counts = Counter(line[1] for line in lines)
    assert counts == dict.fromkeys(("web-1", "web-2"), max(20, FIRST_LINES // servers))


class Reads(ThreadPoolExecutor):
    """Counts what its threads do."""

    count = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.count += 1
        return super().submit(*arguments, **named)


async def test_quiet_log_is_not_read_again_until_it_has_news(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("first\n")
    reads = Reads()
    asyncio.get_running_loop().set_default_executor(reads)
    messages = log_line_events({"web": str(log)}, LogSearch({}, 0), asyncio.Semaphore())
    assert "first" in await anext(messages)
    with log.open("a") as file:
        file.write("second\n")
    assert "second" in await anext(messages)
    upcoming = asyncio.ensure_future(anext(messages))
    before = reads.count
    await asyncio.sleep(0.5)
    assert reads.count - before < 3
    with log.open("a") as file:
        file.write("third\n")
    assert "third" in await upcoming
    await messages.aclose()


def test_streams_of_a_session_end_with_it(user: Client, stage: Stage) -> None:
    log_file = Path(stage.logs, "web-1.log")
    log_file.write_text("2026-11-20T08:47:30.000000Z first\n")
    other, bearer = Client(stage), Client(stage)
    other.login()
    bearer.headers["Authorization"] = f"Bearer {TOKEN}"
    with (
        streamed(user, "/poolctl/stream") as state,
        streamed(user, "/poolctl/logs?server=web-1") as log,
        streamed(other, "/poolctl/logs?server=web-1") as others,
        streamed(bearer, "/poolctl/logs?server=web-1") as programs,
    ):
        for stream in (log, others, programs):
            assert next_event(stream, "lines")[0][2] == "first"
        assert user.send("POST", "/poolctl/logout", X_CSRF_Token=user.csrf).status == 204
        for ended in (state, log):
            ended.read()
        with log_file.open("a") as file:
            file.write("2026-11-20T08:47:31.000000Z second\n")
        for open_stream in (others, programs):
            assert next_event(open_stream, "lines")[0][2] == "second"


def test_stream_ends_with_the_token_that_it_was_opened_with(user: Client, stage: Stage) -> None:
    with streamed(user, "/poolctl/stream") as response:
        stage.change_token("another-4712")
        response.read()
    assert user.send("GET", "/poolctl/session").status == 401


@pytest.mark.loop(run=run_in_virtual_time)
async def test_silence_is_filled_and_a_stream_ends_with_its_messages_or_its_server() -> None:
    over, more = asyncio.Event(), asyncio.Event()
    closed = []

    async def messages() -> AsyncGenerator[str]:
        try:
            yield "first"
            await more.wait()
            yield "second"
        finally:
            closed.append(True)

    began, stream = asyncio.get_running_loop().time(), with_heartbeats([messages()], over.wait)
    assert [await anext(stream) for _ in range(4)] == [
        "retry: 1000\n\n", "first", HEARTBEAT, HEARTBEAT,
    ]  # fmt: skip
    assert asyncio.get_running_loop().time() - began == pytest.approx(10)
    more.set()
    assert [each async for each in stream if each != HEARTBEAT] == ["second"]
    assert closed == [True]
    more.clear()
    stream = with_heartbeats([messages()], over.wait)
    assert [await anext(stream) for _ in range(2)] == ["retry: 1000\n\n", "first"]
    over.set()
    assert [each async for each in stream] == []
    assert closed == [True, True]
