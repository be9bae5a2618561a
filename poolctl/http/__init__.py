"""HTTP/1.1 for all of poolctl: strict parsers of requests and responses, an asyncio client and a small server.

The parsers (`messages`) do no I/O, so that blocking and asyncio code can share them. Standard library only; asyncio is
imported by `http_client` and `http_server` alone.
"""
