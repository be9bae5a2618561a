"""A pool's configuration: files become servers, or a list of problems. These are the names for other packages.

Four rooms: `model` (keys, ranges, rules), `files` (text into tables with places), `checks` (what the servers refer
to outside), `edit` (changes written back).
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing takes two milliseconds: too long for the fast lane
if TYPE_CHECKING:
    from typing import Any

    # fmt: off
    from poolctl.config.added_server import Surroundings
    from poolctl.config.checks.interpreter import default_interpreter, interpreter
    from poolctl.config.checks.interpreter_owner import changed_by, enter_as, ids_of, start_options
    from poolctl.config.checks.program import missing_program
    from poolctl.config.checks.validity import certificate_validity
    from poolctl.config.edit.draft import Draft
    from poolctl.config.edit.replace_file import FileChanged
    from poolctl.config.edit.toml_text import table_text, value_text
    from poolctl.config.files.document import Document
    from poolctl.config.files.find import (
        FILE_NAMES,
        PYPROJECT,
        ConfigNotFound,
        candidate_files,
        find_config,
    )
    from poolctl.config.files.regular_file import read_regular
    from poolctl.config.files.server_table import merged
    from poolctl.config.files.source import missing_file
    from poolctl.config.loader import load
    from poolctl.config.model.conflicts import conflicts
    from poolctl.config.model.dependencies import dependency_findings
    from poolctl.config.model.interpolate import escaped, referenced_variables
    from poolctl.config.model.limits import MOST_WORKERS
    from poolctl.config.model.normalise import relocated
    from poolctl.config.model.open_files import (
        OPEN_FILES_OF_POOL,
        OPEN_FILES_RESERVE,
        RAISE_OPEN_FILES,
        open_files_needed,
    )
    from poolctl.config.model.problems import Finding, Place, Problem
    from poolctl.config.model.schema import json_schema
    from poolctl.config.model.secrets import (
        MASK,
        masked,
        masked_text,
        pool_variables,
        values_of,
        variables_named_in,
    )
    from poolctl.config.model.section import Section, problem_of
    from poolctl.config.model.sections import Backoff, Health, Patience, Probe, Recovery, Restart, TLSConfig
    from poolctl.config.model.server import ServerConfig
    from poolctl.config.model.stopping import longest_stop_seconds
    from poolctl.config.model.table_models import Dashboard, EventsTable, Notify
    from poolctl.config.model.tables import TABLE_NAMES, Tables
    from poolctl.config.pool_config import PoolConfig
    # fmt: on

# fmt: off
__all__ = [
    "FILE_NAMES",
    "MASK",
    "MOST_WORKERS",
    "OPEN_FILES_OF_POOL",
    "OPEN_FILES_RESERVE",
    "PYPROJECT",
    "RAISE_OPEN_FILES",
    "TABLE_NAMES",
    "Backoff",
    "ConfigNotFound",
    "Dashboard",
    "Document",
    "Draft",
    "EventsTable",
    "FileChanged",
    "Finding",
    "Health",
    "Notify",
    "Patience",
    "Place",
    "PoolConfig",
    "Probe",
    "Problem",
    "Recovery",
    "Restart",
    "Section",
    "ServerConfig",
    "Surroundings",
    "TLSConfig",
    "Tables",
    "candidate_files",
    "certificate_validity",
    "changed_by",
    "conflicts",
    "default_interpreter",
    "dependency_findings",
    "enter_as",
    "escaped",
    "find_config",
    "ids_of",
    "interpreter",
    "json_schema",
    "load",
    "longest_stop_seconds",
    "masked",
    "masked_text",
    "merged",
    "missing_file",
    "missing_program",
    "open_files_needed",
    "pool_variables",
    "problem_of",
    "read_regular",
    "referenced_variables",
    "relocated",
    "start_options",
    "table_text",
    "value_text",
    "values_of",
    "variables_named_in",
]
_MODULES = {
    "added_server": "Surroundings",
    "checks.interpreter": "default_interpreter interpreter",
    "checks.interpreter_owner": "changed_by enter_as ids_of start_options",
    "checks.program": "missing_program",
    "checks.validity": "certificate_validity",
    "edit.draft": "Draft",
    "edit.replace_file": "FileChanged",
    "edit.toml_text": "table_text value_text",
    "files.document": "Document",
    "files.find": "ConfigNotFound FILE_NAMES PYPROJECT candidate_files find_config",
    "files.regular_file": "read_regular",
    "files.server_table": "merged",
    "files.source": "missing_file",
    "loader": "load",
    "model.conflicts": "conflicts",
    "model.dependencies": "dependency_findings",
    "model.interpolate": "escaped referenced_variables",
    "model.limits": "MOST_WORKERS",
    "model.normalise": "relocated",
    "model.open_files": "OPEN_FILES_OF_POOL OPEN_FILES_RESERVE RAISE_OPEN_FILES open_files_needed",
    "model.problems": "Finding Place Problem",
    "model.schema": "json_schema",
    "model.secrets": "MASK masked masked_text pool_variables values_of variables_named_in",
    "model.section": "Section problem_of",
    "model.sections": "Backoff Health Patience Probe Recovery Restart TLSConfig",
    "model.server": "ServerConfig",
    "model.stopping": "longest_stop_seconds",
    "model.table_models": "Dashboard EventsTable Notify",
    "model.tables": "TABLE_NAMES Tables",
    "pool_config": "PoolConfig",
}
# fmt: on
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    # Each is imported when it is first used: finding the file must not import pydantic.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found
