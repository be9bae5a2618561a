"""The list of features, and which of them a process imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from poolctl.feature import features

LIST = """
import sys
from poolctl.cli.main import main
main(["list"])
print(*(name for name in sys.modules if name.startswith("poolctl.features.") and name.count(".") > 2))
"""


def test_list_imports_no_part_of_a_feature_but_keys_of_servers(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[[server]]\nname = "web"\nbind = ":8080"\ncommand = ["true"]\n')
    done = subprocess.run(
        [sys.executable, "-c", LIST], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    keys = [
        f"{each.package}.{part.partition(':')[0]}" for each in features() for part in each.sections.values()
    ]
    assert done.stdout.splitlines()[-1].split() == keys


def test_every_reference_leads_to_a_part() -> None:
    for feature in features():
        parts = (feature.tables, feature.sections, feature.exports)
        for reference in (*(each for part in parts for each in part.values()), feature.supervisor):
            assert not reference or feature.load(reference) is not None
        for name, reference in feature.tables.items():
            assert feature.load(reference).table_name == name
        for command in feature.commands.values():
            assert isinstance(feature.load(command.module).app, typer.Typer)
