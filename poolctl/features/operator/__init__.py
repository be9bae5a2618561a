"""Operators: the gateway reports requests to an operator at `url`, and the pool is an operator for others at `bind`."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"operator": "table:OperatorTable"},
    supervisor="pool_operator:PoolOperator",
    gateway="client:RequestReporter",
)
