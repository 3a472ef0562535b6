"""Systems side by side: paired differences with verdicts on claims, and the pages that show them."""
