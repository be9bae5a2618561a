"""The parts that features have in the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.core.core import Core
from poolctl.feature import Feature, features
from poolctl.monitor.event_queue import Events
from poolctl.monitor.server_figures import GiveSamples

from .active_configuration import PoolEnvironment
from .takeover.state_store import StateStore
from .verbs.verb import Call, Verb
from .verbs.verbs import Verbs


class PartSite(NamedTuple):
    """The objects that a part is created with."""

    environment: PoolEnvironment
    core: Core
    events: Events
    samples: GiveSamples
    store: StateStore


class FeaturePart:
    """A feature's part, made at the start if servers have keys of it, else when a table is in force or a verb used."""

    def __init__(self, site: PartSite) -> None:
        self.site = site

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """The verbs that `Feature.verbs` names."""
        return {}

    def follow(self, tables: Tables) -> None:
        """Act on these tables from now on: at first and after each change."""

    async def attempted(self) -> None:
        """Return once the part's addresses are open or could not be opened; `problems` then gives the reasons."""

    @property
    def problems(self) -> Iterable[str]:
        """The tables that cannot be served now, each with the reason."""
        return ()

    def flush(self) -> None:
        """Save everything for a successor, which may follow at any moment."""

    async def stop_serving(self) -> None:
        """Stop serving clients and the gateway, because the supervisor ends."""

    async def aclose(self) -> None:
        """Release everything, because the supervisor ends."""


Part = TypeVar("Part", bound=FeaturePart)


class FeatureParts:
    """The parts of all features. A feature that the configuration does not name is not imported at a start."""

    def __init__(self, environment: PoolEnvironment, events: Events) -> None:
        self._environment = environment
        self._events = events
        self._parts: dict[str, FeaturePart] = {}

    def begin(self, core: Core, samples: GiveSamples, store: StateStore) -> None:
        """Make parts for this core from now on."""
        self._site = PartSite(self._environment, core, self._events, samples, store)
        for feature in _features():
            if feature.sections:
                self._part(feature)

    def follow(self, tables: Tables) -> None:
        """Let the features act on these tables from now on."""
        named = tables.by_name().keys()
        for feature in _features():
            if feature.package in self._parts or named & {*feature.tables, *feature.needed_with}:
                self._part(feature).follow(tables)

    def add_verbs(self, verbs: Verbs) -> None:
        """Answer the verbs of the features."""
        for feature in _features():
            for name in feature.verbs:
                verbs.add(name, partial(self._answer, feature, name))

    def of(self, kind: type[Part]) -> list[Part]:
        """The parts of this kind."""
        return [part for part in self._parts.values() if isinstance(part, kind)]

    async def attempted(self) -> None:
        """Return once the addresses of all parts have been opened, or could not be."""
        for part in self._parts.values():
            await part.attempted()

    @property
    def problems(self) -> list[str]:
        """The tables that cannot be served now, each with the reason."""
        return [problem for part in self._parts.values() for problem in part.problems]

    async def stop_serving(self) -> None:
        """Have the features do no more for clients and the gateway."""
        for part in self._parts.values():
            await part.stop_serving()

    def flush(self) -> None:
        """Save everything for a successor."""
        for part in self._parts.values():
            part.flush()

    async def aclose(self) -> None:
        """End every part."""
        for part in self._parts.values():
            await part.aclose()

    def _part(self, feature: Feature) -> FeaturePart:
        part = self._parts.get(feature.package)
        if part is None:
            part = self._parts[feature.package] = feature.load(feature.supervisor)(self._site)
        return part

    async def _answer(self, feature: Feature, verb: str, call: Call) -> Result:
        return await self._part(feature).verbs[verb](call)


def modules() -> list[str]:
    """The modules that a start imports only for a configuration that names their features."""
    return [
        f"{feature.package}.{part.partition(':')[0]}"
        for feature in features()
        for part in filter(None, (feature.supervisor, *feature.engines.values()))
    ]


def _features() -> Iterator[Feature]:
    return (feature for feature in features() if feature.supervisor)
