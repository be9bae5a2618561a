"""The pool itself: its configuration, its supervisor, its servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .check import CheckContext, CheckResult, ok, problem, warning


def configuration(context: CheckContext) -> Iterator[CheckResult]:
    """Every problem of the files and of what they refer to."""
    for each in context.problems:
        about = each.get("name") or each.get("key")
        name = f"{about}: " if about else ""
        yield problem(
            "configuration", f"{name}{each['message']}", str(each.get("hint") or "poolctl validate")
        )
    if context.pool is None:
        yield ok("configuration", "no pool is named and none found here: only the machine was checked")
    elif not context.problems:
        count = len(context.config or ())
        yield ok("configuration", f"{count} servers" if count != 1 else "1 server")


def certificates(context: CheckContext) -> Iterator[CheckResult]:
    """Those of the files that have expired, or soon will."""
    if context.config is None:
        return
    tls = [server.name for server in context.servers if server.tls]
    warned = [each for each in context.config.warnings if getattr(each, "key", "").endswith("tls.cert")]
    for each in warned:
        yield warning(
            "certificates",
            f"{each.name or '[dashboard]'}: {each.message}",
            "renew it, then run poolctl reload",
        )
    if tls and not warned:
        yield ok("certificates", f"those of {', '.join(tls)} are valid")


def interpreters(context: CheckContext) -> Iterator[CheckResult]:
    """Those that root runs and that another user can modify."""
    for each in context.config.warnings if context.config is not None else ():
        if getattr(each, "key", "").endswith(".python"):
            yield warning("interpreters", f"{each.name}: {each.message}", each.hint)


def supervisor(context: CheckContext) -> Iterator[CheckResult]:
    """Whether it answers."""
    if context.silence:
        yield problem("supervisor", context.silence, "poolctl start; see supervisor.log next to its socket")
    elif context.about.get("calm"):
        from poolctl.cli.remote import CRASH_LOOP

        yield problem("supervisor", CRASH_LOOP, "poolctl upgrade to a version in which it is fixed")
    elif context.about:
        yield ok("supervisor", f"runs as pid {context.about.get('supervisor_pid')}")
    elif context.pool is not None:
        yield ok("supervisor", "none runs")


def keeper(context: CheckContext) -> Iterator[CheckResult]:
    """Whether it answers its supervisor."""
    if wrong := context.about.get("keeper_problem"):
        pid = context.about.get("keeper_pid")
        yield problem("keeper", str(wrong), f"ps -o stat,wchan,args {pid} shows its state")


def beside_servers(context: CheckContext) -> Iterator[CheckResult]:
    """The pool's own endpoints that are not served: metrics, dashboard."""
    for each in context.about.get("not_served") or ():
        table, _, why = str(each).partition(": ")
        yield problem(
            table,
            why,
            "free the address or choose another one, then run poolctl reload",
        )


def servers(context: CheckContext) -> Iterator[CheckResult]:
    """Those of a running pool that are not as they should be."""
    bad = 0
    for item in context.items:
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
    if context.items and not bad:
        ready = sum(bool(item.get("ready")) for item in context.items)
        others = Counter(str(item.get("state")) for item in context.items if not item.get("ready"))
        counts = [
            f"{ready} of {len(context.items)} ready",
            *[f"{count} {state}" for state, count in others.items()],
        ]
        yield ok("servers", ", ".join(counts))


CHECKS = (configuration, certificates, interpreters, supervisor, keeper, beside_servers, servers)
