"""`poolctl dashboard` with a stand-in for the supervisor."""

from __future__ import annotations

import re

from tests.stand_in import always
from tests.unit.cli.conftest import Command, Supervised


def test_document_has_the_link_and_the_token(poolctl: Command, supervised: Supervised) -> None:
    error = {"code": 1, "message": "no"}
    with supervised(always(errors=[error], dashboard={"url": "http://a", "token": "t"})):
        document = poolctl("dashboard", "-o", "json").json
    assert list(document) == ["schema", "dashboard", "items", "errors"]
    assert document["dashboard"] == {"url": "http://a", "token": "t"}


def test_link_of_a_web_address_has_a_code_and_the_token_of_a_socket_is_printed_beside_it(
    poolctl: Command, supervised: Supervised
) -> None:
    with supervised(always(dashboard={"url": "http://a/", "token": "t/1"})):
        first, second = (poolctl("dashboard").out for _ in range(2))
    for link in (first, second):
        address, _, code = link.strip().partition("#token=")
        assert address == "http://a/"
        assert re.fullmatch(r"[\w-]+\.\d+\.[\w-]{43}", code)
    assert first != second
    with supervised(always(dashboard={"url": "unix:/run/a.sock", "token": "t"})):
        assert poolctl("dashboard").out == "unix:/run/a.sock\ntoken: t\n"
