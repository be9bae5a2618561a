"""`poolctl import`: where it writes, and what it says of files that it cannot read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Said


def test_printed_file_is_unchanged_in_a_ci(
    poolctl: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (tmp_path / "Procfile").write_text("web: date '##[%s]'\n")
    assert "##[%s]" in poolctl("import", "Procfile")[1]


def test_file_is_written_once(poolctl: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("w: sleep 60\nwhat\n")
    said = (0, "wrote pool.toml: 1 server, 1 remark; next: read it, then poolctl start\n", "")
    assert poolctl("import", "Procfile", "-o", "pool.toml") == said
    assert poolctl("validate") == (0, "1 server, ok\n", "")
    before = (tmp_path / "pool.toml").read_text()
    code, _, err = poolctl("import", "Procfile", "-o", "pool.toml")
    assert (code, err) == (8, "error: pool.toml already exists\n  hint: use --force to overwrite\n")
    assert (tmp_path / "pool.toml").read_text() == before
    (tmp_path / "Procfile").write_text("v: sleep 60\n")
    assert poolctl("import", "Procfile", "--output", "pool.toml", "--force")[0] == 0
    assert 'name = "v"' in (tmp_path / "pool.toml").read_text()


def test_same_remark_is_counted_once(poolctl: Callable[..., Said]) -> None:
    line = ["gunicorn", "main:app", "-k", "asgi", "--daemon", "--reload"]
    assert ", 2 remarks;" in poolctl("import", "-o", "pool.toml", "--", *line)[1]


@pytest.mark.parametrize(("before", "source", "after"), [
    (None, 0o600, 0o600), (None, 0o640, 0o640), (None, 0o755, 0o644), (0o644, 0o600, 0o600), (0o600, 0o644, 0o600),
])  # fmt: skip
def test_file_is_not_more_readable_than_its_source(
    poolctl: Callable[..., Said], tmp_path: Path, before: int | None, source: int, after: int
) -> None:
    (tmp_path / "Procfile").write_text("w: sleep 60\n")
    (tmp_path / "Procfile").chmod(source)
    if before is not None:
        (tmp_path / "pool.toml").touch(before)
        (tmp_path / "pool.toml").chmod(before)
    umask = os.umask(0o022)
    try:
        assert poolctl("import", "Procfile", "-o", "pool.toml", "--force")[0] == 0
    finally:
        os.umask(umask)
    assert (tmp_path / "pool.toml").stat().st_mode & 0o777 == after


def test_file_is_not_more_readable_than_the_variables_that_are_in_it(
    poolctl: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("SECRET=made-up\n")
    (tmp_path / ".env").chmod(0o600)
    (tmp_path / "compose.yml").write_text("services: {a: {command: 'sleep 60', environment: {A: $SECRET}}}\n")
    assert poolctl("import", "compose.yml", "-o", "pool.toml")[0] == 0
    assert "made-up" in (tmp_path / "pool.toml").read_text()
    assert (tmp_path / "pool.toml").stat().st_mode & 0o777 == 0o600


def test_paths_of_a_file_elsewhere_begin_there(poolctl: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / ".env").write_text("LEVEL=info\n")
    (tmp_path / "shop" / "Procfile").write_text("web: uvicorn app:app --port $PORT\n")
    _, text, _ = poolctl("import", "shop/Procfile")
    for key in ("cwd", "app_dir"):
        assert f'{key} = "{tmp_path}/shop"' in text
    assert f'env_file = "{tmp_path}/shop/.env"' in text


def test_what_is_missing_on_this_machine_is_a_warning(poolctl: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("w: there-is-no-such-program\n")
    code, text, err = poolctl("import", "Procfile")
    assert code == 0
    assert 'command = ["there-is-no-such-program"]' in text
    assert "'there-is-no-such-program' is not there" in err
    (tmp_path / "s.conf").write_text("[program:a]\ncommand=sleep %(ENV_THERE_IS_NO_SUCH_VARIABLE)s\n")
    code, _, err = poolctl("import", "s.conf")
    assert (code, err) == (
        0,
        "warning: it refers to variables that are not set here: THERE_IS_NO_SUCH_VARIABLE\n",
    )


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "import takes a file, or a command after --"),
        (["Procfile", "--", "sleep"], 2, "import takes a file, or a command after --"),
        (["Procfile", "-o", "pool.yaml"], 2, "import writes a new TOML file"),
        (["gone.service"], 5, "gone.service: there is no such file"),
        (["ecosystem.config.js"], 5, "node -p 'JSON.stringify(require(\"./ecosystem.config.js\"), null, 2)'"),
        (["ecosystem.config.mjs"], 5, "node -e 'import("),
        (["pool.toml"], 5, "neither its name nor its sections are those of another tool's file"),
        (["empty.yml"], 5, "it has neither services (docker compose) nor apps (pm2)"),
        (["broken.json"], 5, "broken.json:1:2: "),
        (["empty.conf"], 5, "neither its name nor its sections are those of another tool's file"),
        (["include.conf"], 5, "there is no [program:NAME] in it"),
        (["uwsgi.ini"], 5, "this is a file of uWSGI, which import does not read"),
        (["circus.ini"], 5, "this is a file of circus, which import does not read"),
        (["process-compose.yaml"], 5, "this is a file of process-compose, which import does not read"),
        (["broken.conf"], 5, "broken.conf:2: 'x' is not KEY=VALUE"),
        (["empty.service"], 5, "there is no ExecStart in it"),
        (["images.yml"], 1, "no server could be taken over"),
    ],
)
def test_what_cannot_be_imported_is_explained(
    poolctl: Callable[..., Said], tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    for name, text in {
        "Procfile": "w: sleep 1\n", "ecosystem.config.js": "", "pool.toml": "", "empty.yml": "a: 1\n",
        "broken.json": "{", "empty.conf": "", "include.conf": "[include]\n", "uwsgi.ini": "[uwsgi]\nmodule = a\n",
        "circus.ini": "[watcher:web]\ncmd = a\n", "process-compose.yaml": "processes: {a: {command: b}}\n",
        "broken.conf": "[program:a]\nx\n", "empty.service": "[Service]\n",
        "images.yml": "services: {db: {image: postgres}}\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    said = poolctl("import", *args)
    assert said[0] == code, said
    assert words in said[2]


@pytest.mark.heavy_variants
@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("Procfile", "w: sleep 1\n", "a Procfile"),
        ("supervisord.conf", "[program:w]\ncommand=sleep 1\n", "a file of supervisord"),
        ("shop.service", "[Service]\nExecStart=/bin/sleep 1\n", "a systemd unit"),
        ("docker-compose.yml", "services: {w: {command: sleep 1}}\n", "a file of docker compose"),
        ("ecosystem.json", '{"apps": [{"script": "a.js"}]}', "an ecosystem file of pm2"),
        ("ecosystem.config.js", "", "JavaScript"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "list", pytest.param("start", marks=pytest.mark.slow)])
def test_file_of_another_tool_as_configuration_points_to_import(
    poolctl: Callable[..., Said], tmp_path: Path, name: str, text: str, what: str, command: str
) -> None:
    (tmp_path / name).write_text(text)
    code, out, err = poolctl("-c", name, command)
    assert code == 5
    assert f"this is {what}, not a pool's file" in out + err
    imported = "ecosystem.json" if what == "JavaScript" else name
    assert f"`poolctl import {imported} -o pool.toml`" in (out + err).replace(f"{tmp_path}{os.sep}", "")


def test_only_units_and_compose_files_are_imported_together(
    poolctl: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "Procfile").write_text("w: sleep 60\n")
    (tmp_path / "a.service").write_text("[Service]\nExecStart=/bin/sh\n")
    for first, second in (("Procfile", "a.service"), ("a.service", "Procfile")):
        code, _, err = poolctl("import", first, second)
        assert code == 5
        assert err.startswith(
            f"error: {first}: only units of systemd, or compose files, are imported together\n"
        )
