"""`poolctl import`: what another tool runs, as a pool.toml.

A module for each format reads it into a `ForeignPool` (`foreign_pool.py`), which `pool_text.py` writes as TOML that
validates.
"""
