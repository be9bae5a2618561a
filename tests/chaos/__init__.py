"""A seeded program of kills, restarts, reloads, floods and full disks against a real pool under load.

`python -m tests.chaos --seed N --minutes 10`; the same seed is the same program. What must be true all the time is in
`watch`, what must be true afterwards in `leaks`.
"""
