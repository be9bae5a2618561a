"""reload: what is written takes the place of what is in force, and nothing else is touched."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from poolctl import ServerConfig, ServerError
from poolctl.config import Tables, changed_files, marks_of, stamp_of
from poolctl.config.files.marks import Mark
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.control.answers import ErrorEntry, Result
from poolctl.control.control_server import Request
from poolctl.core.configuration_diff import Change, Kind
from poolctl.core.workqueue import caused_by
from poolctl.json_form import from_json, to_json
from poolctl.keeper.store import Store
from poolctl.runners.runner_protocol import Placement
from poolctl.supervisor.active_configuration import ActiveConfiguration
from poolctl.supervisor.configuration_reader import ReaderFailed, Reading
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.reload import PlannedReload, changed_keys
from tests import moments
from tests.deadline import wait_until
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER, SlowRunner
from tests.virtual_loop import run_hurried

from .desk import Desk, Files
from .test_state_store import StoreLink

WEB = '[[server]]\nname = "web"\nbind = "127.0.0.1:9001"\napp = "any:app"\nrestart = "no"\n'
EXTRA = '[[server]]\nname = "extra"\nbind = "127.0.0.1:9002"\napp = "any:app"\n'


def changes_of(answer: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    return [(change["name"], change["change"], change["keys"]) for change in answer["changes"]]


async def test_change_that_is_applied_live_starts_no_process() -> None:
    desk = Desk(web("a", start_timeout=3))
    await desk.ask("start")
    desk.runner.log.clear()
    desk.files.written = [web("a", tags=["x"], restart="always", start_timeout=4)]
    answer = await desk.ask("reload")
    assert changes_of(answer) == [("a", "update", ["tags", "start_timeout", "restart.policy"])]
    assert desk.runner.log == []
    assert answer["items"][0]["tags"] == ["x"]
    (worker,) = desk.core.entries["a"].observed.workers.values()
    assert worker.config.start_timeout == 4


async def test_a_stopped_server_stays_stopped_and_has_its_new_configuration_next_time() -> None:
    desk = Desk(web("a"), web("b"))
    await desk.ask("start")
    await desk.ask("stop", "a")
    desk.runner.log.clear()
    desk.files.written = [web("a", env={"A": "1"}), web("b")]
    assert changes_of(await desk.ask("reload")) == [("a", "restart", ["env.A"])]
    assert (desk.states(), desk.runner.log) == ({"a": "stopped", "b": "running"}, [])
    await desk.ask("start", "a")
    (worker,) = desk.core.entries["a"].observed.workers.values()
    assert worker.config.env == {"A": "1"}


async def test_disabled_in_the_file_stops_and_enabled_starts() -> None:
    desk = Desk(web("a"), web("b", disabled=True))
    await desk.ask("start")
    desk.files.written = [web("a", disabled=True), web("b")]
    answer = await desk.ask("reload")
    assert changes_of(answer) == [("a", "update", ["disabled"]), ("b", "update", ["disabled"])]
    assert desk.states() == {"a": "disabled", "b": "running"}


async def test_live_changes_are_undone_and_named() -> None:
    desk = Desk(web("scaled"), web("drained"), web("off"), web("gone"))
    await desk.ask("start")
    await desk.ask("scale", "scaled", workers=3)
    await desk.ask("drain", "drained")
    await desk.ask("disable", "off")
    await desk.ask("remove", "gone")
    await desk.ask("add", server={"name": "extra", "bind": "127.0.0.1:7070", "app": "a:b"}, base_dir="/")
    answer = await desk.ask("reload")
    assert answer["exit_code"] == 0
    assert changes_of(answer) == [
        ("extra", "override", ["name"]), ("scaled", "override", ["workers"]),
        ("drained", "override", ["drained"]), ("off", "override", ["disabled"]),
        ("gone", "override", ["name"]),
    ]  # fmt: skip
    await turns(40)
    assert desk.states() == dict.fromkeys(("scaled", "drained", "off", "gone"), "running")
    assert len([worker for worker in desk.runner.running if worker.startswith("scaled")]) == 1
    assert (await desk.ask("reload"))["changes"] == []


async def test_failed_replacement_is_reported_and_the_next_reload_tries_again() -> None:
    desk = Desk(web("a"), web("b"), **{"a.2.0": FAILS})
    await desk.ask("start")
    desk.files.written = [web("a", env={"A": "1"}), web("b", tags=["x"])]
    answer = await desk.ask("reload")
    assert answer["exit_code"] == 1
    assert [(error["name"], error["code"]) for error in answer["errors"]] == [("a", 1325)]
    assert {"a.1.0", "b.1.0"} == set(desk.runner.running)
    assert changes_of(await desk.ask("reload")) == [("a", "restart", ["env.A"])]
    await turns()
    assert {"a.3.0", "b.1.0"} == set(desk.runner.running)


async def test_reload_after_a_failed_replacement_finds_no_difference_when_the_files_are_as_before(
    tmp_path: Path,
) -> None:
    certificate = tmp_path / "cert.pem"
    certificate.write_text("one")
    tls = {"cert": str(certificate), "key": str(certificate)}
    before = web("a", workers=2, tls=tls)
    desk = Desk(before, **{"a.2.1": FAILS})
    await desk.ask("start")
    certificate.write_text("two")
    desk.files.written = [web("a", workers=2, tls=tls, env={"A": "1"})]
    assert (await desk.ask("reload"))["exit_code"] == 1
    certificate.write_text("one")
    desk.files.written = [before]
    assert changes_of(await desk.ask("reload")) == []


async def test_a_server_waits_for_the_new_ones_it_depends_on_and_outlives_what_it_depended_on() -> None:
    desk = Desk(web("old"), web("api", depends_on=["old"], env={"A": "1"}))
    await desk.ask("start")
    await desk.ask("restart", "api")  # which waits for no other server
    await turns()
    desk.runner.log.clear()
    desk.files.written = [web("api", depends_on=["new"], env={"A": "2"}), web("new")]
    assert (await desk.ask("reload"))["exit_code"] == 0
    steps = [line for line in desk.runner.log if line.startswith(("place", "drain"))]
    assert steps == ["place new.1.0", "place api.3.0", "drain api.2.0", "drain old.1.0"]


async def test_a_new_dependency_that_fails_is_the_end_of_the_reload_and_the_old_process_stays() -> None:
    desk = Desk(web("api"), bad=FAILS)
    await desk.ask("start")
    desk.files.written = [web("api", depends_on=["bad"], env={"A": "2"}), web("bad")]
    answer = await desk.ask("reload")
    assert answer["exit_code"] == 1
    assert {error["name"] for error in answer["errors"]} == {"api", "bad"}
    assert set(desk.runner.running) == {"api.1.0"}


async def test_a_reload_that_takes_too_long_says_what_is_late() -> None:
    desk = Desk(web("a"), **{"a.2.0": NEVER})
    await desk.ask("start")
    desk.files.written = [web("a", env={"A": "1"})]
    answer = await desk.ask("reload", timeout=0.05)
    assert (answer["exit_code"], answer["errors"][0]["name"]) == (124, "a")


async def test_the_callers_environment_reads_the_files_and_is_what_new_processes_see() -> None:
    desk = Desk(web("a"), web("b"))
    await desk.ask("start")
    desk.files.written = [web("a", env={"A": "1"}), web("b"), web("c")]
    await desk.ask("reload", env={"HOME": "/x"})
    assert desk.files.reads[-1] == {"HOME": "/x"}
    assert desk.files.environment == {"HOME": "/x"}
    assert desk.files.environments == {"a": {"HOME": "/x"}, "c": {"HOME": "/x"}}


async def test_certificates_that_have_changed_are_given_to_the_process_that_runs(tmp_path: Any) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("one")
    server = web("a", tls={"cert": str(path)})
    desk = Desk(server)
    await desk.ask("start")
    assert (await desk.ask("reload"))["changes"] == []
    path.write_text("two")
    answer = await desk.ask("reload")
    assert changes_of(answer) == [("a", "update", ["tls"])]
    assert [line for line in desk.runner.log if line.startswith("tls")] == ["tls a.1.0"]
    assert (await desk.ask("reload"))["changes"] == []
    # A restart has read them as well.
    path.write_text("three")
    await desk.ask("restart")
    assert (await desk.ask("reload"))["changes"] == []


async def test_a_file_that_changed_before_a_failed_restart_is_still_a_change(tmp_path: Any) -> None:
    path = tmp_path / "a.env"
    path.write_text("A=1")
    desk = Desk(web("a", env_file=str(path)))
    await desk.ask("start")
    path.write_text("A=2")
    desk.runner.script["a"] = FAILS
    assert (await desk.ask("restart"))["exit_code"] == 1
    desk.runner.script.clear()
    assert changes_of(await desk.ask("reload")) == [("a", "restart", ["env_file"])]
    assert (await desk.ask("reload"))["changes"] == []


async def test_two_reloads_at_once_end_with_what_is_written_last() -> None:
    desk = Desk(web("a"))
    await desk.ask("start")
    desk.files.written = [web("a", env={"A": "1"})]
    first = desk.begin("reload")
    second = desk.begin("reload")
    assert len((await first)["changes"]) == 1
    assert (await second)["changes"] == []
    assert [placement.id for placement in placements(desk)] == ["a.2.0"]


def placements(desk: Desk) -> list[Placement]:
    workers = [worker for entry in desk.core.entries.values() for worker in entry.observed.workers.values()]
    return [worker.placement for worker in workers if worker.placement is not None]


async def test_failed_server_is_tried_again_only_with_a_new_configuration() -> None:
    desk = Desk(web("a"), web("b"), web("c"), a=FAILS, b=FAILS, c=FAILS)
    await desk.ask("start")
    desk.runner.script.clear()
    desk.files.written = [web("a", env={"A": "1"}), web("b"), web("c", tags=["live"])]
    answer = await desk.ask("reload")
    assert (answer["exit_code"], desk.states()) == (0, {"a": "running", "b": "failed", "c": "running"})
    assert (await desk.ask("scale", "b", workers=2))["exit_code"] == 0


async def test_a_job_that_has_ended_is_not_run_again_by_a_reload() -> None:
    def job(**keys: Any) -> ServerConfig:
        return ServerConfig(name="job", command=["migrate"], job=True, **keys)

    desk = Desk(job())
    await desk.ask("start")
    await turns()
    desk.runner.log.clear()
    desk.files.written = [job(env={"A": "1"})]
    assert (await desk.ask("reload"))["exit_code"] == 0
    assert (desk.runner.log, desk.states()) == ([], {"job": "completed"})


class DeskWithFiles(Desk):
    """A desk whose configuration is that of a pool.toml in `directory`."""

    files: Any  # an ActiveConfiguration

    @classmethod
    async def begun(
        cls,
        directory: Path,
        text: str = WEB,
        store: StateStore | None = None,
        runner: SlowRunner | None = None,
    ) -> DeskWithFiles:
        file = directory / "pool.toml"
        file.write_text(text)
        link: Any = None
        store = store or StateStore(link, str(directory))
        files = ActiveConfiguration([str(file)], str(directory), store, {})
        resolved = await files.read()
        files.activate(resolved)
        desk = cls(*resolved.servers, runner=runner)
        desk.file = file
        desk.use(files)
        return desk

    file: Path

    async def changed(self, verb: str, *targets: str, **options: Any) -> dict[str, Any] | None:
        """What the answer says of changed files. A quick command waits here until it is known what has changed."""
        options = {"counts": True} | options if verb in ("list", "status") else options
        return (await self.ask(verb, *targets, **options)).get("changed")

    async def handled(self, verb: str, *targets: str) -> dict[str, Any]:
        """The answer as the control socket gives it."""
        request = Request(verb, {"selector": {"targets": [*targets]}}, os.getuid(), os.getpid())
        return to_json(await self.verbs.handle(request, lambda line: None))


@pytest.mark.slow
async def test_edit_is_reported_by_every_command_that_shows_servers_until_a_reload(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    assert await desk.changed("start") is None
    file = str(desk.file)
    desk.file.write_text(WEB + "workers = 2\n" + EXTRA)
    expected = {"files": [file], "added": 1, "removed": 0, "changed": 1}
    for verb in ("start", "restart", "show"):
        assert await desk.changed(verb) == expected
    assert await desk.changed("list") == expected
    assert (await desk.changed("status") or {})["files"] == [file]
    assert await desk.changed("wait") is None
    await desk.ask("reload")
    assert await desk.changed("list") is None


async def test_any_command_reports_it_that_is_asked_to(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    await desk.ask("start")
    desk.file.write_text(WEB + EXTRA)
    assert await desk.changed("wait") is None
    assert ((await desk.changed("wait", files=True)) or {})["files"] == [str(desk.file)]


@pytest.mark.slow
async def test_file_that_was_only_touched_or_changed_back_is_not_reported(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    os.utime(desk.file, (1, 1))
    assert await desk.changed("list") is None
    desk.file.write_text(EXTRA)
    assert await desk.changed("list")
    desk.file.write_text(WEB)
    assert await desk.changed("list") is None


async def test_invalid_file_is_reported_with_its_place(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    desk.file.write_text(WEB + "x = [\n")
    changed = await desk.changed("list") or {}
    assert (changed["problems"], changed["problem"]["file"], changed["problem"]["line"]) == (
        1,
        str(desk.file),
        6,
    )
    desk.file.write_text("")
    changed = await desk.changed("list") or {}
    assert changed["problem"]["message"] == "there is no server in the files"


@pytest.mark.slow
async def test_server_that_only_the_changed_file_has_is_named_with_the_command_that_starts_it(
    tmp_path: Path,
) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    await desk.ask("start")
    desk.file.write_text(WEB + EXTRA)
    answer = await desk.handled("restart", "extra", "web")
    said = "extra is in pool.toml but not in the running pool: poolctl reload"
    assert (answer["exit_code"], [error["message"] for error in answer["errors"]]) == (4, [said])
    assert (await desk.handled("list", "127.0.0.1:9002"))["errors"][0]["message"] == said
    answer = await desk.handled("list", "extra", "nothing")
    assert answer["errors"][0]["message"] == "no server matches 'extra', 'nothing'"
    assert answer["changed"]["added"] == 1


@pytest.mark.slow
async def test_variables_are_compared_with_what_the_workers_have_read(tmp_path: Path) -> None:
    variables = tmp_path / "web.env"
    variables.write_text("A=1\n")
    desk = await DeskWithFiles.begun(tmp_path, WEB + 'env_file = "web.env"\n')
    variables.write_text("A=2\n")  # nothing has read it yet
    assert await desk.changed("start") is None
    assert await desk.changed("list") is None
    variables.write_text("A=3\n")
    assert await desk.changed("list") == {
        "files": [str(variables)],
        "added": 0,
        "removed": 0,
        "changed": 1,
    }
    assert await desk.changed("restart") is None


async def test_restart_of_one_of_two_servers_leaves_the_change_of_the_variables_of_the_other(
    tmp_path: Path,
) -> None:
    variables = tmp_path / "any.env"
    variables.write_text("A=1\n")
    both = (WEB + EXTRA).replace('app = "any:app"\n', 'app = "any:app"\nenv_file = "any.env"\n')
    desk = await DeskWithFiles.begun(tmp_path, both)
    await desk.ask("start")
    variables.write_text("A=2\n")
    assert ((await desk.changed("list")) or {})["changed"] == 2
    assert ((await desk.changed("restart", "web")) or {})["changed"] == 1


@pytest.mark.slow
async def test_live_change_that_is_saved_is_no_change_of_the_files(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    await desk.ask("start")
    await desk.ask("scale", "web", workers=2, saves=True)
    desk.file.write_text(WEB + "workers = 2\n")
    assert await desk.changed("list") is None
    assert await desk.changed("list") is None
    desk.file.write_text(WEB + "workers = 2\n" + EXTRA)
    assert await desk.changed("list")


async def test_successor_knows_what_its_predecessor_has_read(tmp_path: Path) -> None:
    link = StoreLink(Store())
    store = StateStore(link, str(tmp_path))
    desk = await DeskWithFiles.begun(tmp_path, store=store)
    store.save(desk.core.entries, desk.files.take_unsaved(desk.core))
    desk.file.write_text(WEB + EXTRA)
    left = StateStore(link, str(tmp_path))
    successor = ActiveConfiguration([str(desk.file)], str(tmp_path), left, {})
    assert [server.name for server in await successor.take_over() or ()] == ["web"]
    assert changed_files(successor.marks or {}, successor.files) == [str(desk.file)]
    link.end()


def test_content_is_read_only_where_stat_differs(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(WEB)
    os.utime(file, (1, 1))
    stamp = stamp_of(str(file))
    marks = {str(file): Mark(stamp, "of another content")}
    assert changed_files(marks, [str(file)]) == []
    marks = {str(file): Mark(None, "of another content")}
    assert changed_files(marks, [str(file)]) == [str(file)]


def test_files_that_come_to_and_leave_a_directory_have_changed(tmp_path: Path) -> None:
    one, other = tmp_path / "1.toml", tmp_path / "2.toml"
    one.write_text(WEB)
    marks = marks_of([str(tmp_path)])
    assert changed_files(marks, [str(tmp_path)]) == []
    other.write_text(EXTRA)
    one.unlink()
    assert sorted(changed_files(marks, [str(tmp_path)])) == [str(one), str(other)]


def test_other_sections_of_a_pyproject_are_no_change_of_the_pool(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    pool = '[tool.poolctl.pool]\nname = "shop"\n'
    file.write_text('[project]\nname = "shop"\n' + pool)
    marks = marks_of([str(file)])
    file.write_text('[project]\nname = "shop"\ndependencies = ["uvloop"]\n' + pool)
    assert changed_files(marks, [str(file)]) == []
    file.write_text('[project]\nname = "shop"\n' + pool.replace("shop", "store"))
    assert changed_files(marks, [str(file)]) == [str(file)]


@pytest.mark.slow
async def test_change_that_a_reload_could_not_apply_is_still_reported(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
    await desk.ask("start")
    desk.file.write_text((WEB + EXTRA).replace("any:app", "other:app"))
    desk.runner.script["web"] = FAILS
    assert (await desk.ask("reload"))["exit_code"] == 1
    assert ((await desk.changed("list")) or {})["changed"] == 1
    desk.runner.script["web"] = ""
    assert (await desk.ask("reload"))["exit_code"] == 0
    assert await desk.changed("list") is None


async def test_new_server_that_fails_at_a_reload_is_no_difference(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    await desk.ask("start")
    desk.file.write_text(WEB + EXTRA)
    desk.runner.script["extra"] = FAILS
    assert (await desk.ask("reload"))["exit_code"] == 1
    assert await desk.changed("list") is None


@pytest.mark.slow
async def test_start_reads_changed_files_again_when_no_server_runs(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path, runner=SlowRunner(web=FAILS))
    assert (await desk.ask("start"))["exit_code"] == 1
    desk.runner.script["web"] = ""
    desk.file.write_text(WEB.replace("9001", "9003") + EXTRA)
    answer = await desk.ask("start", "web")
    assert (answer["exit_code"], answer["errors"]) == (0, [])
    assert [item["bind"] for item in answer["items"]] == ["127.0.0.1:9003"]
    assert answer["changed"] == {
        "files": [str(desk.file)],
        "added": 1,
        "removed": 0,
        "changed": 1,
        "applied": True,
    }
    assert desk.states() == {"web": "running", "extra": "stopped"}
    assert "changed" not in await desk.ask("start")


async def test_start_refuses_changed_files_that_are_not_valid_when_no_server_runs(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    desk.file.write_text(WEB + "x = [\n")
    answer = await desk.ask("start")
    assert (answer["exit_code"], answer["errors"][0]["line"]) == (5, 6)
    assert desk.states() == {"web": "stopped"}


@pytest.mark.slow
async def test_start_after_a_server_was_taken_out_of_the_file_forgets_it(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
    desk.file.write_text(EXTRA)
    answer = await desk.ask("start")
    assert [item["name"] for item in answer["items"]] == ["extra"]
    assert desk.states() == {"extra": "running"}


@pytest.mark.parametrize("live", ["scale", "disable", "remove"])
async def test_start_keeps_live_changes_of_a_pool_of_which_no_server_runs(tmp_path: Path, live: str) -> None:
    desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
    await desk.ask(live, "extra", **({"workers": 2} if live == "scale" else {}))
    desk.file.write_text(WEB + EXTRA + "start_timeout = 7\n")
    before = desk.core.entries["extra"].desired.overrides if live != "remove" else None
    answer = await desk.ask("start")
    assert "applied" not in answer["changed"]
    left = desk.core.entries.get("extra")
    assert left is None or left.removed or left.desired.overrides == before


async def test_start_keeps_a_server_that_was_added_live_to_a_pool_of_which_no_server_runs(
    tmp_path: Path,
) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    desk.core.add(web("live"), ({"name": "live"}, str(tmp_path)))
    desk.file.write_text(WEB + "start_timeout = 7\n")
    answer = await desk.ask("start")
    assert "applied" not in answer["changed"]
    assert desk.states() == {"web": "running", "live": "running"}


async def test_changed_table_of_the_pool_is_a_change_with_its_keys() -> None:
    desk = Desk(web("a"))
    await desk.ask("start")

    async def planned(tables: Tables) -> list[tuple[str, str, list[str]]]:
        desk.files.tables_of_files = tables
        changes = changes_of(await desk.ask("reload", dry_run=True))
        assert changes_of(await desk.ask("reload")) == changes
        return changes

    one = Tables(metrics=MetricsTable(bind="127.0.0.1:9100"))
    other = Tables(metrics=MetricsTable(bind="127.0.0.1:9100", path="/figures"))
    assert await planned(Tables()) == []
    assert await planned(one) == [("[metrics]", "update", ["metrics"])]
    assert await planned(one) == []
    assert await planned(other) == [("[metrics]", "update", ["metrics.path"])]
    assert await planned(Tables()) == [("[metrics]", "update", ["metrics"])]


async def test_each_applied_change_is_an_event_and_a_dry_run_records_none() -> None:
    desk = Desk(web("same"), web("gone"))
    await desk.ask("start")
    events: list[tuple[str, str]] = []
    desk.events.flush()
    desk.events.subscribe(
        lambda event: events.append((event.event, event.server)) if event.kind == "config" else None
    )
    desk.files.written = [web("new"), web("same")]
    await desk.ask("reload", dry_run=True)
    desk.events.flush()
    assert events == []
    await desk.ask("reload")
    desk.events.flush()
    assert events == [("remove", "gone"), ("add", "new")]


@pytest.mark.parametrize(
    ("changes", "problems", "empty"),
    [([], [], True), (["override"], [], True), (["add"], [], False), (["remove"], [], False), (["restart"], [], False),
     (["update"], [], False), ([], [1], False), (["add"], [1], False)],
)  # fmt: skip
def test_difference_is_empty_without_changes_of_the_files_and_without_problems(
    changes: list[str], problems: list[int], empty: bool
) -> None:
    planned = [Change(Kind(kind), "a", "", (), "") for kind in changes]
    assert PlannedReload(Reading(), planned, cast("Any", problems)).is_empty is empty


def recorded(desk: Desk) -> list[Any]:
    """The events of the configuration that are recorded from now on."""
    events: list[Any] = []
    desk.events.flush()
    desk.events.subscribe(lambda event: events.append(event) if event.kind == "config" else None)
    return events


async def test_event_of_a_change_names_its_keys_its_place_and_who_ordered_it() -> None:
    desk = Desk(web("a"))
    events = recorded(desk)
    desk.files.written = [web("a", tags=["x"])]
    desk.files.tables_of_files = Tables(metrics=MetricsTable(bind="127.0.0.1:9100"))
    await desk.ask("reload")
    desk.files.written = [web("a")]
    with caused_by("reload --all", {"uid": 7}):
        await desk.ask("reload")
    desk.events.flush()
    bind = desk.core.entries["a"].config.bind
    assert [
        (event.event, event.server, event.message, event.cause, event.by, event.detail) for event in events
    ] == [
        ("update", "", "[metrics]: metrics", "reload", None, {"keys": ["metrics"]}),
        ("update", "a", "tags changed", "reload", None, {"keys": ["tags"], "bind": bind}),
        ("update", "a", "tags changed", "reload --all", {"uid": 7}, {"keys": ["tags"], "bind": bind}),
    ]


async def test_new_name_of_the_pool_is_a_change_with_both_names() -> None:
    desk = Desk(web("a"))
    read = desk.files.read

    async def renamed(*args: Any, **more: Any) -> Any:
        return replace(await read(*args, **more), name="shop")

    desk.files.read = renamed  # type: ignore[method-assign]
    before = desk.files.name
    assert (await desk.ask("reload", dry_run=True))["changes"] == [
        {
            "name": "[pool]", "bind": "", "change": "update", "keys": ["pool.name"],
            "message": f"the pool's name: {before} → shop",
        }
    ]  # fmt: skip


class Routes(NamedTuple):
    """A table of a list of tables."""

    label: str
    to: str

    def to_dict(self) -> dict[str, object]:
        return {"to": self.to}


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ([("a", "1"), ("b", "1")], [("a", "1"), ("b", "2")], ("route.b",)),
        ([("a", "1")], [("a", "1"), ("b", "1")], ("route.b",)),
        ([("a", "1"), ("b", "1")], [("b", "1")], ("route.a",)),
        ([("a", "1"), ("b", "1")], [("b", "1"), ("a", "1")], ("route",)),
        (None, [("a", "1")], ("route",)),
        ([("a", "1")], None, ("route",)),
    ],
)
def test_keys_of_a_changed_list_of_tables_are_the_names_of_those_that_differ(
    before: Any, after: Any, keys: tuple[str, ...]
) -> None:
    one, other = (None if rows is None else tuple(Routes(*row) for row in rows) for rows in (before, after))
    assert changed_keys("route", cast("Any", one), cast("Any", other)) == keys


async def test_variable_that_becomes_secret_is_reported_for_servers_that_still_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PASSWORD", "x")
    desk = Desk(web("a"), web("b"), web("stopped"), web("c"))
    await desk.ask("start", "a", "b", "c")
    secret = {"cert": "a.pem", "key": "a.pem", "password_env": "PASSWORD"}
    desk.files.written = [
        web("a"), web("b"), web("stopped"), web("c", env={"A": "1"}), web("new", tls=secret),
    ]  # fmt: skip
    answer = await desk.ask("reload")
    note = "PASSWORD is still in the environment of a, b; poolctl restart removes it"
    assert answer["warnings"] == [note]
    assert (await desk.ask("reload"))["warnings"] == []
    desk.files.written = [web("stopped")]
    assert (await desk.ask("reload"))["warnings"] == []
    desk.files.written = [web("stopped"), web("new", tls=secret)]
    assert (await desk.ask("reload"))["warnings"] == [], "no server has it"


class WithOutside(Files):
    """Files with these problems and remarks outside of them; `asked` are the servers that were checked."""

    def __init__(self, servers: list[ServerConfig]) -> None:
        super().__init__(servers)
        self.problems_outside: list[ErrorEntry] = []
        self.asked: list[list[str]] = []

    async def check_external(self, resolved: Reading, names: Collection[str]) -> list[ErrorEntry]:
        self.asked.append(sorted(names))
        resolved.remarks = ["a: has a remark"]
        return list(self.problems_outside)


def desk_with_outside(*servers: ServerConfig) -> tuple[Desk, WithOutside]:
    desk, files = Desk(*servers), WithOutside([*servers])
    desk.use(files)
    return desk, files


async def test_changed_servers_are_checked_outside_the_files_and_remarks_are_passed_on() -> None:
    desk, files = desk_with_outside(web("a"), web("b"), web("gone"))
    files.written = [web("a", tags=["x"]), web("b"), web("new")]
    files.problems_outside = [from_json(ErrorEntry, {"message": "no such user"})]
    for options in ({}, {"force": True}, {"dry_run": True}):
        answer = await desk.ask("reload", **options)
        assert (answer["exit_code"], [error["message"] for error in answer["errors"]]) == (
            5, ["no such user"],
        )  # fmt: skip
        assert [item["name"] for item in answer["items"]] == ["a", "b", "gone"]
        assert "changes" not in answer
    assert files.asked == [["a", "gone", "new"]] * 3
    files.problems_outside = []
    assert (await desk.ask("reload", dry_run=True))["warnings"] == ["a: has a remark"]
    assert (await desk.ask("reload"))["warnings"] == ["a: has a remark"]


@pytest.mark.slow
async def test_reload_without_servers_is_refused_with_the_command_that_ends_the_pool() -> None:
    desk = Desk(web("a"))
    desk.files.written = []
    (error,) = (await desk.ask("reload"))["errors"]
    assert (error["message"], error["hint"]) == (
        "there is no server in the files", "poolctl stop ends the pool",
    )  # fmt: skip
    empty = Desk()
    assert (await empty.ask("reload"))["exit_code"] == 0


async def test_certificate_that_cannot_be_loaded_is_an_error_of_the_reload(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("one")
    tls = {"cert": str(path), "key": str(path)}
    desk = Desk(web("a", tls=tls), web("b", tls=tls, workers=2), web("stopped", tls=tls))
    await desk.ask("start", "a", "b")
    path.write_text("two")

    async def renew(placement: Placement, server: ServerConfig) -> None:
        renewed.append(placement.id)
        if server.name == "a":
            raise ServerError("the key does not match", name="a")

    renewed: list[str] = []
    desk.runner.reload_tls = renew  # type: ignore[method-assign]
    answer = await desk.ask("reload")
    errors = [(error["name"], error["message"], error["error"]) for error in answer["errors"]]
    assert errors == [("a", "the key does not match", "ErrorPoolRestart")]
    assert answer["exit_code"] == 1
    assert renewed == ["a.1.0", "b.1.0", "b.1.1"]


async def test_server_that_gets_new_processes_loads_its_certificate_with_them(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("one")
    tls = {"cert": str(path), "key": str(path)}
    desk = Desk(web("a", tls=tls))
    await desk.ask("start")
    path.write_text("two")
    desk.files.written = [web("a", tls=tls, env={"A": "1"})]
    assert (await desk.ask("reload"))["exit_code"] == 0
    assert [line for line in desk.runner.log if line.startswith("tls")] == []


async def test_changed_files_are_reported_by_name_if_they_cannot_be_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    await desk.ask("start")
    read = desk.files.read

    async def failing(*args: Any, **more: Any) -> Any:
        raise error

    desk.files.read = failing
    for error in (ReaderFailed("the process has ended", "try again"), KeyError("what")):
        desk.file.write_text(WEB + f"# {error!r}\n" + EXTRA)
        assert await desk.changed("list", counts=False) == {"files": [str(desk.file)]}
        answer = await desk.handled("list", "extra")
        assert [error["message"] for error in answer["errors"]] == ["no server matches 'extra'"]
    assert caplog.text.count("the changed files cannot be compared with the configuration in force") == 1
    desk.files.read = read
    desk.file.write_text(WEB + EXTRA + "workers = 2\n")
    assert await desk.changed("list") == {
        "files": [str(desk.file)], "added": 1, "removed": 0, "changed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "options", "waits"),
    [
        ("list", {"counts": False}, False), ("status", {"counts": False}, False), ("stats", {"files": True}, False),
        ("list", {"counts": True}, True), ("show", {}, True), ("start", {}, True), ("wait", {"files": True}, True),
    ],
)  # fmt: skip
async def test_quick_command_does_not_wait_for_the_comparison(
    tmp_path: Path, verb: str, options: dict[str, Any], waits: bool
) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    desk.verbs.add("stats", lambda call: asyncio.sleep(0, Result()))
    await desk.ask("start")
    read, may_read = desk.files.read, asyncio.Event()

    async def waiting(*args: Any, **more: Any) -> Any:
        await may_read.wait()
        return await read(*args, **more)

    desk.files.read = waiting
    desk.file.write_text(WEB + EXTRA)
    asking = asyncio.ensure_future(desk.changed(verb, **options))
    if waits:
        await asyncio.sleep(0.02)
        assert not asking.done()
        may_read.set()
    changed = {"files": [str(desk.file)], "added": 1, "removed": 0, "changed": 0}
    assert await asking == (changed if waits else {"files": [str(desk.file)]})
    may_read.set()
    assert await desk.changed("list") == changed


def test_file_system_that_does_not_answer_delays_a_command_for_two_seconds_at_most(tmp_path: Path) -> None:
    may_go_on = threading.Event()
    opened: list[object] = []

    def hang(path: object, *more: object) -> None:
        if path == str(tmp_path / "pool.toml"):
            opened.append(path)
            may_go_on.wait(30)

    async def ask() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        await desk.ask("start")
        desk.file.write_text(WEB + EXTRA)
        with moments.before("open", hang):
            assert await desk.changed("list") is None
            wait_until(lambda: opened, what="the search has begun")
            assert await desk.changed("list") is None
            assert len(opened) == 1, "one search at a time"
            may_go_on.set()
            async with asyncio.timeout(600):
                while not await desk.changed("list"):
                    await asyncio.sleep(0.01)

    run_hurried(10, ask())


async def test_file_that_is_missing_is_no_changed_file(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    await desk.ask("start")
    desk.file.unlink()
    assert await desk.changed("list") is None
    desk.files.marks = None
    desk.file.write_text(EXTRA)
    assert await desk.changed("list") is None, "it is not known what was read"


@pytest.mark.parametrize(("age_seconds", "reported"), [(4.0, False), (6.0, True), (-60.0, True)])
async def test_watcher_has_five_seconds_to_apply_a_change(
    tmp_path: Path, age_seconds: float, reported: bool
) -> None:
    desk = await DeskWithFiles.begun(tmp_path)
    desk.file.write_text(WEB + EXTRA)
    desk.clock.advance(os.stat(desk.file).st_ctime + age_seconds - desk.clock.time())
    watcher = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(watcher, fcntl.LOCK_SH)
    assert (await desk.changed("list") is not None) is reported
    os.close(watcher)
    assert await desk.changed("list")


async def test_applied_files_of_a_pool_at_rest_are_recorded_and_accepted(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
    await desk.ask("start", "extra")
    await desk.ask("stop", "extra")
    events = recorded(desk)
    desk.file.write_text('[pool]\nname = "shop"\n' + WEB + 'tags = ["x"]\n')
    answer = await desk.ask("start")
    assert answer["changed"] == {
        "files": [str(desk.file)], "added": 0, "removed": 1, "changed": 2, "applied": True,
    }  # fmt: skip
    desk.events.flush()
    assert [(event.event, event.server) for event in events] == [
        ("update", ""),
        ("remove", "extra"),
        ("update", "web"),
    ]
    assert (desk.files.name, desk.states()) == ("shop", {"web": "running"})
    desk.file.write_text('[pool]\nname = "shop"\n' + WEB + 'tags = ["y"]\n')
    assert "applied" not in (await desk.changed("start") or {}), "a server runs"


async def test_a_removed_server_keeps_changed_files_from_being_applied_until_a_reload(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
    await desk.ask("remove", "extra")
    desk.file.write_text(WEB + 'tags = ["x"]\n' + EXTRA)
    assert "applied" not in (await desk.changed("start") or {})
    assert desk.states().keys() == {"web"}
    await desk.ask("reload")
    await desk.ask("stop")
    desk.file.write_text(WEB + 'tags = ["y"]\n' + EXTRA)
    assert (await desk.changed("start") or {})["applied"]
    assert desk.states() == {"web": "running", "extra": "running"}


async def test_corrected_server_is_started_beside_those_that_run(tmp_path: Path) -> None:
    desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA, runner=SlowRunner(extra=FAILS))
    assert (await desk.ask("start"))["exit_code"] == 1
    web = desk.core.entries["web"].observed.workers.copy()
    desk.file.write_text(WEB + 'tags = ["x"]\n' + EXTRA + 'tags = ["x"]\n')
    changed = await desk.changed("start", timeout=0.05) or {}
    assert "applied" not in changed, "a server that runs differs, too"
    desk.file.write_text(WEB + EXTRA + 'tags = ["y"]\n')
    desk.runner.script["extra"] = ""
    answer = await desk.ask("start")
    assert (answer["exit_code"], answer["changed"]["applied"]) == (0, True)
    assert desk.states() == {"web": "running", "extra": "running"}
    assert desk.core.entries["extra"].config.tags == ("y",)
    assert desk.core.entries["web"].observed.workers == web


@pytest.mark.slow
@pytest.mark.parametrize(
    "state", ["sleeping", "scheduled", "backoff", "failing", "serving again", "starting"]
)
async def test_start_applies_changed_files_unless_a_server_serves_or_starts_for_the_first_time(
    tmp_path: Path, state: str
) -> None:
    keys = {
        "sleeping": WEB + "scale = { min = 0 }\n",
        "scheduled": '[[server]]\nname = "web"\ncommand = ["x"]\njob = true\nevery = "0 3 * * *"\n',
        "backoff": WEB.replace('"no"', '{ policy = "always", backoff = { initial = 60, max = 60 } }'),
        "failing": WEB.replace('"no"', '{ policy = "always", backoff = { initial = 60, max = 60 } }'),
        "serving again": WEB,
        "starting": WEB,
    }[state]
    script = {"sleeping": "", "scheduled": "", "starting": NEVER}.get(state, FAILS)
    desk = await DeskWithFiles.begun(tmp_path, keys, runner=SlowRunner(web=script))
    starting = desk.begin("start", timeout=0.05)
    await starting
    await turns(60)
    if state in ("failing", "serving again"):
        desk.runner.script["web"] = NEVER if state == "failing" else ""
        desk.core.start(desk.core.entries["web"])
        await turns(60)
        assert desk.core.entries["web"].observed.workers
    desk.file.write_text(keys + EXTRA)
    changed = await desk.changed("start", "web", timeout=0.05) or {}
    assert changed.get("applied", False) is (state in ("backoff", "failing"))
