"""What passes between the command line (or any client) and a running supervisor."""
