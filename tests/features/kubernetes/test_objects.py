"""Every server that is not refused becomes valid objects."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import ServerConfig
from poolctl.features.kubernetes._keys import cron_schedule, refused
from poolctl.features.kubernetes._objects import KubernetesPool, _quantity, moved_to_pods, objects_of
from poolctl.features.kubernetes.table import Kubernetes
from poolctl.time_windows import BadWindow, parse_window
from tests.examples import examples

from .valid_objects import assert_valid

seconds = st.floats(0.1, 1e5)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
probes = st.fixed_dictionaries(
    {"http": st.sampled_from(["/", "/a?b=c"]), "interval": seconds, "timeout": seconds},
    optional={"headers": st.dictionaries(st.sampled_from(["X-A", "Host"]), st.sampled_from(["a", "b c"]))},
)
common = {
    "scale": st.integers(1, 9).flatmap(lambda least: st.fixed_dictionaries({"min": st.just(least)})),
    "env": st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), texts, max_size=3),
    "disabled": st.booleans(),
    "start_timeout": seconds,
    "stop_timeout": seconds,
    "drain_timeout": seconds,
    "limits": st.fixed_dictionaries({"memory": st.integers(2**20, 2**40)}),
}
of_apps = st.fixed_dictionaries(
    {"bind": st.integers(1, 65535).map("127.0.0.1:{}".format), "app": st.just("a.b:c")},
    optional={
        **common,
        "factory": st.booleans(),
        "health": st.fixed_dictionaries(
            {"readiness": probes}, optional={"liveness": probes, "startup": probes}
        ),
    },
)
of_commands = st.fixed_dictionaries(
    {"command": st.lists(texts.filter(bool), min_size=1, max_size=3)},
    optional={**common, "bind": st.integers(1, 65535).map(":{}".format)},
)
settings = st.fixed_dictionaries(
    {"image": st.just("shop:1")},
    optional={
        "namespace": st.just("shop"),
        "node_lost_after": seconds,
        "stop_delay": seconds,
        "secrets": st.lists(st.just("known"), max_size=1),
        "requests": st.fixed_dictionaries({"cpu": st.just("100m")}),
    },
)


@given(keys=of_apps | of_commands, given_settings=settings)
@examples(200)
def test_every_server_becomes_valid_objects(keys: dict[str, Any], given_settings: dict[str, Any]) -> None:
    server = ServerConfig(name="web", **keys)
    assert list(refused(server)) == []
    pool = KubernetesPool("shop", Kubernetes(**given_settings))
    (moved,) = moved_to_pods([server])
    objects = list(objects_of(moved, pool))
    for each in objects:
        assert_valid(each, "1.37")
    assert json.dumps(objects) == json.dumps(list(objects_of(moved, pool)))
    kinds = [each["kind"] for each in objects]
    assert ("Service" in kinds) == server.listens
    assert ("Secret" in kinds) == bool(server.env or (server.command and server.listens))
    (spec,) = (each["spec"] for each in objects if each["kind"] == "Deployment")
    assert spec["replicas"] == (0 if server.disabled else server.scale.min)
    labels = spec["template"]["metadata"]["labels"]
    assert labels == {
        **spec["selector"]["matchLabels"],
        "poolctl.dev/revision": labels["poolctl.dev/revision"],
    }


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (1500, "1500"), (200_000_000, "200M"), (2**30, str(2**30)), (5 * 10**15, "5000T")],
)
def test_memory_is_written_as_the_api_server_writes_it(size: int, text: str) -> None:
    assert _quantity(size) == text


def of_cron_job(schedule: str, moment: date) -> set[int]:
    """The minutes of this day at which a CronJob runs (robfig/cron v3, ParseStandard)."""
    fields = []
    for text, least, most in zip(schedule.split(), (0, 0, 1, 1, 0), (59, 23, 31, 12, 6), strict=True):
        found = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            begin, end = (least, most) if part == "*" else (int(first), int(last or first))
            assert least <= begin <= end <= most
            found |= {*range(begin, end + 1)}
        fields.append((found, "*" in text))
    (minutes, _), (hours, _), (days, any_day), (months, _), (weekdays, any_weekday) = fields
    in_month, in_week = moment.day in days, moment.isoweekday() % 7 in weekdays
    runs = in_month and in_week if any_day or any_weekday else in_month or in_week
    return {60 * h + m for h in hours for m in minutes} if runs and moment.month in months else set()


def parts(least: int, most: int, *names: str) -> Any:
    numbers = st.integers(least, most)
    spans = st.tuples(numbers, numbers).map(lambda two: f"{min(two)}-{max(two)}")
    part = st.one_of(st.just("*"), numbers.map(str), spans, st.integers(1, 40).map("*/{}".format))
    lists = st.lists(part, min_size=1, max_size=2).map(",".join)
    return lists | st.sampled_from(names) if names else lists


@given(
    fields=st.tuples(
        parts(0, 59), parts(0, 23), parts(1, 31), parts(1, 12, "jan-mar"), parts(0, 7, "fri-sun", "mon-fri,7")
    ),
    moment=st.dates(date(2024, 1, 1), date(2031, 12, 31)),
)
@examples(300)
def test_cron_job_runs_at_the_times_of_every(fields: tuple[str, ...], moment: date) -> None:
    text = " ".join(fields)
    try:
        window = parse_window(text)
    except BadWindow:
        return
    schedule = cron_schedule(text)
    if schedule is None:
        assert fields[2].startswith("*") or fields[4].startswith("*")
        return
    bits = window.of(moment)
    assert of_cron_job(schedule, moment) == {minute for minute in range(1440) if bits >> minute & 1}


@pytest.mark.parametrize(
    ("every", "schedule"),
    [
        ("0 3 * * *", "0 3 * * *"),
        ("*/15 8-18 * * mon-fri", "0,15,30,45 8-18 * * 1-5"),
        ("0 0 1 * sun", "0 0 1 * 0"),
        ("0 0 * * fri-sun", "0 0 * * 0,5-6"),
        ("0 0 */2 * mon", None),  # both restrict here, and one suffices on a cluster
    ],
)
def test_schedule_has_numbers_alone(every: str, schedule: str | None) -> None:
    assert cron_schedule(every) == schedule
