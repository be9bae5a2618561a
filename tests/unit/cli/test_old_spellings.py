"""Options that were renamed: their old spellings do the same with a note, and are shown nowhere."""

from __future__ import annotations

import pytest

from poolctl.cli.command_line import command_named, current_spellings, names
from tests.stand_in import always

from .conftest import Command, Supervised

RENAMED = [(name, option) for name in names() for option in command_named(name).own if option.old]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("typed", "now"),
    [
        ("upgrade --force -o json", "upgrade --allow-same-version -o json"),
        ("rollout web --force", "rollout web --allow-larger-share"),
        ("upgrade --force", "upgrade --allow-same-version"),
    ],
)
def test_old_spelling_is_the_new_one_with_a_note(typed: str, now: str) -> None:
    words, notes = current_spellings(typed.split())
    assert " ".join(words) == now
    assert len(notes) == sum(old != new for old, new in zip(typed.split(), now.split(), strict=True))
    assert all("the next release does not accept" in note for note in notes)


@pytest.mark.parametrize(
    "line",
    [
        "wait --for stopped",
        "backends disable users --for 30s",
        "hosts disable users --for 0",
        "init --force",
        "restart --tag --force",  # a value
        "walk -- deploy --force",
        "run -- rollout --for",
        "frobnicate --force",
        "",
    ],
)
def test_other_words_are_left_as_they_are(line: str) -> None:
    assert current_spellings(line.split()) == (line.split(), [])


@pytest.mark.parametrize("words", [["--force"], ["--force", "-qo", "json"], ["--force", "-o=json"]])
def test_note_goes_to_standard_error_in_both_lanes(
    poolctl: Command, supervised: Supervised, words: list[str]
) -> None:
    with supervised(always()) as requests:
        said = poolctl("rollout", "web", "--canary", "10%", *words)
    note = "note: rollout --force is called --allow-larger-share; the next release does not accept --force"
    assert (said.code, "note" in said.out) == (0, False)
    assert said.err.splitlines() == ([] if "-qo" in words else [note])
    assert [body["options"]["force"] for verb, body in requests if verb == "rollout"] == [True]


def test_old_spellings_are_neither_shown_nor_completed(poolctl: Command) -> None:
    assert {name for name, _ in RENAMED} >= {"rollout", "upgrade"}
    for name, option in RENAMED:
        assert not {*option.old} & {each for other in command_named(name).options for each in other.spellings}  # type: ignore[union-attr]
        for spelling in option.old:
            assert poolctl("__complete", name, spelling).out == ""
