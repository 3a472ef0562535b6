"""The paper's table 1 in miniature: table.py is its data, dvc.yaml what runs."""
