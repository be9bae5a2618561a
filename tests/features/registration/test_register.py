"""`poolctl register` and `poolctl unregister`: the document of their answers."""

from __future__ import annotations

import pytest

from tests.stand_in import always, item
from tests.unit.cli.conftest import Command, Supervised


@pytest.mark.parametrize("command", ["register a --to http://b:1", "unregister a"])
def test_document_has_the_services(poolctl: Command, supervised: Supervised, command: str) -> None:
    with supervised(always(item("a"), errors=[{"code": 1, "message": "no"}])):
        document = poolctl(*command.split(), "-o", "json").json
    assert list(document) == ["schema", "items", "errors"]
    (found,) = document["items"]
    assert list(found) == ["name", "url", "state", "why", "since", "weight", "ttl_seconds", "probe"]
