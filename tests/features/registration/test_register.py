"""`poolctl register` and `poolctl unregister`: the document of their answers."""

from __future__ import annotations

import pytest
import typer

from tests.commands import parsed
from tests.stand_in import always, item
from tests.unit.cli.conftest import Command, Supervised


@pytest.mark.parametrize("command", ["register a --to http://b:1", "unregister a"])
def test_document_has_the_services(poolctl: Command, supervised: Supervised, command: str) -> None:
    with supervised(always(item("a"), errors=[{"code": 1, "message": "no"}])):
        document = poolctl(*command.split(), "-o", "json").json
    assert list(document) == ["schema", "items", "errors"]
    (found,) = document["items"]
    assert list(found) == ["name", "url", "state", "why", "since", "weight", "ttl_seconds", "probe"]


@pytest.mark.parametrize(("text", "weight"), [("1", 1), ("1000", 1000), ("007", 7)])
def test_weight_is_a_number_from_1_to_1000(text: str, weight: int) -> None:
    assert parsed(["register", "x", "--weight", text]).params["weight"] == weight


@pytest.mark.parametrize("text", ["0", "1001", "-1", "1.5", "ten"])
def test_other_weight_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parsed(["register", "x", f"--weight={text}"])
