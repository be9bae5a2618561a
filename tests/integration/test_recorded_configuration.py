"""What a supervisor that speaks protocol 1 gives its successor, as it was recorded: also where there is no history."""

from __future__ import annotations

from pathlib import Path

from poolctl.config import load
from poolctl.supervisor.takeover import portable_pickle
from poolctl.supervisor.takeover.state_store import StoredConfiguration

RECORDINGS = Path(__file__).parents[1] / "recordings"
FILE = "/srv/shop/pool.toml"


def test_configuration_in_force_of_the_oldest_version_is_understood_as_its_file_is_now() -> None:
    stored: StoredConfiguration = portable_pickle.loads((RECORDINGS / "protocol-1.pickle").read_bytes())
    config = load(FILE, {}, {FILE: (RECORDINGS / "protocol-1.toml").read_text()})
    assert config.problems == []
    assert [each.to_dict() for each in stored.servers] == [each.to_dict() for each in config]
    assert stored.tables == config.tables
    assert (stored.name, stored.port_range) == ("shop", (9000, 9100))
    assert {name: each.to_dict() for name, each in stored.placed.items()} == {"api.1.0": config[0].to_dict()}
    assert (stored.missing, stored.environment) == (["gone"], {"HOME": "/srv"})
    assert stored.environments == {"api": {"DEBUG": "1"}}
    assert stored.surroundings.defaults == config.defaults
