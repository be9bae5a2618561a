"""Events and their journal, availability, metrics, recovery policy and notifications."""
