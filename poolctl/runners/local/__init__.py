"""Workers as processes of this machine: listeners and forks by way of the keeper."""
