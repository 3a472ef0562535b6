"""AugVAE-ML: pixels to grids of codes of four sizes and back, all by one codebook (L-Verse 3.3)."""

from __future__ import annotations

from pathlib import Path

from diptych.model.networks.aug_vae import AugVAE, named_config, save_aug_vae
from diptych.model.objectives.perceptual import read_perceptual_loss
from diptych.model.training.autoencoder import AutoencoderTrainingConfig, train_autoencoder
from diptych.model.training.processes import current_processes
from pipelines.l_verse.params import MULTI_LEVEL, Params
from pipelines.measuring.pictures import readable_pictures
from pipelines.measuring.samples import repainted_pictures, write_samples
from pipelines.runner.processes import run, training_device
from pipelines.runner.stage import Stage


def main(stage: Stage, params: Params) -> None:
    """Train on the train split; write models/l_verse/autoencoder_ml, the histories, and val pictures drawn again meanwhile."""
    import torch

    torch.manual_seed(stage.seed)
    model = AugVAE(named_config(params.autoencoder.network, coded_level=None))
    train_and_write(stage, params, model, params.autoencoder.multi_level, MULTI_LEVEL)


def train_and_write(
    stage: Stage, params: Params, model: AugVAE, training: AutoencoderTrainingConfig, out: Path
) -> None:
    """Train `model` and write it into `out`, with what its training leaves besides."""
    wanted = params.autoencoder
    with training_device(stage) as device:
        most = wanted.max_failed_share, "l_verse.autoencoder.max_failed_share"
        train = readable_pictures(wanted.scenes, "train", *most)
        val = readable_pictures(wanted.scenes, "val", *most) if training.evaluation else None
        record = train_autoencoder(
            training,
            model,
            train,
            read_perceptual_loss(wanted.perceptual, device) if training.perceptual_weight else None,
            stage.checkpoints(),
            device,
            val,
        )
        if current_processes().rank > 0:
            return
        with stage.write(str(out)) as folder:
            save_aug_vae(folder, model)
        stage.write_history(f"plots/{stage.name}.csv", record.history)
        stage.write_history(f"plots/{stage.name}_val.csv", record.evaluations)
        write_samples(stage, record.samples, [], repainted_pictures())


if __name__ == "__main__":
    run("l_verse/autoencoder_ml", Params, main)
