"""`poolctl list` and `status` print what the supervisor sent, without the classes of answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.cli.options import FIELDS
from poolctl.control.answers import Item
from poolctl.json_form import field_names, from_json, to_json
from tests.stand_in import always, item
from tests.terminal import Screen

from .conftest import Command, Supervised


def test_fields_are_those_of_the_class() -> None:
    assert field_names(Item)[: len(FIELDS)] == FIELDS
    assert tuple(to_json(from_json(Item, {}))) == FIELDS


@pytest.mark.parametrize("verb", ["list", "status"])
def test_imports_neither_the_model_of_files_nor_rich(
    directory: Path, supervised: Supervised, verb: str
) -> None:
    forms = "table", "json", "jsonl", "name", "name,uptime,tags"
    script = f"from poolctl.cli.main import main; [main([{verb!r}, '-o', form]) for form in {forms!r}]"
    script += "; import sys; print({'poolctl.config.model', 'rich', 'asyncio'} & {*sys.modules} or 'neither')"
    with supervised(always(item("users"))):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=directory, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert done.stdout.count("users") == len(forms)
    assert done.stdout.split()[-1] == "neither"


@pytest.mark.parametrize("form", ["table", "json"])
def test_list_masks_a_password(poolctl: Command, supervised: Supervised, form: str) -> None:
    with supervised(always({**item("users"), "expose": "http://me:secret@host"})):
        assert "secret" not in poolctl("list", "-o", form).out


@pytest.mark.parametrize(
    ("args", "note"),
    [
        ([], "the pool has no servers"),
        (["-o", "name"], "the pool has no servers"),
        (["--allow-empty", "nobody"], "no server matches"),
        (["-o", "json"], ""),
        (["-o", "jsonl"], ""),
    ],
)
def test_list_of_nothing_says_so_but_not_in_json(
    poolctl: Command, supervised: Supervised, args: list[str], note: str
) -> None:
    with supervised(always()):
        said = poolctl("list", *args)
    assert (said.code, said.err) == (0, f"note: {note}\n" if note else "")


@pytest.mark.parametrize(
    ("form", "verb"),
    [
        ("table", "list"),
        ("json", "list"),
        ("wide", "stats"),
        ("name,cpu", "stats"),
        ("memory", "stats"),
        ("name", "list"),
    ],
)
def test_figures_are_asked_for_only_where_they_are_printed(
    poolctl: Command, supervised: Supervised, form: str, verb: str
) -> None:
    with supervised(always(item("users"))) as requests:
        assert poolctl("list", "-o", form).code == 0
    assert [asked for asked, _ in requests] == [verb]


def test_list_in_json_has_what_the_gateway_serves(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), gateway={"bind": [":80"]})):
        assert poolctl("list", "-o", "json").json["gateway"] == {"bind": [":80"]}


def test_table_ends_with_the_gateway_on_a_terminal(poolctl: Command, supervised: Supervised) -> None:
    gateway = {
        "state": "failed", "problem": "port 80 is in use", "addresses": [], "routes": 1, "pid": None,
        "uptime_seconds": None, "restarts": 1,
    }  # fmt: skip
    with supervised(always(item("users"), gateway=gateway)):
        assert "[gateway]" not in poolctl("list").out
        with Screen() as screen:
            assert poolctl("list").code == 0
        assert "[gateway] failed, 1 route" in screen.text()


def test_without_a_supervisor_servers_are_stopped_or_disabled(poolctl: Command) -> None:
    items = poolctl("list", "-o", "json").json["items"]
    assert [(i["name"], i["state"], i["ready"], i["health"], i["pids"]) for i in items] == [
        ("users", "stopped", False, "unknown", []),
        ("orders", "disabled", False, "unknown", []),
    ]


def test_with_a_supervisor_it_is_asked(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users", pids=[7]))) as requests:
        assert poolctl("list", "-o", "pids").out == "7\n"
        assert poolctl("list", "users", "--not", "-o", "name,state").out == "users\trunning\n"
    assert requests[1][1]["selector"]["not"] is True
