"""HTTP/1.1 for all of poolctl: a strict reader of responses, an asyncio client, and a small server that uses h11.

The reader (`messages`) does no I/O and needs the standard library only; asyncio is imported by `http_client` and
`http_server` alone, and h11 by `http_server`.
"""
