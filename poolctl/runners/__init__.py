"""Runners create, drain and end workers: one protocol (`runner_protocol`), several implementations.

Empty on purpose: an import of the protocol loads no runner.
"""
