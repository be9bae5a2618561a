"""Public API: informs an operator of incoming requests, so that it can scale services up.

    from poolctl.gateway.operator import OperatorClient, OperatorSettings

    client = OperatorClient(OperatorSettings(url="http://operator:8013", namespace="default"), "/run/shop")
    client.count("users")        # on the event loop; returns at once

The wire format is the one between KubeElasti's resolver and operator: `POST /informer/incoming-request` with
`{"count": 1, "svc": "users", "namespace": "default"}`. Needs only the standard library.
"""

from poolctl.features.operator.client import OperatorClient as OperatorClient
from poolctl.features.operator.client import OperatorSettings as OperatorSettings
