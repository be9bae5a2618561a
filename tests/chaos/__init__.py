"""A seeded program of kills, restarts, reloads, floods and full disks, run against a real pool under load.

`python -m tests.chaos --seed N --minutes 10`; a seed always gives the same program. `watch` checks the invariants
during a run, `leaks` the state afterwards.
"""
