"""What `doctor` looks at: every address of a pool, those of its tables included."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.config import load
from poolctl.feature import FEATURES
from poolctl.features.doctor._check import CheckContext


@pytest.mark.skipif("gateway" not in FEATURES, reason="there is no gateway")
def test_addresses_of_the_gateway_are_checked_like_those_of_servers(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[gateway]\nbind = [":80", "unix:edge.sock"]\n[[stream]]\nbind = ":5432"\nto = "10.0.0.5:1"\n'
        '[[stream]]\nalias = "dns"\nbind = ":53"\nto = "10.0.0.5:53"\nprotocol = "udp"\n[metrics]\n'
    )
    context = CheckContext(None, {})
    context.config = load(tmp_path / "pool.toml", {})
    assert context.config.problems == []
    assert {name: address.key for name, address in context.addresses.items()} == {
        "[metrics]": "127.0.0.1:9464",
        "[gateway]": "0.0.0.0:80",
        f"[gateway] unix:{tmp_path}/edge.sock": f"unix:{tmp_path}/edge.sock",
        "[[stream]] 10.0.0.5:1": "0.0.0.0:5432",
    }
