"""Which variables programs are not given."""

from __future__ import annotations

import os

import pytest

from poolctl.runners.withheld_variables import (
    environment_for_programs,
    withheld_values,
    withheld_variables,
    withhold_variables,
)


def test_variables_of_the_pool_itself_are_withheld_from_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("PASSWORD", "other secret")
    monkeypatch.delenv("UNSET", raising=False)
    try:
        withhold_variables(["TOKEN", "UNSET"], only=True)
        assert (withheld_variables(), withheld_values()) == (["TOKEN"], ["secret"])
        assert environment_for_programs({"TOKEN": "a", "UNSET": "b", "HOME": "/"}) == {"HOME": "/"}
        rest = dict(os.environ)
        del rest["TOKEN"]
        assert environment_for_programs() == rest
        withhold_variables(["PASSWORD"])
        assert withheld_variables() == ["PASSWORD", "TOKEN"]
        withhold_variables(["PASSWORD"], only=True)
        assert withheld_variables() == ["PASSWORD"]
    finally:
        withhold_variables((), only=True)
