"""What a real API server accepts: every pool of the examples, applied twice, with no more than the documented Role.

`make test-cluster` builds Kubernetes 1.20.2 once. It has neither CronJobs of batch/v1 nor HTTPRoutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.configuration import server
from tests.docs.pages import ROOT, blocks

from .cluster.api_server import IS_BUILT, ApiServer, base, running

pytest.importorskip("lightkube")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not IS_BUILT, reason="make test-cluster builds the API server"),
]

PLURALS = {
    "ConfigMap": "configmaps", "Secret": "secrets", "Service": "services", "Deployment": "deployments", "Job": "jobs",
    "Ingress": "ingresses",
}  # fmt: skip
SETTINGS = (
    '[pool]\nplatform = "kubernetes"\n[kubernetes]\nimage = "registry.example.com/shop:1.4"\n'
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
_LONGEST_SECONDS = 120
Object = dict[str, Any]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for all tests; each has a namespace of its own."""
    with running(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


def role() -> Object:
    """The Role of the documentation."""
    page = ROOT / "docs" / "kubernetes.md"
    (text,) = (each.text for each in blocks(page) if each.text.startswith("apiVersion: rbac"))
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def versions(api: ApiServer, namespace: str) -> dict[tuple[str, str], str]:
    """The version of each object of poolctl in the namespace."""
    found = {}
    for place in ("v1", "apps/v1", "batch/v1", "networking.k8s.io/v1"):
        _, resources = api.ask("GET", base(place))
        for plural in {each["name"] for each in resources["resources"]} & set(PLURALS.values()):
            _, listed = api.ask(
                "GET", f"{base(place)}/namespaces/{namespace}/{plural}?labelSelector=poolctl.dev/pool"
            )
            for each in listed["items"]:
                found[plural, each["metadata"]["name"]] = each["metadata"]["resourceVersion"]
    return found


class Said(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def poolctl(directory: Path) -> Callable[..., Said]:
    """`poolctl(*words)` as a process of its own: its end closes what a cancelled TLS handshake has left open."""

    def run(*words: str) -> Said:
        command = [sys.executable, "-m", "poolctl", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_LONGEST_SECONDS, env=environment
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def files(directory: Path) -> Any:
    """`files(example)`: the options for the files of an example on a cluster."""

    def given(example: str) -> list[str]:
        more = directory / "kubernetes.toml"
        settings = SETTINGS.replace("ingress_class", "# ") if example in WITHOUT_ROUTES else SETTINGS
        more.write_text(settings + CHANGES.get(example, ""))
        return ["-c", str(ROOT / "examples" / example / "pool.toml"), "-c", str(more)]

    return given


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_is_started_twice_without_a_second_change(
    example: str, api: ApiServer, files: Any, poolctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api.namespace(example, role())))
    options = files(example)
    done = poolctl(*options, "start", "--no-wait")
    assert done.code == 0, done.err
    before = versions(api, example)
    assert {kind for kind, _ in before} >= {"deployments", "configmaps"}
    done = poolctl(*options, "reload", "--dry-run")
    assert done.code == 0, done.out + done.err
    done = poolctl(*options, "start", "--no-wait")
    assert done.code == 0, done.err
    assert versions(api, example) == before
    assert poolctl(*options, "list", "-o", "json").code == 0
    done = poolctl(*options, "stop", "--no-wait")
    assert done.code == 0, done.err


@pytest.mark.parametrize("example", EXAMPLES)
def test_exported_files_are_applied_twice_without_a_second_change(
    example: str, api: ApiServer, files: Any, poolctl: Any
) -> None:
    namespace = f"files-{example}"
    api.make("/api/v1/namespaces", {"metadata": {"name": namespace}})
    done = poolctl(*files(example), "export", "kubernetes", "-o", "json")
    assert done.code == 0, done.err
    objects = [each for item in json.loads(done.out)["items"] for each in yaml.safe_load_all(item["text"])]
    first, second = (
        [api.apply(namespace, each, PLURALS[each["kind"]])["metadata"]["resourceVersion"] for each in objects]
        for _ in range(2)
    )
    assert first == second


POOL = '[pool]\nname = "shop"\nplatform = "kubernetes"\n[kubernetes]\nimage = "shop:1"\n'


@pytest.fixture
def start(directory: Path, api: ApiServer, poolctl: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`start(namespace, *tables, pool=POOL, verb="start")`: what the command says about a pool with these tables."""
    known: set[str] = set()

    def started(namespace: str, *tables: str, pool: str = POOL, verb: tuple[str, ...] = ("start",)) -> Any:
        if namespace not in known:
            known.add(namespace)
            monkeypatch.setenv("KUBECONFIG", str(api.namespace(namespace, role())))
        (directory / "pool.toml").write_text("\n".join((pool, *tables)))
        return poolctl(*verb, "--no-wait")

    return started


def web(**keys: Any) -> str:
    return server("web", bind=":8000", app="web:app", **keys)


def test_routes_are_ingresses_that_follow_the_file(api: ApiServer, start: Any) -> None:
    path = "/apis/networking.k8s.io/v1/namespaces/routes/ingresses"
    routed = POOL + 'ingress_class = "nginx"\n'
    route = '[[route]]\nhost = "*.example.com"\npath = "/v1"\nto = "web"\n'
    assert start("routes", web(), route, pool=routed).code == 0
    assert versions(api, "routes").keys() >= {("ingresses", "shop-web")}
    assert start("routes", web(), route, pool=routed, verb=("reload", "--dry-run")).code == 0
    changed = route.replace("/v1", "/v2")
    assert start("routes", web(), changed, pool=routed, verb=("reload",)).code == 0
    _, found = api.ask("GET", f"{path}/shop-web")
    assert found["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/v2"
    assert start("routes", web(), verb=("reload",)).code == 0
    assert api.ask("GET", path)[1]["items"] == []


def test_http_routes_need_the_gateway_api(start: Any) -> None:
    done = start("gateway-api", web(), '[[route]]\nto = "web"\n', pool=POOL + 'gateway = "edge"\n')
    assert (done.code, "install the Gateway API" in done.err) == (1, True), done.err


def test_schedule_needs_cron_jobs_of_batch_v1(start: Any) -> None:
    done = start("schedules", server("backup", command=["backup"], job=True, every="0 3 * * *"))
    assert (done.code, "cannot list cronjobs" in done.err) == (1, True), done.err


def test_missing_namespace_is_named_with_the_command_that_makes_it(
    api: ApiServer, start: Any, poolctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start("there", web()).code == 0
    config = json.loads((api.directory / "kubeconfig-there-operator").read_text())
    config["users"][0]["user"]["token"] = "admin"
    config["contexts"][0]["context"]["namespace"] = "missing"
    (api.directory / "kubeconfig-missing").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(api.directory / "kubeconfig-missing"))
    done = poolctl("start", "--no-wait")
    assert (done.code, "kubectl create namespace missing" in done.err) == (1, True), done.err


def test_fields_of_another_manager_are_named_and_live_workers_stay(
    api: ApiServer, start: Any, poolctl: Any
) -> None:
    path = "/apis/apps/v1/namespaces/fields/deployments/shop-web"
    assert start("fields", web(workers=2)).code == 0
    merge = "application/merge-patch+json"
    theirs = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}}
    assert api.ask("PATCH", f"{path}?fieldManager=argocd", theirs, merge)[0] == 200
    done = start("fields", web(workers=2, env={"WORD": "two"}), verb=("reload",))
    assert (done.code, 'conflict with "argocd"' in done.err) == (8, True), done.err
    done = start("fields", web(workers=2, env={"WORD": "two"}), verb=("reload", "--force"))
    assert done.code == 0, done.err
    assert api.ask("PATCH", f"{path}?fieldManager=kubectl", {"spec": {"replicas": 5}}, merge)[0] == 200
    done = start("fields", web(workers=2, env={"WORD": "three"}), verb=("reload",))
    assert done.code == 0, done.err
    assert api.ask("GET", path)[1]["spec"]["replicas"] == 5
    assert poolctl("stop", "--no-wait").code == 0
    assert api.ask("GET", path)[1]["spec"]["replicas"] == 0
    assert start("fields", web(workers=2, env={"WORD": "three"})).code == 0
    assert api.ask("GET", path)[1]["spec"]["replicas"] == 2
