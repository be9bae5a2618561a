"""Imports point down only, the small processes stay small, and files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import poolctl
from poolctl.feature import FEATURES

pytestmark = pytest.mark.unmeasured

PACKAGE = Path(poolctl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "errors": 0, "exit_codes": 0, "states": 0, "clock": 0, "units": 0, "address": 0, "platform": 0, "bootstrap": 0,
    "safe_open": 0, "private_directory": 0, "daemon_threads": 0, "time_windows": 0,
    "json_form": 0, "feature": 0, "app_interface": 0, "file_access": 0, "installation": 0,
    "config": 1, "http": 1, "selection": 1, "routing": 1,
    "listeners": 2, "keeper": 2, "worker": 2, "logs": 2, "runners": 2, "probes": 2, "acceptor": 2,
    "core": 3,
    "pool": 4, "control": 4, "monitor": 4, "gateway": 4,
    "supervisor": 5, "web": 5,
    "cli": 6,
    "features": 7,
    "__main__": 7, "__init__": 7,
}  # fmt: skip

# The largest houses have floors of their own; what is not named here stands above all of them.
WITHIN = {
    "config": {
        "values": 0, "model": 1, "rules": 2, "files": 3, "checks": 4, "configuration": 5,
        "loader": 6, "edit": 7,
    },
    "supervisor": {
        "launch": 1, "worker_recovery": 2, "health": 3, "takeover": 2, "configuration_reader": 2,
        "active_configuration": 3, "web_addresses": 4, "verbs": 4, "statistics": 5, "feature_parts": 6, "observers": 7,
    },
    "runners": {
        "withheld_variables": 0, "socket_access": 0, "left_overs": 0, "process_link": 1,
        "listener_opener": 2, "stack_report": 2, "process_usage": 2, "runner_protocol": 3, "worker_spec": 4,
        "supervised_process": 4, "helper_process": 4, "local": 5,
    },
    "runners.local": {
        "server_sockets": 0, "output_pipes": 0, "tally_page": 0, "notify_socket": 0, "program_ports": 0,
        "first_bytes": 0, "accept_helper": 0, "children": 0, "zygotes": 1, "app_zygotes": 2, "local_worker": 2,
        "readiness": 3, "tallies": 3, "stack_reader": 3, "forking": 3, "activation": 3, "takeover": 3,
    },
    "features.gateway.process": {
        "settings": 0, "counts": 0, "descriptor_limit": 0, "waiting_connections": 0, "tls": 0,
        "backends": 1,
    },
    "worker": {
        "tally": 0, "process_setup": 0, "serving": 1, "imports": 2, "foreground": 3,
        "worker_process": 3, "zygote": 4,
    },
}  # fmt: skip
TOP = 8
# Public names below the floor of their code, which is a feature's: no other module imports them.
ALIASES = {"gateway/operator.py"}

# The modules of packages that features may import, beside the packages themselves and modules that stand alone. A new
# one is a question: does what the feature needs stand in the right place?
FACES = {
    "cli": "commands.export completion foreground_server group log_rendering offline options outcome output place "
    "pool_ref reload_plan render supervisor_requests",
    "config": "checks.certificate_checks checks.external_checks files.read_file files.yaml_parser model.pool_tables "
    "model.section model.server_keys model.server_tables origins values.normalise values.plain values.problems "
    "values.secrets values.value_types",
    "control": "answers client gateway_answers pool_paths protocol server_answers",
    "core": "core schedules server_entry server_state worker workqueue",
    "http": "http_client http_server messages",
    "keeper": "fd_store left_children pool_files spawn wire",
    "listeners": "listen_errors open_listener",
    "logs": "line_filter log_line log_tail",
    "monitor": "event_queue journal metrics",
    "pool": "loop_thread pool server",
    "probes": "prober worker_probes",
    "routing": "context match networks normal_path route route_health route_report route_table",
    "runners": "embedded_runner helper_process left_overs listener_opener local.local_runner local.memory_kills "
    "local.output_pipes local.server_sockets output_tail process_link process_usage socket_access stack_report "
    "supervised_process withheld_variables worker_spec",
    "selection": "regular_expressions selector url_of_server",
    "supervisor": "active_configuration feature_parts observers.pool_metrics statistics takeover.state_store "
    "verbs.open_file_limit verbs.verb web_addresses",
    "web": "bearer_tokens site",
    "worker": "foreground imports serving.pool_server serving.uvicorn_parts tally",
}

# ServerConfig.validate looks at what is outside of the files.
LOOKS_OUTSIDE = "config/model/server_keys.py"

STANDARD_LIBRARY_ONLY = [
    "keeper", "acceptor", "logs", "platform", "errors", "exit_codes", "states", "clock", "address", "units",
    "json_form", "feature", "file_access", "installation", "selection", "routing",
    "gateway.routes", "private_directory",
]  # fmt: skip
LIGHT = [
    *STANDARD_LIBRARY_ONLY, "http", "worker", "web", "bootstrap", "config.files.read_file", "control.pool_paths",
    "control.client", "gateway.operator", "cli.main", "cli.render",
]  # fmt: skip
HEAVY = {
    "pydantic",
    "pydantic_core",
    "typer",
    "rich",
    "yaml",
    "tomlkit",
    "regex",
}  # click comes with uvicorn

NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager2", "base"}


def imported_names(path: Path) -> list[tuple[int, list[str]]]:
    """Line and dotted name, in its parts, of every import in the file, wherever in it the import stands."""
    found = []
    for line, stem, names in import_statements(path):
        whole = stem in ("poolctl", *(f"poolctl.{house}" for house in WITHIN))
        dotted = [f"{stem}.{name}" for name in names] if whole and names else [stem]
        found += [(line, each.split(".")) for each in dotted]
    return found


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Those below the node; without their expressions, which are most of a tree."""
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        for each in getattr(node, name, []):
            yield each
            yield from statements(each)


@cache
def import_statements(path: Path) -> list[tuple[int, str, list[str]]]:
    """Line, module and the names taken from it, of every import in the file."""
    found: list[tuple[int, str, list[str]]] = []
    package = ["poolctl", *path.relative_to(PACKAGE).parts[:-1]]
    text = path.read_text()
    tree = ast.parse(text, str(path))
    calls = "import_module(" in text or "__import__(" in text
    for node in ast.walk(tree) if calls else statements(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found.append((node.lineno, stem, [alias.name for alias in node.names]))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                found.append((node.lineno, str(node.args[0].value), []))
    return found


def imported_files(path: Path) -> set[Path]:
    """The other files of the package that are imported; not a package's `__init__`, which imports pass through."""
    dotted = [
        each.split(".")[1:]
        for _, stem, names in import_statements(path)
        if stem.split(".")[0] == "poolctl"
        for each in (stem, *(f"{stem}.{name}" for name in names))
    ]
    files = {PACKAGE.joinpath(*parts).with_suffix(".py") for parts in dotted if parts}
    return files & set(FILES) - {path}


def imported_units(path: Path) -> list[tuple[int, str]]:
    """Line and first part below `poolctl` of every import of its own modules.

    The package itself imports nothing and holds the version; every other name of it stands for a module above.
    """
    return [
        (line, parts[1] if parts[1] in FLOORS else "__init__")
        for line, parts in imported_names(path)
        if parts[0] == "poolctl" and parts[1:] not in ([], ["__version__"])
    ]


def unit_of(path: Path) -> str:
    if path.relative_to(PACKAGE).as_posix() in ALIASES:
        return "features"
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


# A parser of HTTP, and with it the module of its connections, may be missing.
_IMPORTS = """
import sys
from importlib import import_module
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if "httptools" not in error.name or error.name.startswith("poolctl"):
            raise
print(*sys.modules)
"""


def modules_after_importing(name: str) -> set[str]:
    """What a fresh interpreter holds after it has imported the module, or every module of the package."""
    directory = PACKAGE / name
    files = [path.relative_to(PACKAGE).with_suffix("") for path in directory.rglob("*.py")]
    parts = [".".join(file.parts) for file in files] or [name]
    modules = [f"poolctl.{part.removesuffix('.__init__')}" for part in parts]
    done = subprocess.run(
        [sys.executable, "-I", "-c", _IMPORTS, str(PACKAGE.parent), *modules],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return {module.split(".")[0] for module in done.stdout.split()}


@pytest.fixture(scope="module")
def bare_modules() -> set[str]:
    """What an interpreter of this environment holds before it imports anything: .pth files may bring some."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return {module.split(".")[0] for module in done.stdout.split()}


def test_every_module_stands_on_a_floor() -> None:
    assert {unit_of(path) for path in FILES} <= FLOORS.keys()


def test_imports_point_down_only() -> None:
    upwards = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target} (floor {FLOORS[target]}) from floor {floor}"
        for path in FILES
        for floor in (FLOORS[unit_of(path)],)
        for line, target in imported_units(path)
        if FLOORS[target] > floor
    ]
    assert upwards == []


def test_core_and_pool_know_runners_by_their_protocol_only() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line} imports {'.'.join(parts)}"
        for path in FILES
        if unit_of(path) in ("core", "pool", "monitor", "probes")
        for line, parts in imported_names(path)
        if parts[:3] == ["poolctl", "runners", "local"]
    ]
    assert found == []


def test_features_import_those_before_them_in_the_list_only() -> None:
    order = {name: place for place, name in enumerate(FEATURES)}
    found = [
        f"{path.relative_to(PACKAGE)}:{line} imports {'.'.join(parts)}"
        for path in (PACKAGE / "features").rglob("*/*.py")
        for own in (path.relative_to(PACKAGE).parts[1],)
        for line, parts in imported_names(path)
        if parts[:2] == ["poolctl", "features"] and order[parts[2]] > order[own]
    ]
    assert found == []
    folders = {path.parent.name for path in (PACKAGE / "features").glob("*/__init__.py")}
    assert folders == set(FEATURES)


def modules_of_packages_in_features() -> set[str]:
    """The modules behind the packages' faces that features import, as "PACKAGE.MODULE"."""
    modules = {".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in FILES}
    imported = {
        module.removeprefix("poolctl.")
        for path in (PACKAGE / "features").rglob("*.py")
        for _, stem, names in import_statements(path)
        if stem.startswith("poolctl.") and not stem.startswith("poolctl.features")
        for module in (stem, *(f"{stem}.{name}" for name in names))
    }
    return {module for module in imported & modules if "." in module}


MODULES_OF_FACES = {f"{package}.{module}" for package, listed in FACES.items() for module in listed.split()}


def test_features_import_from_faces_only() -> None:
    found = modules_of_packages_in_features()
    print(f"features import from {len(found)} modules of packages")
    assert sorted(found - MODULES_OF_FACES) == []


def test_every_face_has_a_feature_that_imports_it() -> None:
    assert sorted(MODULES_OF_FACES - modules_of_packages_in_features()) == []


def test_a_module_with_an_underscore_is_imported_in_its_own_package_only() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line} imports {'.'.join(parts)}"
        for path in FILES
        for line, parts in imported_names(path)
        for at, part in enumerate(parts)
        if part.startswith("_")
        and not part.endswith("__")
        and parts[0] == "poolctl"
        and ["poolctl", *path.relative_to(PACKAGE).parts[:-1]][:at] != parts[:at]
    ]
    assert found == []


def houses_of(path: Path) -> list[tuple[str, str]]:
    """The large packages that the file is in, dotted below `poolctl`, each with its own part in it."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    houses = [(".".join(parts[:depth]), parts[depth]) for depth in range(1, len(parts))]
    return [(house, own) for house, own in houses if house in WITHIN]


def test_imports_within_a_large_package_point_down_too() -> None:
    upwards = []
    for path, (house, own) in [(file, each) for file in FILES for each in houses_of(file)]:
        floors, depth = WITHIN[house], house.count(".") + 2
        upwards += [
            f"{path.relative_to(PACKAGE)}:{line} imports {'.'.join(parts)}"
            for line, parts in imported_names(path)
            if ".".join(parts[1:depth]) == house
            and len(parts) > depth
            and parts[depth] != own
            and str(path.relative_to(PACKAGE)) != LOOKS_OUTSIDE
            and floors.get(parts[depth], TOP) >= floors.get(own, TOP + 1)
        ]
    assert upwards == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports in functions and for annotations included."""
    TopologicalSorter(
        {path: imported_files(path) for path in FILES}
    ).prepare()  # raises an error with the circle


def test_the_check_sees_an_import_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "config" / "model.py"
    path.parent.mkdir()
    path.write_text(
        "import poolctl.cli.main\nfrom ..pool import Pool\nfrom .. import monitor\nfrom poolctl import Server\n"
        "def late():\n    from poolctl.supervisor import launch\n    import_module('poolctl.features.gateway')\n"
    )
    assert [unit for _, unit in imported_units(path)] == [
        "cli", "pool", "monitor", "__init__", "supervisor", "features",
    ]  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_small_processes_and_what_commands_begin_with_import_nothing_heavy(
    name: str, bare_modules: set[str]
) -> None:
    imported = modules_after_importing(name) - bare_modules
    assert not imported & HEAVY
    if name in STANDARD_LIBRARY_ONLY:
        assert imported - sys.stdlib_module_names <= {"poolctl"}


def test_every_file_has_a_name_of_its_own() -> None:
    assert not [path for path in FILES if NAMELESS & {path.stem, path.parent.name}]
