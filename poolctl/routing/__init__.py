"""Routes: their definitions, which of them takes a request, and the table of routes that workers read.

Standard library only.
"""
