"""What the tables beside the servers refer to in the outside world: the dashboard's token and certificate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from poolctl.config.checks.certificates import check_certificates
from poolctl.config.files.source import read_text
from poolctl.config.model.problems import Finding, Problem, dotted
from poolctl.config.model.table_models import Dashboard
from poolctl.config.model.tables import Tables


def outside_of(tables: Tables, env: Mapping[str, str]) -> tuple[list[Finding], list[Finding]]:
    """Problems and warnings of it; paths begin with the table. Blocks on the disk."""
    page = tables.dashboard
    if page is None:
        return [], []
    problems, warnings = list(_token(page, env)), list[Finding]()
    if page.tls:
        found, warnings = check_certificates(page.tls, env, datetime.now(UTC))
        problems += found
    # Where it stands in the file is known no more.
    of_the_table = [each._replace(path=("dashboard", *each.path)) for each in problems]
    return (
        [each._replace(message=f"{dotted(each.path)}: {each.message}") for each in of_the_table],
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
