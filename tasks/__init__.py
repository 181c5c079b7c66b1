"""Thin Celery tasks: decode, call the worker, log."""
