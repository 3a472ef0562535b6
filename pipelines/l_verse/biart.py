"""BiART: from text to tokens and from tokens to text, in turns (L-Verse 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.model.errors import UserError
from diptych.model.image_tokens import image_tokenizer_hash
from diptych.model.networks.aug_vae import AugVAE, load_aug_vae
from diptych.model.networks.biart import BiART, named_config
from diptych.model.pretrained import save_biart
from diptych.model.tokenizer import build_byte_pairs, build_tokenizer
from diptych.model.training.biart import train_biart
from diptych.model.training.processes import current_processes
from pipelines.l_verse.params import BIART, MADE_BY, SINGLE_LEVEL, TOKENS, BiARTParams, Params, tokenized
from pipelines.runner.processes import run, training_device
from pipelines.runner.stage import Stage

if TYPE_CHECKING:
    from diptych.features.pictures import TokenizedPictures
    from diptych.model.tokenizer import CaptionTokenizer
    from diptych.model.training.contracts import Record


def main(stage: Stage, params: Params) -> None:
    """Train on the train split; write the model directory models/l_verse/biart and the history."""
    with training_device(stage) as device:
        model, record = train(stage, params.biart, device)
        if current_processes().rank > 0:
            return
        with stage.write(str(BIART)) as folder:
            save_biart(folder, *model)
        stage.write_history("plots/l_verse/biart.csv", record.history)


def train(
    stage: Stage, params: BiARTParams, device: str
) -> tuple[tuple[BiART, CaptionTokenizer, AugVAE], Record]:
    """A trained model, its tokenizer of texts and that of images, and its history."""
    import torch

    train, image_tokenizer = tokenized("train"), load_aug_vae(SINGLE_LEVEL)
    check_tokens_are_of(image_tokenizer, train)
    tokenizer = vocabulary(params, train)
    (level,) = image_tokenizer.config.coded_levels
    config = named_config(
        params.network,
        vocab_size=len(tokenizer),
        codebook_size=image_tokenizer.config.codebook_size,
        grid_size=image_tokenizer.config.grid_size(level),
    )
    torch.manual_seed(stage.seed)
    model, codebook = BiART(config), image_tokenizer.quantizer.embedding
    record = train_biart(params.training, model, tokenizer, train, codebook, stage.checkpoints(), device)
    return (model, tokenizer, image_tokenizer), record


def check_tokens_are_of(image_tokenizer: AugVAE, tokens: TokenizedPictures) -> None:
    """Raise UserError where the tokens are those of another image tokenizer: nothing trains on them."""
    if tokens.image_tokenizer != image_tokenizer_hash(image_tokenizer):
        raise UserError(f"{TOKENS}: tokens of another autoencoder than {SINGLE_LEVEL}; run `{MADE_BY}`")


def vocabulary(params: BiARTParams, train: TokenizedPictures) -> CaptionTokenizer:
    """The tokenizer of texts, from the training captions."""
    captions = [caption for index in range(len(train)) for caption in train.captions(index)]
    if params.vocabulary.pieces is not None:
        return build_byte_pairs(captions, params.vocabulary.pieces)
    assert params.vocabulary.min_count is not None
    return build_tokenizer(captions, params.vocabulary.min_count)


if __name__ == "__main__":
    run("l_verse/biart", Params, main)
