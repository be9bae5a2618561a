"""Operators: the gateway informs one of its requests (`url`), and the pool is one for others (`bind`)."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"operator": "table:OperatorTable"},
    supervisor="pool_operator:PoolOperator",
    gateway="client:ReportedRequests",
)
