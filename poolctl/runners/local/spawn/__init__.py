"""Where workers come from: zygotes, their imports and whose turn they are, and the fork with all it is born with."""
