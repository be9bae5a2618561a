"""A machine or a container without a /proc that shows its processes: refused at once, with the reason and the fix."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.real_pool import COMMAND_TIMEOUT_SECONDS, RealPool

EMPTY = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
OF_ANOTHER_NAMESPACE = ["unshare", "-f", "-p"]
OWN = ["unshare", "-f", "-p", "--mount-proc"]

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("unshare") or bool(subprocess.run([*EMPTY, "true"], capture_output=True).returncode),
        reason="needs unshare(1), and may make namespaces",
    ),
]


def run(pool: RealPool, wrapper: list[str], *line: str) -> tuple[int, str]:
    done = subprocess.run(
        [*wrapper, *pool.command(), *line], cwd=pool.directory, env=pool.env, capture_output=True, text=True,
        timeout=COMMAND_TIMEOUT_SECONDS,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("wrapper", "reason", "fix"),
    [(EMPTY, "/proc is empty", "mount -t proc proc /proc"),
     (OF_ANOTHER_NAMESPACE, "/proc shows the processes of another PID namespace", "unshare --mount-proc")],
    ids=["empty", "foreign"],
)  # fmt: skip
def test_without_proc_a_start_is_refused_and_doctor_says_why(
    real_pool: RealPool, wrapper: list[str], reason: str, fix: str
) -> None:
    real_pool.write_hello("web")
    for line in (["start"], ["restart"], ["run", "--", "true"]):
        code, said = run(real_pool, wrapper, *line)
        assert (code, reason in said, fix in said) == (1, True, True), said
    assert real_pool.processes() == {}
    code, said = run(real_pool, wrapper, "doctor", "-q")
    assert (code, reason in said, fix in said) == (1, True, True), said
    assert "the check itself failed" not in said
    assert run(real_pool, wrapper, "list")[0] == 0


def test_in_a_namespace_with_a_proc_of_its_own_a_pool_runs(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    code, said = run(real_pool, OWN, "run", "--", *real_pool.command(), "list", "-o", "state")
    assert (code, "running" in said) == (0, True), said
