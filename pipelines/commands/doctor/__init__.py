"""What this machine and this clone lack to run the pipeline, and what to do: `make doctor`.

One line a check: `ok`, a `note` (it runs, but not as well as it could, or not for everybody), or a `problem` that
prevents a run. Status 1 if there is a problem. Nothing is changed; what is tried is removed again.

Third-party packages and our own that need them are imported inside the checks: one that is missing is a finding.
"""
