"""`poolctl show`: the state of servers, and each configured value with its origin."""

from __future__ import annotations

from pathlib import Path

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
