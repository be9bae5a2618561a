"""Kubernetes: `export` compiles a pool into objects (`_objects`), as far as its keys have an equal (`_keys`)."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"kubernetes": "table:Kubernetes"},
    exports={"kubernetes": "export:files"},
    platforms={"kubernetes": "platform:KubernetesClient"},
)
