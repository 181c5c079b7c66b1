"""The model of several budgets on a call; docs/model.md describes it."""
