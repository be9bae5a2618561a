"""`poolctl routes`: the route table, and why a URL takes a route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl.routing.route import Header, Redirect, Route, Target
from tests.stand_in import always
from tests.unit.cli.conftest import Command, Supervised

USERS: dict[str, Any] = {
    "alias": "users", "host": "users.example.com", "path": "/v1", "to": ["users", "spare"], "policy": "round-robin",
    "way": "http", "why": "", "provider": "server", "state": "healthy", "requests": 900, "refused": 5, "waiting": 4,
    "errors": 7,
    "p50_seconds": 0.0042, "p99_seconds": 1.5,
}  # fmt: skip
OLD = {"alias": "old", "way": "excluded", "why": "the server is disabled", "provider": "file"}
FILES = """
[gateway]
bind = "127.0.0.1:8099"

[[server]]
name = "users"
bind = "127.0.0.1:8091"
app = "shop:users"
expose = "http://users.example.com"

[[server]]
name = "orders"
bind = "127.0.0.1:8092"
app = "shop:orders"

[[route]]
alias = "beta"
host = "users.example.com"
path = "/v1"
headers = { x-beta = "1" }
to = "orders"

[[route]]
alias = "domain"
host = "*.example.org"
path = "/shop"
to = "orders"
"""


@pytest.fixture
def routed(directory: Path) -> None:
    (directory / "pool.toml").write_text(FILES)


def test_table_shows_each_route_with_its_figures(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(USERS, OLD, generation=4, refused={"404": 3, "tls": 1})) as requests:
        head, users, old = poolctl("routes").out.splitlines()
        wide = poolctl("routes", "-o", "wide").out
        assert poolctl("routes", "-o", "json").json["generation"] == 4
        assert poolctl("routes", "-o", "json").json["items"][0] == USERS
        assert poolctl("routes", "-o", "name").out == "users\nold\n"
        assert poolctl("routes", "-o", "alias,p99_seconds").out == "users\t1.5\nold\t\n"
    assert head.split() == [
        "ALIAS", "HOST", "PATH", "TO", "WAY", "STATE", "REQUESTS", "ERRORS", "P50", "P99",
    ]  # fmt: skip
    assert users.split() == [
        "users", "users.example.com", "/v1", "users,spare", "http", "healthy", "900", "7", "4.2ms", "1.5s",
    ]  # fmt: skip
    assert old.split() == ["old", "-", "-", "-", "excluded", "unknown", "0", "0", "-", "-"]
    assert "round-robin" in wide
    assert "  REQUESTS  REFUSED  WAITING  ERRORS  " in wide
    assert wide.endswith("\nRefused without a route: 3 with 404, 1 with tls\n")
    assert "the server is disabled" in wide
    assert {verb for verb, _ in requests if verb != "ping"} == {"routes"}


def test_wide_table_has_the_machines_of_a_pool_with_an_inventory(
    poolctl: Command, supervised: Supervised
) -> None:
    machine = {"to": "users", "kind": "lxc", "node": "pve", "vmid": 101, "name": "users", "state": "running"}
    with supervised(always({**USERS, "machines": [machine]})):
        head, users = poolctl("routes", "-o", "wide").out.splitlines()
        assert "MACHINES" not in poolctl("routes").out
    assert head.split()[3:6] == ["TO", "MACHINES", "WAY"]
    assert "  users,spare  pve/101 users (running)  http  " in users


def test_registered_service_that_gets_no_requests_is_a_warning(
    poolctl: Command, supervised: Supervised
) -> None:
    away = {"name": "users", "url": "http://10.0.0.7:9000", "state": "silent", "why": "no heartbeat for 30s"}
    there = {"name": "users", "url": "http://10.0.0.8:9000", "state": "serving"}
    with supervised(always({**USERS, "registrations": [away, there]})):
        done = poolctl("routes")
        many = poolctl("routes", "-o", "json").json["items"][0]["registrations"]
    assert done.err == "warning: users: http://10.0.0.7:9000 gets no requests: no heartbeat for 30s\n"
    assert [each["state"] for each in many] == ["silent", "serving"]


@pytest.mark.parametrize(
    ("count", "rest"),
    [(5, []), (6, ["and 1 more"]), (7, ["and 2 more"])],
)
def test_warnings_name_up_to_five_registered_services(
    poolctl: Command, supervised: Supervised, count: int, rest: list[str]
) -> None:
    away = [{"name": "users", "url": f"http://10.0.0.{at}:9000", "state": "silent"} for at in range(count)]
    with supervised(always({**USERS, "registrations": away})):
        said = poolctl("routes").err.splitlines()
    named = [f"users: {each['url']} gets no requests: silent" for each in away[:5]]
    assert said == [f"warning: {each}" for each in (*named, *rest)]


def test_without_routes_the_table_has_its_header(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always()):
        assert poolctl("routes").out == "ALIAS  HOST  PATH  TO  WAY  STATE  REQUESTS  ERRORS  P50  P99\n"
        assert poolctl("routes", "-o", "name").out == ""


def test_without_a_supervisor_the_table_is_6(poolctl: Command) -> None:
    assert poolctl("routes").code == 6


@pytest.mark.usefixtures("routed")
def test_explanation_names_the_route_and_why_each_other_candidate_is_not_taken(poolctl: Command) -> None:
    said = poolctl("routes", "explain", "https://users.example.com:8443/v1/a?b#c")
    sentence, empty, head, beta, users, more = said.out.splitlines()
    assert said.code == 0
    assert sentence == "GET users.example.com/v1/a takes the route users, which leads to users"
    assert empty == ""
    assert head.split() == ["MATCH", "ALIAS", "HOST", "PATH", "TO", "WHY"]
    assert beta.endswith("the request has no header x-beta")
    assert users.endswith("host users.example.com (exact), path /")
    assert (beta.split()[:2], users.split()[:2]) == (["no", "beta"], ["yes", "users"])
    assert more == "and 1 of other hosts"


@pytest.mark.usefixtures("routed")
def test_explanation_of_a_path_that_is_not_utf_8_is_of_its_bytes(poolctl: Command) -> None:
    assert (
        "GET users.example.com/caf%E9 takes"
        in poolctl("routes", "explain", "http://users.example.com/caf\udce9").out
    )


def test_explanation_names_excluded_routes_of_the_host_with_their_reasons(
    poolctl: Command, directory: Path
) -> None:
    off = '[[server]]\nname = "old"\nbind = "127.0.0.1:8093"\napp = "shop:old"\ndisabled = true\n'
    for host in ("users.example.com", "other.example.net"):
        off += f'[[route]]\nalias = "old-{host}"\nhost = "{host}"\npath = "/old"\nto = "old"\n'
    (directory / "pool.toml").write_text(FILES + off)
    said = poolctl("routes", "explain", "http://users.example.com/old")
    *_, last = said.out.splitlines()
    assert last.startswith("excluded: old-users.example.com: ")
    (excluded,) = poolctl("routes", "explain", "http://users.example.com/old", "-o", "json").json["excluded"]
    assert (excluded["alias"], excluded["host"]) == ("old-users.example.com", "users.example.com")
    assert last.endswith(excluded["why"])
    assert "disabled" in excluded["why"]


@pytest.mark.usefixtures("routed")
def test_explanation_heeds_method_headers_and_host(poolctl: Command) -> None:
    words = ["/v1", "--method", "post", "--header", "X-Beta: 1", "--header", "host: Users.example.com."]
    said = poolctl("routes", "explain", *words, "-o", "json").json
    assert said["request"] == {"method": "POST", "host": "users.example.com", "path": "/v1"}
    assert said["route"] == "beta"
    assert [(each["alias"], each["matched"], each["why"]) for each in said["items"]] == [
        ("beta", True, "host users.example.com (exact), path /v1"),
        ("users", False, "beta comes first: its path is longer"),
        ("domain", False, "its host is *.example.org"),
    ]
    assert poolctl("routes", "explain", *words, "-o", "name").out == "beta\n"
    assert (
        poolctl("routes", "explain", *words, "-o", "alias,matched,to").out.splitlines()[0]
        == "beta\ttrue\torders"
    )


def test_explanation_takes_the_host_from_the_header_that_the_gateway_does(
    poolctl: Command, directory: Path, supervised: Supervised
) -> None:
    (directory / "pool.toml").write_text(
        FILES.replace("[gateway]\n", '[gateway]\nheader_for_host = "X-Host"\n')
    )
    words = ["explain", "http://10.0.0.1/v1", "--header", "X-Host: users.example.com"]
    said = poolctl("routes", *words)
    sentence = "GET users.example.com/v1 takes the route users, which leads to users"
    assert said.out.splitlines()[0] == sentence
    assert poolctl("routes", "explain", "http://10.0.0.1/v1").code == 4
    route = Route(alias="users", host="users.example.com", to=(Target(server="users"),)).to_json()
    with supervised(always(header_for_host="X-Host", routes=[route], total=1)) as requests:
        assert poolctl("routes", *words, "-o", "name").out == "users\n"
    (options,) = [body["options"] for verb, body in requests if verb == "routes"]
    assert options["headers"] == {"x-host": "users.example.com"}


@pytest.mark.usefixtures("routed")
@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("users.example.com", "GET users.example.com/ takes the route users, which leads to users\n"),
        (
            "https://users.example.com/",
            "GET users.example.com/ takes the route users, which leads to users\n",
        ),
        ("users.example.com/a/../b", "takes the route users, which leads to users; the path is sent as /b\n"),
        (
            "users.example.com/fetch/https://a.b/c",
            "GET users.example.com/fetch/https://a.b/c takes the route users",
        ),
        (
            "users.example.com/é x",
            "GET users.example.com/%C3%A9%20x takes the route users, which leads to users\n",
        ),
    ],
)
def test_explanation_says_how_the_request_gets_there(poolctl: Command, url: str, sentence: str) -> None:
    said = poolctl("routes", "explain", url)
    assert (said.code, sentence in said.out) == (0, True), said.out


@pytest.mark.usefixtures("routed")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a.example.org/", "GET a.example.org/ takes no route (404)"),
        ("http://a.example.org//shop", "read as /shop, as some backends do, it would match"),
        ("http://a.example.org/x%2f../shop", "is refused (400): backends differ in how they read its path"),
    ],
)
def test_url_without_a_route_is_4(poolctl: Command, url: str, message: str) -> None:
    said = poolctl("routes", "explain", url, "-v")
    assert (said.code, message in said.out + said.err) == (4, True), said


def test_explanation_asks_the_supervisor_for_the_table_in_force(
    poolctl: Command, supervised: Supervised
) -> None:
    in_force = Route(alias="live", to=(Target(server="users"),), headers=(Header(name="x", value="1"),))
    answer = always(generation=7, total=5000, routes=[in_force.to_json()])
    with supervised(answer) as requests:
        said = poolctl("routes", "explain", "h.example.com/%7Eu", "--header", "X: 1")
    assert said.out.splitlines()[0] == (
        "GET h.example.com/%7Eu takes the route live, which leads to users; the path is sent as /~u"
    )
    assert said.out.splitlines()[-1] == "and 4999 of other hosts"
    (body,) = [body for verb, body in requests if verb == "routes"]
    asked = {key: body["options"][key] for key in ("op", "host", "path")}
    assert asked == {"op": "explain", "host": "h.example.com", "path": "/~u"}


def test_explanation_says_where_a_route_redirects(poolctl: Command, supervised: Supervised) -> None:
    route = Route(alias="only", redirect=Redirect(to="https://new.test/", status=307))
    with supervised(always(total=1, routes=[route.to_json()])):
        said = poolctl("routes", "explain", "https://h.example.com/")
    sentence = "GET h.example.com/ takes the route only, which redirects to https://new.test/ (307)"
    assert said.out.splitlines()[0] == sentence


def test_explanation_that_the_supervisor_refuses_is_its_error(
    poolctl: Command, supervised: Supervised
) -> None:
    error = {"code": 6, "error": "ErrorMonitor", "message": "no table yet", "hint": ""}
    with supervised(always(errors=[error], exit_code=6)):
        said = poolctl("routes", "explain", "/")
    assert (said.code, said.out, "no table yet" in said.err) == (6, "", True)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["explian", "/"], "did you mean 'explain'?", ""),
        (["explain"], "routes explain: which URL?", "poolctl routes explain http://users.example.com/v1"),
        (["--method", "GET"], "--method and --header belong to `routes explain`", "routes explain URL --method POST"),
        (["--header", "x: 1"], "--method and --header belong to `routes explain`", "routes explain URL --method POST"),
        (["explain", "/", "--header", "x"], "--header: 'x' is not a header", "--header 'X-Beta: 1'"),
        (["explain", "/", "--header", " : x"], "--header: ' : x' is not a header", "--header 'X-Beta: 1'"),
        (["explain", "http://me@h/"], "has a user name", "leave it out"),
        (["explain", "ftp://h/"], "routes explain: 'ftp://h/' is not an HTTP URL", "http:// or https://"),
        (["explain", "http://h:80:9/"], "routes explain: 'h:80:9' is not HOST:PORT", "HOST:PORT, or [IPv6]:PORT"),
    ],
)  # fmt: skip
def test_wrong_words_are_usage_errors(poolctl: Command, words: list[str], message: str, hint: str) -> None:
    said = poolctl("routes", *words)
    assert (said.code, message in said.err, hint in said.err) == (2, True, True), said.err
