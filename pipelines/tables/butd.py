"""BUTD's captioner of one seed, on grid features or on the detector's regions: word by word, then SCST on our reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.eval.captions.cider import CiderDReward
from diptych.model.baselines import save_butd
from diptych.model.networks.butd import BUTD, named_config
from diptych.model.tokenizer import build_tokenizer
from diptych.model.training.butd import train_butd
from diptych.model.training.scst import reference_words
from pipelines.tables.described import described
from pipelines.tables.item import TableItem, run

if TYPE_CHECKING:
    from pipelines.tables.systems import SystemsTableParams


def main(item: TableItem, section: SystemsTableParams) -> None:
    """Write models/butd_FEATURES-SEED in the table's folder, and the history of both trainings."""
    import torch

    stage, features = item.stage, item.values["features"]
    params = section.butd
    train = described(item, features, "train")
    captions = [caption for index in range(len(train)) for caption in train.captions(index)]
    tokenizer = build_tokenizer(captions, params.min_count)
    torch.manual_seed(stage.seed)
    model = BUTD(named_config(params.network, feature_dim=train.feature_dim, vocab_size=len(tokenizer)))
    words, sequence = params.words, params.sequence
    first = train_butd(words, model, tokenizer, train, stage.checkpoints("words"), stage.device)
    reward = CiderDReward(reference_words(tokenizer, train, sequence.caption_length))
    then = train_butd(sequence, model, tokenizer, train, stage.checkpoints("scst"), stage.device, reward)
    with stage.write(item.path(f"models/butd_{features}-{stage.seed}")) as folder:
        save_butd(folder, model, tokenizer)
    stage.write_history(
        item.path(f"histories/butd_{features}-{stage.seed}.csv"), [*first.history, *then.history]
    )


if __name__ == "__main__":
    run("butd", ("features", "seed"), main)
