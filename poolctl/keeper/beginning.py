"""What the keeper's process was started with: it came by exec, and is kept from now on."""

from __future__ import annotations

import os

from ..platform import process_start
from . import stored
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def take_in(plan: dict[str, Any], store: Store) -> tuple[int, int] | None:
    """Put the descriptors of the plan into the store; the pid and the link of the supervisor, if it runs already.

    A child that could not be started for us is started by who needs it.
    """
    control, lifeline, names = plan["control"], plan.get("lifeline", -1), plan["inherited"]
    first = max(control, lifeline) + 1
    _keep(store, stored.CONTROL, None, [control])
    if lifeline >= 0:
        _keep(store, stored.LIFELINE, None, [lifeline])
    if names:
        _keep(store, stored.INHERITED, names, list(range(first, first + len(names))))
    supervisor = None
    for name, (pid, link) in plan["begun"].items():
        if not pid:
            os.close(link)
        elif name == stored.SUPERVISOR:
            supervisor = pid, link
        else:
            # A zygote's workers inherit its environment: whether it is the right one is the supervisor's to judge.
            meta = {"without": plan.get("without", []), "pid": pid, "start": process_start(pid)}
            _keep(store, name, meta if name.startswith(stored.ZYGOTE) else None, [link])
    return supervisor


def _keep(store: Store, name: str, meta: Any, fds: list[int]) -> None:
    for fd in fds:
        # Or it would go on to every program that is started.
        os.set_inheritable(fd, False)
    store.put(name, meta, fds)
