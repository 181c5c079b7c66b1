"""What `daycap replay` does: real runner processes make a trace's calls, then everything recorded is compared."""
