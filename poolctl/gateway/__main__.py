"""The gateway's process, as supervisors of earlier versions start it."""

from runpy import run_module

run_module("poolctl.features.gateway.process", run_name="__main__")
