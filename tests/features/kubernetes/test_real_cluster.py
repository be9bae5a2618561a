"""What a real API server accepts: the exported objects of every example's pool, applied twice.

`make test-cluster` builds Kubernetes 1.20.2 once. It has neither CronJobs of batch/v1 nor HTTPRoutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import ROOT

from .cluster.api_server import IS_BUILT, ApiServer, running

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not IS_BUILT, reason="make test-cluster builds the API server"),
]

SETTINGS = (
    '[kubernetes]\nimage = "registry.example.com/shop:1.4"\n'
    'node_lost_after = "5s"\nrequests = { cpu = "100m", memory = "128M" }\ningress_class = "nginx"\n'
)
# What no cluster has of an example.
CHANGES = {
    "background-work": '[[server]]\nname = "worker"\nnotify = false\n',
    "gateway": '[[server]]\nname = "chat"\nscale = { min = 1, max = 1 }\n',
    "http-and-https": '[[server]]\nname = "https"\ntls = false\n',
}
WITHOUT_ROUTES = {"gateway"}  # one of its routes leads out of the cluster
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/pool.toml"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for all tests; each has a namespace of its own."""
    with running(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


@pytest.mark.parametrize("example", EXAMPLES)
def test_exported_files_are_applied_twice_without_a_second_change(
    example: str, api: ApiServer, poolctl: Any, directory: Path
) -> None:
    more = directory / "kubernetes.toml"
    settings = SETTINGS.replace("ingress_class", "# ") if example in WITHOUT_ROUTES else SETTINGS
    more.write_text(settings + CHANGES.get(example, ""))
    files = ["-c", str(ROOT / "examples" / example / "pool.toml"), "-c", str(more)]
    done = poolctl(*files, "export", "kubernetes", "-o", "json")
    assert done.code == 0, done.err
    objects = [each for item in done.json["items"] for each in yaml.safe_load_all(item["text"])]
    api.make("/api/v1/namespaces", {"metadata": {"name": example}})
    first, second = (
        [api.apply(example, each)["metadata"]["resourceVersion"] for each in objects] for _ in range(2)
    )
    assert first == second
