"""Counters: Redis, and memory for one process."""
