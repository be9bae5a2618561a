"""Runs commands in the pods of servers, for `poolctl walk` and `poolctl stacks`."""

from __future__ import annotations

import asyncio
import json
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from poolctl.control.server_answers import StacksResult
from poolctl.errors import ControlError
from poolctl.exit_codes import NOT_EXECUTABLE, NOT_PERMITTED
from poolctl.json_form import Table, from_json
from poolctl.runners.stack_report import WorkerStacks

from ._cluster import Cluster, Execution
from ._objects import CONFIG_DIRECTORY, CONFIG_FILE
from ._state import Pod, Workload

# Run in the pod by `python3`: a process in a pod outlives the connection that it was started by, unless it notices the
# end of its standard input. The launcher counts towards the pod's memory limit.
_LAUNCHER = """\
import os, signal, subprocess, sys, threading, time
merged, count = sys.argv[1] == "merged", int(sys.argv[2])
variables, command = sys.argv[3 : 3 + count], sys.argv[3 + count :]
environment = dict(os.environ, **dict(each.split("=", 1) for each in variables))
if merged:
    os.dup2(1, 2)
try:
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
except (OSError, ValueError) as error:
    sys.stderr.write(f"{command[0]}: {getattr(error, 'strerror', None) or error}\\n")
    sys.exit(126 if isinstance(error, PermissionError) else 127)
def end():
    while os.read(0, 65536):
        pass
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            pass
        time.sleep(5)
threading.Thread(target=end, daemon=True).start()
code = child.wait()
os._exit(code if code >= 0 else 128 - code)
"""
_MOST_AT_ONCE = 32  # commands; each has a connection of its own
_MOST_OUTPUT_BYTES = 16 * 1024 * 1024
_MOST_STACKS_BYTES = 4 * 1024 * 1024
_STACKS_SECONDS = 20.0  # a command of Python begins slowly in a container with little processor time


async def execute(
    cluster: Cluster, pod: str, command: Sequence[str], variables: Mapping[str, str], *, merged: bool
) -> Execution:
    """Run a command in the pod with these variables in its environment, and without standard input.

    `merged` sends its standard error to its standard output. If this call is cancelled, the command gets SIGTERM, and
    SIGKILL 5 s later. Raises ControlError.
    """
    given = [f"{name}={value}" for name, value in variables.items()]
    launcher = ["python3", "-I", "-c", _LAUNCHER, "merged" if merged else "apart", str(len(given))]
    return await cluster.run(pod, [*launcher, *given, *command], most_bytes=_MOST_OUTPUT_BYTES)


async def stacks_of(cluster: Cluster, server: str, pod: str) -> WorkerStacks:
    """The stacks of a pod's process, or why there are none. Raises ControlError (7) if it is not permitted."""
    unknown = WorkerStacks(name=server, worker=pod, pid=None)
    file = posixpath.join(CONFIG_DIRECTORY, CONFIG_FILE)
    try:
        done = await cluster.run(
            pod,
            ["poolctl", "-c", file, "stacks", "-o", "json"],
            most_bytes=_MOST_STACKS_BYTES,
            seconds=_STACKS_SECONDS,
        )
    except ControlError as error:
        if error.exit_code == NOT_PERMITTED:
            raise
        return replace(unknown, problem=error.message)
    try:
        document = json.loads(done.stdout)
        if document["errors"]:
            return replace(unknown, problem=f"it has no stacks: {document['errors'][0]['message']}")
        (found,) = from_json(StacksResult, document).items
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        last = (done.stderr or done.stdout).decode(errors="replace").rstrip().rpartition("\n")[2]
        said = f": {last[:200]}" if last else ""
        return replace(unknown, problem=f"poolctl stacks gives no valid answer there{said}")
    return replace(found, name=server, worker=pod, pid=None)


async def stacks_of_pods(cluster: Cluster, workloads: Iterable[Workload]) -> list[WorkerStacks]:
    """The stacks of each pod of these servers. Raises ControlError (7) if that is not permitted."""
    turns = asyncio.Semaphore(_MOST_AT_ONCE)

    async def stacks(workload: Workload, pod: Pod) -> WorkerStacks:
        problem = ""
        if workload.config.command:
            problem = "a program has no Python stacks"
        elif pod.is_lost:
            problem = f"its node {pod.node} is lost"
        elif pod.has_ended or not pod.has_begun:
            problem = "its container does not run"
        if problem:
            return WorkerStacks(name=workload.config.name, worker=pod.name, pid=None, problem=problem)
        async with turns:
            return await stacks_of(cluster, workload.config.name, pod.name)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stacks(each, pod)) for each in workloads for pod in each.pods]
    except BaseExceptionGroup as raised:
        raise raised.exceptions[0] from None
    return [each.result() for each in tasks]


async def run_in_first_ready_pods(
    cluster: Cluster, workloads: Sequence[Workload], options: Table, progress: Callable[[Table], None]
) -> None:
    """Run one command per server, from `options["runs"]`, in its first ready pod; report each run to `progress`.

    If there is no ready pod, or the command cannot be run, the run has the exit code NOT_EXECUTABLE and a problem.
    Raises ControlError (7) if the user may not run commands.
    """
    turns = asyncio.Semaphore(min(int(options["jobs"]), _MOST_AT_ONCE))
    failed = False

    async def run(workload: Workload) -> None:
        nonlocal failed
        name = workload.config.name
        async with turns:
            if failed and options["fail_fast"]:
                return
            done = await _run_in_first_ready_pod(
                cluster, workload, options["runs"][name], merged=bool(options["merged"])
            )
            failed = failed or done["exit_code"] != 0
            progress({"run": {"name": name, **done}})

    try:
        async with asyncio.TaskGroup() as group:
            for each in workloads:
                group.create_task(run(each))
    except BaseExceptionGroup as raised:
        raise raised.exceptions[0] from None


async def _run_in_first_ready_pod(
    cluster: Cluster, workload: Workload, wanted: Table, *, merged: bool
) -> Table:
    pod = min((each.name for each in workload.pods if each.is_ready), default="")
    if not pod:
        why = workload.failure()
        problem = f"no worker is ready{f': {why.message}' if why else ''}"
        hint = why.hint if why else f"poolctl start {workload.config.name}" if workload.is_stopped else ""
        return {"exit_code": NOT_EXECUTABLE, "stdout": "", "stderr": "", "problem": problem, "hint": hint}
    try:
        done = await execute(cluster, pod, wanted["command"], wanted["variables"], merged=merged)
    except ControlError as error:
        if error.exit_code == NOT_PERMITTED:
            raise
        problem, hint = error.message, error.hint
        return {"exit_code": NOT_EXECUTABLE, "stdout": "", "stderr": "", "problem": problem, "hint": hint}
    output, errors = (each.decode("utf-8", "backslashreplace") for each in (done.stdout, done.stderr))
    return {"exit_code": done.exit_code, "stdout": output, "stderr": errors}
