"""What outlives a runner: listeners and pipes, which the keeper holds as well, and the logger that reads those."""
