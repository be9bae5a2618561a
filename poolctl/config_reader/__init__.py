"""The process that reads configuration files, and validates servers, for the supervisor."""
