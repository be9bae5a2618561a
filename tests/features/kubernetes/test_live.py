"""A pool on a cluster: the usual commands, against a small cluster whose pods are real processes.

Every command runs with no more rights than the Role in docs/kubernetes.md gives.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.docs.pages import ROOT, blocks
from tests.http_get import get

pytest.importorskip("lightkube")
pytestmark = pytest.mark.integration

POOL = (
    '[pool]\nname = "shop"\nplatform = "kubernetes"\n[kubernetes]\nimage = "shop:1"\nstop_delay = "300ms"\n'
)
# Says which of its environment's words it has, slowly if asked to.
APP = """\
import asyncio, os
async def app(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": os.environ.get("WORD", "none").encode()})
    else:
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
"""


class Cluster:
    """The cluster, as a test changes it."""

    def __init__(self, directory: Path, url: str, process: subprocess.Popen[bytes]) -> None:
        self.directory, self.url, self._process = directory, url, process

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The API server accepts connections and answers none; the pods serve on."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def ask(self, what: str, body: object = None) -> Any:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/fake/{what}", data=data, method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
        return None if text == b"ok" else json.loads(text)

    def objects(self, kind: str) -> dict[str, Any]:
        return {each["metadata"]["name"]: each for each in self.ask(f"objects/{kind}")}

    def addresses(self, name: str) -> list[str]:
        """The addresses of the server's ready pods."""
        return [
            each["status"]["podIP"]
            for each in self.ask("objects/pods")
            if each["metadata"]["labels"]["poolctl.dev/server"] == name
            and "deletionTimestamp" not in each["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in each["status"]["conditions"])
        ]


@contextmanager
def running(directory: Path, *options: str) -> Iterator[Cluster]:
    """A cluster of two nodes, and $KUBECONFIG for it."""
    with (directory / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.features.kubernetes.fake_cluster", str(directory), *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    kubeconfig = directory / "kubeconfig"
    try:
        wait_until(lambda: kubeconfig.exists() and kubeconfig.read_text(), what=(directory / "log").read_text)
        url = next(line.split()[-1] for line in kubeconfig.read_text().splitlines() if "server:" in line)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(kubeconfig))
            yield Cluster(directory, url, process)
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in (directory / "log").read_text()


@pytest.fixture
def cluster(directory: Path) -> Iterator[Cluster]:
    """A cluster with an image `shop:1`, where commands have the rights of the documented Role."""
    there = directory / "cluster"
    (there / "images" / "shop:1").mkdir(parents=True)
    (there / "images" / "shop:1" / "shop.py").write_text(APP)
    page = ROOT / "docs" / "kubernetes.md"
    (role,) = (each.text for each in blocks(page) if each.text.startswith("apiVersion: rbac"))
    (there / "role.yaml").write_text(role)
    with running(there, "--role", str(there / "role.yaml")) as found:
        yield found


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for tests that only look at its answers."""
    with running(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def write(directory: Path) -> Callable[..., None]:
    """`write(*tables, pool=POOL)` writes the pool's file."""

    def written(*tables: str, pool: str = POOL) -> None:
        (directory / "pool.toml").write_text(pool + "\n".join(tables))

    return written


def app(name: str, port: int, **keys: Any) -> str:
    return server(name, bind=f"127.0.0.1:{port}", app="shop:app", **keys)


@pytest.mark.capability
def test_pool_starts_reloads_scales_and_stops_on_a_cluster(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    users, web = app("users", 8001, env={"WORD": "one"}), app("web", 8002, workers=2, depends_on=["users"])
    write(users, web)
    assert poolctl("status").code == 3
    done = poolctl("start")
    assert (done.code, done.err) == (0, "")
    assert done.out == "2 servers ready\nusers  http://users:8001\nweb    http://web:8002\n"
    assert [get(f"{address}:8001").text for address in cluster.addresses("users")] == ["one"]
    assert len(cluster.addresses("web")) == 2
    cluster.ask("requests")
    (one, two) = poolctl("list", "-o", "json").json["items"]
    assert cluster.ask("requests") == ["list deployments", "list jobs", "list pods"]
    assert (one["pids"], one["ready"], one["health"]) == ([], True, "ok")
    assert {each["node"] for each in two["worker_list"]} == {"node-1", "node-2"}
    assert poolctl("status").out.startswith("shop: 2 servers ready, up ")
    assert poolctl("status").out.endswith("context fake, namespace default\n")

    before = cluster.objects("pods")
    assert poolctl("reload", "--dry-run").code == 0
    write(users.replace("one", "two"), web)
    assert poolctl("reload", "--dry-run").code == 3
    assert cluster.objects("pods").keys() == before.keys()
    assert poolctl("reload").code == 0
    assert [get(f"{address}:8001").text for address in cluster.addresses("users")] == ["two"]
    stayed = {name for name in before if name.startswith("shop-web")}
    assert stayed <= cluster.objects("pods").keys()  # of the server that has not changed

    assert poolctl("scale", "web", "3").code == 0
    assert poolctl("restart", "users").code == 0
    assert poolctl("start").code == 0
    assert len(cluster.addresses("web")) == 3  # the live number survives
    lines = poolctl("logs", "web", "--lines", "1").out.splitlines()
    assert lines == ["web | INFO:     Application startup complete."] * 3

    done = poolctl("stop", "users")
    assert (done.code, "web" in done.err) == (0, True)  # it depends on users
    assert cluster.objects("pods") == {}
    assert poolctl("status").code == 0
    assert poolctl("start", "users").code == 0
    assert [each["state"] for each in poolctl("list", "-o", "json").json["items"]] == ["running", "stopped"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            ("shop:1", "shop:9"),
            'ErrImagePull: failed to pull and unpack image "shop:9": not found',
            marks=pytest.mark.heavy,
        ),
        (
            ("shop:app", "nothere:app"),
            "cannot import 'nothere:app': ModuleNotFoundError: No module named 'nothere'",
        ),
        pytest.param(
            ('stop_delay = "300ms"', 'requests = { cpu = "100000m" }'),
            "no node can run it: 0/2 nodes are available",
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_reload_that_fails_says_why_and_the_former_workers_serve_on(
    change: tuple[str, str], reason: str, cluster: Cluster, write: Any, poolctl: Any, directory: Path
) -> None:
    write(app("users", 8001), app("web", 8002, depends_on=["users"]))
    assert poolctl("start").code == 0
    before = cluster.addresses("users")
    path = directory / "pool.toml"
    path.write_text(path.read_text().replace(*change))
    began = time.monotonic()
    done = poolctl("reload", "-o", "json")
    assert time.monotonic() - began < 10 + 50  # the cluster knows within seconds; the machine may be busy
    assert done.code == 1
    users, web = done.json["errors"]
    assert reason in users["message"]
    assert users["name"] == "users"
    assert web["message"].startswith("waits for users: ")
    assert cluster.addresses("users") == before
    assert get(f"{before[0]}:8001").status == 200
    assert poolctl("status").code == 0


@pytest.mark.heavy
def test_quota_is_a_failure_of_the_start(cluster: Cluster, write: Any, poolctl: Any) -> None:
    cluster.ask("quota/1")
    write(app("web", 8002, workers=2))
    done = poolctl("start")
    assert done.code == 1
    assert "exceeded quota" in done.err
    cluster.ask("quota/9")
    assert poolctl("start").code == 0


@pytest.mark.heavy
def test_server_that_is_not_ready_in_time_is_its_own_failure(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    slow = cluster.directory / "images" / "shop:1" / "slow.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    write(server("web", bind="127.0.0.1:8002", app="slow:app", start_timeout="1500ms"))
    done = poolctl("start")
    assert done.code == 1
    assert "was not ready within its start_timeout of 1.5 s" in done.err
    write(server("web", bind="127.0.0.1:8002", app="slow:app"))
    done = poolctl("restart", "--timeout", "1s")
    assert done.code == 124


@pytest.mark.heavy
def test_new_server_waits_on_the_cluster_for_its_dependencies_and_its_start_timeout_begins_after_them(
    cluster: Cluster, write: Any, poolctl: Any, directory: Path
) -> None:
    image, gate = cluster.directory / "images" / "shop:1", directory / "gate"
    waits = (
        f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\ntime.sleep(1)\n"
    )
    (image / "late.py").write_text(f"{waits}from shop import app\n")
    (image / "slow.py").write_text("import time\ntime.sleep(60)\n")
    write(
        server("users", bind="127.0.0.1:8001", app="late:app"),
        server("web", bind="127.0.0.1:8002", app="slow:app", start_timeout="1500ms", depends_on=["users"]),
        app("mail", 8003, depends_on=["web"]),
    )

    def let_users_start() -> float:
        wait_until(
            lambda: {name.split("-")[1] for name in cluster.objects("pods")} == {"users", "web", "mail"}
        )
        gate.touch()
        return time.monotonic()

    with ThreadPoolExecutor(1) as threads:
        began = threads.submit(let_users_start)
        done = poolctl("start", "-o", "json")
        ended = time.monotonic()
    assert done.code == 1
    late = "was not ready within its start_timeout of 1.5 s"
    assert {each["name"]: each["message"] for each in done.json["errors"]} == {
        "web": late,
        "mail": f"waits for web: {late}",
    }
    assert ended - began.result() >= 1 + 1.5


def test_objects_of_others_are_neither_changed_nor_deleted(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    theirs = {"metadata": {"name": "web", "labels": {"app": "theirs"}}, "spec": {"ports": []}}
    cluster.ask("add/services", theirs)
    write(app("web", 8002), app("users", 8001))
    done = poolctl("start")
    assert (done.code, done.err.splitlines()[0]) == (
        8,
        "error: Service web in namespace default belongs to something else",
    )
    assert cluster.objects("services")["web"]["spec"] == {"ports": []}
    assert cluster.objects("deployments") == {}
    write(app("users", 8001), app("mail", 8003))
    assert poolctl("start").code == 0
    write(app("users", 8001))
    assert poolctl("reload").code == 0  # removes mail, and nothing else
    assert cluster.objects("services").keys() == {"users", "web"}
    assert cluster.objects("deployments").keys() == {"shop-users"}
    assert {name.rpartition("-")[0] for name in cluster.objects("configmaps")} == {"shop-users"}


@pytest.mark.heavy
def test_objects_that_a_changed_server_no_longer_has_are_deleted(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    write(app("web", 8002, scale={"max": 3, "triggers": {"cpu": 0.5}}), app("users", 8001))
    assert poolctl("start").code == 0
    assert cluster.objects("horizontalpodautoscalers").keys() == {"shop-web"}
    write(app("web", 8002), server("users", command=["true"], job=True))
    assert poolctl("reload").code == 0
    assert cluster.objects("horizontalpodautoscalers") == {}, "it would go on to change the number of workers"
    assert cluster.objects("services").keys() == {"web"}
    assert cluster.objects("deployments").keys() == {"shop-web"}
    write(app("web", 8002), app("users", 8001))
    assert poolctl("reload").code == 0  # the run of the former job is not taken for the server
    assert [each["state"] for each in poolctl("list", "-o", "json").json["items"]] == ["running"] * 2


EDGE = POOL + 'gateway = "edge"\n'


@pytest.mark.heavy
def test_routes_are_applied_after_their_servers_and_deleted_with_the_file(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    def web(host: str) -> str:
        return f'[[route]]\nalias = "front"\nhost = "{host}"\nto = "web"\n'

    theirs = {"metadata": {"name": "shop-other", "labels": {"app": "theirs"}}, "spec": {}}
    cluster.ask("add/httproutes", theirs)
    write(app("web", 8002), web("a.example.com"), pool=EDGE)
    assert poolctl("start").code == 0
    assert cluster.objects("httproutes")["shop-front"]["spec"]["hostnames"] == ["a.example.com"]
    assert poolctl("reload", "--dry-run").code == 0
    write(app("web", 8002), web("b.example.com"), pool=EDGE)
    pods = cluster.objects("pods").keys()
    assert poolctl("reload", "--dry-run").code == 3
    assert cluster.objects("httproutes")["shop-front"]["spec"]["hostnames"] == ["a.example.com"]
    done = poolctl("reload")
    assert (done.code, "route: front has changed" in done.out) == (0, True)
    assert cluster.objects("httproutes")["shop-front"]["spec"]["hostnames"] == ["b.example.com"]
    assert cluster.objects("pods").keys() == pods

    broken = server("web", bind="127.0.0.1:8002", app="nothere:app")
    write(broken, web("c.example.com"), pool=EDGE)
    assert poolctl("reload").code == 1
    assert cluster.objects("httproutes")["shop-front"]["spec"]["hostnames"] == ["b.example.com"]

    write(app("web", 8002), web("b.example.com").replace("front", "other"), pool=EDGE)
    done = poolctl("reload")
    assert (done.code, "HTTPRoute shop-other" in done.err) == (8, True)
    write(app("web", 8002), web("b.example.com"), pool=EDGE.replace("gateway", "ingress_class"))
    assert poolctl("reload").code == 0
    assert cluster.objects("httproutes").keys() == {"shop-other"}
    assert cluster.objects("ingresses").keys() == {"shop-front"}
    write(app("web", 8002))
    assert poolctl("reload").code == 0
    assert cluster.objects("ingresses") == {}


@pytest.mark.heavy
def test_reload_reads_every_file_that_is_named(
    cluster: Cluster, write: Any, poolctl: Any, directory: Path
) -> None:
    write(app("web", 8002))
    files = ("-c", "pool.toml", "-c", "more.toml")
    (directory / "more.toml").write_text('[[server]]\nname = "web"\nenv = { WORD = "more" }\n')
    assert poolctl(*files, "start").code == 0
    assert poolctl(*files, "reload", "--dry-run").code == 0
    done = poolctl("reload", "--dry-run")
    assert (done.code, "web: has changed" in done.out) == (3, True)


@pytest.mark.heavy
def test_cluster_without_the_gateway_api_is_an_error_that_says_so(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    (cluster.directory / "without-gateway-api").touch()
    write(app("web", 8002))
    assert poolctl("start").code == 0, "a pool without routes needs none"
    write(app("web", 8002), '[[route]]\nto = "web"\n', pool=EDGE)
    done = poolctl("reload")
    assert (done.code, "install the Gateway API on the cluster" in done.err) == (1, True)


def backup(script: str, **keys: Any) -> str:
    """A job each night whose script is in its image."""
    return server("backup", command=["python3", "-c", script], job=True, every="0 3 * * *", **keys)


@pytest.mark.heavy
def test_job_with_a_schedule_is_a_cron_job_whose_runs_are_reported(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    def says() -> Any:
        (item,) = poolctl("list", "backup", "-o", "json").json["items"]
        return item

    write(app("web", 8002), backup("print('saved')"))
    assert poolctl("start").code == 0
    assert cluster.objects("cronjobs").keys() == {"shop-backup"}
    assert cluster.objects("jobs") == {}, "start does not wait for a run"
    cluster.ask("requests")
    item = says()
    assert cluster.ask("requests") == ["list deployments", "list jobs", "list pods", "list cronjobs"]
    assert (item["state"], item["ready"], item["health"]) == ("sleeping", True, "ok")
    assert item["next_run_at"].endswith("T03:00:00Z")
    assert "last_run" not in item
    cluster.ask("due/shop-backup", {})
    last = wait_until(lambda: says().get("last_run"))
    assert (last["result"], last["status"]) == ("succeeded", 0)
    assert "saved" in poolctl("logs", "backup").out

    write(app("web", 8002), backup("raise SystemExit('disk full')"))
    assert poolctl("reload", "--dry-run").code == 3
    assert poolctl("reload").code == 0
    assert len(cluster.objects("jobs")) == 1, "a changed job does not run at once"
    done = poolctl("restart", "backup")
    assert (done.code, "disk full" in done.err) == (1, True)
    item = says()
    assert (item["state"], item["ready"], item["health"]) == ("sleeping", True, "warn")
    assert (item["last_run"]["result"], item["last_run"]["status"]) == ("failed", 1)
    assert poolctl("status").code == 0
    assert poolctl("restart").code == 0
    assert len(cluster.objects("jobs")) == 2, "a restart that does not name the job leaves it alone"

    write(app("web", 8002))
    assert poolctl("reload").code == 0
    assert (cluster.objects("cronjobs"), cluster.objects("jobs")) == ({}, {})


def test_stop_ends_a_run_and_the_schedule_until_start(cluster: Cluster, write: Any, poolctl: Any) -> None:
    write(backup("import time; time.sleep(60)"))
    assert poolctl("start").code == 0
    cluster.ask("due/shop-backup", {})
    assert poolctl("wait", "backup", "--for", "running", "--timeout", "60s").code == 0
    done = poolctl("restart", "backup")
    assert (done.code, "runs, and does not run twice at once" in done.err) == (1, True)
    assert poolctl("stop", "backup").code == 0
    wait_until(
        lambda: cluster.objects("pods") == {}
    )  # its process has ended, and the cluster forgets the pod
    assert [each["state"] for each in poolctl("list", "-o", "json").json["items"]] == ["stopped"]
    cluster.ask("due/shop-backup", {})
    assert cluster.objects("jobs") == {}
    write(backup("import time; time.sleep(61)"))
    assert poolctl("reload").code == 0
    assert cluster.objects("cronjobs")["shop-backup"]["spec"]["suspend"] is True, "it stays stopped"
    assert poolctl("start").code == 0
    cluster.ask("due/shop-backup", {})
    assert len(cluster.objects("jobs")) == 1


@pytest.mark.heavy
def test_fields_of_another_manager_are_a_conflict_that_names_it(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    write(app("web", 8002))
    assert poolctl("start").code == 0
    theirs = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}}
    cluster.ask("merge/deployments/shop-web/argocd", theirs)
    write(app("web", 8002, env={"WORD": "two"}))
    done = poolctl("reload")
    assert done.code == 8
    assert 'conflict with "argocd"' in done.err
    assert poolctl("reload", "--force").code == 0
    assert [get(f"{address}:8002").text for address in cluster.addresses("web")] == ["two"]


def test_rolling_restart_refuses_no_connection(cluster: Cluster, write: Any, poolctl: Any) -> None:
    write(app("web", 8002, workers=2), pool=POOL.replace("300ms", "5s"))
    assert poolctl("start").code == 0
    results: list[bool] = []
    ended = threading.Event()
    endpoints = cluster.addresses("web")

    def follow() -> None:  # as a Service does: the cluster needs a moment to learn that a pod leaves
        nonlocal endpoints
        while not ended.wait(0.05):
            endpoints = cluster.addresses("web") or endpoints

    def send() -> None:
        connection = http.client.HTTPConnection(endpoints[0], 8002, timeout=30)
        turn = 0
        while not ended.wait(0.002):
            turn += 1
            if turn % 5 == 0 or connection.host not in endpoints:
                connection.close()
                connection = http.client.HTTPConnection(endpoints[turn % len(endpoints)], 8002, timeout=30)
            try:
                connection.request("GET", "/")
                results.append(connection.getresponse().read() == b"none")
            except OSError:
                results.append(False)
                ended.wait(0.05)
                connection.close()
        connection.close()

    threads = [threading.Thread(target=each) for each in (follow, send, send)]
    for each in threads:
        each.start()
    try:
        assert poolctl("restart").code == 0
        assert poolctl("scale", "web", "1").code == 0
    finally:
        ended.set()
        for each in threads:
            each.join(60)
    assert results.count(False) == 0
    assert len(results) > 50


def killed_node(cluster: Cluster, poolctl: Any) -> str:
    """The node of the only worker, after it was killed."""
    ((item,)) = poolctl("list", "-o", "json").json["items"]
    node: str = item["worker_list"][0]["node"]
    cluster.ask(f"node/{node}/kill")
    return node


@pytest.mark.heavy
def test_pod_on_a_killed_node_is_unknown_and_does_not_count(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    write(app("web", 8002), pool=f'{POOL}node_lost_after = "1h"\n')
    assert poolctl("start").code == 0
    killed_node(cluster, poolctl)

    def is_unknown() -> bool:
        (item,) = poolctl("list", "-o", "json").json["items"]
        return not item["ready"] and [each["phase"] for each in item["worker_list"]] == ["unknown"]

    wait_until(is_unknown)


def test_servers_of_a_killed_node_answer_elsewhere(cluster: Cluster, write: Any, poolctl: Any) -> None:
    write(app("web", 8002), pool=f'{POOL}node_lost_after = "1s"\n')
    assert poolctl("start").code == 0
    node = killed_node(cluster, poolctl)

    def elsewhere() -> set[str]:
        (item,) = poolctl("list", "-o", "json").json["items"]
        return {each["node"] for each in item["worker_list"] if each["ready"]} - {node}

    assert wait_until(elsewhere) == {"node-1", "node-2"} - {node}
    assert poolctl("wait", "--timeout", "60s").code == 0
    assert [get(f"{address}:8002").status for address in cluster.addresses("web")] == [200]


@pytest.mark.heavy
@pytest.mark.heavy_variants
@pytest.mark.parametrize(
    "status",
    [
        200,
        403,
        500,
        *(pytest.param(each, marks=pytest.mark.heavy) for each in (400, 401, 404, 409, 422, 429, 503)),
    ],
)
def test_no_answer_of_an_api_server_is_a_traceback(
    status: int, shared_cluster: Cluster, poolctl: Any, write: Any
) -> None:
    write(app("web", 8002))
    commands = ("list", "start", "stop") if status == 200 else ("list",)
    for body in (
        b" ",
        b"[]",
        b"null",
        b"\xff",
        b'{"kind": "Status"}',
        b'{"items": [3]}',
        b'{"items": [{}]}',
        b"<html>",
    ):
        shared_cluster.ask(f"answer/{status}", body)
        for command in commands:
            done = poolctl(command)
            assert done.code in (1, 6, 7, 8), done.err
            assert done.err.startswith("error: "), done.err


def test_api_server_that_is_away_is_exit_6_with_its_address(
    directory: Path, write: Any, poolctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(app("web", 8002))
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    config = {
        "clusters": [cluster],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    (directory / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(directory / "kubeconfig"))
    for command in ("list", "status", "start", "reload", "stop", "wait"):
        done = poolctl(command)
        assert (done.code, "http://127.0.0.1:1" in done.err) == (6, True), done.err
    monkeypatch.setenv("KUBECONFIG", str(directory / "missing"))
    assert poolctl("list").code == 6


def test_command_under_way_ends_when_the_api_server_stops_answering(
    cluster: Cluster, write: Any, poolctl: Any, directory: Path
) -> None:
    write(app("web", 8002))
    assert poolctl("start").code == 0
    (address,) = cluster.addresses("web")
    command = [sys.executable, "-m", "poolctl", "logs", "-f"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=directory, env=environment, text=True, **pipes) as follower:
        assert follower.stdout is not None
        try:
            follower.stdout.readline()  # it follows
            with cluster.paused():
                began = time.monotonic()
                _, errors = follower.communicate(timeout=60)
                seconds = time.monotonic() - began
                assert get(f"{address}:8002").status == 200
        finally:
            follower.kill()
    assert (follower.returncode, cluster.url in errors) == (6, True), errors
    assert seconds < 10 + 40  # the machine may be busy


@pytest.mark.heavy
def test_stop_of_everything_is_refused_on_another_cluster_than_the_start(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    write(app("web", 8002))
    assert poolctl("start").code == 0
    kubeconfig = cluster.directory / "kubeconfig"
    kubeconfig.write_text(kubeconfig.read_text().replace("fake", "other"))
    done = poolctl("stop")
    assert done.code == 2
    assert (
        "on context other, namespace default; it was started on context fake, namespace default" in done.err
    )
    assert len(cluster.addresses("web")) == 1
    assert poolctl("stop", "--yes").code == 0
    assert cluster.addresses("web") == []


@pytest.mark.usefixtures("cluster")
def test_start_counts_also_where_it_cannot_be_recorded(
    write: Any, poolctl: Any, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(app("web", 8002))
    short_path.chmod(0o777)
    monkeypatch.setenv("POOLCTL_STATE_DIR", str(short_path / "state"))
    assert poolctl("start").code == 0
    done = poolctl("stop")
    assert (done.code, f"{short_path} can be changed by others" in done.err) == (7, True)
    assert poolctl("stop", "--yes").code == 0


def test_commands_without_an_equal_name_what_to_use(write: Any, poolctl: Any) -> None:
    write(app("web", 8002))
    for command in (["drain", "web"], ["events"], ["top"], ["routes"], ["upgrade"], ["run"]):
        done = poolctl(*command)
        assert done.code == 2
        assert f"{command[0]} is for a pool on this machine" in done.err


def test_environment_chooses_the_platform(write: Any, poolctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(app("web", 8002))
    monkeypatch.setenv("POOLCTL_PLATFORM", "local")
    assert poolctl("status").out == "no supervisor is running, 1 server stopped\n"
    monkeypatch.setenv("POOLCTL_PLATFORM", "nomad")
    done = poolctl("list")
    assert (done.code, done.err.splitlines()[0]) == (5, "error: there is no platform 'nomad'")
    monkeypatch.delenv("POOLCTL_PLATFORM")
    write(app("web", 8002), pool=POOL.replace('"kubernetes"', '"nomad"', 1))
    assert "there is no platform 'nomad'" in poolctl("validate").out


def test_local_commands_import_nothing_of_a_cluster(directory: Path, write: Any) -> None:
    write(app("web", 8002), pool='[pool]\nname = "shop"\n')
    script = (
        "import sys; from poolctl.cli.main import main; main(['list']);"
        "print([name for name in sys.modules if 'lightkube' in name or 'features.kubernetes.' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=directory, capture_output=True, text=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "[]"
