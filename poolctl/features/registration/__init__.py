"""Registration: services become backends of routes at run time, by `poolctl register` or over HTTP ([registration])."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    commands={"register": "register", "unregister": "unregister"},
    tables={"registration": "table:RegistrationTable"},
    supervisor="registrations:TargetRegistration",
    web="site:RegistrationSite",
    needed_with=("gateway",),  # services register over the control socket, too
    verbs=("register", "unregister"),
)
