"""The imports of a zygote: no garbage is collected meanwhile, and none follows later."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from pathlib import Path

from poolctl.worker import serving


def test_serving_imports_no_module_of_poolctl_later_than_at_its_own_import() -> None:
    # After the preload it would be a second copy, whose classes are others.
    late = [
        f"{path.name}:{node.lineno}"
        for path in Path(serving.__path__[0]).glob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).startswith("poolctl"))
    ]
    assert late == []


def test_zygote_collects_no_garbage_while_it_imports_and_does_so_afterwards() -> None:
    requests, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()  # so it ends as soon as it has started
    look = """
import gc, os, sys
met = []
gc.callbacks.append(lambda phase, _: met.append("starlette.responses" in sys.modules))
os.dup2(int(sys.argv.pop(1)), 3)
sys.path.insert(0, sys.argv.pop(1))
gc.disable()
import poolctl.worker.__main__
gc.enable()
poolctl.worker.__main__.main()
assert all(met), met
assert gc.isenabled()
"""
    root = str(Path(serving.__path__[0]).parents[2])
    with requests:
        done = subprocess.run(
            [sys.executable, "-P", "-c", look, str(requests.fileno()), root, "zygote"],
            pass_fds=[requests.fileno()], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
