"""Whether the tokens and the certificate of [registration] are there, and can be used."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from poolctl.config.checks.certificate_checks import check_certificates
from poolctl.config.model.registration_table import RegistrationTable
from poolctl.config.values.problems import Finding

# Shorter tokens can be guessed despite the limits on attempts.
_SHORTEST_TOKEN = 16


def check_registration(
    table: RegistrationTable, env: Mapping[str, str], now: datetime
) -> tuple[list[Finding], list[Finding]]:
    """Problems and warnings; their paths begin with the table. Blocks on the disk."""
    problems, warnings = check_certificates(table.tls, env, now) if table.tls else ([], [])
    tokens: dict[str, str] = {}
    for index, client in enumerate(table.client):
        path = ("client", index, "token_env")
        token, name = env.get(client.token_env, "").strip(), client.token_env
        if not token:
            message = f"the environment variable {name} is not set"
            problems.append(Finding(path, message, f"export {name}=…"))
        elif tokens.setdefault(token, name) != name:
            message = f"the token in {name} is that of {tokens[token]} too"
            problems.append(Finding(path, message, "give each client a token of its own"))
        elif len(token) < _SHORTEST_TOKEN:
            message = f"the token in {name} has {len(token)} characters, and can be guessed"
            warnings.append(Finding(path, message, "make one with: openssl rand -hex 32"))
    found = (
        [each._replace(path=("registration", *each.path)) for each in part] for part in (problems, warnings)
    )
    problems, warnings = found
    return problems, warnings
