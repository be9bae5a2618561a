"""The pool itself: its configuration, its supervisor, its servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .check import CheckContext, CheckResult, ok, problem, warning


def configuration(case: CheckContext) -> Iterator[CheckResult]:
    """Every problem of the files and of what they refer to."""
    for each in case.problems:
        about = each.get("name") or each.get("key")
        name = f"{about}: " if about else ""
        yield problem(
            "configuration", f"{name}{each['message']}", str(each.get("hint") or "poolctl validate")
        )
    if case.pool is None:
        yield ok("configuration", "no pool is named and none found here: only the machine was checked")
    elif not case.problems:
        count = len(case.config or ())
        yield ok("configuration", f"{count} servers" if count != 1 else "1 server")


def certificates(case: CheckContext) -> Iterator[CheckResult]:
    """Those of the files that have expired, or soon will."""
    if case.config is None:
        return
    tls = [server.name for server in case.servers if server.tls]
    warned = [each for each in case.config.warnings if getattr(each, "key", "").endswith("tls.cert")]
    for each in warned:
        yield warning(
            "certificates",
            f"{each.name or '[dashboard]'}: {each.message}",
            "renew it, then run poolctl reload",
        )
    if tls and not warned:
        yield ok("certificates", f"those of {', '.join(tls)} are valid")


def interpreters(case: CheckContext) -> Iterator[CheckResult]:
    """Those that root runs and that another user can modify."""
    for each in case.config.warnings if case.config is not None else ():
        if getattr(each, "key", "").endswith(".python"):
            yield warning("interpreters", f"{each.name}: {each.message}", each.hint)


def supervisor(case: CheckContext) -> Iterator[CheckResult]:
    """Whether it answers."""
    if case.silence:
        yield problem("supervisor", case.silence, "poolctl start; see supervisor.log next to its socket")
    elif case.about.get("calm"):
        from poolctl.cli.remote import CRASH_LOOP

        yield problem("supervisor", CRASH_LOOP, "poolctl upgrade to a version in which it is fixed")
    elif case.about:
        yield ok("supervisor", f"runs as pid {case.about.get('supervisor_pid')}")
    elif case.pool is not None:
        yield ok("supervisor", "none runs")


def keeper(case: CheckContext) -> Iterator[CheckResult]:
    """Whether it answers its supervisor."""
    if wrong := case.about.get("keeper_problem"):
        pid = case.about.get("keeper_pid")
        yield problem("keeper", str(wrong), f"ps -o stat,wchan,args {pid} shows its state")


def beside_servers(case: CheckContext) -> Iterator[CheckResult]:
    """The pool's own endpoints that are not served: metrics, dashboard."""
    for each in case.about.get("not_served") or ():
        table, _, why = str(each).partition(": ")
        yield problem(table, why, "stop what uses the address, or choose another one, then poolctl reload")


def servers(case: CheckContext) -> Iterator[CheckResult]:
    """Those of a running pool that are not as they should be."""
    bad = 0
    for item in case.items:
        name, state = item.get("name"), item.get("state")
        if state in ("failed", "backoff"):
            bad += 1
            why = item.get("message") or f"restarted {item.get('restarts', 0)} times"
            now = "is in backoff" if state == "backoff" else "has failed"
            yield problem("servers", f"{name} {now}: {why}", f"poolctl logs {name}")
        elif item.get("health") in ("warn", "ko"):
            bad += 1
            said = f"{name} is {state} but its health is {item['health']}"
            yield warning("servers", said, f"poolctl show {name}, poolctl logs {name}")
    if case.items and not bad:
        ready = sum(bool(item.get("ready")) for item in case.items)
        others = Counter(str(item.get("state")) for item in case.items if not item.get("ready"))
        counts = [
            f"{ready} of {len(case.items)} ready",
            *[f"{count} {state}" for state, count in others.items()],
        ]
        yield ok("servers", ", ".join(counts))


CHECKS = (configuration, certificates, interpreters, supervisor, keeper, beside_servers, servers)
