"""The gateway's part of the supervisor."""
