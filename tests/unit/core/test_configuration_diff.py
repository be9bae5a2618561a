"""The difference between what is in force and what is written: exactly that, whatever the two are."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig
from poolctl.core.configuration_diff import (
    Change,
    CurrentServer,
    Kind,
    date_text,
    differences,
    digest_of,
    expired_message,
    is_live,
    key_list_text,
    planned_changes,
    read_certificate_expiry,
    read_digests_by_key,
)
from poolctl.core.server_state import Overrides
from tests.certificates import certificate
from tests.examples import examples


def web(name: str = "web", **keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": name, "bind": "127.0.0.1:9000", "app": "any:app"} | keys)


# By key, two values of it, and whether a change takes effect without a new process.
KEYS: dict[str, tuple[Any, Any, bool]] = {
    "app": ("a:b", "c:d", False),
    "bind": ("127.0.0.1:7001", "127.0.0.1:7002", False),
    "env.A": ({"A": "1", "B": "1"}, {"A": "2", "B": "1"}, False),
    "http.root_path": ({"root_path": ""}, {"root_path": "/x"}, False),
    "cwd": ("/", "/tmp", False),
    "drain_timeout": (1, 2, False),
    "stop_timeout": (1, 2, False),
    "umask": (None, "0027", False),
    "limits.open_files": ({}, {"open_files": 100}, False),
    "log.keep": ({"keep": 1}, {"keep": 2}, False),
    "tags": (["a"], ["a", "b"], True),
    "labels.x": ({"x": "1"}, {}, True),
    "expose": ("http://a", "http://b", True),
    "restart.limit": ({"limit": 1}, {"limit": 2}, True),
    "restart.backoff.initial": ({"backoff": {"initial": 1}}, {"backoff": {"initial": 2}}, True),
    "workers": ({"min": 1, "max": 1}, {"min": 2, "max": 2}, True),
    "start_timeout": (1, 2, True),
    "disabled": (False, True, True),
    "overlap": (True, False, True),
    "depends_on": ([], ["other"], True),
    "watch.include": ({"include": ["/a"]}, {"include": ["/b"]}, True),
}
FIELD = {"workers": "scale"}


def field(key: str) -> str:
    return FIELD.get(key, key.partition(".")[0])


@pytest.mark.parametrize("key", KEYS)
def test_each_changed_key_is_named_and_restarts_only_where_it_has_to(key: str) -> None:
    one, other, live = KEYS[key]
    before, after = web(**{field(key): one}), web(**{field(key): other})
    assert differences(before, after) == differences(after, before) == [key]
    (change,) = planned_changes([CurrentServer(before)], [after])
    assert change.kind == (Kind.UPDATE if live else Kind.RESTART)
    assert (change.keys, change.bind) == ((key,), after.key)
    assert key in change.message


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("a", "a"),
        ("abcd", "a, b, c, d"),
        ("abcde", "a, b, c, d and 1 more"),
        ("abcdefg", "a, b, c, d and 3 more"),
    ],
)
def test_first_four_keys_are_listed_with_the_number_of_the_others(keys: str, text: str) -> None:
    assert key_list_text([*keys]) == text


def test_other_spelling_of_the_same_value_is_no_difference() -> None:
    before = ServerConfig(name="web", bind="127.0.0.1:80", app="a:b")
    after = ServerConfig(
        name="web", bind="http://127.0.0.1:80", app="a:b", workers=1, start_timeout="30s", restart={},
        depends_on=[], expose="http://127.0.0.1:80",
    )  # fmt: skip
    assert differences(before, after) == []


def test_all_addresses_of_two_families_are_not_all_of_one() -> None:
    assert differences(web(bind=":7001", expose="x"), web(bind="0.0.0.0:7001", expose="x")) == ["bind"]


def test_other_certificates_of_a_server_that_speaks_tls_are_given_to_what_runs() -> None:
    one, other = web(tls={"cert": "/a.pem"}), web(tls={"cert": "/b.pem", "key": "/b.key"})
    assert differences(one, other) == ["tls.cert", "tls.key"]
    assert all(is_live(key, one, other) for key in ("tls.cert", "tls.key"))
    (change,) = planned_changes([CurrentServer(one, files={"tls": "1"})], [other], {"web": {"tls": "2"}})
    assert (change.kind, change.keys) == (Kind.UPDATE, ("tls.cert", "tls.key"))
    assert not is_live("tls", web(), one)
    assert not is_live("tls.ca", one, web(tls={"cert": "/a.pem", "ca": "/ca.pem"}))
    assert not is_live("tls.ciphers", one, other)


def test_limit_of_restarts_that_is_written_out_is_a_difference() -> None:
    assert differences(web(), web(restart={"limit": 8})) == ["restart"]


def test_a_file_that_has_changed_is_a_difference_though_no_key_has() -> None:
    server = web(tls={"cert": "/a.pem"}, env_file="/a.env")
    before = CurrentServer(server, files={"tls": "1", "env_file": "1"})
    assert planned_changes([before], [server], {"web": {"tls": "1", "env_file": "1"}}) == []
    (renewed,) = planned_changes([before], [server], {"web": {"tls": "2", "env_file": "1"}})
    assert (renewed.kind, renewed.keys) == (Kind.UPDATE, ("tls",))
    (other,) = planned_changes([before], [server], {"web": {"tls": "1", "env_file": "2"}})
    assert (other.kind, other.keys) == (Kind.RESTART, ("env_file",))
    # One that has not run has read nothing.
    assert planned_changes([CurrentServer(server)], [server], {"web": {"tls": "2", "env_file": "2"}}) == []


def test_live_changes_are_named_unless_the_file_says_the_same_by_now() -> None:
    file = web(workers=2)
    for live, keys in [
        (CurrentServer(file, Overrides(workers=3)), ("workers",)),
        (CurrentServer(file, Overrides(disabled=True)), ("disabled",)),
        (CurrentServer(file, Overrides(out=True)), ("drained",)),
    ]:
        (change,) = planned_changes([live], [file])
        assert (change.kind, change.keys, bool(change.message)) == (Kind.OVERRIDE, keys, True)
    assert planned_changes([CurrentServer(file, Overrides(workers=2, disabled=False))], [file]) == []
    assert planned_changes([CurrentServer(file, added=True)], [file]) == []
    assert planned_changes([CurrentServer(file, Overrides(workers=3))], [web(workers=3)]) == []
    assert (
        planned_changes([CurrentServer(file, Overrides(disabled=True))], [web(workers=2, disabled=True)])
        == []
    )
    (gone,) = planned_changes([CurrentServer(file, added=True)], [])
    (back,) = planned_changes([], [file], missing=["web"])
    assert (gone.kind, back.kind) == (Kind.OVERRIDE, Kind.OVERRIDE)


servers = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.dictionaries(st.sampled_from(sorted(KEYS)), st.booleans(), max_size=4),
)


def made(pool: dict[str, dict[str, bool]]) -> list[ServerConfig]:
    servers = []
    for name, choices in pool.items():
        chosen: dict[str, Any] = {field(key): KEYS[key][0] for key in KEYS if key != "bind"}
        chosen |= {field(key): KEYS[key][int(other)] for key, other in choices.items() if key != "bind"}
        chosen["bind"] = f"127.0.0.1:{7000 + ord(name) * 2 + choices.get('bind', False)}"
        chosen["restart"] = {
            "limit": 1 + choices.get("restart.limit", False),
            "backoff": {"initial": 1 + choices.get("restart.backoff.initial", False)},
        }
        servers.append(web(name, **chosen))
    return servers


@examples(150)
@given(servers, servers)
def test_the_plan_is_exactly_the_difference(
    before: dict[str, dict[str, bool]], after: dict[str, dict[str, bool]]
) -> None:
    changes = planned_changes([CurrentServer(config) for config in made(before)], made(after))
    plan: dict[str, Change] = {change.name: change for change in changes}
    assert len(plan) == len(changes)
    for name in before.keys() | after.keys():
        if name not in after:
            assert plan.pop(name).kind == Kind.REMOVE
        elif name not in before:
            assert plan.pop(name).kind == Kind.ADD
        else:
            differing = {
                key for key in KEYS if before[name].get(key, False) is not after[name].get(key, False)
            }
            if differing:
                change = plan.pop(name)
                assert set(change.keys) == differing
                assert (change.kind == Kind.UPDATE) == all(KEYS[key][2] for key in differing)
    assert not plan, "nothing else is touched"


@given(servers)
def test_server_that_runs_as_configured_needs_no_change(pool: dict[str, dict[str, bool]]) -> None:
    assert planned_changes([CurrentServer(config) for config in made(pool)], made(pool)) == []


# Digests and expiry of the files that servers name.


def server(cert: Path, key: Path) -> ServerConfig:
    tls = {"cert": str(cert), "key": str(key)}
    return ServerConfig(name="a", bind="127.0.0.1:8081", app="a:app", tls=tls)


def test_the_end_of_a_certificate_is_that_in_its_file(tmp_path: Path) -> None:
    ends = read_certificate_expiry(server(*certificate(tmp_path, days=30)))
    assert ends is not None
    assert timedelta(days=29) < datetime.fromtimestamp(ends, UTC) - datetime.now(UTC) < timedelta(days=31)


def test_fifo_in_place_of_a_certificate_blocks_no_process(tmp_path: Path) -> None:
    config = server(*certificate(tmp_path))
    assert config.tls
    assert config.tls is not True
    os.unlink(config.tls.cert)
    os.mkfifo(config.tls.cert)
    expiries: list[float | None] = []
    thread = threading.Thread(target=lambda: expiries.append(read_certificate_expiry(config)), daemon=True)
    thread.start()
    thread.join(60)
    assert expiries == [None]


def test_digest_changes_with_content_order_and_absence(tmp_path: Path) -> None:
    one, two, missing = (tmp_path / name for name in ("one", "two", "missing"))
    one.write_text("1")
    two.write_text("2")
    digests = [digest_of(map(str, paths)) for paths in ([one], [two], [one, two], [two, one], [missing], [])]
    assert len({*digests}) == len(digests)
    assert digest_of([str(one)]) == digests[0]
    assert len(digests[0]) == 24


def test_digests_are_of_the_files_that_the_server_names(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    env, ca = tmp_path / ".env", tmp_path / "ca"
    for path in (env, ca):
        path.write_text("A=1")

    def found(**keys: Any) -> dict[str, str]:
        return read_digests_by_key(ServerConfig(name="a", bind="127.0.0.1:8081", app="a:app", **keys))

    assert found(env_file=[]) == {}
    tls = {"cert": str(cert), "key": str(key)}
    assert found(env_file=[str(env)], tls=tls) == {
        "env_file": digest_of([str(env)]), "tls": digest_of([str(cert), str(key)]),
    }  # fmt: skip
    assert found(env_file=[], tls={**tls, "ca": str(ca)})["tls"] == digest_of([str(cert), str(key), str(ca)])


def test_message_about_an_expired_certificate_names_its_file_its_day_and_the_fix(tmp_path: Path) -> None:
    config = server(*certificate(tmp_path))
    assert config.tls
    assert config.tls is not True
    assert expired_message(config, 86400.0) == (
        f"{config.tls.cert}: the certificate expired on 1970-01-02; renew the file, then poolctl reload"
    )
    assert date_text(86399) == "1970-01-01"


def test_server_without_a_certificate_has_no_expiry(tmp_path: Path) -> None:
    plain = ServerConfig(name="a", bind="127.0.0.1:8081", app="a:app")
    assert read_certificate_expiry(plain) is None
    broken = server(*certificate(tmp_path))
    assert broken.tls
    assert broken.tls is not True
    os.unlink(broken.tls.cert)
    assert read_certificate_expiry(broken) is None
