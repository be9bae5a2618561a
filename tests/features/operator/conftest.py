"""The pools behind a gateway."""

from tests.features.gateway.conftest import gateway, real_pool

__all__ = ["gateway", "real_pool"]
