"""Copy data/shards to an address, where `machine.shards` lets others read them (docs/scale-up.md).

    python -m pipelines.commands.publish_shards s3://bucket/folder

A copy that was stopped goes on where it was. Shards of other data go to another address.
"""

from __future__ import annotations

import argparse

from diptych.features.shards.publishing import publish_shards
from pipelines.measuring.shards import SHARDS
from pipelines.runner.errors import one_line_errors


def main() -> None:
    """Copy, and say what to set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "address", help="such as s3://bucket/folder, gs://bucket/folder or file:///mnt/shared/folder"
    )
    address = parser.parse_args().address
    with one_line_errors("publish_shards"):
        counts = publish_shards(SHARDS, address)
        print(f"{address}: {counts['written']} shards written, {counts['there']} were there")
        print(f"others read them with `machine.shards: {address}` in params.yaml")


if __name__ == "__main__":
    main()
