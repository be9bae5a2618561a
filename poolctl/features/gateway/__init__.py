"""The gateway: routes requests to servers by host and path, as configured in [gateway], [[route]] and [[stream]]."""

from poolctl.feature import DetachedProcesses, Feature, InitTemplate

FEATURE = Feature(
    package=__name__,
    commands={"routes": "routes_command", "backends": "backends_command"},
    tables={"gateway": "table:GatewayConfig", "route": "table:RouteConfig", "stream": "table:StreamConfig"},
    rules="rules:GatewayRules",
    labels=("route.",),
    supervisor="supervision.pool_gateway:PoolGateway",
    verbs=("routes", "hosts", "registry", "host"),
    changing=("host",),
    starters={
        "gateway": InitTemplate(
            help="Write one with a gateway: two servers behind one port.",
            example="poolctl init --app --gateway  with two servers behind one port",
            module="starter",
        )
    },
    exports={"haproxy": "export:files"},
    processes=DetachedProcesses(
        label="the gateway",
        entry="gateway link",
        sockets=("g",),
        end="supervision.gateway:end_left_processes",
    ),
)
