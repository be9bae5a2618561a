"""Turns the tables of files except servers into values, or findings about keys and the rules between them."""

from __future__ import annotations

from collections.abc import Mapping

from poolctl.config.model.pool_tables import Tables, model_of_table, table_names
from poolctl.config.model.section import Table, validated
from poolctl.config.rules.table_rules import rules_of
from poolctl.config.values.problems import Finding, Path, Tree


def made(raw: Mapping[str, Tree], findings: list[Finding]) -> Tables:
    """The valid tables of the merged files; problems of the others are added to the findings."""
    values: dict[str, Tree] = {}
    for rules in rules_of(raw):
        values |= rules.made(raw, findings)
    for name in table_names():
        if name in raw and name not in values and (model := model_of_table(name)) is not None:
            if model.listed:
                values[name] = _list_of(model, raw[name], (name,), findings, values)
            else:
                values[name] = _table(model, raw[name], (name,), findings, values)
    return Tables(**values)


def _list_of(
    model: type[Table],
    given: list[dict[str, Tree]],
    path: Path,
    findings: list[Finding],
    others: Mapping[str, Tree],
) -> tuple[Table, ...]:
    labels: set[str] = set()
    found: list[Table] = []
    for index, each in enumerate(given):
        table = _table(model, each, (*path, index), findings, others)
        if table is not None:
            found.append(table)
            if table.label in labels:
                place = (*path, index, *(("name",) if "name" in table.given else ()))
                findings.append(Finding(place, f"the name {table.label!r} is taken", 'add name = "…"'))
            labels.add(table.label)
    return tuple(found)


def _table(
    model: type[Table],
    given: dict[str, Tree],
    path: Path,
    findings: list[Finding],
    others: Mapping[str, Tree],
) -> Table | None:
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: list[Finding] = []
    found = validated(model, table, own)
    # Even an invalid address may be a secret.
    own = [each._replace(found="") if each.path[:1] == ("url",) else each for each in own]
    if found is not None:
        own += [*found.findings(), *found.findings_among(others)]
    findings += [each._replace(path=(*path, *each.path)) for each in own]
    return None if own else found
