"""Which registered services get requests, by an injected clock."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.clock import ManualClock
from poolctl.features.registration._service_routes import Registration, registration_of
from poolctl.features.registration._services import (
    FORGOTTEN_SECONDS,
    RegistrationRefused,
    Registrations,
)

URL = "http://10.0.0.7:9000"


def settings(name: str = "users", to: str = URL, **keys: Any) -> Registration:
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
        return [each.url for each in self.services.backends() if each.serving]

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
    assert (len(stage.services), stage.services.due, stage.services.names) == (0, None, [])


def test_service_without_a_time_to_live_stays_until_it_is_unregistered() -> None:
    stage = Stage()
    stage.register()
    assert stage.services.due is None
    assert stage.register(ttl=5) == "changed"
    assert stage.register() == "changed"
    assert stage.pass_time(1e6) == ([], [])
    assert stage.services.of("users", "http://10.0.0.8:1") == []
    (service,) = stage.services.of("users")
    stage.services.remove(service)
    assert (len(stage.services), stage.services.of("users")) == (0, [])


def test_thousands_of_heartbeats_leave_one_deadline_for_each_service() -> None:
    stage = Stage()
    for number in range(1000):
        stage.register(ttl=30 if number % 2 else 20)
        stage.register(to="http://10.0.0.8:9000", ttl=30)
        stage.pass_time(0.1)
    assert len(stage.services._deadlines) <= 4
    assert stage.pass_time(31) == ([URL, "http://10.0.0.8:9000"], [])


@pytest.mark.parametrize(
    ("probe", "results", "states"),
    [
        ({}, "-+-+", "starting serving failing serving"),
        ({}, "+-----+-", "serving failing failing failing failing failing serving failing"),
        ({"fall_count_warn": 3}, "+--+---", "serving serving serving serving serving serving failing"),
        ({"rise_count_warn": 2}, "++-++", "starting serving failing failing serving"),
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
        changed = stage.services.probed(service, "" if result == "+" else "down", 0.001)
        assert changed == (service.state != before)
        found.append(service.state)
    assert found == states.split()


def test_service_keeps_its_probe_when_a_heartbeat_names_none() -> None:
    stage = Stage()
    stage.register(probe={"http": "/health"}, ttl=30)
    (service,) = stage.services
    stage.services.probed(service, "", 0.001)
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
    stage.services.remove(stage.services.of("users", "http://10.0.0.9:1")[0])
    assert stage.register(path="/moved") == "changed"


def test_next_supervisor_continues_with_states_and_deadlines() -> None:
    stage = Stage()
    stage.register(ttl=30, host="users.example.com")
    stage.register(to="http://10.0.0.8:1", probe={"http": "/health", "interval": "2s"})
    stage.register(to="http://10.0.0.9:1", ttl=1)
    _, failing, _ = stage.services
    for problem in ("", *["down"] * 4):
        stage.services.probed(failing, problem, 0.0)
    stage.pass_time(2)
    saved = [stage.services.to_json(each) for each in stage.services]
    successor = Stage()
    successor.clock.advance(29)
    for each in saved:
        successor.services.restore(each)
    assert [each.state for each in successor.services] == ["serving", "failing", "silent"]
    assert [each.settings for each in successor.services] == [each.settings for each in stage.services]
    assert successor.pass_time(1.9) == ([], []), "a heartbeat may have come while there was no supervisor"
    assert successor.pass_time(0.2) == ([URL], [])
    _, restored, _ = successor.services
    assert successor.services.probed(restored, "", 0.0)
    for wrong in ({"settings": {"name": "users"}}, {"state": "other"}):
        successor.services.restore({**saved[0], **wrong})
    assert len(successor.services) == 3
    after_both = Stage()
    after_both.services.restore(saved[0], whole=True)
    assert after_both.services.due == 30.0
    after_stop = Stage()
    for each in saved:
        after_stop.services.restore(each, whole=True, stopped=True)
    assert [each.state for each in after_stop.services] == ["serving", "starting", "silent"]
    assert [each.settings for each in after_stop.services] == [each.settings for each in stage.services]
