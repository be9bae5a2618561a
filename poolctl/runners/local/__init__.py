"""Workers as processes of this machine: with listeners and forks through the keeper."""
