"""`poolctl serve`: runs one server as one process. `_launch` executes `__main__`, which also answers health probes."""

from poolctl.feature import Feature

FEATURE = Feature(package=__name__, commands={"serve": "command"}, stacks="_stacks_client:stacks_in")
