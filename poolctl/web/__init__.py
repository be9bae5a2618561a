"""The process that serves the pool's own addresses: [dashboard], [metrics], [operator] and [registration].

Each table has a Site (`site.py`), which a feature declares as `Feature.web`. The supervisor opens the addresses and
sends the settings (`poolctl/supervisor/web_addresses.py`). Sites ask the supervisor over its control socket.
"""
