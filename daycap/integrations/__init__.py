"""Wallets around client libraries."""
