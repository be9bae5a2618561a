"""Any valid tables of the gateway: written down and read again they are the same, and so are their routes."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import Configuration, Section, escaped, load, table_text
from poolctl.features.gateway.routes import routes_of
from poolctl.features.gateway.table import MODES, GatewayConfig, RouteConfig, StreamConfig
from poolctl.json_form import from_json
from poolctl.routing.route import POLICIES, ExcludedRoute, Route, StreamRoute
from poolctl.routing.route_table import write_table
from poolctl.units import format_duration, format_size
from tests.configuration import server
from tests.examples import examples

WEB: dict[str, Any] = {"name": "web", "bind": "127.0.0.1:9001", "app": "hello:app", "tags": ["t"]}
SECONDS = st.integers(1, 10_000).map(float)
DURATIONS = SECONDS | SECONDS.map(format_duration)
NUMBERS = st.integers(0, 1000)
WORDS = st.text("abcxyz-_.", min_size=1, max_size=8)
HOSTS = st.sampled_from(
    ["", "a.example", "A.Example.", "*.example", "users", "a-*.example", "10.0.0.1", "[::1]"]
)
PATHS = st.lists(st.text("abc-_~", min_size=1, max_size=4), max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
VALUES = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), max_size=8)
HEADERS = st.dictionaries(st.sampled_from(["X-A", "accept", "Authorization"]), VALUES, max_size=2)
TARGETS = st.sampled_from(
    ["web", "tag:t", "http://b.example", "https://10.0.0.7:9000", "unix:/run/b.sock", "http://[::2]"]
)
STREAM_TARGETS = st.sampled_from(["web", "tag:t", "10.0.0.5:5432", "db.example:5432", "[::2]:53"])


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A table with any of these keys."""
    return st.fixed_dictionaries({}, optional=keys)


def targets(names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    one = names | st.fixed_dictionaries({"to": names}, optional={"weight": st.integers(1, 1000)})
    return one | st.lists(one, min_size=1, max_size=3)


def literals(kind: Any) -> st.SearchStrategy[str]:
    return st.sampled_from(kind.__args__)


TIMEOUTS = some(connect=DURATIONS, head=DURATIONS, idle=DURATIONS, total=DURATIONS)
LIMITS = some(burst=NUMBERS, queue_timeout=DURATIONS).flatmap(
    lambda table: st.fixed_dictionaries(
        {"concurrency": st.integers(1, 9), "queue": NUMBERS},
        optional={"requests_per_second": st.floats(0, 9)},
    ).map(lambda more: table | more)
)
BREAKERS = some(failures=NUMBERS, rate=st.floats(0, 1), window=DURATIONS, open_for=DURATIONS)
ROUTE_BREAKERS = some(statuses=st.lists(st.integers(400, 599), max_size=3), max_open=st.floats(0, 1))
LISTENERS = st.lists(
    st.sampled_from([":80", "127.0.0.1:81", {"bind": "[::1]:82"}, {"bind": ":443", "tls": {"cert": "c", "key": "k"}},
                     {"bind": ":444", "tls": [{"cert": "c"}, {"cert": "d", "min_version": "1.3"}]}]),
    min_size=1, max_size=3, unique_by=str,
)  # fmt: skip
GATEWAYS = some(
    bind=LISTENERS | st.just(":80"), header_for_host=st.just("X-Host"), traffic_re_enable=DURATIONS,
    trusted_proxies=st.sampled_from([[], ["10.0.0.0/8", "::1"], ["*"]]), head_timeout=DURATIONS,
    max_head_size=st.integers(4096, 10**6) | st.integers(4, 99).map(lambda n: format_size(n * 1024)),
    keep_alive=DURATIONS, drain_timeout=DURATIONS, access_log=st.booleans(), timeouts=TIMEOUTS,
    backend_limit=LIMITS, breaker=BREAKERS, max_connections=st.integers(1, 99), mode=st.sampled_from(["auto", "proxy"]),
)  # fmt: skip
ROUTES = st.fixed_dictionaries(
    {"to": targets(TARGETS), "mode": literals(MODES).filter(lambda mode: mode != "pass")},
    optional={
        "methods": st.lists(st.sampled_from(["GET", "POST"]), unique=True), "headers": HEADERS,
        "policy": st.sampled_from(POLICIES),
        "sticky": st.sampled_from(["", "c"]), "strip_path": st.booleans(), "host_header": st.sampled_from(["", "b:1"]),
        "allow": st.sampled_from([[], ["10.0.0.0/8", "::1"], ["*"]]),
        "add_headers": HEADERS, "set_headers": HEADERS, "response_headers": HEADERS,
        "remove_headers": st.lists(st.sampled_from(["X-A", "x_b"]), unique=True),
        "context_headers": st.booleans(), "retries": st.integers(0, 10),
        "max_body_size": st.integers(1, 10**9), "limit": LIMITS, "backend_limit": LIMITS, "timeouts": TIMEOUTS,
        "breaker": BREAKERS | ROUTE_BREAKERS, "waiting_page": st.booleans(),
        "probe_responses": st.lists(PATHS, max_size=2),
    },
)  # fmt: skip
STREAMS = st.fixed_dictionaries(
    {"to": targets(STREAM_TARGETS)},
    optional={
        "max_connections": NUMBERS,
        "accept_proxy_protocol": st.just(False),
        "timeouts": some(connect=DURATIONS, idle=DURATIONS),
        "breaker": BREAKERS,
    },
)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """The tables of a file; no two routes are for the same requests, no two streams at one address."""
    found: dict[str, Any] = {}
    if draw(st.booleans()):
        found["gateway"] = draw(GATEWAYS)
    places = draw(
        st.lists(st.tuples(HOSTS, PATHS), max_size=4, unique_by=lambda each: (_plain(each[0]), each[1]))
    )
    covered = any(host in ("*.example", "") for host, _ in places)
    places = [each for each in places if not (covered and each[0] == "a-*.example")]
    found["route"] = [
        draw(ROUTES) | {"alias": f"r{at}", "host": host, "path": path}
        for at, (host, path) in enumerate(places)
    ]
    found["stream"] = [
        draw(STREAMS) | {"alias": f"s{at}", "bind": f"127.0.0.1:{7000 + at}"}
        for at in range(draw(st.integers(0, 2)))
    ]
    return {name: table for name, table in found.items() if table != []}


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def toml(tables: dict[str, Any]) -> str:
    parts = []
    for name, table in tables.items():
        many = isinstance(table, list)
        for each in table if many else [table]:
            parts.append(table_text(f"[[{name}]]" if many else f"[{name}]", escaped(each)))
    return "\n".join([server(**WEB), *parts])


def as_json(tables: dict[str, Any]) -> str:
    return json.dumps({**escaped(tables), "server": [WEB]})


def loaded(text: str, name: str = "/pool/pool.toml") -> Configuration:
    config = load(name, {}, {name: text})
    assert [str(each) for each in config.problems] == []
    return config


@given(tables=files())
@examples(100)
def test_tables_survive_being_written_and_read_again(tables: dict[str, Any]) -> None:
    config = loaded(toml(tables))
    again = loaded(toml(config.tables.to_dict()))
    assert again.tables == config.tables
    assert again.tables.to_dict() == config.tables.to_dict()
    assert loaded(as_json(tables), "/pool/pool.json").tables == config.tables
    routes = routes_of(config, config.tables)
    assert routes_of(again, again.tables) == routes
    assert [each.alias for each in routes] == [
        each["alias"] for name in ("route", "stream") for each in tables.get(name, [])
    ]
    os.close(write_table([each for each in routes if isinstance(each, Route)], 1))
    for each in routes:
        assert not isinstance(each, ExcludedRoute)
        assert each.to
        kind = Route if isinstance(each, Route) else StreamRoute
        assert from_json(kind, each.to_json()) == each


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(
    ["web", "tag:t", "http://a", "http://[::1", "unix:", "*.a", "a*b.c", "/%zz", "/a/../b", "1s", ":80", "tcp://a:1"]
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["bind", "tls", "cert", "to", "weight", "connect"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
LABELS = st.dictionaries(
    st.sampled_from(
        ["route", "route.", "route..", "route.host", "route.to", "route.timeouts", "route.timeouts.head"]
    ),
    ANYTHING,
    max_size=3,
)


def anything_for(model: type[Section]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(sorted(model.keys_of)), ANYTHING, max_size=5)


@given(
    anything_for(GatewayConfig) | ANYTHING,
    st.lists(anything_for(RouteConfig), max_size=2) | ANYTHING,
    st.lists(anything_for(StreamConfig), max_size=2) | ANYTHING,
    LABELS,
)
@examples(100)
def test_anything_is_read_or_refused_with_its_place(
    gateway: Any, route: Any, stream: Any, labels: Any
) -> None:
    servers = [WEB | {"labels": labels}]
    text = json.dumps({"gateway": gateway, "route": route, "stream": stream, "server": servers})
    config = load("/pool/pool.json", {}, {"/pool/pool.json": text.replace("${", "$")})
    for problem in config.problems:
        assert str(problem).startswith("/pool/pool.json:1:")
    aliases = [each.alias for each in routes_of(config, config.tables) if isinstance(each, Route)]
    assert len(set(aliases)) == len(aliases)
