"""The document that a reload returns, for type checkers."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class Change(TypedDict):
    """What a reload does to a server. `keys` are those that differ; `override` undoes a live change."""

    name: str
    bind: str
    change: Literal["add", "remove", "restart", "update", "override"]
    keys: list[str]
    message: str


class ReloadDocument(TypedDict):
    """What `poolctl reload -o json` prints."""

    schema: int
    items: list[dict[str, Any]]  # the servers, as `list` prints them
    errors: list[dict[str, Any]]
    warnings: list[str]
    changes: list[Change]
    exit_code: int
