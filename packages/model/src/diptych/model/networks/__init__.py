"""Networks, one in each file and nothing else, and the parts they share; their sizes by name are data, in configs/."""
