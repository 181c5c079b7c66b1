"""The deployable: ledger, settling, publishing and the command line."""
