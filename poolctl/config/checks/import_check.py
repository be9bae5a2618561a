"""Whether interpreters can run servers and apps can be imported: asked of the interpreters, never in this process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from poolctl.bootstrap import OLDEST_PYTHON, uvicorn_problem
from poolctl.config.checks.interpreter import start_options, user_options
from poolctl.config.values.problems import Finding

IMPORT_APP = os.path.join(os.path.dirname(__file__), "import_app.py")
PROBE_SECONDS = 10.0
# Prints the interpreter's version, its uvicorn's, and whether it has the parser zttp, without importing its packages.
PROBE = (
    "import sys, importlib.util as u, importlib.metadata as m; sys.path[:1] = [];"
    "v = u.find_spec('uvicorn') and ([d.version for d in m.distributions(name='uvicorn')] or ['unknown'])[0];"
    "print('poolctl', sys.version_info[0], sys.version_info[1], v, u.find_spec('zttp') is not None)"
)
OLDEST_UVICORN_WITH_ZTTP = (0, 53)
# Variables that affect an interpreter's start, before it drops to the rights of its server's user.
READ_AT_START = ("PYTHON", "LD_", "MALLOC_")
LARGEST_ANSWER_BYTES = 65536
LONGEST_MESSAGE = 300


class Import(NamedTuple):
    """One thing to import."""

    python: str
    target: str
    app_dir: str
    cwd: str
    env: tuple[tuple[str, str], ...]
    user: str | None
    timeout_seconds: float


def check_interpreters(
    pythons: Mapping[str, str | None], with_zttp: Collection[str] = ()
) -> list[tuple[str, Finding]]:
    """The interpreters that cannot run a server as its user, each with the reason.

    Interpreters in `with_zttp` need that parser as well. Blocks; all are checked in parallel.
    """
    wanted = [each in with_zttp for each in pythons]
    with ThreadPoolExecutor(max_workers=max(1, min(len(pythons), os.cpu_count() or 1))) as threads:
        answers = list(threads.map(_unusable, pythons, pythons.values(), wanted))
    return [(python, finding) for python, finding in zip(pythons, answers, strict=True) if finding]


def _unusable(python: str, user: str | None, with_zttp: bool) -> Finding | None:
    problem: tuple[str, str] | None
    other = "name an interpreter or a virtual environment"
    try:
        done = subprocess.run(
            [python, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            cwd="/",
            check=False,
            **start_options(python, user, os.environ),
        )
    except FileNotFoundError:
        problem = "is not there", other
    except PermissionError:
        problem = "is not executable", other
    except subprocess.TimeoutExpired:
        problem = f"did not answer within {PROBE_SECONDS:.0f} s", "is it a Python interpreter?"
    except OSError as error:
        problem = f"cannot be run: {error.strerror}", other
    else:
        words = done.stdout.split()
        if len(words) != 5 or words[0] != "poolctl":
            problem = "is no Python interpreter", other
        elif (int(words[1]), int(words[2])) < OLDEST_PYTHON:
            problem = f"is Python {words[1]}.{words[2]}", "servers need Python 3.11 or newer"
        else:
            problem = uvicorn_problem(python, None if words[3] == "None" else words[3])
            if problem is None and with_zttp:
                return _without_zttp(python, words[3], words[4] == "True")
    return Finding(("python",), f"{python} {problem[0]}", problem[1], python) if problem else None


def _without_zttp(python: str, uvicorn: str, has_zttp: bool) -> Finding | None:
    numbers = re.match(r"(\d+)\.(\d+)", uvicorn)
    if has_zttp and (not numbers or (int(numbers[1]), int(numbers[2])) >= OLDEST_UVICORN_WITH_ZTTP):
        return None
    needed = ".".join(map(str, OLDEST_UVICORN_WITH_ZTTP))
    missing, package = ("uvicorn that knows zttp", f'"uvicorn>={needed}"') if has_zttp else ("zttp", "zttp")
    message = f'{python} has no {missing}, which http.implementation = "zttp" needs'
    fix = f"install it there: {python} -m pip install --upgrade {package}"
    return Finding(("http", "implementation"), message, fix, "zttp")


def check_imports(jobs: Sequence[Import], env: Mapping[str, str]) -> Iterator[tuple[Import, Finding]]:
    """The imports that fail, with the reason; as many at once as there are CPUs.

    Blocks until the last import is done or out of time.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(len(jobs), os.cpu_count() or 1))) as threads:
        for job, answer in zip(jobs, threads.map(lambda job: _import(job, env), jobs), strict=True):
            if answer:
                yield job, Finding(("app",), *_message_and_fix(job, answer), found=job.target)


def _import(job: Import, env: Mapping[str, str]) -> dict[str, object]:
    """Import the app in a process of its own; returns the answer of that process."""
    whole = {**env, **dict(job.env)}
    options = {"env": whole, **start_options(job.python, job.user, whole)}
    if job.user is not None and any(name.startswith(READ_AT_START) for name, _ in job.env):
        options |= user_options(job.user, whole)
    options["env"] = {_encoded(name): _encoded(value) for name, value in options["env"].items()}
    # The environment may hold secrets, so it is not passed as an argument, which every user can read.
    request = {key: getattr(job, key) for key in ("target", "app_dir", "cwd", "user")}
    try:
        process = subprocess.Popen(
            [job.python, "-P", IMPORT_APP, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )
    except OSError as error:
        return {"kind": "raised", "message": f"{job.python} cannot be run: {error.strerror}"}
    assert process.stdout
    try:
        written = _read(process.stdout.fileno(), job.timeout_seconds)
    finally:
        process.stdout.close()
        # Killed before it is reaped, so that its group id is still its own; processes started by the import end with
        # it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if written is None:
        return {"kind": "timeout"}
    try:
        answer: dict[str, object] = json.loads(written)
    except ValueError:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return {"kind": "ended", "message": how}
    return answer


def _encoded(text: str) -> bytes:
    # As in the worker: the locale may have no encoding for this text.
    return text.encode("utf-8", "surrogateescape")


def _read(descriptor: int, timeout_seconds: float) -> bytes | None:
    """Everything written to a pipe, up to the largest answer; None if it does not end within the timeout."""
    deadline = time.monotonic() + timeout_seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    written = b""
    while len(written) <= LARGEST_ANSWER_BYTES:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        data = os.read(descriptor, LARGEST_ANSWER_BYTES)
        if not data:
            break
        written += data
    return written


def _message_and_fix(job: Import, answer: dict[str, object]) -> tuple[str, str]:
    module, _, attribute = job.target.partition(":")
    message = " ".join(str(answer.get("message", "")).split())
    message = message[:LONGEST_MESSAGE] + ("…" if len(message) > LONGEST_MESSAGE else "")
    where = f" ({answer['where']})" if answer.get("where") else ""
    kind, missing, near = answer["kind"], str(answer.get("missing")), answer.get("near")
    if kind == "no module" and missing.partition(".")[0] == module.partition(".")[0]:
        return f"there is no module {module!r} in {job.app_dir}{where}", "check app and app_dir"
    if kind == "no module":
        hint = f"install it there: {job.python} -m pip install {missing.partition('.')[0]}"
        return f"{module} imports {missing!r}, which is not installed{where}", hint
    if kind == "no attribute":
        return f"{module} has no {attribute!r}", f"did you mean {near!r}?" if near else "check app"
    if kind == "not callable":
        hint = "name the application, or set factory = true"
        return f"{job.target} is {message}, not an ASGI application", hint
    if kind == "timeout":
        hint = "start nothing at import, or raise start_timeout"
        return f"{module} was not imported within {job.timeout_seconds:g} s", hint
    if kind == "ended":
        message = f"the process ended while it imported {module}: {message}"
        return message, "a module must not end its process"
    return f"{module} cannot be imported: {message}{where}", f"fix it: {job.python} -c 'import {module}'"
