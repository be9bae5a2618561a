"""Versions: poolctl's, the running supervisor's, and what every server's interpreter has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from poolctl import __version__
from poolctl.bootstrap import OLDEST_PYTHON, uvicorn_problem
from poolctl.config import ServerConfig, interpreter, start_options

from .check import CheckContext, CheckResult, ok, problem, warning

_ASK_SECONDS = 20.0
_ASK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(json.dumps({"python": sys.version_info[:3], **{n: of(n) for n in ("uvicorn", "uvloop", "httptools")}}))
"""


def installed(context: CheckContext) -> Iterator[CheckResult]:
    """This poolctl against the supervisor that runs."""
    python = ".".join(map(str, sys.version_info[:3]))
    running = str(context.about.get("version") or "")
    if running and running != __version__:
        said = f"{__version__} is installed, the supervisor runs {running}"
        yield warning("poolctl", said, "poolctl upgrade: the servers keep serving")
    elif running and str(context.about.get("python")) != python:
        said = f"the supervisor runs on Python {context.about.get('python')}, poolctl on {python}"
        yield warning("poolctl", said, "poolctl stop and poolctl start switch it")
    else:
        yield ok("poolctl", f"{__version__} on Python {python} ({sys.executable})")


def interpreters(context: CheckContext) -> Iterator[CheckResult]:
    """The packages of the servers' interpreters: uvicorn at least."""
    using: dict[str, list[ServerConfig]] = {}
    for server in context.servers:
        if not server.command:
            python = interpreter(server.python, server.base_dir or os.getcwd(), context.env)
            using.setdefault(python, []).append(server)
    for python, servers in using.items():
        yield _judged(python, servers)


def _judged(python: str, servers: list[ServerConfig]) -> CheckResult:
    names = [server.name for server in servers]
    # One of root's servers runs it as root in any context.
    user = None if any(server.user is None for server in servers) else servers[0].user
    found = _asked(python, user)
    whose = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    if isinstance(found, str):
        return problem(
            "interpreter", f"{python} ({whose}): {found}", "fix `python` of the servers, or $VIRTUAL_ENV"
        )
    version = ".".join(map(str, found["python"]))
    if tuple(found["python"][:2]) < OLDEST_PYTHON:
        fix = "use Python 3.11 or newer"
        return problem("interpreter", f"{python} ({whose}) is Python {version}", fix)
    if (unfit := uvicorn_problem(python, found["uvicorn"])) is not None:
        return problem("interpreter", f"{python} ({whose}) {unfit[0]}", unfit[1])
    slow = [name for name in ("uvloop", "httptools") if found[name] is None]
    said = f"{python}: Python {version}, uvicorn {found['uvicorn']}"
    if slow:
        return ok(
            "interpreter",
            f"{said}; faster with {' and '.join(slow)}: {python} -m pip install {' '.join(slow)}",
        )
    return ok("interpreter", f"{said}, uvloop {found['uvloop']}, httptools {found['httptools']}")


def _asked(python: str, user: str | None) -> dict[str, Any] | str:
    """Its packages, or why they are unknown."""
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [python, "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            **start_options(python, user, os.environ),
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"did not answer within {_ASK_SECONDS:.0f} s"
    except ValueError:
        return (done.stderr.strip().splitlines() or ["printed nothing"])[-1]
    return found


CHECKS = (installed, interpreters)
