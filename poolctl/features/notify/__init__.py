"""Notifications: receivers are notified of problems of a pool and of their end; `poolctl notify test` tests them."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    commands={"notify": "command"},
    tables={"notify": "table:Notify"},
    supervisor="notifications:Notifications",
    verbs=("notify",),
)
