"""A server is given the addresses of others: `${server.NAME.url}` in its env and command."""

from __future__ import annotations

from typing import Any

from tests.ports import claim_port
from tests.real_pool import WHO_APP, RealPool


def write(pool: RealPool, users: str, front: int) -> None:
    pool.write("who.py", WHO_APP)
    pool.write(
        "pool.toml",
        f"""
        [pool]
        port_range = "{claim_port()}-65000"
        [[server]]
        name = "users"
        bind = "127.0.0.1:{users}"
        app = "hello:app"
        [[server]]
        name = "front"
        bind = "127.0.0.1:{front}"
        app = "who:app"
        env = {{ WHO = "${{server.users.url}} ${{server.users.host}} ${{server.users.port}}" }}
        """,
    )


def test_server_is_given_the_chosen_port_of_another(real_pool: RealPool, http_get: Any) -> None:
    real_pool.write_hello("users")
    front = claim_port()
    write(real_pool, "auto", front)
    real_pool.ok("start")
    url = real_pool.items()["users"]["expose"]
    port = url.rpartition(":")[2]
    assert http_get(f"http://127.0.0.1:{front}/").text == f"{url} 127.0.0.1 {port}"
    assert real_pool.ok("reload", "--dry-run").code == 0

    fixed = claim_port()
    write(real_pool, str(fixed), front)
    real_pool.ok("reload")
    assert http_get(f"http://127.0.0.1:{front}/").text == f"http://127.0.0.1:{fixed} 127.0.0.1 {fixed}"

    added = ("--command", "sleep 1000", "--set")
    wrong = real_pool.run("add", "other", *added, "env.USERS=${server.user.url}")
    assert wrong.code == 5
    assert "other: there is no server 'user'\n  hint: did you mean 'users'?" in wrong.stderr
    real_pool.ok("add", "other", *added, "env.USERS=${server.users.port}")
    (other,) = real_pool.ok("show", "other", "-o", "json").json["items"]
    assert other["config"]["env"] == {"USERS": str(fixed)}
