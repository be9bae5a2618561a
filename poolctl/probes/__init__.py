"""Probes of a worker: sending requests, judging replies, and deriving a status from several results."""
