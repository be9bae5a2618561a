"""A live view of a pool and its routes: `python examples/watch.py poolctl -c pool.toml`; Ctrl-C ends it.

It uses only `poolctl list -o json` and `routes -o json`, so it is also an example of a script that follows a pool.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

EVERY_SECONDS = 1.0
COLUMNS = ("NAME", "EXPOSE", "STATE", "READY", "UPTIME", "PIDS")
ROUTE_COLUMNS = ("ROUTE", "TO", "STATE", "REQUESTS")
END = (signal.SIGINT, signal.SIGTERM)


def answer(poolctl: list[str], command: str) -> dict[str, Any]:
    """What the command says; without items while the pool starts or ends."""
    done = subprocess.run([*poolctl, command, "-o", "json"], capture_output=True)
    said: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"items": []}
    return said


def row(item: dict[str, Any]) -> tuple[str, ...]:
    ready = str(item["ready"]).lower()  # as list shows it
    pids = ",".join(str(pid) for pid in item["pids"])
    return item["name"], item["expose"], item["state"], ready, f"{item['uptime_seconds'] or 0:.0f}s", pids


def route_row(item: dict[str, Any], address: str) -> tuple[str, ...]:
    return f"{address}{item['path']}", ", ".join(item["to"]), item["state"], str(item["requests"])


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in rows)


def main(poolctl: list[str]) -> None:
    # The listings inherit this, so that Ctrl-C in the terminal does not interrupt one.
    signal.pthread_sigmask(signal.SIG_BLOCK, END)
    live = sys.stdout.isatty()
    shown: list[Any] = []
    while True:
        listed = answer(poolctl, "list")
        items, gateway = listed["items"], listed.get("gateway")
        routes = answer(poolctl, "routes")["items"] if gateway else []
        state = [(item["name"], item["state"], item["pids"]) for item in items]
        state += [(item["alias"], item["state"], []) for item in routes]
        # Only changes are written to a file or a pipe.
        if items and (live or state != shown):
            shown = state
            print("\x1b[H\x1b[2J" if live else "", table([COLUMNS, *map(row, items)]), sep="")
            address = items[0]["expose"]
            if routes:
                address = gateway["addresses"][0]
                print()
                print(table([ROUTE_COLUMNS, *(route_row(item, address) for item in routes)]))
            print(f"\ntry: curl {address}    Ctrl-C ends it", flush=True)
        if signal.sigtimedwait(END, EVERY_SECONDS) is not None:
            return


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or ["poolctl"])
    except BrokenPipeError:
        sys.stderr.close()
