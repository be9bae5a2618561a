"""How much of something a configuration may ask for; known where pydantic must not be imported."""

from __future__ import annotations

MOST_WORKERS = 10_000
