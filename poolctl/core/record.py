"""The state of a server that the next supervisor needs, as JSON values. Every field of an entry declares whether it is.

A field with the value of a new entry is left out: most records hold little more than the desired state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from .desired import IN_BACKOFF, Desired, Overrides
from .state import Entry

PERSISTED: dict[str, Any] = {
    each.name: each.default if each.default_factory is MISSING else each.default_factory()
    for each in fields(Entry)
    if each.metadata["persisted"]
}
_PLAIN = [(name, usual) for name, usual in PERSISTED.items() if name not in ("desired", "overrides")]


def record_of(entry: Entry) -> dict[str, Any]:
    """The record of the entry. A backoff is not part of it: a successor tries at once."""
    found = {name: value for name, usual in _PLAIN if (value := getattr(entry, name)) != usual}
    if entry.desired is not Desired.IDLE:
        found["desired"] = (Desired.RUN if entry.desired in IN_BACKOFF else entry.desired).value
    if entry.overrides != PERSISTED["overrides"]:
        found["overrides"] = asdict(entry.overrides)
    return found


def restore(entry: Entry, record: Mapping[str, Any]) -> None:
    """Restore the entry from its record, also from one of a version that stored single flags."""
    for name, _ in _PLAIN:
        if name in record:
            setattr(entry, name, record[name])
    entry.desired = Desired(record["desired"]) if "desired" in record else _from_flags(record)
    overrides = record.get("overrides")
    if overrides is None:
        overrides = {
            "workers": record.get("count"),
            "disabled": record.get("disabled"),
            "out": record.get("out", False),
        }
    entry.overrides = Overrides(**overrides)


def _from_flags(record: Mapping[str, Any]) -> Desired:
    """From the flags that earlier versions wrote: `wanted`, `removed`, `failed`, `done`, `dismissed`."""
    if record.get("removed"):
        return Desired.REMOVED
    if not record.get("wanted"):
        return Desired.STOPPED if record.get("dismissed") else Desired.IDLE
    if record.get("failed"):
        return Desired.FAILED
    return Desired.COMPLETED if record.get("done") else Desired.RUN
