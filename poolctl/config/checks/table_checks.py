"""What the tables beside the servers refer to outside: the dashboard's token and certificate, the journal's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from poolctl.config.checks.certificates import check_certificates
from poolctl.config.checks.log_files import unwritable
from poolctl.config.files.source import read_text
from poolctl.config.model.problems import Finding, Problem
from poolctl.config.model.table_models import Dashboard
from poolctl.config.model.tables import Tables

JOURNAL_PATH = ("events", "path")


def outside_of(tables: Tables, env: Mapping[str, str]) -> tuple[list[Finding], list[Finding]]:
    """Problems and warnings; paths begin with the table. Blocks on the disk."""
    problems, warnings = _dashboard(tables.dashboard, env) if tables.dashboard else ([], [])
    if tables.events and tables.events.path:
        problems += unwritable(JOURNAL_PATH, tables.events.path)
    return problems, warnings


def _dashboard(page: Dashboard, env: Mapping[str, str]) -> tuple[list[Finding], list[Finding]]:
    problems, warnings = list(_token(page, env)), list[Finding]()
    if page.tls:
        found, warnings = check_certificates(page.tls, env, datetime.now(UTC))
        problems += found
    return (
        [each._replace(path=("dashboard", *each.path)) for each in problems],
        [each._replace(path=("dashboard", *each.path)) for each in warnings],
    )


def _token(page: Dashboard, env: Mapping[str, str]) -> Iterator[Finding]:
    if page.token_env and not env.get(page.token_env, "").strip():
        message = f"the environment variable {page.token_env} is not set"
        yield Finding(("token_env",), message, f"export {page.token_env}=…")
    if page.token_file:
        try:
            text = read_text(page.token_file)
        except Problem as problem:
            yield Finding(("token_file",), f"{page.token_file}: {problem.message}", problem.hint)
            return
        if not text.strip():
            yield Finding(("token_file",), f"{page.token_file}: there is no token in it", "write one into it")
