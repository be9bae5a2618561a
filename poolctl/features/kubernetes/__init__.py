"""Kubernetes: runs a pool on a cluster (`platform`), or exports it as objects (`export`)."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"kubernetes": "table:Kubernetes"},
    exports={"kubernetes": "export:files"},
    platforms={"kubernetes": "platform:KubernetesPlatform"},
)
