"""A collection is fetched once, in the pinned version; anything else is refused, or named as the reason of a skip."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance_collections import CollectedCase, Collection, Unreachable, digest_of

pytestmark = [pytest.mark.unmeasured, pytest.mark.skipif(not shutil.which("git"), reason="needs git")]

DATA = b"GET / HTTP/1.1\r\n\r\n"


def read(directory: Path) -> Iterator[CollectedCase]:
    yield CollectedCase("one", (directory / "case").read_bytes())


def git(place: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(place), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Collection:
    """A repository with one case."""
    place = tmp_path / "origin"
    place.mkdir()
    (place / "case").write_bytes(DATA)
    git(place, "init", "-q")
    git(place, "add", "case")
    git(place, "commit", "-q", "-m", "A case")
    digest = digest_of(place, ("case",))
    return Collection("some", place.as_uri(), git(place, "rev-parse", "HEAD"), ("case",), digest, read)


def test_collection_is_fetched_from_its_repository_once(
    tmp_path: Path, repository: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_CONFORMANCE", str(tmp_path / "kept"))
    for each in (repository, repository._replace(source="file:///nowhere")):
        assert each.cases() == [CollectedCase("some: one", DATA)]


def test_files_of_another_version_are_refused_and_not_kept(tmp_path: Path, repository: Collection) -> None:
    with pytest.raises(ValueError, match="not those of"):
        repository._replace(digest="0" * 64).fetched(tmp_path / "kept")
    place = repository.fetched(tmp_path / "kept")
    (place / "case").write_bytes(b"")
    with pytest.raises(ValueError, match="not those of"):
        repository.fetched(tmp_path / "kept")


def test_collection_that_cannot_be_reached_is_a_reason_to_skip(
    tmp_path: Path, repository: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = repository._replace(source=(tmp_path / "gone").as_uri())
    with pytest.raises(Unreachable, match="gone"):
        gone.fetched(tmp_path / "kept")
    monkeypatch.setenv("POOLCTL_CONFORMANCE", str(tmp_path / "kept"))
    with pytest.raises(pytest.skip.Exception, match="some cannot be fetched"):
        gone.cases()
    monkeypatch.delenv("POOLCTL_CONFORMANCE")
    with pytest.raises(pytest.skip.Exception, match="make conformance"):
        repository.cases()
