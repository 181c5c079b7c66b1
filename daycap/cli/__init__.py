"""The command `daycap`. What changes the ledger goes through the worker, so that it needs no database."""
