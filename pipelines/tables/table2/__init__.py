"""UMT's table 2 in miniature, with everything that there is to compare: `make table2`."""
