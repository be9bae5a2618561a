"""The reverse proxy: requests are copied to a backend and their responses back, as they arrive.

`client_connection` reads the requests, an `Exchange` carries each of them to a backend, and `backend_connection` reads
the response.
"""
