"""The examples for a cluster, exported and applied by kubectl alone to real nodes: FastAPI with a worker, a job and
Secrets, a page by node, gunicorn, and Django with uploads. Clients lose nothing in rollouts and drains.

Part of `make test-cluster` alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.deadline import wait_until
from tests.docs.pages import ROOT
from tests.load import Load

from .cluster.api_server import in_older_form
from .cluster.nodes import GATEWAY, GRACE_SECONDS, IMAGE, NEXT_IMAGE, Cluster, cluster, why_not

WHY_NOT = why_not() if "POOLCTL_NODES" in os.environ else "make test-cluster runs tests on nodes"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

NODES = 3  # no pod is on the first, through which the tests reach Services
EXAMPLES = ROOT / "examples"
REQUIREMENTS = ("fastapi", "gunicorn", "django", "a2wsgi")
LOST_AFTER_SECONDS = 5
ROLLOUT_SECONDS = 300
# Other work may use the machine, where every pod of an example starts at once after the loss of a node.
START_SECONDS = 120
# A lost node's servers answer again after this time: the cluster notices, evicts its pods, and starts others.
LOST_SECONDS = GRACE_SECONDS + LOST_AFTER_SECONDS + START_SECONDS
REQUESTS = 300  # at least, of each load
MODES = ("keep_alive", "new_connection")


@dataclass(frozen=True)
class Kind:
    """An example, what its clients ask for, by server, and the same release with programs that do not start."""

    namespace: str
    paths: dict[str, tuple[str, int]]  # the path and the status of its answer
    secrets: dict[str, str]
    broken: str
    use: Callable[[Project], None]


class Project:
    """An example in a namespace of its own."""

    def __init__(self, cluster: Cluster, kind: Kind, directory: Path) -> None:
        self.cluster, self.kind, self.namespace, self._directory = cluster, kind, kind.namespace, directory

    def export(self, image: str = IMAGE, tables: str = "") -> str:
        """Export the pool with more tables; the commands that create its Secrets."""
        (self._directory / "release.toml").write_text(
            f'[kubernetes]\nimage = "{image}"\nnode_lost_after = "{LOST_AFTER_SECONDS}s"\n'
            f'[defaults]\nstart_timeout = "{START_SECONDS}s"\n{tables}'
        )
        files = [word for name in ("pool", "cluster", "release") for word in ("-c", f"{name}.toml")]
        options = ["--directory", "cluster", "--secrets", "reference"]
        done = self.run(sys.executable, "-m", "poolctl", *files, "export", "kubernetes", *options)
        return "\n".join(re.findall("^note: .*: (kubectl .*)$", done.stderr, re.MULTILINE))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = self.cluster.environment | self.kind.secrets
        done = subprocess.run(
            command, cwd=self._directory, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def apply(self) -> str:
        """Apply the overlay with what was exported; what kubectl says of each object."""
        built = self.run("kubectl", "kustomize", "overlays/production").stdout
        objects = [in_older_form(each) for each in yaml.safe_load_all(built)]
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def kubectl(self, *words: str, stdin: str = "") -> str:
        return self.cluster.kubectl("-n", self.namespace, *words, stdin=stdin)

    def roll_out(self, *release: str) -> None:
        self.export(*release)
        self.apply()
        self.wait()

    def wait(self) -> None:
        """Return when every pod is of the newest template, and ready."""
        for name in self.kubectl("get", "deployments", "-o", "name").split():
            self.kubectl("rollout", "status", name, f"--timeout={ROLLOUT_SECONDS}s")

    def pods(self) -> dict[str, Any]:
        """The pods of Deployments that run or are to run, by name."""
        pods = self.cluster.pods(self.namespace)
        return {
            each["metadata"]["name"]: each
            for each in pods
            if each["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"
            and "deletionTimestamp" not in each["metadata"]
        }

    def ask(self, server: str, path: str, data: bytes | None = None, **headers: str) -> str:
        """The text that a server answers by its Service."""
        url = f"http://{self.cluster.service(self.namespace, server)}{path}"
        host = {"Host": server} if "Host" not in headers else {}
        with urlopen(Request(url, data, headers | host), timeout=10) as answer:
            return str(answer.read().decode())

    def answers(self) -> bool:
        """Whether every server answers, again and again."""
        with ExitStack() as stack:
            loads = [
                stack.enter_context(self.load(name, "new_connection", patience=2)) for name in self.kind.paths
            ]
            wait_until(lambda: all(load.look().sent >= 40 for load in loads))
            return not any(load.stop().failed for load in loads)

    def load(self, server: str, mode: str, **options: Any) -> Load:
        """Requests to a server by its Service."""
        path, status = self.kind.paths[server]
        address = self.cluster.service(self.namespace, server)
        return Load(
            [address], mode, path=path, statuses=[status], echo=False, connections=4, pause=0.05, **options
        )

    @contextmanager
    def under_load(self) -> Iterator[None]:
        """Requests to every server during the block, and until there were many; none of them may fail."""
        wait_until(self.answers, timeout_seconds=ROLLOUT_SECONDS)
        with ExitStack() as stack:
            loads = {
                (name, mode): stack.enter_context(self.load(name, mode))
                for name in self.kind.paths
                for mode in MODES
            }
            yield
            wait_until(lambda: all(load.look().complete >= REQUESTS for load in loads.values()))
            reports = {each: load.stop() for each, load in loads.items()}
        print(reports)
        assert {each: (report.failed, report.failures) for each, report in reports.items()} == dict.fromkeys(
            reports, (0, [])
        )


def use_shop(shop: Project) -> None:
    """Order; the worker delivers, which the page by node shows, and gunicorn counts for those with the token."""
    item = f"tea-{time.monotonic_ns()}"
    assert item in shop.ask("web", f"/orders/{item}", b"")
    wait_until(lambda: f"✓ {item}" in shop.ask("front", "/"))
    assert " orders" in shop.ask("admin", "/", Authorization="Bearer secret")


def use_gallery(gallery: Project) -> None:
    """An editor uploads a picture, which both servers show."""
    name = f"{time.monotonic_ns()}.png"
    body = (
        f'--it\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n'
        "Content-Type: image/png\r\n\r\nPNG\r\n--it--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=it"}
    assert name in gallery.ask("editors", "/", body.encode(), **kind)
    assert gallery.ask("gallery", f"/pictures/{name}") == "PNG"


KINDS = {
    "cluster": Kind(
        "shop",
        {"web": ("/orders", 200), "front": ("/", 200), "admin": ("/", 401)},
        {"TOKEN": "secret"},
        '[[server]]\nname = "web"\napp = "shop.nothere:app"\n'
        '[[server]]\nname = "front"\ncommand = ["node", "nothere.js"]\n'
        '[[server]]\nname = "admin"\ncommand = ["gunicorn", "shop.nothere:app"]\n',
        use_shop,
    ),
    "django": Kind(
        "gallery",
        {"gallery": ("/", 200), "editors": ("/", 200)},
        {"SECRET_KEY": "secret", "HOSTS": "gallery,editors,load"},
        '[[server]]\nname = "gallery"\napp = "project.nothere:application"\n'
        '[[server]]\nname = "editors"\napp = "project.nothere:application"\n',
        use_gallery,
    ),
}


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    """A cluster for all tests, of which each node has an image with both examples."""
    app = {
        str(path.relative_to(EXAMPLES / name)): path.read_text()
        for name, package in (("cluster", "shop"), ("django", "project"))
        for path in [*(EXAMPLES / name / package).glob("*.py"), *(EXAMPLES / name).glob("*.js")]
    }
    with cluster(NODES, app, REQUIREMENTS) as found, found.cordoned(GATEWAY):
        yield found


@pytest.fixture(scope="module", params=KINDS)
def project(
    running_cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """An example that runs, with a volume that all nodes reach."""
    directory = tmp_path_factory.mktemp("project") / request.param
    shutil.copytree(EXAMPLES / request.param, directory, ignore=shutil.ignore_patterns("data", ".venv"))
    project = Project(running_cluster, KINDS[request.param], directory)
    volume = directory.parent / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    running_cluster.kubectl("create", "namespace", project.namespace)
    running_cluster.kubectl("apply", "-f", "-", stdin=persistent_volume(project.namespace, volume))
    create_secrets = project.export().replace("--from-env-file=FILE", '--from-literal=TOKEN="$TOKEN"')
    project.run("sh", "-ec", create_secrets)
    project.apply()
    project.wait()
    project.kind.use(project)
    yield project
    running_cluster.kubectl("delete", "namespace", project.namespace, "--wait=false")


def persistent_volume(namespace: str, path: Path) -> str:
    """A directory of this machine, for the first claim of the namespace."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": namespace},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "hostPath": {"path": str(path)},
            },
        }
    )


def test_applied_twice_changes_nothing(project: Project) -> None:
    before = project.pods()
    project.export()
    lines = project.apply().splitlines()
    assert [line for line in lines if not line.endswith(" unchanged")] == []
    project.wait()
    assert project.pods().keys() == before.keys()


def test_rollout_loses_no_request(project: Project) -> None:
    before = project.pods()
    with project.under_load():
        project.roll_out(NEXT_IMAGE)
        project.roll_out(IMAGE)
    assert not project.pods().keys() & before.keys()
    project.kind.use(project)


def test_broken_release_stays_out_and_loses_no_request(project: Project) -> None:
    before = project.pods()

    def states() -> dict[str, Any]:
        """The first container of each new pod of a server with clients."""
        return {
            name: pod["status"].get("containerStatuses", [{}])[0]
            for name, pod in project.pods().items()
            if name not in before and pod["metadata"]["labels"]["poolctl.dev/server"] in project.kind.paths
        }

    with project.under_load():
        project.export(IMAGE, project.kind.broken)
        project.apply()
        wait_until(
            lambda: (
                len(states()) == len(project.kind.paths)
                and all(each.get("restartCount", 0) >= 1 for each in states().values())
            ),
            timeout_seconds=ROLLOUT_SECONDS,
            what=lambda: json.dumps(states()),
        )
        for name, state in states().items():
            assert "nothere" in json.dumps(state), name
        assert before.keys() <= project.pods().keys()
        project.roll_out(IMAGE)
    assert project.pods().keys() == before.keys()


def test_drain_loses_no_request(project: Project) -> None:
    with project.under_load():
        project.cluster.kubectl("drain", "node-2", "--delete-emptydir-data", "--timeout=240s")
        project.wait()
    assert {each["spec"]["nodeName"] for each in project.pods().values()} == {"node-3"}
    project.cluster.kubectl("uncordon", "node-2")
    project.kind.use(project)


def test_servers_of_a_killed_node_answer_elsewhere(project: Project) -> None:
    pods = project.pods().values()
    ((node, _),) = Counter(each["spec"]["nodeName"] for each in pods).most_common(1)
    project.cluster.kill(node)
    began = time.monotonic()
    try:
        wait_until(project.answers, timeout_seconds=LOST_SECONDS)
        print(f"they answer after {time.monotonic() - began:.1f} s, load {os.getloadavg()[0]:.1f}")
        project.kind.use(project)
    finally:
        project.cluster.start(node)
        project.cluster.wait_for_nodes(but_for_taints=True)
