"""The command `diptych-eval`."""
