"""HTTP/1.1 for all of poolctl, framed by h11: an asyncio client, a small asyncio server, and a reader of responses.

The reader (`messages`) does no I/O.
"""
