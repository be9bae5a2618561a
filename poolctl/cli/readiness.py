"""The readiness of servers after a start or restart: the line for people, and the notification of systemd."""

from __future__ import annotations

import os

from poolctl.cli.plural import servers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.cli.pool_ref import PoolRef
    from poolctl.control.answers import Result

# States that are as they should be without being ready.
_ASIDE = ("sleeping", "draining", "disabled")


def ready_line(result: Result, *, waited: bool) -> str:
    """`3 servers ready`, with those in other intended states in brackets."""
    if not result.items:
        return "" if result.exit_code else "no server selected"
    asides = {state: sum(item.state == state for item in result.items) for state in _ASIDE}
    ready = sum(item.ready for item in result.items)
    count = len(result.items) - sum(asides.values())
    line = f"{servers(ready, count)} ready"
    if not waited:
        line = f"{servers(count)} starting, {ready} ready"
    said = ", ".join(f"{number} {state}" for state, number in asides.items() if number)
    return f"{line} ({said})" if said else line


def hand_over_to_systemd(pool: PoolRef, *, ready: bool) -> None:
    """As a service's main process, report the keeper as the new one: systemd can stop it. Else do nothing."""
    from poolctl.control import sd_notify
    from poolctl.control.client import Client
    from poolctl.errors import ControlError

    if os.environ.get("NOTIFY_SOCKET") and sd_notify.is_main(os.environ):
        try:
            keeper = Client(pool.socket).ping().keeper_pid
        except ControlError:
            return  # it has ended already, and so does the service
        sd_notify.notify(os.environ, f"MAINPID={keeper}", *([sd_notify.READY] if ready else []))
