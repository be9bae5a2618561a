"""Files that have changed since the pool read them are reported until a reload applies them."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import changed_files, marks_of, stamp_of
from poolctl.config.files.read_file import Mark
from poolctl.control.control_server import Request
from poolctl.json_form import to_json
from poolctl.keeper.keeper import Store
from poolctl.supervisor.active_configuration import ActiveConfiguration
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs import drift
from poolctl.supervisor.verbs.verbs import Verbs
from tests.unit.core.ordered_core import run
from tests.unit.runners.scripted_runner import FAILS, SlowRunner
from tests.unit.supervisor.desk import Desk
from tests.unit.supervisor.test_state_store import StoreLink

WEB = '[[server]]\nname = "web"\nbind = "127.0.0.1:9001"\napp = "any:app"\nrestart = "no"\n'
EXTRA = '[[server]]\nname = "extra"\nbind = "127.0.0.1:9002"\napp = "any:app"\n'


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
        files.accept(resolved)
        desk = cls(*resolved.servers, runner=runner)
        desk.files, desk.file = files, file
        desk.verbs = Verbs(desk.core, desk.events, desk, files, asyncio.Event())
        return desk

    file: Path

    async def changed(self, verb: str, *targets: str, **options: Any) -> dict[str, Any] | None:
        """What the answer says of changed files."""
        return (await self.ask(verb, *targets, **options)).get("changed")

    async def handled(self, verb: str, *targets: str) -> dict[str, Any]:
        """The answer as the control socket gives it."""
        request = Request(verb, {"selector": {"targets": [*targets]}}, os.getuid(), os.getpid())
        return to_json(await self.verbs.handle(request, lambda line: None))


def test_edit_is_reported_by_every_command_that_shows_servers_until_a_reload(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        assert await desk.changed("start") is None
        file = str(desk.file)
        desk.file.write_text(WEB + "workers = 2\n" + EXTRA)
        expected = {"files": [file], "added": 1, "removed": 0, "changed": 1}
        for verb in ("start", "restart", "show"):
            assert await desk.changed(verb) == expected
        assert await desk.changed("list", counts=True) == expected
        assert (await desk.changed("status") or {})["files"] == [file]
        assert await desk.changed("wait") is None
        await desk.ask("reload")
        assert await desk.changed("list") is None

    run(scenario())


def test_any_command_reports_it_that_is_asked_to(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        await desk.ask("start")
        desk.file.write_text(WEB + EXTRA)
        assert await desk.changed("wait") is None
        assert ((await desk.changed("wait", files=True)) or {})["files"] == [str(desk.file)]

    run(scenario())


def test_file_that_was_only_touched_or_changed_back_is_not_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        os.utime(desk.file, (1, 1))
        assert await desk.changed("list") is None
        desk.file.write_text(EXTRA)
        assert await desk.changed("list")
        desk.file.write_text(WEB)
        assert await desk.changed("list") is None

    run(scenario())


def test_invalid_file_is_reported_with_its_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        desk.file.write_text(WEB + "x = [\n")
        found = await desk.changed("list", counts=True) or {}
        assert (found["problems"], found["problem"]["file"], found["problem"]["line"]) == (
            1,
            str(desk.file),
            6,
        )
        desk.file.write_text("")
        found = await desk.changed("list", counts=True) or {}
        assert found["problem"]["message"] == "there is no server in the files"

    run(scenario())


def test_server_that_only_the_changed_file_has_is_named_with_the_command_that_starts_it(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        await desk.ask("start")
        desk.file.write_text(WEB + EXTRA)
        answer = await desk.handled("restart", "extra", "web")
        said = "extra is in pool.toml but not in the running pool: poolctl reload"
        assert (answer["exit_code"], [each["message"] for each in answer["errors"]]) == (4, [said])
        assert (await desk.handled("list", "127.0.0.1:9002"))["errors"][0]["message"] == said
        answer = await desk.handled("list", "extra", "nothing")
        assert answer["errors"][0]["message"] == "no server matches 'extra', 'nothing'"
        assert answer["changed"]["added"] == 1

    run(scenario())


def test_change_that_a_watcher_is_about_to_apply_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "_WATCHER_SECONDS", 3600.0)

    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        watcher = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(watcher, fcntl.LOCK_SH)
        desk.file.write_text(WEB + EXTRA)
        assert await desk.changed("list") is None
        os.close(watcher)
        assert await desk.changed("list")

    run(scenario())


def test_variables_are_compared_with_what_the_workers_have_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        variables = tmp_path / "web.env"
        variables.write_text("A=1\n")
        desk = await DeskWithFiles.begun(tmp_path, WEB + 'env_file = "web.env"\n')
        variables.write_text("A=2\n")  # nothing has read it yet
        assert await desk.changed("start") is None
        assert await desk.changed("list") is None
        variables.write_text("A=3\n")
        assert await desk.changed("list", counts=True) == {
            "files": [str(variables)],
            "added": 0,
            "removed": 0,
            "changed": 1,
        }
        assert await desk.changed("restart") is None

    run(scenario())


def test_restart_of_one_of_two_servers_leaves_the_change_of_the_variables_of_the_other(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        variables = tmp_path / "any.env"
        variables.write_text("A=1\n")
        both = (WEB + EXTRA).replace('app = "any:app"\n', 'app = "any:app"\nenv_file = "any.env"\n')
        desk = await DeskWithFiles.begun(tmp_path, both)
        await desk.ask("start")
        variables.write_text("A=2\n")
        assert ((await desk.changed("list", counts=True)) or {})["changed"] == 2
        assert ((await desk.changed("restart", "web")) or {})["changed"] == 1

    run(scenario())


def test_live_change_that_is_saved_is_no_change_of_the_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        await desk.ask("start")
        await desk.ask("scale", "web", workers=2, saves=True)
        desk.file.write_text(WEB + "workers = 2\n")
        assert await desk.changed("list") is None
        assert await desk.changed("list") is None
        desk.file.write_text(WEB + "workers = 2\n" + EXTRA)
        assert await desk.changed("list")

    run(scenario())


def test_successor_knows_what_its_predecessor_has_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        link = StoreLink(Store())
        store = StateStore(link, str(tmp_path))
        desk = await DeskWithFiles.begun(tmp_path, store=store)
        store.save(desk.core.entries, desk.files.to_save(desk.core))
        desk.file.write_text(WEB + EXTRA)
        successor = ActiveConfiguration([str(desk.file)], str(tmp_path), StateStore(link, str(tmp_path)), {})
        assert [server.name for server in await successor.taken_over() or ()] == ["web"]
        assert changed_files(successor.marks or {}, successor.files) == [str(desk.file)]
        link.end()

    run(scenario())


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


def test_change_that_a_reload_could_not_apply_is_still_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
        await desk.ask("start")
        desk.file.write_text((WEB + EXTRA).replace("any:app", "other:app"))
        desk.runner.script["web"] = FAILS
        assert (await desk.ask("reload"))["exit_code"] == 1
        assert ((await desk.changed("list", counts=True)) or {})["changed"] == 1
        desk.runner.script["web"] = ""
        assert (await desk.ask("reload"))["exit_code"] == 0
        assert await desk.changed("list") is None

    run(scenario())


def test_new_server_that_fails_at_a_reload_is_no_difference(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        await desk.ask("start")
        desk.file.write_text(WEB + EXTRA)
        desk.runner.script["extra"] = FAILS
        assert (await desk.ask("reload"))["exit_code"] == 1
        assert await desk.changed("list") is None

    run(scenario())


def test_start_reads_changed_files_again_when_no_server_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_start_refuses_changed_files_that_are_not_valid_when_no_server_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path)
        desk.file.write_text(WEB + "x = [\n")
        answer = await desk.ask("start")
        assert (answer["exit_code"], answer["errors"][0]["line"]) == (5, 6)
        assert desk.states() == {"web": "stopped"}

    run(scenario())


def test_start_after_a_server_was_taken_out_of_the_file_forgets_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
        desk.file.write_text(EXTRA)
        answer = await desk.ask("start")
        assert [item["name"] for item in answer["items"]] == ["extra"]
        assert desk.states() == {"extra": "running"}

    run(scenario())


@pytest.mark.parametrize("live", ["scale", "disable", "remove"])
def test_start_keeps_live_changes_of_a_pool_of_which_no_server_runs(tmp_path: Path, live: str) -> None:
    async def scenario() -> None:
        desk = await DeskWithFiles.begun(tmp_path, WEB + EXTRA)
        await desk.ask(live, "extra", **({"workers": 2} if live == "scale" else {}))
        desk.file.write_text(WEB + EXTRA + "start_timeout = 7\n")
        before = desk.core.entries["extra"].desired.overrides if live != "remove" else None
        answer = await desk.ask("start")
        assert "applied" not in answer["changed"]
        left = desk.core.entries.get("extra")
        assert left is None or left.removed or left.desired.overrides == before

    run(scenario())
