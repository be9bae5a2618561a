"""Commands in pods: `walk` and `stacks` on a small cluster whose pods are real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from poolctl.errors import ControlError
from poolctl.features.kubernetes._cluster import Execution
from poolctl.features.kubernetes._exec import stacks_of
from poolctl.runners.stack_report import WorkerStacks
from tests.configuration import server
from tests.deadline import wait_until
from tests.real_pool import RealPool

from .test_live import Cluster, app
from .test_live import cluster as cluster
from .test_live import write as write

pytest.importorskip("lightkube")
pytestmark = pytest.mark.integration


def test_walk_runs_the_command_in_the_first_ready_pod_of_each_server(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    write(app("users", 8001, env={"WORD": "of the pod"}), app("web", 8002, workers=2))
    assert poolctl("start", "users").code == 0
    script = "echo $POOLCTL_NAME-$POOLCTL_PORT {expose} $WORD; echo problem >&2; cat; exit ${CODE:-7}"
    done = poolctl("walk", "users", "--", "sh", "-c", script)
    assert done.out == "==> users <==\nusers-8001 http://users:8001 of the pod\nproblem\n"
    assert (done.code, done.err) == (1, "error: users: the command exited with 7: problem\n")

    done = poolctl("walk", "-o", "json", "--jobs", "2", "--", "sh", "-c", script)
    users, web = done.json["items"]
    assert (users["exit_code"], users["stderr"]) == (7, "problem\n")
    assert users["stdout"] == "users-8001 http://users:8001 of the pod\n"
    assert (web["exit_code"], web["stdout"], web["stderr"]) == (126, "", "")
    (_, error) = done.json["errors"]
    assert (error["name"], error["message"], error["hint"]) == (
        "web",
        "no worker is ready",
        "poolctl start web",
    )
    assert (done.code, error["error"]) == (1, "ErrorCommand")

    done = poolctl("walk", "users", "--", "no-such-program", "A=B")
    assert (
        done.err == "error: users: the command exited with 127: no-such-program: No such file or directory\n"
    )
    assert poolctl("walk", "users", "--", "sh", "-c", "kill -9 $$").code == 1
    assert poolctl("walk", "users").out == "users\t127.0.0.1:8001\trunning\n"
    done = poolctl("walk", "--fail-fast", "-o", "json", "--", "false")
    assert [each["name"] for each in done.json["items"]] == ["users"]


@pytest.mark.heavy
def test_output_beyond_the_limit_is_an_error_of_its_server(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    write(app("users", 8001), app("web", 8002))
    assert poolctl("start").code == 0
    big = "[ {name} = users ] && exec head -c 20000000 /dev/zero; echo done"
    done = poolctl("walk", "-o", "json", "--", "sh", "-c", big)
    users, web = done.json["items"]
    assert (users["exit_code"], web["exit_code"], web["stdout"]) == (126, 0, "done\n")
    (error,) = done.json["errors"]
    (pod,) = (name for name in cluster.objects("pods") if name.startswith("shop-users"))
    assert error["message"] == f"cannot run a command in pod {pod}: it prints more than 16777216 bytes"


def test_stacks_of_each_worker_and_of_none(cluster: Cluster, write: Any, poolctl: Any) -> None:
    write(app("web", 8002, workers=2), app("users", 8001), server("tick", command=["sleep", "600"]))
    assert poolctl("start", "web", "tick").code == 0
    done = poolctl("stacks", "-o", "json")
    found = {each["worker"]: each for each in done.json["items"]}
    pods = cluster.objects("pods").keys()
    assert (done.code, found.keys()) == (0, pods)
    for name, each in found.items():
        is_program = name.startswith("shop-tick")
        assert each["problem"] == ("a program has no Python stacks" if is_program else "")
        assert each["source"] == ("" if is_program else "python")
        assert "pid" not in each or each["pid"] is None
        assert bool(each["tasks"]) is not is_program
    text = poolctl("stacks", "web").out
    assert text.startswith("shop-web-")
    assert "main thread:" in text
    assert "app (shop.py:" in text
    assert poolctl("stacks", "wbe").code == 4
    assert poolctl("stacks", "users").err == "warning: users: has no worker\n"


def answering(execution: Execution | ControlError) -> Any:
    """A cluster in whose pods every command does this."""

    class Answering:
        async def run(self, *given: Any, **bounds: Any) -> Execution:
            if isinstance(execution, ControlError):
                raise execution
            return execution

    return Answering()


@pytest.mark.parametrize(
    ("stdout", "stderr", "problem"),
    [
        (b"", b"poolctl: not found\n", "poolctl stacks gives no valid answer there: poolctl: not found"),
        (b"\xff\x00", b"", "poolctl stacks gives no valid answer there: \ufffd\x00"),
        (b"[" * 5000, b"", "poolctl stacks gives no valid answer there: " + "[" * 200),
        (b'{"errors": [], "items": []}', b"x", "poolctl stacks gives no valid answer there: x"),
        (b'{"errors": [], "items": [{"name": 5}]}', b"x", "poolctl stacks gives no valid answer there: x"),
        (b'{"errors": [], "items": 5}', b"x", "poolctl stacks gives no valid answer there: x"),
        (b'{"errors": [{"message": "no supervisor"}]}', b"", "it has no stacks: no supervisor"),
    ],
)
def test_answer_of_a_pod_that_is_no_report_is_its_workers_problem(
    stdout: bytes, stderr: bytes, problem: str
) -> None:
    found = asyncio.run(stacks_of(answering(Execution(1, stdout, stderr)), "web", "web-1"))
    assert found == WorkerStacks(name="web", worker="web-1", pid=None, problem=problem)


def test_names_and_numbers_in_a_report_are_not_the_pods_to_choose() -> None:
    report = {
        "name": "other",
        "worker": "other",
        "pid": 1,
        "source": "python",
        "place": "here",
        "problem": "",
    }
    document = json.dumps({"errors": [], "items": [report]}).encode()
    found = asyncio.run(stacks_of(answering(Execution(0, document, b"")), "web", "web-1"))
    assert found == WorkerStacks(name="web", worker="web-1", pid=None, source="python", place="here")


def test_command_that_fails_in_a_pod_is_its_problem_unless_it_is_not_permitted() -> None:
    failing = answering(ControlError("cannot run it", exit_code=1))
    assert asyncio.run(stacks_of(failing, "web", "web-1")).problem == "cannot run it"
    with pytest.raises(ControlError):
        asyncio.run(stacks_of(answering(ControlError("forbidden", exit_code=7)), "web", "web-1"))


def test_commands_in_pods_need_the_right(cluster: Cluster, write: Any, poolctl: Any) -> None:
    write(app("web", 8002))
    assert poolctl("start").code == 0
    cluster.ask(
        "rules",
        [
            {
                "apiGroups": ["", "apps", "batch"],
                "resources": ["deployments", "jobs", "pods"],
                "verbs": ["list"],
            }
        ],
    )
    for command in (["stacks"], ["walk", "--", "true"]):
        done = poolctl(*command)
        assert done.code == 7
        assert 'User "operator" cannot get resource "pods/exec"' in done.err
        assert "docs/kubernetes.md has the Role" in done.err


def test_interrupted_walk_leaves_no_process(
    cluster: Cluster, write: Any, real_pool: RealPool, directory: Path, poolctl: Any
) -> None:
    write(app("web", 8002))
    assert poolctl("start").code == 0
    (directory / "pool.toml").rename(real_pool.directory / "pool.toml")
    real_pool.env["KUBECONFIG"] = os.environ["KUBECONFIG"]
    pid = cluster.directory / "images" / "shop:1" / "pid"  # in the working directory of the command
    child = real_pool.spawn("walk", "--", "sh", "-c", "echo $$ > new; mv new pid; sleep 600 & wait")
    wait_until(pid.exists)
    group = int(pid.read_text())
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    wait_until(lambda: not alive(group))


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
