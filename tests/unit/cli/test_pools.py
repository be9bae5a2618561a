"""`poolctl pools`: the running pools of this user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.stand_in import Send, always, item

from .conftest import Command, Supervised


def test_pools_lists_the_pools_of_this_user(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    assert poolctl("pools") == (0, "", "note: no pool of this user is running\n")
    summary = {
        "name": "shop",
        "files": [str(directory / "pool.toml")],
        "supervisor_pid": 41,
        "keeper_pid": 40,
        "version": "1.2",
    }
    (directory / "run" / "dead").mkdir(parents=True)
    (directory / "run" / "dead" / "control.sock").touch()
    resting = [item(state, ready=False, state=state) for state in ("stopped", "disabled", "sleeping")]
    running = [item("users"), item("orders", ready=False), item("migrate", state="completed")]
    with supervised(always(*running, *resting, summary=summary, exit_code=3)):
        said = poolctl("pools")
        (pool,) = poolctl("pools", "-o", "json").json["items"]
        assert poolctl("pools", "-o", "name").out == "shop\n"
    assert said == (0, "NAME  PID  READY  FILES\nshop  41   2/3    pool.toml\n", "")
    assert pool["files"] == [str(directory / "pool.toml")]
    assert (pool["name"], pool["pid"], pool["servers"], pool["ready"]) == ("shop", 41, 6, 2)
    assert (pool["keeper_pid"], pool["version"]) == (40, "1.2")


def test_pool_that_does_not_answer_is_still_listed(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    async def hang_up(verb: str, body: dict[str, Any], send: Send) -> None:
        return None

    with supervised(hang_up):
        (place,) = (directory / "run").iterdir()
        (place / "info.json").write_text('{"name": "shop", "supervisor_pid": 7, "files": ["/pool.toml"]}')
        assert poolctl("pools").out == "NAME  PID  READY  FILES\nshop  7    ?      /pool.toml\n"
        assert "ended" in poolctl("pools", "-o", "json").json["items"][0]["message"]


def test_name_of_a_pool_is_no_second_pool(poolctl: Command, supervised: Supervised, directory: Path) -> None:
    with supervised(always(item("users"))):
        (place,) = (directory / "run").iterdir()
        (directory / "run" / "@shop").symlink_to(place.name)
        assert len(poolctl("pools", "-o", "json").json["items"]) == 1
