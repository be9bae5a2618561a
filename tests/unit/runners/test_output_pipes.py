"""Output pipes of workers reach the logger, and each logger that follows one that has exited."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl import ServerConfig, __version__
from poolctl.bootstrap import command
from poolctl.errors import ServerError
from poolctl.keeper import wire
from poolctl.logs.log_line import stamp
from poolctl.runners.helper_process import HelperKind, HelperOwner, HelperProcess, Helpers
from poolctl.runners.local.output_pipes import OutputPipes, last_lines
from poolctl.runners.process_link import Link, LinkLost, Refused
from poolctl.runners.runner_protocol import RunnerEventHandler
from tests.descriptors import no_descriptor_left
from tests.helper_keeper import HelperKeeper
from tests.virtual_loop import VirtualLoop

PAGE = HelperKind(name="page", label="the page", argv=("/python", "page"), entry="page link")


def server(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": "127.0.0.1:8080", "app": "web:app"} | keys)


class Keeper(HelperKeeper):
    """Records the values that it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[wire.Message] = []
        self.outputs: list[int] = []  # the descriptors to which helpers print

    def start(self, message: wire.Message, fds: Sequence[Any]) -> int:
        self.outputs += map(os.dup, fds[1:])
        return super().start(message, fds)

    def send(self, message: wire.Message, fds: Sequence[Any] = ()) -> None:
        self.messages.append(message)
        super().send(message, fds)

    def values(self, operation: str) -> dict[str, Any]:
        """The values that were sent with this operation, by name."""
        return {each["name"]: each.get("meta") for each in self.messages if each["op"] == operation}


class Events:
    """Records lost output."""

    def __init__(self) -> None:
        self.lost: list[tuple[str, int, str, str]] = []

    def output_lost(self, name: str, count: int, path: str, reason: str) -> None:
        self.lost.append((name, count, path, reason))


class Stage:
    """A runner's output beside a keeper, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keeper = Keeper()
        self.events = Events()
        keeper = cast(Link, self.keeper)
        self.helpers = Helpers(keeper, str(directory))
        events = cast(RunnerEventHandler, self.events)
        self.output = OutputPipes(keeper, self.helpers, str(directory / "logs"), lambda: events)

    @property
    def logger(self) -> socket.socket:
        return self.keeper.ends[-1]

    async def start(self) -> None:
        """Start the logger, which is up at once."""
        await self.output.start()
        await self.up()

    async def up(self) -> None:
        await self.settled()
        await self.keeper.say({"t": "up"})

    async def received(self, kind: str) -> tuple[wire.Message, list[int]]:
        """The next message of this kind that the current logger gets."""
        return await self.keeper.heard_next(kind)

    async def settled(self) -> None:
        await self.keeper.settle()

    def close(self) -> None:
        self.output.shut_down()
        self.keeper.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    with no_descriptor_left(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


pytestmark = pytest.mark.loop(run=run)


async def test_logger_is_started_with_the_directory_of_the_pool(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    (spawned,) = stage.keeper.spawned
    assert [*spawned["argv"]] == command(sys.executable, "logs", str(tmp_path), isolated=True)
    assert spawned["output"] == str(tmp_path / "logger.log")
    assert stage.keeper.entries.keys() == {"logger"}
    stage.close()
    assert stage.keeper.values("drop").keys() == {"logger"}


async def test_running_logger_is_used_and_gets_the_pipes_that_were_adopted(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    ours, theirs = wire.pair()
    stage.keeper.hold("logger", {"pid": 1 << 23, "start": 1, "mark": __version__}, ours)
    stage.keeper.ends.append(theirs)
    read, write = os.pipe()
    message = {"t": "add", "id": "web.1", "name": "web", "path": "/logs/web.log"}
    (descriptor,) = stage.output.adopt("web.1", message, [read])
    assert descriptor.fileno() == read
    assert stage.output.paths == {"web": "/logs/web.log"}
    await stage.output.start()
    assert stage.keeper.spawned == []
    added, (fd,) = await stage.received("add")
    assert added == message
    os.write(write, b"line")
    assert os.read(fd, 9) == b"line"
    os.close(fd)
    os.close(write)
    stage.close()


async def test_pipe_is_registered_with_its_process_and_known_until_it_ends(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    key, write = stage.output.create_pipe(server())
    other, other_write = stage.output.create_pipe(server())
    assert key != other
    assert stage.output.paths == {"web": str(tmp_path / "logs" / "web.log")}
    for id, pid in ((key, 42), (other, 43)):
        stage.output.register_pipe(id, pid)
        message, (fd,) = await stage.received("add")
        assert (message["id"], message["name"], message["pid"]) == (id, "web", pid)
        assert stage.keeper.values("put")[f"output:{id}"] == message
        assert not os.get_blocking(fd)
        os.close(fd)
    os.write(write, b"x")
    finished = asyncio.ensure_future(stage.output.wait_until_stored(key, 60))
    await asyncio.sleep(1)
    assert not finished.done()
    wire.send(stage.logger, {"t": "eof", "id": key, "tail": ""})
    wire.send(stage.logger, {"t": "eof", "id": "unknown", "tail": ""})
    await finished
    assert asyncio.get_running_loop().time() == 1
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    assert f"output:{key}" not in stage.keeper.entries
    assert f"output:{other}" in stage.keeper.entries
    await stage.output.wait_until_stored(key, 60)
    await stage.output.wait_until_stored(other, 60)
    assert asyncio.get_running_loop().time() == 61
    os.close(write)
    os.close(other_write)
    stage.close()


PROGRAM = {"app": None, "command": ["web"], "ready_line": "^ready"}


async def test_ready_line_is_awaited_until_a_logger_has_found_it(tmp_path: Path) -> None:
    stage, problems = Stage(tmp_path), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    await stage.start()
    key, write = stage.output.create_pipe(server(**PROGRAM))
    stage.output.register_pipe(key, 42)
    message, (fd,) = await stage.received("add")
    assert message["ready_line"] == "^ready"
    os.close(fd)
    waiting = asyncio.ensure_future(stage.output.wait_for_ready_line(key))
    await stage.keeper.say({"t": "ready", "id": "unknown", "error": "", "fix": ""})
    assert not waiting.done()
    for _ in range(2):
        await stage.keeper.say({"t": "ready", "id": key, "error": "", "fix": ""})
        await waiting
    assert problems == [], "a logger that was killed meanwhile may have reported it too"
    await stage.output.wait_for_ready_line(key)
    found = stage.keeper.values("note")[f"output:{key}"]
    assert found == {name: each for name, each in message.items() if name != "ready_line"}
    stage.keeper.end()
    await asyncio.sleep(1)
    await stage.up()
    again, (fd,) = await stage.received("add")
    assert again == found, "the next logger does not look for it"
    os.close(fd)
    os.close(write)
    stage.close()


async def test_ready_line_that_cannot_be_found_is_a_problem_of_the_server(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    key, write = stage.output.create_pipe(server(**PROGRAM))
    stage.output.register_pipe(key, 42)
    await stage.keeper.say({"t": "ready", "id": key, "error": "too slow", "fix": "be faster"})
    for _ in range(2):
        with pytest.raises(ServerError) as raised:
            await stage.output.wait_for_ready_line(key)
        assert (raised.value.message, raised.value.hint) == ("ready_line: too slow", "be faster")
    assert f"output:{key}" not in stage.keeper.values("note")
    os.close(write)
    stage.close()


@pytest.mark.parametrize("found", [True, False])
async def test_next_supervisor_knows_whether_the_ready_line_was_there(tmp_path: Path, found: bool) -> None:
    stage = Stage(tmp_path)
    read, write = os.pipe()
    message = {"t": "add", "id": "web.1", "name": "web", "path": "/logs/web.log"}
    stage.output.adopt("web.1", message | ({} if found else {"ready_line": "^ready"}), [read])
    waiting = asyncio.ensure_future(stage.output.wait_for_ready_line("web.1"))
    await asyncio.sleep(1)
    assert waiting.done() is found
    waiting.cancel()
    os.close(write)
    await stage.start()
    stage.close()


async def test_ready_line_is_awaited_in_vain_if_the_output_has_ended(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    key, write = stage.output.create_pipe(server(**PROGRAM))
    os.close(write)
    await stage.keeper.say({"t": "eof", "id": key, "tail": ""})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stage.output.wait_for_ready_line(key), 60)
    stage.close()


async def test_helper_prints_to_the_logger_without_ever_waiting_for_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    helper = stage.helpers.add(PAGE, HelperOwner(), HelperProcess)
    stage.keeper.refusals = [Refused("no such program")]
    helper.reconcile()
    await stage.settled()
    helper.reconcile()
    await stage.up()
    assert stage.keeper.spawned[-1]["output"] is None
    (write,) = stage.keeper.outputs
    assert not os.get_blocking(write)
    added, (read,) = await stage.keeper.heard_next("add", 0)
    log = str(tmp_path / "page.log")
    assert (added["name"], added["path"], added["format"]) == ("[page]", log, "raw")
    assert (added["max_size"], added["keep"]) == (1 << 20, 1)
    assert added["pid"] == helper.pid
    os.write(write, b"line")
    assert os.read(read, 9) == b"line"
    entry = f"helper output {added['id']}"
    assert stage.keeper.values("put")[entry] == added
    for fd in (read, write):
        os.close(fd)
    stored = asyncio.ensure_future(helper.log.wait_until_stored())
    question, _ = await stage.keeper.heard_next("performed", 0)
    assert not stored.done()
    await stage.keeper.say({"t": "performed", "id": question["id"]}, end=0)
    await stored
    await stage.keeper.say({"t": "eof", "id": added["id"], "tail": ""}, end=0)
    assert entry not in stage.keeper.entries
    helper.close()
    stage.close()


async def test_pipe_of_a_helper_is_adopted_without_being_a_servers(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    read, write = os.pipe()
    stage.output.adopt("[web].1", {"t": "add", "id": "[web].1", "name": "[web]", "path": "/web.log"}, [read])
    assert stage.output.paths == {}
    await stage.start()
    await stage.keeper.say({"t": "eof", "id": "[web].1", "tail": ""})
    assert "helper output [web].1" in stage.keeper.values("drop")
    os.close(write)
    stage.close()


async def test_order_names_the_file_and_its_rotation(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    log = {
        "path": str(tmp_path / "own.log"),
        "format": "json",
        "max_size": "1MiB",
        "keep": 3,
        "max_age": "1h",
    }
    await stage.start()
    key, write = stage.output.create_pipe(server(log=log))
    stage.output.register_pipe(key, 5)
    message, (fd,) = await stage.received("add")
    assert message == {
        "t": "add", "id": key, "name": "web", "pid": 5, "path": str(tmp_path / "own.log"), "owner": None,
        "format": "json", "max_size": 1 << 20, "keep": 3, "max_age": 3600,
    }  # fmt: skip
    os.close(fd)
    os.close(write)
    stage.close()


async def test_pipe_of_a_worker_that_was_not_created_is_closed(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    key, write = stage.output.create_pipe(server())
    stage.output.discard(key)
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)
    stage.output.discard(key)
    stage.close()


async def test_next_logger_gets_every_pipe(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    key, write = stage.output.create_pipe(server())
    stage.output.register_pipe(key, 42)
    stage.keeper.end()
    await asyncio.sleep(1)
    await stage.up()
    assert len(stage.keeper.spawned) == 2
    message, (fd,) = await stage.received("add")
    assert message["id"] == key
    os.close(fd)
    os.close(write)
    stage.close()


async def test_logger_that_cannot_be_started_is_started_every_200_ms(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    stage.keeper.refusals = [LinkLost()] * 3
    stage.keeper.end()
    while len(stage.keeper.spawned) < 2:
        await asyncio.sleep(0.01)
    assert 0.6 <= asyncio.get_running_loop().time() < 0.65
    stage.close()


async def test_output_that_is_closed_starts_no_logger(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    stage.keeper.refusals = [LinkLost()]
    stage.keeper.end()
    await asyncio.sleep(0.1)
    assert stage.keeper.refusals == []
    stage.output.shut_down()
    await asyncio.sleep(1)
    assert len(stage.keeper.spawned) == 1
    stage.close()


async def test_logger_gets_no_order_once_the_output_is_closed_and_each_pipe_is_closed(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    key, write = stage.output.create_pipe(server())
    stage.output.shut_down()
    stage.output.register_pipe(key, 4711)
    await stage.received("end")
    assert wire.receive(stage.logger) is None
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)
    stage.close()


async def test_lost_output_is_reported_with_its_server_and_file(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    key, write = stage.output.create_pipe(server())
    for message in (
        {"id": key, "bytes": 5, "error": "No space left on device"},
        {"id": key},
        {"id": "unknown", "bytes": 5},
    ):
        wire.send(stage.logger, {"t": "dropped", **message})
    await stage.settled()
    path = str(tmp_path / "logs" / "web.log")
    assert stage.events.lost == [("web", 5, path, "No space left on device"), ("web", 0, path, "")]
    os.close(write)
    stage.close()


async def test_lines_of_the_pool_are_written_to_the_pipe_and_awaited_for_a_second(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.start()
    saying = asyncio.ensure_future(stage.output.append_lines(server(), ["one", "two"]))
    message, (fd,) = await stage.received("add")
    assert message["pid"] == os.getpid()
    assert os.read(fd, 99) == b"one\ntwo\n"
    assert os.read(fd, 99) == b"", "the write end is closed"
    os.close(fd)
    await saying
    assert asyncio.get_running_loop().time() == 1
    # Lines that exceed the pipe are dropped; the supervisor does not wait.
    await stage.output.append_lines(server(), ["x" * 100_000] * 2)
    stage.close()


def test_last_lines_are_masked_cut_and_limited_by_number_and_time(tmp_path: Path) -> None:
    file = tmp_path / "web.log"
    lines = ["old", "connects to postgres://me:secret@db/x", "y" * 5000]
    began = 1_790_000_000.0
    file.write_text("".join(f"{stamp(began + 10 * at)} {line}\n" for at, line in enumerate(lines)))
    found = last_lines(str(file), 5, began + 5)
    assert len(found) == 2
    assert "postgres://me:" in found[0]
    assert "secret" not in found[0]
    assert found[1] == "y" * 4096
    assert last_lines(str(file), 1, 0.0) == found[1:]
