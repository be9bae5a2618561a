"""`python -m benchmarks`: measure, print a table, and store it under benchmarks/results."""

from __future__ import annotations

import argparse
import importlib
import sys

from . import report
from .bytecode import keep_bytecode
from .groups import GROUPS


def main() -> int:
    options = _options()
    keep_bytecode()
    rows: list[report.Row] = []
    failed = []
    for group in options.only or GROUPS:
        print(f"measuring: {group}", file=sys.stderr)
        try:
            for row in importlib.import_module(f".{group}", __package__).run(options):
                if options.quick:  # targets apply to the full sizes only
                    row.most = row.most_ratio = None
                rows.append(row)
                print(f"  {row.what}: {row.median:.4g} {row.unit}", file=sys.stderr)
        except Exception as error:
            failed.append(f"{group}: {error}")
    if rows:
        print(report.table(rows))
        print(f"stored in {report.store(rows)}", file=sys.stderr)
    for text in failed:
        print(f"not measured: {text}", file=sys.stderr)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["groups:", *(f"  {name:20} {what}" for name, what in GROUPS.items())]),
    )  # fmt: skip
    parser.add_argument("--sizes", help="how many servers (10,100,300)", type=_numbers)
    parser.add_argument("--repeat", help="how often each is measured (3)", type=int)
    parser.add_argument("--idle-seconds", help="how long idle processes are watched (10)", type=float)
    parser.add_argument(
        "--only", help="a group of figures; repeatable", action="append", choices=GROUPS, metavar="GROUP"
    )
    parser.add_argument("--quick", help="everything once and small: does it run at all?", action="store_true")
    options = parser.parse_args()
    small = options.quick
    options.sizes = options.sizes or ([3] if small else [10, 100, 300])
    options.repeat = options.repeat or (1 if small else 3)
    options.idle_seconds = options.idle_seconds or (0.2 if small else 10.0)
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
