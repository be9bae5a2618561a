"""Features: a folder each, declared as `poolctl.feature` describes. The rest of poolctl imports none of them."""
