"""HAProxy as an engine of the gateway: it serves the same routes. `poolctl export haproxy` writes its files."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__, engines={"haproxy": "engine:HAPROXY"}, exports={"haproxy": "export:files"}
)
