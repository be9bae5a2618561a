"""`poolctl serve`: one server as one process. `_launch` becomes `__main__`; `_health` and `_stacks` answer for it."""

from poolctl.feature import Feature

FEATURE = Feature(package=__name__, commands={"serve": "command"}, stacks="_stacks_client:stacks_in")
