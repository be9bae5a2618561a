"""The supervisor's cost of probing: that of a thousand servers, each probed every five seconds."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator

from . import processes
from .project import Project
from .report import Row

QUESTIONS_PER_SECOND = 200
# A thousand workers need more memory than most machines have to spare, and the supervisor's cost depends on the
# number of probes.
SERVERS = 250
WATCHED_SECONDS = 10.0


def run(options: Namespace) -> Iterator[Row]:
    servers = 3 if options.quick else SERVERS
    interval = servers / QUESTIONS_PER_SECOND if not options.quick else 0.2
    found: dict[str, list[float]] = {"http": [], "tcp": []}
    for _ in range(options.repeat):
        for kind, probe in (("http", 'http = "/"'), ("tcp", "tcp = true")):
            health = f"health = {{ readiness = {{ {probe}, interval = {interval} }} }}"
            with Project(servers, defaults=health) as project:
                project.run("start")
                pid = project.roles()["supervisor"]
                found[kind].append(processes.idle_percent(pid, min(WATCHED_SECONDS, options.idle_seconds)))
                items = json.loads(project.run("list", "-o", "json"))["items"]
                assert all(item["health"] == "ok" for item in items)
    what = f"supervisor that asks {servers} servers, each {1 / interval:g} times a second"
    yield Row(f"{what}, over HTTP", "% of a core", found["http"], most=5.0)
    yield Row(f"{what}, whether they take connections", "% of a core", found["tcp"], most=5.0)
