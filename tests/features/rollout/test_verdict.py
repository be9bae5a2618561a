"""What withdraws a canary, what promotes it, and how many workers have which share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolctl.features.rollout._verdict import (
    DEFAULT_CONDITIONS,
    GenerationFigures,
    RolloutReport,
    Verdict,
    canaries_for,
    parse_condition,
    verdict,
)
from poolctl.json_form import from_json, to_json

BEFORE = GenerationFigures(
    workers=4,
    requests=10_000,
    errors=10,
    latency_p50_seconds=0.01,
    latency_p99_seconds=0.1,
    memory_bytes=100_000_000,
)
STATES = ("starting", "running", "paused", "promoting", "promoted", "withdrawn")
LIKE_BEFORE = replace(BEFORE, workers=1, requests=1000, errors=1)


def judged(
    canary: GenerationFigures, *texts: str, is_over: bool = False, before: GenerationFigures = BEFORE
) -> tuple[Verdict, str]:
    conditions = [parse_condition(text) for text in texts or DEFAULT_CONDITIONS]
    return verdict(conditions, canary, before, min_requests=100, is_over=is_over)


SLOW = replace(LIKE_BEFORE, latency_p50_seconds=0.5, latency_p99_seconds=0.25)
FAILING = replace(LIKE_BEFORE, errors=31)
LARGE = replace(LIKE_BEFORE, memory_bytes=200_000_000)


@pytest.mark.parametrize(
    ("text", "canary", "reason"),
    [
        ("errors > 1%", FAILING, "3.1 %, in 1000 requests"),
        ("errors > before + 1%", FAILING, "3.1 %, 0.1 % before, in 1000 requests"),
        ("p99 > 2 × before", SLOW, "250 ms, 100 ms before, in 1000 requests"),
        ("p99>2*before", SLOW, "250 ms, 100 ms before, in 1000 requests"),
        ("P50 > 300ms", SLOW, "500 ms, in 1000 requests"),
        ("memory > 1.5 x before", LARGE, "190.7MiB, 95.4MiB before"),
        ("memory > 150MB", LARGE, "190.7MiB"),
    ],
)
def test_canary_is_withdrawn_when_a_condition_is_met(
    text: str, canary: GenerationFigures, reason: str
) -> None:
    assert judged(LIKE_BEFORE, text) == (Verdict.WAIT, "")
    assert judged(canary, text, is_over=True) == (Verdict.WITHDRAW, f"{text}: {reason}")


def test_canary_like_the_others_is_promoted_when_its_time_is_over() -> None:
    assert judged(LIKE_BEFORE) == (Verdict.WAIT, "")
    assert judged(replace(LIKE_BEFORE, requests=100), is_over=True)[0] is Verdict.PROMOTE
    assert judged(LIKE_BEFORE, is_over=True) == (
        Verdict.PROMOTE, "1000 requests, 0.1 % errors, no condition was met",
    )  # fmt: skip


def test_there_is_no_verdict_on_requests_before_there_are_enough() -> None:
    few = replace(LIKE_BEFORE, requests=99, errors=99)
    assert judged(few, is_over=True) == (Verdict.WAIT, "")
    # Those before are compared with only if there are enough of them.
    many_fail, idle = replace(LIKE_BEFORE, errors=500), replace(BEFORE, requests=5)
    assert judged(many_fail, "errors > before + 1%", before=idle) == (Verdict.WAIT, "")
    assert judged(many_fail, "errors > 1%", before=idle)[0] is Verdict.WITHDRAW
    assert judged(replace(LIKE_BEFORE, requests=100, errors=100))[0] is Verdict.WITHDRAW
    # Memory needs no request.
    assert judged(replace(few, memory_bytes=10**9))[0] is Verdict.WITHDRAW


def test_one_request_is_enough_where_no_minimum_is_asked_for() -> None:
    conditions = [parse_condition("errors > 1%")]
    for requests, found in ((0, Verdict.WAIT), (1, Verdict.WITHDRAW)):
        canary = GenerationFigures(workers=1, requests=requests, errors=requests)
        assert verdict(conditions, canary, BEFORE, min_requests=0, is_over=False)[0] is found


@pytest.mark.parametrize(
    ("text", "errors_before", "errors", "found"),
    [
        ("errors > 1%", 0, 10, Verdict.WAIT),
        ("errors > 1%", 0, 11, Verdict.WITHDRAW),
        ("errors > before + 1%", 500, 60, Verdict.WAIT),
        ("errors > before + 1%", 500, 62, Verdict.WITHDRAW),
        ("errors > before + 1%", 0, 11, Verdict.WITHDRAW),
        ("errors > 2 × before", 0, 0, Verdict.WAIT),
        ("errors > 2 × before", 0, 1, Verdict.WITHDRAW),
    ],
)
def test_condition_is_met_above_its_bound(text: str, errors_before: int, errors: int, found: Verdict) -> None:
    canary, before = replace(LIKE_BEFORE, errors=errors), replace(BEFORE, errors=errors_before)
    assert judged(canary, text, before=before)[0] is found


def test_unknown_figures_meet_no_condition() -> None:
    unknown = GenerationFigures(requests=1000)
    assert judged(unknown) == (Verdict.WAIT, "")
    assert judged(LIKE_BEFORE, before=GenerationFigures(requests=1000)) == (Verdict.WAIT, "")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "is no condition"),
        ("cpu > 1%", "is no condition"),
        ("errors < 1%", "is no condition"),
        ("errors > ", "is no condition"),
        ("errors > 5", "in percent"),
        ("errors > 101%", "from 0% to 100%"),
        ("p99 > 1%", "duration"),
        ("memory > 2s", "size"),
    ],
)
def test_other_conditions_are_refused_with_the_reason(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_condition(text)


@pytest.mark.parametrize(
    ("share", "workers", "canaries"), [(0.1, 1, 1), (0.1, 4, 1), (0.1, 9, 1), (0.1, 18, 2), (0.5, 3, 3), (0.25, 8, 3)]
)  # fmt: skip
def test_canary_has_the_whole_number_of_workers_nearest_to_its_share(
    share: float, workers: int, canaries: int
) -> None:
    assert canaries_for(share, workers) == canaries


@pytest.mark.parametrize(("errors", "shown"), [(333, "33.3 %"), (1000, "100 %"), (12, "1.2 %"), (0, "0 %")])
def test_share_of_errors_has_few_digits(errors: int, shown: str) -> None:
    found = judged(replace(LIKE_BEFORE, errors=errors), "memory > 1GB", is_over=True)
    assert found == (Verdict.PROMOTE, f"1000 requests, {shown} errors, no condition was met")
    third = judged(replace(LIKE_BEFORE, requests=3000, errors=1000), "memory > 1GB", is_over=True)
    assert "33.33 % errors" in third[1]


def test_report_of_a_rollout_that_has_just_begun() -> None:
    report = from_json(RolloutReport, {"name": "web", "state": "starting"})
    figures = {"workers": 0, "requests": 0, "errors": 0}
    assert to_json(report) == {
        "name": "web", "state": "starting", "reason": "", "what": "code", "generation": 0, "share_asked": 0.0,
        "share": 0.0, "for_seconds": 0.0, "elapsed_seconds": 0.0, "min_requests": 0, "abort_on": [],
        "canary": figures, "before": figures,
    }  # fmt: skip
    over = [state for state in STATES if replace(report, state=state).is_over]
    assert over == ["promoted", "withdrawn"]
