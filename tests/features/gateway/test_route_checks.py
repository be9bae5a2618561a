"""Routes that cannot be served as they are written: each with its place, the cause and the fix."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolctl.config import certificate_names
from poolctl.config.checks.certificate_checks import names_cover
from poolctl.features.gateway.route_checks import route_problems
from poolctl.features.gateway.routes import routes_of
from poolctl.routing.route import ExcludedRoute, Redirect, Route
from tests.certificates import certificate
from tests.config_files import load_text, told
from tests.configuration import server
from tests.steps import steps_of

pytestmark = pytest.mark.usefixtures("installed_haproxy")

WEB = server("web", bind="127.0.0.1:9001", app="a:b", tags=["api"])
JOB = server("migrate", job=True, command=["true"], tags=["once"])
QUEUE = server("queue", command=["celery"], tags=["background"])
PROGRAM = server("files", bind="127.0.0.1:9002", command=["x", "{fd}"])
TRUSTING = '[gateway]\ntrusted_proxies = ["10.0.0.1"]\n[[stream]]\nbind = ":53"\n'
SECURE = server("safe", bind="127.0.0.1:9003", app="a:b", tls={"cert": "c.pem"})


def route(**keys: object) -> str:
    """A [[route]] to `web`, or to the given target."""
    given = {name: value for name, value in {"to": "web", **keys}.items() if value is not None}
    lines = "".join(f"{line}\n" for line in server("x", **given).splitlines()[2:])
    return "[[route]]\n" + lines


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (route(to="wob"), "pool.toml:7:1: route[0].to: there is no server 'wob'; did you mean 'web'?"),
        (route(to=["web", "gone"]), "route[0].to[1]: there is no server 'gone'; name a server of this pool, or write"),
        (route(to="api"), "there is no server 'api'; 'api' is a tag: write \"tag:api\""),
        (route(to="tag:apis"), "no server has the tag 'apis'; did you mean \"tag:api\"?"),
        (route(to="tag:web"), "no server has the tag 'web'; 'web' is a server: write \"web\""),
        (route(to="tag:none"), "no server has the tag 'none'; give it to the servers that are meant"),
        (JOB + route(to="migrate"), "'migrate' is a job, which has no address; name a server that listens"),
        (JOB + route(to="tag:once"), "only jobs have the tag 'once'; give it to a server that listens"),
        (QUEUE + route(to="queue"), "'queue' is a program without a port, which has no address; name a server that"),
        (QUEUE + route(to="tag:background"), "only servers without an address have the tag 'background'; give it to"),
        (QUEUE + '[[stream]]\nbind = ":53"\nto = "queue"\n', "'queue' is a program without a port, which has no"),
        (route(to="http://127.0.0.1:8080"), "http://127.0.0.1:8080 is an address of the gateway itself; name a server"),
        ('[[stream]]\nbind = ":53"\nto = "wob"\n', "stream[0].to: there is no server 'wob'; did you mean 'web'?"),
        (route(to="10.0.0.5"), "no server '10.0.0.5'; if it is a host, write the port too: \"http://10.0.0.5:PORT\""),
        ('[[stream]]\nbind = ":53"\nto = "db.x"\n', "if it is a host, write the port too: \"db.x:PORT\""),
        ('[[stream]]\nbind = ":53"\nto = "gone"\n', "no server 'gone'; name a server of this pool, or write HOST:PORT"),
        ('[[stream]]\nbind = ":53"\nto = "localhost:53"\n', "localhost:53 is an address of the gateway itself"),
        (
            '[[stream]]\nbind = ":53"\nto = "1.2.3.4:5"\nbreaker = { statuses = [500] }\n',
            "stream[0].breaker.statuses: unknown key 'statuses'",
        ),
        (
            '[[stream]]\nbind = ":53"\nto = "1.2.3.4:5"\nbreaker = { max_open = 1.0 }\n',
            "stream[0].breaker.max_open: unknown key 'max_open'",
        ),
        (route(breaker={"statuses": [200]}), "route[0].breaker.statuses"),
        (route(to="web", health="/up"), "route[0].health: health probes targets outside the pool, and there is none"),
        (
            route(to=[{"to": "web", "health": "/up"}, "http://10.0.0.7:90"]),
            "route[0].to[0].health: web is probed as its own table says; write health in the table of the server",
        ),
        (
            route(to="http://10.0.0.7:90", health={"exec": ["true"]}),
            "route[0].health.exec: a target outside the pool is not probed by exec; allowed is http or tcp",
        ),
        (
            '[[stream]]\nbind = ":53"\nto = "1.2.3.4:5"\nhealth = { http = "/up" }\n',
            "stream[0].health.http: a stream is not probed by http; allowed is tcp",
        ),
        (
            route(to=[{"to": "http://10.0.0.7:90", "health": {"exec": ["true"]}}]),
            "route[0].to[0].health.exec: a target outside the pool is not probed by exec; allowed is http or tcp",
        ),
        (
            route(to=[{"to": "http://10.0.0.7:90", "health": "/a"}, {"to": "http://10.0.0.7:90", "health": "/b"}]),
            "route[0].to[1].health: http://10.0.0.7:90 is probed in another way by an earlier target; write the",
        ),
        (
            route(to="http://10.0.0.7:90", health="/a")
            + route(alias="b", path="/b", to="http://10.0.0.7:90", health="/b"),
            "route[1].health: http://10.0.0.7:90 is probed in another way by an earlier target",
        ),
        (route(add_headers={"Content-Length": "5"}), "the gateway itself sets the header Content-Length; take it out"),
        (route(add_headers={"host": "a"}), "the gateway itself sets the header host; write host_header"),
        (route(backend_limit={"queue": 5}), "backend_limit.queue: a queue without a limit is never used; add conc"),
        (route(limit={"per_client": {"burst": 5}}), "per_client.burst: a burst without a rate has no effect; add req"),
        (route(backend_limit={"per_client": {"concurrency": 5}}), "backend_limit.per_client: unknown key 'per_client'"),
        (
            route() + '[gateway]\nbind = [{ bind = ":80", accept_proxy_protocol = true }]\n',
            "gateway.bind[0].accept_proxy_protocol: no proxy is trusted, so that no connection may begin",
        ),
        (
            route() + '[gateway]\nbind = [{ bind = ":80", accept_proxy_protocol = true }]\n',
            'may begin with the PROXY protocol; add trusted_proxies = ["10.0.0.0/8"] to [gateway]',
        ),
        (
            route() + '[gateway]\nbind = [{ bind = "unix:g", accept_proxy_protocol = true }]\n',
            "the PROXY protocol is not accepted on a Unix socket; take it out, and let the proxy send X-Forwarded-For",
        ),
        (
            '[[stream]]\nbind = ":53"\nto = "1.2.3.4:5"\naccept_proxy_protocol = true\n',
            "stream[0].accept_proxy_protocol: no proxy is trusted",
        ),
        (
            '[gateway]\nbind = [{ bind = ":80", mode = "0660" }]\n' + route(),
            "gateway.bind[0].mode: mode is for the file of a Unix socket, and the address is 0.0.0.0:80; take it out",
        ),
        (
            '[[stream]]\nbind = "unix:s"\nto = "1.2.3.4:5"\nowner = "a b"\n',
            "stream[0].owner: 'a b' is not name[:group]; write",
        ),
        (route(sticky={"same_site": "none"}), "sticky.same_site: browsers refuse a cookie with same_site = none that"),
        (route(breaker={"window": "0.5s"}), "breaker.window: failures are counted once a second; write window"),
        (route(limit={"queue": 5, "concurrency": 1}), "route[0].limit.queue: unknown key 'queue'"),
        (route(backend_limit={"burst": 1}), "route[0].backend_limit.burst: unknown key 'burst'"),
        (route(mode="http"), "'mode' is a key of another tool; take it out: a [[route]] is HTTP, a [[stream]] TCP"),
        ('[gateway]\nmode = "http"\n' + route(), "gateway.mode: 'mode' is a key of another tool; take it out"),
        (route(to=None, redirect="/login"), "redirect: the route redirects /login to itself for ever; add a route"),
        (route(to=None, redirect="//evil"), 'allowed is "https", "https://HOST", "https://HOST/PATH" or "/PATH"'),
        (route(set_headers={"Host": "a"}), "the gateway itself sets the header Host; write host_header"),
        (route(set_headers={"content_length": "5"}), "the gateway itself sets the header content_length; take it out"),
        (route(remove_headers=["X-A", "Transfer-Encoding"]), "remove_headers[1]: the gateway itself sets the header"),
        (route(remove_headers=["Proxy-Authorization"]), "the gateway itself sets the header Proxy-Authorization"),
        (route(response_headers={"Connection": "close"}), "the gateway itself sets the header Connection; take it out"),
        (route(response_headers={"Set-Cookie": "a=b"}), "it would replace every cookie that the application sets; set"),
        (route(set_headers={"X-A": "a\r\nX-B: b"}), "route[0].set_headers.X-A: "),
        (route(response_headers={"X-A": "a\nb"}), "route[0].response_headers.X-A: "),
        (route(set_headers={"X A": "a"}), "route[0].set_headers.X A: "),
        (route(remove_headers=["X-A: b"]), "route[0].remove_headers[0]: "),
    ],
)  # fmt: skip
def test_target_that_does_not_exist_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    found = told(tmp_path, WEB + text)
    assert problem in found
    assert "\n" not in found


def test_server_with_problems_of_its_own_is_no_unknown_target(tmp_path: Path) -> None:
    bad = server("bad", bind="nowhere", app="a:b", tags=["broken"])
    defaults = '[defaults]\ntags = ["shared"]\n'
    found = told(tmp_path, defaults + WEB + bad + route(to=["bad", "tag:broken", "tag:api", "tag:shared"]))
    assert "server[1].bind" in found
    assert "\n" not in found
    assert "has the tag 'shared'" in told(tmp_path, defaults + WEB + route(to="tag:shared")), (
        "all servers are valid"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            route() + route(path="/v1"),
            "route[1].alias: it is called 'web' after its first target, and so is route[0]; give it a name of its own",
        ),
        (
            server("b", bind=":2", app="a:b", labels={"route.alias": "web"}) + route(host="c"),
            "server[1].labels.route.alias: the alias 'web' is taken by route[0]; add another label route.alias",
        ),
        (
            '[[stream]]\nbind = ":1"\nto = "web"\n[[stream]]\nbind = ":2"\nto = "web"\n',
            "stream[1]: it is called 'web' after its first target, and so is stream[0]",
        ),
    ],
)
def test_alias_is_given_once(tmp_path: Path, text: str, problem: str) -> None:
    found = told(tmp_path, WEB + text)
    assert problem.replace("stream[1]:", "stream[1].alias:") in found


SAME = "never reached: route[0] has the same host and path, and takes its requests"


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({}, {}, f"route[1]: {SAME}"),
        ({"host": "A.example"}, {"host": "a.example."}, f"route[1].host: {SAME}"),
        ({"path": "/v1/"}, {"path": "/v1"}, f"route[1].path: {SAME}"),
        ({"methods": ["GET", "POST"]}, {"methods": ["GET"]}, SAME),
        ({"headers": {"X-A": ""}}, {"headers": {"x-a": "1"}}, SAME),
        ({"host": "*.a.example"}, {"host": "b-*.a.example"}, "the host '*.a.example' of route[0] comes first"),
        ({"host": "b"}, {"host": "b.a-*.example", "path": "/v1"}, "the host 'b' of route[0] comes first"),
        ({"host": "*.a.example", "path": "/v1"}, {"host": "b-*.a.example", "path": "/v1/x"}, "of route[0] comes first"),
        # Each of these has requests of its own.
        ({}, {"path": "/v1"}, ""),
        ({}, {"host": "a.example"}, ""),
        ({"host": "*.example"}, {"host": "a.example"}, ""),
        ({"host": "*.a.example"}, {"host": "*.example"}, ""),
        ({"host": "*.a.example", "path": "/v1"}, {"host": "b-*.a.example"}, ""),
        ({"host": "*.a.example", "path": "/v1"}, {"host": "b-*.a.example", "path": "/v10"}, ""),
        ({"host": "*.a.example", "methods": ["GET"]}, {"host": "b-*.a.example"}, ""),
        ({"methods": ["GET"]}, {}, ""),
        ({}, {"methods": ["GET"]}, ""),  # conditions come first
        ({"methods": ["GET"]}, {"methods": ["GET", "POST"]}, ""),
        ({"headers": {"X-A": "1"}}, {"headers": {"X-A": "2"}}, ""),
        ({"headers": {"X-A": "1"}}, {"headers": {"X-A": "1", "X-B": ""}}, ""),
        # Requests without TLS, and those with it.
        ({"redirect": "https", "to": None}, {}, ""),
        ({}, {"redirect": "https", "to": None}, ""),
        ({"redirect": "https", "to": None}, {"redirect": "https", "to": None}, SAME),
        ({"redirect": "https://b", "to": None}, {}, SAME),
    ],
)  # fmt: skip
def test_route_without_a_request_of_its_own_is_a_problem(
    tmp_path: Path, first: dict[str, object], second: dict[str, object], problem: str
) -> None:
    found = told(tmp_path, WEB + route(alias="a", **first) + route(alias="b", **second))
    assert problem in found
    assert bool(problem) == bool(found)
    assert "comes first" not in found or found.endswith("; write the host out, or give the other one a path")
    assert "\n" not in found


def test_route_of_disabled_servers_leaves_its_place_to_another(tmp_path: Path) -> None:
    blue = server("blue", bind=":2", app="a:b", disabled=True, labels={"route.host": "a.example"})
    green = server("green", bind=":3", app="a:b", labels={"route.host": "a.example"})
    assert told(tmp_path, "[gateway]\n" + blue + green) == ""
    assert "never reached" in told(tmp_path, "[gateway]\n" + blue.replace("true", "false") + green)
    both = server("blue", bind=":2", app="a:b", disabled=True, expose="https://a.example")
    both += server("green", bind=":3", app="a:b", expose="https://a.example")
    config = load_text(tmp_path, "[gateway]\n" + both)
    assert [(each.alias, type(each)) for each in routes_of(config, config.tables)] == [
        ("blue", ExcludedRoute), ("green", Route),
    ]  # fmt: skip


def test_labels_that_repeat_a_route_are_a_problem_of_the_server(tmp_path: Path) -> None:
    text = route(host="a.example") + server("b", bind=":2", app="a:b", labels={"route.host": "a.example"})
    found = told(tmp_path, WEB + text)
    assert f"server[1].labels.route.host: {SAME}" in found


@pytest.mark.parametrize(
    ("keys", "served"),
    [
        ({"to": "safe", "host": "a.example"}, True),
        ({"to": "safe", "host": "a.example", "path": "/v1"}, False),
        ({"to": "safe", "host": "a.example", "methods": ["GET"]}, False),
        ({"to": "safe", "host": "a.example", "probe_responses": ["/up"]}, False),
        ({"to": "safe"}, False),
        ({"to": "web", "host": "a.example"}, False),
        ({"to": "http://b", "host": "a.example"}, False),
    ],
)
def test_gateway_without_a_certificate_serves_only_hosts_of_servers_with_tls(
    tmp_path: Path, keys: dict[str, object], served: bool
) -> None:
    text = '[gateway]\nbind = { bind = ":443", tls = true }\n' + WEB + SECURE
    found = told(tmp_path, text + route(**keys))
    assert ("no listener can serve it" in found) != served
    with_plain = text.replace("bind = {", 'bind = [":80", {', 1).replace("true }", "true }]")
    assert "no listener" not in told(tmp_path, with_plain + route(**keys))


def test_label_of_another_server_is_named_by_its_server(tmp_path: Path) -> None:
    text = server("a", bind=":2", app="a:b", labels={"route.host": "x.example"})
    text += server("b", bind=":3", app="a:b", labels={"route.host": "x.example"})
    found = told(tmp_path, f"[gateway]\n{WEB}{text}")
    problem = "never reached: the route in the labels of 'a' has the same host and path"
    assert f"server[2].labels.route.host: {problem}" in found


def test_program_that_is_missing_is_a_problem_of_what_needs_it(machine: Path) -> None:
    missing = f"{machine}/sbin/haproxy is not installed"
    stream = '[[stream]]\nbind = ":53"\nto = "1.2.3.4:5"\n'
    proxied = server("p", bind=":3", command=["x", "{port}"], socket="proxied")
    web = WEB.replace("a:b", "os:path")
    for text, place in (
        ('[gateway]\nprogram = "/no/other"\n' + stream, "gateway.program: /no/other is not installed"),
        ("[gateway]\nthreads = 2\n" + stream, f"gateway: {missing}"),
        (proxied + stream + route(), f"route[0]: {missing}"),
        (proxied + stream, f"stream[0]: {missing}"),
        (proxied, f"server[1].socket: {missing}"),
    ):
        config = load_text(machine, web + text)
        assert config.problems == []
        (problem,) = map(str, config.startup_problems())
        assert place in problem
    assert load_text(machine, web).startup_problems() == []


def test_program_is_needed_where_the_gateway_runs_and_nowhere_else(tmp_path: Path) -> None:
    config = load_text(tmp_path, WEB + '[gateway]\nprogram = "/no/haproxy"\n')
    (problem,) = map(str, config.check_external())
    assert "gateway.program: /no/haproxy is not installed; " in problem
    assert "apt install haproxy (2.8 or newer; " in problem
    assert config.check_external(names=["web"]) == []  # a container that runs one server


def test_limit_that_haproxy_lacks_is_a_problem_where_haproxy_serves(tmp_path: Path) -> None:
    total = {"total": "9s"}
    labelled = server("b", bind=":2", app="os:path", labels={"route.host": "b", "route.timeouts.total": "8s"})
    web = WEB.replace("a:b", "os:path")
    text = web + '[gateway]\ntimeouts.total = "7s"\n' + route() + route(path="/a", alias="a", timeouts=total)
    config = load_text(tmp_path, text + labelled)
    assert config.problems == []
    found = [str(each).partition("pool.toml:")[2].partition(" ")[2] for each in config.check_external()]
    request = (
        "HAProxy has no limit for a whole request; take it out: head and idle limit the time without data"
    )
    assert found == [
        f"gateway.timeouts.total: {request}",
        f"route[1].timeouts.total: {request}",
        f"server[1].labels.route.timeouts.total: {request}",
    ]


def test_limits_that_haproxy_joins_are_a_warning(tmp_path: Path) -> None:
    (warning,) = warned(tmp_path, WEB + route(timeouts={"head": "5m"}))
    joined = "timeouts.head: HAProxy has one limit for head and idle, and head is the longer one"
    assert f'route[0].{joined}; write idle = "5m" as well' in warning
    assert warned(tmp_path, WEB + route(timeouts={"head": "5m", "idle": "5m"})) == []
    (warning,) = warned(tmp_path, WEB + "[gateway]\ntimeouts.head = 0\n" + route())
    assert f'gateway.{joined}; write idle = "0s" as well' in warning


def test_several_threads_are_a_warning_where_requests_are_limited(tmp_path: Path) -> None:
    text = WEB + "[gateway]\nthreads = 2\n"
    (warning,) = warned(tmp_path, text + route(limit={"per_client": {"requests_per_second": 1}}))
    assert "gateway.threads: with several threads the limits of requests are approximate" in warning
    assert warned(tmp_path, text + route()) == []
    assert "threads: 65 is not allowed here; allowed is at most 64" in told(tmp_path, text.replace("2", "65"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may choose the user")
def test_user_of_the_gateway_exists_and_is_not_root(tmp_path: Path) -> None:
    def outside(user: str, of_server: str = "daemon") -> list[str]:
        server = WEB.replace("a:b", "os:path") + f'user = "{of_server}"\n'
        text = f'{server}[gateway]\nuser = "{user}"\n' + route()
        config = load_text(tmp_path, text)
        assert config.problems == []
        return [
            str(each).partition("gateway.user: ")[2] for each in (*config.check_external(), *config.warnings)
        ]

    assert outside("nobody") == []
    assert outside("no-such-user") == ["there is no user 'no-such-user'; create it, or name another"]
    (warning,) = outside("root")
    assert warning.startswith("HAProxy, which every client reaches, runs with the rights of root")
    (warning,) = outside("nobody", of_server="nobody:daemon")
    assert warning.startswith(
        "HAProxy shares the user 'nobody' with web: they are not isolated from each other"
    )
    assert "gateway.user: 'a b' is not name[:group]" in told(tmp_path, WEB + '[gateway]\nuser = "a b"\n')


def test_redirect_to_a_path_that_another_route_serves_is_accepted(tmp_path: Path) -> None:
    text = WEB + route(to=None, redirect="/app/?from=/") + route(path="/app")
    config = load_text(tmp_path, text)
    assert config.problems == []
    (redirecting, _) = routes_of(config, config.tables)
    assert isinstance(redirecting, Route)
    assert redirecting.redirect == Redirect(to="/app/?from=/")


def test_owner_of_a_socket_that_does_not_exist_is_a_problem_at_its_place(tmp_path: Path) -> None:
    text = '[gateway]\nbind = [":80", { bind = "unix:g", owner = "no-such-user" }]\n' + route()
    text += '[[stream]]\nbind = "unix:s"\nto = "1.2.3.4:5"\nowner = "root:no-such-group"\n'
    gateway, stream = map(str, load_text(tmp_path, WEB + text).check_external())
    assert "gateway.bind[1].owner: there is no user 'no-such-user'; create it, or name another" in gateway
    assert "stream[0].owner: there is no group 'no-such-group'; create it, or name another" in stream


@pytest.mark.parametrize(("count", "more"), [(3, ""), (4, " and 1 more host"), (5, " and 2 more hosts")])
def test_hosts_without_a_certificate_are_named_up_to_three(tmp_path: Path, count: int, more: str) -> None:
    certificate(tmp_path, "a.example")
    text = '[gateway]\nbind = { bind = ":443", tls = { cert = "a.example.pem", key = "a.example.key" } }\n'
    text += "".join(route(alias=f"r{at}", host=f"h{at}.example") for at in range(count))
    config = load_text(tmp_path, WEB + text)
    config.check_external()
    (warning,) = map(str, config.warnings)
    hosts = "h0.example, h1.example, h2.example"
    assert (
        f":443 has no certificate for {hosts}{more}: its names are a.example, 127.0.0.1; add one" in warning
    )


def test_certificate_that_expires_soon_is_a_warning_at_its_place(tmp_path: Path) -> None:
    certificate(tmp_path, "a.example", days=3)
    text = '[gateway]\nbind = [":80", { bind = ":443", tls = { cert = "a.example.pem", key = "a.example.key" } }]\n'
    config = load_text(tmp_path, WEB + text + route())
    assert config.check_external() == []
    (warning,) = map(str, config.warnings)
    assert "gateway.bind[1].tls" in warning
    assert "the certificate expires on" in warning


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"route.hots": "a"}, "labels.route.hots: unknown key 'hots'; did you mean 'host'?"),
        ({"route.host": "a:80"}, "labels.route.host: 'a:80' has a port"),
        ({"route.to": "x"}, "labels.route.to: the route of a server leads to that server; take it out"),
        ({"route.timeouts.head": "soon"}, "labels.route.timeouts.head: 'soon' is not a duration"),
        ({"route.strip_path": "perhaps"}, "labels.route.strip_path"),
    ],
)
def test_label_that_is_wrong_is_a_problem_of_its_server(
    tmp_path: Path, labels: dict[str, str], problem: str
) -> None:
    found = told(tmp_path, "[gateway]\n" + server("a", bind=":2", app="a:b", labels=labels))
    assert f"server[0].{problem}" in found
    assert "\n" not in found


def test_labels_may_be_written_as_tables(tmp_path: Path) -> None:
    head = '[gateway]\n[[server]]\nname = "a"\nbind = ":2"\napp = "a:b"\n'
    config = load_text(
        tmp_path, head + 'labels = { team = "x", route = { host = "a.example", timeouts.head = "1s" } }\n'
    )
    assert config.problems == []
    assert dict(config[0].labels) == {"team": "x", "route.host": "a.example", "route.timeouts.head": "1s"}
    found = told(tmp_path, head + 'labels.team = "x"\nlabels.route.path = "/"\nlabels.route.host = "a:1"\n')
    assert "pool.toml:8:14: server[0].labels.route.host: 'a:1' has a port" in found


def warned(directory: Path, text: str) -> list[str]:
    config = load_text(directory, text)
    assert config.problems == []
    return [str(each).rpartition("pool.toml:")[2] for each in config.warnings]


@pytest.mark.parametrize(
    ("path", "strip", "count"), [("/api", False, 1), ("/api", True, 0), ("/other", False, 0), ("/", False, 0)]
)
def test_root_path_that_the_route_passes_on_is_a_warning(
    tmp_path: Path, path: str, strip: bool, count: int
) -> None:
    text = server("api", bind=":1", app="a:b", http={"root_path": "/api"})
    found = warned(tmp_path, "[gateway]\n" + text + route(to="api", path=path, strip_path=strip))
    assert len(found) == count
    assert all("the app gets /api/api/…; take it out, and add strip_path = true" in each for each in found)


def test_challenge_route_that_the_route_of_a_host_hides_is_a_warning(tmp_path: Path) -> None:
    shop = route(alias="shop", host="shop.example.com", to="web")
    challenges = "/.well-known/acme-challenge"
    (warning,) = warned(tmp_path, WEB + shop + route(alias="acme", path=challenges, to="web"))
    assert 'challenges for shop.example.com go to its application; add host = "shop.example.com"' in warning
    own = route(alias="acme", host="shop.example.com", path=challenges, to="web")
    assert warned(tmp_path, WEB + shop + own) == []
    elsewhere = route(alias="shop", host="shop.example.com", path="/shop", to="web")
    assert warned(tmp_path, WEB + elsewhere + route(alias="acme", path=challenges, to="web")) == []


def test_route_to_disabled_servers_is_a_warning(tmp_path: Path) -> None:
    text = server("off", bind=":1", app="a:b", disabled=True) + route(to="off")
    (warning,) = warned(tmp_path, WEB + text)
    assert warning.endswith(
        "route[0].to: the route 'off' is not served: off is disabled; enable a server, or name another target"
    )


def test_unknown_target_is_a_problem_alone(tmp_path: Path) -> None:
    text = WEB + route(to="gone", path="/a") + route(to="gone", path="/b")
    found = told(tmp_path, text)
    assert (found.count("there is no server 'gone'"), found.count("\n")) == (2, 1)
    assert load_text(tmp_path, text).warnings == []


def test_problem_of_a_stream_has_no_consequence_for_the_gateway(tmp_path: Path) -> None:
    found = told(tmp_path, WEB + '[[stream]]\nbind = ":53"\nto = "1.2.3.4:5"\nprotocol = "http"\n')
    assert "stream[0].protocol" in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            {"path": "/v1", "probe_responses": ["/v1/up", "/up"]},
            "route[0].probe_responses[1]: /up is outside the route's path /v1; write a path under /v1, or move it",
        ),
        ({"path": "/v1/*"}, 'route[0].path: * in /v1/* stands for itself: the path is a prefix; write "/v1"'),
    ],
)  # fmt: skip
def test_key_that_does_not_do_what_it_seems_to_is_a_warning(
    tmp_path: Path, keys: dict[str, object], warning: str
) -> None:
    sleeper = server("sleeper", bind=":3", app="a:b", scale={"min": 0, "idle": 5})
    (found,) = warned(tmp_path, "[gateway]\n" + sleeper + route(to="sleeper", **keys))
    assert warning in found


@pytest.mark.parametrize(
    ("target", "warns"),
    [
        ({"to": "https://10.0.0.9:8443"}, True),
        ({"to": "https://[::9]:8443"}, True),
        ({"to": "https://10.0.0.9", "sni": "billing.internal"}, False),
        ({"to": "https://10.0.0.9", "verify": False}, False),
        ({"to": "https://billing.internal"}, False),
        ({"to": "http://10.0.0.9"}, False),
    ],
)
def test_target_whose_certificate_is_verified_for_an_address_is_a_warning(
    tmp_path: Path, target: dict[str, object], *, warns: bool
) -> None:
    found = warned(tmp_path, "[gateway]\n" + route(to=target))
    assert [each.partition("; ")[2] for each in found] == [
        'write sni = "NAME", a name in the certificate'
    ] * warns


@pytest.mark.parametrize("key", ["waiting_page", "probe_responses"])
def test_key_for_sleeping_servers_without_one_is_a_warning(tmp_path: Path, key: str) -> None:
    value = True if key == "waiting_page" else ["/up"]
    (found,) = warned(tmp_path, WEB + route(to=["web", "http://a:80"], **{key: value}))
    assert f"route[0].{key}: {key} has no effect: no server of the route may sleep" in found


def test_label_of_a_route_without_a_gateway_is_a_warning(tmp_path: Path) -> None:
    text = server("a", bind=":2", app="a:b", labels={"route.host": "a", "x": "y"})
    (warning,) = warned(tmp_path, text)
    problem = "labels.route.host: the label has no effect: the pool has no gateway"
    assert warning.endswith(f"{problem}; add [gateway], or take the label out")
    assert warned(tmp_path, "[gateway]\n" + text) == []


def test_gateway_without_a_route_is_a_warning(tmp_path: Path) -> None:
    web = server("a", bind=":2", app="a:b")
    (warning,) = warned(tmp_path, "[gateway]\n" + web)
    message = "gateway: the gateway has no route, so that every request gets 404"
    assert warning.endswith(f'{message}; add a [[route]] with to = "NAME", or take [gateway] out')
    assert warned(tmp_path, "[gateway]\nbind = []\n[[stream]]\nbind = ':5'\nto = 'a'\n" + web) == []
    assert warned(tmp_path, "[gateway]\n" + route(to="a") + web) == []


def test_certificate_has_to_be_for_the_hosts_of_the_routes(tmp_path: Path) -> None:
    certificate(tmp_path, "a.example")
    certificate(tmp_path, "*.b.example")
    text = (
        '[gateway]\nbind = { bind = ":443", tls = [{ cert = "a.example.pem", key = "a.example.key" },\n'
        '  { cert = "*.b.example.pem", key = "*.b.example.key" }] }\n'
    )
    hosts = [
        "a.example",
        "x.b.example",
        "*.b.example",
        "b.example",
        "x.y.b.example",
        "*.a.example",
        "label",
        "",
    ]
    text += "".join(route(alias=f"r{at}", host=host) for at, host in enumerate(hosts))
    config = load_text(tmp_path, WEB + text)
    assert (config.problems, config.check_external()) == ([], [])
    (found,) = map(str, config.warnings)
    assert (
        "route[3].host: :443 has no certificate for b.example, x.y.b.example, *.a.example: "
        "its names are a.example, 127.0.0.1, *.b.ex"
    ) in found
    assert found.endswith("add one to the list of its tls")


def test_many_hosts_without_a_certificate_are_one_warning(tmp_path: Path) -> None:
    certificate(tmp_path, "a.example")
    text = '[gateway]\nbind = { bind = ":443", tls = { cert = "a.example.pem", key = "a.example.key" } }\n'
    text += "".join(route(alias=f"r{at}", host=f"h{at}.example") for at in range(100))
    config = load_text(tmp_path, WEB + text)
    assert (config.problems, config.check_external()) == ([], [])
    (warning,) = map(str, config.warnings)
    assert ":443 has no certificate for h0.example, h1.example, h2.example and 97 more hosts: its" in warning


def test_certificate_that_cannot_be_used_is_a_problem(tmp_path: Path) -> None:
    certificate(tmp_path, "a.example")
    text = '[gateway]\nbind = { bind = ":443", tls = { cert = "a.example.pem", key = "other.key" } }\n'
    (problem,) = load_text(tmp_path, WEB + text).check_external()
    assert "gateway.bind.tls.key" in str(problem)
    assert "other.key" in str(problem)


def test_names_of_a_certificate_are_read(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path, "a.example")
    assert certificate_names(cert.read_text()) == ["a.example", "127.0.0.1"]
    assert certificate_names("no certificate") == []


@pytest.mark.parametrize(
    ("name", "host", "covered"),
    [
        ("a.example", "a.example", True),
        ("*.example", "a.example", True),
        ("*.example", "*.example", True),
        ("*.example", "b.a.example", False),
        ("*.example", "example", False),
        ("a.example", "*.example", False),
        ("[::1]", "[::1]", True),
    ],
)
def test_wildcard_stands_for_one_label(name: str, host: str, covered: bool) -> None:
    assert names_cover([name], host) == covered


@pytest.mark.slow
def test_checks_of_twice_as_many_routes_take_twice_the_steps(tmp_path: Path) -> None:
    def steps(count: int) -> int:
        each = (route(alias=f"r{n}", host=f"h{n}", to=f"http://10.0.0.1:{n + 1}") for n in range(count))
        config = load_text(tmp_path, "".join(each))
        assert not config.problems
        return steps_of(lambda: list(route_problems(list(config), config.tables)))

    steps(1)  # imports
    assert steps(400) < 2.2 * steps(200)
