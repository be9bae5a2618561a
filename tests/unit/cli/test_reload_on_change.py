"""reload --watch and run --watch: what a change of a file brings about, and when nothing does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli import reload_on_change
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.reload_on_change import PoolWatcher, WatchSet, code_directories
from poolctl.cli.supervisor_requests import Request
from poolctl.control.answers import ReloadResult, Result
from poolctl.control.server_answers import ShowResult
from poolctl.json_form import from_json
from tests.deadline import wait_until
from tests.stand_in import Send, item
from tests.stand_in import result as answered

from .conftest import Command, Supervised

Asked = list[tuple[str, dict[str, Any]]]


def shown(name: str, directory: Path, **config: Any) -> dict[str, Any]:
    return item(name, config={"app_dir": str(directory), **config})


class Watched:
    """A pool that is watched: the requests to its stand-in, and the reports."""

    def __init__(self, directory: Path, requests: Asked) -> None:
        self.directory = directory
        self.requests = requests
        self.reports: list[tuple[str, int]] = []
        self.lines: list[str] = []

    def changed(self, result: Result) -> None:
        verb = "reload" if isinstance(result, ReloadResult) else "restart"
        self.reports.append((verb, result.exit_code))

    @property
    def orders(self) -> list[tuple[str, Any]]:
        """The reloads and restarts so far, each with its targets."""
        found = [(verb, body.get("selector", {}).get("targets")) for verb, body in self.requests]
        return [each for each in found if each[0] in ("reload", "restart")]


Watching = Callable[..., Any]


@pytest.fixture
def watching(directory: Path, supervised: Supervised) -> Watching:
    """`watching(items)`: a context in which the pool of these items of `show` is watched."""

    @contextmanager
    def watched_pool(
        *items: dict[str, Any], code: int = 0, changes: Any = (), **more: Any
    ) -> Iterator[Watched]:
        async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
            targets = (body.get("selector") or {}).get("targets") or []
            found = [each for each in items if not targets or each["name"] in targets]
            return answered(*found, exit_code=code if verb == "reload" else 0, changes=list(changes), **more)

        with supervised(answer) as requests:
            watched = Watched(directory, requests)

            place = find_pool(Place())
            watcher = PoolWatcher(Request("reload", options={"wait": True}), place, watched.lines.append, 0.0)

            def watch() -> None:
                for result in watcher.apply_changes():
                    watched.changed(result)

            thread = threading.Thread(target=watch)
            thread.start()
            try:
                yield watched
            finally:
                Path(place.socket).unlink()
                thread.join(60)
            assert not thread.is_alive(), "the end of the pool is the end of watching"

    return watched_pool


def test_a_changed_configuration_is_reloaded_once(watching: Watching, directory: Path) -> None:
    with watching(shown("users", directory)) as pool:
        for number in range(5):
            (directory / "pool.toml").write_text(f'[pool]\nname = "p{number}"\n')
        wait_until(lambda: pool.reports)
        assert pool.reports == [("reload", 0)]
        (directory / "new.toml").write_text("[pool]\n")
        (directory / "new.toml").rename(directory / "pool.toml")  # as editors and --save do
        wait_until(lambda: len(pool.reports) == 2)
    assert pool.orders == [("reload", [])] * 2


@pytest.mark.slow
def test_code_that_is_written_without_a_pause_is_applied_after_the_longest_wait(
    watching: Watching, directory: Path
) -> None:
    with watching(shown("a", directory)) as pool:
        wait_until(lambda: (directory / "app.py").write_text("x") and pool.reports)
    assert pool.orders[0] == ("restart", ["a"])


def test_file_that_changed_before_the_watch_began_is_reloaded_at_once(
    watching: Watching, directory: Path
) -> None:
    with watching(shown("users", directory), changed={"files": ["pool.toml"]}) as pool:
        wait_until(lambda: pool.reports)
    assert pool.orders == [("reload", [])]


def test_files_of_variables_and_certificates_are_part_of_it(watching: Watching, directory: Path) -> None:
    (directory / "tls").mkdir()
    web = shown(
        "web",
        directory,
        env_file=[{"path": f"{directory}/.env", "expand": False}],
        tls={"cert": f"{directory}/tls/cert.pem", "key": None},
    )
    with watching(web) as pool:
        (directory / ".env").write_text("A=1\n")  # it was not there before
        wait_until(lambda: len(pool.reports) == 1)
        (directory / "tls" / "cert.pem").write_text("new")
        wait_until(lambda: len(pool.reports) == 2)
        (directory / ".env").unlink()
        wait_until(lambda: len(pool.reports) == 3)


def test_changed_code_restarts_the_servers_that_have_it(watching: Watching, directory: Path) -> None:
    for name in ("one", "two/inner", "two/.venv"):
        (directory / name).mkdir(parents=True)
    servers = [
        shown("a", directory / "one"), shown("b", directory / "two"), shown("c", directory / "two"),
        item("d", state="stopped", config={"app_dir": f"{directory}/two"}),
        item("e", config={"app_dir": f"{directory}/two", "command": ["sleep", "1"]}),
    ]  # fmt: skip
    with watching(*servers) as pool:
        (directory / "two" / "inner" / "app.py").write_text("x = 1\n")
        wait_until(lambda: pool.reports)
        assert pool.orders == [("restart", ["b", "c"])]
        (directory / "one" / "fresh" / "deep").mkdir(parents=True)
        (directory / "one" / "fresh" / "deep" / "app.py").write_text("x = 1\n")
        wait_until(lambda: len(pool.reports) == 2)
        assert pool.orders[1:] == [("restart", ["a"])]


def test_code_saved_after_its_workers_started_and_before_the_watch_began_is_restarted_once(
    watching: Watching, directory: Path
) -> None:
    (directory / "app.py").write_text("x = 1\n")
    (directory / "old.py").write_text("x = 1\n")
    saved = (directory / "app.py").stat().st_ctime

    def placed(name: str, *times: float | None) -> dict[str, Any]:
        workers = [{"id": f"{name}.1.{at}", "phase": "ready", "placed_at": at} for at in times]
        return shown(name, directory) | {"worker_list": workers}

    servers = [placed("a", saved + 60, saved - 60), placed("b", saved + 60), placed("c", None), placed("d")]
    with watching(*servers) as pool:
        wait_until(lambda: pool.reports)
        assert pool.lines == ["a: app.py, old.py changed, restarting"]
        (directory / "new.py").write_text("x = 1\n")
        wait_until(lambda: len(pool.reports) == 2)
    assert pool.orders == [("restart", ["a"]), ("restart", ["a", "b", "c", "d"])]
    assert pool.lines[1:] == ["a, b, c, d: new.py changed, restarting"]


def test_line_about_changed_code_names_three_files_and_the_number_of_others(
    watching: Watching, directory: Path
) -> None:
    with watching(shown("a", directory)) as pool:
        for name in "edcba":
            (directory / f"{name}.py").write_text("x = 1\n")
        wait_until(lambda: pool.reports)
    assert pool.lines == ["a: a.py, b.py, c.py and 2 more files changed, restarting"]


def test_watch_includes_and_excludes_files_by_patterns(watching: Watching, directory: Path) -> None:
    for name in ("templates/deep", "tests", "shared"):
        (directory / name).mkdir(parents=True)
    include = [f"{directory}/templates/**", f"{directory}/**/*.sql"]
    exclude = [f"{directory}/**/test_*.py", f"{directory}/tests"]
    servers = [
        shown("web", directory, watch={"include": include, "exclude": exclude}),
        shown("api", directory / "shared"),
        item("db", config={"command": ["postgres"], "watch": {"include": [f"{directory}/db.conf"]}}),
        item("job", config={"command": ["migrate"], "job": True, "watch": {"include": include}}),
    ]
    with watching(*servers) as pool:
        for count, (path, line) in enumerate(
            [
                ("templates/deep/page.html", "web: templates/deep/page.html changed, restarting"),
                ("shared/up.sql", "web: shared/up.sql changed, restarting"),
                ("db.conf", "db: db.conf changed, restarting"),
                ("app.py", "web: app.py changed, restarting"),
            ],
            1,
        ):
            for other in ("tests/helper.py", "test_app.py", "page.html", "templates.txt", "other.conf"):
                (directory / other).write_text("x")
            (directory / path).write_text("x")
            wait_until(lambda count=count: len(pool.reports) == count)
            assert pool.lines[-1] == line
    assert len(pool.orders) == 4


POLLED = {"watch": {"poll": 0.02}}


def switch(link: Path, target: str) -> None:
    """Lead the link elsewhere, as deployments do: at no time is there none."""
    (link.parent / "new").symlink_to(target)
    (link.parent / "new").rename(link)


def release(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "app.py").write_text("x = 1\n")
    return directory


@pytest.mark.parametrize("keys", [{}, POLLED], ids=["inotify", "polled"])
@pytest.mark.parametrize(
    ("link", "app_dir"),
    [
        ("current", "current"),
        ("current", "current/src"),
        ("stable", "current"),
        ("srv/current", "srv/current/src"),
    ],
    ids=["the directory", "above it", "a link to a link", "in another directory"],
)
def test_link_that_is_switched_to_another_release_is_changed_code(
    watching: Watching, directory: Path, link: str, app_dir: str, keys: dict[str, Any]
) -> None:
    for number in (1, 2):
        release(directory / f"releases/{number}")
        release(directory / f"releases/{number}/src")
    (directory / "srv").mkdir()
    (directory / "other").mkdir()
    up = "../" * link.count("/")
    (directory / link).symlink_to(f"{up}releases/1")
    if link == "stable":
        (directory / "current").symlink_to(directory / "stable")
    with watching(shown("web", directory / app_dir, **keys), shown("api", directory / "other")) as pool:
        switch(directory / link, f"{up}releases/2")
        wait_until(lambda: pool.reports)
        assert pool.lines == [f"web: {app_dir} changed, restarting"]
        wait_until(lambda: pool.requests[-1][0] == "show")
        switch(directory / link, f"{up}releases/1")
        wait_until(lambda: len(pool.reports) == 2)
    assert pool.orders == [("restart", ["web"])] * 2


@pytest.mark.parametrize("keys", [{}, POLLED], ids=["inotify", "polled"])
def test_directory_that_is_replaced_by_another_of_its_name_is_changed_code(
    watching: Watching, directory: Path, keys: dict[str, Any]
) -> None:
    old = release(directory / "app" / "inner").parent
    (old / "inner" / "gone.py").write_text("x = 1\n")
    release(directory / "app.new" / "inner")
    worker = {"id": "web.1.0", "phase": "ready", "placed_at": time.time()}
    with watching(shown("web", old, **keys) | {"worker_list": [worker]}) as pool:
        old.rename(directory / "app.old")
        (directory / "app.new").rename(old)
        wait_until(lambda: pool.reports)
        (directory / "app.old" / "inner" / "gone.py").unlink()
        (old / "inner" / "app.py").write_text("x = 22\n")
        wait_until(lambda: len(pool.reports) > 1)
    assert pool.lines[0] == "web: app changed, restarting"
    assert {*pool.lines[1:]} == {"web: app/inner/app.py changed, restarting"}


def test_files_that_kubernetes_mounts_are_changed_by_a_switched_link(
    watching: Watching, directory: Path
) -> None:
    for number in (1, 2):
        (release(directory / f"code/..{number}") / "pool.toml").write_text(f'[pool]\nname = "p{number}"\n')
    (directory / "code" / "..data").symlink_to("..1")
    (directory / "code" / "app.py").symlink_to("..data/app.py")
    (directory / "pool.toml").unlink()
    (directory / "pool.toml").symlink_to("code/..data/pool.toml")
    with watching(shown("web", directory / "code")) as pool:
        switch(directory / "code" / "..data", "..2")
        wait_until(lambda: len(pool.reports) == 2)
    assert pool.orders == [("reload", []), ("restart", ["web"])]
    assert pool.lines == ["web: code/app.py changed, restarting"]


@pytest.mark.parametrize("keys", [{}, POLLED], ids=["inotify", "polled"])
def test_code_behind_links_is_watched_where_it_is_unless_it_is_excluded(
    watching: Watching, directory: Path, keys: dict[str, Any]
) -> None:
    shop = release(directory / "shop")
    for name in ("shared", "inner", "generated", "single"):
        release(directory / f"libs/{name}")
    (shop / "shared").symlink_to("../libs/shared")
    (shop / "twice").symlink_to("../libs/shared")
    (shop / "generated").symlink_to("../libs/generated")
    (shop / "single.py").symlink_to("../libs/single/app.py")
    (shop / "above").symlink_to("..")
    (directory / "libs/shared/inner").symlink_to("../inner")
    (directory / "libs/inner/round").symlink_to("../shared")
    exclude = {"watch": {**keys.get("watch", {}), "exclude": [str(directory / "libs/generated")]}}
    with watching(shown("web", shop, **exclude)) as pool:
        for count, name in enumerate(("shared", "inner", "single"), 1):
            (directory / "libs/generated/app.py").write_text(f"x = {'2' * count}\n")
            (directory / "app.py").write_text(f"x = {'2' * count}\n")
            (directory / f"libs/{name}/app.py").write_text("x = 22\n")
            wait_until(lambda count=count: len(pool.reports) == count)
            assert pool.lines[-1].startswith(f"web: libs/{name}/app.py")
    assert pool.orders == [("restart", ["web"])] * 3


def test_permissions_are_no_change_and_a_touched_file_is_one(watching: Watching, directory: Path) -> None:
    shop = release(directory / "shop")
    os.utime(shop / "app.py", (1, 1))
    (shop / "other.py").touch()
    with watching(shown("web", shop)) as pool:
        (shop / "app.py").chmod(0o600)
        (shop / "other.py").touch()
        wait_until(lambda: pool.reports)
        assert pool.lines == ["web: shop/other.py changed, restarting"]


def test_archive_that_is_replaced_is_changed_code(watching: Watching, directory: Path) -> None:
    (directory / "app.pyz").write_bytes(b"1")
    with watching(shown("web", directory / "app.pyz" / "lib")) as pool:
        (directory / "app.pyz").write_bytes(b"22")
        wait_until(lambda: len(pool.reports) == 1)
        (directory / "new").write_bytes(b"333")
        (directory / "new").rename(directory / "app.pyz")
        wait_until(lambda: len(pool.reports) == 2)
    assert pool.orders == [("restart", ["web"])] * 2


def test_script_and_included_files_below_a_switched_link_are_changed(
    watching: Watching, directory: Path
) -> None:
    for number in (1, 2):
        release(directory / f"releases/{number}/templates")
        (directory / f"releases/{number}/serve").write_text("x")
    (directory / "current").symlink_to("releases/1")
    pattern = {"include": [f"{directory}/current/templates/*.html"]}
    servers = [
        program("own", directory, "current/serve"),
        item("files", config={"command": ["nginx"], "watch": pattern}),
        item("not", config={"command": ["nginx"], "watch": {**pattern, "exclude": [f"{directory}/current"]}}),
    ]
    with watching(*servers) as pool:
        switch(directory / "current", "releases/2")
        wait_until(lambda: pool.reports)
    assert pool.orders == [("restart", ["own", "files"])]
    assert pool.lines == [
        "own: current/serve changed, restarting",
        "files: current/templates changed, restarting",
    ]


def test_link_to_nothing_changes_nothing_until_it_leads_somewhere(
    watching: Watching, directory: Path
) -> None:
    release(directory / "releases/1")
    release(directory / "releases/2")
    (directory / "current").symlink_to("releases/1")
    with watching(shown("web", directory / "current"), shown("api", directory / "releases")) as pool:
        (directory / "current").unlink()
        (directory / "releases" / "marker.py").write_text("x")
        wait_until(lambda: len(pool.reports) == 1)
        assert pool.orders == [("restart", ["api"])]
        (directory / "current").symlink_to("releases/2")
        wait_until(lambda: len(pool.reports) == 2)
    assert pool.orders[1] == ("restart", ["web"])


def test_files_are_polled_where_nothing_reports_changes(
    watching: Watching, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(reload_on_change, "DirectoryWatch")
    pattern = {"include": [f"{directory}/*.html"], "poll": 0.02}
    with watching(shown("web", directory, watch=pattern), shown("api", directory)) as pool:
        (directory / "page.html").write_text("x")
        wait_until(lambda: len(pool.reports) == 1)
        (directory / "app.py").write_text("x")
        wait_until(lambda: len(pool.reports) == 2)
        (directory / "app.py").unlink()
        wait_until(lambda: len(pool.reports) == 3)
        (directory / "pool.toml").write_text('[pool]\nname = "p"\n')
        wait_until(lambda: len(pool.reports) == 4)
    both = ("restart", ["web", "api"])
    assert pool.orders == [("restart", ["web"]), both, both, ("reload", [])]


def program(name: str, directory: Path, *command: str, **config: Any) -> dict[str, Any]:
    return item(name, config={"app_dir": str(directory), "cwd": str(directory), "command": command, **config})


def test_changed_code_restarts_commands_in_python_and_those_that_name_the_script(
    watching: Watching, directory: Path
) -> None:
    for name in ("src", "bin", "other"):
        (directory / name).mkdir()
    for name, text in (
        ("celery", "#!/srv/.venv/bin/python\nimport sys\n"),
        ("rake", "#!/usr/bin/ruby\n# python\n"),
        ("binary", "\x7fELF python\n"),
    ):
        (directory / "bin" / name).write_text(text)
        (directory / "bin" / name).chmod(0o755)
    servers = [
        program("module", directory, "python3", "-m", "shop.queue"),
        program("script", directory, "env", "A=1", "src/queue.py"),
        program("celery", directory, "celery", "worker", env={"PATH": str(directory / "bin")}),
        program("rake", directory, "rake", env={"PATH": str(directory / "bin")}),
        program("binary", directory, "binary", env={"PATH": str(directory / "bin")}),
        program("node", directory, "node", "src/queue.js"),
        program("shell", directory, "sh", "-c", "sleep 1", "notes.txt"),
        program("own", directory, "bin/serve", "--fast"),
        program("elsewhere", directory / "other", "python3", "-m", "shop.queue"),
        program("root", directory, "python3", "-m", "shop.queue", cwd="/"),
        program("migration", directory, "python3", "src/queue.py", job=True),
    ]
    with watching(*servers) as pool:
        for count, (path, names) in enumerate(
            [
                ("src/any.py", ["module", "script", "celery"]),
                ("src/queue.js", ["node"]),
                ("bin/serve", ["own"]),
                ("other/queue.py", ["module", "script", "celery", "elsewhere"]),
            ],
            1,
        ):
            (directory / "notes.txt").write_text("written by a server")
            (directory / path).write_text("x")
            wait_until(lambda count=count: len(pool.reports) == count)
            assert pool.orders[-1] == ("restart", names)


def test_script_that_is_replaced_by_another_file_is_seen_each_time(
    watching: Watching, directory: Path
) -> None:
    with watching(program("node", directory, "node", "queue.js")) as pool:
        for count in (1, 2, 3):
            (directory / "new").write_text("x" * count)
            (directory / "new").rename(directory / "queue.js")
            wait_until(lambda count=count: len(pool.reports) == count)
    assert pool.orders == [("restart", ["node"])] * 3


def test_other_files_change_nothing(watching: Watching, directory: Path) -> None:
    (directory / "__pycache__").mkdir()
    with watching(shown("a", directory)) as pool:
        for name in ("notes.txt", ".hidden.py", "app.py~", "__pycache__/app.pyc"):
            (directory / name).write_text("x")
        (directory / "marker.py").write_text("x")
        wait_until(lambda: pool.reports)
    assert pool.orders == [("restart", ["a"])]


def test_a_broken_file_is_reported_and_the_next_change_is_seen(watching: Watching, directory: Path) -> None:
    with watching(shown("a", directory), code=5) as pool:
        (directory / "pool.toml").write_text("broken [")
        wait_until(lambda: pool.reports == [("reload", 5)])
        (directory / "pool.toml").write_text("still broken [")
        wait_until(lambda: pool.reports == [("reload", 5)] * 2)


def test_worker_that_a_reload_has_replaced_is_not_replaced_again(watching: Watching, directory: Path) -> None:
    changes = [{"name": "a", "change": "restart"}, {"name": "b", "change": "update"}]
    with watching(shown("a", directory), shown("b", directory), changes=changes) as pool:
        (directory / "app.py").write_text("x")
        (directory / "pool.toml").write_text("[pool]\n")
        wait_until(lambda: len(pool.reports) == 2)
    assert pool.orders == [("reload", []), ("restart", ["b"])]


def test_a_directory_of_files_is_watched_as_a_whole(directory: Path) -> None:
    (directory / "conf").mkdir()
    (directory / "conf" / "1.toml").write_text("x")
    sources = WatchSet([str(directory / "conf")], [])
    (directory / "conf" / "app.py").write_text("x")
    assert not sources.detect_configuration_change()
    (directory / "conf" / "2.toml").write_text("x")
    sources = WatchSet([str(directory / "conf")], [], sources)
    assert sources.detect_configuration_change()
    (directory / "conf" / "1.toml").unlink()
    sources = WatchSet([str(directory / "conf")], [], sources)
    assert sources.detect_configuration_change()
    (directory / "conf" / ".env").write_text("A=1")
    assert sources.detect_configuration_change()
    assert not sources.detect_configuration_change()


def test_every_watched_server_is_meant_when_the_kernel_dropped_changes(directory: Path) -> None:
    servers = [
        shown("web", directory),
        program("node", directory, "node", "queue.js"),
        item("db", config={"command": ["postgres"], "watch": {"include": [f"{directory}/db.conf"]}}),
        item("cache", config={"command": ["memcached"]}),
    ]
    found = WatchSet([], from_json(ShowResult, answered(*servers)).items).changed_servers(None)
    assert found == {"web": [], "node": [], "db": []}


def test_watched_directories_exclude_environments_and_caches(tmp_path: Path) -> None:
    for name in ("app/inner", ".git/x", "node_modules/x", "env/lib", "app/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").touch()
    found = [Path(each).relative_to(tmp_path).as_posix() for each in code_directories(str(tmp_path))]
    assert sorted(found) == [".", "app", "app/inner"]


def test_reload_watch_reloads_first_and_needs_a_supervisor(poolctl: Command) -> None:
    assert poolctl("reload", "--watch").code == 6
    assert poolctl("reload", "--watch", "--dry-run").code == 2


def test_reload_watch_ends_with_its_pool(poolctl: Command, supervised: Supervised, directory: Path) -> None:
    asked: list[str] = []

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        asked.append(verb)
        if asked[-2:] == ["reload", "show"]:  # the last request before it waits
            (socket,) = (directory / "run").glob("*/control.sock")
            threading.Timer(0.2, socket.unlink).start()
        return answered(item("a", config={}), changes=[{"name": "a", "change": "restart", "keys": ["app"]}])

    with supervised(answer):
        assert poolctl("reload", "--watch") == (0, "~ a: app\n1 restarted\nthe pool has been stopped\n", "")
