"""The keeper's program (see keeper)."""

from .keeper import main as main
