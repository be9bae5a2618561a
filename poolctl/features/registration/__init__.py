"""Registration: services become backends of routes while the pool runs, by command or at the address [registration]."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    commands={"register": "register", "unregister": "unregister"},
    tables={"registration": "table:RegistrationTable"},
    supervisor="registrations:TargetRegistration",
    needed_with=("gateway",),  # services register over the control socket, too
    verbs=("register", "unregister"),
)
