"""Notifies receivers when a pool's problems begin and end; `trial` sends test notifications."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"notify": "table:Notify"},
    supervisor="notifications:Notifications",
    verbs=("notify",),
)
