"""`worker zygote`: fork workers on request. `worker serve N`: be one, with N descriptors after the control socket."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the role that the first argument names."""
    if sys.argv.pop(1) == "zygote":
        from .zygote import serve_requests

        serve_requests()
    else:
        from .child import resume
        from .life import live

        resume(live)
