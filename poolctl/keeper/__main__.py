"""Runs the keeper (see `keeper.main`)."""

from .keeper import main as main
