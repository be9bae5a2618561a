"""The pytest plugin: fixtures with running pools. pytest imports `plugin` in every run, `pools` on first use."""
