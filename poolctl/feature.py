"""The features of poolctl, and the declaration of their parts.

A feature is a package of `poolctl.features` that exports a `FEATURE`. The command line, the configuration and the
supervisor find its parts here; without its line in `FEATURES` and its folder, everything else still works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

# A feature may import earlier features.
FEATURES = (
    "import_foreign",
    "pytest_plugin",
    "gateway",
    "notify",
    "proxmox",
    "registration",
    "operator",
    "scaling",
    "rollout",
    "haproxy",
    "dashboard",
    "doctor",
    "top",
    "serve",
    "kubernetes",
)


@dataclass(frozen=True, kw_only=True)
class LastingProcess:
    """A process of a feature that continues to serve clients without a supervisor.

    The keeper holds the link to it as `entry`; without a keeper it is found by its socket, whose name begins with
    `socket` (see keeper.pool_files). The feature's part is made for it, whatever the files say now. `end` refers to a
    function that ends the processes without a keeper in a pool's directory, within a limit in seconds, and returns a
    pid for each and whether it ended by itself.
    """

    label: str
    entry: str
    socket: str
    end: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a feature with a process takes part in the trial of an upgrade, in a pool of its own.

    `tables` are added to the pool's file; `verb` fails unless the process works that another version has started.
    """

    tables: Mapping[str, Mapping[str, object]]
    verb: str


@dataclass(frozen=True, kw_only=True)
class Starter:
    """A starter file that `init` writes if its option is given: the option's help, an example of it, and its module.

    The module has the file's template, `POOL`, and `warnings()`, which lists the libraries that its pool lacks.
    """

    help: str
    example: str
    module: str


@dataclass(frozen=True, kw_only=True)
class Feature:
    """The parts of a feature as references, "module" or "module:attribute" in its package, imported on first use."""

    package: str
    commands: Mapping[str, str] = field(default_factory=dict)  # the module of each command
    tables: Mapping[str, str] = field(default_factory=dict)  # the config.Table of each table of files
    # Its rules between its tables, others and the servers, a config.TableRules; asked where one of its tables, or a
    # label of a server with one of these prefixes, is used.
    rules: str = ""
    labels: tuple[str, ...] = ()
    # The class of a table within a server's, by its name in the core, from which it inherits: with more keys.
    sections: Mapping[str, str] = field(default_factory=dict)
    supervisor: str = ""  # the class of its part of the supervisor: see supervisor.feature_parts.FeaturePart
    needed_with: tuple[str, ...] = ()  # tables besides its own that need this part
    verbs: tuple[str, ...] = ()  # verbs handled by this part
    process: LastingProcess | None = None  # started by this part
    changing: tuple[str, ...] = ()  # those that change the pool: recorded, and completed if the caller leaves
    # The class of its part of the gateway's process: see features.gateway.process.edge.EdgePart.
    gateway: str = ""
    # An Engine of the gateway each: see features.gateway.engines.
    engines: Mapping[str, str] = field(default_factory=dict)
    # The systems that `export` writes files for: functions from its request to cli.commands.export.Files.
    exports: Mapping[str, str] = field(default_factory=dict)
    # The platforms that run a pool instead of a supervisor: classes as control.client.Platform, made of its files.
    platforms: Mapping[str, str] = field(default_factory=dict)
    # The function that `stacks` calls where no supervisor runs: from the pool's directory to the WorkerStacks there.
    stacks: str = ""
    trial: Trial | None = None
    starters: Mapping[str, Starter] = field(default_factory=dict)  # by the name of the option of `init`
    # The fix that `doctor` suggests for each table whose problems are warnings only, because nothing stops serving.
    warnings: Mapping[str, str] = field(default_factory=dict)

    def load(self, reference: str) -> Any:
        """The referenced module or attribute."""
        name, _, attribute = reference.partition(":")
        module = import_module(f"{self.package}.{name}")
        return getattr(module, attribute) if attribute else module


def platform_names() -> tuple[str, ...]:
    """The valid values of `platform` in [pool]."""
    return "local", *(name for feature in features() for name in feature.platforms)


@cache
def features() -> tuple[Feature, ...]:
    """The declarations of all features, without importing their parts."""
    return tuple(import_module(f"poolctl.features.{name}").FEATURE for name in FEATURES)
