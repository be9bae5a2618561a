"""The process that forks gateways, where the machine refuses some of its forks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from poolctl.bootstrap import command
from poolctl.features.gateway.supervision.gateway_process import GatewayZygote
from poolctl.keeper import wire
from poolctl.keeper.spawn import spawn
from poolctl.runners.process_link import PING
from tests.other_user import python_for_others

_UID = 54322  # which has no other process


@pytest.mark.parametrize("processes", [2, 1])
def test_fork_that_the_machine_refuses_is_answered_and_leaves_no_second_zygote(
    tmp_path: Path, processes: int
) -> None:
    python = python_for_others()
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    user = [setpriv, f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", "--"]
    limit = ["prlimit", f"--nproc={processes}:{processes}"]
    ours, theirs = wire.pair()
    with ours:
        with theirs:
            argv = [*user, *limit, *command(python, GatewayZygote.part)]
            pid = spawn(argv, None, [theirs.fileno()], str(tmp_path / "log"), session=True)
        ours.settimeout(60)
        assert wire.receive(ours, wait=True) == ({"t": "up"}, [])
        wire.send(ours, {"t": "fork", "id": 7}, [0])
        answer = {"id": 7, "error": "cannot fork: Resource temporarily unavailable"}
        assert wire.receive(ours, wait=True) == (answer, [])
        wire.send(ours, PING)
        assert wire.receive(ours, wait=True) == ({"t": "pong"}, [])
    assert os.waitpid(pid, 0)[1] == 0
