"""`poolctl validate`: the number of servers, or every problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.feature import FEATURES

from .conftest import Command


def test_validate_prints_the_number_of_servers_or_the_problems(poolctl: Command, directory: Path) -> None:
    assert poolctl("validate").out == "2 servers, ok\n"
    (directory / "pool.toml").write_text('[[server]]\nname = "a"\nbinf = "x"\n')
    said = poolctl("validate")
    assert said.code == 5
    assert "pool.toml:3:1: " in said.out
    (directory / "pool.toml").write_text("broken [")
    unreadable = poolctl("validate")
    assert (unreadable.code, unreadable.err) == (5, "")
    assert unreadable.out.startswith("pool.toml:1:")


ROUTES = '[gateway]\n[[route]]\nalias = "a"\npath = "/a"\nto = "http://127.0.0.1:9"\n'


@pytest.mark.skipif("gateway" not in FEATURES, reason="there are no routes")
@pytest.mark.usefixtures("installed_haproxy")
def test_pool_of_routes_alone_is_valid(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(ROUTES)
    assert poolctl("validate").out == "no server, 1 route, ok\n"
    (directory / "pool.toml").write_text(
        ROUTES + ROUTES.partition("\n")[2].replace("/a", "/b").replace('"a"', '"b"')
    )
    assert poolctl("validate").out == "no server, 2 routes, ok\n"


def test_variables_that_servers_do_not_get_are_noted(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "x")
    from tests.certificates import certificate

    cert, key = certificate(directory)
    (directory / "pool.toml").write_text(
        f'[[server]]\nname = "a"\nbind = ":1"\ncommand = ["sleep", "1"]\n'
        f'[[server]]\nname = "b"\nbind = ":2"\napp = "json:loads"\n'
        f'tls = {{ cert = "{cert}", key = "{key}", password_env = "KEY" }}\n'
    )
    said = poolctl("validate")
    assert (said.code, said.out) == (0, "2 servers, ok (applications not imported: --import)\n")
    assert said.err == (
        "note: not passed to servers: KEY (used by the pool itself); "
        'env = { KEY = "${KEY}" } passes it to a server\n'
    )
    assert poolctl("validate", "--import").out == "2 servers, ok\n"


def test_import_reports_apps_that_cannot_be_imported(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text('[[server]]\nname = "b"\nbind = ":2"\napp = "no_such_module:app"\n')
    assert poolctl("validate").code == 0
    said = poolctl("validate", "--import")
    assert (said.code, "no module 'no_such_module'" in said.out, said.err) == (5, True, "")


def test_servers_are_items_where_a_form_is_asked_for(poolctl: Command, directory: Path) -> None:
    document = poolctl("validate", "-o", "json").json
    assert [each["name"] for each in document["items"]] == ["users", "orders"]
    assert poolctl("validate", "-o", "name").out == "users\norders\n"
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("validate", "-o", "json").json["errors"][0]["code"] == 1322
