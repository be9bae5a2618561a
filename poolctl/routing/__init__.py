"""Selects the route of each HTTP request: route definitions, the table of routes, and the lookup.

Gateway and workers use the same table and lookup, so that they always agree. Standard library only.
"""
