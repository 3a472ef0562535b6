"""How any stage runs: parameters, threads, safe writing, processes, checks. No stage depends on it."""
