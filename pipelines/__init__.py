"""The DVC stages of Diptych: one short module per stage of dvc.yaml, run as `python -m pipelines.<stage>`.

A stage reads its typed section of params.yaml, calls a package, and writes its outputs and metrics. Nothing else.
"""
