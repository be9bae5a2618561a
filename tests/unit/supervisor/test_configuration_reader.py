"""Files are read in a thread, which is given up if the disk does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolctl.config import Surroundings
from poolctl.errors import PoolValidateError
from poolctl.supervisor.configuration_reader import ConfigurationReader, ReaderFailed, Reading
from tests import moments
from tests.virtual_loop import run_hurried

from .test_active_configuration import WEB, run


async def read(*files: Path, env: dict[str, str] | None = None) -> Reading:
    return await ConfigurationReader().read([str(file) for file in files], env, access_log=False)


def test_files_are_read_with_the_variables_given_and_problems_have_their_places(tmp_path: Path) -> None:
    good, bad = tmp_path / "pool.toml", tmp_path / "bad.toml"
    good.write_text(WEB)
    bad.write_text("[[server]]\nbinf = 1\n")
    reading = run(read(good, env={"TAG": "secret"}))
    assert ([server.name for server in reading.servers], reading.problems) == (["web"], [])
    assert reading.servers[0].tags == ("secret",)
    problems = run(read(bad)).problems
    assert {(problem.file, problem.line) for problem in problems} == {(str(bad), 1), (str(bad), 2)}
    assert "there is no such file" in str(run(read(tmp_path / "none.toml")).problems)


def test_of_several_files_the_one_of_each_server_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(WEB)
    other.write_text(WEB.replace("web", "api").replace("9001", "9002"))
    assert run(read(one, other)).files == {"web": str(one), "api": str(other)}
    assert run(read(one)).files == {}


async def test_what_is_outside_is_looked_at_for_the_servers_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB + 'env_file = "missing.env"\n')
    configuration = (await read(file)).configuration
    assert configuration is not None
    problems, warnings = await ConfigurationReader().check_external(configuration, ["web"])
    assert "missing.env" in problems[0].message
    assert await ConfigurationReader().check_external(configuration, []) == ([], warnings)


def test_server_that_is_added_gets_the_defaults_of_the_files_and_its_problems_are_raised(
    tmp_path: Path,
) -> None:
    around = Surroundings({"tags": ["all"]}, str(tmp_path))
    table = {"name": "new", "bind": "127.0.0.1:9002", "app": "any:app"}
    reader = ConfigurationReader()
    assert run(reader.server_of_table(around, table, str(tmp_path), None)).tags == ("all",)
    with pytest.raises(PoolValidateError) as refused:
        run(reader.server_of_table(around, {**table, "no_such_key": 1}, str(tmp_path), None))
    assert "unknown key 'no_such_key'" in str(refused.value)


def test_places_of_keys_are_known_until_the_file_changes(file: Path) -> None:
    marks = run(read(file)).marks
    origins = run(ConfigurationReader().origins([str(file)], None, marks, ["web", "added"]))
    assert origins.keys() == {"web"}
    assert origins["web"]["tags"] == f"{file}:5"
    file.write_text("\n" + WEB)
    assert run(ConfigurationReader().origins([str(file)], None, marks, ["web"])) == {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a pool."""
    path = tmp_path / "pool.toml"
    path.write_text(WEB)
    return path


def before_reading(file: Path, act: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    return moments.before("open", lambda path, *_: path in (str(file), file.name) and act())


@pytest.fixture
def disk(file: Path) -> Iterator[threading.Event]:
    """A disk that does not answer before the event is set."""
    answers = threading.Event()
    with before_reading(file, lambda: answers.wait(30)):
        yield answers
        answers.set()


def test_disk_that_does_not_answer_is_an_error_and_the_next_reading_works(
    file: Path, disk: threading.Event
) -> None:
    async def read_twice() -> None:
        reader = ConfigurationReader()
        with pytest.raises(ReaderFailed) as failed:
            await reader.read([str(file), "more.toml"], None, access_log=False)
        assert str(failed.value) == f"{file} and more.toml cannot be read: nothing was read for 10 s"
        assert failed.value.result.exit_code == 8
        disk.set()
        assert len((await reader.read([str(file)], None, access_log=False)).servers) == 1

    run_hurried(10, read_twice())


@pytest.mark.slow
def test_reading_that_works_is_waited_for_however_long_it_takes(file: Path) -> None:
    def work() -> None:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            sum(range(1000))

    with before_reading(file, work):
        assert len(run_hurried(10, read(file)).servers) == 1


async def test_cancelled_reading_leaves_the_way_free_for_the_next_one(
    file: Path, disk: threading.Event
) -> None:
    reader = ConfigurationReader()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await reader.read([str(file)], None, access_log=False)
    disk.set()
    assert len((await reader.read([str(file)], None, access_log=False)).servers) == 1


def test_error_that_nobody_expected_is_a_reason(file: Path) -> None:
    def fail() -> None:
        raise ImportError("no library here")

    with before_reading(file, fail), pytest.raises(ReaderFailed, match="no library here"):
        run(read(file))


REPLACED = """
import asyncio, importlib, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

from poolctl.supervisor import configuration_reader

for name in configuration_reader.modules():
    importlib.import_module(name)
(file,) = map(Path, sys.argv[1:])
# From now on nothing can be imported but the standard library.
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
library = str(Path(asyncio.__file__).parents[1])
sys.path[:] = [library, f"{library}/lib-dynload"]
reader = configuration_reader.ConfigurationReader()
reading = asyncio.run(reader.read([str(file)], {}, access_log=False))
assert (len(reading.servers), reading.problems) == (1, []), reading.problems
asyncio.run(reader.check_external(reading.configuration, ["web"]))
"""
EVERYTHING = """
[pool]
name = "shop"
[metrics]
[events]
[operator]
bind = "127.0.0.1:8080"
trusted = ["10.0.0.0/8"]
[[notify]]
type = "command"
command = ["true"]
[kubernetes]
image = "shop"
"""


@pytest.mark.slow
def test_files_are_read_after_every_package_has_been_removed(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(EVERYTHING + WEB)
    done = subprocess.run([sys.executable, "-c", REPLACED, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
