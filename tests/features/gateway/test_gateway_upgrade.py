"""Another version or build of poolctl: its gateway serves before the old one drains, and no request fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.control.answers import UpgradeResult
from poolctl.control.client import Client, upgrade_options
from tests.features.gateway.conftest import PROXIED, GatewayPool
from tests.integration.processes.test_upgrade import by, newer
from tests.load.load import Load

pytestmark = [pytest.mark.slow, pytest.mark.integration]

__all__ = ["newer"]


def test_upgrade_replaces_the_gateway_and_fails_no_request(gateway: GatewayPool, newer: Path) -> None:
    root = Path(__file__).parents[3]
    gateway.start(extra=f'app_dir = "{root}"')
    pid = gateway.until(gateway.process)
    paths = ["/one", "/two"]
    with Load([gateway.port], paths=paths, connections=4, pause=0.01) as kept, Load(
        [gateway.port], "new_connection", paths=paths, connections=4, pause=0.01
    ) as short:  # fmt: skip
        done = by(newer, gateway.pool, "upgrade")
        assert done.code == 0, done
        gateway.until(lambda: gateway.process() not in (None, pid))
        before = short.look().complete
        gateway.until(lambda: short.look().complete > before + 20)
    assert (kept.report.failed, short.report.failed) == (0, 0), (kept.report, short.report)


@pytest.mark.heavy
def test_upgrade_to_another_build_of_the_same_version_replaces_the_gateway(gateway: GatewayPool) -> None:
    gateway.start(PROXIED)
    pid = gateway.until(gateway.process)
    (path,) = [each for each in gateway.pool.runtime.glob("*/control.sock") if not each.parent.is_symlink()]
    with Load([gateway.port], paths=["/one", "/two"], connections=4, pause=0.002) as kept:
        # As `upgrade --allow-same-version` does, without the trial.
        options = {"options": {**upgrade_options(), "tried": True}}
        assert not Client(str(path)).ask(UpgradeResult, "upgrade", options).errors
        gateway.until(lambda: gateway.process() not in (None, pid))
        before = kept.look().complete
        gateway.until(lambda: kept.look().complete > before + 20)
    assert kept.report.failed == 0, kept.report
