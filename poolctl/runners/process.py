"""Keeps the former import path of `ProcessRunner` working."""

from .embedded_runner import ProcessRunner

__all__ = ["ProcessRunner"]
