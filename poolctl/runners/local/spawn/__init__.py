"""Makes workers: zygotes, their imports, and forks with everything that a worker inherits."""
