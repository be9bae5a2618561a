"""The list of poolctl's features, and the classes that declare their parts.

A feature is a package of `poolctl.features` that exports a `FEATURE`. The command line, the configuration and the
supervisor find its parts here. To remove a feature, delete its folder and its line in `FEATURES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

# A feature may import earlier features.
FEATURES: tuple[str, ...] = (
    "pytest_plugin",
    "gateway",
    "import_foreign",
    "notify",
    "proxmox",
    "registration",
    "operator",
    "scaling",
    "dashboard",
    "doctor",
    "top",
    "serve",
    "kubernetes",
)


@dataclass(frozen=True, kw_only=True)
class InitTemplate:
    """The template of a pool file that an option of `init` selects; `example` is for `init --help`.

    `module` names a module with two attributes. `POOL` is the template. `warnings` is a function that returns a list of
    warnings about missing libraries.
    """

    example: str
    module: str


@dataclass(frozen=True)
class FeatureCommand:
    """A command: its module, with a Typer application `app`, and its line and place in the list of all commands.

    `panel` is one of the list's headings. Only commands marked `first` are in the short help; `help --all` has all.
    """

    module: str
    panel: str
    help: str
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class Feature:
    """The declaration of a feature, which names each part as "module" or "module:attribute" within `package`."""

    package: str
    commands: Mapping[str, FeatureCommand] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)  # the config.Table of each table of files
    # A config.TableRules: the rules between its tables, other tables and the servers. They apply if one of its tables
    # is used, or if a label of a server begins with one of the prefixes in `labels`.
    rules: str = ""
    labels: tuple[str, ...] = ()
    # Classes that add keys to tables within a server's table, by the name of the class that each inherits from.
    sections: Mapping[str, str] = field(default_factory=dict)
    supervisor: str = ""  # the class of its part of the supervisor: see supervisor.feature_parts.FeaturePart
    needed_with: tuple[str, ...] = ()  # tables besides its own that need this part
    verbs: tuple[str, ...] = ()  # verbs handled by this part
    # The name of the part's process in the keeper's store. A new supervisor that finds it there loads the part, even if
    # the configuration no longer needs it.
    entry: str = ""
    changing: tuple[str, ...] = ()  # verbs that change the pool: completed even if the client disconnects
    web: str = ""  # the class of the site at its table's address: see web.site.Site
    # By target system of `export`: the function that makes its cli.commands.export.Files.
    exports: Mapping[str, str] = field(default_factory=dict)
    starters: Mapping[str, InitTemplate] = field(default_factory=dict)  # by the name of the option of `init`
    # The fix that `doctor` suggests for each table whose problems are warnings only, because nothing stops serving.
    warnings: Mapping[str, str] = field(default_factory=dict)

    def load(self, reference: str) -> Any:
        """The referenced module or attribute."""
        name, _, attribute = reference.partition(":")
        module = import_module(f"{self.package}.{name}")
        return getattr(module, attribute) if attribute else module


@cache
def features() -> tuple[Feature, ...]:
    """The declarations of all features, without importing their parts."""
    return tuple(import_module(f"poolctl.features.{name}").FEATURE for name in FEATURES)
