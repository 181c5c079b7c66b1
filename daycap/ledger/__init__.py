"""The ledger: the durable truth, in SQLite or PostgreSQL."""
