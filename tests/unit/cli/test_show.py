"""`poolctl show`: the state of servers, and each configured value with its origin."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from poolctl.config.origins import configured_values
from tests.stand_in import always, item

from .conftest import Command, Supervised


def test_show_tells_where_each_value_comes_from(poolctl: Command) -> None:
    said = poolctl("show", "users")
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[0] == "users"
    assert "state stopped" in lines
    assert any(
        line.startswith('bind = "127.0.0.1:8081" #') and line.endswith("pool.toml:6") for line in lines
    )
    assert not any(line.endswith("# default") for line in lines)
    assert {"job", "drain_timeout", "http"} <= set(" ".join(each for each in lines if each[0] == "#").split())
    full = [" ".join(line.split()) for line in poolctl("show", "users", "--full").out.splitlines()]
    assert "job = false # default" in full
    assert {each for each in lines if each[0] != "#"} < set(full)
    (shown,) = poolctl("show", "users", "-o", "json").json["items"]
    assert shown["config"]["tags"] == ["api", "inner"]
    assert shown["origin"]["tags"].endswith("pool.toml:8")


def test_show_leaves_out_the_defaults_of_a_table_in_one_line(poolctl: Command, directory: Path) -> None:
    text = (directory / "pool.toml").read_text()
    (directory / "pool.toml").write_text(f"{text}http = {{ keep_alive = 3 }}\n")
    lines = [line.strip() for line in poolctl("show", "orders").out.splitlines() if "http." in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("http.keep_alive = 3 ")


def test_value_that_no_file_has_is_a_default_whatever_else_its_table_sets(
    poolctl: Command, directory: Path
) -> None:
    keys = ["restart = { window = 9 }", "health = { liveness = { tcp = true } }", "scale = { min = 1 }"]
    text = (directory / "pool.toml").read_text() + "\n".join(keys)
    (directory / "pool.toml").write_text(text)
    lines = [line.split("#")[0].strip() for line in poolctl("show", "orders").out.splitlines()]
    tables = ("restart.", "health.", "scale.")
    assert [line for line in lines if line.startswith(tables)] == [
        "scale.min = 1", "health.liveness.tcp = true", "restart.window = 9",
    ]  # fmt: skip
    full = [" ".join(line.split()) for line in poolctl("show", "orders", "--full").out.splitlines()]
    assert 'restart.policy = "always" # default' in full
    assert "health.liveness.interval = 5 # default" in full


def test_value_of_a_short_form_is_where_that_is(poolctl: Command, directory: Path) -> None:
    head = '[defaults]\nrestart = "no"\nworkers = 2\n'
    keys = 'health = "/ready"\nrecovery = "replace"\nrestart = { window = 9 }\nscale = { max = 5 }\n'
    text = head + (directory / "pool.toml").read_text() + keys
    (directory / "pool.toml").write_text(text)
    lines = [" ".join(line.split()) for line in poolctl("show", "orders").out.splitlines()]
    tables = ("restart.", "health.", "recovery.", "scale.")
    assert [line for line in lines if line.startswith(tables)] == [
        "scale.min = 2 # pool.toml:3", "scale.max = 5 # pool.toml:22",
        'health.readiness.http = "/ready" # pool.toml:19', 'restart.policy = "no" # pool.toml:2',
        "restart.window = 9 # pool.toml:21", 'recovery.strategy = "replace" # pool.toml:20',
    ]  # fmt: skip


def test_show_of_a_running_server_has_its_live_state(poolctl: Command, supervised: Supervised) -> None:
    failure = {"message": "exited with status 3\n    Traceback"}
    running = item(
        "users",
        endpoints=["127.0.0.1:8081"],
        failure=failure,
        config={"env": {"A": "b"}, "user": None},
        origin={},
    )
    with supervised(always(running)):
        said = poolctl("show", "--full")
    assert "endpoints  127.0.0.1:8081" in said.out
    assert "failure    earlier: exited with status 3" in said.out, "it has been ready since"
    assert 'env.A = "b"\n' in said.out
    with supervised(always(running | {"state": "backoff", "ready": False})):
        assert "failure    exited with status 3" in poolctl("show").out


STACKS = {"name": "users", "worker": "users.1.0", "pid": 7, "source": "python", "threads": [], "tasks": []}


def shown(poolctl: Command, supervised: Supervised, *words: str, **members: Any) -> dict[str, str]:
    """The rows of a server of this state, by their names; those of the configuration are left out."""
    with supervised(always(item("users", config={}, origin={}, **members))):
        text = poolctl("show", *words).out
    rows: dict[str, str] = {}
    for line in text.partition("  configuration")[0].splitlines()[1:]:
        key, _, value = line.strip().partition("  ")
        if line.startswith("  ") and not line.startswith("   "):
            rows[key] = value.strip()
        else:
            rows[[*rows][-1]] += "\n" + line.strip()
    return rows


def test_show_has_a_row_for_each_thing_that_there_is_to_say(poolctl: Command, supervised: Supervised) -> None:
    rows = shown(poolctl, supervised)
    assert rows == {
        "bind": "127.0.0.1:8081", "expose": "http://127.0.0.1:8081", "state": "running", "ready": rows["ready"],
        "health": "ok", "pids": "4242", "workers": "1", "uptime": rows["uptime"], "restarts": "0", "tags": "api",
    }  # fmt: skip
    assert shown(poolctl, supervised, tags=[])["tags"] == "-"
    more = shown(
        poolctl, supervised, complaint="503", preload_problem="it forks", stacks=STACKS, kept="asleep",
        routes=[{"alias": "api", "protocol": "http", "host": "", "path": "/v1"},
                {"alias": "db", "protocol": "tcp", "host": "127.0.0.1:5", "path": ""}],
    )  # fmt: skip
    assert (more["complaint"], more["preload"]) == ("503", "has no effect: it forks")
    assert more["hung"].startswith("worker users.1.0 (pid 7)")
    assert more["routes"] == "api: http://*/v1\ndb: tcp://127.0.0.1:5"
    assert [*more].index("kept") == [*more].index("state") + 1
    assert more["kept"] == "asleep"
    assert shown(poolctl, supervised, routes=[])["routes"] == "-"


def test_show_has_the_tree_of_dependencies_on_a_terminal_only(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "pool.toml").write_text(
        "".join(
            f'[[server]]\nname = "{name}"\ncommand = ["x"]\n{keys}\n'
            for name, keys in (
                ("shop", 'depends_on = ["api", { name = "schema", condition = "completed" }]'),
                ("api", 'depends_on = ["db"]'),
                ("schema", "job = true"),
                ("db", "disabled = true"),
            )
        )
    )
    tree = [
        "  depends on", "  ├── api stopped", "  │   └── db disabled", "  └── schema (completed) stopped",
    ]  # fmt: skip
    assert "depends on" not in poolctl("show", "shop").out
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", poolctl("show", "shop").out).splitlines()
    assert lines[lines.index(tree[0]) :][:4] == tree
    assert "depends on" not in poolctl("show", "db").out


def test_show_has_the_last_run_of_a_job_in_local_time(
    poolctl: Command, supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    run = {"started_at": "2026-11-22T03:00:00Z", "ended_at": "2026-11-22T03:00:02Z", "result": "failed",
           "message": "exited with status 3"}  # fmt: skip
    rows = shown(poolctl, supervised, last_run=run, next_run_at="2026-11-23T03:00:00Z")
    assert rows["last run"] == "failed: exited with status 3 (2026-11-22 03:00:00 to 03:00:02 UTC)"
    assert "next run" in rows
    run |= {"ended_at": "2026-11-23T00:00:02Z", "result": "succeeded"}
    rows = shown(poolctl, supervised, last_run=run)
    assert rows["last run"] == "succeeded (2026-11-22 03:00:00 to 2026-11-23 00:00:02 UTC)"
    monkeypatch.undo()
    time.tzset()


def test_show_names_the_keys_at_their_defaults_in_lines_that_fit(poolctl: Command) -> None:
    lines = [line for line in poolctl("show", "users").out.splitlines() if line.startswith("    #")]
    assert len(lines) > 2
    assert max(map(len, lines)) < 80
    assert not any("#" in line[5:] for line in lines)


def test_show_knows_the_defaults_of_a_server_whose_files_have_changed(
    poolctl: Command, supervised: Supervised
) -> None:
    usual = poolctl("show", "users", "-o", "json").json["items"][0]["config"]
    with supervised(always(item("users", config=usual, origin=None))):
        text = poolctl("show").out
    assert "job" in text.partition("#")[2]
    assert "job = false" not in text
    assert 'bind = "127.0.0.1:8081"\n' in text


def test_key_within_a_table_has_the_origin_of_the_table_if_that_is_all_that_is_known() -> None:
    origin = {"http": "/p/pool.toml:3", "env": "/p/pool.toml:4", "env.A": "/p/pool.toml:4"}
    config = {"http": {"loop": "uvloop"}, "env": {"A": "1", "B": "2"}, "name": "a"}
    assert [(key, place) for key, _, place in configured_values(config, origin)] == [
        ("http.loop", "/p/pool.toml:3"), ("env.A", "/p/pool.toml:4"), ("env.B", "default"), ("name", "default"),
    ]  # fmt: skip


def test_show_masks_secrets_unless_they_are_asked_for(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users", config={"env": {"API_KEY": "hidden"}}, origin={}))) as requests:
        assert 'env.API_KEY = "********"' in poolctl("show", "--full").out
        assert 'env.API_KEY = "hidden"' in poolctl("show", "--full", "--reveal").out
    assert [body["options"].get("reveal", False) for _, body in requests] == [False, True]
