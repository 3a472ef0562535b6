"""AugVAE-SL: the image tokenizer, one grid of codes, made from AugVAE-ML and trained on (L-Verse 3.3)."""

from __future__ import annotations

from diptych.model.networks.aug_vae import load_aug_vae, named_config, single_level
from pipelines.l_verse.autoencoder_ml import train_and_write
from pipelines.l_verse.params import MULTI_LEVEL, SINGLE_LEVEL, Params
from pipelines.runner.processes import run
from pipelines.runner.stage import Stage


def main(stage: Stage, params: Params) -> None:
    """Train on the train split; write models/l_verse/autoencoder_sl, the histories, and val pictures drawn again meanwhile."""
    import torch

    level = named_config(params.autoencoder.network).coded_level
    assert level is not None, "named sizes say which level remains"
    torch.manual_seed(stage.seed)
    model = single_level(load_aug_vae(MULTI_LEVEL), level)
    train_and_write(stage, params, model, params.autoencoder.single_level, SINGLE_LEVEL)


if __name__ == "__main__":
    run("l_verse/autoencoder_sl", Params, main)
