"""`poolctl run`: one asyncio session from the launch of the pool to its end."""
