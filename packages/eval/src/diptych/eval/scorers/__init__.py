"""Networks that measure: the CLIPs that score (scorer and judge) and the inspector, with their training."""
