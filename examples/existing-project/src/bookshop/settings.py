"""Settings from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    title: str
    currency: str

    @classmethod
    def from_environment(cls) -> Settings:
        return cls(os.environ.get("BOOKSHOP_TITLE", "untitled"), os.environ.get("BOOKSHOP_CURRENCY", "EUR"))
