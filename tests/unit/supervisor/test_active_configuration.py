"""The configuration in force: taken over, read, and saved for the next supervisor."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.config import Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.core.core import Core
from poolctl.errors import PoolValidateError
from poolctl.exit_codes import CONFLICT, FAILED, INVALID_CONFIGURATION
from poolctl.keeper import fd_store, pool_files
from poolctl.keeper.store import Store
from poolctl.platform import read_json_object
from poolctl.runners.withheld_variables import withhold_variables
from poolctl.supervisor.active_configuration import (
    ActiveConfiguration,
    ProgramsFile,
    default_name,
    obstacles_to_adding,
    try_write_object,
)
from poolctl.supervisor.configuration_reader import Reading
from poolctl.supervisor.takeover.state_store import StateStore, encoded
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import RecordedEvents
from tests.unit.runners.scripted_runner import SlowRunner

from .test_state_store import StoreLink

WEB = '[[server]]\nname = "web"\nbind = "127.0.0.1:9001"\napp = "any:app"\ntags = ["${TAG:-none}"]\n'


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(100):
            return await work

    return asyncio.run(bounded())


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
        return ActiveConfiguration([str(self.file)], str(self.directory), store, self.environments)

    def scenario(self, work: Callable[[ActiveConfiguration], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            configuration = self.configuration()
            try:
                await work(configuration)
            finally:
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
        configuration.subscribe(followed.append)
        configuration.subscribe(always.append, every_reload=True)
        (web,) = await configuration.read_first_servers()
        assert (web.name, configuration.name, configuration.problems) == ("web", "shop", [])
        before, now = [table.get(MetricsTable) for table in followed]
        assert before is None
        assert now is not None
        assert str(now.bind) == "127.0.0.1:9100"
        configuration.activate(await configuration.read())
        assert (len(followed), len(always)) == (2, 3)
        configuration.environments["web"] = {"A": "1"}
        configuration.activate(await configuration.read({**os.environ, "TAG": "api"}), {"TAG": "api"})
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
        assert [server.name for server in servers] == ["web"]
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
        environment = {**os.environ, "TAG": "api"}
        resolved = await configuration.read(environment)
        assert resolved.servers[0].tags == ("api",)
        configuration.activate(resolved, environment)
        assert configuration.environment == environment
        assert (await configuration.read()).servers[0].tags == ("api",)
        configuration.activate(await configuration.read())
        assert configuration.environment == environment

    Pool(tmp_path).scenario(work)


@pytest.mark.slow
def test_wrong_files_are_problems_of_the_first_reading_with_the_name_of_the_pool(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "[[server]]\nbinf = 1\n")

    async def work(configuration: ActiveConfiguration) -> None:
        assert await configuration.read_first_servers() == []
        assert configuration.problems
        assert (configuration.exit_code, configuration.name) == (INVALID_CONFIGURATION, tmp_path.name)
        resolved = await configuration.read()
        assert (resolved.problems, resolved.marks is not None) == (configuration.problems, True)
        assert resolved.is_empty

    pool.scenario(work)


def test_stop_during_the_first_reading_is_its_result_and_later_it_does_nothing(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        configuration.cancel_first_read()
        reading = asyncio.ensure_future(configuration.read_first_servers())
        await asyncio.sleep(0)
        configuration.cancel_first_read()
        assert await reading == []
        (problem,) = configuration.problems
        assert (problem.message, problem.hint, configuration.exit_code) == (
            "the pool was stopped while its files were being read", "poolctl start", FAILED,
        )  # fmt: skip

    Pool(tmp_path).scenario(work)


AUTO = '[[server]]\nname = "{}"\nbind = "127.0.0.1:auto"\napp = "any:app"\n'


@pytest.mark.slow
def test_automatic_ports_stay_when_the_files_are_read_again(tmp_path: Path) -> None:
    pool = Pool(tmp_path, AUTO.format("a") + AUTO.format("b"))

    async def work(configuration: ActiveConfiguration) -> None:
        first = {server.name: server.address.port for server in (await configuration.read()).servers}
        assert len({*first.values()}) == 2
        assert None not in first.values()
        pool.file.write_text(AUTO.format("b") + AUTO.format("c") + AUTO.format("a"))
        again = {server.name: server.address.port for server in (await configuration.read()).servers}
        assert {name: again[name] for name in first} == first
        assert again["c"] not in first.values()

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
        (before,) = (await configuration.read()).servers
        pool.file.write_text(AUTO.format("a") + owner.format(before.address.port))
        reading = await configuration.read()
        assert reading.problems == []
        assert reading.servers[0].address.port not in (None, before.address.port)

    pool.scenario(work)


@pytest.mark.slow
def test_port_of_a_server_that_was_added_live_stays_its_own(tmp_path: Path) -> None:
    pool = Pool(tmp_path, AUTO.format("a"))

    async def work(configuration: ActiveConfiguration) -> None:
        existing = (await configuration.read()).servers
        table = {"name": "live", "bind": "127.0.0.1:auto", "app": "any:app"}
        live = await configuration.resolve_added(table, str(tmp_path), existing)
        assert live.address.port not in (None, existing[0].address.port)
        pool.file.write_text(AUTO.format("a") + AUTO.format("b"))
        servers = (await configuration.read(keep={"live"})).servers
        assert live.address.port not in {server.address.port for server in servers}

    pool.scenario(work)


@pytest.mark.slow
def test_server_that_is_added_may_refer_to_those_that_are_there(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        resolved = await configuration.read()
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
        kept = await configuration.read_first_servers()
        assert [server.name for server in kept] == ["web", "live"]
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
        await configuration.read_first_servers()
        assert bool(configuration.problems) is not ran

    pool.scenario(work)


@pytest.mark.slow
def test_places_of_keys_are_empty_before_the_files_are_read_and_for_no_server(tmp_path: Path) -> None:
    async def work(configuration: ActiveConfiguration) -> None:
        assert await configuration.key_origins(["web"]) == {}
        configuration.activate(await configuration.read())
        assert await configuration.key_origins([]) == {}
        origins = (await configuration.key_origins(["web"]))["web"]
        assert origins is not None
        assert origins["bind"].endswith("pool.toml:3")

    Pool(tmp_path).scenario(work)


def test_problems_outside_of_the_files_are_those_of_the_servers_asked_about(tmp_path: Path) -> None:
    pool = Pool(tmp_path, WEB + 'env_file = "missing.env"\n')

    async def work(configuration: ActiveConfiguration) -> None:
        resolved = await configuration.read()
        assert await configuration.check_external(resolved, []) == []
        (problem,) = await configuration.check_external(resolved, ["web"])
        assert "missing.env" in problem.message
        assert await configuration.check_external(Reading("none"), ["web"]) == []

    pool.scenario(work)


def program_of(name: str, command: str, **keys: Any) -> ServerConfig:
    return ServerConfig(name=name, bind="127.0.0.1:9001", command=[command], **keys)


@pytest.mark.slow
def test_program_that_was_found_to_open_its_socket_itself_is_read_so_until_its_command_changes(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "programs.json")
    ProgramsFile(path).remember(program_of("web", "nginx"))
    programs = ProgramsFile(path)
    servers = [program_of("web", "nginx"), program_of("web", "caddy"), program_of("api", "nginx")]
    assert [server.socket for server in programs.apply_to(servers)] == [
        "program",
        servers[1].socket,
        servers[2].socket,
    ]
    said = program_of("web", "nginx", socket="pool")
    assert programs.apply_to([said]) == [said]
    written = os.stat(path).st_ino
    programs.remember(program_of("web", "nginx"))
    assert os.stat(path).st_ino == written
    programs.remember(program_of("web", "caddy"))
    assert ProgramsFile(path).apply_to(servers[1:2])[0].socket == "program"


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
        configuration.activate(await configuration.read())
        guessed = ServerConfig(name="guessed", bind="127.0.0.1:9003", command=["serve", "{port}"])
        other = ServerConfig(name="other", bind="127.0.0.1:9004", command=["serve", "{port}"])
        others = [program_of("said", "nginx", socket="program"), program_of("plain", "nginx")]
        for servers, before in (
            ([guessed, *others], set()), ([guessed], {"guessed"}), ([other], {"guessed"}),
            ([guessed, other], {"guessed", "other"}), (others, set()),
        ):  # fmt: skip
            assert await configuration.swap_warned(servers) == before
        pool.file.write_text(WEB + "# changed\n")
        configuration.activate(await configuration.read())
        assert await configuration.swap_warned([guessed]) == set()

    pool.scenario(work)


def test_server_that_conflicts_is_not_added_and_the_reason_has_its_exit_code(tmp_path: Path) -> None:
    existing = [ServerConfig(name="web", bind="127.0.0.1:9001", app="a:b")]
    tables = Tables(metrics=MetricsTable(bind="127.0.0.1:9100"))

    def reason(bind: str, **keys: Any) -> tuple[int, str] | None:
        added = ServerConfig(name="new", bind=bind, app="a:b", **keys)
        obstacles = obstacles_to_adding(added, existing, tables)
        return None if obstacles is None else (obstacles[0], obstacles[1][0].message)

    assert reason("127.0.0.1:9002") is None
    for bind, word in (("127.0.0.1:9001", "web"), ("127.0.0.1:9100", "metrics")):
        obstacles = reason(bind)
        assert obstacles is not None
        assert (obstacles[0], word in obstacles[1]) == (CONFLICT, True)
    obstacles = reason("127.0.0.1:9002", depends_on=["nobody"])
    assert obstacles is not None
    assert (obstacles[0], "nobody" in obstacles[1]) == (INVALID_CONFIGURATION, True)
