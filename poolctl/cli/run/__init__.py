"""`poolctl run`: the command around it, its output, its signals."""
