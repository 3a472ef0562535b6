"""Networks: one in each file, and nothing else; their sizes by name are data, in configs/."""
