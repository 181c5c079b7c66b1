"""The command `daycap`. Changes go through a worker; without a broker they are made in the SQLite file itself."""
