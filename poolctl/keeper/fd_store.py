"""The names in the keeper's descriptor store (modelled on systemd's FDSTORE), a contract between versions.

Only names of a pool's sockets and workers contain a colon: a keeper without a supervisor keeps running while it
holds any of them (`Store.holds_work`).
"""

from __future__ import annotations

# Passed to the pool when it starts.
CONTROL, LIFELINE, INHERITED = "control", "lifeline", "inherited"
# Helpers: the links to them, and the logger's move in progress. Zygotes belong to the version that started them:
# one per interpreter, one per application.
LOGGER, UNDERWAY = "logger", "logger-underway"
ACCEPTOR = "acceptor"
ZYGOTE, APP_ZYGOTE = "zygote ", "appzygote "
OF_THE_VERSION = (ZYGOTE, APP_ZYGOTE)
# Sockets and workers, named by a server's key, a worker's id, or a number.
LISTENER, ADOPTION, OUTPUT = "listener:", "adoption:", "output:"
WORKER, TALLY, HELD_CONNECTION = "worker:", "tally:", "visitor:"
# State that a supervisor leaves to its successor, and its own endpoints.
CONFIGURATION, WANTED, TOTALS = "configuration", "wanted", "totals"
CERTIFICATES = "certificates"
METRICS, OPERATOR = "metrics", "operator"
# The links to the gateway's process and to its zygote, its pair, the hosts' states, registered services, and its
# listeners by their keys.
GATEWAY_LINK, GATEWAY_PAIR, GATEWAY_HOSTS = "gateway link", "gateway pair", "gateway hosts"
GATEWAY_ZYGOTE = "gateway zygote"
REGISTRATIONS, REGISTRATION_ADDRESS = "registrations", "registration"
GATEWAY_LISTENER = "gateway listener "

# Not an entry, although the plan lists it among them: the supervisor is the client itself.
SUPERVISOR = "supervisor"

# Passed to a supervisor that has crashed often within a minute: its automatic actions may be the cause.
CALM = "--calm"
