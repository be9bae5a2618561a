"""A pool's configuration: files become servers, or a list of problems. These are the names for other packages.

Six subpackages: `values` (values of keys), `model` (tables and their keys as plain values), `rules` (between keys,
servers, tables and routes), `files` (text into tables with places), `checks` (the files, users and programs that
servers refer to), `edit` (changes written back).
"""

# ruff: noqa: F403, F405 (the names are in __all__)
from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing takes two milliseconds: too long for the fast lane
if TYPE_CHECKING:
    from poolctl.config.checks.certificate_checks import *
    from poolctl.config.checks.interpreter import *
    from poolctl.config.configuration import *
    from poolctl.config.edit.draft import *
    from poolctl.config.edit.toml_writer import *
    from poolctl.config.files.document import *
    from poolctl.config.files.file_marks import *
    from poolctl.config.files.find import *
    from poolctl.config.files.foreign_files import *
    from poolctl.config.files.read_file import *
    from poolctl.config.loader import *
    from poolctl.config.model.pool_tables import *
    from poolctl.config.model.section import *
    from poolctl.config.model.server_sections import *
    from poolctl.config.reading import *
    from poolctl.config.rules.conflicts import *
    from poolctl.config.rules.json_schema import *
    from poolctl.config.rules.server_references import *
    from poolctl.config.rules.table_rules import *
    from poolctl.config.values.limits import *
    from poolctl.config.values.normalise import *
    from poolctl.config.values.plain import address_parts
    from poolctl.config.values.problems import *
    from poolctl.config.values.secrets import *

# fmt: off
__all__ = [
    "BINDS_ITSELF", "FILE_NAMES", "GATEWAY_LIBRARIES", "INSTALL_GATEWAY", "MASK", "MOST_WORKERS", "OPEN_FILES_OF_POOL",
    "OPEN_FILES_RESERVE", "PYPROJECT", "RAISE_OPEN_FILES", "Backoff", "ConfigNotFound",
    "Configuration", "Dependency", "Document", "Draft", "EventsTable", "FileChanged", "Finding",
    "Health", "Marks", "Named", "Patience", "Place",
    "Probe", "Problem", "Reading", "Recovery", "Restart", "Section", "ServerConfig", "Stamp",
    "Surroundings", "TLSConfig", "Table", "Tables", "added_server", "address_parts",
    "candidate_files", "certificate_names", "certificate_validity", "changed_by", "changed_files", "conflicts",
    "default_env_file", "default_interpreter", "dependency_findings", "enter_as", "escaped",
    "find_config", "ids_of", "interpreter", "json_schema", "leave_out_plugins", "load", "longest_stop_seconds",
    "marks_of", "masked", "masked_text", "merged", "missing_file", "missing_program", "named_addresses", "names_cover",
    "no_certificate", "open_files_needed", "own_addresses", "pool_variables", "probed_targets",
    "problem_of", "read_regular", "reference_findings", "referenced_variables", "refuse",
    "relocated", "routes_of", "shown", "stamp_of", "start_options", "table_text", "users_of",
    "value_text", "values_of", "variables_named_in", "with_addresses",
]
# fmt: on
_MODULES = {
    "checks.certificate_checks": "certificate_names certificate_validity names_cover",
    "checks.interpreter": "changed_by default_interpreter enter_as ids_of interpreter missing_program start_options",
    "configuration": "BINDS_ITSELF Configuration ServerConfig no_certificate open_files_needed",
    "edit.draft": "Draft FileChanged",
    "edit.toml_writer": "escaped table_text value_text",
    "files.document": "Document read_documents",
    "files.file_marks": "Marks Stamp changed_files marks_of stamp_of",
    "files.foreign_files": "COMPOSE ECOSYSTEM JAVASCRIPT PROCFILE SUPERVISORD UNIT foreign_format",
    "files.find": "ConfigNotFound FILE_NAMES PYPROJECT candidate_files find_config",
    "files.read_file": "default_env_file missing_file read_regular read_text variables_named_in",
    "loader": "added_server load",
    "reading": "Reading Surroundings",
    "values.limits": "GATEWAY_LIBRARIES INSTALL_GATEWAY MOST_WORKERS OPEN_FILES_OF_POOL OPEN_FILES_RESERVE "
    "RAISE_OPEN_FILES",
    "rules.conflicts": "conflicts dependency_findings longest_stop_seconds named_addresses own_addresses "
    "users_of",
    "values.normalise": "merged referenced_variables relocated",
    "values.problems": "Finding Place Problem problem_of shown",
    "rules.json_schema": "json_schema",
    "rules.server_references": "Named reference_findings with_addresses",
    "rules.table_rules": "probed_targets routes_of",
    "values.plain": "address_parts",
    "values.secrets": "MASK masked masked_text values_of",
    "model.section": "Section Table refuse",
    "model.server_sections": "Backoff Dependency Health Patience Probe Recovery Restart TLSConfig",
    "model.pool_tables": "EventsTable Tables pool_variables",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    # Each is imported when it is first used: finding the file must not import pydantic.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # importlib.import_module would import `warnings` too.
    module = __import__(f"{__name__}.{_HOMES[name]}", fromlist=[name])
    found = globals()[name] = getattr(module, name)
    return found


def leave_out_plugins() -> None:
    """Have pydantic find no plugins in this process, which must run only poolctl's own code.

    Its loader imports the search in all installed distributions even where PYDANTIC_DISABLE_PLUGINS forbids it: 32
    modules or more, a tenth of the imports before files can be read.
    """
    name = "pydantic.plugin._loader"
    loader = type(sys)(name)
    vars(loader)["get_plugins"] = tuple
    sys.modules.setdefault(name, loader)
