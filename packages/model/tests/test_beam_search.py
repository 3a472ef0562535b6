"""Beam search against enumeration, a plain rewrite and Hugging Face's."""

from __future__ import annotations

import itertools

import pytest
import torch
from architectures import both_architectures

from diptych.model.decoding.beam import beam_search
from diptych.model.decoding.caption import (
    MaskedNextWord,
    PrefixNextWord,
    decode_captions,
    word_log_probabilities,
)
from diptych.model.decoding.decisions import PAPER, REFERENCE
from diptych.model.decoding.words import WordFilters

WORDS = 3  # the pretended language has so many words and the full stop


class Language:
    """A next-word model of a few words: logits drawn once for every image and beginning of a caption."""

    def __init__(self, tokenizer, images: int, spread: float, stop_bias: float = 0.0) -> None:
        self.tokenizer, self.spread, self.stop_bias = tokenizer, spread, stop_bias
        self.rows = torch.arange(images)
        self.words = [index for index in range(40, 40 + WORDS)] + [tokenizer.stop]
        self.batches: list[int] = []

    def chances(self, image: int, written: tuple[int, ...]) -> torch.Tensor:
        """Float64 ``[V]``, normalised."""
        generator = torch.Generator().manual_seed(hash((image, written)) % 2**31)
        logits = torch.full((len(self.tokenizer),), -torch.inf, dtype=torch.float64)
        logits[self.words] = self.spread * torch.randn(
            len(self.words), generator=generator, dtype=torch.float64
        )
        logits[self.tokenizer.stop] += self.stop_bias
        return logits.log_softmax(-1)

    def logits(self, ids):
        self.batches.append(len(ids))
        rows = zip(self.rows.tolist(), ids.tolist(), strict=True)
        return torch.stack([self.chances(image, tuple(written[1:])) for image, written in rows])

    def keep(self, rows):
        self.rows = self.rows[rows]


def plain_beam_search(
    chances, tokenizer, most, beams, groups=1, diversity=0.0, length_power=1.0, no_repeat=0
) -> list[tuple[float, tuple[int, ...]]]:
    """One image, every step to the end: lists, tuples and sorting."""
    width = beams // groups
    open_beams = [[((), 0.0, 0.0)] for _ in range(groups)]  # words, sum, sum less costs
    finished: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(groups)]
    for count in range(1, most + 1):
        taken: list[int] = []
        for group in range(groups):
            candidates = []
            for words, total, penalised in open_beams[group]:
                chance = chances(words)
                for word in chance.isfinite().nonzero()[:, 0].tolist():
                    longer = (*words, word)
                    windows = list(zip(*(longer[i:] for i in range(no_repeat)), strict=False))
                    if no_repeat and len(set(windows)) < len(windows):
                        continue
                    cost = diversity * taken.count(word)
                    candidates.append(
                        (longer, total + chance[word].item(), penalised + chance[word].item() - cost)
                    )
            candidates.sort(key=lambda candidate: -candidate[2])
            for words, total, _ in candidates[:width]:
                if words[-1] == tokenizer.stop or count == most:
                    finished[group].append((total / len(words) ** length_power, words))
            open_beams[group] = [c for c in candidates if c[0][-1] != tokenizer.stop][:width]
            taken += [words[-1] for words, _, _ in open_beams[group]]
    best = [sorted(group, key=lambda caption: -caption[0])[:width] for group in finished]
    return sorted((caption for group in best for caption in group), key=lambda caption: -caption[0])


def found_captions(tokenizer, result, image):
    return [
        (score, tuple(tokenizer.words(ids)))
        for score, ids in zip(result.scores[image].tolist(), result.ids[image], strict=True)
        if score > -torch.inf
    ]


def assert_same(found, expected):
    assert [words for _, words in found] == [words for _, words in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


@pytest.mark.parametrize("length_power", [0.0, 0.7, 1.0, 2.5])
def test_wide_beams_find_the_best_of_all_captions(tiny, length_power):
    """No beginning is dropped: as many beams as there are captions."""
    tokenizer, most = tiny.tokenizer, 3
    language = Language(tokenizer, 8, spread=2.0)
    result = beam_search(language, tokenizer, 8, most + 2, "cpu", 40, length_power=length_power)
    shapes = set()
    for image in range(8):
        everything = [
            (*words, *end)
            for count in range(most + 1)
            for words in itertools.product(language.words[:-1], repeat=count)
            for end in ([(tokenizer.stop,)] if count < most else [()])
        ]
        assert len(everything) == 40
        scores = [
            sum(language.chances(image, words[:i])[words[i]].item() for i in range(len(words)))
            / len(words) ** length_power
            for words in everything
        ]
        ranked = sorted(zip(scores, everything, strict=True), reverse=True)
        assert_same(found_captions(tokenizer, result, image), ranked)
        shapes.add(len(ranked[0][1]))
    assert len(shapes) > 1  # the best captions are not all of one length


@both_architectures
@torch.no_grad()
@pytest.mark.parametrize("scheme", ["prefix", "masked"])
def test_the_best_two_words_of_the_real_model(tiny, scheme):
    """As many beams as words, so that the best caption of two words is certainly found; with caches, 3 images."""
    model, tokenizer, features = tiny.model.double(), tiny.tokenizer, tiny.features.double()
    prefix = model.encode_visual_prefix(features)
    visual = model.encode_visual(features)

    def next_word():
        return (
            PrefixNextWord(model, prefix, 4)
            if scheme == "prefix"
            else MaskedNextWord(model, visual, tokenizer.mask)
        )

    vocabulary = len(tokenizer)
    result = beam_search(next_word(), tokenizer, 3, 4, "cpu", vocabulary)
    first = word_log_probabilities(next_word().logits(torch.full((3, 1), tokenizer.cls)), tokenizer)
    for image in range(3):
        each = next_word()
        each.keep(torch.full((vocabulary,), image))
        each.logits(torch.full((vocabulary, 1), tokenizer.cls))
        ids = torch.stack([torch.full((vocabulary,), tokenizer.cls), torch.arange(vocabulary)], 1)
        second = word_log_probabilities(each.logits(ids), tokenizer)
        scores = (first[image][:, None] + second) / 2
        scores[tokenizer.stop] = -torch.inf
        scores = torch.cat([scores.flatten(), first[image][[tokenizer.stop]]])
        best = int(scores.argmax())
        words = [tokenizer.stop] if best == vocabulary**2 else [best // vocabulary, best % vocabulary]
        assert tokenizer.words(result.ids[image, 0]) == words
        assert result.scores[image, 0].item() == pytest.approx(scores.max().item(), abs=1e-5)


@pytest.mark.parametrize("stop_bias", [-1.0, 0.5, 2.5])
@pytest.mark.parametrize(
    ("beams", "groups", "diversity", "no_repeat"),
    [(2, 1, 0.0, 0), (4, 1, 0.0, 0), (3, 1, 0.0, 2), (4, 2, 0.8, 0), (6, 3, 1.5, 2), (3, 3, 0.3, 0)],
)
@pytest.mark.parametrize("length_power", [0.0, 1.0, 1.7])
def test_equals_a_plain_search_that_never_stops_early(
    tiny, beams, groups, diversity, no_repeat, length_power, stop_bias
):
    tokenizer, most, images = tiny.tokenizer, 7, 6
    language = Language(tokenizer, images, spread=1.0, stop_bias=stop_bias)
    filters = WordFilters(no_repeat) if no_repeat else None
    result = beam_search(
        language,
        tokenizer,
        images,
        most + 2,
        "cpu",
        beams,
        groups,
        diversity,
        length_power,
        filter_words=filters,
    )
    for image in range(images):
        expected = plain_beam_search(
            lambda words, image=image: language.chances(image, words),
            tokenizer,
            most,
            beams,
            groups,
            diversity,
            length_power,
            no_repeat,
        )
        assert_same(found_captions(tokenizer, result, image), expected)
    if stop_bias > 2 and length_power == 0:  # images leave before the end
        assert language.batches[0] == images and len(language.batches) < most


def test_images_leave_one_by_one(tiny):
    tokenizer, most = tiny.tokenizer, 9
    language = Language(tokenizer, 12, spread=1.5, stop_bias=1.5)
    together = beam_search(language, tokenizer, 12, most + 2, "cpu", 3, length_power=0.0)
    assert len(set(language.batches[1:])) > 2
    assert language.batches[1:] == sorted(language.batches[1:], reverse=True)
    for image in range(12):
        language = Language(tokenizer, 12, spread=1.5, stop_bias=1.5)
        language.keep(torch.tensor([image]))
        alone = beam_search(language, tokenizer, 1, most + 2, "cpu", 3, length_power=0.0)
        assert alone.ids[0].equal(together.ids[image]) and alone.scores[0].equal(together.scores[image])


def test_images_do_not_leave_while_a_longer_caption_can_win(tiny):
    """A length power above 1 lets a long caption catch up late; the present score would be no bound."""
    tokenizer, most = tiny.tokenizer, 7
    late = 0
    for seed in range(20):
        language = Language(tokenizer, 1, spread=0.5, stop_bias=1.0)
        language.rows += 100 * seed
        image = int(language.rows[0])
        result = beam_search(language, tokenizer, 1, most + 2, "cpu", 3, length_power=2.0)
        expected = plain_beam_search(
            lambda words, image=image, language=language: language.chances(image, words),
            tokenizer,
            most,
            3,
            length_power=2.0,
        )
        assert_same(found_captions(tokenizer, result, 0), expected)
        early = [len(words) for _, words in expected]
        late += early[0] == most
    assert late


def test_one_beam_is_greedy(tiny):
    model, tokenizer = tiny.model.double(), tiny.tokenizer
    with torch.no_grad():
        model.word_bias[tokenizer.stop] += 1
    prefix = model.encode_visual_prefix(torch.randn(9, 16, 10, dtype=torch.float64) * 3 + 1)
    greedy = decode_captions(model, tokenizer, prefix, 10)
    beams = beam_search(PrefixNextWord(model, prefix, 10), tokenizer, 9, 10, "cpu", 1)
    # One beam goes on past a full stop with the second best word, and may find a better caption there.
    same = (beams.ids[:, 0] == greedy.ids).all(1)
    lengths = (greedy.log_probabilities != 0).sum(1)
    assert same.float().mean() > 0.5
    assert (beams.scores[:, 0] >= greedy.log_probabilities.sum(1) / lengths - 1e-6).all()
    torch.testing.assert_close(beams.log_probabilities[same, 0], greedy.log_probabilities[same])


@pytest.mark.parametrize("scheme", ["prefix", "masked"])
@pytest.mark.parametrize("decisions", [PAPER, REFERENCE])
def test_beams_with_caches_equal_beams_without(tiny, scheme, decisions):
    """Caches follow their beams through every reordering; images leave at different steps; prefix words are forced."""
    model, tokenizer = tiny.model.double(), tiny.tokenizer
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 2
        model.word_bias[tokenizer.stop] += 2
    features = torch.randn(5, 16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3 + 1
    visual, prefix = model.encode_visual(features), model.encode_visual_prefix(features)
    start = (40, 41)

    class Recomputed:
        """Every word from the beginning."""

        def __init__(self):
            self.images = torch.arange(5)

        def logits(self, ids):
            if scheme == "prefix":
                return model.caption_logits(ids, [states[self.images] for states in prefix])[:, -1]
            masks = torch.full((len(ids), 1), tokenizer.mask)
            positions = torch.full((len(ids),), ids.shape[1])
            return model.masked_caption_logits(
                torch.cat([ids, masks], 1), None, visual[self.images], positions
            )

        def keep(self, rows):
            self.images = self.images[rows]

    cached = (
        PrefixNextWord(model, prefix, 9)
        if scheme == "prefix"
        else MaskedNextWord(model, visual, tokenizer.mask)
    )
    options = {
        "groups": 2,
        "diversity": 0.5,
        "start": start,
        "filter_words": WordFilters(2),
        "decisions": decisions,
    }
    result = beam_search(cached, tokenizer, 5, 9, "cpu", 4, **options)
    expected = beam_search(Recomputed(), tokenizer, 5, 9, "cpu", 4, **options)
    assert result.ids.equal(expected.ids)
    torch.testing.assert_close(result.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert (result.ids[..., 1:3] == torch.tensor(start)).all()
    assert (result.log_probabilities[..., 1:3] == 0).all()
    sums = result.log_probabilities.double().sum(-1)
    words = (result.log_probabilities != 0).sum(-1)
    torch.testing.assert_close(sums / words, result.scores, rtol=1e-5, atol=1e-5)
    assert (result.scores.diff(dim=1) <= 0).all()
    assert len({tuple(tokenizer.words(ids)) for ids in result.ids[:, 0]}) > 2 and words.unique().numel() > 1


@torch.no_grad()
def test_beams_of_an_image_share_its_visual_keys_and_values(tiny):
    prefix = tiny.model.encode_visual_prefix(tiny.features)
    next_word = PrefixNextWord(tiny.model, prefix, 9)
    before = [keys.data_ptr() for keys, _ in next_word.keys_values]
    logits = next_word.logits(torch.full((3, 1), tiny.tokenizer.cls))
    next_word.keep(torch.arange(3).repeat_interleave(4))
    next_word.keep(torch.tensor([1, 0, 0, 3, 5, 5, 5, 4, 11, 8, 9, 9]))
    assert [keys.data_ptr() for keys, _ in next_word.keys_values] == before
    assert next_word.captions_per_image == 4
    assert next_word.logits(torch.full((12, 2), tiny.tokenizer.cls)).shape == (12, logits.shape[1])
    next_word.keep(torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]))
    assert [len(keys) for keys, _ in next_word.keys_values] == [2, 2]
    next_word.keep(torch.tensor([0, 1, 6]))
    assert [len(keys) for keys, _ in next_word.keys_values] == [3, 3]


def test_diverse_groups_write_other_words(tiny):
    """The first group is a search of its own; the stronger the cost, the less the groups share."""
    tokenizer = tiny.tokenizer
    alone = beam_search(Language(tokenizer, 12, 1.5), tokenizer, 12, 8, "cpu", 2)
    shared = []
    for diversity in (0.01, 1.0, 10.0):
        language = Language(tokenizer, 12, 1.5)
        result = beam_search(language, tokenizer, 12, 8, "cpu", 6, 3, diversity)
        for image in range(12):
            together = found_captions(tokenizer, result, image)
            assert set(found_captions(tokenizer, alone, image)) <= set(together)
        first_words = result.ids[:, :, 1]
        shared.append(sum(6 - len(set(row.tolist())) for row in first_words))
    assert shared[0] > shared[1] > shared[2]


@pytest.mark.parametrize("length_power", [0.5, 1.0])
@pytest.mark.parametrize("no_repeat", [0, 2])
def test_equals_hugging_face(tiny, length_power, no_repeat):
    """Their `generate` with the same network; "never" is their early stop with a bound like ours."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    tokenizer, most = tiny.tokenizer, 8
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=tokenizer.cls,
        eos_token_id=tokenizer.stop,
        pad_token_id=tokenizer.pad,
    )
    network = transformers.GPT2LMHeadModel(config).double().eval()
    starts = torch.tensor([[tokenizer.cls, word] for word in range(40, 60)])
    stop_bias = torch.zeros(len(tokenizer), dtype=torch.float64)
    stop_bias[tokenizer.stop] = 4.0  # for captions of many lengths

    class Bias(transformers.LogitsProcessor):
        def __call__(self, ids, scores):
            # Their processors see log-probabilities in beam search; normalise again after the bias.
            return (scores + stop_bias).log_softmax(-1)

    class NextWord:
        def logits(self, ids):
            return network(ids).logits[:, -1] + stop_bias

        def keep(self, rows):
            pass  # nothing depends on the image

    theirs = network.generate(
        starts,
        attention_mask=torch.ones_like(starts),
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=most,
        length_penalty=length_power,
        early_stopping="never",
        do_sample=False,
        logits_processor=transformers.LogitsProcessorList(
            [Bias(), *([transformers.NoRepeatNGramLogitsProcessor(no_repeat)] if no_repeat else [])]
        ),
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = set()
    for row, start in enumerate(starts):
        ours = beam_search(
            NextWord(),
            tokenizer,
            1,
            most + 3,
            "cpu",
            4,
            length_power=length_power,
            start=(int(start[1]),),
            filter_words=WordFilters(no_repeat) if no_repeat else None,
            decisions=REFERENCE,
        )
        scores = theirs.sequences_scores.view(-1, 4)[row].double()
        torch.testing.assert_close(ours.scores[0], scores, rtol=1e-5, atol=1e-5)
        for place, sequence in enumerate(theirs.sequences.view(len(starts), 4, -1)[row, :, 1:].tolist()):
            if tokenizer.stop in sequence:
                sequence = sequence[: sequence.index(tokenizer.stop) + 1]
            lengths.add(len(sequence))
            assert ours.ids[0, place, 1 : 1 + len(sequence)].tolist() == sequence
    assert len(lengths) > 3
