"""Rollouts: new code or configuration for a share of a server's traffic, promoted or withdrawn by its figures."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    commands={"rollout": "command"},
    supervisor="rollouts:Rollouts",
    verbs=("rollout", "rollouts"),
    changing=("rollout",),
)
