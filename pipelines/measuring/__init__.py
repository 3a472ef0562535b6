"""What several stages measure with: CLIPs, the pipeline's own detector, the test set by any model."""
