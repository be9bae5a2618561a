"""What looks at a pool and decides nothing: events, figures, notifications, the dashboard."""
