"""What can be wrong with a machine or a pool: one file for each subject, each of its checks a function of the case."""
