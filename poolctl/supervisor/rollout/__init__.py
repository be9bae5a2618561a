"""New code or configuration for a share of a server's traffic, promoted or withdrawn by its figures."""

# Modules that no start needs.
MODULES = ("poolctl.supervisor.rollout.rollouts",)
