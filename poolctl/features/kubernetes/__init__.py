"""Kubernetes: `export kubernetes` compiles a pool into objects with which a cluster runs it."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"kubernetes": "table:Kubernetes"},
    exports={"kubernetes": "export:files"},
)
