"""HTTP/1.1, once: strict readers of requests and responses, an asyncio client and a small asyncio server.

The readers (`request`, `response`) are without I/O, so that blocking, asyncio and batched callers share them. Standard
library only; nothing here imports asyncio but `client` and `server`.
"""
