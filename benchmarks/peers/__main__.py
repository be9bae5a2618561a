"""`python -m benchmarks.peers` installs the peers, measures all of them in one run, and writes tables and picture."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

from . import report
from .install import install
from .manager_figures import manager_figures
from .managers import MANAGERS
from .servers import SERVERS, server_figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--servers", type=int, nargs="+", default=[20, 100], help="how many each manager runs"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these peers; nothing is written"
    )
    parser.add_argument(
        "--report", action="store_true", help="write the pages from the last run, and measure nothing"
    )
    options = parser.parse_args()
    if options.report:
        report.write(json.loads(report.RESULTS.read_text()))
        return 0
    found = install()
    results: dict[str, Any] = {
        "versions": found,
        "machine": f"Python {platform.python_version()}, {os.cpu_count()} processors, Linux {platform.release()}",
        "managers": {},
        "servers": {},
    }
    for count in options.servers:
        figures = results["managers"][str(count)] = {}
        for manager in MANAGERS:
            if _is_wanted(manager.name, options.only, found):
                print(f"{manager.name} with {count} servers …", file=sys.stderr)
                figures[manager.name] = manager_figures(manager, count)
    for server in SERVERS:
        if _is_wanted(server.name, options.only, found):
            print(f"{server.name} …", file=sys.stderr)
            results["servers"][server.name] = server_figures(server)
    text = json.dumps(results, indent=1)
    if options.only:
        print(text)
        return 0
    report.RESULTS.write_text(f"{text}\n")
    report.write(results)
    return 0


def _is_wanted(name: str, only: list[str], found: dict[str, str]) -> bool:
    if only:
        return name in only
    package = {"supervisord": "supervisor"}.get(name, name.partition(",")[0].lower())
    return package in found


if __name__ == "__main__":
    sys.exit(main())
