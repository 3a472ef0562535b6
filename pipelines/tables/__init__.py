"""The papers' tables in miniature: rows of trainings side by side over several seeds, with verdicts on the
papers' claims."""
