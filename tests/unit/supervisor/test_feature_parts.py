"""The parts of features in a supervisor: when they are made, and what they add to answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.control.answers import Result
from poolctl.feature import Feature, features
from poolctl.keeper.store import Store
from poolctl.routing.route_health import HEALTHY, RouteHealth
from poolctl.selection.selector import Selector
from poolctl.supervisor.feature_parts import FeaturePart, FeatureParts, PartContext, modules
from poolctl.supervisor.verbs.verb import Call, Verb
from tests.descriptors import no_descriptor_left
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk
from tests.unit.supervisor.test_state_store import StoreLink

LIST = Call(Selector(), {}, lambda line: None)


class NotedPart(FeaturePart):
    """A part whose calls are noted in `log`."""

    log: list[str]
    name = ""

    def __init__(self, site: PartContext) -> None:
        super().__init__(site)
        self.log.append(f"make {self.name}")
        self.alone = False

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {f"greet-{self.name}": self.greet}

    async def greet(self, call: Call) -> Result:
        return Result(warnings=(f"hello from {self.name}",))

    def take_over_process(self) -> None:
        self.log.append(f"take over {self.name}")

    def apply_tables(self, tables: Tables) -> None:
        self.log.append(f"apply {self.name}")

    async def wait_for_opening_attempt(self) -> None:
        self.log.append(f"attempted {self.name}")

    async def extend(self, verb: str, call: Call, result: Result) -> Result:
        return replace(result, warnings=(*result.warnings, f"{verb} {self.name}"))

    @property
    def problems(self) -> Iterable[str]:
        return [f"{self.name} is not served"]

    @property
    def serves_without_servers(self) -> bool:
        return self.alone

    async def route_healths(self) -> dict[str, RouteHealth]:
        return {self.name: RouteHealth(status=HEALTHY)}


def feature(name: str, log: list[str], **keys: Any) -> Feature:
    kind = type(name.title(), (NotedPart,), {"name": name, "log": log})

    class Declared(Feature):
        def load(self, reference: str) -> Any:
            assert reference == "part:Part"
            return kind

    return Declared(package=name, supervisor="part:Part", verbs=(f"greet-{name}",), **keys)


class Supervised:
    """The parts of these features over a core."""

    def __init__(self, directory: Path, *features: Feature) -> None:
        self.desk = Desk(web())
        self.link = StoreLink(Store())
        environment: Any = SimpleNamespace(directory=str(directory), keeper=self.link)
        self.parts = FeatureParts(environment, self.desk.events, features)
        absent: Any = None
        self.parts.create_initial_parts(self.desk.core, absent, absent, absent, absent, absent)


Make = Callable[..., Supervised]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def supervised(tmp_path: Path) -> Make:
    return partial(Supervised, tmp_path)


METRICS = Tables(metrics=MetricsTable(bind="127.0.0.1:9100"))


async def test_part_is_made_for_a_table_or_a_key_and_all_before_the_first_applies_them(
    supervised: Make, log: list[str]
) -> None:
    parts = supervised(
        Feature(package="without a part", tables={"metrics": "x:y"}),
        feature("keys", log, sections={"Scale": "x:y"}),
        feature("own", log, tables={"metrics": "x:y"}),
        feature("other", log, tables={"gateway": "x:y"}),
        feature("after", log, needed_with=("metrics",)),
    ).parts
    assert log == ["make keys"]
    parts.apply_tables(Tables())
    assert log[1:] == ["apply keys"]
    log.clear()
    parts.apply_tables(METRICS)
    assert log == ["make own", "make after", "apply keys", "apply own", "apply after"]
    log.clear()
    parts.apply_tables(Tables())
    assert log == ["apply keys", "apply own", "apply after"], "one that is there applies its end too"
    assert [type(part).__name__ for part in parts] == ["Keys", "Own", "After"]


async def test_part_has_the_objects_of_its_supervisor(supervised: Make, log: list[str]) -> None:
    stage = supervised(feature("one", log, sections={"Scale": "x:y"}))
    (part,) = stage.parts
    assert (part.context.core, part.context.events) == (stage.desk.core, stage.desk.events)
    assert (part.context.parts, part.context.over) == (stage.parts, stage.parts.over)
    assert stage.parts.of(NotedPart) == [part]
    assert stage.parts.of(type("Another", (FeaturePart,), {})) == []


async def test_verb_makes_the_part_that_answers_it(supervised: Make, log: list[str]) -> None:
    stage = supervised(feature("one", log), feature("two", log))
    stage.parts.add_to(stage.desk.verbs)
    assert log == []
    for _ in range(2):
        assert (await stage.desk.ask("greet-two"))["warnings"] == ["hello from two"]
    assert log == ["make two"]


async def test_process_that_an_earlier_supervisor_has_left_is_taken_over(
    supervised: Make, log: list[str]
) -> None:
    entries = {name: feature(name, log, entry=name) for name in ("held", "noted", "absent")}
    stage = supervised(*entries.values(), feature("none", log))
    read, write = os.pipe()
    stage.link.send({"op": "put", "name": "held", "meta": ""}, [read])
    stage.link.send({"op": "put", "name": "noted", "meta": {"pid": 7}})
    with no_descriptor_left():
        await stage.parts.take_over_processes()
    assert log == ["make held", "take over held", "make noted", "take over noted"]
    os.close(read)
    os.close(write)
    stage.link.end()


@pytest.mark.parametrize("verb", ["start", "restart", "reload"])
async def test_what_opens_addresses_is_answered_with_the_tables_that_are_not_served(
    supervised: Make, log: list[str], verb: str
) -> None:
    stage = supervised(
        feature("one", log, sections={"Scale": "x:y"}), feature("two", log, sections={"Scale": "x:y"})
    )
    result = await stage.parts.wait_for_effects(verb, LIST, Result(warnings=("before",)))
    assert result.warnings == ("before", "one is not served", "two is not served")
    assert log[2:] == ["attempted one", "attempted two"]
    assert result.without_servers is None
    dry = LIST._replace(options={"dry_run": True})
    for other, call in (("stop", LIST), ("reload", dry)):
        result = await stage.parts.wait_for_effects(other, call, Result(warnings=("before",)))
        assert (result.warnings, len(log)) == (("before",), 4)


async def test_pool_serves_without_servers_if_one_part_does(supervised: Make, log: list[str]) -> None:
    stage = supervised(
        feature("one", log, sections={"Scale": "x:y"}), feature("two", log, sections={"Scale": "x:y"})
    )
    assert not stage.parts.any_serves_without_servers
    (_, two) = stage.parts.of(NotedPart)
    two.alone = True
    assert stage.parts.any_serves_without_servers
    assert (await stage.parts.wait_for_effects("stop", LIST, Result())).without_servers is True


async def test_answer_of_a_verb_goes_through_all_parts_that_extend_it_in_their_order(
    supervised: Make, log: list[str]
) -> None:
    stage = supervised(
        feature("one", log, sections={"Scale": "x:y"}), feature("two", log, sections={"Scale": "x:y"})
    )
    assert (await stage.parts.extend("list", LIST, Result())).warnings == ("list one", "list two")
    assert [*await stage.parts.route_healths()] == ["one", "two"]


async def test_part_that_does_nothing_serves_nothing() -> None:
    site: Any = None
    part = FeaturePart(site)
    assert (part.verbs, part.problems, part.serves_without_servers, part.pids) == ({}, (), False, {})
    assert (await part.metrics(), await part.route_healths()) == ((), {})
    result = Result(exit_code=3)
    assert await part.extend("list", LIST, result) is result
    assert await part.wait_for_effect("stop", LIST, result) is result
    assert (await part.wait_for_effect("start", LIST, result)) == result
    part.take_over_process()
    part.apply_tables(Tables())
    part.flush()
    await asyncio.gather(
        part.wait_for_opening_attempt(),
        part.finish(),
        part.stop_serving(),
        part.aclose(),
    )


def test_modules_are_those_of_the_parts() -> None:
    assert all(map(find_spec, modules()))
    assert len(modules()) == len([feature for feature in features() if feature.supervisor])
