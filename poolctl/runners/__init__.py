"""Runners create, drain and end workers: one protocol (`runner_protocol`), several implementations.

This package imports nothing, so that importing the protocol loads no runner.
"""
