"""The process that reads the files: its answers, and what becomes of a request when it gives none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.child_process import ChildProcess
from poolctl.config import Reading, Surroundings
from poolctl.config.__main__ import message, reader_command
from poolctl.errors import PoolValidateError
from poolctl.keeper.spawn import spawn
from poolctl.supervisor.active_configuration import ConfigurationReader, ReaderFailed
from tests.deadline import wait_until
from tests.processes import children, command_line, is_alive

WEB = '[[server]]\nname = "web"\nbind = "127.0.0.1:9001"\napp = "any:app"\ntags = ["${TAG:-none}"]\n'


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


def program(text: str) -> list[str]:
    """A program in the place of the process; `link` is its socket."""
    return [sys.executable, "-c", f"import os, signal, socket, sys\nlink = socket.socket(fileno=0)\n{text}"]


async def read(reader: ConfigurationReader, *files: Path, env: dict[str, str] | None = None) -> Reading:
    _, reading = await reader.read([str(file) for file in files], env, access_log=False)
    return reading


def failure(directory: Path, command: list[str]) -> ReaderFailed:
    """How a request fails with this program in the place of the process."""

    async def scenario() -> ReaderFailed:
        reader = ConfigurationReader(str(directory), command=command)
        with pytest.raises(ReaderFailed) as failed:
            await read(reader, directory / "pool.toml")
        assert failed.value.result.exit_code == 8
        return failed.value

    found: ReaderFailed = run(scenario())
    return found


_earlier: list[int] = []  # those of other tests, which end when they have not been used for a while


@pytest.fixture(autouse=True)
def earlier_readers() -> None:
    _earlier[:] = []
    _earlier[:] = readers()


def readers() -> list[int]:
    """The pids of those that the test has started."""
    found = []
    for pid in children(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends just now
            if " config" in command_line(pid):
                found.append(pid)
    return [pid for pid in found if pid not in _earlier]


def test_files_are_read_with_the_variables_given_and_problems_have_their_places(tmp_path: Path) -> None:
    good, bad = tmp_path / "pool.toml", tmp_path / "bad.toml"
    good.write_text(WEB)
    bad.write_text("[[server]]\nbinf = 1\n")

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path))
        reading = await read(reader, good, env={"TAG": "secret"})
        assert ([each.name for each in reading.servers], reading.problems) == (["web"], [])
        assert reading.servers[0].tags == ("secret",)
        (pid,) = readers()
        assert "secret" not in command_line(pid)
        problems = (await read(reader, bad)).problems
        assert {(each["file"], each["line"]) for each in problems} == {(str(bad), 1), (str(bad), 2)}
        assert "there is no such file" in str((await read(reader, tmp_path / "none.toml")).problems)
        assert readers() == [pid], "one process for all requests"
        reader.close()
        wait_until(lambda: not readers())

    run(scenario())


def test_of_several_files_the_one_of_each_server_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(WEB)
    other.write_text(WEB.replace("web", "api").replace("9001", "9002"))

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path))
        assert (await read(reader, one, other)).files == {"web": str(one), "api": str(other)}
        assert (await read(reader, one)).files == {}
        reader.close()

    run(scenario())


def test_what_is_outside_is_looked_at_for_the_reading_that_is_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB + 'env_file = "missing.env"\n')

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path))
        number, _ = await reader.read([str(file)], None, access_log=False)
        await read(reader, file)
        problems, warnings = await reader.outside(number, ["web"])
        assert "missing.env" in problems[0]["message"]
        assert await reader.outside(number, []) == ([], warnings)
        os.kill(readers()[0], signal.SIGKILL)
        assert await reader.outside(number, ["web"]) == (problems, warnings), "it reads them again"
        file.write_text(WEB)
        reader.close()
        with pytest.raises(ReaderFailed, match="have changed since they were read"):
            await reader.outside(number, ["web"])
        reader.close()

    run(scenario())


def test_server_that_is_added_gets_the_defaults_of_the_files_and_its_problems_are_raised(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path))
        around = Surroundings({"tags": ["all"]}, str(tmp_path))
        table = {"name": "new", "bind": "127.0.0.1:9002", "app": "any:app"}
        assert (await reader.added(around, table, str(tmp_path), None)).tags == ("all",)
        with pytest.raises(PoolValidateError) as refused:
            await reader.added(around, {**table, "no_such_key": 1}, str(tmp_path), None)
        assert "unknown key 'no_such_key'" in str(refused.value)
        assert len(readers()) == 1, "a refused server ends nothing"
        reader.close()

    run(scenario())


def test_places_of_keys_are_known_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path))
        marks = (await read(reader, file)).marks
        found = await reader.origins([str(file)], None, marks, ["web", "added"])
        assert found.keys() == {"web"}
        assert (found["web"] or {})["tags"] == f"{file}:5"
        file.write_text("\n" + WEB)
        assert await reader.origins([str(file)], None, marks, ["web"]) == {}
        reader.close()

    run(scenario())


def test_process_ends_when_it_is_not_used_and_another_one_is_started(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path), idle_seconds=0.05)
        await read(reader, file)
        while readers():
            await asyncio.sleep(0.01)
        assert len((await read(reader, file)).servers) == 1
        reader.close()

    run(scenario())


def test_process_that_was_killed_since_is_replaced_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path))
        await read(reader, file)
        (before,) = readers()
        os.kill(before, signal.SIGKILL)
        assert len((await read(reader, file)).servers) == 1
        assert readers() != [before]
        reader.close()

    run(scenario())


@pytest.mark.parametrize("times", [1, 2])
def test_process_that_is_killed_while_it_reads_is_replaced_once(tmp_path: Path, times: int) -> None:
    file, trace = tmp_path / "pool.toml", tmp_path / "trace"
    file.write_text(WEB)
    trace.touch()
    text = f"""
import os, signal
import poolctl.config.__main__ as part
with open({str(trace)!r}, "a") as trace:
    trace.write("x")
    trace.flush()
    if trace.tell() <= {times}:
        part.Reader.read = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
part.main()
"""
    command = [sys.executable, "-c", text, "config"]

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path), command=command)
        if times == 1:
            assert len((await read(reader, file)).servers) == 1
        else:
            with pytest.raises(ReaderFailed, match="was killed by signal 9"):
                await read(reader, file)
        reader.close()

    run(scenario())
    assert trace.read_text() == "xx"


def test_process_that_was_started_before_answers_the_first_request(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        process = ChildProcess(reader_command(), output=str(tmp_path / "log"))
        reader = ConfigurationReader(str(tmp_path), process)
        assert len((await read(reader, file)).servers) == 1
        assert readers() == [process.pid]
        reader.close()

    run(scenario())


def test_process_of_a_supervisor_of_an_earlier_version_has_its_link_at_descriptor_3(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            pid = spawn(reader_command(), None, [theirs.fileno()], str(tmp_path / "log"), session=False)
        ours.sendall(message(("read", 1, [str(file)], None, False)))
        answer = ours.recv(9999)
        assert answer.startswith(f"poolctl {poolctl.__version__} ".encode())
    assert os.waitpid(pid, 0) == (pid, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sys.exit('no library here')", "ended with status 1: no library here"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9"),
        ("link.recv(9); link.send(b'poolctl'); sys.exit(3)", "ended with status 3"),
        ("link.recv(9); link.send(b'Hello, world\\n'); link.recv(9999)", "answered 'Hello, world'"),
        (f"link.send(b'poolctl {poolctl.__version__} 2\\nno'); link.recv(9999)", "cannot be taken over"),
        (f"link.send(b'poolctl {poolctl.__version__} 999\\nno')", "ended with status 0"),
    ],
)
def test_process_that_does_not_answer_is_an_error_with_the_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    found = failure(tmp_path, program(text))
    assert reason in str(found)
    assert found.hint
    assert not found.installed


def test_process_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    assert "/no/python cannot be run: No such file or directory" in str(failure(tmp_path, ["/no/python"]))


def test_answer_of_another_version_is_refused_before_it_is_looked_at(tmp_path: Path) -> None:
    found = failure(tmp_path, program("link.send(b'poolctl 99.1.2 5\\n12345'); link.recv(9999)"))
    assert str(found) == f"poolctl 99.1.2 is installed, and this pool runs {poolctl.__version__}"
    assert (found.installed, found.hint) == ("99.1.2", "poolctl upgrade")


def first_failure(directory: Path, text: str, stalled_seconds: float) -> str:
    """How the first reading of a pool fails with this program in the place of the process."""

    async def scenario() -> str:
        reader = ConfigurationReader(str(directory), command=program(text), stalled_seconds=stalled_seconds)
        with pytest.raises(ReaderFailed) as failed:
            await reader.read(["pool.toml", "more.toml"], None, access_log=False, first=True)
        wait_until(lambda: not readers(), what="the process is ended")
        return str(failed.value)

    found: str = run(scenario())
    return found


def test_first_reading_ends_when_its_process_uses_no_processor_time(tmp_path: Path) -> None:
    said = first_failure(tmp_path, "signal.pause()  # config", 0.5)
    assert said.startswith("pool.toml and more.toml cannot be read: the process that does it (pid ")
    assert said.endswith(") has used no processor time for 0.5 s")


def test_first_reading_goes_on_for_as_long_as_its_process_works(tmp_path: Path) -> None:
    works = "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end: time.sleep(0.01)\n"
    said = first_failure(tmp_path, f"{works}link.send(b'poolctl 99.1.2 0\\n')  # config", 2.0)
    assert said.startswith("poolctl 99.1.2 is installed")


def test_request_that_is_cancelled_ends_the_process_and_the_next_one_is_answered(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        reader = ConfigurationReader(str(tmp_path), command=program("signal.pause()  # config"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await read(reader, file)
        wait_until(lambda: not readers())
        reader._command = reader_command()
        assert len((await read(reader, file)).servers) == 1
        reader.close()

    run(scenario())


def test_process_ends_with_the_supervisor_in_the_middle_of_a_read(tmp_path: Path) -> None:
    hangs = (
        "import signal, poolctl.config.__main__ as part\n"
        "part.Reader.read = lambda *given: (print('hangs', flush=True), signal.pause())\n"
        "part.main()"
    )
    log = tmp_path / "log"
    supervisor = (
        "import asyncio, os, signal\n"
        "from poolctl.child_process import ChildProcess\n"
        "from poolctl.config.__main__ import message\n"
        f"process = ChildProcess([{sys.executable!r}, '-c', {hangs!r}], output={str(log)!r})\n"
        "print(process.pid, flush=True)\n"
        "asyncio.run(process.send(message(('read', 1, ['pool.toml'], None, False))))\n"
        "signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", supervisor], stdout=subprocess.PIPE) as asker:
        assert asker.stdout is not None
        pid = int(asker.stdout.readline())
        wait_until(lambda: log.read_text() == "hangs\n")
        assert is_alive(pid)
        asker.kill()
    wait_until(lambda: not is_alive(pid))


def test_supervisor_imports_nothing_that_validates() -> None:
    look = """
import sys

import poolctl.supervisor.supervisor
import poolctl.runners.local.local_runner
for name in poolctl.supervisor.supervisor.late_modules():
    __import__(name)
assert not {"pydantic", "pydantic_core"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
