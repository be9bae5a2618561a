"""Every key of a server acts in a `Pool`, or is refused there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from poolctl import Pool, PoolStartError, ServerConfig
from poolctl.config import Http, Limits
from poolctl.config.model.server_tables import Scale
from poolctl.runners.embedded_runner import ProcessRunner
from tests.ports import claim_port

# Keys of tables of which some act and some do not are listed one by one.
TABLES = {"http": Http, "limits": Limits, "scale": Scale}
ACT = {
    "name", "bind", "expose", "app", "factory", "interface", "app_dir", "socket_mode", "socket_owner", "overlap",
    "handler_key", "disabled", "on_demand", "depends_on", "tls", "start_timeout", "stop_timeout", "drain_timeout",
    "health", "restart", "scale.min", "scale.idle", "scale.awake", "scale.asleep", "scale.timezone",
    *(f"http.{key}" for key in Http.model_fields if key not in ("loop", "log_level")),
    "preload",  # a program imports a module once anyway
}  # fmt: skip
DESCRIBE = {"tags", "labels", "image", "watch"}  # other tools read them
COMMAND = {"command": ["true"]}
JOB = {**COMMAND, "bind": None, "job": True}
NEED_A_PROCESS: dict[str, dict[str, Any]] = {
    "command": COMMAND,
    "socket": {**COMMAND, "socket": "program"},
    "backend_protocol": {**COMMAND, "backend_protocol": "h2"},
    "forward": {**COMMAND, "socket": "proxied", "forward": "tcp"},
    "stdin": {**COMMAND, "stdin": "open"},
    "notify": {**COMMAND, "notify": True},
    "ready_line": {**COMMAND, "ready_line": "ready"},
    "ready_after": {**COMMAND, "bind": None, "ready_after": "1ms"},
    "stop_signal": {**COMMAND, "stop_signal": "SIGINT"},
    "stop_group": {**COMMAND, "stop_group": "leader"},
    "job": JOB,
    "every": {**JOB, "every": "0 3 * * *"},
    "python": {"python": "/other/python"},
    "env": {"env": {"A": "1"}},
    "env_file": {"env_file": ["other.env"]},
    "user": {"user": "nobody"},
    "umask": {"umask": "0027"},
    "hooks": {"hooks": {"after_stop": ["true"]}},
    "cwd": {"cwd": "/"},
    "log": {"log": {"format": "json"}},
    "limits.open_files": {"limits": {"open_files": 100}},
    "http.loop": {"http": {"loop": "asyncio"}},
    "http.log_level": {"http": {"log_level": "debug"}},
}
NEED_THE_SUPERVISOR: dict[str, dict[str, Any]] = {
    "limits.memory": {"limits": {"memory": "1GiB"}},
    "mandatory": {"mandatory": True},
    "recovery": {"recovery": "replace"},
    "reload_signal": {"reload_signal": "SIGHUP"},
    "scale.max": {"scale": {"max": 2}},
}


def refusal(keys: dict[str, Any], runner: ProcessRunner | None = None) -> tuple[str, str]:
    table = {"name": "web", "bind": f"127.0.0.1:{claim_port()}", **keys}
    app = {} if "command" in keys else {"app": "nowhere:app"}
    pool = Pool([ServerConfig(**{k: v for k, v in (table | app).items() if v is not None})], runner=runner)
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    (problem,) = caught.value.exceptions
    return problem.message, problem.hint


def test_every_key_of_a_server_acts_in_a_pool_or_is_refused() -> None:
    keys = set(ServerConfig.model_fields) - set(TABLES)
    keys |= {f"{table}.{key}" for table, model in TABLES.items() for key in model.model_fields}
    listed = Counter([*ACT, *DESCRIBE, *NEED_A_PROCESS, *NEED_THE_SUPERVISOR])
    assert listed.keys() ^ keys == set(), (
        "belongs in ACT, DESCRIBE, NEED_A_PROCESS or NEED_THE_SUPERVISOR above"
    )
    assert [key for key, count in listed.items() if count > 1] == []


@pytest.mark.parametrize("key", NEED_A_PROCESS)
def test_key_that_needs_a_process_is_refused_inside_this_one(key: str) -> None:
    message, hint = refusal(NEED_A_PROCESS[key])
    named = "command" if "command" in NEED_A_PROCESS[key] and key != "every" else key
    assert f"`{named}`" in message
    assert message.endswith("cannot be honoured inside this process")
    assert "ProcessRunner()" in hint


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("key", NEED_THE_SUPERVISOR)
def test_key_that_needs_the_supervisor_is_refused_by_every_pool(key: str, processes: bool) -> None:
    message, hint = refusal(NEED_THE_SUPERVISOR[key], ProcessRunner() if processes else None)
    assert message == f"`{key}` cannot be honoured inside a Python program"
    assert "poolctl start" in hint


def test_directory_of_this_program_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    message, _ = refusal({"cwd": "/"})
    assert "cwd" not in message
