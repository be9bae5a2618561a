"""The imports of a zygote and of an application: no garbage is collected meanwhile, and errors name their place."""

from __future__ import annotations

import ast
import inspect
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match

import poolctl
from poolctl.worker import serving
from poolctl.worker.imports import (
    LoadFailed,
    exit_status,
    explain,
    import_app,
    load_app,
    set_argv_and_path,
    warm_up,
)
from poolctl.worker.serving.wsgi import WsgiApp


def test_serving_imports_no_module_of_poolctl_later_than_at_its_own_import() -> None:
    # After the preload it would be a second copy, whose classes are others.
    late = [
        f"{path.name}:{node.lineno}"
        for path in Path(serving.__path__[0]).glob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith("poolctl"))
    ]
    assert late == []


@pytest.mark.slow
def test_zygote_collects_no_garbage_while_it_imports_and_does_so_afterwards() -> None:
    requests, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()  # so it ends as soon as it has started
    look = """
import gc, os, sys
met = []
gc.callbacks.append(lambda phase, _: met.append("starlette.responses" in sys.modules))
os.dup2(int(sys.argv.pop(1)), 3)
sys.path.insert(0, sys.argv.pop(1))
gc.disable()
import poolctl.worker.__main__
gc.enable()
poolctl.worker.__main__.main()
assert all(met), met
assert gc.isenabled()
"""
    root = str(Path(serving.__path__[0]).parents[2])
    with requests:
        done = subprocess.run(
            [sys.executable, "-P", "-c", look, str(requests.fileno()), root, "zygote"],
            pass_fds=[requests.fileno()], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


MODULE = """
class App(str):
    async def __call__(self, scope, receive, send): ...
class Inner:
    app = App("dotted")
class Outer:
    inner = Inner
app = App("plain")
def make():
    return App("made")
def broken():
    raise ValueError("no settings")
def handlers():
    return {"": App("the shared one"), "users": App("the one for users"), "none": 3}
def wsgi(environ, start_response):
    return []
async def asgi(scope, receive, send): ...
def asgi3(scope, receive, send):
    return asgi(scope, receive, send)
def variadic(*arguments):
    return asgi(*arguments)
async def handler(request): ...
text = "text"
def nobody():
    return None
def no_mapping():
    return None
"""


@pytest.fixture(autouse=True)
def _import_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "load_me.py").write_text(MODULE)
    (tmp_path / "load_me_broken.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "load_me_exits.py").write_text("raise SystemExit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("load_me", "load_me_broken", "load_me_exits"):
        sys.modules.pop(name, None)


def spec(app: str | None = None, **more: Any) -> dict[str, Any]:
    usual = {"factory": False, "handlers": None, "handler_key": "", "interface": "auto", "threads": 10}
    return {"app": app, **usual, **more}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (spec("load_me:app"), "plain"),
        (spec("load_me:Outer.inner.app"), "dotted"),
        (spec("load_me:make", factory=True), "made"),
        (spec(handlers="load_me:handlers"), "the shared one"),
        (spec(handlers="load_me:handlers", handler_key="users"), "the one for users"),
    ],
)
def test_application_is_loaded_from_each_kind_of_path(given: dict[str, Any], found: str) -> None:
    assert load_app(given) == found


def test_wsgi_application_is_served_by_one_of_asgi() -> None:
    found = [
        load_app(each) for each in (spec("load_me:wsgi"), spec("load_me:wsgi", interface="wsgi", threads=3))
    ]
    assert [type(each) for each in found] == [WsgiApp, WsgiApp]
    found = [load_app(spec("load_me:asgi", interface=each)) for each in ("auto", "asgi")]
    assert [each.__name__ for each in found] == ["asgi", "asgi"]


def test_function_that_returns_a_coroutine_is_one_of_asgi_3() -> None:
    assert inspect.iscoroutinefunction(load_app(spec("load_me:asgi3")))
    assert not inspect.iscoroutinefunction(load_app(spec("load_me:variadic")))
    assert inspect.iscoroutinefunction(load_app(spec("load_me:variadic", interface="asgi")))


def test_function_without_arguments_is_called_to_create_the_application() -> None:
    assert load_app(spec("load_me:make")) == "made"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (spec("load_me:wsgi", interface="asgi"), ["load_me:wsgi", "WSGI"]),
        (spec("load_me:asgi", interface="wsgi"), ["load_me:asgi", "ASGI"]),
        (spec("load_me:handler"), ["load_me:handler takes neither the arguments of an ASGI application"]),
        (spec("load_me:nobody"), ["load_me:nobody is no ASGI or WSGI application but None"]),
        (spec("no_such_module_at_all:app"), ["no_such_module_at_all:app", "ModuleNotFoundError"]),
        (spec("load_me_broken:app"), ["load_me_broken:app", "no_such_module_anywhere"]),
        (spec("load_me:nothing"), ["load_me:nothing", "has no attribute 'nothing'"]),
        (spec("load_me:Outer.inner.nothing"), ["load_me:Outer.inner.nothing", "nothing"]),
        (spec("load_me:broken", factory=True), ["load_me:broken()", "ValueError: no settings"]),
        (spec(handlers="load_me:handlers", handler_key="orders"), ["load_me:handlers()", "'orders'"]),
        (spec(handlers="load_me:no_mapping"), ["load_me:no_mapping()"]),
        (spec("load_me:text"), ["load_me:text is no ASGI or WSGI application but 'text'"]),
        (spec("load_me:nobody", factory=True), ["load_me:nobody() is no ASGI or WSGI application but None"]),
        (spec(handlers="load_me:handlers", handler_key="none"), ["load_me:handlers()['none'] is no ASGI"]),
    ],
)
def test_application_that_cannot_be_loaded_is_named_with_the_cause(given: Any, words: list[str]) -> None:
    with pytest.raises(LoadFailed) as caught:
        load_app(given)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("app", "missing"),
    [
        ("no_such_module_at_all:app", "no_such_module_at_all"),
        ("load_me_broken:app", "no_such_module_anywhere"),
        ("load_me:nothing", ""),
    ],
)
def test_module_that_is_missing_is_named(app: str, missing: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        load_app(spec(app))
    assert caught.value.missing == missing


@pytest.mark.parametrize(
    ("name", "hint"), [("ap", "; did you mean 'app'?"), ("zzz", ""), ("_App", "; did you mean 'App'?")]
)
def test_name_that_is_missing_is_reported_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        load_app(spec(f"load_me:{name}"))
    assert str(caught.value) == (
        f"cannot import 'load_me:{name}': module 'load_me' has no attribute {name!r}{hint}"
    )


def test_application_may_be_given_as_an_object() -> None:
    assert load_app({**spec(), "app": plain}) is plain


@pytest.mark.parametrize(
    ("given", "file", "error"),
    [
        (spec("load_me_broken:app"), "load_me_broken.py", "ModuleNotFoundError: No module named"),
        (spec("load_me:broken", factory=True), "load_me.py", "ValueError: no settings"),
    ],
)
def test_cause_is_explained_from_the_users_own_code_on(
    tmp_path: Path, given: Any, file: str, error: str
) -> None:
    with pytest.raises(LoadFailed) as caught:
        load_app(given)
    head, *lines = explain(caught.value).splitlines()
    assert head == "Traceback (most recent call last):"
    assert lines[0].startswith(f'  File "{tmp_path / file}", line ')
    assert lines[-1].startswith(error)
    assert sum(line.startswith("  File ") for line in lines) == 1


def test_failure_without_a_cause_is_explained_by_its_message() -> None:
    assert explain(LoadFailed("no application")) == "no application\n"


@pytest.mark.parametrize(
    ("given", "name"),
    [(spec("load_me:make", factory=True), "make"), (spec(handlers="load_me:handlers"), "handlers")],
)
def test_factory_and_mapping_are_imported_without_a_call(given: Any, name: str) -> None:
    assert import_app(given) is getattr(sys.modules["load_me"], name)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    monkeypatch.setattr(sys, "breakpointhook", sys.breakpointhook)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", ["elsewhere"])


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("app", "name"), [("load_me:app", "load_me:app"), (None, "web")])
def test_application_finds_its_name_and_directory_however_often_they_are_set(
    app: str | None, name: str
) -> None:
    for _ in range(2):
        set_argv_and_path({"app": app, "server": "web", "app_dir": "apps"})
        assert (sys.argv, sys.path) == ([name], ["apps", "elsewhere"])


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("server", "name"), [({"server": "web"}, "web"), ({}, "NAME")])
def test_breakpoint_names_its_place_and_the_command_that_stops_there(
    capsys: pytest.CaptureFixture[str], server: dict[str, str], name: str
) -> None:
    set_argv_and_path({"app": "a:b", "app_dir": "apps", **server})
    breakpoint()
    place = f"{__file__}:{sys._getframe().f_lineno - 1}"
    assert capsys.readouterr().err == (
        f"breakpoint() at {place} does not stop here, without a terminal: poolctl run --debug {name}\n"
    )


@pytest.mark.usefixtures("environment")
def test_breakpoint_that_the_environment_sets_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.breakpointhook
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    set_argv_and_path({"app": "a:b", "app_dir": "apps"})
    assert sys.breakpointhook is before


@pytest.mark.parametrize(
    ("code", "status", "printed"),
    [
        (None, 0, ""), (0, 0, ""), (3, 3, ""), (True, 1, ""), (256, 0, ""), (-1, 255, ""),
        ("no database", 1, "no database\n"),
    ],
)  # fmt: skip
def test_exit_status_is_the_one_that_python_would_give(
    capsys: pytest.CaptureFixture[str], code: object, status: int, printed: str
) -> None:
    assert (exit_status(code), capsys.readouterr().err) == (status, printed)


def test_exit_during_an_import_is_passed_on() -> None:
    with pytest.raises(SystemExit) as caught:
        load_app(spec("load_me_exits:app"))
    assert caught.value.code == 7


called: list[str] = []  # warm_up() ignores what is raised


@pytest.fixture(autouse=True)
def application_is_not_called() -> Iterator[None]:
    called.clear()
    yield
    assert called == []


class Lazy(BaseRoute):
    """Says no, and remembers that it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.paths: list[str] = []
        self.error = error

    def matches(self, scope: Any) -> tuple[Match, Any]:
        self.paths.append(scope["path"])
        if self.error is not None:
            raise self.error
        return Match.NONE, {}


def refuse() -> None:
    called.append("endpoint or dependency")


def test_warm_up_matches_every_route_of_an_application_until_one_fails() -> None:
    one, failing, last = Lazy(), Lazy(ValueError("no")), Lazy()
    warm_up(Starlette(routes=[one, failing, last]))
    assert [len(each.paths) for each in (one, failing, last)] == [1, 1, 0]


def test_warm_up_calls_nothing_of_a_fastapi_application() -> None:
    router = APIRouter(dependencies=[Depends(refuse)])
    router.add_api_route("/items/{number}", refuse)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    warm_up(app)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    called.append("application")


class Odd:
    routes = 7


@pytest.mark.parametrize("app", [plain, None, Odd()])
def test_warm_up_leaves_other_applications_alone(app: Any) -> None:
    warm_up(app)


PACKAGE = Path(poolctl.__file__).parent
# As a zygote does before its first fork; then the application's imports, without poolctl's own directory.
FORGOTTEN = f"""
import sys
import poolctl.worker.zygote
from poolctl.json_form import from_json
from poolctl.routing.route import Route as used
poolctl.worker.imports.hide_poolctl_from_applications()
sys.path[:] = [path for path in sys.path if path != {str(PACKAGE.parent)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


def run(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORGOTTEN + code],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_application_without_poolctl_finds_the_workers_own_classes(tmp_path: Path) -> None:
    code = """
before = set(sys.modules)
from poolctl.gateway.routes import Route, try_get_route, with_route, __all__ as exported
import poolctl.gateway.routes as routes
assert Route is used
assert all(hasattr(routes, name) for name in exported)
route = Route(alias="users", to=(routes.Target(server="users"),))
assert next(iter(routes.RouteTable(routes.write_table([route], 1)))) == route
assert try_get_route(with_route({"type": "http"}, route)) == route
try:
    import poolctl.core
except ImportError:
    print("nothing else")
"""
    assert run(code, tmp_path) == "nothing else\n"


@pytest.mark.slow
def test_worker_reads_routes_and_imports_nothing_before_the_application_asks(tmp_path: Path) -> None:
    code = """
from_json(used, {"alias": "users", "to": [{"server": "users"}], "limit": {"burst": 5}})
print([name for name in sys.modules if name.startswith("poolctl")])
"""
    assert run(code, tmp_path) == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("lacks", [False, True])
def test_poolctl_of_the_application_comes_first(tmp_path: Path, lacks: bool) -> None:
    own = tmp_path / "poolctl"
    (own / "gateway").mkdir(parents=True)
    (own / "__init__.py").write_text("own = True\n")
    (own / "gateway" / "__init__.py").write_text("")
    if not lacks:
        (own / "gateway" / "routes.py").write_text("own = True\n")
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
import poolctl.gateway.routes
print(poolctl.own, hasattr(poolctl.gateway.routes, "own"), hasattr(poolctl.gateway.routes, "Registry"))
"""
    assert run(code, tmp_path) == f"True {not lacks} {lacks}\n"
