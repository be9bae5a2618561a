"""Imports apps and says how it went: run by an app's own interpreter, in which poolctl need not be installed.

Reads `{"jobs": […], "at_once": N}` from standard input and writes a list of answers, `{}` for what is well. Each
job has a process of its own, so that apps meet neither each other nor this one. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

# An interpreter reads these when it starts: a fork would come too late for them.
READ_AT_START = ("PYTHON", "LD_", "MALLOC_")
LARGEST_ANSWER_BYTES = 65536


def main() -> None:
    """Answer all jobs, or (with an argument) be the fresh process of one."""
    if len(sys.argv) > 1:
        _answer_one(json.loads(sys.argv[1]))
    request = json.load(sys.stdin)
    answers = run(request["jobs"], int(request["at_once"]))
    sys.stdout.write(json.dumps(answers))


def run(jobs: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
    """The answers in the order of the jobs."""
    answers: list[dict[str, Any]] = [{} for _ in jobs]
    # By the reading end of its pipe: the job's index, pid, deadline and what it has written.
    running: dict[int, tuple[int, int, float, bytearray]] = {}
    waiting = list(range(len(jobs)))[::-1]
    while waiting or running:
        while waiting and len(running) < at_once:
            index = waiting.pop()
            reading, pid = _start(jobs[index])
            running[reading] = (index, pid, time.monotonic() + jobs[index]["timeout_seconds"], bytearray())
        now = time.monotonic()
        nearest = min(deadline for _, _, deadline, _ in running.values())
        ready, _, _ = select.select(list(running), [], [], max(0.0, nearest - now))
        for reading in list(running):
            index, pid, deadline, written = running[reading]
            data = os.read(reading, LARGEST_ANSWER_BYTES) if reading in ready else b""
            written += data
            if data and len(written) <= LARGEST_ANSWER_BYTES:
                continue
            late = reading not in ready
            if late and time.monotonic() < deadline:
                continue
            del running[reading]
            os.close(reading)
            answers[index] = _finished(pid, bytes(written), late)
    return answers


def _finished(pid: int, written: bytes, late: bool) -> dict[str, Any]:
    # What the import started goes with it. A fork that has not come to its setsid() leads no group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if late:
        return {"kind": "timeout"}
    try:
        answer: dict[str, Any] = json.loads(written)
        return answer
    except ValueError:
        if os.WIFSIGNALED(status):
            message = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        else:
            message = f"exited with status {os.waitstatus_to_exitcode(status)}"
        return {"kind": "ended", "message": message}


def _start(job: dict[str, Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return reading, pid
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.set_inheritable(writing, True)
        os.environ.update(job["env"])
        if any(name.startswith(READ_AT_START) for name in job["env"]):
            import_job = json.dumps({**job, "writing": writing})
            os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), import_job])
        _answer_one({**job, "writing": writing})
    finally:
        os._exit(70)


def _answer_one(job: dict[str, Any]) -> NoReturn:
    writing = int(job["writing"])
    os.set_inheritable(writing, False)
    try:
        answer = _import(job)
    except BaseException as error:
        answer = _failure(error, job)
    os.write(writing, json.dumps(answer).encode()[:LARGEST_ANSWER_BYTES])
    # Neither threads nor exit handlers of the app are waited for.
    os._exit(0)


def _import(job: dict[str, Any]) -> dict[str, Any]:
    import importlib

    if job["user"]:
        _become(job["user"])
    os.chdir(job["cwd"])
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [job["app_dir"], *(path for path in sys.path if path != here)]
    sys.argv = [""]
    name, _, attributes = job["target"].partition(":")
    found: Any = importlib.import_module(name)
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            import difflib

            names = [known for known in dir(found) if not known.startswith("_")]
            near = difflib.get_close_matches(attribute, names, n=1)
            return {"kind": "no attribute", "near": near[0] if near else ""}
    if not callable(found):
        return {"kind": "not callable", "message": f"of type {type(found).__name__}"}
    return {}


def _become(user: str) -> None:
    import grp
    import pwd

    name, _, group = user.partition(":")
    account = pwd.getpwnam(name)
    gid = grp.getgrnam(group).gr_gid if group else account.pw_gid
    if os.getuid() != account.pw_uid:  # the whole driver may be that user's
        os.initgroups(name, gid)
        os.setgid(gid)
        os.setuid(account.pw_uid)
    os.environ["HOME"] = account.pw_dir


def _failure(error: BaseException, job: dict[str, Any]) -> dict[str, Any]:
    place = _place(error, job["app_dir"])
    if isinstance(error, ModuleNotFoundError) and error.name:
        return {"kind": "no module", "missing": error.name, "where": place}
    if isinstance(error, SystemExit):
        return {"kind": "ended", "message": f"exited with status {error.code}"}
    return {"kind": "raised", "message": f"{type(error).__name__}: {error}"[:1000], "where": place}


def _place(error: BaseException, app_dir: str) -> str:
    """The innermost line that is the app's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(app_dir.rstrip("/") + "/") and "/site-packages/" not in file:
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


if __name__ == "__main__":
    main()
