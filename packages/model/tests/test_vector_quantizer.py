"""The codebook that follows what it quantizes."""

from __future__ import annotations

import pytest
import torch

from diptych.model.networks.vector_quantizer import VectorQuantizer
from diptych.model.training.contracts import RunningMeans

K, D = 24, 5


@pytest.fixture
def quantizer() -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(K, D)


def maps(seed: int, n: int = 6) -> torch.Tensor:
    return torch.randn(n, D, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_code_is_taken_and_gradients_pass_straight_through(quantizer: VectorQuantizer) -> None:
    vectors = maps(1).requires_grad_()
    found = quantizer.eval()(vectors)
    distances = torch.cdist(vectors.permute(0, 2, 3, 1).flatten(0, 2), quantizer.embedding)
    assert found.codes.flatten().equal(distances.argmin(1))
    assert torch.allclose(found.vectors, quantizer.embedding[found.codes].permute(0, 3, 1, 2), atol=1e-6)
    assert float(found.commitment.detach()) == pytest.approx(float(distances.detach().min(1).values.square().mean()) / D, rel=1e-4)
    (found.vectors * 3).sum().backward()
    assert vectors.grad is not None and vectors.grad.eq(3).all()


def test_it_moves_as_vector_quantize_pytorch_s(quantizer: VectorQuantizer) -> None:
    """The same start, the same vectors: the same codes, losses and codebook step by step."""
    others = pytest.importorskip("vector_quantize_pytorch")
    other = others.VectorQuantize(
        dim=D,
        codebook_size=K,
        decay=0.9,
        commitment_weight=1.0,
        accept_image_fmap=True,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    )
    start = maps(2).permute(0, 2, 3, 1).flatten(0, 2)[:K]
    quantizer.upkeep(decay=0.9)
    quantizer.start(start, torch.Generator().manual_seed(0))
    book = other._codebook
    book.embed.data.copy_(quantizer.embedding[None])
    book.embed_avg.data.copy_(quantizer.sums[None])
    book.cluster_size.data.fill_(1.0)
    for step in range(5):
        vectors = maps(10 + step)
        ours = quantizer.train()(vectors)
        theirs = other.train()(vectors)
        assert ours.codes.equal(theirs[1].view_as(ours.codes))
        assert float(ours.commitment) == pytest.approx(float(theirs[2].detach()), rel=1e-5)
        quantizer.move_means()
        assert torch.allclose(quantizer.counts, book.cluster_size[0], atol=1e-5)
        assert torch.allclose(quantizer.embedding, book.embed[0], atol=1e-5)


def test_pieces_of_a_step_move_it_as_the_whole_does(quantizer: VectorQuantizer) -> None:
    vectors, whole = maps(3), VectorQuantizer(K, D)
    whole.load_state_dict(quantizer.state_dict())
    offered = (torch.tensor([3, 40, 90]), torch.tensor([0, 1, 2]))
    for each in (whole, quantizer):
        each.upkeep(decay=0.5, dead_share=0.5, candidates=3)
    whole(vectors, offered)
    quantizer(vectors[:2], (torch.tensor([3]), torch.tensor([0])))
    quantizer(vectors[2:], (torch.tensor([40 - 32, 90 - 32]), torch.tensor([1, 2])))
    assert isinstance(quantizer, RunningMeans)
    for own, of_whole in zip(quantizer.running_sums(), whole.running_sums(), strict=True):
        assert torch.allclose(own, of_whole, atol=1e-6)
    for each in (whole, quantizer):
        each.move_means()
        assert not any(tensor.any() for tensor in each.running_sums())
    assert torch.allclose(whole.embedding, quantizer.embedding, atol=1e-5)


def test_it_starts_from_the_data(quantizer: VectorQuantizer) -> None:
    vectors = maps(4).permute(0, 2, 3, 1).flatten(0, 2)
    quantizer.start(vectors, torch.Generator().manual_seed(1))
    chosen = (quantizer.embedding[:, None] == vectors).all(-1)
    assert chosen.any(1).all() and len(set(chosen.int().argmax(1).tolist())) == K
    quantizer.start(vectors[:7], torch.Generator().manual_seed(1))  # fewer than codes: some are there more than once
    assert {tuple(row.tolist()) for row in quantizer.embedding} == {tuple(row.tolist()) for row in vectors[:7]}


def test_dead_codes_are_replaced_by_vectors_of_the_batch_and_by_the_plain_rule_are_not() -> None:
    """From a random start far from the data a few codes take everything."""
    used = {}
    for dead_share in (0.0, 0.1):
        torch.manual_seed(1)
        quantizer = VectorQuantizer(K, D)
        quantizer.upkeep(decay=0.9, dead_share=dead_share, candidates=8 if dead_share else 0)
        for step in range(60):
            vectors = maps(100 + step) * 0.1 + 3
            chosen = torch.randperm(96, generator=torch.Generator().manual_seed(step))[:8]
            quantizer(vectors, (chosen, torch.arange(8)) if dead_share else None)
            quantizer.move_means()
        used[dead_share] = len(set(quantizer(maps(5) * 0.1 + 3).codes.flatten().tolist()))
    assert used[0.0] <= 3 and used[0.1] >= 20, used


def test_evaluation_moves_nothing(quantizer: VectorQuantizer) -> None:
    quantizer.eval()(maps(6))
    assert not any(tensor.any() for tensor in quantizer.running_sums())


def test_a_checkpoint_has_all_that_the_means_need(quantizer: VectorQuantizer) -> None:
    quantizer(maps(7))
    quantizer.move_means()
    again = VectorQuantizer(K, D)
    again.load_state_dict(quantizer.state_dict())
    for each in (quantizer, again):
        each(maps(8))
        each.move_means()
    assert quantizer.embedding.equal(again.embedding)
