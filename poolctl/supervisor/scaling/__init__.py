"""The number of workers of servers whose table has scale.triggers."""
