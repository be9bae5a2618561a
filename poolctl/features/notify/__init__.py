"""Notifies receivers when a pool's problems begin and end; `poolctl notify test` sends a test notification."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    commands={"notify": "command"},
    tables={"notify": "table:Notify"},
    supervisor="notifications:Notifications",
    verbs=("notify",),
)
