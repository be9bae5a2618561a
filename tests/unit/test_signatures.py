"""What help(), inspect.signature() and type checkers say of values that are made of keywords."""

from __future__ import annotations

import inspect
import pydoc
from typing import get_args, get_type_hints

import pytest

from poolctl import ServerConfig, TLSConfig
from poolctl.control.answers import PlannedChange, ReloadResult
from poolctl.control.pool_client import Change, ReloadDocument
from poolctl.core.configuration_diff import Kind
from poolctl.gateway.routes import Route
from poolctl.json_form import field_names


@pytest.mark.parametrize(
    ("kind", "required", "some"),
    [
        (ServerConfig, {"name"}, {"bind", "app", "command", "scale", "health"}),
        (TLSConfig, {"cert"}, {"key", "client_auth"}),
        (Route, {"alias"}, {"host", "path", "to", "policy"}),
    ],
)  # fmt: skip
def test_fields_are_in_the_signature(kind: type, required: set[str], some: set[str]) -> None:
    parameters = inspect.signature(kind).parameters
    assert {name for name, each in parameters.items() if each.default is each.empty} == required
    assert some <= parameters.keys()
    assert all(each.kind is each.KEYWORD_ONLY for each in parameters.values())


def test_values_that_only_the_pool_sets_are_not_in_it() -> None:
    assert "address" not in inspect.signature(ServerConfig).parameters


def test_help_shows_fields_and_their_defaults() -> None:
    text = pydoc.plain(pydoc.render_doc(ServerConfig))
    # Pythons differ in quotes and lines.
    words = " ".join(text.replace("'", "").replace("|", "").split())
    assert "*, name: " in words
    assert "factory: " in words


def test_type_of_a_reload_is_what_a_reload_returns() -> None:
    assert Change.__annotations__.keys() == {*field_names(PlannedChange)}
    assert set(get_args(get_type_hints(Change)["change"])) == {each.value for each in Kind}
    assert ReloadDocument.__annotations__.keys() <= {*field_names(ReloadResult)}
