"""Token-level training, stage 1: captioning and painting in turns by cross-entropy (UMT 4.1.1 and 4.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.features.codebook import load_codebook
from diptych.features.shards import ShardDataset
from diptych.model.config import named_config
from diptych.model.pretrained import save_transformer
from diptych.model.tokenizer import build_tokenizer
from diptych.model.training.token import TokenTrainingConfig, train_token
from diptych.model.transformer import UnifiedTransformer
from pipelines.stage import Stage, run


@dataclass(frozen=True)
class TokenizerParams:
    """min_count: how often a word must occur in the training captions to be in the vocabulary."""

    min_count: int


@dataclass(frozen=True)
class TrainTokenParams:
    """network: a named size of diptych.model (toybox, smoke, base); training: its schedule."""

    network: str
    tokenizer: TokenizerParams
    training: TokenTrainingConfig


def main(stage: Stage, params: TrainTokenParams) -> None:
    """Build the vocabulary, train from scratch on the train split, write the model directory."""
    import torch

    train = ShardDataset(Path("data/shards"), "train")
    codebook = torch.from_numpy(load_codebook(Path("data/codebook")))
    captions = (caption for index in range(len(train)) for caption in train.captions(index))
    tokenizer = build_tokenizer(captions, params.tokenizer.min_count)
    codes, width = codebook.shape
    torch.manual_seed(stage.seed)
    model = UnifiedTransformer(
        named_config(params.network, vocab_size=len(tokenizer), codebook_size=codes, feature_dim=width)
    )
    history = train_token(
        params.training, model, tokenizer, codebook, train, stage.checkpoints(), stage.device
    )
    with stage.write("models/token") as folder:
        save_transformer(folder, model, tokenizer, codebook)
    stage.write_history("plots/train_token.csv", history)


if __name__ == "__main__":
    run("train_token", TrainTokenParams, main)
