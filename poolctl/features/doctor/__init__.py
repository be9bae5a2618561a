"""`poolctl doctor`: checks of the machine and the pool, a module for each subject, a function for each check."""

from poolctl.feature import Feature

FEATURE = Feature(package=__name__, commands={"doctor": "command"})
