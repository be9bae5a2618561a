"""The command line: ask, render, exit. `main` is the fast lane's door, `app` the slow one's."""
