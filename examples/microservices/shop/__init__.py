"""A shop of three services; each module holds one ASGI application."""
