"""Machines of a Proxmox VE cluster: routes are linked to them, and requests start and stop them."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    tables={"proxmox": "table:ProxmoxTable"},
    supervisor="inventory:Machines",
    # The last inventory stays in use, so every route is served.
    warnings={"proxmox": "check url, verify and the token, then run poolctl reload"},
)
