"""The demo behind `daycap run` and `daycap demo`: real runner processes make calls, then every record is compared."""
