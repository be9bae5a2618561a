"""Events and their journal, availability, metrics and recovery policy."""
