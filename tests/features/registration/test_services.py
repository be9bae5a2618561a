"""Which registered services get requests, by an injected clock."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import Finding, ServerConfig, Tables, json_schema
from poolctl.features.gateway.routes import routes_of
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.features.registration._services import (
    FORGOTTEN_SECONDS,
    Registered,
    RegistrationRefused,
    RegistrationRequest,
    Registrations,
    registration_of,
    with_registrations,
)
from poolctl.routing.route import ExcludedRoute, Route, Target
from poolctl.routing.route_health import RouteHealth
from poolctl.routing.route_report import RegisteredServiceReport
from tests.config_files import told
from tests.manual_clock import ManualClock

URL = "http://10.0.0.7:9000"


def settings(name: str = "users", to: str = URL, **keys: Any) -> RegistrationRequest:
    found = registration_of({"name": name, "to": to, **keys}, [])
    assert found is not None
    return found


class Stage:
    def __init__(self, most: int = 10) -> None:
        self.clock = ManualClock()
        self.services = Registrations(self.clock, most)

    def register(self, **keys: Any) -> str:
        return self.services.register(settings(**keys))[1]

    @property
    def serving(self) -> list[str]:
        return [each.to for each, is_serving in self.services.backends() if is_serving]

    def pass_time(self, seconds: float) -> tuple[list[str], list[str]]:
        self.clock.advance(seconds)
        silent, forgotten = self.services.expire()
        return [each.settings.to for each in silent], [each.settings.to for each in forgotten]


def test_service_is_silent_when_its_time_to_live_has_passed_and_a_heartbeat_renews_it() -> None:
    stage = Stage()
    assert stage.register(ttl=30) == "registered"
    assert stage.pass_time(29) == ([], [])
    assert stage.register(ttl=30) == "refreshed"
    assert stage.pass_time(29.9) == ([], [])
    assert stage.serving == [URL]
    assert stage.pass_time(0.2) == ([URL], [])
    assert stage.serving == []
    assert stage.register(ttl=30) == "recovered"
    assert stage.serving == [URL]
    assert stage.pass_time(31) == ([URL], [])
    assert stage.pass_time(FORGOTTEN_SECONDS - 1) == ([], [])
    assert stage.pass_time(1) == ([], [URL])
    assert (len(stage.services), stage.services.due, stage.services.names) == (0, math.inf, [])


def test_service_without_a_time_to_live_stays_until_it_is_unregistered() -> None:
    stage = Stage()
    stage.register()
    assert stage.services.due == math.inf
    assert stage.register(ttl=5) == "changed"
    assert stage.register() == "changed"
    assert stage.pass_time(1e6) == ([], [])
    (service,) = stage.services.of("users")
    stage.services.remove(service)
    assert (len(stage.services), stage.services.of("users")) == (0, [])


def test_each_service_has_the_deadline_of_its_last_heartbeat_after_thousands() -> None:
    stage = Stage()
    for number in range(1000):
        stage.register(ttl=30 if number % 2 else 20)
        stage.register(to="http://10.0.0.8:9000", ttl=30)
        stage.pass_time(0.1)
    assert stage.pass_time(31) == ([URL, "http://10.0.0.8:9000"], [])


@pytest.mark.parametrize(
    ("probe", "results", "states"),
    [
        ({}, "-+-+", "starting serving failing serving"),
        ({}, "+-----+-", "serving failing failing failing failing failing serving failing"),
        ({"fall_count_warn": 3}, "+--+---", "serving serving serving serving serving serving failing"),
        ({"rise_count_warn": 2}, "++-++", "starting serving failing failing serving"),
        ({"rise_count_ko": 2, "fall_count_ko": 1}, "----+", "starting starting starting starting serving"),
        ({"rise_count_ko": 2, "fall_count_ko": 1}, "+--++", "serving failing failing failing serving"),
    ],
)  # fmt: skip
def test_service_is_out_after_its_first_failed_probe_unless_its_probe_says_otherwise(
    probe: dict[str, object], results: str, states: str
) -> None:
    stage = Stage()
    stage.register(probe={"http": "/health", **probe})
    (service,) = stage.services
    found = []
    for result in results:
        before = service.state
        changed = stage.services.record_probe(service, "" if result == "+" else "down", 0.001)
        assert changed == (service.state != before)
        found.append(service.state)
    assert found == states.split()


def test_service_keeps_its_probe_when_a_heartbeat_names_none() -> None:
    stage = Stage()
    stage.register(probe={"http": "/health"}, ttl=30)
    (service,) = stage.services
    stage.services.record_probe(service, "", 0.001)
    assert stage.register(ttl=30) == "refreshed"
    assert stage.register(probe={"http": "/health"}, ttl=30) == "refreshed"
    assert stage.register(ttl=60) == "changed"
    assert (service.state, service.settings.probe is None) == ("serving", False)
    stage.pass_time(61)
    assert stage.register(ttl=60) == "recovered"
    assert service.state == "starting"
    assert stage.register(probe="/ready", ttl=60) == "changed"
    assert stage.serving == [], "the new probe has not succeeded yet"


def test_services_are_bounded_in_number_and_silent_ones_make_room() -> None:
    stage = Stage(most=2)
    stage.register(to="http://10.0.0.1:1", ttl=1)
    stage.register(to="http://10.0.0.2:1")
    with pytest.raises(RegistrationRefused, match="2 services"):
        stage.register(to="http://10.0.0.3:1")
    assert stage.register(to="http://10.0.0.2:1") == "refreshed"
    stage.pass_time(2)
    assert stage.register(to="http://10.0.0.3:1") == "registered"
    assert stage.serving == ["http://10.0.0.2:1", "http://10.0.0.3:1"]
    assert stage.pass_time(FORGOTTEN_SECONDS) == ([], [])


def test_services_of_one_name_have_one_place() -> None:
    stage = Stage()
    stage.register(path="/users")
    assert stage.register(to="http://10.0.0.8:1") == "registered"
    assert stage.register(to="http://10.0.0.9:1", host="", path="/users") == "registered"
    with pytest.raises(RegistrationRefused, match=r"registered for \*/users"):
        stage.register(to="http://10.0.0.8:1", path="/others")
    stage.services.remove(stage.services.of("users")[2])
    assert stage.register(path="/moved") == "changed"


def test_next_supervisor_continues_with_states_and_new_times_to_live() -> None:
    stage = Stage()
    stage.register(ttl=30, host="users.example.com")
    stage.register(to="http://10.0.0.8:1", probe={"http": "/health", "interval": "2s"})
    stage.register(to="http://10.0.0.9:1", ttl=1)
    _, failing, _ = stage.services
    for problem in ("", *["down"] * 4):
        stage.services.record_probe(failing, problem, 0.0)
    stage.pass_time(2)
    saved = [stage.services.to_json(each) for each in stage.services]
    successor = Stage()
    successor.clock.advance(29)
    for each in saved:
        successor.services.restore_service(each)
    assert [each.state for each in successor.services] == ["serving", "failing", "silent"]
    assert [each.settings for each in successor.services] == [each.settings for each in stage.services]
    assert successor.pass_time(29.9) == ([], [])
    assert successor.pass_time(0.2) == ([URL], [])
    _, restored, _ = successor.services
    assert successor.services.record_probe(restored, "", 0.0)
    for wrong in ({"settings": {"name": "users"}}, {"state": "other"}):
        successor.services.restore_service({**saved[0], **wrong})
    assert len(successor.services) == 3
    after_stop = Stage()
    for each in saved:
        after_stop.services.restore_service(each, pool_was_stopped=True)
    assert [each.state for each in after_stop.services] == ["serving", "starting", "silent"]
    assert [each.settings for each in after_stop.services] == [each.settings for each in stage.services]


def test_times_to_live_begin_again_when_no_heartbeat_could_arrive() -> None:
    stage = Stage()
    stage.register(ttl=30)
    stage.register(to="http://10.0.0.8:1")
    stage.register(to="http://10.0.0.9:1", ttl=1)
    stage.pass_time(20)
    stage.services.renew()
    assert stage.pass_time(29) == ([], [])
    assert stage.pass_time(1) == ([URL], [])


WEB = ServerConfig(name="web", bind="127.0.0.1:8000", app="a:b")


def service(name: str = "users", url: str = "http://10.0.0.7:9000", **keys: Any) -> Registered:
    is_serving = keys.pop("serving", True)
    return RegistrationRequest(name=name, to=url, **keys), is_serving


def made(*services: Registered, routes: tuple[RouteConfig, ...]) -> dict[str, Route | ExcludedRoute]:
    tables = Tables(gateway=GatewayConfig(), route=routes)
    found = with_registrations(routes_of([WEB], tables), [WEB], tables, services)
    return {each.alias: each for each in found if isinstance(each, Route | ExcludedRoute)}


def targets(route: Any) -> list[str]:
    return [each.key for each in route.to]


def test_service_joins_the_targets_of_a_route_that_accepts_it() -> None:
    routes = (
        RouteConfig(alias="users", to=("web", "http://10.0.0.8:9000"), register=True, path="/users"),
        RouteConfig(alias="empty", register=True, path="/empty"),
    )
    again, failing = service(url="http://10.0.0.8:9000", weight=5), service(url="http://x:1", serving=False)
    found = made(service(weight=3), again, failing, routes=routes)
    assert targets(found["users"]) == ["web", "http://10.0.0.8:9000", "http://10.0.0.7:9000"]
    assert [each.weight for each in found["users"].to] == [1, 1, 3]  # type: ignore[union-attr]
    assert isinstance(found["empty"], Route), "it answers with 503, and not with 404"
    assert targets(found["empty"]) == []


def test_service_gets_a_route_of_its_own_by_a_host_or_a_path() -> None:
    first, second = service("own", path="/own"), service("own", "http://10.0.0.9:1")
    found = made(first, second, routes=(RouteConfig(to="web"),))
    own = found["own"]
    assert isinstance(own, Route)
    assert (own.host, own.path, own.provider, targets(own)) == (
        "",
        "/own",
        "registration",
        [first[0].to, second[0].to],
    )
    asleep = made(service("own", path="/own", serving=False), routes=())["own"]
    assert (isinstance(asleep, Route), targets(asleep)) == (True, [])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (service("web"), "accepts no registrations"),
        (service("own"), "no such route"),
        (service("own", host=""), "no such route"),
        (service("own", host="web.example.com"), "taken by the route 'web'"),
        (service("own", host="web.example.com", path="/v1"), "taken by the route 'web'"),
        (service("own", host="*.example.org"), "taken by the route 'odd'"),
        (service("own", path="/posts"), ""),
        (service("own", host="other.example.com"), ""),
    ],
)  # fmt: skip
def test_service_takes_no_place_of_another_route(given: Registered, reason: str) -> None:
    routes = (
        RouteConfig(alias="web", to="web", host="web.example.com"),
        RouteConfig(alias="odd", to="web", host="a*.example.org"),
        RouteConfig(alias="posts", to="web", path="/posts", methods=("POST",)),
    )
    found = made(given, routes=routes)[given[0].name]
    assert isinstance(found, ExcludedRoute) == bool(reason)
    assert reason in getattr(found, "reason", "")


def test_place_belongs_to_the_service_that_registered_first() -> None:
    first, second = service("first", path="/x"), service("second", path="/x")
    found = made(first, second, routes=())
    assert isinstance(found["first"], Route)
    assert "taken by the route 'first'" in getattr(found["second"], "reason", "")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"to": "web"}, ("to",)),
        ({"to": "tag:api"}, ("to",)),
        ({"to": "http://u:p@10.0.0.7:1"}, ("to",)),
        ({"to": "http://10.0.0.7:9000/v1"}, ("to",)),
        ({"name": "two words"}, ("name",)),
        ({"name": "x" * 201}, ("name",)),
        ({"ttl": -1}, ("ttl",)),
        ({"ttl": float("inf")}, ("ttl",)),
        ({"weight": 0}, ("weight",)),
        ({"path": "v1"}, ("path",)),
        ({"probe": {"exec": ["true"]}}, ("probe",)),
        ({"probe": {"http": "/", "body": "x"}}, ("probe",)),
        ({"probe": "health"}, ("probe", "http")),
        ({"port": 1}, ("port",)),
        ({"to": "unix:/run/a\x1b.sock"}, ("to",)),
        ({"to": "http://10.0.0.7\r\nX: y:80"}, ("to",)),
        ({"to": ["http://10.0.0.7:9000"]}, ("to",)),
    ],
)
def test_wrong_registration_is_a_finding_with_its_key(given: dict[str, Any], path: tuple[str, ...]) -> None:
    findings: list[Finding] = []
    table = {"name": "users", "to": "http://10.0.0.7:9000", **given}
    assert registration_of(table, findings) is None
    assert [each.path for each in findings] == [path]


def test_registration_has_the_forms_of_the_configuration() -> None:
    found = registration_of(
        {"name": "users", "to": "HTTP://10.0.0.7", "ttl": "1m30s", "probe": "/health"}, []
    )
    assert found is not None
    assert (found.to, found.ttl) == ("http://10.0.0.7:80", 90.0)
    assert found.probe is not None
    assert (found.probe.http, found.probe.fall_count_ko) == ("/health", 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[route]]\nregister = true\n", "route[0].alias: 'alias' is missing"),
        (
            '[[route]]\nalias = "users"\n',
            "'to' is missing; add to = …, or register = true for services that register themselves",
        ),
        (
            '[gateway]\n[[server]]\nname = "a"\nbind = ":9001"\napp = "a:b"\nlabels = { "route.register" = "true" }\n',
            "the route of a server leads to that server",
        ),
    ],
)
def test_route_that_cannot_accept_services_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    found = told(tmp_path, text)
    assert problem in found
    assert found.count("\n") == 0


def test_route_that_accepts_services_is_written_and_described() -> None:
    route = RouteConfig(alias="users", register=True)
    assert route.to_dict()["register"] is True
    assert "register" not in RouteConfig(to="web").to_dict()
    schema = json_schema()["$defs"]["RouteConfig"]
    assert {"required": ["to"]} in schema["anyOf"]
    assert schema["properties"]["register"]["default"] is False


@pytest.mark.parametrize(
    ("keys", "ttl_seconds", "left_seconds", "probe"),
    [
        ({}, 0.0, None, ""),
        ({"ttl": 30, "weight": 3}, 30.0, 20.5, ""),
        ({"ttl": 5, "probe": "/health"}, 5.0, 0.0, "/health"),
    ],
)
def test_report_of_a_service_has_the_rest_of_its_time_and_its_probe(
    keys: dict[str, Any], ttl_seconds: float, left_seconds: float | None, probe: str
) -> None:
    stage = Stage()
    stage.register(**keys)
    (service,) = stage.services
    report = stage.services.report(service)
    stage.clock.advance(9.5)
    later = stage.services.report(service)
    assert report == RegisteredServiceReport(
        name="users", url=URL, state="starting" if "probe" in keys else "serving", weight=keys.get("weight", 1),
        since=report.since, ttl_seconds=ttl_seconds, left_seconds=ttl_seconds or None, probe=probe,
    )  # fmt: skip
    assert later.left_seconds == left_seconds
    if probe:
        stage.services.record_probe(service, "", 0.25)
        assert stage.services.report(service).latency_seconds == 0.25
        stage.services.record_probe(service, "status 503", 0.5)
        assert stage.services.report(service).why == "status 503"
    if keys.get("ttl") == 30:
        stage.pass_time(30)
        silent = stage.services.report(service)
        assert (silent.state, silent.why, silent.left_seconds) == ("silent", "no heartbeat for 30s", 0.0)


def test_service_says_what_it_is_and_how_it_is() -> None:
    stage = Stage()
    found, _ = stage.services.register(settings(probe="/health"), "web")
    assert (str(found), repr(found)) == (f"users {URL}", f"<RegisteredService users {URL}: starting>")
    assert (found.alias, found.url, found.owner, found.is_probed) == ("users", URL, "web", True)
    assert (found.is_serving, found.problem) == (False, "starting")
    assert found.health == RouteHealth(status="starting")
    stage.services.record_probe(found, "", 0.25)
    assert (found.is_serving, found.problem) == (True, "serving")
    assert found.health == RouteHealth(status="healthy", latency_seconds=0.25)
    stage.services.record_probe(found, "status 503", 0.5)
    assert (found.is_serving, found.problem) == (False, "status 503")
    assert found.health == RouteHealth(status="unhealthy", latency_seconds=0.5, detail="status 503")
    other, _ = stage.services.register(settings(to="http://10.0.0.8:1"))
    assert (other.is_probed, other.problem) == (False, "serving")
    assert not stage.services.record_probe(other, "down", 1.0), "it has no probe"
    assert (other.latency_seconds, other.why) == (None, "")
    assert stage.services.counts_by_state() == {"starting": 0, "serving": 1, "failing": 1, "silent": 0}


def test_silent_service_takes_no_result_of_a_probe() -> None:
    stage = Stage()
    found, _ = stage.services.register(settings(probe="/health", ttl=1))
    stage.services.record_probe(found, "", 0.25)
    stage.pass_time(1)
    since = found.since
    assert (found.state, since) == ("silent", stage.clock.time())
    stage.clock.advance(1)
    assert not stage.services.record_probe(found, "", 0.5)
    assert (found.state, found.since, found.why, found.latency_seconds) == (
        "silent", since, "no heartbeat for 1s", 0.25,
    )  # fmt: skip


def test_state_since_is_the_time_of_its_last_change() -> None:
    stage = Stage()
    found, _ = stage.services.register(settings(probe="/health"))
    begun = stage.clock.time()
    stage.clock.advance(1)
    stage.services.record_probe(found, "", 0.1)
    assert found.since == begun + 1
    stage.clock.advance(1)
    stage.services.record_probe(found, "", 0.1)
    stage.register(probe="/health")
    assert found.since == begun + 1
    stage.register(probe="/other")
    assert (found.since, found.state, found.why) == (begun + 2, "starting", "")


def test_client_may_register_only_some_services_and_change_only_its_own() -> None:
    clock = ManualClock()
    services = Registrations(clock, 10, 2)

    def register(owner: str, number: int = 1) -> str:
        return services.register(settings(to=f"http://10.0.0.{number}:1"), owner)[1]

    assert [register("web", number) for number in (1, 2)] == ["registered"] * 2
    with pytest.raises(RegistrationRefused) as refused:
        register("web", 3)
    assert (str(refused.value), refused.value.hint) == (
        "web has registered 2 services already", "unregister those that are gone",
    )  # fmt: skip
    assert register("web") == "refreshed"
    assert [register("other", number) for number in (3, 4)] == ["registered"] * 2
    with pytest.raises(RegistrationRefused) as refused:
        register("other")
    assert (str(refused.value), refused.value.hint) == (
        "http://10.0.0.1:1 is registered as 'users' by another client",
        "unregister it there, or with `poolctl unregister`",
    )
    assert register("") == "refreshed", "the control socket may change all"
    assert [register("", number) for number in (5, 6, 7)] == ["registered"] * 3
    assert {each.url: each.owner for each in services.of("users")} == {
        f"http://10.0.0.{number}:1": owner
        for number, owner in zip(range(1, 8), ["web", "web", "other", "other", "", "", ""], strict=True)
    }
    found = [each for each in services.of("users") if each.url == "http://10.0.0.2:1"]
    assert len(found) == 1
    assert found[0] in services
    services.remove(found[0])
    assert found[0] not in services
    assert register("web", 2) == "registered"
    assert found[0] not in services, "it is another one at the same URL"


def test_refusal_says_how_to_go_on() -> None:
    stage = Stage(most=1)
    stage.register(host="a.example")
    for given, message, hint in (
        (
            settings(to="http://10.0.0.8:1"), "1 services are registered already",
            "unregister those that are gone, and give the others a ttl",
        ),
        (
            settings(to="http://10.0.0.8:1", path="/v1"), "users is registered for a.example/",
            "leave host and path out, or choose another name",
        ),
    ):  # fmt: skip
        with pytest.raises(RegistrationRefused) as refused:
            stage.services.register(given)
        assert (str(refused.value), refused.value.hint) == (message, hint)


def test_next_time_with_something_to_do_is_that_of_the_first_deadline() -> None:
    stage = Stage()
    stage.register(ttl=30)
    stage.register(to="http://10.0.0.8:1", ttl=20)
    stage.register(to="http://10.0.0.9:1")
    assert stage.services.due == 20.0
    stage.pass_time(20)
    assert stage.services.due == 30.0
    stage.pass_time(10)
    assert stage.services.due == 20.0 + FORGOTTEN_SECONDS


def test_saved_service_has_all_that_the_next_supervisor_needs() -> None:
    stage = Stage()
    found, _ = stage.services.register(settings(ttl=30, weight=2), "web")
    found.why = "slow"
    stage.clock.advance(3)
    saved = stage.services.to_json(found)
    assert saved == {
        "settings": {"name": "users", "to": URL, "ttl": 30.0, "weight": 2}, "owner": "web", "state": "serving",
        "since": 1_700_000_000.0, "why": "slow",
    }  # fmt: skip
    successor = Stage()
    successor.clock.advance(10)
    successor.services.restore_service(saved)
    (again,) = successor.services
    assert successor.services.to_json(again) == saved
    stopped = Stage()
    stopped.services.restore_service({**saved, "state": "silent"}, pool_was_stopped=True)
    (silent,) = stopped.services
    assert (silent.state, stopped.services.due) == ("silent", FORGOTTEN_SECONDS)
    bare = Stage()
    bare.services.restore_service({"settings": {"name": "users", "to": URL}, "state": "serving"})
    (found,) = bare.services
    assert (found.owner, found.since, found.why, bare.services.due) == ("", 0.0, "", math.inf)


def test_routes_without_a_gateway_or_services_stay_as_they_are() -> None:
    routes = (Route(alias="a", path="/a"),)
    assert with_registrations(routes, [WEB], Tables(), [service("a")]) == routes
    assert with_registrations(routes, [WEB], Tables(gateway=GatewayConfig()), []) == routes


def test_own_route_has_the_defaults_of_the_gateway() -> None:
    gateway = GatewayConfig(timeouts={"connect": 3.0})
    found = with_registrations((), [WEB], Tables(gateway=gateway), [service("own", path="/own", weight=4)])
    (own,) = found
    assert isinstance(own, Route)
    assert own.timeouts.connect == 3.0
    assert own.to == (Target(url="http://10.0.0.7:9000", weight=4),)


@pytest.mark.parametrize(
    ("taken", "given", "excluded"),
    [
        ({"path": "/v1"}, {"path": "/v1"}, "*/v1 is taken by the route 'web' (*/v1)"),
        ({"path": "/v1"}, {"path": "/v1/users"}, "*/v1/users is taken by the route 'web' (*/v1)"),
        ({"path": "/v1"}, {"path": "/v10"}, ""),
        ({"path": "/v1/users"}, {"path": "/v1"}, ""),
        ({}, {"path": "/v1"}, ""),
        ({}, {"path": "/"}, "*/ is taken by the route 'web' (*/)"),
        ({"host": "a.example"}, {"path": "/v1"}, ""),
        ({"host": "a.b"}, {"host": "a.b", "path": "/v1"}, "a.b/v1 is taken by the route 'web' (a.b/)"),
        ({"host": "A.b"}, {"host": "a.b."}, "a.b/ is taken by the route 'web' (a.b/)"),
        ({"host": "a*.b", "path": "/v"}, {"host": "*.b", "path": "/"}, "*.b/ is taken by the route 'web' (a*.b/v)"),
        ({"host": "a*.b", "path": "/v2"}, {"host": "*.b", "path": "/v1"}, ""),
        ({"host": "a*.b"}, {"host": "*.c"}, ""),
        ({"path": "/v1", "methods": ("GET",)}, {"path": "/v1"}, ""),
        ({"path": "/v1", "headers": {"x": ""}}, {"path": "/v1"}, ""),
        ({"path": "/v1", "methods": ("GET",)}, {"path": "/v1/x"}, "*/v1/x is taken by the route 'web' (*/v1)"),
    ],
)  # fmt: skip
def test_own_route_is_excluded_where_another_route_is(
    taken: dict[str, Any], given: dict[str, Any], excluded: str
) -> None:
    found = made(service("own", **given), routes=(RouteConfig(alias="web", to="web", **taken),))["own"]
    if excluded:
        host = given.get("host", "").removesuffix(".")
        assert found == ExcludedRoute(alias="own", reason=excluded, host=host, provider="registration")
    else:
        assert isinstance(found, Route)
