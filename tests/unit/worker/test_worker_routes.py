"""What a worker knows of the gateway's routes."""

from __future__ import annotations

import os

from poolctl.gateway.routes import Route, Target, try_get_table, write_table
from poolctl.routing.context import EXTENSION
from poolctl.worker.serving.worker_routes import Routes

USERS = Route(alias="users", to=(Target(server="one"),))


def test_application_sees_the_newest_table_and_an_older_one_stays_readable() -> None:
    routes = Routes("one")
    scope = {"extensions": {EXTENSION: routes.context(USERS)}}
    assert try_get_table(scope) is None
    seen = []
    for generation in (1, 2):
        fd = write_table([USERS], generation)
        routes.renew([fd])
        os.close(fd)
        seen.append(try_get_table(scope))
    routes.renew([])
    assert try_get_table(scope) is None
    assert [(each.generation, len(each), each.by_alias("users") is not None) for each in seen if each] == [
        (1, 1, True),
        (2, 1, True),
    ]
