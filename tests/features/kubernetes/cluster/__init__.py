"""A real API server of Kubernetes 1.20.2 with etcd, on loopback: objects are stored, nothing runs them."""
