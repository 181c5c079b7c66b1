"""Delivery of events from the runner to the ledger."""
