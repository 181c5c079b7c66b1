"""An explicit-state model of the protocol: every order of steps and faults in a small world. See docs/model.md."""
