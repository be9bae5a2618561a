"""Whether the token and the certificates of [operator] are there, and can be used."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from poolctl.config.checks.certificate_checks import check_certificates
from poolctl.config.files.read_file import read_text
from poolctl.config.model.operator_table import OperatorTable
from poolctl.config.values.problems import Finding, Problem


def check_operator(
    table: OperatorTable, env: Mapping[str, str], now: datetime
) -> tuple[list[Finding], list[Finding]]:
    """Problems and warnings; their paths begin with the table. Blocks on the disk."""
    problems, warnings = check_certificates(table.tls, env, now) if table.tls else ([], [])
    if table.token_env and not env.get(table.token_env, "").strip():
        message = f"the environment variable {table.token_env} is not set"
        problems.append(Finding(("token_env",), message, f"export {table.token_env}=…"))
    if table.ca is not None:
        try:
            read_text(table.ca)
        except Problem as problem:
            problems.append(Finding(("ca",), f"{table.ca}: {problem.message}", problem.hint, table.ca))
    found = ([each._replace(path=("operator", *each.path)) for each in part] for part in (problems, warnings))
    problems, warnings = found
    return problems, warnings
