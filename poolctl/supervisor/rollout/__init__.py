"""New code or configuration for a share of a server's traffic, promoted or withdrawn by its figures."""

# What no start needs.
MODULES = ("poolctl.supervisor.rollout.rollouts",)
