"""Reads, validates and edits a pool's configuration files. Each name from a submodule is imported on first use.

Subpackages: `files` (parse files, record line numbers), `values` (types and ranges of values), `model` (immutable
classes for tables), `rules` (conflicts between servers and tables), `checks` (whether the files, users and programs
that servers refer to can be used). `edit` changes the files.
"""

# ruff: noqa: F403 (the names are in _MODULES)
from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolctl.config.checks.certificate_checks import *
    from poolctl.config.checks.external_checks import *
    from poolctl.config.checks.interpreter import *
    from poolctl.config.configuration import *
    from poolctl.config.edit import *
    from poolctl.config.files.assemble import *
    from poolctl.config.files.marks import *
    from poolctl.config.files.read_file import *
    from poolctl.config.loader import *
    from poolctl.config.model.pool_tables import *
    from poolctl.config.model.section import *
    from poolctl.config.model.server_keys import *
    from poolctl.config.model.server_tables import *
    from poolctl.config.rules.conflicts import *
    from poolctl.config.rules.json_schema import *
    from poolctl.config.values.normalise import *
    from poolctl.config.values.plain import *
    from poolctl.config.values.problems import *
    from poolctl.config.values.secrets import *
    from poolctl.config.values.shell_line import *
    from poolctl.config.values.toml_text import *

_MODULES = {
    "checks.certificate_checks": "certificate_names certificate_validity names_cover openssl_reason",
    "checks.external_checks": "ExternalChecks",
    "checks.interpreter": "find_path_others_may_change default_interpreter ids_to_start_interpreter_as ids_of "
    "active_environment broken_environment directory_for_environment interpreter missing_module "
    "missing_program start_options with_virtual_environment",
    "configuration": "BINDS_ITSELF Configuration Surroundings no_certificate open_files_per_pool_process",
    "edit": "Draft FileChanged server_table",
    "files.assemble": "Document read_documents unset_variables",
    "files.marks": "Marks changed_files marks_of",
    "files.read_file": "COMPOSE ConfigNotFound ECOSYSTEM EnvFileError FILE_NAMES JAVASCRIPT NOT_IMPORTED PROCFILE "
    "PYPROJECT SUPERVISORD UNIT Stamp candidate_files default_env_file default_file directory_of find_config "
    "foreign_file_hint foreign_format missing_file read_env_file read_env_files read_regular_truncated read_text "
    "stamp_of variables_named_by_env_keys",
    "loader": "added_server load",
    "model.pool_tables": "EventsTable MetricsTable Tables secret_variable_names routes_of",
    "model.section": "Section Table refuse",
    "model.server_keys": "AutomaticPort Scale ServerConfig relocated",
    "model.server_tables": "Backoff Dependency Health Hooks Http Limits Log RecoveryBackoff Probe Recovery Restart "
    "TLSConfig Watch",
    "rules.conflicts": "ServerReferenceValues conflicts dependency_findings maximum_pool_stop_seconds may_refer "
    "named_addresses scalar_bind_addresses reference_findings os_users_by_server with_resolved_references "
    "wrong_references",
    "rules.json_schema": "json_schema",
    "values.normalise": "merged referenced_variables required_variables",
    "values.plain": "MAX_WORKERS OPEN_FILES_OF_POOL OPEN_FILES_RESERVE "
    "RAISE_OPEN_FILES address_parts fill_placeholders",
    "values.problems": "Finding Place Problem problem_of shown",
    "values.secrets": "MASK masked masked_text values_to_mask",
    "values.shell_line": "needs_shell",
    "values.toml_text": "escaped table_text value_text",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    # Each is imported when it is first used: finding the file must not import pydantic.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # importlib.import_module would import `warnings` too.
    module = __import__(f"{__name__}.{_HOMES[name]}", fromlist=[name])
    value = globals()[name] = getattr(module, name)
    return value


def disable_pydantic_plugins() -> None:
    """Stop pydantic from loading plugins, so that this process runs only poolctl's own code.

    Setting PYDANTIC_DISABLE_PLUGINS is not enough: pydantic would still import the modules that search for plugins,
    at least 32, a tenth of all imports needed to read files.
    """
    name = "pydantic.plugin._loader"
    loader = type(sys)(name)
    vars(loader)["get_plugins"] = tuple
    sys.modules.setdefault(name, loader)
