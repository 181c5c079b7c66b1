"""Mutation of the code: one small thing made wrong at a time, to see whether a test notices."""
