"""TLS of clients: certificates of the listeners, the server name in a ClientHello, one buffer for all reads."""
