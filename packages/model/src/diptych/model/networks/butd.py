"""BUTD's captioner (Anderson et al. 2018, section 3.2): an LSTM that looks, attention, an LSTM that speaks.

It reads any set of vectors that describes an image, and knows no places: grid features, or those of a detector's regions, as the paper
has them.

Letters in shape comments: n images, c captions of each, t words, k vectors of an image, D their width, h width of both LSTMs, a of the
attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.errors import UserError
from diptych.model.networks.config_files import CONFIG_FOLDER, check_fields, read_config_file

SIZES = ("smoke", "toybox", "base")


@dataclass(frozen=True)
class BUTDConfig:
    """Shape of a :class:`BUTD`; the paper's in brackets.

    Attributes:
        feature_dim: D, width of a vector of the image [2,048].
        vocab_size: words.
        word_width: of a word's embedding [1,000].
        hidden_size: h, of both LSTMs [1,000].
        attention_size: a [512].
        dropout: of word embeddings and of the state that words are read from [0.5, by public code].
    """

    feature_dim: int
    vocab_size: int
    word_width: int
    hidden_size: int
    attention_size: int
    dropout: float

    def __post_init__(self) -> None:
        check_fields(self, "BUTD config")


def named_config(name: str, **sizes: Any) -> BUTDConfig:
    """The size ``name`` of ``configs/`` (smoke, toybox, base) for features and a vocabulary: ``feature_dim``, ``vocab_size``.

    Raises:
        UserError: an unknown name or key.
    """
    if name not in SIZES:
        raise UserError(f"no BUTD is named {name!r}; use one of {', '.join(SIZES)}")
    return read_config(CONFIG_FOLDER / f"butd_{name}.json", **sizes)


def read_config(file: Path, **changes: Any) -> BUTDConfig:
    """The config in the JSON ``file``, with ``changes``; a UserError that names the file, or the key, that is missing or wrong."""
    return read_config_file(BUTDConfig, file, "BUTD", **changes)


@dataclass(frozen=True)
class Seen:
    """n images, read.

    Attributes:
        vectors: ``[n, k, D]``.
        keys: what attention compares them by, ``[n, k, a]``.
        mean: of the vectors, ``[n, D]``.
    """

    vectors: Tensor
    keys: Tensor
    mean: Tensor

    def __len__(self) -> int:
        """n."""
        return len(self.vectors)

    def rows(self, rows: Tensor) -> Seen:
        """Some of them."""
        return Seen(self.vectors[rows], self.keys[rows], self.mean[rows])

    def detach(self) -> Seen:
        """The same without gradient."""
        return Seen(self.vectors.detach(), self.keys.detach(), self.mean.detach())


class BUTD(nn.Module):
    """Vectors of an image and the words so far to what word comes next."""

    def __init__(self, config: BUTDConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden, attention = config.word_width, config.hidden_size, config.attention_size
        self.words = nn.Embedding(config.vocab_size, width)
        self.looking = nn.LSTMCell(hidden + config.feature_dim + width, hidden)
        self.keys = nn.Linear(config.feature_dim, attention, bias=False)
        self.query = nn.Linear(hidden, attention, bias=False)
        self.relevance = nn.Linear(attention, 1, bias=False)
        self.speaking = nn.LSTMCell(config.feature_dim + hidden, hidden)
        self.word_head = nn.Linear(hidden, config.vocab_size)

    def read(self, vectors: Tensor) -> Seen:
        """Vectors of images ``[n, k, D]``.

        Raises:
            UserError: they are of another width.
        """
        if vectors.shape[-1] != self.config.feature_dim:
            raise UserError(
                f"image features of width {vectors.shape[-1]}, but this captioner was built for {self.config.feature_dim}; "
                "extract with the detector it was trained with"
            )
        return Seen(vectors, self.keys(vectors), vectors.mean(1))

    def start(self, rows: int, like: Tensor) -> Tensor:
        """The state before the first word of ``rows`` captions: zeros ``[4, rows, h]``, of both LSTMs the output and the cell."""
        return like.new_zeros(4, rows, self.config.hidden_size)

    def step(self, words: Tensor, state: Tensor, seen: Seen) -> Tensor:
        """The state after one more word.

        Args:
            words: embedded ``[n * c, word width]``, of c captions of each image side by side.
            state: ``[4, n * c, h]``.
        """
        count, images = len(words), len(seen)
        captions = count // images
        looked, looked_cell, spoken, spoken_cell = state
        mean = seen.mean.repeat_interleave(captions, 0) if captions > 1 else seen.mean
        looked, looked_cell = self.looking(torch.cat([spoken, mean, words], 1), (looked, looked_cell))  # (2)
        query = self.query(looked).view(images, captions, 1, -1)
        shares = self.relevance((seen.keys[:, None] + query).tanh())[..., 0].softmax(
            -1
        )  # [n, c, k]; (3), (4)
        attended = (shares @ seen.vectors).flatten(0, 1)  # [n * c, D]; (5)
        spoken, spoken_cell = self.speaking(torch.cat([attended, looked], 1), (spoken, spoken_cell))  # (6)
        return torch.stack([looked, looked_cell, spoken, spoken_cell])

    def embed(self, ids: Tensor) -> Tensor:
        """Words int64 ``[...]`` as ``[..., word width]``."""
        return F.dropout(self.words(ids), self.config.dropout, self.training)

    def logits(self, spoken: Tensor) -> Tensor:
        """Outputs of the LSTM that speaks ``[..., h]`` to logits over the words ``[..., V]`` (7)."""
        return self.word_head(F.dropout(spoken, self.config.dropout, self.training))

    def caption_states(self, ids: Tensor, seen: Seen) -> Tensor:
        """After each word of captions int64 ``[n * c, t]``, c of each image side by side: what the next is read from,
        ``[n * c, t, h]``."""
        words, state = self.embed(ids), self.start(len(ids), seen.vectors)
        spoken = []
        for place in range(ids.shape[1]):
            state = self.step(words[:, place], state, seen)
            spoken.append(state[2])
        return torch.stack(spoken, 1)
