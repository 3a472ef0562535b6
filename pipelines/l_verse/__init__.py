"""L-Verse's own stages (docs/l-verse.md)."""
