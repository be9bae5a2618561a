"""Events and their journal, and metrics."""
