"""A pool's own directories: whatever the umask, and never one that another user can change or replace."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from poolctl.private_directory import UnsafeDirectory, check_private_directory, ensure_private_directory
from tests.other_user import AS_OTHER_USER, python_for_others
from tests.sandbox import run_as, run_in_namespace

T = TypeVar("T")

ME, OTHER = os.geteuid(), 54321
as_root = pytest.mark.skipif(ME != 0, reason="only root can make files of other users")


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def refusal(path: Path, act: Callable[[str], None] = check_private_directory) -> tuple[str, str, str]:
    with pytest.raises(UnsafeDirectory) as caught:
        act(str(path))
    return caught.value.filename, caught.value.strerror, caught.value.fix


@pytest.mark.parametrize(("umask", "parent"), [(0, 0o755), (0o22, 0o755), (0o77, 0o700)], indirect=["umask"])
def test_directories_are_made_with_the_same_modes_whatever_the_umask(
    umask: None, parent: int, short_path: Path
) -> None:
    made = short_path / "a" / "b" / "state"
    ensure_private_directory(str(made))
    assert [mode(each) for each in (made.parents[1], made.parent, made)] == [parent, parent, 0o700]
    ensure_private_directory(str(made))
    check_private_directory(str(made), closed=True)


def test_a_missing_directory_is_not_made_by_a_check(short_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_private_directory(f"{short_path}/a/b")
    assert not (short_path / "a").exists()


def test_what_others_may_only_read_is_refused_only_where_it_has_to_be_closed(short_path: Path) -> None:
    made = short_path / "with blank"
    made.mkdir(mode=0o755)
    check_private_directory(str(made))
    with pytest.raises(UnsafeDirectory, match=r"entered by others \(mode 0755\)") as caught:
        check_private_directory(str(made), closed=True)
    subprocess.run(caught.value.fix, shell=True, check=True)
    check_private_directory(str(made), closed=True)


@pytest.mark.parametrize("changed", [0o777, 0o1777, 0o707])
def test_a_directory_that_others_can_write_is_refused(short_path: Path, changed: int) -> None:
    made = short_path / "state"
    made.mkdir()
    made.chmod(changed)
    assert refusal(made, ensure_private_directory) == (
        str(made), f"can be changed by others (mode {changed:04o})", f"chmod 700 {made}",
    )  # fmt: skip


@pytest.mark.parametrize("below", ["state", "a/b/state"])
def test_a_directory_below_one_that_others_can_write_is_refused_until_the_fix_is_applied(
    short_path: Path, below: str
) -> None:
    shared, made = short_path / "shared", short_path / "shared" / below
    made.mkdir(parents=True)
    shared.chmod(0o777)
    path, why, fix = refusal(made)
    assert (path, why) == (
        str(shared), f"can be changed by others (mode 0777), who could replace {made}"
    )  # fmt: skip
    subprocess.run(fix, shell=True, check=True)
    check_private_directory(str(made))


def test_nothing_is_made_below_a_directory_that_others_can_write(short_path: Path) -> None:
    short_path.chmod(0o777)
    assert refusal(short_path / "a" / "state", ensure_private_directory)[0] == str(short_path)
    assert not (short_path / "a").exists()


def test_a_sticky_directory_of_everyone_is_no_danger_for_what_is_ours(short_path: Path) -> None:
    short_path.chmod(0o1777)
    ensure_private_directory(f"{short_path}/state")
    ensure_private_directory(f"{short_path}/a/state")


@as_root
@pytest.mark.parametrize("place", [0o1777, 0o755])
def test_a_directory_of_another_user_is_refused(short_path: Path, place: int) -> None:
    short_path.chmod(place)
    made = short_path / "state"
    made.mkdir(mode=0o700)
    os.chown(made, OTHER, OTHER)
    assert refusal(made, ensure_private_directory) == (
        str(made), f"belongs to uid {OTHER}, not to you (uid 0)", f"mv {made} {made}.uid{OTHER}",
    )  # fmt: skip
    with pytest.raises(UnsafeDirectory) as caught:
        check_private_directory(str(made), closed=True)
    assert caught.value.fix == "", "a pool may be running there"
    assert refusal(made / "below") == (
        str(made), f"belongs to uid {OTHER}, who could replace {made}/below", "",
    )  # fmt: skip
    made.rmdir()
    made.touch()
    os.chown(made, OTHER, OTHER)
    assert refusal(made)[1] == f"belongs to uid {OTHER}, not to you (uid 0)"


@as_root
def test_another_users_link_is_refused_and_roots_is_followed(short_path: Path) -> None:
    (short_path / "real").mkdir()
    link = short_path / "link"
    link.symlink_to("../" * 9 + f"{short_path}/./real")
    ensure_private_directory(f"{link}/state")
    assert (short_path / "real" / "state").is_dir()
    short_path.chmod(0o1777)
    ensure_private_directory(f"{link}/state")
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    assert refusal(link / "state")[:2] == (
        str(link), f"is a link of uid {OTHER}, who can change where it leads to",
    )  # fmt: skip


def test_a_link_leads_to_directories_that_are_checked_too(short_path: Path) -> None:
    shared = short_path / "shared"
    (shared / "real").mkdir(parents=True)
    shared.chmod(0o777)
    (short_path / "link").symlink_to(shared / "real")
    assert refusal(short_path / "link" / "state", ensure_private_directory)[0] == str(shared)
    (short_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        check_private_directory(f"{short_path}/loop/state")


def test_what_is_no_directory_itself_is_refused(short_path: Path) -> None:
    (short_path / "real").mkdir()
    (short_path / "link").symlink_to("real")
    (short_path / "file").touch()
    for name in ("link", "file"):
        path = short_path / name
        assert refusal(path) == (str(path), "is not a directory", f"mv {path} {path}.old")
    with pytest.raises(NotADirectoryError):
        ensure_private_directory(f"{short_path}/file/state")


@pytest.fixture
def as_user(short_path: Path) -> Iterator[None]:
    """This process has another user's effective ids, and that user owns `short_path`."""
    if ME:
        pytest.skip("only root can become another user")
    for name in ("grp", "pwd"):
        importlib.import_module(name)  # the other user may not be able to read it
    os.chown(short_path, OTHER, OTHER)
    os.setegid(OTHER)
    os.seteuid(OTHER)
    yield
    os.seteuid(0)
    os.setegid(0)


def test_the_group_of_this_user_alone_may_write(as_user: None, short_path: Path) -> None:
    short_path.chmod(0o775)
    ensure_private_directory(f"{short_path}/state")


def test_a_group_with_another_user_may_not_write(as_user: None, short_path: Path) -> None:
    os.seteuid(0)
    os.setegid(0)
    os.chown(short_path, OTHER, 33)
    short_path.chmod(0o775)
    os.seteuid(OTHER)
    assert refusal(short_path / "state", ensure_private_directory) == (
        str(short_path),
        f"can be changed by others (mode 0775), who could replace {short_path}/state",
        f"chmod go-w {short_path}",
    )


@as_root
def test_a_group_that_seems_to_have_no_members_is_private_if_it_has_the_users_name(
    short_path: Path, tmp_path: Path
) -> None:
    os.chown(short_path, OTHER, OTHER)
    short_path.chmod(0o775)

    def named(group: str, work: Callable[[], T]) -> T:
        """The result as the user, in the group of a systemd unit, if the directory's group has this name."""
        (tmp_path / "group").write_text(
            f"{group}:x:{OTHER}:\n"
        )  # as a directory service, which lists no users
        names = f"mount --bind {tmp_path}/group /etc/group"
        return run_in_namespace(names, lambda: run_as(OTHER, work, [33]))

    state = short_path / "state"
    assert named("staff", lambda: refusal(state, ensure_private_directory))[0] == str(short_path)
    named(str(OTHER), lambda: ensure_private_directory(str(state)))


def test_roots_group_may_write(as_user: None, short_path: Path) -> None:
    os.seteuid(0)
    os.chown(short_path, OTHER, 0)  # as in images for users of any uid
    short_path.chmod(0o775)
    os.seteuid(OTHER)
    ensure_private_directory(f"{short_path}/state")


def test_volumes_of_a_pod_that_everyone_may_write_are_used(
    as_user: None, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.seteuid(0)
    os.chown(short_path, 0, 0)
    short_path.chmod(0o777)
    os.seteuid(OTHER)
    made = f"{short_path}/state"
    assert refusal(Path(made), ensure_private_directory)[2] == f"as root: chmod +t {short_path}"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    ensure_private_directory(made)
    os.chmod(made, 0o2770)  # as the kubelet does for fsGroup
    ensure_private_directory(made)
    os.seteuid(0)
    assert refusal(Path(made))[0] == str(short_path), "root has servers of other users"
    os.chown(made, 0, 0)
    os.seteuid(OTHER)
    assert refusal(Path(made))[0] == made, "another user's"


def test_the_machines_root_owns_the_directories_of_a_sandbox(short_path: Path) -> None:
    python = python_for_others()
    sandbox = [*AS_OTHER_USER.split(), "unshare", "--map-current-user"]
    if subprocess.run([*sandbox, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces for users here")
    made = short_path / "state"
    made.mkdir()
    for path in (short_path, made):
        os.chown(path, OTHER, OTHER)
    code = (
        "import sys; from poolctl.private_directory import ensure_private_directory as ensure; "
        "ensure(sys.argv[1])"
    )
    done = subprocess.run([*sandbox, python, "-c", code, f"{made}/below"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
