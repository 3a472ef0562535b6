"""The Inception network that FID and IS are defined on, the two ways to show it pictures, and IS from its answers."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diptych.eval.errors import UserError
from diptych.eval.figures import Figure, interval, not_run, resampled_means
from diptych.eval.images.embeddings import uint8_tensor
from diptych.eval.weight_files import (
    UnreadableWeights,
    misfit,
    of_another_kind,
    read_state_dict,
    without_prefix,
)

FidProtocol = Literal["diptych", "pytorch-fid"]
FID_PROTOCOLS: tuple[FidProtocol, ...] = ("diptych", "pytorch-fid")
"""How pictures reach Inception. diptych: as squares of one size, then as TensorFlow 1 resized them (torch-fidelity).
pytorch-fid: from their own size, bilinearly without antialiasing, as the papers' FID."""

FEATURES, CLASSES = 2048, 1008
INPUT_SIZE = 299
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
MEND = (
    f"download {WEIGHTS} (torch-fidelity's releases, v0.2.0) and give its path; the network itself: "
    "pip install diptych-eval[inception]"
)


class Inception:
    """Pictures uint8 [n, 3, H, W] to float32 [n, 2048 + 1008]: pooled features, then logits without bias.

    The network and its resizing to 299 (bilinear, as TensorFlow 1 did) are torch-fidelity's, whose numbers equal those
    of the FID's first code.
    """

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        """Raises UserError where the weights or torch-fidelity are missing, or the file is another one."""
        if not weights.is_file():
            raise UserError(f"{weights} is missing; {MEND}")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError("torch-fidelity is missing; pip install diptych-eval[inception]") from None
        try:
            tensors = without_prefix(read_state_dict(weights)[0])
            # torch-fidelity unpickles the file it is given as it is: it gets a copy that holds tensors alone
            torch.save(tensors, copy := io.BytesIO())
            copy.seek(0)
            self._network = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy
            ).to(device)
            if wrong := of_another_kind(self._network.state_dict(), tensors):
                raise UnreadableWeights(wrong)
        except (UnreadableWeights, RuntimeError) as error:
            reason = str(error) if isinstance(error, UnreadableWeights) else misfit(error)
            raise UserError(
                f"{weights}: not the Inception weights of torch-fidelity ({reason}); {MEND}"
            ) from None
        self.device = device
        with weights.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            features, logits = self._network(images.to(self.device))
        return torch.cat([features, logits], 1)

    def pytorch_fid_features(self, images: Tensor) -> Tensor:
        """Features float32 [n, 2048] as pytorch-fid's; images: uint8 [n, 3, H, W], or float of :func:`pytorch_fid_input`."""
        with torch.inference_mode():
            seen = 2 * _pytorch_fid_resized(images.to(self.device)) - 1
            for name, layer in self._network.named_children():  # in the order in which they run
                if name != "fc":
                    seen = layer(seen)
        return seen.flatten(1)


def pytorch_fid_input(image: Image.Image) -> Tensor:
    """An RGB picture of any size as pytorch-fid shows it to Inception, float32 [3, 299, 299] in 0..1.

    Bilinear between the centres of pixels and without antialiasing, so that a large picture is sampled and not averaged:
    pytorch-fid 0.3.0, `InceptionV3.forward` with `resize_input`.
    """
    return _pytorch_fid_resized(uint8_tensor(image)[None])[0]


def _pytorch_fid_resized(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        images = images.float() / 255
    size = (INPUT_SIZE, INPUT_SIZE)
    if images.shape[-2:] == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)


def inception_score_figure(
    name: str, logits: np.ndarray, seed: int, resamples: int, splits: int = 10, **facts
) -> Figure:
    """IS (Salimans et al. 2016): exp of the mean KL divergence of the answers from their mean.

    logits [n, classes]. The value is the mean over `splits` parts in a random order, its deviation theirs, as
    the papers report it. The interval is of all pictures together, laid around the value.
    """
    if not len(logits):
        return not_run(name, "there is nothing to measure: no picture could be read")
    exponentials = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    answers = exponentials / exponentials.sum(1, keepdims=True)
    certainty = (answers * np.log(np.maximum(answers, 1e-300))).sum(1, keepdims=True)
    rows = np.concatenate([answers, certainty], 1)

    def scores(means: np.ndarray) -> np.ndarray:
        marginal = means[:, :-1]
        return np.exp(means[:, -1] - (marginal * np.log(np.maximum(marginal, 1e-300))).sum(1))

    order = np.random.default_rng((seed, len(rows))).permutation(len(rows))
    parts = np.array_split(order, min(splits, len(rows)))
    values = np.concatenate([scores(rows[part].mean(0, keepdims=True)) for part in parts])
    drawn = scores(resampled_means(rows, seed, resamples))
    low, high = interval(drawn - drawn.mean() + values.mean())
    return Figure(name, float(values.mean()), len(rows), low, high, float(values.std()), seed, **facts)
