"""Notifications: selects the events for each receiver, and sends them."""
