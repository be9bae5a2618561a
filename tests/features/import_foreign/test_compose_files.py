"""A compose file is imported with its override, and with the files of `include` and `extends`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Import

BASE = """\
services:
  web:
    image: x
    command: ["python3", "-m", "http.server", "8000"]
    ports: ["8080:8000"]
    environment: {A: "1", B: "2"}
    depends_on: [db]
    cap_add: [A]
  db:
    image: x
    command: sleep 5
"""
OVERRIDE = """\
services:
  web:
    command: ["python3", "-m", "http.server", "8000", "-d", "x"]
    environment: ["B=3", "C=4"]
    depends_on: {db: {condition: service_healthy}, mail: {condition: service_started}}
    read_only: true
  mail: {image: x, command: sleep 6}
"""


@pytest.mark.parametrize(
    ("name", "override"),
    [("compose.yaml", "compose.override.yaml"), ("docker-compose.yml", "docker-compose.override.yml")],
)
def test_override_beside_a_file_is_merged_into_it(
    imported: Import, tmp_path: Path, name: str, override: str
) -> None:
    (tmp_path / override).write_text(OVERRIDE)
    said = imported(BASE, name)
    assert said.servers["web"] == {
        "bind": ":8080",
        "command": ["python3", "-m", "http.server", "{port}", "-d", "x", "--bind", "{host}"],
        "env": {"A": "1", "B": "3", "C": "4"},
        "restart": "no",
        "depends_on": [{"name": "db", "condition": "ready"}, {"name": "mail", "condition": "started"}],
    }
    assert said.servers["mail"]["command"] == ["sleep", "6"]
    assert f"{name}:8: cap_add: A: no equivalent" in said.remarks
    assert f"{override}:6: read_only: true: no equivalent" in said.remarks
    assert "web" in imported(BASE, "other.yaml").servers, "a file of another name has no override"


def test_override_is_not_read_for_a_file_of_another_name(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "compose.override.yaml").write_text(OVERRIDE)
    assert "mail" not in imported(BASE, "prod.yaml").servers


def test_further_files_override_in_their_order_instead_of_the_one_beside(
    imported: Import, tmp_path: Path
) -> None:
    (tmp_path / "compose.override.yaml").write_text(OVERRIDE)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "prod.yaml").write_text("services: {web: {environment: {B: p, C: p}}}")
    (tmp_path / "last.yaml").write_text("services: {web: {environment: {C: l}, read_only: true}}")
    said = imported(BASE, "compose.yaml", "env/prod.yaml", "last.yaml")
    assert said.servers.keys() == {"web", "db"}
    assert said.servers["web"]["env"] == {"A": "1", "B": "p", "C": "l"}
    assert "last.yaml:1: read_only: true: no equivalent" in said.remarks


def test_service_has_what_it_extends(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "base.yaml").write_text(
        "services:\n"
        "  base:\n    extends: root\n    environment: {A: '1', B: '2'}\n    env_file: base.env\n    cap_add: [A]\n"
        "  root: {image: x, restart: always, command: sleep 1}\n"
    )
    (tmp_path / "common" / "base.env").touch()
    said = imported(
        "services:\n  a:\n    extends: {file: ./common/base.yaml, service: base}\n    environment: [B=3]\n"
        "  b:\n    extends: a\n    command: sleep 2\n    privileged: true\n",
        "compose.yaml",
    )
    shared = {"env": {"A": "1", "B": "3"}, "env_file": ["common/base.env"], "restart": "always"}
    assert said.servers == {
        "a": {"command": ["sleep", "1"], **shared},
        "b": {"command": ["sleep", "2"], **shared},
    }
    image = "image: x: its programs have to be on this machine"
    of_base = ["common/base.yaml:6: cap_add: A: no equivalent", f"common/base.yaml:7: {image}"]
    assert sorted(said.remarks) == sorted(
        [*of_base, *of_base, "compose.yaml:8: privileged: true: no equivalent"]
    )


def test_services_of_included_files_are_imported_too(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text("services: {b: {build: ., command: sleep 2, cap_add: [A]}}\n")
    (tmp_path / "c.yaml").write_text("services: {c: {image: x, command: sleep 3}}\n")
    said = imported("include:\n  - sub/b.yaml\n  - path: [c.yaml]\n    env_file: c.env\n", "compose.yaml")
    assert said.servers == {
        "b": {"command": ["sleep", "2"], "cwd": "sub", "restart": "no"},
        "c": {"command": ["sleep", "3"], "restart": "no"},
    }
    assert said.remarks == [
        "compose.yaml:3: include: env_file: c.env: no equivalent",
        "sub/b.yaml:1: cap_add: A: no equivalent",
        "c.yaml:1: image: x: its programs have to be on this machine",
    ]


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("include: [none.yaml]\n", "1: include: none.yaml: there is no such file"),
        ("include: [bad.yaml]\n",
         "1: include: bad.yaml: line 1: the list that begins here is not closed, or lacks a comma"),
        ("  b: {extends: {file: none.yaml, service: x}, command: b}\n",
         "3: extends: none.yaml: x: there is no such file"),
        ("  b: {extends: c, command: b}\n", "3: extends: c: there is no such service"),
        ("  b: {extends: b, command: b}\n", "3: extends: b: it extends itself"),
        ("  b: &b {extends: [c], command: b}\n  d: *b\n", "4: extends: ['c']: there is no such service"),
        ("include: list.yaml\n", "3: image: x: its programs have to be on this machine"),
    ],
)  # fmt: skip
def test_part_that_cannot_be_read_is_a_remark(
    imported: Import, tmp_path: Path, text: str, remark: str
) -> None:
    (tmp_path / "bad.yaml").write_text("services: [a\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    services = "services:\n  a: {image: x, command: sleep 1}\n"
    said = imported(text + services if text.startswith("include") else services + text, "compose.yaml")
    assert f"compose.yaml:{remark}" in said.remarks


def test_file_whose_parts_are_missing_says_so(imported: Import) -> None:
    said = imported("include: [none.yaml]\n", "compose.yaml", valid=False)
    hint = "include: none.yaml: there is no such file"
    assert said.err == f"error: compose.yaml: there is no service in it\n  hint: {hint}\n"


def test_tags_of_an_override_take_out_and_replace(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "compose.override.yaml").write_text(
        "services:\n  web:\n    ports: !reset []\n    environment: !override {X: '9'}\n"
        "    cap_add: !override\n      - B\n  db: !reset null\n"
    )
    said = imported(BASE, "compose.yaml")
    assert said.servers["web"]["env"] == {"X": "9"}
    assert said.servers["web"]["bind"] == "127.0.0.1:8000"
    assert "db" not in said.servers
    assert "compose.override.yaml:5: cap_add: B: no equivalent" in said.remarks
    alone = "services:\n  a:\n    image: x\n    command: sleep 2\n    user: !reset root\n"
    assert "user" not in imported(alone, "alone.yaml").servers["a"]


def test_words_for_true_and_numbers_reach_a_variable_as_with_compose(imported: Import) -> None:
    env = "{A: yes, B: On, C: true, D: 1.0, E: 1e3, F: 2020-01-01, G: 0x10, H: off}"
    said = imported(
        f"services:\n  a:\n    image: x\n    command: sleep 5\n    stdin_open: no\n    environment: {env}\n",
        "compose.yaml",
    )
    assert said.servers["a"]["env"] == {
        "A": "yes", "B": "On", "C": "true", "D": "1", "E": "1000", "F": "2020-01-01", "G": "16", "H": "off",
    }  # fmt: skip
    assert "stdin" not in said.servers["a"]


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        ("build: .", ["/entry", "serve"]),
        ("build: .\n    command: other", ["/entry", "other"]),
        ("build: .\n    entrypoint: []\n    command: other", ["other"]),
        ("build: .\n    entrypoint: ''", ["serve"]),
        ("build: .\n    entrypoint: [/own]", ["/own"]),
        ("build: {context: ., dockerfile_inline: 'CMD [\"inner\"]'}", ["inner"]),
    ],
)
def test_command_of_an_image_counts_as_with_docker(
    imported: Import, tmp_path: Path, keys: str, command: list[str]
) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM x\nENV A=1\nENTRYPOINT ["/entry"]\nCMD ["serve"]\nSTOPSIGNAL INT\n'
    )
    said = imported(f"services:\n  a:\n    {keys}\n", "compose.yaml")
    assert said.servers["a"]["command"] == command
    of_image = {} if "inline" in keys else {"env": {"A": "1"}, "stop_signal": "SIGINT"}
    assert {
        key: value for key, value in said.servers["a"].items() if key in ("env", "stop_signal")
    } == of_image
