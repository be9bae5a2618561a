"""Logs in directories of other users: nothing of theirs leads to a file of ours."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from errno import EPERM
from pathlib import Path

import pytest

from poolctl.logs.log_file import LogFile
from poolctl.logs.log_tail import tail
from poolctl.safe_open import UnsafePath, check_appendable, open_directory, open_file, open_to_read
from tests import moments
from tests.descriptors import no_descriptor_left
from tests.sandbox import CHOWN, run_as, run_without

NOBODY = 65534
LINE = b"2026-01-01T00:00:00.000000Z web[1] one\n"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A file that only root may touch."""
    (tmp_path / "ours").mkdir()
    file = tmp_path / "ours" / "web.log"
    file.write_text("precious\n")
    return file


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user's."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    return directory


def link(at: Path, to: Path) -> None:
    at.symlink_to(to)
    os.chown(at, NOBODY, NOBODY, follow_symlinks=False)


def parent(ours: Path, theirs: Path) -> Path:
    link(theirs / "logs", ours.parent)
    return theirs / "logs" / "web.log"


def grandparent(ours: Path, theirs: Path) -> Path:
    link(theirs / "x", ours.parent.parent)
    return theirs / "x" / "ours" / "web.log"


def moved_link_of_root(ours: Path, theirs: Path) -> Path:
    (theirs / "logs").symlink_to(ours.parent)
    return theirs / "logs" / "web.log"


def file(ours: Path, theirs: Path) -> Path:
    link(theirs / "web.log", ours)
    return theirs / "web.log"


def second_name(ours: Path, theirs: Path) -> Path:
    os.link(ours, theirs / "web.log")
    return theirs / "web.log"


def fifo(ours: Path, theirs: Path) -> Path:
    os.mkfifo(theirs / "web.log")
    return theirs / "web.log"


@pytest.mark.parametrize("laid_out", [parent, grandparent, moved_link_of_root, file, second_name, fifo])
def test_paths_prepared_by_another_user_are_neither_written_nor_read(
    ours: Path, theirs: Path, laid_out: Callable[[Path, Path], Path]
) -> None:
    path = laid_out(ours, theirs)
    log = LogFile(str(path), max_size_bytes=1, keep=1, max_age_seconds=1)
    assert log.append_and_count_written(LINE) == 0
    assert log.error
    with pytest.raises(UnsafePath):
        check_appendable(str(path))
    log.rotate_when_old()
    log.close()
    assert ours.read_text() == "precious\n"
    assert os.listdir(ours.parent) == ["web.log"]
    assert tail(str(path), None) == []


def test_a_directory_that_becomes_a_link_while_the_file_is_open_is_not_followed_by_rotation(
    ours: Path, theirs: Path
) -> None:
    (theirs / "logs").mkdir()
    path = theirs / "logs" / "web.log"
    log = LogFile(str(path), max_size_bytes=2 * len(LINE), keep=3)
    assert log.append_and_count_written(2 * LINE) == 2 * len(LINE)
    (theirs / "logs").rename(theirs / "away")
    link(theirs / "logs", ours.parent)
    log.append_and_count_written(LINE)
    log.close()
    assert ours.read_text() == "precious\n"
    assert os.listdir(ours.parent) == ["web.log"]


def test_a_log_in_a_directory_of_the_servers_user_is_written_rotated_and_read(theirs: Path) -> None:
    path = theirs / "new" / "web.log"
    check_appendable(str(path))
    assert not path.parent.exists(), "nothing is made"
    log = LogFile(str(path), max_size_bytes=len(LINE), keep=1)
    assert [log.append_and_count_written(LINE) for _ in range(3)] == [len(LINE)] * 3
    log.close()
    assert sorted(os.listdir(path.parent)) == ["web.log", "web.log.1"]
    assert len(tail(str(path), None)) == 2
    (theirs / "own.log").touch()
    os.chown(theirs / "own.log", NOBODY, NOBODY)
    assert LogFile(str(theirs / "own.log")).append_and_count_written(LINE) == len(LINE)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_directories_made_for_a_log_belong_to_the_servers_user(
    theirs: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        for place in (theirs, tmp_path):
            path = place / "new" / "deep" / "web.log"
            log = LogFile(str(path), owner=(NOBODY, 33))
            assert log.append_and_count_written(LINE) == len(LINE)
            log.close()
            made = [path.parent.stat(), path.parent.parent.stat()]
            assert [(each.st_uid, each.st_gid, oct(each.st_mode & 0o777)) for each in made] == [
                (NOBODY, 33, "0o750")
            ] * 2
            assert path.stat().st_uid == 0
    finally:
        os.umask(before)
    assert (theirs.parent / "theirs").stat().st_gid == NOBODY


def test_directories_made_in_one_with_the_setgid_bit_keep_its_group(theirs: Path) -> None:
    os.chown(theirs, NOBODY, 33)
    theirs.chmod(0o2775)
    path = theirs / "new" / "deep" / "web.log"
    assert LogFile(str(path), owner=(NOBODY, NOBODY)).append_and_count_written(LINE) == len(LINE)
    made = [path.parent.stat(), path.parent.parent.stat()]
    assert [(each.st_uid, each.st_gid, oct(each.st_mode & 0o7777)) for each in made] == [
        (NOBODY, 33, "0o2750")
    ] * 2


def test_directories_made_for_a_log_stay_roots_if_they_cannot_be_given_away(
    theirs: Path,
) -> None:
    path = theirs / "new" / "web.log"
    file = LogFile(str(path), owner=(NOBODY, NOBODY))
    assert run_without({CHOWN: EPERM}, lambda: file.append_and_count_written(LINE)) == len(LINE)
    made = path.parent.stat()
    assert (made.st_uid, oct(made.st_mode & 0o7777)) == (0, "0o750")


def test_directory_that_another_user_puts_in_place_of_a_new_one_is_not_given_away(
    ours: Path, theirs: Path
) -> None:
    def exchange(name: object, *_: object) -> None:
        if name == "logs" and (theirs / "logs").exists() and ours.exists():
            (theirs / "logs").rename(theirs / "away")
            ours.parent.rename(theirs / "logs")

    with moments.before("open", exchange):
        LogFile(str(theirs / "logs" / "new.log"), owner=(NOBODY, NOBODY)).append_and_count_written(LINE)
    assert not ours.exists()
    assert (theirs / "logs").stat().st_uid == 0


def test_links_of_ours_in_directories_of_ours_are_followed(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "absolute").symlink_to(ours.parent)
    (tmp_path / "relative").symlink_to("../" + tmp_path.name + "/./absolute")
    path = str(tmp_path / "relative" / "web.log")
    check_appendable(path)
    check_appendable(str(tmp_path / "relative" / "new" / "deep" / "web.log"))
    assert LogFile(path).append_and_count_written(LINE) == len(LINE)
    assert ours.read_text() == "precious\n" + LINE.decode()


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)


def test_a_link_in_a_world_writable_directory_is_never_followed(ours: Path, open_to_all: Path) -> None:
    (open_to_all / "logs").symlink_to(ours.parent)
    with pytest.raises(UnsafePath, match="logs on its path is a link that another user can make"):
        open_file(str(open_to_all / "logs" / "web.log"), os.O_RDONLY)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("ours.log", PermissionError),
        ("new.log", PermissionError),
        ("new/deep/web.log", PermissionError),
        ("ours.log/web.log", NotADirectoryError),
        ("closed/web.log", PermissionError),
        ("closed", IsADirectoryError),
        ("theirs/new/web.log", None),
        ("theirs.log", None),
    ],
)
def test_file_that_a_user_cannot_append_to_is_known_beforehand(
    open_to_all: Path, name: str, error: type[OSError] | None
) -> None:
    open_to_all.chmod(0o755)
    for each in ("closed", "theirs"):
        (open_to_all / each).mkdir(mode=0o700)
    for each in ("ours.log", "theirs.log"):
        (open_to_all / each).touch(mode=0o600)
    for each in ("theirs", "theirs.log"):
        os.chown(open_to_all / each, NOBODY, NOBODY)
    path = str(open_to_all / name)
    for attempt in (
        lambda: check_appendable(path),
        lambda: os.close(open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)),
    ):
        with contextlib.nullcontext() if error is None else pytest.raises(error):
            run_as(NOBODY, attempt)


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").symlink_to("logs")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_file(str(tmp_path / "logs" / "web.log"), os.O_RDONLY)


@pytest.mark.parametrize("laid_out", [parent, grandparent, moved_link_of_root, file, second_name, fifo])
def test_a_users_link_to_a_file_of_root_is_not_followed(
    ours: Path, theirs: Path, laid_out: Callable[[Path, Path], Path]
) -> None:
    path = laid_out(ours, theirs)
    with pytest.raises(UnsafePath):
        open_to_read(str(path))


def test_links_to_files_of_their_own_owner_are_followed_and_so_are_roots(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    release = theirs / "releases" / "42"
    release.mkdir(parents=True)
    env = release / ".env"
    env.write_text("A=1")
    for each in (release, env):
        os.chown(each, NOBODY, NOBODY)
    link(theirs / "current", release)
    (tmp_path / "live").symlink_to(ours)
    kept = theirs / "root.key"
    kept.write_text("key")
    for path, content in (
        (theirs / "current" / ".env", b"A=1"),
        (tmp_path / "live", b"precious"),
        (kept, b"key"),
    ):
        fd = open_to_read(str(path))
        assert os.read(fd, 8) == content
        os.close(fd)
    os.chown(env, 0, 0)
    with pytest.raises(UnsafePath, match="current on its path is a link that another user can make"):
        open_to_read(str(theirs / "current" / ".env"))


def test_link_to_a_directory_is_followed_if_its_owner_owns_the_directory(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    release = theirs / "42"
    release.mkdir()
    os.chown(release, NOBODY, NOBODY)
    link(theirs / "current", release)
    link(theirs / "ours", ours.parent)
    (tmp_path / "live").symlink_to(ours.parent)
    with no_descriptor_left():
        for path, expected in (
            (release, release),
            (theirs / "current", release),
            (ours.parent, ours.parent),
            (tmp_path / "live", ours.parent),
        ):
            fd = open_directory(str(path))
            assert os.path.samestat(os.fstat(fd), expected.stat())
            os.close(fd)
        with pytest.raises(UnsafePath, match="ours on its path is a link that another user can make"):
            open_directory(str(theirs / "ours"))
        with pytest.raises(FileNotFoundError):
            open_directory(str(tmp_path / "gone"))


def test_file_is_opened_and_refused_without_leaving_a_descriptor(ours: Path, theirs: Path) -> None:
    path = str(file(ours, theirs))
    with no_descriptor_left():
        os.close(open_file(str(ours), os.O_RDONLY))
        with pytest.raises(UnsafePath):
            open_file(path, os.O_RDONLY)
        for attempt in (open_to_read, check_appendable):
            with pytest.raises(UnsafePath):
                attempt(path)
        check_appendable(str(ours))
        check_appendable(str(theirs / "new" / "web.log"))
    assert not (theirs / "new").exists()


def test_relative_path_starts_at_the_working_directory(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ours.parent)
    fd = open_file("web.log", os.O_RDONLY)
    assert os.read(fd, 8) == b"precious"
    os.close(fd)


def test_only_directories_below_the_one_that_must_exist_are_made(tmp_path: Path) -> None:
    """A pool's directory may be removed at any time, and must be private when it is created again."""
    pool, flags = tmp_path / "run" / "pool", os.O_WRONLY | os.O_CREAT
    for log in (pool / "gateway.log", pool / "state" / "logs" / "web.log"):
        with pytest.raises(FileNotFoundError):
            open_file(str(log), flags, below=str(pool))
        assert not (tmp_path / "run").exists()
    pool.mkdir(parents=True)
    os.close(open_file(str(log), flags, below=str(pool)))
    assert log.exists()


def test_file_of_a_third_user_is_read_but_not_written(theirs: Path) -> None:
    strange = theirs / "web.log"
    strange.write_text("x")
    os.chown(strange, 4242, 4242)
    with pytest.raises(
        UnsafePath, match="belongs to a third user, in a directory that another user can write"
    ):
        open_file(str(strange), os.O_WRONLY)
    fd = open_to_read(str(strange))
    assert os.read(fd, 8) == b"x"
    os.close(fd)
