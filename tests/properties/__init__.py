"""Properties of the real wallet, found by Hypothesis."""
