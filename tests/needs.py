"""Tests of one part of poolctl that also use a feature."""

from __future__ import annotations

import pytest

from poolctl.feature import FEATURES


def needs(feature: str) -> pytest.MarkDecorator:
    """Skips the test where this feature has been taken out."""
    return pytest.mark.skipif(feature not in FEATURES, reason=f"there is no feature {feature}")
