"""Copy features from the store to an address, where `machine.features_at` lets others bring them from (docs/team-cache.md).

    python -m pipelines.commands.publish_features s3://bucket/features
    python -m pipelines.commands.publish_features s3://bucket/features data/l_verse/tokens

All that the store has of the same detector, or image tokenizer, as the folder; several may share the address. A copy that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych.features.errors import UserError
from diptych.features.store import FeatureReader, FeatureStore
from diptych.features.store_elsewhere import publish_parts
from pipelines.runner.errors import one_line_errors
from pipelines.runner.params import Machine, read_params, read_section


def main() -> None:
    """Copy, and say what to set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "address", help="such as s3://bucket/folder, gs://bucket/folder or file:///mnt/shared/folder"
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("data/features"), help="by default data/features"
    )
    options = parser.parse_args()
    with one_line_errors("publish_features"):
        root = Path(read_section(Machine, "machine", read_params()).feature_store)
        made_by = "make l-verse" if "l_verse" in options.folder.parts else "dvc repro extract"
        store = FeatureStore(root, FeatureReader(options.folder, made_by).meta)
        if not store.known():
            raise UserError(
                f"{store.folder}: the store has nothing of {options.folder}, which DVC has brought; publish where it was extracted"
            )
        counts = publish_parts(store, options.address)
        print(f"{options.address}: {counts['written']} parts written, {counts['there']} were there")
        print(f"others bring them with `machine.features_at: {options.address}` in params.yaml")


if __name__ == "__main__":
    main()
