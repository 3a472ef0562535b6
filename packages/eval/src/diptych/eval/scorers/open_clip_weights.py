"""A model of open_clip with weights from a local file of any kind that people have."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.eval.errors import UserError
from diptych.eval.weight_files import UnreadableWeights, load_into, read_state_dict, without_prefix

# Numbers that OpenAI's archives hold beside their weights; open_clip leaves them out too.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")


def filled_model(model_name: str, checkpoint: Path, device: torch.device | str) -> nn.Module:
    """open_clip's model of this name with the weights in `checkpoint`: what `open_clip.create_model` makes of a file
    that it reads, and of TorchScript archives and of checkpoints with plain values beside the weights too.

    Raises UserError where the file is unreadable or its weights are another model's.
    """
    import open_clip

    if checkpoint.suffix in (".npz", ".npy"):  # of big_vision (SigLIP): open_clip alone can convert it
        try:
            return open_clip.create_model(model_name, pretrained=str(checkpoint), device=device)
        except Exception as error:  # noqa: BLE001 - numpy and the conversion raise many kinds for a foreign file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{checkpoint}: not weights of open_clip's {model_name} ({reason})") from None
    try:
        tensors = dict(without_prefix(read_state_dict(checkpoint)[0]))
    except UnreadableWeights as error:
        raise UserError(f"{checkpoint}: {error}") from None
    marks = [tensors.pop(name) for name in OPENAI_MARKS if name in tensors]
    quick = f"{model_name}-quickgelu"
    if marks and quick in open_clip.list_models():
        raise UserError(
            f"{checkpoint}: OpenAI's weights, which were trained with QuickGELU; give {quick} instead of {model_name}"
        )
    model = _random_model(model_name, device)
    try:
        load_into(model, _fitted(model, tensors))
    except (UnreadableWeights, RuntimeError) as error:
        raise UserError(
            f"{checkpoint}: not weights of open_clip's {model_name} ({error}); give the name of the model that "
            "they are of"
        ) from None
    except (KeyError, AttributeError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{checkpoint}: not weights of open_clip's {model_name} ({error!r})") from None
    return model


def _random_model(model_name: str, device: torch.device | str) -> nn.Module:
    """The model before it has weights; open_clip's warning that it has none is kept back."""
    import open_clip

    def other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(other)
    try:
        return open_clip.create_model(
            model_name, device=device, pretrained_image=False, pretrained_text=False
        )
    finally:
        logger.removeFilter(other)


def _fitted(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as `model` names and shapes them: the steps of `open_clip.factory.load_checkpoint`."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    tensors = convert_state_dict(model, tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if name in tensors and own is not None:
            tensors[name] = tensors[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_scale" in tensors:
        tensors.setdefault("logit_bias", torch.zeros_like(tensors["logit_scale"]))
    position_ids = "text.transformer.embeddings.position_ids"
    if position_ids in tensors and position_ids not in model.state_dict():
        del tensors[position_ids]
    resize_pos_embed(tensors, model)
    resize_text_pos_embed(tensors, model)
    return tensors
