"""Lets an application import `poolctl.gateway.routes` where poolctl is not installed.

The application gets the worker's own modules, so that a route in a scope is an instance of the class that the
application imports. They are loaded before the first fork: nothing is read from files that an upgrade may have replaced
since, and workers whose applications do not import them pay nothing.

An interpreter's own poolctl takes precedence, because the application was written for it. It reads the scope by the
names of its parts, not by their classes. Modules missing from an older poolctl are found here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from ..json_form import from_json
from ..routing import registry, route_health
from ..routing.route import ExcludedRoute, Route, StreamRoute

_PACKAGES = "poolctl", "poolctl.gateway", "poolctl.routing"
_EXPORTS = "poolctl.gateway.routes"
_EXPORTED_TOO = registry, route_health  # workers themselves do without them


class ProvidedModules:
    """Finds them for the import system, after every other finder."""

    def __init__(self, modules: dict[str, ModuleType], exports: CodeType) -> None:
        self._modules = modules
        self._exports = exports

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if name in self._modules or name == _EXPORTS:
            return ModuleSpec(name, self)  # type: ignore[arg-type]
        # No directory, because no other part of poolctl is meant for applications.
        return ModuleSpec(name, self, is_package=True) if name in _PACKAGES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See importlib.abc.Loader."""
        return self._modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """See importlib.abc.Loader."""
        if module.__name__ == _EXPORTS:
            exec(self._exports, module.__dict__)


def provide_modules() -> None:
    """Make the modules importable in this process and its forks from now on."""
    for kind in (Route, StreamRoute, ExcludedRoute):
        from_json(kind, {})  # it finds the types of its fields in modules that will have been forgotten
    modules = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith("poolctl.routing.") or name == "poolctl.json_form"
    }
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "gateway", "routes.py")
    spec = importlib.util.spec_from_file_location(_EXPORTS, path)
    assert spec is not None
    code = spec.loader.get_code(_EXPORTS)  # type: ignore[union-attr]
    sys.meta_path.append(ProvidedModules(modules, code))
