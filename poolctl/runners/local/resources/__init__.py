"""Resources that outlive a runner: listeners and pipes, which the keeper holds too, and the logger."""
