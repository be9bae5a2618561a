"""poolctl's features, one folder each. The command line and the supervisor load them through `poolctl.feature`."""
