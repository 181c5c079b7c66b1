"""Integrations with client libraries."""
