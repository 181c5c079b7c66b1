"""A fault campaign over real processes: `make chaos`."""
