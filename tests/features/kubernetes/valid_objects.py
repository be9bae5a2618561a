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
    """Fail if the object has a field that its kind does not have, or an invalid value, in any version."""
    for version in versions:
        kubernetes_validate.validate(item, version, strict=True)
