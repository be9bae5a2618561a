"""Changes of a running pool, against a stand-in for the supervisor; and --save: checks, requests and files."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import moments
from tests.stand_in import Answer, Send, always, item, result

from .conftest import POOL, Command, Supervised

CHANGES_OF_SELECTED = [["remove"], ["disable"], ["enable"], ["drain"], ["undrain"], ["scale", "2"]]


@pytest.mark.parametrize("words", CHANGES_OF_SELECTED)
def test_a_change_without_a_selection_is_a_usage_error_that_counts_the_servers(
    poolctl: Command, supervised: Supervised, words: list[str]
) -> None:
    with supervised(always(item("a"), item("b"), item("c"))) as requests:
        said = poolctl(*words)
        saved = poolctl(*words, "--save")
    assert (said.code, said.out, saved.code) == (2, "", 2)
    assert f"{words[0]} without a selection would change all 3 servers of the pool" in said.err
    assert "--all" in said.err
    assert {verb for verb, _ in requests} == {"list"}, "something was asked to change"
    unsupervised = poolctl(*words)
    assert (unsupervised.code, "all 2 servers" in unsupervised.err) == (2, True)


@pytest.mark.parametrize("words", CHANGES_OF_SELECTED)
def test_all_is_an_explicit_selection_and_excludes_any_other(
    poolctl: Command, supervised: Supervised, words: list[str]
) -> None:
    verb, *number = words
    with supervised(always(item("a", workers=2), item("b", workers=2))) as requests:
        assert poolctl(verb, "--all", *number).code == 0
        for selection in (["a"], ["--tag", "api"], ["--not"]):
            said = poolctl(verb, "--all", *selection, *number)
            assert (said.code, "cannot be combined" in said.err) == (2, True), selection
    ((asked, body),) = requests
    assert (asked, body["options"]["all"], body["selector"]["targets"]) == (verb, True, [])


def test_a_pool_of_broken_files_is_not_counted_and_not_changed(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text("broken [")
    said = poolctl("remove", "--save")
    assert (said.code, "would change all servers of the pool" in said.err) == (2, True)


def test_the_number_of_scale_is_the_last_word(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("a"))) as requests:
        poolctl("scale", "a", "b*", "--tag", "api", "4")
    body = requests[0][1]
    assert (body["selector"]["targets"], body["selector"]["tag"]) == (["a", "b*"], ["api"])
    assert body["options"]["workers"] == 4


COMMENTED = POOL.replace('name = "users"\n', 'name = "users"   # who buys\n')
NEW = '\n[[server]]\nname = "new"\nbind = "127.0.0.1:9"\ncommand = ["sleep", "1"]\n'
ADD = ["add", "new", "--bind", "127.0.0.1:9", "--set", 'command=["sleep", "1"]']


@pytest.fixture
def file(directory: Path) -> Path:
    path = directory / "pool.toml"
    path.write_text(COMMENTED)
    return path


def test_a_live_change_is_made_and_then_written(poolctl: Command, supervised: Supervised, file: Path) -> None:
    with supervised(always(item("users", workers=3))) as requests:
        said = poolctl("scale", "users", "3", "--save")
    assert said == (0, "1 server scaled to 3 workers\nwrote pool.toml\n", "")
    assert [verb for verb, _ in requests] == ["ping", "list", "scale"]
    assert requests[2][1]["options"]["workers"] == 3
    assert file.read_text() == COMMENTED.replace('"inner"]\n', '"inner"]\nworkers = 3\n')


def test_json_says_which_files_were_written(poolctl: Command, supervised: Supervised, file: Path) -> None:
    with supervised(always(item("orders", 8082))):
        document = poolctl("enable", "orders", "--save", "-o", "json").json
    assert document["saved"] == [str(file)]
    assert document["items"] == [item("orders", 8082)]
    assert file.read_text() == COMMENTED.replace("disabled = true\n", "")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["enable", "orders"], COMMENTED.replace("disabled = true\n", "")),
        (["disable", "--tag", "api"], COMMENTED.replace('"inner"]\n', '"inner"]\ndisabled = true\n')),
        (["remove", "orders"], COMMENTED[: COMMENTED.index('\n[[server]]\nname = "orders"')]),
        (ADD, COMMENTED + NEW),
    ],
)
def test_without_a_supervisor_only_the_file_changes(
    poolctl: Command, file: Path, args: list[str], text: str
) -> None:
    assert poolctl(*args).code == 6
    assert file.read_text() == COMMENTED
    said = poolctl(*args, "--save")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("wrote pool.toml\n")
    assert file.read_text() == text
    assert poolctl("validate").code == 0


def test_change_that_the_file_has_already_is_not_written(poolctl: Command, file: Path) -> None:
    before = file.stat().st_ino
    assert (
        poolctl("disable", "orders", "--save").out
        == "1 server disabled\nthe files have this change already\n"
    )
    assert file.stat().st_ino == before


def test_enable_in_the_file_alone_speaks_of_no_ready_server(poolctl: Command, file: Path) -> None:
    assert poolctl("enable", "orders", "--save").out == "1 server enabled\nwrote pool.toml\n"
    assert poolctl("enable", "orders", "--save").out == (
        "orders is enabled already, and stopped: `poolctl start orders` starts it\n"
        "the files have this change already\n"
    )


def scaling(change: Callable[[], object], exit_code: int = 0) -> Answer:
    """Answers every verb; makes this change, and answers with the exit code, when it is asked to scale."""

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "scale":
            change()
        return result(item("users", workers=2), exit_code=exit_code if verb == "scale" else 0)

    return answer


@pytest.mark.parametrize(("code", "is_written"), [(1, True), *((code, False) for code in (2, 4, 5, 8))])
def test_a_change_that_failed_for_some_is_written_and_a_refused_one_is_not(
    poolctl: Command, supervised: Supervised, file: Path, code: int, is_written: bool
) -> None:
    with supervised(scaling(lambda: None, code)):
        assert poolctl("scale", "users", "2", "--save").code == code
    assert (file.read_text() != COMMENTED, "workers = 2" in file.read_text()) == (is_written, is_written)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["add", "users", "--bind", ":9", "--app", "a:b"], 8), (["add", "USERS", "--bind", ":9", "--app", "a:b"], 8),
        (["add", "x", "--bind", "127.0.0.1:8081", "--app", "a:b"], 8),
        (["add", "x", "--bind", ":8081", "--app", "a:b"], 8),
        (["add", "x", "--app", "a:b"], 5), (["add", "x", "--bind", "nowhere", "--app", "a:b"], 5),
        (["add", "x", "--bind", ":9", "--app", "a:b", "--set", "wrokers=2"], 5), (["remove", "nobody"], 4),
        (["remove", "--all"], 5), (["add", "x", "--bind", ":9", "--app", "a:b", "--timeout", "soon"], 2),
    ],
)  # fmt: skip
def test_impossible_request_is_refused_before_anything_is_done(
    poolctl: Command, supervised: Supervised, file: Path, args: list[str], code: int
) -> None:
    assert poolctl(*args, "--save").code == code

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        unknown = body.get("selector", {}).get("targets") == ["nobody"]
        return result(item("users"), item("orders"), exit_code=4 if unknown else 0)

    with supervised(answer) as requests:
        assert poolctl(*args, "--save").code == code
    assert {verb for verb, _ in requests} <= {"ping", "list"}
    assert file.read_text() == COMMENTED


def test_a_broken_file_is_left_alone(poolctl: Command, supervised: Supervised, file: Path) -> None:
    for text in ("broken [", COMMENTED + "wrokers = 2\n"):
        file.write_text(text)
        with supervised(always(item("users"))) as requests:
            assert poolctl("scale", "users", "2", "--save").code == 5
        assert {verb for verb, _ in requests} <= {"ping", "list"}
        assert file.read_text() == text


def test_dry_run_prints_the_difference_and_writes_nothing(poolctl: Command, file: Path) -> None:
    said = poolctl(*ADD, "--save", "--dry-run")
    assert said.code == 3
    assert said.out.endswith('+[[server]]\n+name = "new"\n+bind = "127.0.0.1:9"\n+command = ["sleep", "1"]\n')
    assert file.read_text() == COMMENTED
    said = poolctl("add", "other", "--command", "x --password hunter2 --token=hunter3", "--save", "--dry-run")
    assert (said.code, "********" in said.out, "hunter" in said.out) == (3, True, False)
    assert poolctl("disable", "orders", "--save", "--dry-run") == (0, "", "")
    assert poolctl("disable", "orders", "--dry-run").code == 2


def test_a_server_that_is_in_no_file_is_not_written(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    with supervised(always(item("users"), item("live"))):
        said = poolctl("scale", "--all", "2", "--save")
    with supervised(always(item("live"))):
        gone = poolctl("remove", "live", "--save")
    assert said.err.startswith("warning: live is not in any file")
    assert gone.code == 0
    assert file.read_text().count("workers = 2") == 1


def test_server_removed_live_can_still_be_taken_out_of_the_file(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    with supervised(always(exit_code=4)) as requests:
        assert poolctl("remove", "users", "--save").out == "removed users 127.0.0.1:8081\nwrote pool.toml\n"
        assert poolctl("remove", "nobody", "--save").code == 4
    assert [verb for verb, _ in requests] == ["ping", "list"] * 2
    assert "users" not in file.read_text()


def test_a_file_that_changes_meanwhile_is_not_overwritten(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    with supervised(scaling(lambda: os.truncate(file, 0))):
        said = poolctl("scale", "users", "2", "--save")
    assert said.code == 8
    assert "meanwhile" in said.err
    assert file.read_text() == ""


def test_concurrent_change_of_another_writer_stays(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    other = COMMENTED.replace("who buys", "who bought")
    other_file = file.with_suffix(".other")
    other_file.write_text(other)
    with supervised(scaling(lambda: os.rename(other_file, file))):
        assert poolctl("scale", "users", "2", "--save").code == 0
    assert file.read_text() == other.replace('"inner"]\n', '"inner"]\nworkers = 2\n')


def test_selection_that_the_running_pool_refuses_changes_nothing(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    with supervised(always(exit_code=4, errors=[{"message": "no server matches"}])) as requests:
        assert poolctl("scale", "nobody", "2", "--save") == (4, "", "error: no server matches\n")
    assert [verb for verb, _ in requests] == ["ping", "list"]
    assert file.read_text() == COMMENTED


def test_file_that_others_change_again_and_again_is_given_up(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    changing: list[bool] = []

    def change(path: object, *_: object) -> None:
        if path in (str(file), file.name) and not changing:
            changing.append(True)
            file.write_text(file.read_text() + "#")
            changing.clear()

    with supervised(always(item("users", workers=2))), moments.before("open", change):
        said = poolctl("scale", "users", "2", "--save")
    assert (said.code, said.out) == (8, "1 server scaled to 2 workers\n")
    assert said.err.endswith("hint: nothing was written; check the file, then repeat the command\n")
    written = file.read_text()
    assert written.rstrip("#") == COMMENTED
    assert len(written) - len(COMMENTED) > 20, "it has been tried that often"


def test_change_that_cannot_be_written_lasts_until_a_reload(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    with supervised(scaling(file.unlink)):
        said = poolctl("scale", "users", "2", "--save")
    assert said.code == 1
    assert said.out == "1 server scaled to 2 workers\n"
    assert said.err == (
        "error: cannot write pool.toml: No such file or directory\n"
        "  hint: the live change lasts until the next reload\n"
    )


YAML = """\
server:
  # who buys
  - name: users
    bind: "127.0.0.1:8081"
    command: ["sleep", "60"]
  - name: orders
    bind: "127.0.0.1:8082"
    command: ["sleep", "60"]
    disabled: true
"""
JSON = """\
[{
    "name": "users", "bind": "127.0.0.1:8081", "command": ["sleep", "60"]
}, {
    "name": "orders", "bind": "127.0.0.1:8082", "command": ["sleep", "60"],
    "disabled": true
}]
"""
REFUSED = "error: --save changes TOML files only: nothing was changed, live or in a file\n"


@pytest.mark.parametrize(
    ("name", "text", "args", "instruction"),
    [
        ("pool.yaml", YAML, ["scale", "users", "3"], "3:5: server[0].workers: write this:\n    workers: 3\n"),
        ("pool.yaml", YAML, ["enable", "orders"], "9:5: server[1].disabled: remove this key\n"),
        ("pool.json", JSON, ["remove", "orders"], "3:4: [1]: remove this server\n"),
        (
            "pool.json",
            JSON,
            ADD,
            (
                "3:4: [1]: write this after the server:\n"
                '    {"name": "new", "bind": "127.0.0.1:9", "command": ["sleep", "1"]}\n'
            ),
        ),
    ],
)
def test_save_of_yaml_and_json_is_refused_with_what_to_write_before_anything_is_changed(
    poolctl: Command,
    supervised: Supervised,
    file: Path,
    name: str,
    text: str,
    args: list[str],
    instruction: str,
) -> None:
    other = file.with_name(name)
    other.write_text(text)
    target = item("orders" if "orders" in args else "users")
    with supervised(always(target, files=[str(other)])) as requests:
        said = poolctl(*args, "--save")
        shown = poolctl(*args, "--save", "--dry-run")
        document = poolctl(*args, "--save", "-o", "json").json
    reload = "  hint: make these changes by hand, then run poolctl reload\n"
    assert said == (2, "", f"{REFUSED}{reload}{name}:{instruction}")
    assert shown == said
    assert {verb for verb, _ in requests} <= {"ping", "list"}
    assert [each["code"] for each in document["errors"]] == [2, 2]
    line, _, _ = instruction.partition(":")
    assert (document["errors"][1]["file"], document["errors"][1]["line"]) == (str(other), int(line))
    assert other.read_text() == text


def test_save_of_a_yaml_file_is_refused_without_a_supervisor_too(poolctl: Command, file: Path) -> None:
    file.unlink()
    other = file.with_name("pool.yaml")
    other.write_text(YAML)
    said = poolctl("add", "new", "--command", "x", "--set", "env.X_TOKEN=hunter2", "--save")
    assert (said.code, said.out) == (2, "")
    assert "  hint: make these changes by hand (******** stands for a secret)\n" in said.err
    assert "hunter2" not in said.err
    assert poolctl("add", "users", "--command", "x", "--save").code == 8
    assert poolctl("add", "new", "--set", "wrokers=2", "--save").code == 5
    assert other.read_text() == YAML


def test_save_of_a_change_that_a_yaml_file_has_already_is_done(
    poolctl: Command, supervised: Supervised, file: Path
) -> None:
    other = file.with_name("pool.yaml")
    other.write_text(YAML)
    with supervised(always(item("orders", state="disabled"), files=[str(other)])):
        said = poolctl("disable", "orders", "--save")
    assert said == (0, "1 server disabled\nthe files have this change already\n", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_cannot_be_written_is_7_before_anything_is_done(
    poolctl: Command, file: Path, directory: Path
) -> None:
    directory.chmod(0o500)
    try:
        assert poolctl("enable", "orders", "--save").code == 7
    finally:
        directory.chmod(0o700)


@pytest.mark.parametrize(
    ("number", "hint"),
    [("0", "use poolctl stop to stop all workers"), ("10001", "the last word is the number: poolctl scale web 4"),
     ("x", "the last word is the number: poolctl scale web 4")],
)  # fmt: skip
def test_wrong_number_of_workers_has_its_fix(poolctl: Command, number: str, hint: str) -> None:
    said = poolctl("scale", "web", number)
    assert said.err == f"error: scale: {number!r} is not a number from 1 to 10000\n  hint: {hint}\n"


@contextmanager
def unwritable_files(number: int = errno.EFBIG) -> Iterator[Callable[[], None]]:
    """From the call of the function to the end of the block, writing fails with this error."""
    user, limits = os.geteuid(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield (
            lambda: (
                os.seteuid(65534)
                if number == errno.EACCES
                else resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            )
        )
    finally:
        os.seteuid(user)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 7), (errno.EFBIG, 1)])
def test_file_that_cannot_be_written_after_the_change_is_an_error_with_its_exit_code(
    poolctl: Command, supervised: Supervised, file: Path, number: int, code: int
) -> None:
    if number == errno.EACCES and os.geteuid() != 0:
        pytest.skip("needs root, to become another user")

    with unwritable_files(number) as forbid, supervised(scaling(forbid)):
        said = poolctl("scale", "users", "2", "--save", "-o", "json")
    document = said.json
    assert (said.code, document["saved"]) == (code, [])
    (error,) = document["errors"]
    assert (error["code"], error["message"]) == (code, f"cannot write pool.toml: {os.strerror(number)}")
    assert error["hint"] == "the live change lasts until the next reload"
    assert [each["name"] for each in document["items"]] == ["users"]


def test_file_alone_that_cannot_be_written_changes_nothing(poolctl: Command, file: Path) -> None:
    with unwritable_files() as forbid:
        forbid()
        said = poolctl("disable", "users", "--save")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: cannot write pool.toml: File too large\n")


def test_scaling_by_triggers_changes_no_file(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), item("orders"))) as requests:
        assert poolctl("scale", "--all", "--auto").out == "2 servers scaled by triggers\n"
    assert requests[0][1]["options"]["auto"] is True
    said = poolctl("scale", "--all", "--auto", "--save")
    assert (said.code, "leave out --save" in said.err) == (2, True)
