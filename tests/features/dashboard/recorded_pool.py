"""A pool that is none: what a supervisor says of as many servers as one likes, in whatever state one likes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

from poolctl.logs.log_line import stamp

Document = dict[str, Any]
Send = Callable[[Document], None]


class RecordedPool:
    """Answers the control socket's verbs for made-up servers; `asked` are the actions that it was asked to perform."""

    def __init__(self, count: int = 8, name: str = "shop") -> None:
        self.name = name
        self.servers = {f"web-{number}": _item(number) for number in range(1, count + 1)}
        self.events: list[Document] = []
        self.asked: list[Document] = []
        self.routes: list[Document] = []
        self.hosts: list[Document] = []
        self.gateway: Document | None = None
        self.changed_files: Document | None = None
        self.refuses: str = ""  # the error of every action, "" for none
        self.happened("pool", "started", message="the supervisor has started", ago_seconds=3000)
        for number, item in enumerate(self.servers.values()):
            self.happened(
                "lifecycle",
                item["state"],
                server=item["name"],
                after=item["state"],
                ago_seconds=2900 - number,
            )

    def happened(self, kind: str, event: str, *, ago_seconds: float = 0, **more: Any) -> None:
        """Note an event."""
        now = stamp(time.time() - ago_seconds)
        base = {"schema": 1, "time": now, "seq": len(self.events) + 1, "kind": kind, "event": event}
        self.events.append({**base, "server": "", "message": "", "cause": "", "by": None, **more})

    def become(self, name: str, *, ago_seconds: float = 0, **changes: Any) -> None:
        """Change a server, and say so."""
        item = self.servers[name]
        item.update(changes)
        self.happened(
            "lifecycle", str(item["state"]), server=name, after=item["state"], ago_seconds=ago_seconds,
            message=f"{name} is {item['state']}",
        )  # fmt: skip

    async def answer(self, verb: str, body: Document, send: Send) -> Document | None:
        """See tests.stand_in."""
        targets = (body.get("selector") or {}).get("targets") or list(self.servers)
        items = [dict(self.servers[name]) for name in targets if name in self.servers]
        if verb == "events":
            await self._tell(body["options"], send)
            return self._result([])
        if verb == "ping":
            return self._result(
                [], name=self.name, version="1.0", supervisor_pid=4711, files=["/srv/pool.toml"]
            )
        if verb == "stats":
            changed = self.changed_files if body["options"].get("files") else None
            more = {"changed": changed} if changed is not None else {}
            return self._result([{**item, "stats": _stats(item)} for item in items], **more)
        if verb == "history":
            return self._result([], **_history(body["options"]["span"], len(items)))
        if verb in ("list", "show"):
            return self._result([{**item, **_details(item)} for item in items])
        if verb == "status":
            return self._result([], **({"gateway": self.gateway} if self.gateway else {}))
        if verb in ("routes", "hosts"):
            return self._result(self.routes if verb == "routes" else self.hosts)
        if self.refuses:
            error = {
                "code": 1323,
                "name": targets[0],
                "message": self.refuses,
                "hint": f"poolctl logs {targets[0]}",
            }
            self.asked.append({"verb": verb, **body})
            return self._result(items, [error])
        idle = [item["name"] for item in items if verb == "stop" and item["state"] == "stopped"]
        for name in targets:
            self._act(verb, name)
        self.asked.append({"verb": verb, **body})
        return self._result(items, **({"unchanged": idle} if idle else {}))

    def _act(self, verb: str, name: str) -> None:
        if verb == "stop":
            self.become(name, state="stopped", ready=False, health="unknown", uptime_seconds=0.0, pids=[])
        elif verb == "drain":
            self.become(name, state="draining", ready=False)
        else:
            self.become(name, state="running", ready=True, health="ok", uptime_seconds=0.1)

    async def _tell(self, options: Document, send: Send) -> None:
        sent = int(options.get("after") or 0)
        while True:
            for event in self.events[sent:]:
                send({"event": event})
                sent += 1
            if not options.get("follow"):
                return
            await asyncio.sleep(0.02)

    def _result(self, items: list[Document], errors: list[Document] | None = None, **more: Any) -> Document:
        document = {"schema": 1, "items": items, "errors": errors or [], "warnings": [], **more}
        return {**document, "exit_code": 1 if errors else 0}


def _item(number: int) -> Document:
    return {
        "name": f"web-{number}", "bind": f"127.0.0.1:{8080 + number}",
        "expose": f"http://localhost:{8080 + number}", "state": "running", "ready": True, "health": "ok",
        "pids": [20000 + number], "workers": 1 + number % 3, "uptime_seconds": 2900.0 + number * 977,
        "restarts": number % 4, "tags": ["api"] if number % 2 else ["api", "public"],
    }  # fmt: skip


def _details(item: Document) -> Document:
    failed = {"message": "exited with status 3 before it was ready", "hint": f"poolctl logs {item['name']}"}
    return {
        "worker_list": [{"id": f"{item['name']}.1.0", "pid": pid, "phase": "ready"} for pid in item["pids"]],
        "failure": failed if item["state"] == "failed" else None,
        "config": {"name": item["name"], "env": {"SECRET": "do not show"}, "http": {"keep_alive": 7}},
        "origin": {
            "name": "/srv/pool.toml:3",
            "env": "/srv/pool.toml:4",
            "http.keep_alive": "/srv/more.toml:9",
        },
    }


def _history(span: str, servers: int) -> Document:
    """A wave, with a restart in the middle."""
    slots, seconds = (60, 60) if span == "hour" else (96, 900)
    wave = [round(servers * 100 * (1.5 + math.sin(at / 5)), 3) for at in range(slots - 1)]
    return {
        "slot_seconds": seconds, "slots": slots,
        "series": {
            "requests_per_second": wave, "errors_per_second": [each / 100 for each in wave],
            "latency_p99_seconds": [each / 10000 for each in wave], "memory_bytes": [servers * 8 * 2**20] * (slots - 1),
            "restarts": [float(at == slots // 2) for at in range(slots - 1)],
        },
    }  # fmt: skip


def _stats(item: Document) -> Document:
    if item["state"] not in ("running", "draining"):
        return {"requests_total": 0, "errors_total": 0, "in_flight": 0, "connections": 0, "memory_bytes": 0}
    number = int(item["name"].rpartition("-")[2])
    now = time.time() / 2

    def at(sample: float) -> tuple[float, float, int]:
        wave = 1 + math.sin(sample / (3 + number % 7)) * 0.6 + math.sin(sample * 1.7 + number) * 0.2
        return (
            40 * wave * (1 + number % 5),
            0.004 * (1 + number % 6) * (2 - wave / 2),
            int((5 + number % 9) * 1048576.0 * (1 + wave / 20)),
        )

    series = [at(now - back) for back in range(60, 0, -1)]
    rps, p99, memory = at(now)
    return {
        "requests_total": 120_000 + number * 77, "requests_per_second": round(rps, 2), "errors_total": number % 3,
        "errors_per_second": number % 3 / 10,
        "in_flight": number % 4, "connections": 3 + number % 9, "latency_p50_seconds": p99 / 3,
        "latency_p99_seconds": p99, "memory_bytes": memory, "cpu_percent": 1.5 * (number % 5),
        "loop_lag_seconds": 0.0004, "wakes_total": 0, "restarts_total": item["restarts"],
        "history": {
            "interval_seconds": 2,
            "requests_per_second": [each[0] for each in series],
            "errors_per_second": [number % 3 / 10] * 60,
            "latency_p99_seconds": [each[1] for each in series],
            "memory_bytes": [each[2] for each in series],
        },
    }  # fmt: skip
