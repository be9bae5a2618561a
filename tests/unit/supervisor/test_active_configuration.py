"""The configuration in force, and the process that reads the files: its answers, and a request without any."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl import ServerConfig
from poolctl.config import Reading, Surroundings, Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.core.core import Core
from poolctl.errors import PoolValidateError
from poolctl.exit_codes import CONFLICT, FAILED, INVALID_CONFIGURATION
from poolctl.keeper import fd_store, pool_files
from poolctl.keeper.keeper import Store
from poolctl.platform import read_json_object
from poolctl.runners.helper_process import HelperLog, HelperProcess
from poolctl.runners.process_link import PING
from poolctl.runners.withheld_variables import withhold_variables
from poolctl.supervisor.active_configuration import (
    CONFIG_READER,
    ActiveConfiguration,
    ConfigurationLoadResult,
    ConfigurationReader,
    ProgramsFile,
    ReaderFailed,
    SelfBindingProgramsFile,
    default_name,
    obstacles_to_adding,
    try_write_object,
)
from poolctl.supervisor.takeover.state_store import StateStore, encoded
from tests.deadline import wait_until
from tests.helper_keeper import executing_helpers
from tests.manual_clock import ManualClock
from tests.processes import children, command_line, is_alive
from tests.unit.core.ordered_core import RecordedEvents
from tests.unit.runners.scripted_runner import SlowRunner

from .test_state_store import StoreLink

ANSWER = f"{{'id': next_request(), 'version': '{poolctl.__version__}'}}"
WEB = '[[server]]\nname = "web"\nbind = "127.0.0.1:9001"\napp = "any:app"\ntags = ["${TAG:-none}"]\n'


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


def reader_in(
    directory: Path, argv: Sequence[str] = CONFIG_READER.argv, *, idle_seconds: float = 10.0, **options: Any
) -> ConfigurationReader:
    """A reader whose keeper is this process."""
    kind = replace(CONFIG_READER, argv=(*argv,), idle_seconds=idle_seconds)
    return ConfigurationReader(executing_helpers(str(directory)), kind, **options)


def program(text: str, *, up: bool = True) -> list[str]:
    """A program in the place of the process; `link` is its end of the link, and `next_request()` waits for one."""
    setup = (
        "import os, pickle, signal, sys\n"
        "from poolctl.keeper import wire\n"
        "from poolctl.platform import memory_file\n"
        "link = wire.socket_from_fd(3)\n"
        "def next_request():\n"
        "    while 'id' not in (message := wire.receive(link, wait=True)[0]): pass\n"
        "    return message['id']\n"
        f"if {up}: wire.send(link, {{'t': 'up'}})\n"
    )
    return [sys.executable, "-c", setup + text, "config"]


async def read(reader: ConfigurationReader, *files: Path, env: dict[str, str] | None = None) -> Reading:
    _, reading = await reader.read([str(file) for file in files], env, access_log=False)
    return reading


def failure(directory: Path, command: list[str]) -> ReaderFailed:
    """How a request fails with this program in the place of the process."""

    async def scenario() -> ReaderFailed:
        reader = reader_in(directory, command)
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


@pytest.mark.slow
def test_files_are_read_with_the_variables_given_and_problems_have_their_places(tmp_path: Path) -> None:
    good, bad = tmp_path / "pool.toml", tmp_path / "bad.toml"
    good.write_text(WEB)
    bad.write_text("[[server]]\nbinf = 1\n")

    async def scenario() -> None:
        reader = reader_in(tmp_path)
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


@pytest.mark.slow
def test_of_several_files_the_one_of_each_server_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(WEB)
    other.write_text(WEB.replace("web", "api").replace("9001", "9002"))

    async def scenario() -> None:
        reader = reader_in(tmp_path)
        assert (await read(reader, one, other)).files == {"web": str(one), "api": str(other)}
        assert (await read(reader, one)).files == {}
        reader.close()

    run(scenario())


@pytest.mark.slow
def test_what_is_outside_is_looked_at_for_the_reading_that_is_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB + 'env_file = "missing.env"\n')

    async def scenario() -> None:
        reader = reader_in(tmp_path)
        number, _ = await reader.read([str(file)], None, access_log=False)
        await read(reader, file)
        problems, warnings = await reader.check_external(number, ["web"])
        assert "missing.env" in problems[0]["message"]
        assert await reader.check_external(number, []) == ([], warnings)
        os.kill(readers()[0], signal.SIGKILL)
        assert await reader.check_external(number, ["web"]) == (problems, warnings), "it reads them again"
        file.write_text(WEB)
        reader.end()
        with pytest.raises(ReaderFailed, match="have changed since they were read"):
            await reader.check_external(number, ["web"])
        reader.close()

    run(scenario())


@pytest.mark.slow
def test_server_that_is_added_gets_the_defaults_of_the_files_and_its_problems_are_raised(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        reader = reader_in(tmp_path)
        around = Surroundings({"tags": ["all"]}, str(tmp_path))
        table = {"name": "new", "bind": "127.0.0.1:9002", "app": "any:app"}
        assert (await reader.server_of_table(around, table, str(tmp_path), None)).tags == ("all",)
        with pytest.raises(PoolValidateError) as refused:
            await reader.server_of_table(around, {**table, "no_such_key": 1}, str(tmp_path), None)
        assert "unknown key 'no_such_key'" in str(refused.value)
        assert len(readers()) == 1, "a refused server ends nothing"
        reader.close()

    run(scenario())


@pytest.mark.slow
def test_places_of_keys_are_known_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        reader = reader_in(tmp_path)
        marks = (await read(reader, file)).marks
        found = await reader.origins([str(file)], None, marks, ["web", "added"])
        assert found.keys() == {"web"}
        assert (found["web"] or {})["tags"] == f"{file}:5"
        file.write_text("\n" + WEB)
        assert await reader.origins([str(file)], None, marks, ["web"]) == {}
        reader.close()

    run(scenario())


@pytest.mark.slow
def test_process_ends_when_it_is_not_used_and_another_one_is_started(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        reader = reader_in(tmp_path, idle_seconds=0.05)
        await read(reader, file)
        while readers():
            await asyncio.sleep(0.01)
        assert len((await read(reader, file)).servers) == 1
        reader.close()

    run(scenario())


@pytest.mark.slow
def test_process_that_was_killed_since_is_replaced_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        reader = reader_in(tmp_path)
        await read(reader, file)
        (before,) = readers()
        os.kill(before, signal.SIGKILL)
        assert len((await read(reader, file)).servers) == 1
        assert readers() != [before]
        reader.close()

    run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_process_that_is_killed_while_it_reads_is_replaced_once(tmp_path: Path, times: int) -> None:
    file, trace = tmp_path / "pool.toml", tmp_path / "trace"
    file.write_text(WEB)
    trace.touch()
    text = f"""
import os, signal
import poolctl.config_reader.__main__ as part
with open({str(trace)!r}, "a") as trace:
    trace.write("x")
    trace.flush()
    if trace.tell() <= {times}:
        part.ConfigRequestHandler.read = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
part.main()
"""
    command = [sys.executable, "-c", text, "config"]

    async def scenario() -> None:
        reader = reader_in(tmp_path, command)
        if times == 1:
            assert len((await read(reader, file)).servers) == 1
        else:
            with pytest.raises(ReaderFailed, match="was killed by signal 9"):
                await read(reader, file)
        reader.close()

    run(scenario())
    assert trace.read_text() == "xx"


@pytest.mark.slow
def test_process_that_was_started_with_the_pool_answers_the_first_request(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        first, helpers = executing_helpers(str(tmp_path)), executing_helpers(str(tmp_path))
        log = HelperLog(str(tmp_path), CONFIG_READER, None, None)
        process = await HelperProcess.spawn(first._keeper, log, CONFIG_READER, "")
        keeper: Any = helpers._keeper
        keeper.hold(
            fd_store.CONFIG_READER, process.known | {"mark": poolctl.__version__}, process.link.sock.dup()
        )
        process.link.close()
        reader = ConfigurationReader(helpers)
        await reader.adopt()
        assert len((await read(reader, file)).servers) == 1
        assert readers() == [process.pid]
        reader.close()

    run(scenario())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sys.exit('no library here')", "ended with status 1: no library here"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9"),
        ("next_request(); sys.exit(3)", "ended with status 3"),
        ("wire.send(link, {'id': next_request(), 'error': 'no room'}); next_request()", "no room"),
        (f"wire.send(link, {ANSWER}, [memory_file('', b'no', wire.SEALS)]); next_request()", "taken over"),
        (f"wire.send(link, {ANSWER}, [memory_file('', pickle.dumps(1))]); next_request()", "taken over"),
        (f"wire.send(link, {ANSWER}); next_request()", "taken over"),
    ],
)
def test_process_that_does_not_answer_is_an_error_with_the_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    found = failure(tmp_path, program(text))
    assert reason in str(found)
    assert found.hint
    assert not found.installed


def test_process_that_ends_by_itself_before_it_has_answered_is_not_started_again(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    found = failure(tmp_path, program(f"open({str(trace)!r}, 'a').write('x')", up=False))
    assert "ended with status 0" in str(found)
    assert trace.read_text() == "x"


def test_process_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    assert "/no/python cannot be run: No such file or directory" in str(failure(tmp_path, ["/no/python"]))


def test_answer_of_another_version_is_refused_before_it_is_looked_at(tmp_path: Path) -> None:
    found = failure(
        tmp_path, program("wire.send(link, {'id': next_request(), 'version': '99.1.2'}); next_request()")
    )
    assert str(found) == f"poolctl 99.1.2 is installed, and this pool runs {poolctl.__version__}"
    assert (found.installed, found.hint) == ("99.1.2", "poolctl upgrade")


def first_failure(directory: Path, argv: Sequence[str], stalled_seconds: float) -> str:
    """How the first reading of a pool fails with this program in the place of the process."""

    async def scenario() -> str:
        reader = reader_in(directory, argv, stalled_seconds=stalled_seconds)
        with pytest.raises(ReaderFailed) as failed:
            await reader.read(["pool.toml", "more.toml"], None, access_log=False, first=True)
        wait_until(lambda: not readers(), what="the process is ended")
        return str(failed.value)

    found: str = run(scenario())
    return found


@pytest.mark.parametrize("up", [True, False])
def test_first_reading_ends_when_its_process_uses_no_processor_time(tmp_path: Path, up: bool) -> None:
    said = first_failure(tmp_path, program("signal.pause()", up=up), 0.5)
    assert said.startswith("pool.toml and more.toml cannot be read: the process that does it (pid ")
    assert said.endswith(") has used no processor time for 0.5 s")


def test_first_reading_goes_on_for_as_long_as_its_process_works(tmp_path: Path) -> None:
    works = "import time\nend = time.monotonic() + 4.5\nwhile time.monotonic() < end: time.sleep(0.01)\n"
    answer = "wire.send(link, {'id': next_request(), 'version': '99.1.2'})\n"
    said = first_failure(tmp_path, program(works + answer), 3.0)
    assert said.startswith("poolctl 99.1.2 is installed")


@pytest.mark.slow
def test_request_that_is_cancelled_ends_the_process_and_the_next_one_is_answered(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)

    async def scenario() -> None:
        go = tmp_path / "go"
        hangs = f"if not os.path.exists({str(go)!r}): signal.pause()\n"
        serves = "from poolctl.config_reader.__main__ import main\nmain()"
        reader = reader_in(tmp_path, [sys.executable, "-c", f"import os, signal\n{hangs}{serves}", "config"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await read(reader, file)
        wait_until(lambda: not readers())
        go.touch()
        assert len((await read(reader, file)).servers) == 1
        reader.close()

    run(scenario())


def test_process_answers_pings_in_the_middle_of_a_read_and_ends_then_with_keeper_and_supervisor(
    tmp_path: Path,
) -> None:
    hangs = (
        "import signal, poolctl.config_reader.__main__ as part\n"
        "part.ConfigRequestHandler.read = lambda *given: (print('hangs', flush=True), signal.pause())\n"
        "part.main()"
    )

    async def scenario() -> None:
        reader = reader_in(tmp_path, [sys.executable, "-c", hangs, "config"])
        reading = asyncio.ensure_future(read(reader, tmp_path / "pool.toml"))
        log = tmp_path / "config.log"
        while not log.exists() or log.read_text() != "hangs\n":
            await asyncio.sleep(0.01)
        process = reader._helper.process
        assert process is not None
        heard = process.link.heard
        process.link.send(PING)
        while process.link.heard == heard:
            await asyncio.sleep(0.01)
        keeper: Any = reader._helper._keeper
        keeper.close()
        process.link.close()
        wait_until(lambda: not is_alive(process.pid))
        reading.cancel()
        await asyncio.wait({reading})
        reader.close()

    run(scenario())


@pytest.mark.slow
def test_supervisor_imports_nothing_that_validates() -> None:
    look = """
import sys

import poolctl.supervisor.supervisor
import poolctl.runners.local.local_runner
for name in poolctl.supervisor.feature_parts.modules():
    __import__(name)
assert not {"pydantic", "pydantic_core"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Pool:
    """The configuration of a pool whose files are in `directory`, with what its supervisors leave behind."""

    def __init__(self, directory: Path, text: str = WEB) -> None:
        self.directory = directory
        self.file = directory / "pool.toml"
        self.file.write_text(text)
        self.runtime = directory / "run"
        self.runtime.mkdir(exist_ok=True)
        self.link = StoreLink(Store())
        self.environments: dict[str, Any] = {}

    def configuration(self) -> ActiveConfiguration:
        """That of another supervisor."""
        store = StateStore(self.link, str(self.runtime))
        reader = reader_in(self.runtime)
        return ActiveConfiguration([str(self.file)], str(self.directory), store, self.environments, reader)

    def scenario(self, work: Callable[[ActiveConfiguration], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            configuration = self.configuration()
            try:
                await work(configuration)
            finally:
                configuration.close()
                withhold_variables((), only=True)

        run(whole())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/srv/shop/pool.toml", "shop"),
        ("/srv/shop/pool.yaml", "shop"),
        ("/srv/shop/pool.yml", "shop"),
        ("/srv/shop/pool.json", "shop"),
        ("/srv/shop/pyproject.toml", "shop"),
        ("/srv/shop/staging.toml", "staging"),
        ("/srv/my shop/pool.toml", "my-shop"),
        ("/srv/.shop./pool.toml", "shop"),
        ("/srv/a.b_c-1/pool.toml", "a.b_c-1"),
        ("/pool.toml", "pool"),
        ("/srv/★/pool.toml", "pool"),
    ],
)
def test_pool_without_a_name_has_that_of_its_directory_or_of_a_file_of_its_own_name(
    file: str, name: str
) -> None:
    assert default_name(file) == name


@pytest.mark.slow
def test_first_supervisor_reads_the_files_and_its_successor_takes_over_what_was_in_force(
    tmp_path: Path,
) -> None:
    pool = Pool(tmp_path, f'[pool]\nname = "shop"\n[metrics]\nbind = "127.0.0.1:9100"\n{WEB}')

    async def work(configuration: ActiveConfiguration) -> None:
        assert configuration.name == tmp_path.name
        assert await configuration.take_over() is None
        followed: list[Any] = []
        always: list[Any] = []
        configuration.subscribe_and_notify(followed.append)
        configuration.subscribe_and_notify(always.append, every_reload=True)
        (web,) = await configuration.try_read_first_servers()
        assert (web.name, configuration.name, configuration.problems) == ("web", "shop", [])
        metrics = [each.get(MetricsTable) for each in followed]
        assert [None if each is None else str(each.bind) for each in metrics] == [None, "127.0.0.1:9100"]
        configuration.activate(await configuration.read_without_activating())
        assert (len(followed), len(always)) == (2, 3)
        configuration.environments["web"] = {"A": "1"}
        configuration.activate(
            await configuration.read_without_activating({**os.environ, "TAG": "api"}), {"TAG": "api"}
        )
        configuration.missing.add("gone")
        core = Core([web], SlowRunner(), ManualClock(), RecordedEvents())
        left = configuration.take_unsaved(core)
        assert left is not None
        assert configuration.take_unsaved(core) is None
        StateStore(pool.link, str(pool.runtime)).store_for_successor(fd_store.CONFIGURATION, encoded(left))

        pool.file.unlink()
        pool.environments = {}
        after = pool.configuration()
        servers = await after.take_over()
        assert servers is not None
        assert [each.name for each in servers] == ["web"]
        assert (after.name, after.missing, after.environment, after.environments) == (
            "shop", {"gone"}, {"TAG": "api"}, {"web": {"A": "1"}},
        )  # fmt: skip
        assert after.tables == configuration.tables
        assert after.marks == configuration.marks
        again = after.take_unsaved(core)
        assert again is not None, "what it has taken over is what a further one gets"
        assert (again.name, again.missing, after.take_unsaved(core)) == ("shop", ["gone"], None)
        assert configuration.runtime_directory == str(pool.runtime)

    pool.scenario(work)


@pytest.mark.slow
def test_variables_are_those_of_the_supervisor_until_a_command_gives_others(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        assert configuration.environment is os.environ
        given = {**os.environ, "TAG": "api"}
        resolved = await configuration.read_without_activating(given)
        assert resolved.servers[0].tags == ("api",)
        configuration.activate(resolved, given)
        assert configuration.environment == given
        assert (await configuration.read_without_activating()).servers[0].tags == ("api",)
        configuration.activate(await configuration.read_without_activating())
        assert configuration.environment == given

    Pool(tmp_path).scenario(work)


@pytest.mark.slow
def test_wrong_files_are_problems_of_the_first_reading_with_the_name_of_the_pool(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "[[server]]\nbinf = 1\n")

    async def work(configuration: ActiveConfiguration) -> None:
        assert await configuration.try_read_first_servers() == []
        assert configuration.problems
        assert (configuration.exit_code, configuration.name) == (INVALID_CONFIGURATION, tmp_path.name)
        resolved = await configuration.read_without_activating()
        assert (resolved.problems, resolved.marks is not None) == (configuration.problems, True)
        assert resolved.is_empty

    pool.scenario(work)


def test_stop_during_the_first_reading_is_its_result_and_later_it_does_nothing(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        configuration.cancel_first_read()
        reading = asyncio.ensure_future(configuration.try_read_first_servers())
        await asyncio.sleep(0)
        configuration.cancel_first_read()
        assert await reading == []
        (problem,) = configuration.problems
        assert (problem.message, problem.hint, configuration.exit_code) == (
            "the pool was stopped while its files were being read", "poolctl start", FAILED,
        )  # fmt: skip

    Pool(tmp_path).scenario(work)


def test_files_that_no_process_can_read_are_a_conflict(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        configuration._reader = reader_in(tmp_path, ["/nowhere/python"])
        assert await configuration.try_read_first_servers() == []
        assert configuration.exit_code == CONFLICT
        assert "/nowhere/python cannot be run" in configuration.problems[0].message

    Pool(tmp_path).scenario(work)


AUTO = '[[server]]\nname = "{}"\nbind = "127.0.0.1:auto"\napp = "any:app"\n'


@pytest.mark.slow
def test_automatic_ports_stay_until_another_program_has_taken_them_while_the_pool_was_stopped(
    tmp_path: Path,
) -> None:
    pool = Pool(tmp_path, AUTO.format("a") + AUTO.format("b"))

    async def work(configuration: ActiveConfiguration) -> None:
        first = {
            each.name: each.address.port for each in (await configuration.read_without_activating()).servers
        }
        assert len({*first.values()}) == 2
        assert None not in first.values()
        pool.file.write_text(AUTO.format("b") + AUTO.format("c") + AUTO.format("a"))
        again = {
            each.name: each.address.port for each in (await configuration.read_without_activating()).servers
        }
        assert {name: again[name] for name in first} == first
        assert again["c"] not in first.values()
        with socket.create_server(("127.0.0.1", first["a"])):
            running = {
                each.name: each.address.port
                for each in (await configuration.read_without_activating()).servers
            }
            assert (running, configuration.moved_ports) == (again, {})
            stopped = {
                each.name: each.address.port
                for each in (await configuration.read_without_activating(stopped=True)).servers
            }
        assert stopped["a"] != first["a"]
        assert {name: port for name, port in stopped.items() if name != "a"} == {
            "b": first["b"],
            "c": again["c"],
        }
        assert configuration.moved_ports == {"a": (first["a"], stopped["a"])}

    pool.scenario(work)


@pytest.mark.parametrize(
    "owner",
    [
        '[[server]]\nname = "b"\nbind = "127.0.0.1:{}"\napp = "any:app"\n',
        '[metrics]\nbind = "127.0.0.1:{}"\n',
    ],
)
def test_automatic_port_that_the_file_gives_to_another_address_is_chosen_again(
    tmp_path: Path, owner: str
) -> None:
    pool = Pool(tmp_path, AUTO.format("a"))

    async def work(configuration: ActiveConfiguration) -> None:
        (before,) = (await configuration.read_without_activating()).servers
        pool.file.write_text(AUTO.format("a") + owner.format(before.address.port))
        reading = await configuration.read_without_activating()
        assert reading.problems == []
        assert reading.servers[0].address.port not in (None, before.address.port)

    pool.scenario(work)


@pytest.mark.slow
def test_port_of_a_server_that_was_added_live_stays_its_own(tmp_path: Path) -> None:
    pool = Pool(tmp_path, AUTO.format("a"))

    async def work(configuration: ActiveConfiguration) -> None:
        there = (await configuration.read_without_activating()).servers
        table = {"name": "live", "bind": "127.0.0.1:auto", "app": "any:app"}
        live = await configuration.resolve_added(table, str(tmp_path), there)
        assert live.address.port not in (None, there[0].address.port)
        pool.file.write_text(AUTO.format("a") + AUTO.format("b"))
        servers = (await configuration.read_without_activating(keep={"live"})).servers
        assert live.address.port not in {each.address.port for each in servers}

    pool.scenario(work)


@pytest.mark.slow
def test_server_that_is_added_may_refer_to_those_that_are_there(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        resolved = await configuration.read_without_activating()
        configuration.activate(resolved)
        url = "http://${server.web.host}:${server.web.port}"
        table = {"name": "new", "bind": "127.0.0.1:9002", "app": "any:app", "env": {"WEB": url}}
        added = await configuration.resolve_added(table, str(tmp_path), resolved.servers)
        assert added.env["WEB"] == "http://127.0.0.1:9001"
        with pytest.raises(PoolValidateError) as refused:
            await configuration.resolve_added(table, str(tmp_path), [])
        assert "there is no server 'web'" in str(refused.value.exceptions[0])
        inherits = ServerConfig(name="web", bind="fd:7", app="any:app")
        with pytest.raises(PoolValidateError) as refused:
            await configuration.resolve_added(
                {**table, "env": {"WEB": "${server.web.url}"}}, str(tmp_path), [inherits]
            )
        assert "the address of 'web' is that of the socket it inherits" in str(refused.value.exceptions[0])

    Pool(tmp_path).scenario(work)


@pytest.mark.slow
def test_live_changes_outlive_keeper_and_supervisor_unless_the_files_contradict_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(tmp_path, WEB + WEB.replace("web", "gone").replace("9001", "9002"))
    added = {"app": "any:app"}
    servers = {
        "live": {"source": [{"name": "live", "bind": "127.0.0.1:9003", **added}, str(tmp_path)]},
        "taken": {"source": [{"name": "taken", "bind": "127.0.0.1:9001", **added}, str(tmp_path)]},
        "wrong": {"source": [{"name": "wrong", "bind": "127.0.0.1:9004", "no_such_key": 1}, str(tmp_path)]},
        "web": {},
    }
    pool_files.write_left_state(
        str(pool.runtime), json.dumps({"missing": ["gone"], "servers": servers}).encode()
    )

    async def work(configuration: ActiveConfiguration) -> None:
        found = await configuration.try_read_first_servers()
        assert [each.name for each in found] == ["web", "live"]
        assert configuration.missing == {"gone"}
        assert "taken, which was added live, is dropped: it conflicts with the files" in caplog.text
        assert "wrong, which was added live, is dropped: " in caplog.text

    pool.scenario(work)


@pytest.mark.slow
@pytest.mark.parametrize("ran", [True, False])
def test_file_of_variables_that_cannot_be_read_prevents_only_the_start_of_a_pool_that_does_not_run(
    tmp_path: Path, ran: bool
) -> None:
    pool = Pool(tmp_path, WEB + 'env_file = "missing.env"\n')
    if ran:
        pool_files.write_left_state(str(pool.runtime), b'{"missing": [], "servers": {"web": {}}}')

    async def work(configuration: ActiveConfiguration) -> None:
        await configuration.try_read_first_servers()
        assert bool(configuration.problems) is not ran

    pool.scenario(work)


@pytest.mark.slow
def test_places_of_keys_are_empty_before_the_files_are_read_and_for_no_server(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        assert await configuration.key_origins(["web"]) == {}
        configuration.activate(await configuration.read_without_activating())
        assert await configuration.key_origins([]) == {}
        found = (await configuration.key_origins(["web"]))["web"]
        assert found is not None
        assert found["bind"].endswith("pool.toml:3")
        configuration.close()
        configuration._reader = reader_in(tmp_path, ["/nowhere/python"])
        assert await configuration.key_origins(["web"]) == {}

    Pool(tmp_path).scenario(work)


def test_problems_outside_of_the_files_are_those_of_the_servers_asked_about(tmp_path: Path) -> None:
    pool = Pool(tmp_path, WEB + 'env_file = "missing.env"\n')

    async def work(configuration: ActiveConfiguration) -> None:
        resolved = await configuration.read_without_activating()
        assert resolved.number > 0
        assert await configuration.check_external(resolved, []) == []
        (problem,) = await configuration.check_external(resolved, ["web"])
        assert "missing.env" in problem.message
        assert await configuration.check_external(ConfigurationLoadResult("none"), ["web"]) == []

    pool.scenario(work)


def program_of(name: str, command: str, **keys: Any) -> ServerConfig:
    return ServerConfig(name=name, bind="127.0.0.1:9001", command=[command], **keys)


@pytest.mark.slow
def test_program_that_was_found_to_open_its_socket_itself_is_read_so_until_its_command_changes(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "programs.json")
    SelfBindingProgramsFile(path).remember(program_of("web", "nginx"))
    known = SelfBindingProgramsFile(path)
    servers = [program_of("web", "nginx"), program_of("web", "caddy"), program_of("api", "nginx")]
    assert [each.socket for each in known.apply_to(servers)] == [
        "program",
        servers[1].socket,
        servers[2].socket,
    ]
    said = program_of("web", "nginx", socket="pool")
    assert known.apply_to([said]) == [said]
    written = os.stat(path).st_ino
    known.remember(program_of("web", "nginx"))
    assert os.stat(path).st_ino == written
    known.remember(program_of("web", "caddy"))
    assert SelfBindingProgramsFile(path).apply_to(servers[1:2])[0].socket == "program"


def test_program_is_remembered_until_its_command_changes(tmp_path: Path) -> None:
    path = str(tmp_path / "no-overlap.json")
    ProgramsFile(path).remember(program_of("web", "nginx"))
    known = ProgramsFile(path)
    servers = [program_of("web", "nginx"), program_of("web", "caddy"), program_of("api", "nginx")]
    assert [known.has(each) for each in servers] == [True, False, False]


@pytest.mark.parametrize("content", [None, "no json", "[1]"])
def test_damaged_or_missing_object_of_the_state_directory_is_empty(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "object.json"
    if content is not None:
        path.write_text(content)
    assert read_json_object(str(path)) == {}
    try_write_object(str(path), {"a": 1})
    assert read_json_object(str(path)) == {"a": 1}


def test_object_that_cannot_be_written_is_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    try_write_object(str(tmp_path / "none" / "object.json"), {})
    assert "object.json cannot be written" in caplog.text


@pytest.mark.slow
def test_start_warns_of_a_program_that_binds_its_address_once_until_the_files_change(tmp_path: Path) -> None:
    pool = Pool(tmp_path)

    async def work(configuration: ActiveConfiguration) -> None:
        configuration.activate(await configuration.read_without_activating())
        guessed = ServerConfig(name="guessed", bind="127.0.0.1:9003", command=["serve", "{port}"])
        other = ServerConfig(name="other", bind="127.0.0.1:9004", command=["serve", "{port}"])
        others = [program_of("said", "nginx", socket="program"), program_of("plain", "nginx")]
        for servers, before in (
            ([guessed, *others], set()), ([guessed], {"guessed"}), ([other], {"guessed"}),
            ([guessed, other], {"guessed", "other"}), (others, set()),
        ):  # fmt: skip
            assert await configuration.remember_and_get_previously_warned(servers) == before
        pool.file.write_text(WEB + "# changed\n")
        configuration.activate(await configuration.read_without_activating())
        assert await configuration.remember_and_get_previously_warned([guessed]) == set()

    pool.scenario(work)


def test_server_that_conflicts_is_not_added_and_the_reason_has_its_exit_code(tmp_path: Path) -> None:
    there = [ServerConfig(name="web", bind="127.0.0.1:9001", app="a:b")]
    tables = Tables(metrics=MetricsTable(bind="127.0.0.1:9100"))

    def reason(bind: str, **keys: Any) -> tuple[int, str] | None:
        added = ServerConfig(name="new", bind=bind, app="a:b", **keys)
        found = obstacles_to_adding(added, there, tables)
        return None if found is None else (found[0], found[1][0].message)

    assert reason("127.0.0.1:9002") is None
    for bind, word in (("127.0.0.1:9001", "web"), ("127.0.0.1:9100", "metrics")):
        found = reason(bind)
        assert found is not None
        assert (found[0], word in found[1]) == (CONFLICT, True)
    found = reason("127.0.0.1:9002", depends_on=["nobody"])
    assert found is not None
    assert (found[0], "nobody" in found[1]) == (INVALID_CONFIGURATION, True)
