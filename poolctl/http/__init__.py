"""HTTP/1.1, once: strict readers of requests and responses, an asyncio client and a small asyncio server.

The readers (`messages`) are without I/O, so that blocking, asyncio and batched callers share
them. Standard library only; asyncio is imported by `http_client` and `http_server` alone.
"""
