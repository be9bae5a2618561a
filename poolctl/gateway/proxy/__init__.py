"""The reverse proxy: requests are copied to a backend and their responses back, as they arrive.

`client_connection` reads requests of HTTP/1.1, an `Exchange` carries each of them to a backend, whatever protocol the
client speaks, and `backend_connection` reads the response. The streams of HTTP/2 are in `poolctl.gateway.http2`.
"""
