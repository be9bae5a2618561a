"""An application is found as it was written, or the error says what could not be had and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from poolctl.worker.load_app import LoadFailed, load_app

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
text = "text"
def nobody():
    return None
def no_mapping():
    return None
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "load_me.py").write_text(MODULE)
    (tmp_path / "load_me_broken.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "load_me_exits.py").write_text("raise SystemExit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("load_me", "load_me_broken", "load_me_exits"):
        sys.modules.pop(name, None)


def spec(app: str | None = None, **more: Any) -> dict[str, Any]:
    return {"app": app, "factory": False, "handlers": None, "handler_key": "", **more}


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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (spec("no_such_module_at_all:app"), ["no_such_module_at_all:app", "ModuleNotFoundError"]),
        (spec("load_me_broken:app"), ["load_me_broken:app", "no_such_module_anywhere"]),
        (spec("load_me:nothing"), ["load_me:nothing", "has no attribute 'nothing'"]),
        (spec("load_me:Outer.inner.nothing"), ["load_me:Outer.inner.nothing", "nothing"]),
        (spec("load_me:broken", factory=True), ["load_me:broken()", "ValueError: no settings"]),
        (spec(handlers="load_me:handlers", handler_key="orders"), ["load_me:handlers()", "'orders'"]),
        (spec(handlers="load_me:no_mapping"), ["load_me:no_mapping()"]),
        (spec("load_me:text"), ["load_me:text is no ASGI application but 'text'"]),
        (spec("load_me:nobody", factory=True), ["load_me:nobody() is no ASGI application but None"]),
        (spec(handlers="load_me:handlers", handler_key="none"), ["load_me:handlers()['none'] is no ASGI"]),
    ],
)
def test_application_that_cannot_be_loaded_is_named_with_the_cause(given: Any, words: list[str]) -> None:
    with pytest.raises(LoadFailed) as caught:
        load_app(given)
    assert [word for word in words if word not in str(caught.value)] == []


def test_exit_during_an_import_is_passed_on() -> None:
    with pytest.raises(SystemExit) as caught:
        load_app(spec("load_me_exits:app"))
    assert caught.value.code == 7
