"""Runners create, drain and end workers: one protocol (`runner_protocol`), two implementations.

This package imports nothing, so that importing the protocol loads no runner.
"""
