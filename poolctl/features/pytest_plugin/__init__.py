"""The pytest plugin: fixtures with running pools. pytest imports `plugin` in every run, `pools` when it is used."""
