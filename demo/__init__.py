"""What `daycap run` and `daycap demo` do: real runner processes make calls, then everything recorded is compared."""
