"""A pool on a real cluster with nodes: pods are containers, and Services forward to them.

Part of `make test-cluster` alone, which builds Kubernetes 1.20.2 once. It needs root, and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.docs.pages import ROOT
from tests.http_get import get
from tests.load import apps

from .cluster.nodes import GATEWAY, GRACE_SECONDS, IMAGE, Cluster, cluster, why_not
from .test_live import APP
from .test_load import under_load
from .test_real_cluster import poolctl as poolctl
from .test_real_cluster import role

pytest.importorskip("lightkube")
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
POOL = (
    f'[pool]\nname = "shop"\nplatform = "kubernetes"\n[kubernetes]\nimage = "{IMAGE}"\n'
    f'node_lost_after = "{LOST_AFTER_SECONDS}s"\n[defaults]\nstart_timeout = "120s"\n'
)
# Answers as the application of test_live.py, and ends without an answer where it is asked to.
CRASHING = APP.replace(
    "await asyncio.sleep(0.01)", "if scope['path'] == '/crash': print('out of luck', flush=True); os._exit(3)"
)


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    """A cluster for all tests; each has a namespace of its own."""
    app = {"shop.py": APP, "crashing.py": CRASHING, "loaded.py": Path(apps.__file__).read_text()}
    with cluster(NODES, app) as found:
        yield found


class Shop:
    """A namespace of the cluster with a pool, as a test changes it."""

    def __init__(self, cluster: Cluster, namespace: str, file: Path) -> None:
        self.cluster, self.namespace, self.file = cluster, namespace, file

    def write(self, *tables: str, pool: str = POOL) -> None:
        """Write the pool's file."""
        self.file.write_text("\n".join((pool, *tables)))

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
def shop(
    running_cluster: Cluster,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    """A pool in a namespace of its own, where commands have the rights of the documented Role."""
    running_cluster.wait_for_nodes()
    name = f"test-{os.urandom(4).hex()}"
    monkeypatch.setenv("KUBECONFIG", str(running_cluster.api.namespace(name, role())))
    path = f"/api/v1/namespaces/{name}"
    wait_until(lambda: running_cluster.api.ask("GET", f"{path}/serviceaccounts/default")[0] == 200)
    yield Shop(running_cluster, name, directory / "pool.toml")
    running_cluster.wait_for_nodes()  # a lost one ends its pods when it is there again
    running_cluster.api.ask("DELETE", path)
    running_cluster.api.ask("DELETE", f"{path}/pods?gracePeriodSeconds=0")
    wait_until(lambda: not running_cluster.pods(name))


def app(name: str, port: int, module: str = "shop", **keys: Any) -> str:
    return server(name, bind=f"127.0.0.1:{port}", app=f"{module}:app", **keys)


def is_ready(pod: Any) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def report(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.1f} s, load {os.getloadavg()[0]:.1f}")


def test_start_returns_when_every_worker_of_twenty_servers_is_available(shop: Shop, poolctl: Any) -> None:
    others = [app(f"api-{number}", 8010 + number) for number in range(18)]
    shop.write(app("users", 8001), *others, app("web", 8002, depends_on=["users", "api-3"]))
    began = time.monotonic()
    done = poolctl("start")
    report("20 servers", time.monotonic() - began)
    assert (done.code, done.out.splitlines()[0]) == (0, "20 servers ready"), done.err
    path = f"/apis/apps/v1/namespaces/{shop.namespace}/deployments"
    _, found = shop.cluster.api.ask("GET", path)
    assert [each["status"].get("availableReplicas") for each in found["items"]] == [1] * 20
    items = poolctl("list", "-o", "json").json["items"]
    assert {each["node"] for item in items for each in item["worker_list"]} == set(shop.cluster.nodes)
    for name in ("users", "api-3", "web"):
        wait_until(
            lambda name=name: shop.ask(name) == "none", what=name
        )  # the nodes learn of a new pod later

    uids = {name: shop.uids(name) for name in ("users", "api-3", "web")}
    shop.write(
        app("users", 8001), *others, app("web", 8002, depends_on=["users", "api-3"], env={"WORD": "two"})
    )
    done = poolctl("reload")
    assert done.code == 0, done.err
    wait_until(lambda: shop.ask("web") == "two")
    assert [shop.uids(name) == uids[name] for name in uids] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "reason", "known"),
    [
        ((IMAGE, "10.77.0.2:5000/shop:1"), "ErrImagePull: ", "waiting"),
        (("shop:app", "nothere:app"), "No module named 'nothere'", "terminated"),
    ],
    ids=["image", "import"],
)
def test_reload_that_fails_names_server_node_and_reason_and_the_former_workers_serve_on(
    change: tuple[str, str], reason: str, known: str, shop: Shop, poolctl: Any
) -> None:
    shop.write(app("users", 8001))
    assert poolctl("start").code == 0
    before = shop.uids("users")
    shop.write(app("users", 8001).replace(*change), pool=POOL.replace(*change))
    began = time.time()
    done = poolctl("reload")
    ended = time.time()
    assert done.code == 1
    ((name, pod),) = [each for each in shop.pods("users").items() if each[1]["metadata"]["uid"] not in before]
    (status,) = pod["status"]["containerStatuses"]
    seen = began
    if known == "terminated":
        state = status["state"].get("terminated") or status["lastState"]["terminated"]
        seen = datetime.fromisoformat(state["finishedAt"]).timestamp()
    report(f"failure of the {known} container to the end of the command", ended - seen)
    assert ended - seen < 10 + BUSY_SECONDS
    (line,) = [each for each in done.err.splitlines() if each.startswith("error: ")]
    assert "users" in line
    assert reason in line
    assert f"(pod {name} on {pod['spec']['nodeName']})" in line
    assert before < shop.uids("users")
    assert shop.ask("users") == "none"
    assert poolctl("status").code == 0


def test_no_request_fails_while_workers_are_replaced_and_their_number_changes(
    shop: Shop, poolctl: Any
) -> None:
    def web(**keys: Any) -> str:
        return app("web", 8002, "loaded", workers=2, drain_timeout="10s", **keys)

    shop.write(web())
    assert poolctl("start").code == 0
    before = shop.uids("web")
    with under_load(shop.cluster.service(shop.namespace, "web")):
        assert poolctl("restart").code == 0
        shop.write(web(env={"WORD": "two"}))
        assert poolctl("reload").code == 0
        assert poolctl("scale", "web", "3").code == 0
        assert poolctl("scale", "web", "1").code == 0
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


def test_servers_of_a_lost_node_answer_elsewhere_without_any_command(
    shop: Shop, lose: Callable[[str], None], poolctl: Any
) -> None:
    shop.write(app("users", 8001), app("web", 8002, workers=2))
    assert poolctl("start").code == 0
    ((name, pod),) = shop.pods("users").items()
    wait_until(lambda: shop.ask("users") == "none")
    lose(pod["spec"]["nodeName"])
    began = time.monotonic()
    limit = GRACE_SECONDS + LOST_AFTER_SECONDS + 10 + BUSY_SECONDS
    wait_until(lambda: not is_ready(shop.pods("users")[name]), timeout_seconds=limit)
    report("the cluster knows of the lost node", time.monotonic() - began)
    items = poolctl("list", "-o", "json").json["items"]
    (lost,) = [each for each in items[0]["worker_list"] if each["id"] == name]
    assert (lost["phase"], lost["ready"]) == ("unknown", False)
    wait_until(
        lambda: shop.ask("users") == "none" and shop.ask("web") == "none",
        timeout_seconds=limit,
        what=lambda: json.dumps([shop.pods("users"), shop.pods("web")]),
    )
    report("the servers of the lost node answer", time.monotonic() - began)
    assert poolctl("wait", "--timeout", "60s").code == 0
    assert poolctl("status").code == 0
    users, _ = poolctl("list", "-o", "json").json["items"]
    assert {each["id"]: each["phase"] for each in users["worker_list"]}[name] == "unknown"
    assert [each["node"] for each in users["worker_list"] if each["ready"]] != [pod["spec"]["nodeName"]]
    assert poolctl("stop").code == 0, "nothing waits for a lost node"


@pytest.mark.parametrize("away", [Cluster.paused_api, Cluster.unreachable_api], ids=["paused", "unreachable"])
def test_servers_answer_without_the_control_plane_and_commands_end_with_its_address(
    away: Any, shop: Shop, poolctl: Any
) -> None:
    shop.write(app("web", 8002, workers=2))
    assert poolctl("start").code == 0
    service = shop.cluster.service(shop.namespace, "web")
    wait_until(lambda: shop.ask("web") == "none")

    def ended(command: Sequence[str]) -> tuple[float, int, str]:
        began = time.monotonic()
        done = poolctl(*command)
        return time.monotonic() - began, done.code, done.err

    command = [sys.executable, "-m", "poolctl", "logs", "-f"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    follower = subprocess.Popen(command, cwd=shop.file.parent, env=environment, text=True, **pipes)

    def follower_ended() -> tuple[float, int, str]:
        began = time.monotonic()
        _, errors = follower.communicate(timeout=60)
        return time.monotonic() - began, follower.returncode, errors

    with follower, ThreadPoolExecutor(2) as pool:
        try:
            assert follower.stdout is not None
            follower.stdout.readline()  # it follows
            with away(shop.cluster):
                following = pool.submit(follower_ended)
                commands = (["list"], ["start"], ["stop"], ["wait", "--timeout", "60s"])
                results = [*map(ended, commands), following.result()]
                assert get(service).text == "none"
        finally:
            follower.kill()
    report("the longest command without the control plane", max(seconds for seconds, _, _ in results))
    report("a command that was under way", results[-1][0])
    for seconds, code, errors in results:
        assert (code, shop.cluster.api.url in errors) == (6, True), errors
        assert seconds < 10 + BUSY_SECONDS
    assert poolctl("wait", "--timeout", "60s").code == 0


def test_logs_and_show_say_why_a_worker_crashed(shop: Shop, poolctl: Any) -> None:
    shop.write(app("web", 8002, "crashing"))
    assert poolctl("start").code == 0
    assert "Application startup complete." in poolctl("logs", "web").out
    wait_until(lambda: shop.ask("web") == "none")
    assert shop.ask("web", "/crash") == ""

    def restarts() -> int:
        (item,) = poolctl("list", "-o", "json").json["items"]
        return int(item["restarts"])

    assert wait_until(restarts) == 1
    assert poolctl("wait", "--timeout", "60s").code == 0
    done = poolctl("show", "web", "-o", "json")
    (item,) = done.json["items"]
    assert "out of luck" in item["complaint"]
    assert json.dumps(item["worker_list"]).count("restarted 1 time") == 1
    assert "Application startup complete." in poolctl("logs", "web").out

    shop.write(app("web", 8002, "nothere"))
    assert poolctl("reload").code == 1
    assert "No module named 'nothere'" in poolctl("logs", "web").out
    assert "No module named 'nothere'" in poolctl("show", "web").out


def test_commands_and_stacks_are_run_in_the_containers_of_workers(shop: Shop, poolctl: Any) -> None:
    shop.write(app("users", 8001, env={"WORD": "of the pod"}), app("web", 8002, workers=2))
    assert poolctl("start", "users").code == 0
    done = poolctl("walk", "-o", "json", "--", "sh", "-c", "echo {name} $WORD; echo problem >&2; exit 7")
    users, web = done.json["items"]
    assert (users["exit_code"], users["stdout"], users["stderr"]) == (7, "users of the pod\n", "problem\n")
    assert web["exit_code"] == 126
    assert [(each["name"], each["message"]) for each in done.json["errors"]][1:] == [
        ("web", "no worker is ready")
    ]
    (error,) = poolctl("walk", "users", "--", "no-such-program").err.splitlines()
    assert error.startswith("error: users: ")
    assert "no-such-program" in error

    assert poolctl("start").code == 0
    done = poolctl("stacks", "-o", "json")
    assert done.code == 0, done.err
    pods = shop.pods("users").keys() | shop.pods("web").keys()
    assert {(each["worker"], each["problem"], each["source"]) for each in done.json["items"]} == {
        (name, "", "python") for name in pods
    }
    assert "main thread:" in poolctl("stacks", "web").out
