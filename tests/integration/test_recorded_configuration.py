"""What supervisors give their successors, as it was recorded for each form: also where there is no history."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.config import load
from poolctl.config.files.read_file import Mark
from poolctl.supervisor.takeover.state_store import decoded, encoded

RECORDINGS = Path(__file__).parents[1] / "recordings"
FILE = "/srv/shop/pool.toml"


@pytest.mark.parametrize(
    ("recording", "file"),
    [
        ("protocol-1.pickle", "protocol-1.toml"),
        ("protocol-2.pickle", "protocol-2.toml"),
        ("protocol-2-same-version.pickle", "protocol-2.toml"),  # of a killed supervisor
        ("configuration-1.json", "protocol-2.toml"),
    ],
)
def test_configuration_in_force_of_an_earlier_version_is_understood_as_its_file_is_now(
    recording: str, file: str
) -> None:
    config = load(FILE, {"PRELOAD": "true"}, {FILE: (RECORDINGS / file).read_text()})
    assert config.problems == []
    recorded = decoded((RECORDINGS / recording).read_bytes(), validate=True)
    for stored in (recorded, decoded(encoded(recorded))):
        for before, after in zip(config, stored.servers, strict=True):
            assert vars(after) == vars(before) | {"origins": None}
            assert after.as_given() == before.as_given()
        assert stored.tables == config.tables
        assert (stored.name, stored.port_range) == ("shop", (9000, 9100))
        assert {name: each.to_dict() for name, each in stored.placed.items()} == {
            "api.1.0": config[0].to_dict()
        }
        assert (stored.missing, stored.environment) == (["gone"], {"HOME": "/srv"})
        assert stored.environments == {"api": {"DEBUG": "1"}}
        assert stored.surroundings.base_dir == "/srv/shop"
    assert recorded.marks == (None if file == "protocol-1.toml" else {FILE: Mark((1, 2, 3, 4), "ab")})


@pytest.mark.parametrize("recording", ["protocol-1", "protocol-2", "protocol-2-same-version"])
def test_pickled_classes_are_found_although_their_modules_have_moved(recording: str) -> None:
    content = (RECORDINGS / f"{recording}.pickle").read_bytes()
    moved = content.replace(b"poolctl.config.", b"poolctl.gnocif.").replace(b".takeover.", b".revoekat.")
    assert moved != content
    assert decoded(moved) == decoded(content)
