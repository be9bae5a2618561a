"""HAProxy as the program that serves the gateway's clients, with the same routes."""
