"""Why a file cannot be read or executed, and commands that work when they are pasted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolctl.file_access import why_execution_failed, why_not_entered, why_not_executable, why_unreadable

PATH = os.environ["PATH"]
OTHER = 54321  # a user and a group without an account

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def program(path: Path, content: bytes | str, mode: int = 0o755) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def why(path: Path, search_path: str = PATH) -> tuple[str, str]:
    return why_not_executable(f"./{path.name}", search_path, str(path.parent)) or ("", "")


def run(path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([path], capture_output=True)


def paste(command: str) -> None:
    subprocess.run(command.removeprefix("as root: "), shell=True, check=True)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/no/such/python\n", "is a script for /no/such/python, which is not there"),
        ("#! /no/such/python -u\n", "is a script for /no/such/python, which is not there"),
        ("#!/usr/bin/env no-such-python\n", "is a script for no-such-python, which is not there"),
        ("#!/usr/bin/env -S no-such-python -u\n", "is a script for no-such-python, which is not there"),
        ("#!\n", "is a script for an interpreter, which is not named"),
    ],
)
def test_script_names_an_interpreter_that_cannot_run(tmp_path: Path, script: str, reason: str) -> None:
    path = program(tmp_path / "job", script)
    assert why(path)[0] == reason
    if reason.endswith("there"):
        assert why(path)[1].endswith(f", or correct the first line of {path}")


def test_interpreter_that_is_not_executable_is_made_so(tmp_path: Path) -> None:
    inner = program(tmp_path / "inner", "#!/bin/echo\n", 0o644)
    outer = program(tmp_path / "outer", f"#!{inner}\n")
    assert why(outer) == (f"is a script for {inner}, which is not executable", f"chmod +x {inner}")


def test_interpreter_that_is_a_script_itself_is_followed(tmp_path: Path) -> None:
    inner = program(tmp_path / "inner", "#!/no/such/python\n")
    outer = program(tmp_path / "outer", f"#!{inner}\n")
    assert (
        why(outer)[0] == f"is a script for {inner}, which is a script for /no/such/python, which is not there"
    )


@pytest.mark.parametrize("first", ["#!/bin/sh", "#!/usr/bin/env sh", "#!/bin/sh -e"])
def test_windows_line_ends_are_named_and_removed(tmp_path: Path, first: str) -> None:
    path = program(tmp_path / "it's a job", f"{first}\r\necho done\r\n")
    reason, fix = why(path)
    assert reason.startswith("has Windows line ends (CRLF), and its first line names ")
    paste(fix)
    assert why(path) == ("", "")
    assert run(path).stdout == b"done\n"


def test_interpreter_that_ignores_the_carriage_return_runs_such_a_script(tmp_path: Path) -> None:
    assert why(program(tmp_path / "job", f"#!{sys.executable}\n")) == ("", "")
    if os.path.exists("/usr/bin/perl"):
        path = program(tmp_path / "job.pl", '#!/usr/bin/perl -w\r\nprint "done";\r\n')
        assert run(path).stdout == b"done"
        assert why(path) == ("", "")


def test_several_words_for_env_are_split_by_an_option(tmp_path: Path) -> None:
    path = program(tmp_path / "job", "#!/usr/bin/env sh -e\necho done\n")
    reason, fix = why(path)
    assert reason == "is a script for 'sh -e', which /usr/bin/env takes for the name of one program"
    line = fix.removeprefix("write ").removesuffix(" as its first line")
    assert run(program(path, f"{line}\necho done\n")).stdout == b"done\n"


def test_script_without_its_first_line_gets_one(tmp_path: Path) -> None:
    path = program(tmp_path / "job", "echo done\n")
    reason, fix = why(path)
    assert reason == "is a script without a #! line, which names its interpreter"
    assert f'write the interpreter: ["sh", "{path}"]' in fix
    assert run(program(path, "#!/bin/sh\necho done\n")).stdout == b"done\n"


def test_script_without_the_right_to_execute_gets_it(tmp_path: Path) -> None:
    path = program(tmp_path / "my job", "#!/bin/sh\necho done\n", 0o644)
    reason, fix = why(path)
    assert (reason, fix) == ("is not executable", f"chmod +x '{path}'")
    paste(fix)
    assert run(path).stdout == b"done\n"


def test_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert why(tmp_path / "folder") == ("is a directory", "name a program in it")
    gone = f"is not there: looked for {tmp_path}/gone", "install it, or write its full path"
    assert why(tmp_path / "gone") == why_not_executable("./folder/../gone", PATH, str(tmp_path)) == gone
    (tmp_path / "link").symlink_to("/no/such/file")
    assert why(tmp_path / "link")[0] == "is a link to /no/such/file, which is not there"
    (tmp_path / "loop").symlink_to("loop")
    assert why(tmp_path / "loop")[0] == "cannot be looked at: Too many levels of symbolic links"


def test_name_stands_for_the_first_file_of_the_path_that_can_run(tmp_path: Path) -> None:
    for name, script in (("old", "#!/no/such/python\n"), ("new", "#!/bin/sh\n")):
        (tmp_path / name).mkdir()
        program(tmp_path / name / "job", script)
    (tmp_path / "folders" / "job").mkdir(parents=True)
    assert why_not_executable("job", "folders:old:new", str(tmp_path)) is None
    old = why_not_executable("job", "old", str(tmp_path))
    assert old is not None
    assert old[0] == "is a script for /no/such/python, which is not there"
    assert why_not_executable("job", "folders", str(tmp_path)) == (
        "is not there", "install it, or write its full path",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOEXEC, "it is not for this machine, which is "),
        (errno.ENOENT, "it needs a dynamic loader that is not there; install that (ldd names it)"),
    ],
)
def test_program_that_the_kernel_has_refused_is_for_another_system(
    tmp_path: Path, number: int, what: str
) -> None:
    # Before that nobody knows: the kernel may have an emulator for it (binfmt_misc).
    path = program(tmp_path / "tool", b"\x7fELF\0")
    assert why(path) == ("", "")
    assert why_execution_failed(str(path), "", OSError(number, os.strerror(number))).startswith(what)


def test_env_with_options_and_a_path_of_its_own_is_left_alone(tmp_path: Path) -> None:
    for argument in ("-S A=b no-such-python", "-S -i no-such-python", "-S 'no-such", "-i"):
        assert why(program(tmp_path / "job", f"#!/usr/bin/env {argument}\n")) == ("", "")


def test_failure_in_a_directory_that_was_removed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    refused = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert why_execution_failed("./job", PATH, refused) == "the working directory has been removed"


def test_failure_that_no_file_explains_is_named_as_the_system_does() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert why_execution_failed("no-such-program", "/bin", missing) == "No such file or directory"
    too_long = OSError(errno.E2BIG, "Argument list too long")
    assert why_execution_failed("sh", "/bin", too_long) == "Argument list too long"


def as_other_user(act: Callable[[], object]) -> str:
    """The text of what `act` returns, or of what it raises, in a process of the user and group OTHER."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child is not measured
        try:
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            os.write(write, str(act()).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as output:
        text = output.read()
    os.waitpid(pid, 0)
    return text


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="pc-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_file_of_another_user_gets_a_group_that_may_read_it(shared: Path, mode: int) -> None:
    path = program(shared / "my pool.toml", "content", mode)
    refused = as_other_user(path.read_text)
    assert refused.startswith("PermissionError")
    reason, fix = eval(as_other_user(lambda: why_unreadable(str(path))))
    assert reason == f"may not be read by user {OTHER}"
    assert fix.startswith(f"as root: chgrp {OTHER} '{path}'")
    assert ("chmod" in fix) == (mode != 0o640)
    paste(fix)
    assert as_other_user(path.read_text) == "content"
    assert path.stat().st_mode & 0o777 == mode | 0o040


@needs_root
def test_file_of_ones_own_or_of_ones_group_gets_that_right_alone(shared: Path) -> None:
    own, of_group = program(shared / "own", "content", 0o040), program(shared / "group", "content", 0o600)
    os.chown(own, OTHER, OTHER)
    os.chown(of_group, 0, OTHER)
    found = [eval(as_other_user(lambda path=path: why_unreadable(str(path))))[1] for path in (own, of_group)]
    assert found == [f"chmod u+r {own}", f"as root: chmod g+r {of_group}"]
    for path, fix in zip((own, of_group), found, strict=True):
        paste(fix)
        assert as_other_user(path.read_text) == "content"


@needs_root
def test_directory_that_may_not_be_entered_is_named(shared: Path) -> None:
    (shared / "closed" / "inner").mkdir(parents=True)
    (shared / "closed").chmod(0o700)
    path = program(shared / "closed" / "inner" / "job", "#!/bin/sh\necho done\n")
    wanted = f"is in {shared}/closed, which user {OTHER} may not enter"
    reason, fix = eval(as_other_user(lambda: why_unreadable(str(path))))
    assert reason == wanted
    assert eval(as_other_user(lambda: why_not_executable(str(path), PATH, "/"))) == (reason, fix)
    refused = PermissionError(errno.EACCES, "Permission denied")
    assert as_other_user(lambda: why_execution_failed(str(path), PATH, refused)) == f"it {reason}; {fix}"
    entered = as_other_user(lambda: why_not_entered(str(path.parent), refused))
    assert entered == f"user {OTHER} may not enter {shared}/closed; {fix}"
    paste(fix)
    assert as_other_user(path.read_text) == path.read_text()


@needs_root
def test_program_of_another_user_gets_a_group_that_may_execute_it(shared: Path) -> None:
    path = program(shared / "job", "#!/bin/sh\necho done\n", 0o700)
    obstacle = lambda: why_not_executable(str(path), PATH, "/")  # noqa: E731
    reason, fix = eval(as_other_user(obstacle))
    assert reason == f"may not be executed by user {OTHER}"
    paste(fix)
    assert as_other_user(obstacle) == "None"
    assert as_other_user(lambda: run(path).stdout) == str(b"done\n")
    path.chmod(0o644)
    assert eval(as_other_user(obstacle)) == ("is not executable", f"as root: chmod +x {path}")
