"""The command ``diptych``: caption, paint and answer with a packaged model, import checkpoints, find out what a machine lacks."""
