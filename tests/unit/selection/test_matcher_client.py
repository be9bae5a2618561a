"""Expressions are matched by another process, which one that takes too long does not outlive."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from poolctl import bootstrap
from poolctl.selection.matcher_client import TOO_SLOW, Answer, Matcher, close_matcher, matcher
from tests.deadline import wait_until
from tests.processes import is_alive

SLOW = "^(a+)+$"
HOSTILE = "a" * 40 + "b"


def run(
    work: Callable[[Matcher], Awaitable[None]], *, stuck_seconds: float = 30.0, idle_seconds: float = 60.0
) -> None:
    async def watched() -> None:
        matcher = Matcher(stuck_seconds=stuck_seconds, idle_seconds=idle_seconds)
        try:
            async with asyncio.timeout(100):
                await work(matcher)
        finally:
            process = matcher.child.process
            matcher.close()
            if process is not None:
                pid = process.pid
                wait_until(lambda: not is_alive(pid))

    asyncio.run(watched())


def test_texts_in_which_one_of_the_expressions_is_found_are_reported() -> None:
    async def scenario(matcher: Matcher) -> None:
        assert matcher.child.process is None, "nothing has been asked yet"
        texts = ["web-1", "WEB", "\ud800", "ü\n", ""]
        assert await matcher.find_matches(["^web", "ü"], texts) == Answer(frozenset({0, 3}))
        assert await matcher.find_matches(["[[]"], ["[", "a"]) == Answer(frozenset({0}))
        assert await matcher.find_matches([], texts) == Answer(frozenset())
        assert (await matcher.find_matches(["x$"], ["y" * 3_000_000 + "x"])).found == {0}

    run(scenario)


@pytest.mark.parametrize(
    ("expression", "problem", "hint"),
    [
        ("a(", "invalid regular expression 'a(': missing ), unterminated subpattern at position 1", "a(\n ^"),
        ("[[:alpha:]]", "[:alpha:] is not known at position 1", "in Python [[:alpha:]] is [A-Za-z]"),
    ],
)
def test_an_invalid_expression_is_reported_with_position_and_fix(
    expression: str, problem: str, hint: str
) -> None:
    async def scenario(matcher: Matcher) -> None:
        answer = await matcher.find_matches(["ok", expression], ["ok"])
        assert answer.found == frozenset()
        assert problem in answer.problem
        assert hint in answer.hint

    run(scenario)


@pytest.mark.slow
def test_a_slow_expression_is_given_up_and_other_questions_are_answered() -> None:
    async def scenario(matcher: Matcher) -> None:
        await matcher.find_matches(["a"], ["a"])
        first = matcher.child.process
        asked = [
            matcher.find_matches([expression], [HOSTILE]) for expression in ("^a", SLOW, "b$", SLOW, "^b")
        ]
        answers = await asyncio.gather(*asked)
        assert [answer if answer is TOO_SLOW else answer.found for answer in answers] == [
            {0}, TOO_SLOW, {0}, TOO_SLOW, set(),
        ]  # fmt: skip
        assert matcher.child.process is first

    run(scenario)


@pytest.mark.slow
def test_a_long_text_that_keeps_signals_out_ends_the_process_and_only_that_question() -> None:
    async def scenario(matcher: Matcher) -> None:
        await matcher.find_matches(["a"], ["a"])
        first = matcher.child.process
        asked = [matcher.find_matches(["[^x]*y"], [text]) for text in ("y", "z" * 1_000_000, "ay")]
        answers = await asyncio.gather(*asked)
        assert answers[1] is TOO_SLOW
        assert [answer.found for answer in answers] == [{0}, set(), {0}]
        assert matcher.child.process is not first

    run(scenario)


@pytest.mark.slow
def test_the_loop_goes_on_while_an_expression_takes_too_long() -> None:
    async def scenario(matcher: Matcher) -> None:
        pid = await started(matcher)
        os.kill(pid, signal.SIGSTOP)  # however long a turn takes, there is no answer before the last one
        question = asyncio.ensure_future(matcher.find_matches([SLOW], [HOSTILE]))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not question.done()
        os.kill(pid, signal.SIGCONT)
        assert await question is TOO_SLOW

    run(scenario)


async def started(matcher: Matcher) -> int:
    """The pid of its process, which has answered."""
    assert (await matcher.find_matches(["a"], ["a"])).found == {0}
    assert matcher.child.process is not None
    return matcher.child.process.pid


def test_a_process_that_does_not_run_any_more_is_replaced() -> None:
    async def scenario(matcher: Matcher) -> None:
        os.kill(await started(matcher), signal.SIGSTOP)
        matcher._stuck_seconds = 1.0
        first, second = (asyncio.ensure_future(matcher.find_matches(["a"], ["a"])) for _ in range(2))
        await asyncio.sleep(0)  # the limit of the first question runs
        matcher._stuck_seconds = 30.0  # a busy machine may take longer to start the next process
        assert await first == TOO_SLOW
        assert await second == Answer(frozenset({0}))

    run(scenario)


def test_a_process_that_was_killed_is_replaced() -> None:
    async def scenario(matcher: Matcher) -> None:
        pid = await started(matcher)
        os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.ensure_future(matcher.find_matches(["a"], ["a"])) for _ in range(2)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        first, second = await asyncio.gather(*asked)
        assert "has exited" in first.problem
        assert second.found == {0}

    run(scenario)


def test_an_idle_process_ends_and_is_started_again_on_demand() -> None:
    async def scenario(matcher: Matcher) -> None:
        await matcher.find_matches(["a"], ["a"])
        while matcher.child.process:
            await asyncio.sleep(0.01)
        assert (await matcher.find_matches(["a"], ["a"])).found == {0}

    run(scenario, idle_seconds=0.05)


ASKER = f"""
import asyncio
from poolctl.selection.matcher_client import Matcher

async def ask():
    matcher = Matcher()
    await matcher.find_matches(["a"], ["a"])
    question = asyncio.ensure_future(matcher.find_matches([{SLOW!r}], [{HOSTILE!r}]))
    await asyncio.sleep(0.01)
    print(matcher.child.process.pid, flush=True)
    await question

asyncio.run(ask())
"""


@pytest.mark.slow
def test_a_process_at_a_slow_expression_does_not_outlive_its_client() -> None:
    with subprocess.Popen([sys.executable, "-c", ASKER], stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        pid = int(asker.stdout.readline())
        asker.kill()
    wait_until(lambda: not is_alive(pid))


def test_process_that_ends_or_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(matcher: Matcher) -> None:
        for program, problem in (
            ("/bin/true", "the process that matches regexes has exited"),
            ("/no/such/program", "cannot start the regex process: No such file or directory"),
        ):
            monkeypatch.setattr(bootstrap, "command", lambda *given, argv=program, **more: [argv])
            found = await matcher.find_matches(["a"], ["a"])
            assert (found.found, found.problem, found.hint) == (frozenset(), problem, ""), program

    run(scenario)


def test_answer_is_given_to_a_function_unless_the_matcher_is_closed() -> None:
    async def scenario(matcher: Matcher) -> None:
        answers: list[Answer] = []
        matcher.ask(["a"], ["b", "a"], answers.append)
        async with asyncio.timeout(60):
            while not answers or matcher._asked:
                await asyncio.sleep(0.005)
        assert answers == [Answer(frozenset({1}))]
        matcher.ask([SLOW], [HOSTILE], answers.append)
        await asyncio.sleep(0)
        (task,) = matcher._asked
        matcher.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(answers) == 1

    run(scenario)


def test_each_loop_has_a_matcher_of_its_own_until_it_is_closed() -> None:
    async def work() -> None:
        first = matcher()
        assert matcher() is first
        seen.append(first)
        close_matcher()
        close_matcher()
        assert matcher() is not first

    seen: list[Matcher] = []
    asyncio.run(work())
    asyncio.run(work())
    assert seen[0] is not seen[1]


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_variables_of_this_process_do_not_reach_the_matching_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")

    async def scenario(matcher: Matcher) -> None:
        await matcher.find_matches(["a"], ["a"])
        process = matcher.child.process
        assert process is not None
        assert b"API_KEY" not in environment_of(process.pid)

    run(scenario)
