"""Everything but the network in one process, under one seeded scheduler: the real code, faults in what carries it."""
