"""What docs/operator.md says is what the configuration, the client and the endpoint have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from poolctl.features.operator.site import ANSWER, read_report
from poolctl.features.operator.table import OperatorTable
from poolctl.gateway.operator import OperatorSettings
from tests.config_files import load_text

TEXT = (Path(__file__).parents[3] / "docs" / "operator.md").read_text()


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL))
def test_examples_are_valid(tmp_path: Path, example: str) -> None:
    assert load_text(tmp_path, example).problems == []


def test_client_and_table_have_the_same_endpoint() -> None:
    assert OperatorSettings(url="").endpoint == OperatorTable().endpoint


def test_reports_in_it_are_such() -> None:
    reports = re.findall(r"`(\{\"count\".*?\})`|--data '(.*?)'", TEXT)
    assert [read_report("".join(each).encode()).service for each in reports] == ["users", "users"]
    assert json.dumps({"message": ANSWER}) in TEXT
