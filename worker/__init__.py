"""Celery's side: the app, batching, publishing, housekeeping and metrics."""
