"""Tables of a configuration: immutable values, their defaults, and the problems of bad ones."""

from __future__ import annotations

import pickle
from typing import ClassVar

import pytest
from pydantic import Field, ValidationError

from poolctl.config import (
    Backoff,
    Dependency,
    Health,
    Probe,
    Recovery,
    RecoveryBackoff,
    Restart,
    Section,
    ServerConfig,
    Tables,
    TLSConfig,
)
from poolctl.config.model.pool_tables import MetricsTable, PoolSettings
from poolctl.config.model.section import Table, tables_within, validated, with_feature_keys
from poolctl.config.model.server_tables import Hooks, Http, Limits, Log, Scale, Watch
from poolctl.config.values.problems import MAX_SUGGESTIONS, Finding, similar
from poolctl.config.values.value_types import FilePath, Positive, Text
from poolctl.errors import PoolValidateError


def test_tables_made_in_python_are_validated_too() -> None:
    with pytest.raises(PoolValidateError) as caught:
        TLSConfig(crt="x", min_version="1.0")
    assert len(caught.value.exceptions) == 3
    with pytest.raises(ValidationError, match="frozen"):
        TLSConfig(cert="x").cert = "y"  # type: ignore[misc]


def test_changed_copy_differs_in_that_value_and_counts_it_as_given() -> None:
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b")
    other = server.model_copy(update={"preload": True})
    assert (server.preload, other.preload) == (False, True)
    assert other.model_fields_set - server.model_fields_set == {"preload"}
    assert server != other == server.model_copy(update={"preload": True})


def test_table_does_not_change_and_refuses_what_it_does_not_know() -> None:
    probe = Probe(http="/ready")
    with pytest.raises(ValidationError, match="frozen"):
        probe.http = "/other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        del probe.http
    with pytest.raises(PoolValidateError) as refused:
        Probe(htp="/ready")
    assert "unknown key 'htp'; did you mean 'http'?" in str(refused.value)
    assert hash(probe) == hash(Probe(http="/ready"))
    assert probe.as_given() == {"http": "/ready"}
    assert repr(TLSConfig(cert="/a")).startswith("TLSConfig(cert='/a', key=None")


def test_table_within_another_may_be_a_value_already() -> None:
    certificate = TLSConfig(cert="/a.pem")
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b", tls=certificate)
    assert server.tls is certificate
    assert Tables().get(MetricsTable) is None


def test_table_without_keys_is_the_usual_one_unless_a_key_is_required() -> None:
    assert PoolSettings().model_fields_set == set()
    with pytest.raises(PoolValidateError, match="Dependency has 1 problem"):
        Dependency()  # type: ignore[call-arg]


def test_limit_of_restarts_that_is_written_out_is_another_one_than_the_default() -> None:
    assert Restart() == Restart()
    assert Restart(limit=8) == Restart(limit=8)
    assert (Restart().limit, Restart() == Restart(limit=8)) == (8, False)
    assert (Restart().is_limited, Restart(limit=8).is_limited) == (False, True)
    assert Restart() != Backoff()


@pytest.mark.parametrize(
    ("before", "seconds"), [(0, 0.5), (1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (10**6, 30.0)]
)
def test_delay_of_a_restart_grows_by_its_factor_up_to_the_maximum(before: int, seconds: float) -> None:
    backoff = Backoff(initial=0.5, max=30, factor=2, jitter=0.1)
    assert backoff.delay_seconds(before, 0.0) == seconds
    assert backoff.delay_seconds(before, 1.0) == pytest.approx(seconds * 1.1)
    assert backoff.delay_seconds(before, -1.0) == pytest.approx(seconds * 0.9)


class Shelf(Table, frozen=True):
    """A table with a key of each kind."""

    table_name: ClassVar[str] = "shelf"

    height: Positive
    """Its height."""
    file: FilePath | None = None
    """A file."""
    place: Text = Field(default="here", exclude=True, repr=False)


def test_table_has_the_defaults_of_other_keys_and_shows_what_files_can_set() -> None:
    shelf = Shelf(height="2s")
    assert dict(shelf) == {"height": 2.0, "file": None, "place": "here"}
    assert shelf.model_fields_set == {"height"}
    assert shelf.to_dict() == {"height": 2.0}
    assert shelf.model_copy(update={"place": "there"}).as_given() == {"height": 2.0}
    assert repr(shelf) == "Shelf(height=2.0, file=None)"
    assert Shelf.keys_in_files() == ("height", "file")
    assert Shelf.in_long_form({"file": "a", "height": 2}, {}, "/srv") == {"file": "/srv/a", "height": 2}


def test_table_is_replaced_by_another_one_with_other_values_and_their_checks() -> None:
    probe = Probe(http="/ready", interval=2)
    assert probe.replace(interval="1m").as_given() == {"http": "/ready", "interval": 60.0}
    with pytest.raises(PoolValidateError) as refused:
        probe.replace(interval="never")
    assert "interval: 'never'" in str(refused.value.exceptions[0])


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ((), Restart.keys_in_files()),
        (("backoff",), ("initial", "max", "factor", "jitter")),
        (("backoff", 0), ("initial", "max", "factor", "jitter")),
        (("limit",), ()),
        (("limit", "more"), ()),
    ],
)
def test_keys_at_a_path_are_those_of_the_table_there(
    path: tuple[str | int, ...], keys: tuple[str, ...]
) -> None:
    assert Restart.keys_at(path) == keys


def test_keys_that_hold_tables_are_found_by_their_annotations() -> None:
    assert tables_within(Restart) == {"backoff": Backoff}
    assert tables_within(Health) == {"startup": Probe, "readiness": Probe, "liveness": Probe}
    assert tables_within(Backoff) == {}
    assert with_feature_keys(Backoff) is Backoff


def test_table_is_written_as_it_was_given_and_as_it_applies() -> None:
    restart = Restart(limit=3, backoff={"initial": 1})
    assert restart.as_given() == {"limit": 3, "backoff": {"initial": 1.0}}
    backoff = {"initial": 1.0, "max": 30.0, "factor": 2.0, "jitter": 0.1}
    assert restart.to_dict() == {**Restart().to_dict(), "backoff": backoff, "limit": 3}
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b", depends_on=[{"name": "db"}])
    assert server.as_given()["depends_on"] == [{"name": "db"}]
    assert server.to_dict()["depends_on"] == [{"name": "db", "condition": "ready"}]


def test_copy_of_a_table_equals_it_and_another_kind_with_the_same_values_does_not() -> None:
    backoff = Backoff(initial=5, max=300)
    again = pickle.loads(pickle.dumps(backoff))
    assert (again, again.model_fields_set, hash(again)) == (backoff, {"initial", "max"}, hash(backoff))
    assert dict(backoff) == dict(RecoveryBackoff())
    assert backoff != RecoveryBackoff()
    assert backoff != Backoff(initial=6, max=300)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Backoff, {"initial": 0.2, "max": 30.0, "factor": 2.0, "jitter": 0.1}),
        (RecoveryBackoff, {"initial": 5.0, "max": 300.0, "factor": 2.0, "jitter": 0.1}),
        (Restart, {"backoff": Backoff().to_dict(), "limit": 8, "window": 300.0}),
        (Recovery, {"strategy": "restart", "heartbeat": 5.0, "stuck_after": 15.0, "limit": 5, "window": 600.0,
                    "backoff": RecoveryBackoff().to_dict()}),
        (Probe, {"tcp": False, "interval": 5.0, "timeout": 2.0, "fall_count_warn": 1, "fall_count_ko": 3,
                 "rise_count_warn": 1, "rise_count_ko": 1, "jitter": 0.1, "method": "GET", "headers": {},
                 "status": "200-399"}),
        (Health, {}),
        (Scale, {"min": 1, "max": 1, "idle": 0.0}),
        (Limits, {}),
        (Hooks, {}),
        (Watch, {"include": [], "exclude": []}),
        (Log, {"format": "text", "max_size": 10 * 2**20, "keep": 5}),
        (Http, {"implementation": "auto", "loop": "auto", "keep_alive": 75.0, "root_path": "",
                "proxy_headers": False, "trusted_proxies": [], "access_log": "errors", "head_timeout": 10.0,
                "max_head_size": 65536, "websocket": "auto"}),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)  # fmt: skip
def test_keys_that_are_left_out_have_their_defaults(kind: type[Section], values: dict[str, object]) -> None:
    assert kind().to_dict() == values
    assert kind().model_fields_set == set()


def test_windows_and_time_zone_and_level_are_written_if_they_are_not_the_default() -> None:
    assert Scale(timezone="UTC", awake=["* 8 * * *"]).to_dict() == {
        "min": 1, "max": 1, "idle": 0.0, "awake": ["* 8 * * *"], "timezone": "UTC",
    }  # fmt: skip
    assert Http(log_level="debug").to_dict()["log_level"] == "debug"


@pytest.mark.parametrize(
    ("probes", "gated", "probed"),
    [((), False, False), (("startup",), True, False), (("readiness",), True, True), (("liveness",), False, True)],
)  # fmt: skip
def test_health_gates_by_startup_and_readiness_and_probes_by_readiness_and_liveness(
    probes: tuple[str, ...], gated: bool, probed: bool
) -> None:
    health = Health(**{each: {"tcp": True} for each in probes})
    assert (health.gated, health.probed) == (gated, probed)


def test_value_with_a_problem_already_is_not_reported_again() -> None:
    known = Finding(("min_version",), "reported before")
    findings = [known]
    assert validated(TLSConfig, {"min_version": 5, "cert": 7}, findings) is None
    assert [each.path for each in findings] == [("min_version",), ("cert",)]
    assert findings[0] is known
    assert findings[1].message == "7 is not allowed here"


def test_each_table_made_in_python_suggests_words_anew() -> None:
    for number in range(MAX_SUGGESTIONS):
        similar(f"word {number}", (), 1, 0.5)
    findings: list[Finding] = []
    assert validated(Probe, {"methd": "GET"}, findings) is None
    assert "did you mean" not in findings[0].hint, "a file does not begin anew with each of its tables"
    with pytest.raises(PoolValidateError) as caught:
        Probe(htp="/")
    assert "did you mean 'http'?" in str(caught.value)


def test_refusal_counts_its_problems() -> None:
    with pytest.raises(PoolValidateError, match=r"^Backoff has 2 problems\b"):
        Backoff(initial="x", factor=0)
    with pytest.raises(PoolValidateError, match=r"^Backoff has 1 problem\b"):
        Backoff(factor=0)
