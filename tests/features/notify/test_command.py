"""`poolctl notify test` without a supervisor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poolctl.cli.main import main
from tests.config_files import SERVER

RECEIVER = '[[notify]]\ntype = "command"\nname = "{0}"\ncommand = ["{0}"]\n'


def test_each_receiver_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("POOLCTL_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.toml").write_text(SERVER + RECEIVER.format("true") + RECEIVER.format("false"))
    assert main(["notify", "test", "-o", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "receivers", "items", "errors"]
    assert [list(each) for each in document["receivers"]] == [["name", "ok", "message"]] * 2
    assert [each["ok"] for each in document["receivers"]] == [True, False]
    assert document["errors"][0]["message"].startswith("false: ")
    assert main(["notify"]) == 2
    assert main(["notify", "test", "other"]) == 4
    assert "receivers: true, false" in capsys.readouterr().err
