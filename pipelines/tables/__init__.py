"""The papers' ablations: rows of trainings that differ from ours in one thing, side by side over several seeds."""
