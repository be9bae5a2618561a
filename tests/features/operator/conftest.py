"""The pools behind a gateway."""

from tests.features.gateway.conftest import gateway

__all__ = ["gateway"]
