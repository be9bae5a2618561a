"""The earlier module of `ProcessRunner`, from which programs import it."""

from .embedded_runner import ProcessRunner

__all__ = ["ProcessRunner"]
