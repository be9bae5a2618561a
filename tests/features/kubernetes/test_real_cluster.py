"""What a real API server accepts: the exported objects of every example's pool, applied twice.

`make test-cluster` builds Kubernetes 1.20.2 once. It has no CronJobs of batch/v1.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deadline import wait_until

from .cluster.api_server import IS_BUILT, ApiServer, in_older_form, running
from .test_documentation import EXAMPLES, export_example, write_pool_and_overlay
from .valid_objects import HTTP_ROUTE

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not IS_BUILT, reason="make test-cluster builds the API server"),
]

GATEWAY_API = "gateway.networking.k8s.io"
# A definition must not have `additionalProperties`: unknown fields are dropped.
ROUTE_SCHEMA = json.loads(
    json.dumps(HTTP_ROUTE),
    object_hook=lambda table: {key: table[key] for key in table if key != "additionalProperties"},
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for all tests; each has a namespace of its own."""
    with running(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


@pytest.mark.parametrize("example", EXAMPLES)
def test_exported_files_are_applied_twice_without_a_second_change(
    example: str, api: ApiServer, poolctl: Any, directory: Path
) -> None:
    objects = export_example(example, poolctl, directory)
    api.make("/api/v1/namespaces", {"metadata": {"name": example}})
    first, second = (
        [api.apply(example, each)["metadata"]["resourceVersion"] for each in objects] for _ in range(2)
    )
    assert first == second


def custom_resource(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The definition of a kind of the Gateway API."""
    names = {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower(), "listKind": f"{kind}List"}
    properties = {"spec": schema, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
    }
    return {
        "metadata": {
            "name": f"{kind.lower()}s.{GATEWAY_API}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {"group": GATEWAY_API, "scope": "Namespaced", "names": names, "versions": [version]},
    }


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl has kustomize")
def test_overlay_of_the_page_with_a_claim_and_the_gateway_api_survives_the_next_export(
    api: ApiServer, poolctl: Any, directory: Path
) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    any_spec = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    for kind, schema in {"HTTPRoute": ROUTE_SCHEMA["properties"]["spec"], "Gateway": any_spec}.items():
        api.make(path, custom_resource(kind, schema))
        wait_until(lambda kind=kind: api.ask("GET", f"/apis/{GATEWAY_API}/v1/{kind.lower()}s")[0] == 200)
    api.make("/api/v1/namespaces", {"metadata": {"name": "shop"}})
    (directory / "kubeconfig").write_text(api.kubeconfig())
    kubectl = ["kubectl", "--kubeconfig", "kubeconfig", "--cache-dir", "kubectl"]
    write_pool_and_overlay(directory)

    def export_and_apply() -> list[str]:
        assert poolctl("export", "kubernetes", "--directory", "cluster").code == 0
        built = run(*kubectl, "kustomize", "overlays/production")
        objects = [in_older_form(each) for each in yaml.safe_load_all(built)]
        return run(*kubectl, "apply", "-f", "-", stdin=yaml.safe_dump_all(objects)).splitlines()

    def run(*command: str, stdin: str = "") -> str:
        done = subprocess.run(command, cwd=directory, input=stdin, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert {line.rpartition(" ")[2] for line in export_and_apply()} == {"created"}
    file = directory / "pool.toml"
    file.write_text(file.read_text().replace('health = "/check"', 'health = "/health"'))
    changed = {line.split()[0] for line in export_and_apply() if not line.endswith(" unchanged")}
    assert {re.sub("-[0-9a-f]{10}$", "", name) for name in changed} == {
        "configmap/shop-web",
        "deployment.apps/shop-web",
    }
    get = [*kubectl, "-n", "shop", "get", "-o", "json"]
    pod = json.loads(run(*get, "deployment", "shop-web"))["spec"]["template"]["spec"]
    assert [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "uploads"]
    route = json.loads(run(*get, "httproute", "shop-web"))["spec"]
    assert route["parentRefs"][0]["name"] == "edge"
    assert route["rules"][0]["timeouts"] == {"backendRequest": "10s"}
