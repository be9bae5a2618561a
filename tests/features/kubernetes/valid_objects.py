"""Objects compared with the schemas of Kubernetes."""

from __future__ import annotations

from functools import cache
from typing import Any

import kubernetes_validate
from kubernetes_validate import utils

# It reads the schemas for each object, which takes ten times as long as the comparison.
utils.schema_contents = cache(utils.schema_contents)
utils.all_versions = cache(utils.all_versions)


def assert_valid(item: dict[str, Any], *versions: str) -> None:
    """Fails unless the object has no other fields than those of its kind, with valid values, in each version."""
    for version in versions:
        kubernetes_validate.validate(item, version, strict=True)
