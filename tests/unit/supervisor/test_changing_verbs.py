"""Live changes: they win until a reload, are made in full or refused, and end with what was asked for."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig, ServerError
from poolctl.config import Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.core.server_entry import record_of, restore
from poolctl.errors import PoolValidateError
from poolctl.runners.runner_protocol import Exit
from poolctl.selection.selector import Selector, SelectorError
from poolctl.supervisor.verbs.changing_verbs import name_list, startup_warnings
from poolctl.supervisor.verbs.open_file_limit import (
    TooManyOpenFiles,
    check_open_file_limit,
    check_pool_file_limit,
    requested_worker_count,
)
from poolctl.supervisor.verbs.verb import Call
from tests.certificates import certificate
from tests.needs import needs
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER
from tests.unit.supervisor.desk import Desk, Files

NEW: dict[str, Any] = {"name": "new", "bind": "127.0.0.1:7070", "app": "a:b"}


async def test_scale_adds_workers_and_drains_those_that_are_too_many() -> None:
    desk = Desk(web())
    await desk.ask("start")
    answer = await desk.ask("scale", "web", workers=3)
    assert (answer["exit_code"], answer["items"][0]["workers"], len(answer["items"][0]["pids"])) == (
        0,
        3,
        3,
    )
    desk.runner.log.clear()
    answer = await desk.ask("scale", "web", workers=1)
    assert answer["items"][0]["workers"] == 1
    await turns()
    assert set(desk.runner.running) == {"web.1.0"}
    assert {"drain web.1.1", "drain web.1.2"} <= set(desk.runner.log)
    # A restart has as many as it was scaled to.
    await desk.ask("scale", "web", workers=2)
    await desk.ask("restart")
    await turns()
    assert set(desk.runner.running) == {"web.2.0", "web.2.1"}


@pytest.mark.parametrize("verb", ["remove", "disable", "enable", "drain", "undrain", "scale"])
async def test_a_change_of_everything_has_to_be_asked_for(verb: str) -> None:
    desk = Desk(web("a"), web("b"))
    await desk.ask("start")
    before = desk.states()
    desk.runner.log.clear()
    for all_servers in ({}, {"all": False}, {"all": "yes"}):
        with pytest.raises(SelectorError, match=f"{verb} without .* all 2 servers"):
            await desk.ask(verb, workers=2, **all_servers)
    assert (desk.states(), desk.runner.log) == (before, [])
    answer = await desk.ask(verb, workers=2, all=True)
    assert (answer["exit_code"], len(answer["items"])) == (0, 2)


async def test_of_two_that_scale_at_once_the_first_says_that_it_was_overtaken() -> None:
    desk = Desk(web())
    await desk.ask("start")
    first = desk.begin("scale", "web", workers=3)
    await asyncio.sleep(0)
    second = await desk.ask("scale", "web", workers=2)
    assert (second["exit_code"], second["items"][0]["workers"]) == (0, 2)
    assert (await first)["exit_code"] == 1
    assert "scaled to 2 by another command" in (await first)["errors"][0]["message"]


async def test_server_drained_before_it_runs_starts_out_of_rotation() -> None:
    desk = Desk(web(), web=NEVER)
    starting = desk.begin("start")
    await turns()
    answer = await desk.ask("drain", "web")
    assert (answer["exit_code"], answer["warnings"]) == (
        0,
        ["web: is starting, and out of rotation when it runs"],
    )
    desk.runner.script.clear()
    await desk.ask("restart", "web")
    assert desk.states() == {"web": "draining"}
    (error,) = (await desk.ask("start", "web"))["errors"]
    assert (error["name"], error["message"], error["hint"]) == (
        "web", "is drained: it runs, out of rotation", "poolctl undrain web",
    )  # fmt: skip
    starting.cancel()


async def test_scale_of_a_server_that_is_stopped_counts_from_its_next_start() -> None:
    desk = Desk(web())
    answer = await desk.ask("scale", "web", workers=2)
    assert (answer["exit_code"], answer["items"][0]["workers"], desk.runner.log) == (0, 2, [])
    await desk.ask("start")
    assert len(desk.runner.running) == 2


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", None])
async def test_a_number_of_workers_that_is_none_is_a_wrong_use(workers: Any) -> None:
    with pytest.raises(SelectorError) as caught:
        await Desk(web()).ask("scale", "web", workers=workers)
    assert (caught.value.message, caught.value.hint) == (
        f"{workers!r} is not a number of workers", "a whole number from 1; poolctl stop ends all of them",
    )  # fmt: skip


async def test_stopped_server_has_nothing_to_drain_and_a_stop_forgets_the_drain() -> None:
    desk = Desk(web("a"))
    answer = await desk.ask("drain", "a")
    assert (answer["exit_code"], len(answer["warnings"])) == (0, 1)
    await desk.ask("start")
    await desk.ask("drain", all=True)
    await desk.ask("stop", "a")
    await desk.ask("start", "a")
    assert desk.states() == {"a": "running"}


@pytest.mark.parametrize(
    ("verb", "why", "hint"),
    [
        ("stop", "is stopped", "poolctl start db"),
        ("disable", "is disabled", "poolctl enable db"),
        ("start", "did not become ready", "poolctl logs db"),
    ],
)
async def test_server_that_waits_in_vain_names_its_dependency_and_the_command_that_helps(
    verb: str, why: str, hint: str
) -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"], disabled=True), db=FAILS if verb == "start" else "")
    await desk.ask("start", "db")
    await desk.ask(verb, "db")
    answer = await desk.ask("enable", "api")
    (error,) = [error for error in answer["errors"] if error["name"] == "api"]
    assert (error["message"], error["hint"]) == (f"waits for db, which {why}", hint)


async def test_disable_stops_what_depends_on_it_first_and_enable_starts_it_again() -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"]))
    await desk.ask("start")
    desk.runner.log.clear()
    answer = await desk.ask("disable", "db")
    assert (answer["exit_code"], answer["items"][0]["state"]) == (0, "disabled")
    assert [line for line in desk.runner.log if line.startswith("stop")] == [
        "stop api.1.0 10",
        "stop db.1.0 10",
    ]
    assert (await desk.ask("start", "db"))["exit_code"] == 1
    answer = await desk.ask("enable", "db")
    assert (answer["exit_code"], answer["items"][0]["state"]) == (0, "running")
    assert answer["dependents"] == ["api"]
    assert desk.states() == {"db": "running", "api": "running"}
    again = await desk.ask("enable", "db")
    assert (again["exit_code"], "dependents" in again) == (0, False)


async def test_dependent_of_two_disabled_servers_starts_when_both_are_enabled() -> None:
    desk = Desk(
        web("db"), web("cache"), web("users", depends_on=["db", "cache"]), web("site", depends_on=["users"]),
    )  # fmt: skip
    await desk.ask("start")
    assert (await desk.ask("disable", "db"))["dependents"] == ["users", "site"]
    assert "dependents" not in await desk.ask("disable", "cache"), "they are stopped already"
    assert "dependents" not in await desk.ask("enable", "db")
    assert desk.states()["users"] == "stopped"
    assert (await desk.ask("enable", "cache"))["dependents"] == ["users", "site"]
    assert set(desk.states().values()) == {"running"}


async def test_enable_starts_no_dependent_that_a_command_stopped_itself() -> None:
    desk = Desk(web("db"), web("before", depends_on=["db"]), web("after", depends_on=["db"]))
    await desk.ask("start")
    await desk.ask("stop", "before")
    await desk.ask("disable", "db")
    await desk.ask("stop", "after")
    await desk.ask("enable", "db")
    assert desk.states() == {"db": "running", "before": "stopped", "after": "stopped"}


async def test_reload_that_enables_a_server_starts_what_was_stopped_with_it() -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"]))
    await desk.ask("start")
    await desk.ask("disable", "db")
    assert (await desk.ask("reload"))["exit_code"] == 0
    await turns(100)
    assert desk.states() == {"db": "running", "api": "running"}


async def test_successor_knows_what_was_stopped_with_a_disabled_server() -> None:
    servers = web("db"), web("api", depends_on=["db"])
    first, second = Desk(*servers), Desk(*servers)
    await first.ask("start")
    await first.ask("disable", "db")
    for name, entry in first.core.entries.items():
        restore(second.core.entries[name], json.loads(json.dumps(record_of(entry))))
    assert (await second.ask("enable", "db"))["dependents"] == ["api"]
    assert second.states() == {"db": "running", "api": "running"}


async def test_stop_names_the_dependents_that_ran() -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"]), web("idle", depends_on=["db"]))
    await desk.ask("start", "api")
    answer = await desk.ask("stop", "db")
    assert ([item["name"] for item in answer["items"]], answer["dependents"]) == (["db"], ["api"])
    assert "dependents" not in await desk.ask("stop")


async def test_enable_says_why_a_server_does_not_become_ready() -> None:
    desk = Desk(web("a", disabled=True), a=FAILS)
    answer = await desk.ask("enable", "a")
    assert (answer["exit_code"], answer["errors"][0]["name"]) == (1, "a")


async def test_add_starts_the_server_and_remove_says_what_is_gone() -> None:
    desk = Desk(web())
    await desk.ask("start")
    answer = await desk.ask("add", server=NEW | {"workers": 2}, base_dir="/srv")
    (item,) = answer["items"]
    assert (answer["exit_code"], item["name"], item["ready"], len(item["pids"])) == (0, "new", True, 2)
    assert (desk.core.entries["new"].config.cwd, desk.core.entries["new"].added) == ("/srv", True)
    again = await desk.ask(
        "add", server={"name": "off", "bind": ":7071", "app": "a:b", "disabled": True}, base_dir="/"
    )
    assert (again["exit_code"], desk.states().pop("off")) == (0, "disabled")
    await desk.ask("remove", "off")
    answer = await desk.ask("remove", "new")
    assert [(item["name"], item["bind"], item["state"]) for item in answer["items"]] == [
        ("new", "127.0.0.1:7070", "stopped")
    ]
    assert desk.states() == {"web": "running"}
    assert desk.files.missing == set()
    await desk.ask("remove", "web")
    assert (desk.states(), desk.files.missing) == ({}, {"web"})


@pytest.mark.parametrize(
    ("table", "code", "word"),
    [
        (NEW | {"name": "web"}, 8, "web"),
        (NEW | {"name": "WEB"}, 8, "web"),
        (NEW | {"bind": "0.0.0.0:7000"}, 8, "7000"),
        (NEW | {"bind": "127.0.0.1:9464"}, 8, "'[metrics]'"),
        (NEW | {"bnid": "x"}, 5, "bnid"),
        (NEW | {"workers": 0}, 5, "workers"),
        ({"name": "new"}, 5, "bind"),
        (NEW | {"app": None}, 5, ""),
        (NEW | {"depends_on": ["nobody"]}, 5, "nobody"),
        (NEW | {"env": {"A": "${NOT_SET_ANYWHERE}"}}, 5, "NOT_SET_ANYWHERE"),
    ],
)
async def test_a_server_that_cannot_be_added_is_refused_and_nothing_has_happened(
    table: dict[str, Any], code: int, word: str
) -> None:
    desk = Desk(web(bind="127.0.0.1:7000"))
    desk.files.tables = Tables(metrics=MetricsTable(bind=":9464"))
    await desk.ask("start")
    answer = await desk.ask("add", server=table, base_dir="/")
    assert answer["exit_code"] == code, answer
    assert answer["errors"]
    assert word in str(answer["errors"])
    assert desk.states() == {"web": "running"}


async def test_server_that_is_added_and_fails_is_kept_with_its_failure() -> None:
    desk = Desk(new=FAILS)
    answer = await desk.ask("add", server=NEW | {"restart": "no"}, base_dir="/")
    assert (answer["exit_code"], answer["errors"][0]["name"]) == (1, "new")
    await turns()
    assert desk.states() == {"new": "failed"}


@pytest.mark.slow
async def test_remove_of_what_others_depend_on_stops_them_first() -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"]))
    await desk.ask("start")
    desk.runner.log.clear()
    answer = await desk.ask("remove", "db")
    assert [item["name"] for item in answer["items"]] == ["db"]
    assert [line for line in desk.runner.log if line.startswith("stop")] == [
        "stop api.1.0 10",
        "stop db.1.0 10",
    ]
    assert desk.states() == {"api": "stopped"}
    # What it depended on is nobody's business any more.
    assert (await desk.ask("start", "api"))["exit_code"] == 0


async def test_a_server_that_ends_by_itself_meanwhile_is_not_waited_for() -> None:
    desk = Desk(web(restart="on-failure"), **{"web.1.1": NEVER})
    await desk.ask("start")
    scaling = desk.begin("scale", "web", workers=2)
    await turns()
    for worker in ("web.1.0", "web.1.1"):
        desk.runner.end(worker, Exit.from_returncode(0))
    await scaling
    await turns()
    assert desk.states() == {"web": "stopped"}


async def test_scale_to_one_keeps_a_server_awake_until_the_next_reload() -> None:
    desk = Desk(web(scale={"min": 0, "idle": 1}))
    await desk.ask("start")
    assert desk.states() == {"web": "sleeping"}
    answer = await desk.ask("scale", "web", workers=1)
    assert (answer["exit_code"], desk.states()) == (0, {"web": "running"})
    answer = await desk.ask("reload")
    assert [change["message"] for change in answer["changes"]] == ["workers: 1 by scale, 0 in the file"]
    assert desk.core.entries["web"].desired.overrides.workers is None


def unchanged(answer: dict[str, Any]) -> list[str]:
    return list(answer.get("unchanged") or ())


async def test_stop_names_the_servers_that_did_not_run_before() -> None:
    desk = Desk(web("on"), web("off", disabled=True), web("never"), web("bad"), bad=FAILS)
    await desk.ask("start", "on", "bad")
    assert unchanged(await desk.ask("stop", "off", "never", "bad")) == ["off", "never", "bad"]
    assert unchanged(await desk.ask("stop")) == ["off", "never", "bad"]


async def test_stop_counts_what_starts_sleeps_or_waits_for_a_retry_as_running() -> None:
    backoff = {"policy": "on-failure", "backoff": {"initial": 60, "max": 60}}
    desk = Desk(
        web("starts"), web("waits", depends_on=["starts"]), web("sleeps", scale={"min": 0}),
        web("retries", restart=backoff), starts=NEVER, retries=FAILS,
    )  # fmt: skip
    assert (await desk.ask("start", wait=False))["exit_code"] == 0
    await turns(60)
    assert sorted(desk.states().values()) == ["backoff", "sleeping", "starting", "starting"]
    assert unchanged(await desk.ask("stop")) == []


async def test_stop_counts_no_dependent_that_had_failed_before() -> None:
    desk = Desk(web("db"), web("bad", depends_on=["db"]), web("web", depends_on=["db"]), bad=FAILS)
    await desk.ask("start")
    assert desk.states() == {"db": "running", "bad": "failed", "web": "running"}
    assert (await desk.ask("stop", "db"))["dependents"] == ["web"]


async def test_enable_names_the_servers_that_were_not_disabled() -> None:
    desk = Desk(web("off", disabled=True), web("stopped"), web("on"))
    await desk.ask("start", "on")
    answer = await desk.ask("enable", all=True)
    assert (answer["exit_code"], unchanged(answer)) == (0, ["stopped", "on"])
    assert desk.states() == {"off": "running", "stopped": "stopped", "on": "running"}


async def test_enable_names_a_selected_server_that_it_starts_with_its_dependency_as_a_dependent() -> None:
    desk = Desk(web("db"), web("web", depends_on=["db"]))
    await desk.ask("start")
    await desk.ask("disable", "db")
    answer = await desk.ask("enable", all=True)
    assert (answer["dependents"], unchanged(answer)) == (["web"], []), "it is started with db"


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_restart_of_a_stopped_server_starts_its_dependencies_first_as_start_does(verb: str) -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"]), web("web", depends_on=["api"]), web("other"))
    answer = await desk.ask(verb, "web")
    assert (answer["exit_code"], [item["name"] for item in answer["items"]]) == (0, ["web"])
    assert desk.states() == {"db": "running", "api": "running", "web": "running", "other": "stopped"}
    assert desk.core.entries["web"].desired.ignore_dependencies is False
    pids = [item["pids"] for item in (await desk.ask("list", "db", "api"))["items"]]
    await desk.ask("stop", "web")
    await desk.ask(verb, "web")
    assert [item["pids"] for item in (await desk.ask("list", "db", "api"))["items"]] == pids, "they ran"


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_restart_of_a_stopped_server_with_a_disabled_dependency_says_what_it_waits_for(
    verb: str,
) -> None:
    desk = Desk(web("db", disabled=True), web("web", depends_on=["db"]))
    answer = await desk.ask(verb, "web")
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["name"]) == (1, "web")
    assert (error["message"], error["hint"]) == ("waits for db, which is disabled", "poolctl enable db")
    assert desk.runner.running == {}


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_restart_of_a_stopped_server_reports_the_dependency_that_fails(verb: str) -> None:
    desk = Desk(web("db"), web("web", depends_on=["db"]), db=FAILS)
    answer = await desk.ask(verb, "web")
    assert (answer["exit_code"], {error["name"] for error in answer["errors"]}) == (1, {"db", "web"})
    assert desk.states()["web"] == "starting"


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_restart_without_dependencies_starts_the_selected_server_only(verb: str) -> None:
    desk = Desk(web("db"), web("web", depends_on=["db"]))
    assert (await desk.ask(verb, "web", deps=False))["exit_code"] == 0
    assert desk.states() == {"db": "stopped", "web": "running"}


async def test_restart_of_a_running_server_replaces_it_while_its_dependency_is_down() -> None:
    desk = Desk(web("db"), web("web", depends_on=["db"]))
    await desk.ask("start")
    await desk.ask("stop", "db", deps=False)
    answer = await desk.ask("restart", "web")
    assert (answer["exit_code"], desk.states()) == (0, {"db": "stopped", "web": "running"})
    assert desk.core.entries["web"].desired.generation == 2


def nightly(**keys: Any) -> ServerConfig:
    return ServerConfig(
        **{"name": "nightly", "job": True, "every": "0 3 * * *", "command": ["backup"], **keys}
    )


async def test_restart_runs_a_job_with_a_schedule_only_by_its_name() -> None:
    desk = Desk(web("a"), nightly())
    await desk.ask("start")
    placed = [line for line in desk.runner.log if line.startswith("place nightly")]
    assert placed == []
    for targets in ((), ("night*", "a")):
        answer = await desk.ask("restart", *targets)
        assert (answer["exit_code"], answer["unchanged"]) == (0, ["nightly"]), targets
    assert not [line for line in desk.runner.log if line.startswith("place nightly")]
    answer = await desk.ask("restart", "NIGHTLY")
    assert (answer["exit_code"], answer.get("unchanged")) == (0, None)
    assert [line for line in desk.runner.log if line.startswith("place nightly")]


async def test_job_that_runs_is_not_run_a_second_time() -> None:
    desk = Desk(nightly(), nightly=NEVER)
    await desk.ask("start")
    running = desk.begin("restart", "nightly")
    await turns()
    answer = await desk.ask("restart", "nightly")
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["code"], error["name"]) == (1, 1325, "nightly")
    assert error["message"].startswith("runs since ")
    assert error["message"].endswith(", and does not run twice at once")
    assert error["hint"] == "wait until it has ended, or end it: poolctl stop nightly"
    running.cancel()


async def test_restart_with_an_expired_certificate_is_done_with_a_warning(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, days=5)
    desk = Desk(web("a", tls={"cert": str(cert), "key": str(key)}), web("b"))
    # The clock of the desk is behind the clock by which the certificate was made.
    desk.clock.advance(time.time() - desk.clock.time())
    await desk.ask("start")
    certificate(tmp_path, days=-1)
    answer = await desk.ask("restart")
    assert (answer["exit_code"], answer["errors"]) == (0, [])
    (warning,) = answer["warnings"]
    assert warning.startswith("a: its certificate expired on ")
    assert (await desk.ask("restart", "b"))["warnings"] == []


async def test_open_files_are_counted_for_what_runs_and_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(web("a"), web("b"), web("off", disabled=True))
    configs = [entry.config for entry in desk.core.entries.values()]
    check_pool_file_limit(desk.core, configs)
    await desk.ask("start", "a")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, 1))
    check_pool_file_limit(desk.core, configs[:2])
    check_open_file_limit(desk.core, [(configs[0], 1)])
    with pytest.raises(TooManyOpenFiles) as caught:
        check_open_file_limit(desk.core, [(configs[1], 1)])
    (error,) = caught.value.result.errors
    assert error.message.startswith("2 servers need ")
    assert error.hint.endswith("; then poolctl stop, and poolctl start")
    with pytest.raises(TooManyOpenFiles):
        check_pool_file_limit(desk.core, [*configs, web("new")])


async def test_size_is_the_minimum_unless_the_server_was_scaled() -> None:
    desk = Desk(web("a", scale={"min": 0, "max": 4}), web("b", workers=3))
    a, b = desk.core.entries.values()
    assert (requested_worker_count(a), requested_worker_count(b)) == (0, 3)
    await desk.ask("scale", "a", workers=2)
    assert requested_worker_count(a) == 2


@pytest.mark.parametrize("verb", ["scale"])
async def test_server_without_triggers_cannot_be_scaled_by_them(verb: str) -> None:
    desk = Desk(web("a"))
    answer = await desk.ask(verb, "a", auto=True)
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["message"]) == (
        1, "has no triggers that could change its number of workers",
    )  # fmt: skip
    assert answer["items"] == []


async def test_restart_of_a_disabled_server_is_an_error_if_it_was_named() -> None:
    desk = Desk(web("a"), web("off", disabled=True))
    await desk.ask("start")
    assert (await desk.ask("restart"))["errors"] == []
    (error,) = (await desk.ask("restart", "off"))["errors"]
    assert (error["name"], error["message"], error["code"]) == ("off", "is disabled", 1325)
    assert error["hint"] == "poolctl enable off, or remove `disabled = true` from its table"


async def test_restart_with_an_environment_is_saved_for_a_successor() -> None:
    desk = Desk(web("a"), web("b"))
    await desk.ask("start")
    await desk.ask("restart", "a", env={"X": "1"})
    assert desk.files.environments == {"a": {"X": "1"}}
    await desk.ask("restart", "b")
    assert desk.files.environments == {"a": {"X": "1"}}


def warned_of(*servers: ServerConfig, names: set[str], **options: Any) -> list[str]:
    return asyncio.run(startup_warnings(servers, names, Tables(), **options))


BINDS = ["x", "--port={port}"]


def test_start_warns_of_the_selected_servers() -> None:
    missing = {"depends_on": ["off"], "command": ["sleep", "1"]}
    off = web("off", disabled=True)
    a, b = (web(name, **{**missing, "app": None}) for name in "ab")
    warnings = warned_of(a, b, off, names={"a", "b"})
    assert [line for line in warnings if "'off' is disabled" in line] == [warnings[0]]
    assert warnings[0].startswith("a, b: ")
    only = warned_of(a, b, off, names={"a"})
    assert only
    assert all(line.startswith("a: ") for line in only)
    assert warned_of(web("plain", app=None, command=["sleep", "1"]), names={"plain"}) == []


def test_program_that_binds_itself_is_warned_of_once() -> None:
    one, other = (web(name, app=None, command=BINDS) for name in ("one", "other"))
    off = web("off", disabled=True)
    waiting = web("waiting", app=None, command=BINDS, depends_on=["off"])
    (both,) = warned_of(one, other, names={"one", "other"})
    assert both.startswith("one, other: ")
    (second,) = warned_of(one, other, names={"one", "other"}, warned={"one"})
    assert second.startswith("other: ")
    (left,) = warned_of(waiting, off, names={"waiting"}, warned={"waiting"})
    assert "'off' is disabled" in left
    assert "binds" not in left


async def test_start_of_a_running_server_reports_that_it_is_unhealthy() -> None:
    desk = Desk(web("a"), web("b"), web("stopped"))
    await desk.ask("start", "a", "b")
    (worker,) = desk.core.entries["a"].observed.workers.values()
    worker.stuck = True
    desk.core.health.update_probes_and_health(desk.core.entries["a"])
    answer = await desk.ask("start", "a", "b")
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["name"], error["hint"]) == (1, "a", "poolctl logs a")
    assert error["message"].startswith("runs but is unhealthy")
    worker.stuck = False
    desk.core.health.update_probes_and_health(desk.core.entries["a"])
    assert (await desk.ask("start", "a", "b"))["errors"] == []


async def test_stop_of_an_idle_pool_ends_it_only_if_no_server_is_wanted_or_runs() -> None:
    desk = Desk(web("a"), web("b"))
    await desk.ask("start", "a")
    answer = await desk.ask("stop", idle=True)
    assert [(item["name"], item["state"]) for item in answer["items"]] == [
        ("a", "running"),
        ("b", "stopped"),
    ]
    assert ("ended" in answer, desk.over, answer["exit_code"]) == (False, False, 0)
    desk.runner.may_end.clear()
    stopping = desk.begin("stop", "a")
    await turns()
    assert ("ended" in await desk.ask("stop", idle=True), desk.over) == (False, False), "a still runs"
    desk.runner.may_end.set()
    await stopping
    assert ((await desk.ask("stop", idle=True))["ended"], desk.over) == (True, True)


@pytest.mark.parametrize(
    ("targets", "options", "ends"),
    [
        ([], {}, ["finish", "end"]), ([], {"kill": True}, ["end"]), ([], {"wait": False}, []),
        (["a"], {}, []), ([], {"timeout": 0.5}, ["finish", "end"]),
    ],
)  # fmt: skip
def test_stop_of_everything_lets_the_features_finish_and_ends_the_supervisor(
    targets: list[str], options: dict[str, Any], ends: list[str]
) -> None:
    class EndingDesk(Desk):
        async def finish(self) -> None:
            done.append("finish")
            if "timeout" in options:
                await asyncio.sleep(60)

        def shut_down_soon(self) -> int:
            done.append("end")
            return 7

    async def scenario() -> None:
        desk = EndingDesk(web("a"))
        await desk.ask("start")
        answer = await desk.ask("stop", *targets, **options)
        await turns()
        assert done == ends
        assert (answer.get("ended"), answer.get("keeper_pid")) == ((True, 7) if ends else (None, None))
        stops = [line for line in desk.runner.log if line.startswith("stop")]
        assert stops == (["stop a.1.0 0"] if "kill" in options else ["stop a.1.0 10"])

    done: list[str] = []
    run(scenario())


async def test_stop_that_fails_does_not_end_the_supervisor() -> None:
    desk = Desk(web("a"))
    await desk.ask("start")
    desk.runner.may_end.clear()
    answer = await desk.ask("stop", timeout=0.01)
    assert (answer["exit_code"], "ended" in answer, desk.over) == (124, False, False)
    desk.runner.may_end.set()


TRIGGERS = {"min": 2, "max": 5, "triggers": {"in_flight": 20}}


@needs("scaling")
async def test_scale_by_triggers_takes_back_a_number_of_workers() -> None:
    desk = Desk(web("a", scale=TRIGGERS), web("b"))
    await desk.ask("start")
    entry = desk.core.entries["a"]
    for workers in (3, 2):
        answer = await desk.ask("scale", "a", workers=workers)
        assert (answer["exit_code"], entry.desired.overrides.workers) == (0, workers)
    answer = await desk.ask("scale", "a", auto=True)
    assert (answer["exit_code"], answer["errors"], entry.desired.overrides.workers) == (0, [], None)
    assert [item["name"] for item in answer["items"]] == ["a"]
    answer = await desk.ask("scale", auto=True, all=True)
    assert (answer["exit_code"], [item["name"] for item in answer["items"]]) == (1, ["a"])
    (error,) = answer["errors"]
    assert (error["name"], error["hint"]) == (
        "b", "add scale = { max = 4, triggers = { in_flight = 20 } } to its table, then poolctl reload",
    )  # fmt: skip


async def test_scale_to_the_number_in_the_file_is_no_override() -> None:
    desk = Desk(web("a", workers=2), web("sleeps", scale={"min": 0, "max": 3}))
    await desk.ask("start", "a")
    overrides = [entry.desired for entry in desk.core.entries.values()]
    await desk.ask("scale", all=True, workers=3)
    assert [state.overrides.workers for state in overrides] == [3, 3]
    await desk.ask("scale", all=True, workers=2)
    assert [state.overrides.workers for state in overrides] == [None, 2]


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        (
            {"command": ["x"], "job": True, "bind": None, "app": None},
            "is a job, which runs once, and this is 2 workers", "leave it out",
        ),
        (
            {"command": ["x", "{port}"], "app": None}, "2 processes cannot all bind 127.0.0.1:7001",
            "let the program take the socket ({fd}, or LISTEN_FDS)",
        ),
        (
            {"overlap": False}, "must not run twice at once (overlap = false), and this is 2 workers",
            "remove `overlap = false` if it may",
        ),
    ],
)  # fmt: skip
async def test_server_that_cannot_run_twice_says_why_and_what_may_help(
    keys: dict[str, Any], message: str, hint: str
) -> None:
    table = {"name": "one", "bind": "127.0.0.1:7001", "app": "a:b"} | keys
    one = ServerConfig(**{key: value for key, value in table.items() if value is not None})
    desk = Desk(one, web("two"))
    await desk.ask("start", "two")
    answer = await desk.ask("scale", all=True, workers=2)
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["name"], error["message"], error["hint"]) == (1, "one", message, hint)
    assert [item["workers"] for item in answer["items"]] == [1, 2]
    assert (await desk.ask("scale", "one", workers=1))["exit_code"] == 0


async def test_drain_says_of_each_server_that_it_does_not_drain_why() -> None:
    job = ServerConfig(name="job", command=["x"], job=True)
    desk = Desk(
        web("runs"), web("starts"), web("off"), web("bad"), job, starts=NEVER, bad=FAILS, job=NEVER,
    )  # fmt: skip
    await desk.ask("start", "runs", "bad")
    starting = desk.begin("start", "starts", "job")
    await turns()
    answer = await desk.ask("drain", all=True)
    assert answer["warnings"] == [
        "starts: is starting, and out of rotation when it runs", "off: is stopped, there is nothing to drain",
        "bad: is failed, there is nothing to drain",
        "job: has no connections to drain; poolctl stop job ends it",
    ]  # fmt: skip
    out = {name: entry.desired.overrides.out for name, entry in desk.core.entries.items()}
    assert out == {"runs": True, "starts": True, "off": False, "bad": False, "job": False}
    assert [item["name"] for item in answer["items"]] == [*out]
    answer = await desk.ask("undrain", all=True)
    assert not any(entry.desired.overrides.out for entry in desk.core.entries.values())
    assert ([item["name"] for item in answer["items"]], answer["warnings"]) == ([*out], [])
    starting.cancel()


async def progress_of(desk: Desk, verb: str, *targets: str, **options: Any) -> list[Any]:
    """The warnings that a command gives before its result."""
    lines: list[Any] = []
    await desk.verbs.perform(verb, Call(Selector.from_dict({"targets": [*targets]}), options, lines.append))
    return [line.warning for line in lines if line.warning]


async def test_dependents_that_a_command_stops_or_starts_as_well_are_named() -> None:
    desk = Desk(
        web("db"),
        web("api", depends_on=["db"]),
        web("site", depends_on=["api"]),
        web("idle", depends_on=["db"]),
    )
    await desk.ask("start", "site")
    stopping = [
        "stopping api as well, which depends on db", "stopping site as well, which depends on api",
    ]  # fmt: skip
    assert sorted(await progress_of(desk, "stop", "db")) == stopping
    await desk.ask("start", "site")
    assert sorted(await progress_of(desk, "disable", "db")) == stopping
    starting = await progress_of(desk, "enable", "db")
    assert starting == [
        "starting api as well, which was stopped with db", "starting site as well, which was stopped with db",
    ]  # fmt: skip
    assert await progress_of(desk, "stop", "db", deps=False) == []
    assert desk.states() == {"db": "stopped", "api": "running", "site": "running", "idle": "stopped"}
    assert sorted(await progress_of(desk, "remove", "db")) == stopping
    assert desk.states() == {"api": "stopped", "site": "stopped", "idle": "stopped"}


async def test_removed_server_of_the_files_is_saved_as_missing_and_an_added_one_is_not() -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"]))
    await desk.ask("start")
    desk.core.entries["api"].desired.source = ({}, "/")
    revision = desk.core.servers.revision
    answer = await desk.ask("remove", "db", deps=False)
    assert ([item["name"] for item in answer["items"]], desk.files.missing) == (["db"], {"db"})
    assert desk.core.servers.revision > revision
    assert desk.states() == {"api": "running"}
    revision = desk.core.servers.revision
    await desk.ask("remove", "api")
    assert desk.files.missing == {"db"}
    assert desk.core.servers.revision > revision


class AddingFiles(Files):
    """Files to which this server is added, unless there is an `obstacle`."""

    obstacle: Exception | None = None

    async def resolve_added(self, table: Any, base_dir: str, existing: Any) -> ServerConfig:
        self.given = (table, base_dir, sorted(server.name for server in existing))
        if self.obstacle is not None:
            raise self.obstacle
        return web(table["name"], **{key: value for key, value in table.items() if key != "name"})


def adding(*servers: ServerConfig, **script: str) -> tuple[Desk, AddingFiles]:
    desk, files = Desk(*servers, **script), AddingFiles(servers)
    desk.use(files)
    return desk, files


@pytest.mark.parametrize(
    "options",
    [{}, {"server": ["x"], "base_dir": "/"}, {"server": {"name": "x"}}, {"server": {}, "base_dir": 1}],
)
async def test_add_without_a_table_or_its_directory_is_a_wrong_use(options: dict[str, Any]) -> None:
    with pytest.raises(SelectorError) as caught:
        await Desk(web("a")).ask("add", **options)
    assert (caught.value.message, caught.value.hint) == (
        "add: which server?",
        "add: `server` is a table as in a file, `base_dir` the directory of its relative paths",
    )  # fmt: skip


async def test_added_server_that_is_refused_is_not_there() -> None:
    desk, files = adding(web("a", bind="127.0.0.1:7001"))

    async def refused(**table: Any) -> tuple[int, str, str]:
        answer = await desk.ask("add", server={"name": "new"} | table, base_dir="/")
        (error,) = answer["errors"]
        assert desk.states() == {"a": "stopped"}
        return answer["exit_code"], error["message"], error["hint"]

    files.obstacle = PoolValidateError("wrong", [ServerError("is wrong", hint="look")])
    assert await refused() == (5, "is wrong", "look")
    files.obstacle = ServerError("no port is free", hint="widen it")
    assert await refused() == (8, "no port is free", "widen it")
    files.obstacle = None
    assert (await refused(bind="127.0.0.1:7001"))[0] == 8
    assert (await refused(depends_on=["gone"]))[0] == 5


async def test_server_is_not_added_while_one_of_its_name_is_being_removed() -> None:
    desk, _ = adding(web("a"))
    await desk.ask("start")
    desk.runner.may_end.clear()
    removing = desk.begin("remove", "a")
    await turns()
    answer = await desk.ask("add", server={"name": "a", "bind": "127.0.0.1:7009"}, base_dir="/")
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["message"], error["hint"]) == (
        8, "a server of that name is still being removed", "try again",
    )  # fmt: skip
    assert error["name"] == "a"
    answer = await desk.ask("add", server={"name": "b", "bind": "127.0.0.1:7009"}, base_dir="/")
    assert answer["exit_code"] == 0
    desk.runner.may_end.set()
    await removing


@pytest.mark.parametrize("verb", ["start", "restart", "scale", "enable", "add"])
async def test_change_that_needs_too_many_open_files_is_refused_and_changes_nothing(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, _ = adding(web("a"), web("off", disabled=True))
    if verb == "scale":
        await desk.ask("start", "a")
    states = desk.states()
    desk.runner.log.clear()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, 1))
    targets = {"add": (), "enable": ("off",)}.get(verb, ("a",))
    with pytest.raises(TooManyOpenFiles):
        await desk.ask(verb, *targets, workers=500, server={"name": "new"}, base_dir="/")
    assert (desk.states(), desk.runner.log) == (states, [])


async def test_restart_of_a_stopped_server_reports_the_dependency_that_was_starting_and_fails() -> None:
    desk = Desk(web("db"), web("api", depends_on=["db"]), db=NEVER)
    starting = desk.begin("start", "db")
    await turns()
    restarting = desk.begin("restart", "api")
    await turns()
    desk.runner.end("db.1.0", Exit.from_returncode(1))
    assert [error["name"] for error in (await restarting)["errors"]] == ["db", "api"]
    assert (await starting)["exit_code"] == 1


@pytest.mark.parametrize(
    ("names", "listed"), [("", ""), ("a", "a"), ("abc", "a, b, c"), ("abcde", "a, b, c and 2 more")]
)
def test_warning_names_three_servers_and_counts_the_others(names: str, listed: str) -> None:
    assert name_list([*names]) == listed
