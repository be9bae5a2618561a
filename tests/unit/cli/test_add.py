"""`poolctl add`: the table that it sends, from options or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stand_in import Send, always, item, result

from .conftest import Command, Supervised


def test_add_sends_a_table_as_a_file_has_it(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    with supervised(always(item("new"))) as requests:
        said = poolctl(
            "add", "new", "--bind", "127.0.0.1:9", "--app", "hello:app", "--set", "workers=2",
            "--set", "env.LEVEL=debug", "--set", 'tags=["a", "b"]',
            "--set", "env.DAY=2026-01-01", "--set", 'env."odd.key"=a=b',
        )  # fmt: skip
    assert said == (0, "added new, ready\n", "")
    assert requests[0][1]["options"]["server"] == {
        "name": "new",
        "bind": "127.0.0.1:9",
        "app": "hello:app",
        "workers": 2,
        "tags": ["a", "b"],
        "env": {"LEVEL": "debug", "DAY": "2026-01-01", "odd.key": "a=b"},
    }
    assert requests[0][1]["options"]["base_dir"] == str(directory)


def test_lists_can_be_set_as_on_a_command_line(poolctl: Command, supervised: Supervised) -> None:
    words = ["tags=api, inner", "depends_on=db", "command=sh -c 'exec sleep 60'", "env.A=a,b"]
    with supervised(always(item("new"))) as requests:
        poolctl("add", "new", "--bind", ":9", *(part for word in words for part in ("--set", word)))
    assert requests[0][1]["options"]["server"] == {
        "name": "new",
        "bind": ":9",
        "tags": ["api", "inner"],
        "depends_on": ["db"],
        "command": ["sh", "-c", "exec sleep 60"],
        "env": {"A": "a,b"},
    }


def test_add_takes_a_program_without_a_port(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("queue"))) as requests:
        poolctl("add", "queue", "--command", "celery --app 'my shop' worker", "--set", "workers=2")
    assert requests[0][1]["options"]["server"] == {
        "name": "queue",
        "command": ["celery", "--app", "my shop", "worker"],
        "workers": 2,
    }


def test_add_takes_the_servers_of_a_file(poolctl: Command, supervised: Supervised, directory: Path) -> None:
    (directory / "more").mkdir()
    (directory / "more" / "two.yaml").write_text("- {name: a, listen: ':1'}\n- {name: b, bind: ':2'}\n")
    (directory / "one.json").write_text('{"name": "c", "bind": ":3"}')
    (directory / "full.toml").write_text('[[server]]\nname = "d"\nbind = ":4"\n')
    failing = {"code": 1323, "error": "ErrorPoolStart", "name": "a", "bind": "", "message": "no", "hint": ""}

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        name = body["options"]["server"]["name"]
        failed = {"errors": [failing], "exit_code": 1} if name == "a" else {}
        return result(item(name, ready=name != "a"), **failed)

    with supervised(answer) as requests:
        said = poolctl("add", "-f", "more/two.yaml", "-o", "json")
        assert poolctl("add", "-f", "one.json").code == 0
        assert poolctl("add", "-f", "full.toml").code == 0
    assert said.code == 1
    assert [each["name"] for each in said.json["items"]] == ["a", "b"]
    assert said.json["errors"] == [failing]
    assert [body["options"]["server"]["name"] for _, body in requests] == ["a", "b", "c", "d"]
    assert requests[0][1]["options"]["base_dir"] == str(directory / "more")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([], 2), (["x", "-f", "pool.toml"], 2), (["x", "--set", "workers"], 2), (["x", "--set", "=2"], 2),
        (["x", "--set", "command=a 'b"], 2), (["x", "--command", "a 'b"], 2),
        (["x", "--command", "a", "--set", "command=b"], 2), (["--command", "a", "-f", "pool.toml"], 2),
        (["x", "--set", "name=y"], 2), (["x", "--bind", ":1", "--set", "bind=:2"], 2), (["-f", "gone.toml"], 5),
        (["-f", "pool.toml"], 5), (["-f", "empty.toml"], 5),
    ],
)  # fmt: skip
def test_invalid_addition_is_refused_before_anything_is_done(
    poolctl: Command, supervised: Supervised, directory: Path, args: list[str], code: int
) -> None:
    (directory / "empty.toml").write_text("")
    with supervised(always()) as requests:
        assert poolctl("add", *args).code == code
    assert requests == []


MORE = '[[server]]\nname = "new"\nbind = "127.0.0.1:9"\napp = "new:app"\n'


def test_saved_server_is_added_and_written_with_paths_of_the_pools_file(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    (directory / "more").mkdir()
    (directory / "more" / "new.toml").write_text(MORE + 'cwd = "work"\n')
    with supervised(always(item("new"))) as requests:
        said = poolctl("add", "-f", "more/new.toml", "--save")
    assert said == (0, "added new, ready\nwrote pool.toml\n", "")
    ((_, body),) = [each for each in requests if each[0] == "add"]
    assert body["options"]["server"]["cwd"] == str(directory / "more" / "work")
    assert (body["options"]["base_dir"], body["options"]["saves"]) == (str(directory), True)
    assert f'cwd = "{directory}/more/work"' in (directory / "pool.toml").read_text()


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "add: the new server's name is missing", "poolctl add NAME --bind"),
        (["x", "-f", "a.toml"], "NAME and -f cannot be combined", "put it into the file"),
        (["--command", "a", "-f", "a.toml"], "--command and -f cannot be combined", "put it into the file"),
        (["x", "--set", "name=y"], "--set name=y: 'name' is given twice", "give it once"),
        (["x", "--set", "workers"], "--set: 'workers' is not KEY=VALUE", "--set workers=2"),
        (["x", "--command", "a 'b"], "--command: No closing quotation", "KEY"),
    ],
)
def test_wrong_word_is_named_with_its_fix(
    poolctl: Command, words: list[str], message: str, hint: str
) -> None:
    said = poolctl("add", *words)
    assert said.err.startswith(f"error: {message}\n")
    assert (hint if hint != "KEY" else '--set \'command=["a", "b"]\'') in said.err


def test_several_servers_end_with_the_most_severe_exit_code(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    (directory / "two.json").write_text('[{"name": "a", "bind": ":1"}, {"name": "b", "bind": ":2"}]')
    codes: list[int] = []

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        name = body["options"]["server"]["name"]
        return result(
            item(name, ready=False, state="starting"), exit_code=codes[name == "b"], warnings=[f"w{name}"]
        )

    with supervised(answer):
        for first, second, whole in ((0, 8, 8), (8, 0, 8), (8, 1, 1), (1, 8, 1), (0, 0, 0)):
            codes[:] = first, second
            said = poolctl("add", "-f", "two.json")
            assert (said.code, said.err) == (whole, "warning: wa\nwarning: wb\n")
            assert said.out == "added a, starting\nadded b, starting\n"


def test_server_is_not_saved_if_an_option_has_a_wrong_value(poolctl: Command, directory: Path) -> None:
    before = (directory / "pool.toml").read_text()
    words = ["new", "--bind", "127.0.0.1:9", "--command", "sleep 1", "--save", "--timeout", "soon"]
    said = poolctl("add", *words)
    assert (said.code, said.out) == (2, "")
    assert "--timeout" in said.err
    assert (directory / "pool.toml").read_text() == before
    (directory / "pool.toml").write_text("nonsense")
    assert poolctl("add", *words).code == 2, "reported before anything is read"


@pytest.mark.parametrize("is_supervised", [True, False])
def test_invalid_server_is_not_saved_and_its_problems_have_no_place(
    poolctl: Command, supervised: Supervised, directory: Path, is_supervised: bool
) -> None:
    before = (directory / "pool.toml").read_text()
    words = ["add", "new", "--bind", "127.0.0.1:9", "--command", "sleep 1", "--set", "binf=1", "--save"]
    if is_supervised:
        with supervised(always()) as requests:
            said = poolctl(*words)
        assert "add" not in [verb for verb, _ in requests]
    else:
        said = poolctl(*words)
    assert (said.code, said.out) == (5, "")
    assert said.err == "error: new: unknown key 'binf'\n  hint: did you mean 'bind'?\n"
    assert (directory / "pool.toml").read_text() == before
