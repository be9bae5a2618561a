"""The exported objects of a pool on a real cluster with nodes: pods are containers, and Services forward to them.

Part of `make test-cluster` alone, which builds Kubernetes 1.20.2 once. It needs root, and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.load import Load, apps

from .cluster.nodes import GATEWAY, GRACE_SECONDS, IMAGE, Cluster, cluster, why_not

WHY_NOT = why_not() if "POOLCTL_NODES" in os.environ else "make test-cluster runs tests on nodes"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

NODES = 4
LOST_AFTER_SECONDS = 5
# What is measured is printed. Limits are wider by this: other work may use the machine.
BUSY_SECONDS = 30
ROLLOUT_SECONDS = 120
POOL = f'[pool]\nname = "shop"\n[kubernetes]\nimage = "{IMAGE}"\nnode_lost_after = "{LOST_AFTER_SECONDS}s"\n'
# Answers with a word of its environment.
APP = """\
import os
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": os.environ.get("WORD", "none").encode()})
    else:
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
"""
REQUESTS = 10_000
MODES: dict[str, dict[str, Any]] = {
    "keep_alive": {"connections": 8, "pause": 0.01},
    "new_connection": {"connections": 4, "pause": 0.01},
    "websocket": {"connections": 4},
    "sse": {"connections": 4},
}


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    """A cluster for all tests; each has a namespace of its own."""
    with cluster(NODES, {"shop.py": APP, "loaded.py": Path(apps.__file__).read_text()}) as found:
        yield found


class Shop:
    """A namespace of the cluster with a pool, as a test changes it."""

    def __init__(self, cluster: Cluster, namespace: str, poolctl: Any, file: Path) -> None:
        self.cluster, self.namespace = cluster, namespace
        self._poolctl, self._file = poolctl, file

    def apply(self, *tables: str, pool: str = POOL) -> None:
        """Export the pool with these tables, and apply its objects."""
        self._file.write_text("\n".join((pool, *tables)))
        done = self._poolctl("export", "kubernetes", "-o", "json")
        assert done.code == 0, done.err
        for item in done.json["items"]:
            for each in yaml.safe_load_all(item["text"]):
                self.cluster.api.apply(self.namespace, each)

    def roll_out(self, *tables: str) -> None:
        """Apply the pool; returns when every pod is of the newest template, and ready."""
        self.apply(*tables)
        wait_until(self._is_rolled_out, timeout_seconds=ROLLOUT_SECONDS)

    def _is_rolled_out(self) -> bool:
        _, found = self.cluster.api.ask("GET", f"/apis/apps/v1/namespaces/{self.namespace}/deployments")
        return all(
            each["status"].get("observedGeneration", 0) >= each["metadata"]["generation"]
            and {each["status"].get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")}
            == {each["spec"]["replicas"]}
            for each in found["items"]
        )

    def pods(self, name: str) -> dict[str, Any]:
        """The pods of a server by name."""
        labelled = [
            each
            for each in self.cluster.pods(self.namespace)
            if each["metadata"]["labels"]["poolctl.dev/server"] == name
        ]
        return {each["metadata"]["name"]: each for each in labelled}

    def uids(self, name: str) -> set[str]:
        """The identities of a server's pods."""
        return {each["metadata"]["uid"] for each in self.pods(name).values()}

    def running_uids(self, name: str) -> set[str]:
        """The identities of a server's pods with a container that runs.

        Kubelet 1.20 at times leaves the object of an ended pod for a minute.
        """
        pods = self.pods(name).values()
        return {
            each["metadata"]["uid"]
            for each in pods
            if any("running" in status["state"] for status in each["status"].get("containerStatuses", ()))
        }

    def ask(self, name: str, path: str = "/") -> str:
        """The text that a server answers by its Service, or an empty text."""
        try:
            reply = get(self.cluster.service(self.namespace, name), path, timeout_seconds=2)
        except OSError:
            return ""
        return reply.text if reply.status == 200 else ""


@pytest.fixture
def shop(running_cluster: Cluster, directory: Path, poolctl: Any) -> Iterator[Shop]:
    """A pool in a namespace of its own."""
    running_cluster.wait_for_nodes()
    name = f"test-{os.urandom(4).hex()}"
    running_cluster.api.make("/api/v1/namespaces", {"metadata": {"name": name}})
    path = f"/api/v1/namespaces/{name}"
    wait_until(lambda: running_cluster.api.ask("GET", f"{path}/serviceaccounts/default")[0] == 200)
    yield Shop(running_cluster, name, poolctl, directory / "pool.toml")
    running_cluster.wait_for_nodes()  # a lost one ends its pods when it is there again
    running_cluster.api.ask("DELETE", path)
    running_cluster.api.ask("DELETE", f"{path}/pods?gracePeriodSeconds=0")
    wait_until(lambda: not running_cluster.pods(name))


def app(name: str, port: int, module: str = "shop", **keys: Any) -> str:
    return server(
        name, bind=f"127.0.0.1:{port}", app=f"{module}:app", start_timeout=f"{ROLLOUT_SECONDS}s", **keys
    )


def is_ready(pod: Any) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def report(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.1f} s, load {os.getloadavg()[0]:.1f}")


def test_servers_start_and_a_changed_one_alone_is_replaced(shop: Shop) -> None:
    users, web = app("users", 8001), app("web", 8002, depends_on=["users"])
    began = time.monotonic()
    shop.roll_out(users, web)
    report("two servers", time.monotonic() - began)
    for name in ("users", "web"):
        wait_until(lambda name=name: shop.ask(name) == "none", what=name)  # nodes learn of a new pod later
    before = shop.uids("users")
    shop.roll_out(users, app("web", 8002, depends_on=["users"], env={"WORD": "two"}))
    wait_until(lambda: shop.ask("web") == "two")
    assert shop.uids("users") == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((IMAGE, "10.77.0.2:5000/shop:1"), "ErrImagePull"),
        (("shop:app", "nothere:app"), "No module named 'nothere'"),
    ],
    ids=["image", "import"],
)
def test_release_that_does_not_start_says_why_and_the_former_workers_serve_on(
    change: tuple[str, str], reason: str, shop: Shop
) -> None:
    shop.roll_out(app("users", 8001))
    before = shop.uids("users")
    shop.apply(app("users", 8001).replace(*change), pool=POOL.replace(*change))

    def states() -> str:
        new = [each for each in shop.pods("users").values() if each["metadata"]["uid"] not in before]
        return json.dumps([each["status"].get("containerStatuses") for each in new])

    wait_until(lambda: reason in states(), timeout_seconds=ROLLOUT_SECONDS, what=states)
    assert before < shop.uids("users")
    assert shop.ask("users") == "none"


@contextmanager
def under_load(target: str) -> Iterator[None]:
    """Requests of every kind to HOST:PORT during the block, and until there were many; none of them may fail."""
    wait_until(lambda: reaches(target))
    with ExitStack() as stack:
        loads = {
            mode: stack.enter_context(Load([target], mode, **options)) for mode, options in MODES.items()
        }
        yield
        wait_until(
            lambda: sum(loads[mode].look().complete for mode in ("keep_alive", "new_connection")) >= REQUESTS
        )
        reports = {mode: load.stop() for mode, load in loads.items()}
    print(reports)
    assert {mode: (report.failed, report.failures) for mode, report in reports.items()} == dict.fromkeys(
        MODES, (0, [])
    )
    # Sessions ended with their pods, in order, and went on elsewhere.
    assert all(reports[mode].complete > MODES[mode]["connections"] for mode in ("websocket", "sse"))


def reaches(target: str) -> bool:
    with Load([target], connections=1) as load:
        return not load.stop().failed


def test_no_request_fails_while_workers_are_replaced_and_their_number_changes(shop: Shop) -> None:
    def web(**keys: Any) -> str:
        return app("web", 8002, "loaded", drain_timeout="10s", **keys)

    shop.roll_out(web(workers=2))
    before = shop.uids("web")
    with under_load(shop.cluster.service(shop.namespace, "web")):
        for word, workers in (("two", 2), ("three", 3), ("three", 1)):
            shop.roll_out(web(workers=workers, env={"WORD": word}))
        wait_until(lambda: len(shop.running_uids("web")) == 1)
    assert not before & shop.running_uids("web")


@pytest.fixture(params=["killed", "cut"])
def lose(running_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """`lose(node)` kills a node, or cuts it off the network; at the end it is there again.

    No pod is on the node through which Services are reached.
    """
    lost: list[str] = []

    def lost_now(name: str) -> None:
        lost.append(name)
        if request.param == "killed":
            running_cluster.kill(name)
        else:
            running_cluster.cut(running_cluster.nodes[name])

    with running_cluster.cordoned(GATEWAY):
        yield lost_now
    for name in lost:
        if request.param == "killed":
            running_cluster.start(name)
        else:
            running_cluster.join(running_cluster.nodes[name])


def test_servers_of_a_lost_node_answer_elsewhere(shop: Shop, lose: Callable[[str], None]) -> None:
    shop.roll_out(app("users", 8001), app("web", 8002, workers=2))
    ((name, pod),) = shop.pods("users").items()
    wait_until(lambda: shop.ask("users") == "none")
    lose(pod["spec"]["nodeName"])
    began = time.monotonic()
    limit = GRACE_SECONDS + LOST_AFTER_SECONDS + 10 + BUSY_SECONDS
    wait_until(lambda: not is_ready(shop.pods("users")[name]), timeout_seconds=limit)
    report("the cluster knows of the lost node", time.monotonic() - began)
    wait_until(
        lambda: shop.ask("users") == "none" and shop.ask("web") == "none",
        timeout_seconds=limit,
        what=lambda: json.dumps([shop.pods("users"), shop.pods("web")]),
    )
    report("the servers of the lost node answer", time.monotonic() - began)
    ready = [each for each in shop.pods("users").values() if is_ready(each)]
    assert [each["spec"]["nodeName"] != pod["spec"]["nodeName"] for each in ready] == [True]
