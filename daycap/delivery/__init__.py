"""The way of an event from the runner to the ledger."""
