"""What docs/metrics.md says is what a pool tells."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.certificates import certificate
from tests.http_get import get
from tests.real_pool import HELLO_APP, RealPool

GATEWAY = """
[gateway]
bind = "127.0.0.1:{port}"
[[route]]
to = "users"
[[stream]]
bind = "127.0.0.1:{stream}"
to = "users"
[operator]
url = "http://127.0.0.1:1"
"""

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "metrics.md").read_text()


def test_every_metric_is_described_and_every_one_described_is_there(
    real_pool: RealPool, free_port: Callable[[], int], until: Any
) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    for port in ("9464", "8081"):
        example = example.replace(port, str(free_port()))
    probed = 'app  = "users:app"\nhealth = { liveness = { http = "/", interval = "100ms" } }'
    probed += '\ntls = { cert = "localhost.pem", key = "localhost.key" }'
    certificate(real_pool.directory)
    real_pool.write("users.py", HELLO_APP)
    port = free_port()
    example += GATEWAY.format(port=port, stream=free_port())
    real_pool.write("pool.toml", example.replace('app  = "users:app"', probed))
    real_pool.ok("start")
    real_pool.ok("wait", "--for", "healthy")
    assert get(port).status == 200
    page = runpy.run_path(str(ROOT / "docs/site/metrics.py"))["metrics"]()
    described = set(re.findall(r"^\| `(\w+)` \| [a-z]+ \| \S", page, re.MULTILINE))

    def read() -> list[Metric]:
        return list(text_string_to_metric_families(real_pool.ok("metrics").stdout))

    def counted() -> bool:
        """Whether the gateway has counted the request: that follows the response."""
        samples = {sample.name: sample.value for family in read() for sample in family.samples}
        return samples["poolctl_route_requests_total"] == samples["poolctl_host_requests_total"] == 1

    until(counted)
    found = {
        family.name.removeprefix("poolctl_") + ("_total" if family.type == "counter" else "")
        for family in read()
    }
    assert found ^ described == set(), "docs/site/metrics.py reads names, types and helps that are literals"
