"""The names of entries in the keeper's descriptor store (like systemd's FDSTORE), the same in all versions.

The names of servers' sockets and workers contain a colon (see `Store.holds_work`): if the supervisor cannot be started,
the keeper keeps running only if its store holds such a name.
"""

from __future__ import annotations

# Descriptors passed to the pool when it starts.
CONTROL, LIFELINE, INHERITED = "control", "lifeline", "inherited"
# Listeners that an earlier run of the pool has stored in the service manager: the prefix of their names there, and the
# number of hexadecimal digits after it. No .socket unit has such a name.
RETURNED, RETURNED_DIGITS = "poolctl-", 32
# The pool's lock (see pool_lock), which keeper and supervisor hold by this entry while either runs.
LOCK = "lock"
# Links to helper processes. Zygotes (per interpreter, and per application) belong to the version that started them.
LOGGER = "logger"
ACCEPTOR = "acceptor"
ZYGOTE, APP_ZYGOTE = "zygote ", "appzygote "
OF_THE_VERSION = (ZYGOTE, APP_ZYGOTE)
# Sockets and workers, named by a server's key, a worker's id, or a number. A left group, a process group that outlives
# its leader, is named by the leader's pid.
LISTENER, ADOPTION, OUTPUT = "listener:", "adoption:", "output:"
WORKER, TALLY, HELD_CONNECTION = "worker:", "tally:", "visitor:"
LEFT_GROUP = "group:"
# The output pipes of helpers.
HELPER_OUTPUT = "helper output "
# State that a supervisor leaves to its successor.
CONFIGURATION, WANTED, TOTALS = "configuration", "wanted", "totals"
# The pool's own addresses by table, and the link to the process that serves them.
WEB_LISTENER, WEB_LINK = "web listener ", "web link"
# The gateway: its process, the states of backend hosts, registered services, and its listeners by key. Also its
# certificates and the addresses of host names: the files and the name server may be gone when a successor needs them.
GATEWAY_LINK, GATEWAY_HOSTS = "gateway link", "gateway hosts"
GATEWAY_CERTIFICATES, GATEWAY_ADDRESSES = "gateway certificates", "gateway addresses"
REGISTRATIONS = "registrations"
GATEWAY_LISTENER = "gateway listener "
# The link to the forwarder, and the listeners at which connections wait for a target, by the target's key.
FORWARDER_LINK, GATEWAY_WAITING = "forwarder link", "gateway waiting "

# Listed in the plan like an entry, but not stored: the supervisor is the keeper's client.
SUPERVISOR = "supervisor"

# Passed to a supervisor that has crashed repeatedly within a minute: its automatic actions may be the cause.
CALM = "--calm"

# Files in the pool's directory. This one exists while no supervisor can be started.
NO_SUPERVISOR = "no-supervisor"
# Here a client names the supervisor and the keeper of another version, before it sends SIGUSR1 to the keeper.
UPGRADE = "upgrade.json"
