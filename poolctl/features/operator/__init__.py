"""Reports of requests, so that services scale up: the gateway sends them to `url`, the pool accepts them at `bind`."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"operator": "table:OperatorTable"},
    supervisor="pool_operator:PoolOperator",
    web="site:OperatorSite",
    verbs=("report_requests",),
)
