"""Routes: definitions, matching, and the route table that workers read.

Standard library only.
"""
