"""`poolctl schema`: the JSON Schema of the files."""

from __future__ import annotations

import json

from .conftest import Command


def test_the_schema_stands_for_itself(poolctl: Command) -> None:
    assert "$schema" in json.loads(poolctl("schema").out)
