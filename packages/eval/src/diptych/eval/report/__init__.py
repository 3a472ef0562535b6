"""The report: one HTML page that needs nothing else (`page`), and contact sheets to look at (`sheet`)."""
