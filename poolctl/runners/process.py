"""The previous import path of `ProcessRunner`, for compatibility."""

from .embedded_runner import ProcessRunner

__all__ = ["ProcessRunner"]
