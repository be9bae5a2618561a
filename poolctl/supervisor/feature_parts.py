"""The supervisor's parts of poolctl's features, which are optional components such as the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.core.core import Core
from poolctl.feature import Feature, features
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.metrics import GiveSamples
from poolctl.platform import close_all
from poolctl.runners.local.local_runner import LocalRunner

from .active_configuration import SupervisorContext
from .statistics import Totals
from .takeover.state_store import StateStore
from .verbs.verb import Call, Verb
from .verbs.verbs import Verbs
from .web_addresses import WebAddress, WebServer

if TYPE_CHECKING:
    from poolctl.monitor.metrics import Family
    from poolctl.routing.route_health import RouteHealth


# Verbs after which the addresses of tables, such as [metrics], are open, or a warning says why they are not.
OPENING_VERBS = ("start", "restart", "reload")


class PartContext(NamedTuple):
    """The objects that the supervisor passes to the constructor of each FeaturePart."""

    environment: SupervisorContext
    core: Core
    runner: LocalRunner
    events: EventBus
    samples: GiveSamples
    totals: Totals
    store: StateStore
    parts: FeatureParts
    web: WebServer
    over: asyncio.Event  # set when the supervisor ends, which ends streamed answers


class FeaturePart:
    """A feature's part in the supervisor, created when a key, a table or a verb first needs it."""

    address: WebAddress[Any] | None = None  # closed when the supervisor exits

    def __init__(self, context: PartContext) -> None:
        self.context = context

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """The handlers of the verbs that the feature declares in `Feature.verbs`."""
        return {}

    def take_over_process(self) -> None:
        """Called before `apply_tables` if the feature's process runs from an earlier supervisor (see Feature.entry)."""

    def apply_tables(self, tables: Tables) -> None:
        """Apply the configuration's tables, except [[server]]. Called at the start and after each change."""

    async def wait_for_opening_attempt(self) -> None:
        """Wait until each address of the part is open or has failed to open; `problems` has the reasons of failures."""
        if self.address is not None:
            await self.address.wait_for_opening_attempt()

    async def wait_for_effect(self, verb: str, call: Call, result: Result) -> Result:
        """Return the command's `result` once the feature has applied the command's changes; may add warnings to it.

        Unless a subclass overrides this method, it waits only for OPENING_VERBS: until each address of the feature is
        open or has failed to open. The messages in `problems` are then added to the warnings of the result.
        """
        if verb not in OPENING_VERBS or call.options.get("dry_run"):
            return result
        await self.wait_for_opening_attempt()
        return replace(result, warnings=(*result.warnings, *self.problems))

    async def extend(self, verb: str, call: Call, result: Result) -> Result:
        """Return `result`, with the part's data added if it has any."""
        return result

    @property
    def problems(self) -> Iterable[str]:
        """A message for each table of the feature that cannot be served now, for example if its address is in use."""
        return self.address.warnings if self.address is not None else ()

    @property
    def serves_without_servers(self) -> bool:
        """Whether the part serves clients even if the pool has no servers."""
        return False

    @property
    def pids(self) -> Mapping[str, int]:
        """The pids of the part's processes, by their names in metrics."""
        return {}

    async def metrics(self) -> Iterable[Family]:
        """Return the feature's metrics, except metrics of the feature's processes, whose pids `pids` returns."""
        return ()

    async def route_healths(self) -> Mapping[str, RouteHealth]:
        """Return the health of each route that the feature serves, by the route's name."""
        return {}

    def flush(self) -> None:
        """Save all state for the next supervisor, which may take over at any moment."""

    async def finish(self) -> None:
        """Stop accepting, and wait for requests in progress. Called as the pool ends, once all servers have stopped."""

    async def stop_serving(self) -> None:
        """Stop serving clients, because the supervisor exits."""
        if self.address is not None:
            await self.address.close()

    async def aclose(self) -> None:
        """Release all resources, because the supervisor exits."""


Part = TypeVar("Part", bound=FeaturePart)


class FeatureParts:
    """The collection of a supervisor's FeaturePart objects; a part comes after the parts that it depends on.

    Features that the configuration does not use are not imported at a start.
    """

    def __init__(self, environment: SupervisorContext, events: EventBus, features: Iterable[Feature]) -> None:
        self._environment = environment
        self._events = events
        self._features = [feature for feature in features if feature.supervisor]
        self._parts: dict[str, FeaturePart] = {}
        self.over = asyncio.Event()  # set when the supervisor ends

    def __iter__(self) -> Iterator[FeaturePart]:
        return iter([*self._parts.values()])

    def create_initial_parts(
        self,
        core: Core,
        runner: LocalRunner,
        samples: GiveSamples,
        totals: Totals,
        store: StateStore,
        web: WebServer,
    ) -> None:
        """Create the FeaturePart of each feature that adds keys to [[server]]; others are created when first needed."""
        self._site = PartContext(
            self._environment, core, runner, self._events, samples, totals, store, self, web, self.over
        )
        for feature in self._features:
            if feature.sections:
                self._get_or_create_part(feature)

    async def take_over_processes(self) -> None:
        """Create the part of each feature whose process runs from an earlier supervisor."""
        for feature in self._features:
            if feature.entry:
                reply, fds = await self._environment.keeper.call({"op": "get", "name": feature.entry})
                close_all(fds)
                if fds or reply.get("meta"):
                    self._get_or_create_part(feature).take_over_process()

    def apply_tables(self, tables: Tables) -> None:
        """Apply the configuration's tables to all parts, after creating the parts that the tables need."""
        named = tables.by_name().keys()
        parts = [
            self._get_or_create_part(feature)
            for feature in self._features
            if feature.package in self._parts or named & {*feature.tables, *feature.needed_with}
        ]
        for part in parts:
            part.apply_tables(tables)

    def add_to(self, verbs: Verbs) -> None:
        """Add the features' verbs to `verbs`."""
        for feature in self._features:
            for name in feature.verbs:
                verbs.add(name, partial(self._answer, feature, name))

    async def extend(self, verb: str, call: Call, result: Result) -> Result:
        """Return `result`, with the data of all features added."""
        for part in self:
            result = await part.extend(verb, call, result)
        return result

    def of(self, kind: type[Part]) -> list[Part]:
        """The FeatureParts that are instances of `kind`."""
        return [part for part in self if isinstance(part, kind)]

    async def wait_for_opening_attempts(self) -> None:
        """Wait until each address of each feature is open or has failed to open."""
        for part in self:
            await part.wait_for_opening_attempt()

    async def wait_for_effects(self, verb: str, call: Call, result: Result) -> Result:
        """Wait until every feature has applied the command's changes to servers; return the command's result.

        The result gets the features' warnings. Its field `without_servers` is set if a feature, such as the gateway,
        serves clients even without servers.
        """
        for part in self:
            result = await part.wait_for_effect(verb, call, result)
        return replace(result, without_servers=self.any_serves_without_servers or None)

    @property
    def any_serves_without_servers(self) -> bool:
        """Whether a part serves clients even if the pool has no servers."""
        return any(part.serves_without_servers for part in self)

    async def route_healths(self) -> dict[str, RouteHealth]:
        """The health of each route, by its name."""
        healths: dict[str, RouteHealth] = {}
        for part in self:
            healths |= await part.route_healths()
        return healths

    def _get_or_create_part(self, feature: Feature) -> FeaturePart:
        part = self._parts.get(feature.package)
        if part is None:
            part = self._parts[feature.package] = feature.load(feature.supervisor)(self._site)
        return part

    async def _answer(self, feature: Feature, verb: str, call: Call) -> Result:
        return await self._get_or_create_part(feature).verbs[verb](call)


def modules() -> list[str]:
    """The names of the modules that implement features in the supervisor or the gateway, imported or not."""
    return [
        f"{feature.package}.{feature.supervisor.partition(':')[0]}"
        for feature in features()
        if feature.supervisor
    ]
