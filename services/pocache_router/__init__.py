"""The router: admits jobs, leases them to workers, and follows each to its end."""
