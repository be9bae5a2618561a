"""Which lines of a log are wanted, read backwards and as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.logs.line_filter import LineFilter, stated_level, text_after_level
from poolctl.logs.log_line import LogLine, stamp
from poolctl.logs.log_tail import Follower, tail


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("INFO:     Application startup complete.", "info"), ("ERROR:root:it failed", "error"),
        ("[warn] low", "warning"), ("2026-11-20 08:47:34,123 CRITICAL it burns", "critical"),
        ("2026-11-20 08:47:34,123 - shop.cart - ERROR - no stock", "error"),
        ("2026-11-20 08:47:34.123 | WARNING  | shop:buy:12 - slow", "warning"),
        ("[2026-11-20 08:47:34 +0000] [7] [INFO] Booting worker", "info"),
        ("2026/11/20 08:47:34 [error] 7#0: *1 open() failed", "error"),
        ("2026/11/20 08:47:34 [crit] 7#0: *1 connect() failed", "critical"),
        ("2026/11/20 08:47:34 [alert] 7#0: worker process exited", "critical"),
        ("2026/11/20 08:47:34 [emerg] 7#0: bind() failed", "critical"),
        ("2026/11/20 08:47:34 [notice] 7#0: start worker processes", "info"),
        ("EMERGENCY: no disk", "critical"), ("panic: no memory", "critical"), ("fatal: no network", "critical"),
        ("ts=2026-11-20 level=warn msg=slow", "warning"), ("\x1b[31mERROR\x1b[0m:    no", "error"),
        ('{"severity": 50, "msg": "no"}', "critical"), ("no errors", ""), ("an error occurred", ""), ("", ""),
        ("errors: none", ""), ('GET /WARNING.txt', ""), ("x" * 200 + " ERROR ", ""),
    ],
)  # fmt: skip
def test_level_is_read_in_the_usual_forms(text: str, level: str) -> None:
    assert stated_level(text) == level


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("INFO:     Application startup complete.", "Application startup complete."), ("CRITICAL: no", "no"),
        ("\x1b[31mERROR\x1b[0m:    \x1b[1mno", "no"), ("ERROR:root:it failed", "ERROR:root:it failed"),
        ("Error: no", "Error: no"), ("ERROR no", "ERROR no"), ("INFO:", "INFO:"), ("HOST: a", "HOST: a"), ("", ""),
    ],
)  # fmt: skip
def test_level_before_a_message_is_no_part_of_it(text: str, message: str) -> None:
    assert text_after_level(text) == message


TRACEBACK = ["Traceback (most recent call last):", "  File a", "KeyError: 1", "", "During handling", "", "x"]


def lines(*texts: str, name: str = "web") -> list[LogLine]:
    return [LogLine(text, time=stamp(at + 1), name=name) for at, text in enumerate(texts)]


Reading = Callable[[LineFilter, list[LogLine]], list[str]]


def forwards(wanted: LineFilter, given: list[LogLine]) -> list[str]:
    return [line.text for each in given for line in wanted.filter_forwards([each])]


def backwards(wanted: LineFilter, given: list[LogLine]) -> list[str]:
    return [line.text for line in wanted.filter_backwards(reversed(given))][::-1]


@pytest.mark.parametrize("read", [forwards, backwards])
class TestBothWays:
    def test_traceback_belongs_to_the_line_before_it(self, read: Reading) -> None:
        given = lines("CRITICAL it burns", *TRACEBACK[:4], "INFO: on", "plain")
        assert read(LineFilter(least="critical"), given) == ["CRITICAL it burns", *TRACEBACK[:4]]

    def test_traceback_is_at_least_an_error(self, read: Reading) -> None:
        given = lines("INFO: a request", *TRACEBACK[:3], "plain")
        assert read(LineFilter(least="error"), given) == TRACEBACK[:3]

    def test_exception_of_a_traceback_without_frames_belongs_to_it(self, read: Reading) -> None:
        given = lines("Traceback (most recent call last):", "ValueError: no", "plain")
        assert read(LineFilter(least="error"), given) == [
            "Traceback (most recent call last):",
            "ValueError: no",
        ]

    def test_each_line_has_the_level_that_is_known(self, read: Reading) -> None:
        group = [
            "  + Exception Group Traceback (most recent call last):",
            "  |   File a",
            "ExceptionGroup: no",
        ]
        given = lines("plain", *group, "DEBUG x", "  more", '{"level": "verbose", "msg": ""}', "plain")
        assert len(read(LineFilter(levels=True), given)) == 8
        assert [line.level for line in given] == ["", *["error"] * 3, "debug", "debug", "verbose", ""]

    def test_line_without_a_level_does_not_pass_a_level(self, read: Reading) -> None:
        assert read(LineFilter(least="trace"), lines("plain", "DEBUG x", "plain")) == ["DEBUG x"]

    def test_time_and_text_narrow_too(self, read: Reading) -> None:
        wanted = LineFilter(until=stamp(2), matches=lambda text: "a" in text)
        assert read(wanted, lines("a", "b a", "a")) == ["a", "b a"]


def test_colours_are_no_part_of_the_searched_text() -> None:
    wanted = LineFilter(matches=lambda text: text == "red")
    assert forwards(wanted, lines("\x1b[31mred\x1b[0m")) == ["\x1b[31mred\x1b[0m"]


def test_lines_without_a_time_have_that_of_the_line_before_them() -> None:
    given = [LogLine("a", time=stamp(1)), LogLine("b"), LogLine("c", time=stamp(3)), LogLine("d")]
    assert backwards(LineFilter(until=stamp(2)), given) == ["a", "b"]


def test_output_without_levels_is_read_in_parts_of_bounded_size() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while taken < 10_000:
            taken += 1
            yield LogLine("plain", time=stamp(1)) if taken > 5000 else LogLine("ERROR x", time=stamp(1))

    found = LineFilter(least="error").filter_backwards(endless())  # type: ignore[arg-type]
    assert next(found).text == "ERROR x"
    assert taken == 1
    assert len(list(found)) == 4999


def test_follower_passes_what_is_wanted_of_the_old_and_the_new_lines(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_text(f"{stamp(1)} ERROR one\n{stamp(2)} INFO two\n")
    follower = Follower({"web": str(path)}, lines=5, wanted=LineFilter(least="error"))
    with path.open("a") as file:
        file.write(f"no time\n{stamp(3)} ERROR three\n{stamp(4)} INFO four\n  more\n")
    assert [line.text for line in [*follower.first, *follower.read()]] == ["ERROR one", "ERROR three"]
    follower.close()
    assert [line.text for line in tail(str(path), 1, wanted=LineFilter(least="error"))] == ["ERROR three"]


@pytest.mark.parametrize("read", [forwards, backwards])
def test_without_a_wish_every_line_is_shown_whenever_it_was_written(read: Reading) -> None:
    given = [LogLine("long ago", time=stamp(0), name="web"), LogLine("far off", time=stamp(9e9), name="web")]
    given.append(LogLine("without a time", time="", name="web"))
    assert read(LineFilter(), given) == ["long ago", "far off", "without a time"]
    assert read(LineFilter(until=given[0].time), given[:2]) == ["long ago"]
