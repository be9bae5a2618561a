"""Before the fork: what workers share with their zygote, what they must not share, and the forking itself."""
