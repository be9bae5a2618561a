"""Objects compared with the schemas of Kubernetes and of the Gateway API."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

# It reads the schemas for each object, which takes ten times as long as the comparison.
utils.schema_contents = cache(utils.schema_contents)
utils.all_versions = cache(utils.all_versions)

HTTP_ROUTE = json.loads((Path(__file__).parent / "httproute.json").read_text())
_http_route = jsonschema.Draft202012Validator(HTTP_ROUTE)
# The oldest Kubernetes that docs/kubernetes.md allows, and the newest with schemas.
_VERSIONS = ("1.30", utils.latest_version())


def assert_valid(item: dict[str, Any]) -> None:
    """Fail if the object has a field that its kind does not have, or a value of another type."""
    if item["apiVersion"] == "gateway.networking.k8s.io/v1":
        _http_route.validate(item)
    elif item["kind"] != "Kustomization":  # kustomize's own, which no cluster has
        for version in _VERSIONS:
            kubernetes_validate.validate(item, version, strict=True)
