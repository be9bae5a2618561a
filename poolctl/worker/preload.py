"""Imports the modules that every worker needs, once, in the process that workers are forked from."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging.config
import os
import sys
import zipimport
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from ..json_form import from_json
from ..routing import registry, route_health
from ..routing.route import ExcludedRoute, Route, StreamRoute
from .process_setup import SPEC_FD
from .serving import uvicorn_parts
from .serving.uvicorn_parts import omit_uvicorns_lines, prepare
from .stack_dump import STACK_DUMP

# Otherwise the first request imports anyio's backend, which takes 18 ms.
_MODULES = (
    "uvloop",
    "httptools",
    "websockets",
    *uvicorn_parts.MODULES,
    "concurrent.futures.thread",
    "starlette.applications",
    "starlette.routing",
    "starlette.responses",
    "anyio._backends._asyncio",
)


_PACKAGES = "poolctl", "poolctl.gateway", "poolctl.routing"
_EXPORTS = "poolctl.gateway.routes"
_EXPORTED_TOO = registry, route_health  # workers themselves do without them


class ProvidedModules:
    """Lets an application import `poolctl.gateway.routes` where poolctl is not installed (see MetaPathFinder).

    The application gets the worker's own modules, so that a route in a scope is an instance of the class that the
    application imports. They are loaded before the first fork: nothing is read from files that an upgrade may have
    replaced since, and workers whose applications do not import them pay nothing.

    An interpreter's own poolctl takes precedence, because the application was written for it. It reads the scope by the
    names of its parts, not by their classes. Modules missing from an older poolctl are found here.
    """

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


def preload() -> None:
    """Import uvicorn and its optional libraries that are installed; set up its logging; enable garbage collection."""
    STACK_DUMP.prepare(SPEC_FD)  # the descriptor is free again by the time a worker begins
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            # Optional libraries may be missing; a missing uvicorn is reported where it is needed.
            continue
    end_imports()


def end_imports() -> None:
    """Set up uvicorn's logging and the output, and enable garbage collection, once a process has imported its part."""
    logging.config.dictConfig(uvicorn_parts.LOGGING_CONFIG)
    # The output becomes a pipe in the worker, where lines would wait for a full buffer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Frozen, the imports are not scanned by the first collection: that took 8 ms.
    gc.freeze()
    gc.enable()


def prepare_for_forks() -> None:
    """Prepare the process for its first fork; nothing of poolctl is imported afterwards."""
    omit_uvicorns_lines()
    prepare()
    # Applications are imported from directories. With zip files tried first, each worker pays for an error.
    sys.path_hooks.sort(key=lambda hook: hook is zipimport.zipimporter)
    provide_modules()
    # The application may have its own poolctl, in its own interpreter.
    for name in [name for name in sys.modules if name == "poolctl" or name.startswith("poolctl.")]:
        del sys.modules[name]
    gc.freeze()  # forks share these objects, and never scan them for garbage
