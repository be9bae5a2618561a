"""`every` of a job: which times are accepted, and with which other keys it makes sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl import PoolConfig, PoolValidateError, ServerConfig


def job(**keys: object) -> ServerConfig:
    return ServerConfig(**{"name": "backup", "job": True, "command": ["true"], "every": "0 3 * * *"} | keys)


@pytest.mark.parametrize("every", ["0 3 * * *", "*/15 8-18 * * mon-fri", "0 0 29 2 *", "0 0 31 4 mon"])
def test_times_in_the_notation_of_cron_are_accepted(every: str) -> None:
    assert job(every=every).to_dict()["every"] == every


def test_job_without_times_does_not_name_them() -> None:
    assert "every" not in job(every=None).to_dict()


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"every": "3 * * *"}, "has 4 fields instead of 5", "minute, hour, day, month and weekday"),
        ({"every": "0 24 * * *"}, "'24' is no hour", "0 to 23"),
        ({"every": "@daily"}, "short forms such as '@daily' are not known", '"0 0 * * *"'),
        ({"every": "0 0 30 2 *"}, "'0 0 30 2 *' never comes", "a day that the month has"),
        ({"every": 5}, "", "a string"),
        ({"job": False}, "every is for a job", "add job = true"),
        ({"job": False, "command": None, "app": "a:b", "bind": ":1"}, "every is for a job", "and command = "),
        ({"hooks": {"before_start": ["true"]}}, "hooks belong to a start and a stop", "take hooks out"),
        ({"mandatory": True}, "mandatory ends the pool", "take mandatory out"),
    ],
)
def test_what_makes_no_sense_is_a_problem_with_its_fix(
    keys: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(PoolValidateError) as raised:
        job(**keys)
    found = [
        f"{each.message}; {each.hint}" for each in raised.value.exceptions if "job = true" not in each.message
    ]
    assert any(message in text and hint in text for text in found), found


@pytest.mark.parametrize("condition", ["started", "ready", "completed"])
def test_nothing_can_wait_for_it(condition: str) -> None:
    web = ServerConfig(
        name="web", bind=":1", app="a:b", depends_on=[{"name": "backup", "condition": condition}]
    )
    (problem,) = PoolConfig([job(), web]).problems
    assert "'backup' runs at certain times (every), so nothing can wait for it" in str(problem)
    assert problem.hint == "take it out, or every of 'backup'"


def test_what_it_cannot_have_is_not_taken_over_from_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        '[defaults]\nmandatory = true\nhooks = { before_start = ["true"] }\n'
        '[[server]]\nname = "queue"\ncommand = ["true"]\n'
        '[[server]]\nname = "backup"\njob = true\ncommand = ["true"]\nevery = "0 3 * * *"\n'
    )
    config = PoolConfig.load(file)
    assert config.problems == []
    queue, backup = config
    assert (queue.mandatory, queue.hooks is None) == (True, False)
    assert (backup.mandatory, backup.hooks) == (False, None)


def test_a_job_may_wait_for_others() -> None:
    db = ServerConfig(name="db", bind=":1", app="a:b")
    assert PoolConfig([job(depends_on=["db"]), db]).problems == []
