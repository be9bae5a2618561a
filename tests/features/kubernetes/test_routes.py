"""Routes on a cluster: HTTPRoutes or Ingresses, what is refused, and that the schemas accept each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import ServerConfig, Tables
from poolctl.config.model.section import keys_of, validated
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.features.kubernetes._objects import SharedSettings
from poolctl.features.kubernetes._routes import (
    HTTP_ROUTE_ONLY,
    ROUTE_IGNORED,
    ROUTE_MAPPED,
    ROUTE_UNSUPPORTED,
    CompiledRoutes,
    compile_routes,
)
from poolctl.features.kubernetes.table import Kubernetes
from tests.configuration import server
from tests.examples import examples

from .valid_objects import assert_valid

POOL = '[pool]\nname = "shop"\n[kubernetes]\nimage = "shop:1"\n'
GATEWAY, INGRESS = POOL + 'gateway = "infra/edge.v2"\n', POOL + 'ingress_class = "nginx"\n'
WEB = server("web", bind=":8000", app="web:app", tags=["front"])
USERS = server("users", bind=":8001", app="users:app", tags=["front"])
Object = dict[str, Any]


def route(**keys: Any) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {text(each)}" for key, each in value.items()) + " }"
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        return json.dumps(value)

    return "[[route]]\n" + "".join(f"{key} = {text(value)}\n" for key, value in keys.items())


@pytest.fixture
def export(poolctl: Any, directory: Path) -> Any:
    """`export(*tables, pool=GATEWAY)`: the objects of the routes by name, and the warnings."""

    def exported(*tables: str, pool: str = GATEWAY) -> tuple[dict[str, Object], str]:
        (directory / "pool.toml").write_text("\n".join((pool, WEB, USERS, *tables)))
        done = poolctl("export", "kubernetes", "-o", "json")
        assert done.code == 0, done.err
        found = {
            each["metadata"]["name"]: each
            for item in done.json["items"]
            for each in yaml.safe_load_all(item["text"])
            if each["kind"] in ("HTTPRoute", "Ingress")
        }
        for each in found.values():
            assert each["metadata"]["labels"]["poolctl.dev/pool"] == "shop"
        return found, done.err + "".join(poolctl("export", "kubernetes").err)

    return exported


def test_each_key_of_a_route_is_in_one_list() -> None:
    listed = Counter([*ROUTE_MAPPED, *HTTP_ROUTE_ONLY, *ROUTE_IGNORED, *ROUTE_UNSUPPORTED])
    listed.subtract(keys_of(RouteConfig))
    assert {key for key, count in listed.items() if count} == set(), "the lists in kubernetes/_routes.py"


def test_route_leads_to_the_services_of_its_servers(export: Any) -> None:
    found, _ = export(
        route(host="shop.example.com", path="/v1", to="tag:front"),
        route(alias="canary", headers={"X-Canary": "1"}, to=[{"to": "web", "weight": 9}], policy="weighted"),
    )
    spec = found["shop-front"]["spec"]
    assert spec["parentRefs"] == [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "infra", "name": "edge.v2"}
    ]
    assert spec["hostnames"] == ["shop.example.com"]
    (rule,) = spec["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    backends = [(each["name"], each["port"], each["weight"]) for each in rule["backendRefs"]]
    assert backends == [("web", 8000, 1), ("users", 8001, 1)]
    (rule,) = found["shop-canary"]["spec"]["rules"]
    assert "hostnames" not in found["shop-canary"]["spec"]
    (condition,) = rule["matches"]
    assert condition["headers"] == [{"type": "Exact", "name": "X-Canary", "value": "1"}]
    assert rule["backendRefs"][0]["weight"] == 9


def test_route_changes_requests_and_responses(export: Any) -> None:
    keys = {
        "set_headers": {"X-Tenant": "a"}, "add_headers": {"X-B": "b"}, "remove_headers": ["X-C", "X-C"],
        "response_headers": {"X-D": "d"}, "host_header": "web.internal", "strip_path": True,
        "timeouts": {"total": "90s"}, "methods": ["GET", "PUT"],
    }  # fmt: skip
    found, warnings = export(route(path="/v1", to="web", **keys))
    assert "timeouts" not in warnings
    one, other = found["shop-web"]["spec"]["rules"]
    assert [each["matches"][0]["method"] for each in (one, other)] == ["GET", "PUT"]
    assert [len(each["matches"]) for each in (one, other)] == [1, 1], (
        "a prefix is replaced in one match alone"
    )
    request, response, rewrite = one["filters"]
    assert request["requestHeaderModifier"] == {
        "set": [{"name": "X-Tenant", "value": "a"}],
        "add": [{"name": "X-B", "value": "b"}],
        "remove": ["X-C"],
    }
    assert response["responseHeaderModifier"] == {"set": [{"name": "X-D", "value": "d"}]}
    assert rewrite["urlRewrite"] == {
        "hostname": "web.internal",
        "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"},
    }
    assert one["timeouts"] == {"request": "1m30s"}


def test_redirect_to_https_is_for_the_listener_without_tls(export: Any) -> None:
    found, _ = export(
        route(host="a.example.com", redirect="https"),
        route(host="a.example.com", to="web"),
        route(host="b.example.com", to="users"),
        route(
            alias="moved",
            host="c.example.com",
            path="/old",
            strip_path=True,
            host_header="d.example.com",
            redirect={"to": "https://a.example.com/new", "status": 301},
        ),
    )
    (redirect,) = (name for name in found if name.startswith("shop-redirect-a-example-com-"))
    listeners = {name: each["spec"]["parentRefs"][0].get("sectionName") for name, each in found.items()}
    assert listeners == {redirect: "http", "shop-web": "https", "shop-users": None, "shop-moved": None}
    (rule,) = found[redirect]["spec"]["rules"]
    assert rule["filters"][0]["requestRedirect"] == {"statusCode": 308, "scheme": "https", "port": 443}
    assert "backendRefs" not in rule
    (rule,) = found["shop-moved"]["spec"]["rules"]
    (only,) = rule["filters"]
    assert only["requestRedirect"] == {
        "statusCode": 301,
        "scheme": "https",
        "hostname": "a.example.com",
        "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"},
    }


def test_labels_and_expose_of_a_server_are_routes(export: Any) -> None:
    shop = server("shop", bind=":8002", app="a:b", labels={"route.host": "s.example.com"})
    mail = server("mail", bind=":8003", app="a:b", expose="https://mail.example.com/in")
    found, warnings = export(route(to="web"), shop, mail)
    assert found["shop-shop"]["spec"]["hostnames"] == ["s.example.com"]
    spec = found["shop-mail"]["spec"]
    assert (spec["hostnames"], spec["rules"][0]["matches"][0]["path"]["value"]) == (
        ["mail.example.com"],
        "/in",
    )
    assert "labels" not in warnings


def test_labels_are_routes_only_where_the_pool_has_a_gateway(export: Any) -> None:
    shop = server("shop", bind=":8002", app="a:b", labels={"route.host": "s.example.com"})
    found, warnings = export(shop)
    assert (
        found,
        "labels: they have no effect: the pool has no gateway; add [gateway]" in warnings,
    ) == ({}, True)
    assert list(export(shop, "[gateway]\n")[0]) == ["shop-shop"]


def test_route_that_is_not_served_is_not_exported(export: Any) -> None:
    off = server("off", bind=":8002", app="a:b", disabled=True)
    mail = server("mail", bind=":8003", app="a:b", expose="https://mail.example.com/in")
    found, warnings = export(
        route(host="mail.example.com", path="/in", to="web"),
        route(alias="old", path="/old", to="off"),
        off,
        mail,
    )
    assert list(found) == ["shop-web"]
    assert "the route old is not exported: off is disabled" in warnings
    assert "the route mail is not exported: mail.example.com/in is taken by the route 'web'" in warnings


def test_ingress_has_the_class_the_host_and_the_path(export: Any) -> None:
    found, warnings = export(route(host="*.example.com", path="/v1", to="web"), pool=INGRESS)
    assert found["shop-web"]["spec"] == {
        "ingressClassName": "nginx",
        "rules": [
            {
                "host": "*.example.com",
                "http": {
                    "paths": [
                        {
                            "path": "/v1",
                            "pathType": "Prefix",
                            "backend": {"service": {"name": "web", "port": {"name": "http"}}},
                        }
                    ]
                },
            }
        ],
    }
    assert "host: an Ingress matches one label" in warnings


def test_without_a_gateway_routes_are_left_out_with_a_warning(export: Any) -> None:
    found, warnings = export(route(to="web", allow=["10.0.0.0/8"]), pool=POOL)
    assert found == {}
    assert "[route] is not exported: gateway or ingress_class in [kubernetes] says" in warnings


def test_what_a_route_serves_without_is_a_warning_at_its_place(export: Any) -> None:
    _, warnings = export(
        route(to="web", retries=1, policy="random-two", timeouts={"idle": "3s", "total": "9s"}),
        "[gateway]\n",
    )
    for words in (
        "route[0].retries: the cluster's gateway retries",
        "route[0].policy: the cluster's gateway chooses",
        "route[0].timeouts: idle: the cluster's gateway has limits of its own",
        "[gateway] is not exported: addresses, certificates",
    ):
        assert words in warnings
    assert re.search(r"pool.toml:\d+:\d+: route\[0\].retries", warnings)


REFUSALS: list[tuple[Object, str]] = [
    ({"sticky": "c"}, "sticky: no standard field"),
    ({"allow": ["10.0.0.0/8"]}, "allow: no standard field restricts"),
    ({"max_body_size": "1M"}, "max_body_size: no standard field limits a body"),
    ({"limit": {"per_client": {"concurrency": 3}}}, "limit: no standard field limits requests"),
    ({"backend_limit": {"concurrency": 3}}, "backend_limit: no standard field limits requests"),
    ({"policy": "ip-hash"}, "policy: no standard field chooses backends by ip-hash"),
    ({"register": True}, "register: a cluster's backends are Services"),
    ({"to": "http://10.0.0.7:9000"}, "to: http://10.0.0.7:9000 is not a Service"),
    ({"path": "/a//b"}, "path: no object of a cluster matches the path '/a//b'"),
    ({"host": "shop"}, "host: no object of a cluster matches the host 'shop'"),
    ({"host": "a*.example.com"}, "host: no object of a cluster matches"),
    ({"host": "10.0.0.1"}, "host: no object of a cluster matches"),
    ({"headers": {"X-A": ""}}, "headers: an HTTPRoute has no header X-A with this value"),
    ({"methods": ["PROPFIND"]}, "methods: an HTTPRoute has no method PROPFIND"),
    ({"set_headers": {"Authorization": "Bearer abcdefgh"}}, "set_headers: a value of it is a secret"),
    ({"set_headers": {"X-Key": "${TOKEN}"}}, "set_headers: a value of it is a secret"),
    ({"host_header": "web:81"}, "host_header: an HTTPRoute has no host"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "words"), REFUSALS, ids=[next(iter(keys)) for keys, _ in REFUSALS])
def test_what_traffic_or_safety_depends_on_is_refused_at_its_place(
    keys: Object, words: str, poolctl: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "very-secret-token")
    table = route(**{"to": ["web", "users"], **keys})
    (directory / "pool.toml").write_text("\n".join((GATEWAY, WEB, USERS, table)))
    done = poolctl("export", "kubernetes")
    assert (done.code, words in done.err) == (5, True), done.err
    assert re.search(r"pool.toml:\d+:\d+: route\[0\]", done.err)
    assert "very-secret-token" not in done.err + done.out


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            (GATEWAY, "[gateway]\nheader_for_host = 'X-Host'\n"),
            "header_for_host: a cluster's gateway routes by Host",
        ),
        ((INGRESS, route(to=["web", "users"])), "to: an Ingress leads to one Service"),
        ((INGRESS, route(to="web", strip_path=True, path="/v1")), "strip_path: an Ingress has no equal"),
        ((GATEWAY + 'ingress_class = "nginx"\n',), "ingress_class: routes go through gateway already"),
        ((POOL + 'gateway = "a/b/c"\n',), "gateway: no Gateway can be named 'a/b/c'"),
        ((POOL + 'gateway = "a.b/c"\n',), "gateway: no Gateway can be named 'a.b/c'"),
        ((POOL + 'ingress_class = "A_b"\n',), "ingress_class: no IngressClass can be named 'A_b'"),
    ],
)
def test_pool_whose_routes_no_cluster_has_is_refused(
    tables: tuple[str, ...], words: str, poolctl: Any, directory: Path
) -> None:
    pool, *others = tables
    (directory / "pool.toml").write_text("\n".join((pool, WEB, USERS, *others)))
    done = poolctl("export", "kubernetes")
    assert (done.code, words in done.err) == (5, True), done.err


headers = st.dictionaries(
    st.from_regex(r"X-[A-Z]{1,4}", fullmatch=True), st.sampled_from(["", "a", "b c"]), max_size=20
)
route_keys = st.fixed_dictionaries(
    {"path": st.sampled_from(["/", "/v1", "/a/b", "/%41", "/~u", "/[a]", "/a%2Fb"])},
    optional={
        "host": st.sampled_from(
            ["a.example.com", "*.example.com", "a_b.example.com", "a", "10.0.0.1", "[::1]"]
        ),
        "methods": st.lists(st.sampled_from(["GET", "POST", "PURGE"]), max_size=3).map(tuple),
        "headers": headers,
        "set_headers": headers,
        "add_headers": headers,
        "response_headers": headers,
        "remove_headers": st.lists(st.sampled_from(["X-A", "X-B"]), unique=True).map(tuple),
        "host_header": st.sampled_from(["web.internal", "web:80"]),
        "strip_path": st.booleans(),
        "timeouts": st.fixed_dictionaries({"total": st.floats(0, 1e8)}),
    },
)


def compiled(keys: Object, weights: Sequence[int] = (1,)) -> CompiledRoutes | None:
    """The objects of a route to servers of these weights; None if it is not valid."""
    findings: list[Any] = []
    to = [{"to": f"web-{number}", "weight": weight} for number, weight in enumerate(weights)]
    config = validated(RouteConfig, {**keys, "alias": "a", "to": to, "policy": "weighted"}, findings)
    if config is None or findings:
        return None
    servers = [
        ServerConfig(name=f"web-{number}", bind=f":{8000 + number}", app="a:b") for number in range(len(to))
    ]
    tables = Tables(gateway=GatewayConfig(bind=(":80",)), route=(config,))
    pool = SharedSettings("shop", Kubernetes(gateway="edge"))
    return compile_routes(servers, {server.name: server for server in servers}, tables, pool, 1)


@pytest.mark.slow
@given(keys=route_keys, weights=st.lists(st.integers(1, 1000), min_size=1, max_size=3))
@examples(200)
def test_every_route_that_is_not_refused_is_valid(keys: Object, weights: list[int]) -> None:
    routes = compiled(keys, weights)
    if routes is None or routes.problems:
        return
    (manifest,) = routes.routes
    assert_valid(manifest)
    for rule in manifest["spec"]["rules"]:
        rewrites = [each for each in rule.get("filters", ()) if "path" in each.get("urlRewrite", ())]
        assert not rewrites or len(rule["matches"]) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0001, "1ms"), (1.5, "1s500ms"), (3600.0, "1h"), (100_000.0, "27h46m40s")]
)
def test_time_limit_is_a_duration_of_the_gateway_api(seconds: float, text: str) -> None:
    routes = compiled({"timeouts": {"total": seconds}})
    assert routes is not None
    assert routes.routes[0]["spec"]["rules"][0]["timeouts"] == {"request": text}
