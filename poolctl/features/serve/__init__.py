"""`poolctl serve`: one server as one process. `_launch` becomes `__main__`, whose `_health` answers probes."""

from poolctl.feature import Feature

FEATURE = Feature(package=__name__, commands={"serve": "command"})
