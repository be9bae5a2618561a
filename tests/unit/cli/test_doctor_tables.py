"""What `doctor` reads in tables of the system's that no test can change on a machine that others use."""

from __future__ import annotations

import pytest

from poolctl.cli.doctor import check_paths, check_resources
from poolctl.cli.doctor.check import OK, WARNING, CheckContext

MOUNTS = """
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:40 / /home/a\\040b rw - nfs4 server:/home rw,vers=4.2
23 22 0:41 / /home/a\\040b/local rw - tmpfs none rw
"""
CASE = CheckContext(None, {})


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a b/pool", "nfs4"),
        ("/home/a b", "nfs4"),
        ("/home/a b/local/x", ""),
        ("/home/a bc", ""),
        ("/", ""),
    ],
)
def test_the_innermost_mount_says_whether_a_path_is_on_the_network(
    path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_paths, "read", lambda path: MOUNTS.strip())
    assert check_paths._network(path) == kind


@pytest.mark.parametrize(("free", "status"), [(90, WARNING), (200, OK)])
def test_a_full_swap_is_a_warning(free: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = f"MemAvailable: 8000000 kB\nSwapTotal: 1000 kB\nSwapFree: {free} kB\nHugePages_Total: 0"
    monkeypatch.setattr(check_resources, "read", lambda path: table)
    assert [finding.status for finding in check_resources.swap(CASE)] == [status]


def test_a_kernel_that_promises_no_more_memory_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemAvailable: 8000000 kB", "/proc/sys/vm/overcommit_memory": "2"}
    monkeypatch.setattr(check_resources, "read", lambda path: files.get(path, ""))
    assert [finding.status for finding in check_resources.memory(CASE)][-1] == WARNING
