"""The gateway: routes requests to servers by host and path, as configured in [gateway], [[route]] and [[stream]]."""

from poolctl.feature import Feature, FeatureCommand, InitTemplate

FEATURE = Feature(
    package=__name__,
    commands={
        "routes": FeatureCommand(
            "routes_command", "Look", "List the gateway's routes; explain which one a URL takes."
        ),
        "backends": FeatureCommand(
            "backends_command", "Look", "List the gateway's backends; disable, enable or drain some."
        ),
    },
    tables={"gateway": "table:GatewayConfig", "route": "table:RouteConfig", "stream": "table:StreamConfig"},
    rules="rules:GatewayRules",
    labels=("route.",),
    supervisor="supervision.pool_gateway:PoolGateway",
    verbs=("routes", "hosts", "registry", "host"),
    changing=("host",),
    starters={
        "gateway": InitTemplate(
            example="poolctl init --app --gateway  with two servers behind one port",
            module="starter",
        )
    },
    exports={"haproxy": "export:files"},
    entry="gateway link",
)
