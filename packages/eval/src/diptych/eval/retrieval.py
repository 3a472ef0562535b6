"""Does a picture match its caption? CLIPScore and R-precision on embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diptych.eval.errors import UserError


def clip_scores(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """CLIPScore of pairs: 2.5 max(cos, 0), float32 [n] in 0..2.5; tables show it times 100.

    Both inputs are unit vectors [n, E]; the texts begin with `diptych.eval.clip.PROMPT` (UMT section 5.1).
    """
    return 2.5 * (image_embeddings.float() * text_embeddings.float()).sum(-1).clamp(min=0)


def r_precision(
    image_embeddings: Tensor, text_embeddings: Tensor, seed: int, negatives: int = 99, folds: int = 10
) -> tuple[float, float]:
    """R-precision-easy (X-LXMERT, appendix): how often a picture's own caption wins.

    Row i of the unit vectors [n, E] is picture i and its true caption. Each picture ranks it against
    `negatives` captions of other pictures, drawn without repetition. An equally good caption shares
    the win, so an encoder that maps everything to one vector scores 1 / (negatives + 1).

    The drawing is repeated `folds` times; returned are mean and standard deviation over the folds
    (fractions 0..1). Raises UserError for fewer than `negatives` + 1 pictures.
    """
    count = len(image_embeddings)
    if count <= negatives:
        raise UserError(
            f"R-precision with {negatives} negatives needs {negatives + 1} pictures, there are {count}"
        )
    similarity = (image_embeddings.double() @ text_embeddings.double().T).cpu()
    own = similarity.diagonal()[:, None]
    shares = []
    for fold in range(folds):
        ranked = similarity.gather(1, torch.from_numpy(random_negatives(count, negatives, seed, fold)))
        # Identical captions differ by rounding only.
        better, equal = ranked > own + 1e-9, (ranked - own).abs() <= 1e-9
        wins = (~better.any(1)).double() / (1 + equal.sum(1))
        shares.append(float(wins.mean()))
    return float(np.mean(shares)), float(np.std(shares))


def random_negatives(count: int, negatives: int, seed: int, fold: int) -> np.ndarray:
    """For each picture the indices int64 [count, negatives] of other pictures, without repetition."""
    generator = np.random.default_rng((seed, fold))
    rows = np.stack([generator.choice(count - 1, negatives, replace=False) for _ in range(count)])
    # Numbers from a picture's own index on move up by one, which leaves it out.
    return rows + (rows >= np.arange(count)[:, None])
