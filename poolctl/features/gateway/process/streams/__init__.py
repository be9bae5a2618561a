"""TCP connections and UDP datagrams between clients and the backends of a stream route."""
