"""Contract §2: spellings, defaults, units and ranges of values, in files, in Python and in the schema."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest

from poolctl import PoolValidateError, ServerConfig
from tests.real_pool import RealPool

DURATIONS = {
    "5": 5.0, "0.5": 0.5, '"500ms"': 0.5, '"5s"': 5.0, '"1m30s"': 90.0, '"2h"': 7200.0, '"1h0.5s"': 3600.5, '"7"': 7.0,
}  # fmt: skip
SIZES = {
    "4096": 4096,
    '"64KiB"': 65536,
    '"10MB"': 10_000_000,
    '"1.5MiB"': 1_572_864,
    '"1GiB"': 2**30,
    '"100"': 100,
}
NO_DURATIONS = ['"-1s"', '""', '"soon"', '"5 parsecs"', "true", "-1", "nan", "inf", "[5]"]
NO_SIZES = ['"-1MB"', '"huge"', "true", "-1", "1.5", "0"]

DEFAULTS = {
    "factory": False, "handler_key": "", "env": {}, "env_file": [], "preload": False, "tags": [], "labels": {},
    "scale": {"min": 1, "max": 1, "idle": 0.0}, "disabled": False, "mandatory": False, "depends_on": [], "tls": False,
    "job": False, "notify": False, "overlap": True, "start_timeout": 30.0, "stop_timeout": 10.0, "drain_timeout": 30.0,
    "http": {
        "implementation": "auto", "loop": "auto", "keep_alive": 75.0, "root_path": "", "proxy_headers": False,
        "trusted_proxies": [], "access_log": "errors", "head_timeout": 10.0,
        "max_head_size": 65536, "websocket": "auto",
    },
    "restart": {
        "policy": "always", "backoff": {"initial": 0.2, "max": 30.0, "factor": 2.0, "jitter": 0.1}, "limit": 8,
        "window": 300.0,
    },
    "log": {"format": "text", "max_size": 10 * 2**20, "keep": 5},
}  # fmt: skip


def servers(key: str, values: list[str]) -> str:
    """A file with one server for each spelling of the key's value."""
    return "".join(
        f'[[server]]\nname = "s{n}"\nbind = ":{n + 1}"\napp = "a:b"\n{key} = {value}\n'
        for n, value in enumerate(values)
    )


def configs(pool: RealPool, text: str, **more: Any) -> list[dict[str, Any]]:
    pool.write("pool.toml", text)
    return [item["config"] for item in pool.ok("show", "-o", "json", **more).json["items"]]


def test_durations_and_sizes_are_numbers_or_words(real_pool: RealPool) -> None:
    found = configs(real_pool, servers("stop_timeout", [*DURATIONS]))
    assert [config["stop_timeout"] for config in found] == [*DURATIONS.values()]
    found = configs(real_pool, servers("log.max_size", [*SIZES]))
    assert [config["log"]["max_size"] for config in found] == [*SIZES.values()]


@pytest.mark.parametrize(("key", "values"), [("stop_timeout", NO_DURATIONS), ("log.max_size", NO_SIZES)])
def test_each_wrong_value_is_a_problem_of_its_own(real_pool: RealPool, key: str, values: list[str]) -> None:
    real_pool.write("pool.toml", servers(key, values))
    done = real_pool.run("validate", "-o", "json")
    assert done.code == 5
    errors = done.json["errors"]
    assert [(error["name"], error["line"]) for error in errors] == [
        (f"s{n}", n * 5 + 5) for n in range(len(values))
    ]
    assert all(error["key"].endswith(key) and error["allowed"] + error["hint"] for error in errors)


def test_in_python_a_duration_may_be_a_timedelta() -> None:
    config = ServerConfig(
        name="a", bind=":1", start_timeout=timedelta(minutes=1), stop_timeout="1m30s", drain_timeout=5,
        http={"keep_alive": timedelta(milliseconds=500)},
    )  # fmt: skip
    assert (config.start_timeout, config.stop_timeout, config.drain_timeout) == (60.0, 90.0, 5.0)
    assert config.http.keep_alive == 0.5
    with pytest.raises(PoolValidateError):
        ServerConfig(name="a", bind=":1", stop_timeout=timedelta(seconds=-1))


def test_every_default_is_the_contracts(real_pool: RealPool) -> None:
    (config,) = configs(real_pool, '[[server]]\nname = "a"\nbind = ":1"\napp = "a:b"\n')
    assert {key: config.get(key) for key in DEFAULTS} == DEFAULTS
    assert config["app_dir"] == config["cwd"] == str(real_pool.directory)
    same = ServerConfig(name="a", bind=":1", app="a:b")
    assert (same.workers, same.disabled, same.start_timeout) == (1, False, 30.0)


def test_the_short_forms_mean_the_long_ones(real_pool: RealPool) -> None:
    head = '[[server]]\nname = "{}"\nbind = ":{}"\napp = "a:b"\n{}\n'
    lines = [
        "workers = 3", 'restart = "always"', 'restart = "no"', 'env_file = "x.env"', 'depends_on = ["s0"]',
        'depends_on = [{ name = "s0", condition = "started" }, "s1"]', "scale = { min = 2 }", "scale = { min = 0 }",
    ]  # fmt: skip
    found = configs(real_pool, "".join(head.format(f"s{n}", n + 1, line) for n, line in enumerate(lines)))
    assert found[0]["scale"] == {"min": 3, "max": 3, "idle": 0.0}
    assert [config["restart"]["policy"] for config in found[1:3]] == ["always", "no"]
    assert found[3]["env_file"] == [f"{real_pool.directory}/x.env"]
    assert found[4]["depends_on"] == [{"name": "s0", "condition": "ready"}]
    assert found[5]["depends_on"] == [
        {"name": "s0", "condition": "started"}, {"name": "s1", "condition": "ready"},
    ]  # fmt: skip
    assert [config["scale"]["max"] for config in found[6:8]] == [2, 1]


def test_variables_stand_for_any_value_and_their_defaults_for_the_empty_one(real_pool: RealPool) -> None:
    text = (
        '[[server]]\nname = "${WHO}"\nbind = "127.0.0.1:${PORT}"\napp = "a:b"\nworkers = "${N:-2}"\n'
        'disabled = "${OFF}"\ntags = ["${T:-x}", "a${E}b"]\nenv = { A = "$$${WHO}", B = "$${WHO}", C = "${E:-c d}" }\n'
    )
    outside = {"WHO": "me", "PORT": "8099", "OFF": "true", "E": ""}
    real_pool.write("pool.toml", text)
    unset = real_pool.run("validate", env={"PORT": "8099", "OFF": "true", "E": ""})
    assert (unset.code, "WHO" in unset.stdout) == (5, True)
    (config,) = configs(real_pool, text, env=outside)
    assert (config["name"], config["bind"]) == ("me", "127.0.0.1:8099")
    assert (config["scale"]["max"], config["disabled"], config["tags"]) == (2, True, ["x", "ab"])
    assert (config["env"]["B"], config["env"]["C"]) == ("${WHO}", "c d")


def test_the_schema_has_default_unit_and_range_of_every_key(real_pool: RealPool) -> None:
    schema = real_pool.ok("config", "--schema").json
    assert schema["$schema"]
    assert schema["title"]
    definitions = schema["$defs"]
    for table in ("Server", "Http", "Restart", "Backoff", "Scale", "Log", "Limits", "Probe", "TLSConfig"):
        for key, about in definitions[table]["properties"].items():
            assert about["description"], f"{table}.{key}"
            text = json.dumps(about)
            optional = '"type": "null"' in text or key in ("name", "bind", "expose", "app", "listen", "cert")
            assert ("default" in about) is not optional, f"{table}.{key}"
            if re.search(r'"(number|integer)"', text) and key != "env":
                assert '"minimum"' in text, f"{table}.{key}"
            if (
                re.search(r"timeout|interval|_age|window|initial|idle|keep_alive|^max$", key)
                and table != "Scale"
            ):
                assert about["unit"] == "seconds", f"{table}.{key}"
    assert definitions["Log"]["properties"]["max_size"]["unit"] == "bytes"
    assert definitions["Limits"]["properties"]["memory"]["unit"] == "bytes"
    for key, default in [
        ("start_timeout", "30s"),
        ("stop_timeout", "10s"),
        ("drain_timeout", "30s"),
        ("workers", 1),
    ]:
        assert definitions["Server"]["properties"][key]["default"] == default


def test_names_have_their_letters_and_the_pools_tables_are_checked_too(real_pool: RealPool) -> None:
    names = ["a b", "", "ü", "a/b", "x" * 201, "ok.name_1-2"]
    text = "".join(
        f'[[server]]\nname = "{name}"\nbind = ":{n + 1}"\napp = "a:b"\n' for n, name in enumerate(names)
    )
    head = '[pool]\nname = "a b"\nport_range = "9-1"\nnmae = 1\n[defaults]\nname = "x"\ndisabld = true\n[extra]\n'
    real_pool.write("pool.toml", head + text)
    errors = real_pool.run("validate", "-o", "json").json["errors"]
    keys = [error["key"] for error in errors]
    for key in ("pool.name", "pool.port_range", "pool.nmae", "defaults.name", "defaults.disabld", "extra"):
        assert key in keys, keys
    assert sum(key.endswith("].name") for key in keys) == 5
