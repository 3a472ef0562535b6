"""The command ``diptych``: caption and paint with a packaged model, import checkpoints, find out what a machine lacks."""
