"""HTTP/2 of clients, where the gateway terminates TLS: each stream is a request of its own, carried by the proxy."""
