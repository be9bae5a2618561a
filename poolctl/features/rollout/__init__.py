"""Rollouts: a canary serves a share of a server's traffic, and is promoted or withdrawn by its measurements."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    commands={"rollout": "command"},
    supervisor="rollouts:Rollouts",
    verbs=("rollout", "rollouts"),
    changing=("rollout",),
)
