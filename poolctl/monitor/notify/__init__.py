"""Notifications: which events reach which receiver, and how they are sent."""
