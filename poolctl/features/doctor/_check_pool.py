"""Checks the pool itself: its configuration, supervisor and servers, and versions of poolctl, Python and uvicorn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

from poolctl import __version__
from poolctl.bootstrap import MIN_PYTHON, installed_build, uvicorn_problem
from poolctl.cli.reload_plan import drift_line
from poolctl.cli.render import relative_to_cwd
from poolctl.cli.supervisor_requests import CRASH_LOOP
from poolctl.config import ServerConfig, interpreter, start_options
from poolctl.control.client import stop_and_start
from poolctl.control.gateway_answers import GatewayStatus
from poolctl.control.protocol import PROTOCOL
from poolctl.feature import features
from poolctl.installation import install_command
from poolctl.json_form import Table, from_json
from poolctl.keeper.left_children import left_daemons
from poolctl.platform import process_name
from poolctl.routing.route_report import EXCLUDED

from ._check import CheckContext, CheckResult, ok, problem, warning

_VERSIONS_TIMEOUT_SECONDS = 20.0
# The key of a certificate in servers, tables and the gateway's listeners, which may have several certificates.
_CERTIFICATE = re.compile(r"\btls(\[\d+\])?\.cert$")
_VERSIONS_PROGRAM = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(json.dumps({"python": sys.version_info[:3], **{n: of(n) for n in ("uvicorn", "uvloop", "httptools")}}))
"""

_WRONG_KEY_TEXT = "its key belongs to another certificate"
_NAMES_SHOWN = 5
_NOT_INSTALLED = " not installed"  # in a warning about a library, before the command that installs it


def configuration(context: CheckContext) -> Iterator[CheckResult]:
    """All problems of the configuration, and of the paths and programs that it refers to."""
    for entry in context.problems:
        place = ""
        if entry.file and entry.line:
            place = f"{relative_to_cwd(entry.file)}:{entry.line}:{entry.column}"
        text = ": ".join(filter(None, (place, entry.name or entry.key, entry.message)))
        yield problem("configuration", text, entry.hint or "poolctl validate")
    if context.pool is None:
        yield ok("configuration", "no pool is named and none found here: only the machine was checked")
    elif not context.problems:
        count = len(context.config or ())
        yield ok("configuration", f"{count} servers" if count != 1 else "1 server")
    if context.changed is not None:
        fix = "correct the file" if context.problems else "poolctl reload --dry-run shows the difference"
        yield warning("configuration", drift_line(context.changed), fix)


def certificates(context: CheckContext) -> Iterator[CheckResult]:
    """Certificates that have expired or will soon."""
    if context.config is None:
        return
    tls = [server.name for server in context.servers if server.tls]
    warned = [(getattr(note, "key", ""), note) for note in context.config.warnings]
    warned = [(key, note) for key, note in warned if _CERTIFICATE.search(key)]
    for key, note in warned:
        table = key.partition(".")[0]
        message = f"{note.name or f'[{table}]'}: {note.message}"
        yield warning("certificates", message, "renew it, then run poolctl reload")
    if tls and not warned:
        yield ok("certificates", f"those of {', '.join(tls)} are valid")


def unsafe_root_interpreters(context: CheckContext) -> Iterator[CheckResult]:
    """Interpreters run by root that another user can modify."""
    for note in context.config.warnings if context.config is not None else ():
        if getattr(note, "key", "").endswith(".python"):
            yield warning("interpreters", f"{note.name}: {note.message}", note.hint)


def gateway_program(context: CheckContext) -> Iterator[CheckResult]:
    """What is unsafe or imprecise about the program that serves the gateway."""
    for note in context.config.warnings if context.config is not None else ():
        key = getattr(note, "key", "")
        if key.startswith("gateway.") and not _CERTIFICATE.search(key):
            yield warning("gateway", note.message, note.hint)


def supervisor(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the supervisor answers, and which of the pool's own endpoints are not served."""
    about = context.about
    if context.supervisor_problem:
        yield problem(
            "supervisor", context.supervisor_problem, "poolctl start; see supervisor.log next to its socket"
        )
    elif about is None:
        yield from [ok("supervisor", "none runs")] if context.pool is not None else []
    elif about.calm:
        yield problem("supervisor", CRASH_LOOP, "poolctl upgrade to a version in which it is fixed")
    else:
        yield ok("supervisor", f"runs as pid {about.supervisor_pid}")
    if about is None:
        return
    advice = {name: fix for feature in features() for name, fix in feature.warnings.items()}
    for text in about.not_served or ():
        table, _, reason = text.partition(": ")
        if (name := table.strip("[]")) in advice:
            yield warning(table, reason, advice[name])
        else:
            message, _, command = reason.partition("; ") if _NOT_INSTALLED in reason else (reason, "", "")
            yield problem(table, message, command or _fix_for_unserved_endpoint(table, reason))
    if context.gateway is not None and not context.gateway["problem"]:
        gateway = from_json(GatewayStatus, context.gateway)
        listed = ", ".join(gateway.addresses)
        yield ok(
            "[gateway]", f"{gateway.state}: {listed}; {gateway.routes} routes" if listed else gateway.state
        )
    for route in context.routes:
        if route.why and route.way != EXCLUDED:
            route_message = f"the route {route.alias} is {route.state}: {route.why}"
            yield warning("[gateway]", route_message, "poolctl health --routes")


def _fix_for_unserved_endpoint(table: str, why: str) -> str:
    """How to fix the endpoint of a table, such as [metrics], that is not served because of `why`."""
    if table == "[events]":
        return "make it writable, or name another file as events.path, then run poolctl reload"
    if why.startswith(("it has no token", "its token")):
        return "export the variable, then run poolctl reload --env; or name a token_file"
    if _WRONG_KEY_TEXT in why:
        return "name the key that the certificate was made for, then run poolctl reload"
    if why.startswith(("cannot read ", "tls.")) or " cannot be used" in why:
        return f"check `tls` of {table}, then run poolctl reload"
    if "its process" in why and table != "[gateway]":
        return f"poolctl events; see {table.strip('[]')}.log next to the supervisor's socket"
    if " in use" in why:
        return "free the address, and it is opened within seconds; or choose another one, then run poolctl reload"
    return "poolctl logs --gateway" if table == "[gateway]" else f"correct {table}, then run poolctl reload"


def servers(context: CheckContext) -> Iterator[CheckResult]:
    """The servers of a running pool that have failed, or are in backoff or unhealthy."""
    has_problem = False
    for item in context.items:
        name, state = item.name, item.state
        if state in ("failed", "backoff"):
            has_problem = True
            failure = context.failures.get(name)
            reason = failure.message.partition("\n")[0] if failure else f"restarted {item.restarts} times"
            fix = (failure and failure.hint) or f"poolctl logs {name}"
            state_text = "is in backoff" if state == "backoff" else "has failed"
            yield problem("servers", f"{name} {state_text}: {reason}", fix)
        elif item.health in ("warn", "ko"):
            has_problem = True
            message = f"{name} is {state} but its health is {item.health}"
            yield warning("servers", message, f"poolctl show {name}, poolctl logs {name}")
    if context.items and not has_problem:
        states = Counter("ready" if item.ready else item.state for item in context.items)
        yield ok("servers", ", ".join(f"{count} {state}" for state, count in states.items()))


def readiness(context: CheckContext) -> Iterator[CheckResult]:
    """Servers without a readiness probe: new code replaces the running code even if it does not work."""
    unprobed = [
        server.name for server in context.servers if server.listens and server.health.readiness is None
    ]
    if unprobed:
        rest = f" and {len(unprobed) - _NAMES_SHOWN} more" if len(unprobed) > _NAMES_SHOWN else ""
        names = f"{', '.join(unprobed[:_NAMES_SHOWN])}{rest}"
        text = f"without a readiness probe, so new code that starts and does not work may replace it: {names}"
        yield warning("readiness", text, 'health = "/PATH" in its table')


def left_processes(context: CheckContext) -> Iterator[CheckResult]:
    """Processes that programs left behind in their own sessions, where stop signals do not reach them."""
    if context.about is None:
        return
    workers = {pid for item in context.items for pid in item.pids}
    for name, pid in left_daemons(context.about.keeper_pid, workers):
        message = f"{name} has left pid {pid} ({process_name(pid)}) behind, with a session of its own"
        yield warning(
            "processes", message, "keep the program in the foreground; poolctl stop ends it with the pool"
        )


def supervisor_version_match(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the versions of this poolctl and the running supervisor match."""
    python = ".".join(map(str, sys.version_info[:3]))
    about = context.about
    too_old = stop_and_start(about.files) if about is not None and about.protocol < PROTOCOL else ""
    fix = too_old or "poolctl upgrade: the servers keep serving"
    if about is not None and about.version != __version__:
        message = f"{__version__} is installed, the supervisor runs {about.version}"
        yield warning("poolctl", message, fix)
    elif about is not None and (too_old or about.build not in ("", installed_build())):
        message = f"another build of {__version__} is installed than the supervisor runs"
        yield warning("poolctl", message, fix)
    elif about is not None and about.python != python:
        message = f"the supervisor runs on Python {about.python}, poolctl on {python}"
        yield warning("poolctl", message, stop_and_start(about.files))
    else:
        yield ok("poolctl", f"{__version__} on Python {python} ({sys.executable})")


def packages(context: CheckContext) -> Iterator[CheckResult]:
    """Whether each interpreter of the servers is recent enough, and has uvicorn."""
    servers_by_python: dict[str, list[ServerConfig]] = {}
    for server in context.servers:
        if not server.command:
            python = interpreter(server.python)
            servers_by_python.setdefault(python, []).append(server)
    for python, servers in servers_by_python.items():
        yield _package_result(python, servers)


def _package_result(python: str, servers: list[ServerConfig]) -> CheckResult:
    names = [server.name for server in servers]
    # None, which means this user, if any server runs the interpreter as this user.
    user = None if any(server.user is None for server in servers) else servers[0].user
    versions = _query_packages(python, user)
    users_text = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    if isinstance(versions, str):
        return problem(
            "interpreter",
            f"{python} ({users_text}): {versions}",
            "fix `python` of the servers, or $VIRTUAL_ENV",
        )
    version = ".".join(map(str, versions["python"]))
    if tuple(versions["python"][:2]) < MIN_PYTHON:
        fix = "use Python 3.11 or newer"
        return problem("interpreter", f"{python} ({users_text}) is Python {version}", fix)
    if (uvicorn_fault := uvicorn_problem(python, versions["uvicorn"])) is not None:
        return problem("interpreter", f"{python} ({users_text}) {uvicorn_fault[0]}", uvicorn_fault[1])
    slow = [name for name in ("uvloop", "httptools") if versions[name] is None]
    message = f"{python}: Python {version}, uvicorn {versions['uvicorn']}"
    if slow:
        advice = f"faster with {' and '.join(slow)}: {install_command(python, *slow)}"
        return ok("interpreter", f"{message}; {advice}")
    return ok("interpreter", f"{message}, uvloop {versions['uvloop']}, httptools {versions['httptools']}")


def _query_packages(python: str, user: str | None) -> Table | str:
    try:
        process: subprocess.CompletedProcess[str] = subprocess.run(
            [python, "-c", _VERSIONS_PROGRAM],
            capture_output=True,
            text=True,
            timeout=_VERSIONS_TIMEOUT_SECONDS,
            **start_options(python, user, os.environ),
        )
        versions: Table = json.loads(process.stdout)
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"did not answer within {_VERSIONS_TIMEOUT_SECONDS:.0f} s"
    except ValueError:
        return (process.stderr.strip().splitlines() or ["printed nothing"])[-1]
    return versions


CHECKS = (
    configuration, certificates, unsafe_root_interpreters, gateway_program, supervisor, servers, readiness,
    left_processes, supervisor_version_match, packages,
)  # fmt: skip
