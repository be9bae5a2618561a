"""What `doctor` reads in tables of the system's that no test can change on a machine that others use."""

from __future__ import annotations

import pytest

from poolctl.cli.doctor import check_paths

MOUNTS = """
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:40 / /home/a\\040b rw - nfs4 server:/home rw,vers=4.2
23 22 0:41 / /home/a\\040b/local rw - tmpfs none rw
"""


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
