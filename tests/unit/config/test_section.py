"""Tables of a configuration: immutable values, their defaults, and the problems of bad ones."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

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
from poolctl.config.model.section import (
    Hooks,
    Http,
    Limits,
    Log,
    Scale,
    Table,
    Watch,
    field,
    hidden,
    required,
    sections_of,
    validated,
    with_feature_keys,
)
from poolctl.config.values.problems import Finding
from poolctl.config.values.value_types import Positive, Text
from poolctl.errors import PoolValidateError


def test_tables_made_in_python_are_validated_too() -> None:
    with pytest.raises(PoolValidateError) as caught:
        TLSConfig(crt="x", min_version="1.0")
    assert len(caught.value.exceptions) == 3
    with pytest.raises(AttributeError):
        TLSConfig(cert="x").cert = "y"


@pytest.mark.parametrize(
    "kind", [Backoff, Health, RecoveryBackoff, Recovery, Restart], ids=lambda kind: kind.__name__
)
def test_usual_table_equals_one_that_was_validated(kind: type[Section]) -> None:
    assert kind.with_defaults() == kind()
    assert kind.with_defaults().to_dict() == kind().to_dict()
    assert kind.with_defaults().given == kind().given


def test_changed_copy_differs_in_that_value_and_counts_it_as_given() -> None:
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b")
    other = server.with_values(preload=True)
    assert (server.preload, other.preload) == (False, True)
    assert other.given - server.given == {"preload"}
    assert server != other == server.with_values(preload=True)


def test_table_does_not_change_and_refuses_what_it_does_not_know() -> None:
    probe = Probe(http="/ready")
    with pytest.raises(AttributeError, match="Probe does not change"):
        probe.http = "/other"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Probe does not change"):
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


PLAIN = """
import sys
from poolctl.config import disable_pydantic_plugins, load
from poolctl.config.model import section
disable_pydantic_plugins()
assert not load(sys.argv[1]).problems
assert section._declared_model.cache_info().currsize == 1
assert "importlib.metadata" not in sys.modules, "the search for pydantic's plugins"
"""


@pytest.mark.slow
def test_plain_servers_are_read_with_a_single_model(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[[server]]\nname = "web"\nbind = ":8080"\napp = "shop:app"\n')
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "pool.toml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_table_without_keys_is_the_usual_one_unless_a_key_is_required() -> None:
    assert (PoolSettings(), PoolSettings().given) == (PoolSettings.with_defaults(), set())
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


class Shelf(Table):
    """A table with a key of each kind."""

    table_name = "shelf"
    paths = ("file",)

    height: Positive = required(description="Its height.")
    label_text: Text = required(description="What is written on it.", derived=True)
    file: str = field("", "A file.")
    place: Text = hidden("here")


def test_signature_of_a_table_has_the_keys_that_can_be_given() -> None:
    found = inspect.signature(Shelf).parameters.values()
    assert [(each.name, each.default, each.annotation) for each in found] == [
        ("height", inspect.Parameter.empty, "Positive"),
        ("label_text", "", "Text"),
        ("file", "", "str"),
    ]
    assert {each.kind for each in found} == {inspect.Parameter.KEYWORD_ONLY}
    of_patience = inspect.signature(RecoveryBackoff).parameters
    assert {
        name: each.default for name, each in of_patience.items()
    } == RecoveryBackoff.with_defaults().to_dict()


def test_unchecked_table_has_the_defaults_of_the_other_keys_and_lacks_required_ones() -> None:
    shelf = Shelf.unchecked({"height": 2.0})
    assert dict(shelf) == {"height": 2.0, "file": "", "place": "here"}
    assert shelf.given == {"height"}
    assert shelf.to_dict() == {"height": 2.0, "file": ""}
    assert shelf.with_values(place="there").as_given() == {"height": 2.0}
    assert repr(shelf) == "Shelf(height=2.0, file='')"


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ((), ("policy", "backoff", "limit", "window")),
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
    assert sections_of(Restart) == {"backoff": Backoff}
    assert sections_of(Health) == {"startup": Probe, "readiness": Probe, "liveness": Probe}
    assert sections_of(Backoff) == {}
    assert with_feature_keys(Backoff) is Backoff


def test_table_is_written_as_it_was_given_and_as_it_applies() -> None:
    restart = Restart(limit=3, backoff={"initial": 1})
    assert restart.as_given() == {"limit": 3, "backoff": {"initial": 1.0}}
    backoff = {"initial": 1.0, "max": 30.0, "factor": 2.0, "jitter": 0.1}
    assert restart.to_dict() == {"backoff": backoff, "limit": 3, "window": 300.0}
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b", depends_on=[{"name": "db"}])
    assert server.as_given()["depends_on"] == [{"name": "db"}]
    assert server.to_dict()["depends_on"] == [{"name": "db", "condition": "ready"}]


def test_copy_of_a_table_equals_it_and_another_kind_with_the_same_values_does_not() -> None:
    backoff = Backoff(initial=5, max=300)
    again = pickle.loads(pickle.dumps(backoff))
    assert (again, again.given, hash(again)) == (backoff, {"initial", "max"}, hash(backoff))
    assert dict(backoff) == dict(RecoveryBackoff.with_defaults())
    assert backoff != RecoveryBackoff.with_defaults()
    assert backoff != Backoff(initial=6, max=300)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Backoff, {"initial": 0.2, "max": 30.0, "factor": 2.0, "jitter": 0.1}),
        (RecoveryBackoff, {"initial": 5.0, "max": 300.0, "factor": 2.0, "jitter": 0.1}),
        (Restart, {"backoff": Backoff.with_defaults().to_dict(), "limit": 8, "window": 300.0}),
        (Recovery, {"strategy": "restart", "heartbeat": 5.0, "stuck_after": 15.0, "limit": 5, "window": 600.0,
                    "backoff": RecoveryBackoff.with_defaults().to_dict()}),
        (Probe, {"tcp": False, "interval": 5.0, "timeout": 2.0, "fall_count_warn": 1, "fall_count_ko": 3,
                 "rise_count_warn": 1, "rise_count_ko": 1, "jitter": 0.1, "method": "GET", "headers": {},
                 "status": "200-399"}),
        (Health, {}),
        (Scale, {"min": 1, "max": 1, "idle": 0.0}),
        (TLSConfig, {"client_auth": "none", "min_version": "1.2", "warn_before": 14 * 86400.0}),
        (Dependency, {"condition": "ready"}),
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
    assert kind.with_defaults().to_dict() == values
    assert kind.with_defaults().given == set()


def test_windows_and_time_zone_and_level_are_written_if_they_are_not_the_default() -> None:
    assert Scale.unchecked({"timezone": "UTC", "awake": ("x",)}).to_dict() == {
        "min": 1, "max": 1, "idle": 0.0, "awake": ["x"], "timezone": "UTC",
    }  # fmt: skip
    assert Http(log_level="debug").to_dict()["log_level"] == "debug"


def test_scale_without_a_feature_changes_nothing_and_has_no_rules() -> None:
    assert not Scale.with_defaults().is_automatic
    assert (Scale.rules({}), Scale.not_inherited({}, {})) == ((), ())


@pytest.mark.parametrize(
    ("probes", "gated", "probed"),
    [((), False, False), (("startup",), True, False), (("readiness",), True, True), (("liveness",), False, True)],
)  # fmt: skip
def test_health_gates_by_startup_and_readiness_and_probes_by_readiness_and_liveness(
    probes: tuple[str, ...], gated: bool, probed: bool
) -> None:
    health = Health(**{each: {"tcp": True} for each in probes})
    assert (health.gated, health.probed) == (gated, probed)


def test_table_of_a_file_has_no_problems_and_takes_no_time_unless_it_says_so() -> None:
    shelf = Shelf.unchecked({"height": 1.0})
    assert (shelf.stop_seconds, shelf.label, shelf.has_startup_warnings) == (0.0, "", False)
    assert (Table.table_name, Table.listed, Table.merged_by, Table.paths, Table.is_route) == (
        "",
        False,
        "",
        (),
        False,
    )
    assert (shelf.findings(), shelf.findings_against_other_tables({}), shelf.check({}, ())) == (
        (),
        (),
        ([], []),
    )


def test_paths_of_a_table_are_absolute() -> None:
    table = {"file": "a", "bind": "unix:x.sock", "tls": {"cert": "c.pem"}, "other": "b"}
    assert Shelf.with_absolute_paths(table, table, "/base") == {
        "file": "/base/a", "bind": "unix:/base/x.sock", "tls": {"cert": "/base/c.pem"}, "other": "b",
    }  # fmt: skip
    assert table["file"] == "a"


def test_value_with_a_problem_already_is_not_reported_again() -> None:
    known = Finding(("min_version",), "reported before")
    findings = [known]
    assert validated(TLSConfig, {"min_version": 5, "cert": 7}, findings) is None
    assert [each.path for each in findings] == [("min_version",), ("cert",)]
    assert findings[0] is known
    assert findings[1].message == "7 is not allowed here"


def test_each_table_made_in_python_suggests_words_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolctl.config.values.problems.MOST_SUGGESTIONS", 1)
    for wrong, meant in (("htp", "http"), ("boddy", "body")):
        with pytest.raises(PoolValidateError) as caught:
            Probe(**{wrong: "/"})
        assert f"did you mean {meant!r}?" in str(caught.value)
    findings: list[Finding] = []
    assert validated(Probe, {"methd": "GET"}, findings) is None
    assert "did you mean" not in findings[0].hint, "a file does not begin anew with each of its tables"


def test_refusal_counts_its_problems() -> None:
    with pytest.raises(PoolValidateError, match=r"^Backoff has 2 problems\b"):
        Backoff(initial="x", factor=0)
    with pytest.raises(PoolValidateError, match=r"^Backoff has 1 problem\b"):
        Backoff(factor=0)
