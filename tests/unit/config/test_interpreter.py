"""Who can change what an interpreter runs at its start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl import ServerConfig
from poolctl.config.checks.interpreter import (
    find_path_others_may_change,
    ids_to_start_interpreter_as,
    interpreter,
    missing_program,
    root_trust_problem,
    start_options,
    with_virtual_environment,
)
from tests.config_files import load_text
from tests.sandbox import run_as

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def python(open_directory: Path) -> Path:
    """The interpreter of a virtual environment that only we can change; so is the one that it stands for."""
    base = open_directory / "base"
    for directory in (base / "bin", base / "lib/python3.11/lib-dynload"):
        directory.mkdir(parents=True)
    (base / "bin/python3.11").touch()
    (base / "lib/python3.11/os.py").touch()
    venv = open_directory / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "lib/python3.11/site-packages/uvicorn").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    (venv / "bin/python3").symlink_to(base / "bin/python3.11")
    (venv / "bin/python").symlink_to("python3")
    return venv / "bin/python"


def give(path: Path) -> None:
    os.lchown(path, NOBODY, NOBODY)


def test_environment_that_only_root_can_change_is_entered_as_root(python: Path) -> None:
    assert find_path_others_may_change(str(python), {}) == ""
    assert ids_to_start_interpreter_as(str(python), (NOBODY, NOBODY), {}) is None
    assert start_options(str(python), "nobody", {}) == {}


def test_what_root_owns_is_trusted_by_every_user(python: Path) -> None:
    library = python.parents[1] / "lib"
    for owner, changeable in ((0, ""), (12345, ""), (1, str(library))):
        os.chown(library, owner, 0)
        assert run_as(12345, lambda: find_path_others_may_change(str(python), {})) == changeable


@pytest.mark.parametrize(
    "name",
    [
        "venv",
        "venv/bin",
        "venv/bin/python3",
        "venv/lib/python3.11/site-packages",
        "venv/lib/python3.11/site-packages/uvicorn",
        "base/bin/python3.11",
        "base/lib",
        "base/lib/python3.11/os.py",
        "base/lib/python3.11/lib-dynload",
    ],
)
def test_directory_that_another_user_owns_is_entered_as_the_servers_user(python: Path, name: str) -> None:
    root = python.parents[2]
    give(root / name)
    assert find_path_others_may_change(str(python), {}).startswith(str(root / name))
    assert ids_to_start_interpreter_as(str(python), (NOBODY, 1), {}) == (NOBODY, 1)
    assert ids_to_start_interpreter_as(str(python), None, {}) is None, "its server is root's"
    options = start_options(str(python), "nobody:daemon", {"A": "b"})
    assert (options["user"], options["group"], options["env"]["A"]) == (NOBODY, 1, "b")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_directory_that_others_can_write_is_entered_as_the_servers_user(python: Path, mode: int) -> None:
    site = python.parents[1] / "lib/python3.11/site-packages"
    site.chmod(mode)
    os.chown(site, 0, 50)
    assert find_path_others_may_change(str(python), {}) == str(site)
    site.chmod(0o755)
    assert find_path_others_may_change(str(python), {}) == "", "its group may only read"


def test_another_users_environment_gets_the_rights_of_a_server_that_root_runs(
    python: Path, open_directory: Path
) -> None:
    venv = python.parents[1]
    text = f'[[server]]\nname = "web"\nbind = "127.0.0.1:80"\napp = "a:b"\npython = "{venv}"\n'
    servers = text + text.replace("web", "own").replace(":80", ":81") + 'user = "nobody"\n'

    def found() -> list[str]:
        config = load_text(open_directory, servers)
        config.check_external()
        return [str(warning) for warning in config.warnings if "python" in str(warning)]

    assert found() == []
    venv.chmod(0o777)
    (warning,) = found()
    assert (
        f"other users can modify {venv}, whose code this server runs as root; chmod -R go-w {venv}" in warning
    )
    venv.chmod(0o755)
    give(venv)
    (warning,) = found()
    assert warning.startswith(f"{open_directory}/pool.toml:5:")
    assert (
        f": server[0].python: user nobody can modify {venv}, whose code this server runs as root; " in warning
    )
    assert warning.endswith(f"chown -R root {venv}, or user = 'nobody'")


def test_path_for_which_an_environment_comes_last_in_roots_path_is_named_with_the_fix(
    python: Path, open_directory: Path
) -> None:
    venv = python.parents[1]
    config = load_text(open_directory, f'[[server]]\nname = "work"\ncommand = ["sh"]\npython = "{venv}"\n')
    give(open_directory)
    config.check_external()
    (warning,) = [str(warning) for warning in config.warnings if "PATH" in str(warning)]
    assert warning.endswith(
        f"user nobody can modify {open_directory}, so {venv}/bin is at the end of root's PATH; "
        f"chown -R root {open_directory}, or user = 'nobody'"
    )


@pytest.mark.parametrize(
    "name",
    [
        "base/lib/python3/dist-packages", "base/local/lib/python3.11/dist-packages",
        "home/.local/lib/python3.11/site-packages", "user/lib/python3.11/site-packages",
    ],
)  # fmt: skip
def test_packages_of_system_and_user_count_where_the_interpreter_sees_them(
    python: Path, open_directory: Path, name: str
) -> None:
    packages = open_directory / name
    packages.mkdir(parents=True)
    give(packages)
    env = {"HOME": f"{open_directory}/home"}
    if name.startswith("user"):
        env["PYTHONUSERBASE"] = f"{open_directory}/user"
    assert find_path_others_may_change(f"{open_directory}/base/bin/python3.11", env) == str(packages)
    assert find_path_others_may_change(str(python), env) == "", "an environment without them"
    (open_directory / "venv/pyvenv.cfg").write_text("Include-System-Site-Packages = true\nhome = /usr/bin\n")
    assert find_path_others_may_change(str(python), env) == str(packages)


def in_a_pth_file(venv: Path, path: Path) -> dict[str, str]:
    (venv / "lib/python3.11/site-packages/a.pth").write_text(f"# a comment\nimport sys\n{path}\n")
    return {}


def in_a_pth_file_that_is_not_utf_8(venv: Path, path: Path) -> dict[str, str]:
    there = path.parent / os.fsdecode(b"caf\xe9")
    there.symlink_to(path)
    (venv / "lib/python3.11/site-packages/a.pth").write_bytes(os.fsencode(there))
    return {}


def relative_in_a_pth_file(venv: Path, path: Path) -> dict[str, str]:
    there = os.path.relpath(path, venv / "lib/python3.11/site-packages")
    (venv / "lib/python3.11/site-packages/a.pth").write_text(f"{there}\n")
    return {}


def in_the_environment(venv: Path, path: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"/nonexistent:{path}"}


def in_python_home(venv: Path, path: Path) -> dict[str, str]:
    return {"PYTHONHOME": f"{venv}:{path}"}


@pytest.mark.parametrize(
    "name_it",
    [
        in_a_pth_file,
        in_a_pth_file_that_is_not_utf_8,
        relative_in_a_pth_file,
        in_the_environment,
        in_python_home,
    ],
)
def test_directory_that_is_put_on_the_path_counts(
    python: Path, open_directory: Path, name_it: Callable[[Path, Path], dict[str, str]]
) -> None:
    source = open_directory / "source"
    source.mkdir()
    (python.parents[1] / "lib/python3.11/site-packages/directory.pth").mkdir()
    env = name_it(python.parents[1], source)
    assert find_path_others_may_change(str(python), env) == ""
    give(source)
    assert find_path_others_may_change(str(python), env) == str(source)
    os.chown(source, 0, 0)
    source.chmod(0o1777)
    assert os.path.realpath(find_path_others_may_change(str(python), env)) == str(source), (
        "others may add modules"
    )


@pytest.mark.parametrize("name_it", [in_a_pth_file, in_the_environment])
def test_archive_that_is_put_on_the_path_counts(
    python: Path, open_directory: Path, name_it: Callable[[Path, Path], dict[str, str]]
) -> None:
    archive = open_directory / "modules.zip"
    archive.touch(0o644)
    env = name_it(python.parents[1], archive)
    assert find_path_others_may_change(str(python), env) == ""
    give(archive)
    assert find_path_others_may_change(str(python), env) == str(archive)


def test_sticky_directory_of_root_on_the_path_is_accepted(open_directory: Path, python: Path) -> None:
    open_directory.chmod(0o1777)
    assert find_path_others_may_change(str(python), {}) == ""
    open_directory.chmod(0o777)
    assert find_path_others_may_change(str(python), {}) == str(open_directory)


def test_interpreter_of_the_tests_is_judged_within_a_moment() -> None:
    find_path_others_may_change(sys.executable, dict(os.environ))


def test_path_that_another_user_may_change_is_named_with_the_fix(python: Path) -> None:
    assert root_trust_problem(str(python), {}) == ("", "")
    site = python.parent.parent / "lib/python3.11/site-packages"
    site.chmod(0o777)
    assert root_trust_problem(str(python), {}) == (
        f"other users can modify {site}, whose code this server runs as root", f"chmod -R go-w {site}",
    )  # fmt: skip
    site.chmod(0o755)
    give(site)
    problem, fix = root_trust_problem(str(python), {})
    assert problem == f"user nobody can modify {site}, whose code this server runs as root"
    assert fix == f"chown -R root {site}, or user = 'nobody'"
    os.lchown(site, 4_000_000, 0)
    problem, fix = root_trust_problem(str(python), {})
    assert (problem.partition(" can")[0], fix) == ("user 4000000", f"chown -R root {site}")


def test_interpreter_is_a_file_that_of_an_environment_or_poolctls_own(open_directory: Path) -> None:
    assert interpreter(str(open_directory)) == f"{open_directory}/bin/python"
    assert interpreter("/usr/bin/python3") == "/usr/bin/python3"
    assert interpreter(None) == sys.executable


def test_the_path_of_programs_begins_with_their_environment(open_directory: Path) -> None:
    own, python = f"{open_directory}/bin", f"{open_directory}/bin/python"
    (open_directory / "bin").mkdir()
    env = {"PATH": f"/usr/bin:{own}:/bin"}
    server = ServerConfig(name="a", bind="127.0.0.1:1", command=["b"])
    named = server.replace(python=python)
    assert with_virtual_environment(server, {}, env) == with_virtual_environment(named, {}, env) == {}
    (open_directory / "pyvenv.cfg").touch()
    first = {"PATH": f"{own}:/usr/bin:/bin", "VIRTUAL_ENV": str(open_directory)}
    assert with_virtual_environment(named, {}, env) == first
    assert with_virtual_environment(named, {"A": "1"}, env) == {**first, "A": "1"}
    assert with_virtual_environment(named, {"PATH": "/bin"}, env) == {"PATH": "/bin"}
    if os.geteuid() == 0:
        (open_directory / "bin").chmod(0o777)
        assert with_virtual_environment(named, {}, env) == {**first, "PATH": f"/usr/bin:/bin:{own}"}
        assert with_virtual_environment(named.replace(user="nobody"), {}, env) == first


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["sh"], "", ""),
        (["/bin/sh"], "", ""),
        (["./run"], "", ""),
        (["{program}"], "", ""),
        ([], "", ""),
        (["no-such"], "'no-such' is not there", "install it, or write its full path"),
        (
            ["./gone"],
            "'./gone' is not there: looked for {directory}/gone",
            "install it, or write its full path",
        ),
        (["./plain"], "'./plain' is not executable", "chmod +x {directory}/plain"),
        (["./folder"], "'./folder' is a directory", "name a program in it"),
        (
            ["./job"],
            "'./job' is a script for /no/python, which is not there",
            "install /no/python, or correct the first line of {directory}/job",
        ),
    ],
)
def test_program_is_looked_for_as_the_server_would(
    open_directory: Path, words: list[str], message: str, hint: str
) -> None:
    for name, shell in (("run", "/bin/sh"), ("job", "/no/python")):
        (open_directory / name).write_text(f"#!{shell}\n")
        (open_directory / name).chmod(0o755)
    (open_directory / "plain").touch(0o644)
    (open_directory / "folder").mkdir()
    server = ServerConfig(name="a", command=["sh"], cwd=str(open_directory))
    found = missing_program(server, {"PATH": "/bin"}, ("hooks",), words)
    message, hint = (text.format(directory=open_directory) for text in (message, hint))
    path = ("hooks", 0) if message else ()
    assert ((found.message, found.hint, found.path) if found else ("", "", ())) == (message, hint, path)
    assert missing_program(server, {"PATH": "/bin"}) is None
    assert missing_program(server, {"PATH": "/nowhere"}) is not None
