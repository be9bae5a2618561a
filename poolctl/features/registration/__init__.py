"""Registration: services become backends of routes at run time, by `poolctl register` or over HTTP ([registration])."""

from poolctl.feature import Feature, FeatureCommand

FEATURE = Feature(
    package=__name__,
    commands={
        "register": FeatureCommand("register", "Change", "Register a service as a backend of a route."),
        "unregister": FeatureCommand("unregister", "Change", "Take out a service that has registered."),
    },
    tables={"registration": "table:RegistrationTable"},
    supervisor="registrations:TargetRegistration",
    web="site:RegistrationSite",
    needed_with=("gateway",),  # services register over the control socket, too
    verbs=("register", "unregister"),
)
