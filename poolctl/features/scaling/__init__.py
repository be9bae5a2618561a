"""Scaling by load: triggers of a server change the number of its workers between `scale.min` and `scale.max`."""

from poolctl.feature import Feature

FEATURE = Feature(package=__name__, sections={"Scale": "keys:Scale"}, supervisor="autoscaler:Autoscaler")
