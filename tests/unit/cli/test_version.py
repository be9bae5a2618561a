"""`poolctl version`: the versions of the command and of the supervisor."""

from __future__ import annotations

from tests.stand_in import always

from .conftest import Command, Supervised


def test_the_version_is_the_installed_one(poolctl: Command, supervised: Supervised) -> None:
    short = poolctl("version")
    assert short == poolctl("--version")
    assert short.out.startswith("poolctl ")
    assert short.out.count("\n") == 1
    with supervised(always(version="9.9")):
        assert "supervisor 9.9" in poolctl("version", "--verbose").out
        assert poolctl("version", "-o", "json").json["supervisor"] == "9.9"
    assert poolctl("version", "-o", "json").json["supervisor"] == ""
