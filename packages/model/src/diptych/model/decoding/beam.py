"""Captions by beam search, with length normalisation and diverse groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.model.decoding.caption import NextWord, WordFilter, word_log_probabilities
from diptych.model.decoding.decisions import PAPER, Decisions
from diptych.model.decoding.words import is_among_largest
from diptych.model.devices import sent
from diptych.model.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class Beams:
    """Captions of n images, b each.

    Attributes:
        ids: int64 ``[n, b, length]``, as in :class:`diptych.model.decoding.caption.Captions`.
        log_probabilities: float32 ``[n, b, length]``, the model's, of each written word given the words before it.
        scores: float64 ``[n, b]``; minus infinity where an image has fewer captions than b, which then has no words.
    """

    ids: Tensor
    log_probabilities: Tensor
    scores: Tensor

    @classmethod
    def none(cls, n: int, b: int, length: int, tokenizer: CaptionTokenizer, device: torch.device) -> Beams:
        """Return room for captions."""
        ids = torch.full((n, b, length), tokenizer.pad, device=device)
        ids[..., 0], ids[..., 1] = tokenizer.cls, tokenizer.sep
        scores = torch.full((n, b), -torch.inf, dtype=torch.float64, device=device)
        return cls(ids, torch.zeros(n, b, length, device=device), scores)

    def merge(self, images: Tensor, others: Beams) -> None:
        """Keep the b best of these captions of ``images`` (int64 ``[m]``) and of others of the same; of equally good
        ones, these."""
        scores = torch.cat([self.scores[images], others.scores], 1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[1]]
        for ours, theirs in zip(vars(self).values(), vars(others).values(), strict=True):
            ours[images] = pick(torch.cat([ours[images], theirs], 1), order)


def pick(values: Tensor, places: Tensor) -> Tensor:
    """Return ``values`` ``[n, C, ...]`` at ``places`` int64 ``[n, k]``: ``[n, k, ...]``."""
    return values[torch.arange(len(values), device=values.device)[:, None], places]


def best_places(values: Tensor, k: int) -> Tensor:
    """Return the places int64 ``[n, k]`` of the k largest ``values`` ``[n, C]``, largest first, equal ones in order."""
    among = is_among_largest(values, k)
    # how many they are is known, so a GPU need not be asked
    places = torch.nonzero_static(among, size=len(values) * k)[:, 1].view(-1, k)
    order = values.gather(1, places).argsort(dim=1, descending=True, stable=True)
    return places.gather(1, order)


@torch.no_grad()
def beam_search(
    next_word: NextWord,
    tokenizer: CaptionTokenizer,
    n: int,
    length: int,
    device: torch.device | str,
    beams: int,
    groups: int = 1,
    diversity: float = 0.0,
    length_power: float = 1.0,
    start: Sequence[int] = (),
    filter_words: WordFilter | None = None,
    decisions: Decisions = PAPER,
) -> Beams:
    """Search the best captions of n images, one for each row of ``next_word``: ``beams`` of each, best first.

    The score of a caption is the sum of its words' log-probabilities / length ** length_power, where length counts the
    words, the full stop too, ``start`` not.

    Every step continues the ``beams / groups`` likeliest unfinished captions of each group by one word. Those of the
    results that are among the ``beams / groups`` likeliest and end with a full stop, or reach the length, are
    finished; each group remembers its best ``beams / groups``. An image leaves the batch when no unfinished caption of
    it can get among them any more: a further word only lowers the sum, so none can surpass
    its present sum / (greatest length) ** length_power.

    With several groups (Vijayakumar et al. 2018) those of an image take their step one after the other, and a word
    costs ``diversity`` for each beam of an earlier group that has just taken it (Hamming diversity). The costs add up
    along a caption and steer the search; scores are without them.

    Args:
        length, start, filter_words: as in :func:`diptych.model.decoding.caption.write_captions`. Excluded words do not
            change the log-probabilities of the others.
        beams: captions per image at a time; a multiple of ``groups``.
        length_power: at least 0; 0 prefers short captions, 1 compares means.
    """
    device = torch.device(device)
    width = beams // groups
    most_words = length - 2 - len(start)
    finished = [Beams.none(n, width, length, tokenizer, device) for _ in range(groups)]

    # The unfinished captions of m images, at first of all. A group begins with one caption, of no words, beside which
    # its other beams have no chance.
    images = torch.arange(n, device=device)
    ids = torch.full((n, beams, length), tokenizer.pad, device=device)
    ids[..., : len(start) + 1] = sent(torch.tensor([tokenizer.cls, *start]), device)
    chances = torch.zeros(n, beams, length, device=device)  # log-probabilities of the words
    sums = torch.full((n, beams), -torch.inf, dtype=torch.float64, device=device)  # of chances
    sums[:, ::width] = 0
    penalised = sums.clone()  # sums less the costs of diversity
    for count in range(1, most_words + 1):
        position = len(start) + count
        written = ids.flatten(0, 1)[:, :position]
        if count == 1:  # all beams of an image are alike
            logits = next_word.logits(written[::beams])
            rows = images.repeat_interleave(beams)
            logits = logits[rows]
            next_word.keep(rows)
        else:
            logits = next_word.logits(written)
        choices = word_log_probabilities(logits, tokenizer, decisions=decisions)
        if filter_words is not None:
            choices = filter_words(written, choices)
        vocabulary = choices.shape[-1]
        choices = choices.double().view(-1, groups, width * vocabulary)

        taken = choices.new_zeros(len(images), vocabulary)  # by how many beams of the groups so far
        continued = []
        for group in range(groups):
            own = slice(group * width, (group + 1) * width)
            candidates = choices[:, group] + penalised[:, own].repeat_interleave(vocabulary, 1)
            if diversity and group:
                candidates -= diversity * taken.repeat(1, width)
            # Each beam has one full stop, so of twice as many candidates enough go on.
            places = best_places(candidates, 2 * width)
            parents, words = group * width + places // vocabulary, places % vocabulary
            new_chances = choices[:, group].gather(1, places)
            new_sums = sums.gather(1, parents) + new_chances
            new_penalised = candidates.gather(1, places)
            stops = words == tokenizer.stop

            new_ids, all_chances = pick(ids, parents[:, :width]), pick(chances, parents[:, :width])
            new_ids[..., position], new_ids[..., position + 1] = words[:, :width], tokenizer.sep
            all_chances[..., position] = new_chances[:, :width]
            unfinished = ~stops[:, :width] & (count < most_words)
            scores = (new_sums[:, :width] / count**length_power).masked_fill(unfinished, -torch.inf)
            finished[group].merge(images, Beams(new_ids, all_chances, scores))

            go_on = stops.byte().argsort(dim=1, stable=True)[:, :width]
            taken.scatter_add_(1, words.gather(1, go_on), torch.ones_like(new_sums[:, :width]))
            continued.append(
                [part.gather(1, go_on) for part in (parents, words, new_chances, new_sums, new_penalised)]
            )
        parents, words, new_chances, sums, penalised = (
            torch.cat(part, 1) for part in zip(*continued, strict=True)
        )

        best_sums = sums.view(-1, groups, width).amax(-1)
        worst_finished = torch.stack([group.scores[images, -1] for group in finished], 1)
        improvable = (best_sums / most_words**length_power > worst_finished).any(1).nonzero()[:, 0]
        if count == most_words or len(improvable) == 0:
            break
        next_word.keep((improvable[:, None] * beams + parents[improvable]).flatten())
        ids, chances = pick(ids, parents)[improvable], pick(chances, parents)[improvable]
        ids[..., position], chances[..., position] = words[improvable], new_chances[improvable].float()
        sums, penalised, images = sums[improvable], penalised[improvable], images[improvable]

    together = [
        torch.cat(part, 1) for part in zip(*(vars(group).values() for group in finished), strict=True)
    ]
    order = together[-1].argsort(dim=1, descending=True, stable=True)
    return Beams(*(pick(part, order) for part in together))
