"""Whether apps can be imported, each in its own interpreter and environment, never in this process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from poolctl.bootstrap import OLDEST_PYTHON, uvicorn_problem
from poolctl.config.checks.interpreter_owner import start_options
from poolctl.config.model.problems import Finding

DRIVER = os.path.join(os.path.dirname(__file__), "import_driver.py")
PROBE_SECONDS = 10.0
# Says what the interpreter is without running anything of it: no site customisation matters to the answer.
PROBE = (
    "import sys, importlib.util as u, importlib.metadata as m; sys.path[:1] = [];"
    "v = u.find_spec('uvicorn') and ([d.version for d in m.distributions(name='uvicorn')] or ['unknown'])[0];"
    "print('poolctl', sys.version_info[0], sys.version_info[1], v)"
)
# Likewise, of the parser zttp, and of uvicorn's protocol classes for it.
ZTTP_PROBE = (
    "import sys, os, importlib.util as u; sys.path[:1] = []; s = u.find_spec('uvicorn');"
    "d = s.submodule_search_locations[0] if s else ''; z = u.find_spec('zttp') is not None;"
    "print('poolctl', z, os.path.exists(os.path.join(d, 'protocols', 'http', 'zttp_h2_impl.py')))"
)
LONGEST_MESSAGE = 300


class Import(NamedTuple):
    """One thing to import. `factory`: it is a function that makes the app (or the handlers)."""

    python: str
    target: str
    app_dir: str
    cwd: str
    env: tuple[tuple[str, str], ...]
    user: str | None
    factory: bool
    timeout_seconds: float


def check_interpreters(pythons: Mapping[str, str | None]) -> list[tuple[str, Finding]]:
    """The interpreters, each with the user of its server, that cannot run one, with the reason.

    Blocks; they are asked in parallel.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(len(pythons), os.cpu_count() or 1))) as threads:
        answers = list(threads.map(_probe, pythons, pythons.values()))
    return [(python, finding) for python, finding in zip(pythons, answers, strict=True) if finding]


def _ask(python: str, user: str | None, probe: str) -> list[str]:
    """The words that the interpreter prints."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [python, "-c", probe],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PROBE_SECONDS,
        cwd="/",
        check=False,
        **start_options(python, user, os.environ),
    )
    return done.stdout.split()


def _probe(python: str, user: str | None) -> Finding | None:
    def bad(message: str, hint: str) -> Finding:
        return Finding(("python",), f"{python} {message}", hint, python)

    try:
        words = _ask(python, user, PROBE)
    except FileNotFoundError:
        return bad("is not there", "name an interpreter or a virtual environment")
    except PermissionError:
        return bad("is not executable", "name an interpreter or a virtual environment")
    except subprocess.TimeoutExpired:
        return bad(f"did not answer within {PROBE_SECONDS:.0f} s", "is it a Python interpreter?")
    except OSError as error:
        return bad(f"cannot be run: {error.strerror}", "name an interpreter or a virtual environment")
    if len(words) != 4 or words[0] != "poolctl":
        return bad("is no Python interpreter", "name an interpreter or a virtual environment")
    if (int(words[1]), int(words[2])) < OLDEST_PYTHON:
        return bad(f"is Python {words[1]}.{words[2]}", "servers need Python 3.11 or newer")
    found = uvicorn_problem(python, None if words[3] == "None" else words[3])
    return None if found is None else bad(*found)


def check_zttp(pythons: Mapping[str, str | None]) -> list[tuple[str, Finding]]:
    """The interpreters, each with the user of its server, that cannot serve with zttp, with the reason. Blocks."""
    found = []
    for python, user in pythons.items():
        try:
            words = _ask(python, user, ZTTP_PROBE)
        except (OSError, subprocess.TimeoutExpired):
            continue  # what is wrong with it is said elsewhere
        if words[:1] != ["poolctl"] or words == ["poolctl", "True", "True"]:
            continue
        missing, package = (
            ("uvicorn that knows zttp", '"uvicorn>=0.53"') if words[1] == "True" else ("zttp", "zttp")
        )
        message = f'{python} has no {missing}, which http.implementation = "zttp" needs'
        fix = f"install it there: {python} -m pip install --upgrade {package}"
        found.append((python, Finding(("http", "implementation"), message, fix, "zttp")))
    return found


def check_imports(jobs: Sequence[Import], env: Mapping[str, str]) -> Iterator[tuple[Import, Finding]]:
    """The imports that fail, with the reason. Blocks until the last one is done or out of time.

    One process for each interpreter, in which every import gets a child of its own; as many at once as there
    are CPUs.
    """
    by_python: dict[tuple[str, str | None], list[Import]] = {}
    for job in jobs:
        # What another user can change runs as the server's user from its start on.
        user = job.user if start_options(job.python, job.user, env) else None
        by_python.setdefault((job.python, user), []).append(job)
    if not by_python:
        return
    with ThreadPoolExecutor(max_workers=len(by_python)) as threads:
        results = threads.map(lambda key: _run(key[0], key[1], by_python[key], env), by_python)
        for key, answers in zip(by_python, results, strict=True):
            for job, answer in zip(by_python[key], answers, strict=True):
                if answer:
                    yield job, Finding(("app",), *_words(job, answer), found=job.target)


def _run(
    python: str, user: str | None, jobs: Sequence[Import], env: Mapping[str, str]
) -> Iterable[dict[str, Any]]:
    request = {
        "jobs": [job._asdict() | {"env": dict(job.env)} for job in jobs],
        "at_once": os.cpu_count() or 1,
    }
    process = subprocess.Popen(
        [python, "-I", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **{"env": dict(env), **start_options(python, user, env)},
    )
    try:
        # Every child of the driver has its own time; this is for a driver that is lost itself.
        limit = sum(job.timeout_seconds for job in jobs) + PROBE_SECONDS
        output, _ = process.communicate(json.dumps(request).encode(), timeout=limit)
        answers: list[dict[str, Any]] = json.loads(output)
    except (ValueError, subprocess.TimeoutExpired):
        answers = []
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    lost = {"kind": "lost", "message": f"{python} did not answer"}
    return [*answers, *[lost] * (len(jobs) - len(answers))]


def _words(job: Import, answer: dict[str, Any]) -> tuple[str, str]:
    """Message and fix of a failed import."""
    module, _, attribute = job.target.partition(":")
    message = _one_line(str(answer.get("message", "")))
    where = f" ({answer['where']})" if answer.get("where") else ""
    kind = answer["kind"]
    if kind == "no module" and answer.get("missing", "").partition(".")[0] == module.partition(".")[0]:
        return f"there is no module {module!r} in {job.app_dir}{where}", "check app and app_dir"
    if kind == "no module":
        missing = answer["missing"]
        hint = f"install it there: {job.python} -m pip install {missing.partition('.')[0]}"
        return f"{module} imports {missing!r}, which is not installed{where}", hint
    if kind == "no attribute":
        near = answer.get("near") or ""
        return f"{module} has no {attribute!r}", f"did you mean {near!r}?" if near else "check app"
    if kind == "not callable":
        return (
            f"{job.target} is {message}, not an ASGI application",
            "name the application, or set factory = true",
        )
    if kind == "timeout":
        return (
            f"{module} was not imported within {job.timeout_seconds:g} s",
            "start nothing at import, or raise start_timeout",
        )
    if kind == "ended":
        return f"the process ended while it imported {module}: {message}", "a module must not end its process"
    return f"{module} cannot be imported: {message}{where}", f"fix it: {job.python} -c 'import {module}'"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line[:LONGEST_MESSAGE] + ("…" if len(line) > LONGEST_MESSAGE else "")
