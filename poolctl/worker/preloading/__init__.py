"""What forks share with the zygote: imports, rehearsals and memory, what must not be shared, and the forking itself."""
