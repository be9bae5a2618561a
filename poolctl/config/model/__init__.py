"""The keys of a configuration: their kinds, ranges and defaults, and the rules between them."""

from __future__ import annotations

# Known here, where pydantic need not be imported.
MOST_WORKERS = 10_000
