"""Which servers are meant: the selector language, filters by one field, and the process that matches expressions."""
