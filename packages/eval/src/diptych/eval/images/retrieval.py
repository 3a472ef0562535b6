"""Does a picture find its caption among others? R-precision on embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diptych.eval.errors import UserError

if TYPE_CHECKING:
    from diptych.eval.words import Swapped

# similarities (float64) that are in memory at a time
_CHUNK = 1 << 23
# identical captions differ by rounding only
_EQUAL = 1e-9


def r_precision(
    image_embeddings: Tensor, text_embeddings: Tensor, seed: int, negatives: int = 99, folds: int = 10
) -> tuple[float, float]:
    """R-precision-easy (X-LXMERT, appendix E.1): mean over all pictures, and standard deviation over folds of them.

    See :func:`r_precision_wins` and :func:`fold_deviation`; both are fractions 0..1.
    """
    wins = r_precision_wins(image_embeddings, text_embeddings, seed, negatives, folds)
    return float(wins.mean()), fold_deviation(wins, seed, folds)


def r_precision_wins(
    image_embeddings: Tensor, text_embeddings: Tensor, seed: int, negatives: int = 99, drawings: int = 10
) -> np.ndarray:
    """How often each picture's own caption wins, float64 [n] in 0..1.

    Row i of the unit vectors [n, E] is picture i and its true caption. Each picture ranks it against
    `negatives` captions of other pictures, drawn without repetition, `drawings` times. An equally good caption
    shares the win, so an encoder that maps everything to one vector scores 1 / (negatives + 1).

    Raises UserError for fewer than `negatives` + 1 pictures.
    """
    count = len(image_embeddings)
    if count <= negatives:
        raise UserError(
            f"R-precision with {negatives} negatives needs {negatives + 1} pictures, there are {count}"
        )
    images, texts = image_embeddings.double().cpu(), text_embeddings.double().cpu()
    drawn = [torch.from_numpy(random_negatives(count, negatives, seed, number)) for number in range(drawings)]
    wins = torch.zeros(count, dtype=torch.float64)
    step = max(1, _CHUNK // count)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        similarity = images[rows] @ texts.T  # [rows, n]
        own = similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))]
        for chosen in drawn:
            wins[rows] += shared_wins(own, similarity.gather(1, chosen[rows]))
    return (wins / drawings).numpy()


def shared_wins(own: Tensor, others: Tensor) -> Tensor:
    """1 where own [n] is above all of others [n, k], 1 / (1 + equals) where some are equal, else 0."""
    better, equal = others > own[:, None] + _EQUAL, (others - own[:, None]).abs() <= _EQUAL
    return (~better.any(1)).double() / (1 + equal.sum(1))


def fold_deviation(wins: np.ndarray, seed: int, folds: int = 10) -> float:
    """Standard deviation of the means of `folds` random parts of the pictures, as Xu et al. (2018) report it."""
    order = np.random.default_rng((seed, len(wins))).permutation(len(wins))
    return float(np.std([wins[part].mean() for part in np.array_split(order, min(folds, len(wins)))]))


def random_negatives(count: int, negatives: int, seed: int, fold: int) -> np.ndarray:
    """For each picture the indices int64 [count, negatives] of other pictures, without repetition."""
    generator = np.random.default_rng((seed, fold))
    rows = np.stack([generator.choice(count - 1, negatives, replace=False) for _ in range(count)])
    # Numbers from a picture's own index on move up by one, which leaves it out.
    return rows + (rows >= np.arange(count)[:, None])


def hard_wins(
    image_embeddings: Tensor, text_embeddings: Tensor, swapped: Sequence[Swapped], wrong: Tensor
) -> np.ndarray:
    """R-precision-hard: whether the picture of each swapped caption prefers its own, float64 [len(swapped)].

    `image_embeddings` and `text_embeddings` [n, E] are those of all pictures and their captions, `wrong`
    [sum of negatives, E] those of the swapped captions' negatives in their order; all unit vectors.
    """
    wins, start = [], 0
    for one in swapped:
        picture = image_embeddings[one.index].double()
        others = wrong[start : start + len(one.negatives)].double() @ picture
        start += len(one.negatives)
        own = (picture @ text_embeddings[one.index].double())[None]
        wins.append(float(shared_wins(own, others[None])))
    return np.array(wins)
