"""`python -m tests.chaos --seed N --minutes 10`: runs a program against a real pool; reports faults with all steps."""

from __future__ import annotations

import argparse
import random
import sys
import time

from .run import run
from .stage import Fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="which program (a random one)"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long (10)")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    began = time.monotonic()
    try:
        count = run(options.seed, 60 * options.minutes, lambda text: print(text, flush=True))
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    print(f"{count} steps in {time.monotonic() - began:.0f} s, no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
