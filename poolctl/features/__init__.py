"""The features, one folder each. The rest of poolctl finds them by `poolctl.feature` and imports none directly."""
