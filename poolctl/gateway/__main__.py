"""The entry point of the gateway's process for supervisors of earlier versions, which start this module."""

from runpy import run_module

run_module("poolctl.features.gateway.process", run_name="__main__")
