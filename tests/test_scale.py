"""The counts behind the hours of docs/scale-up.md: those of torch, on real tensors; and which stages have some."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scale
from benchmarks.scale import Counter, Counts, Profile, Stages, Work, caption_words

# What takes no time of a GPU, or none to speak of: docs/scale-up.md says so.
NOT_COUNTED = {"code", "detector", "scorer", "judge", "package", "report"}


@pytest.fixture(scope="module")
def stages() -> Stages:
    return Stages(Profile())


def test_flops_are_torchs_own_by_kind() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 5))
    pictures = torch.randn(2, 3, 6, 6)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            network(pictures).sum().backward()

    with FlopCounterMode(display=False) as known:
        step()
    with Counter() as counter:
        step()
    assert counter.counts.total == known.get_total_flops() > 0
    kinds = {kind for kind, _ in counter.counts.flops}
    assert kinds == {"products", "convolutions", "grouped convolutions"}
    with torch.no_grad(), Counter() as counter:
        network(pictures)
    assert counter.counts.flops["grouped convolutions", torch.float32] == 2 * (2 * 8 * 2 * 2) * (2 * 9)


def test_what_a_gpus_attention_multiplies_is_counted() -> None:
    queries = torch.randn(2, 3, 4, 8, requires_grad=True)
    with Counter() as forward:
        seen = nn.functional.scaled_dot_product_attention(queries, queries, queries)
    assert forward.counts.total == 2 * 2 * (2 * 3 * 4 * 4 * 8)
    with Counter() as backward:
        seen.sum().backward()
    assert backward.counts.total == 5 * 2 * (2 * 3 * 4 * 4 * 8)


def test_bytes_are_those_that_operations_read_and_write() -> None:
    table, places = torch.randn(1000, 4), torch.tensor([1, 2])
    with Counter() as counter:
        table.t().expand(4, 1000)
    assert (counter.counts.memory, counter.counts.operations) == (0, 0)
    with Counter() as counter:
        table[places]
    assert (counter.counts.memory, counter.counts.operations) == (2 * 2 * 4 * 4, 1)  # not the whole table
    with Counter() as counter:
        ones = table.new_ones(4, 4)
    assert counter.counts.memory == 4 * 4 * 4  # nothing of what it is like
    with Counter() as counter:
        torch.mm(table, ones)
    assert counter.counts.memory == 4 * (1000 * 4 + 4 * 4 + 1000 * 4)
    with Counter() as counter:
        table.to(torch.bfloat16)
    assert counter.counts.memory == 1000 * 4 * (4 + 2)


def test_the_slowest_floor_counts_and_the_optimizer_comes_besides() -> None:
    share, peak = scale.SHARES["products", torch.bfloat16]
    counts = Counts(memory=scale.BANDWIDTH * scale.MEMORY_SHARE * 2, operations=3)
    counts.flops["products", torch.bfloat16] = share * peak
    assert counts.floors() == pytest.approx({"arithmetic": 1, "memory": 2, "host": 3 * scale.HANDING})
    assert counts.seconds(1) == pytest.approx(2)
    counts.trained = int(scale.BANDWIDTH * scale.MEMORY_SHARE / scale.UPDATE_BYTES)
    alone, among = counts.seconds(1), counts.seconds(8)
    assert alone == pytest.approx(3)
    assert among > alone
    work = Work("stage", "work", 1, lambda gpus: counts, "step")
    assert (work.hours(1)[1], work.hours(8)[1]) == ("memory", "weights")


def test_pieces_are_dealt_steps_are_counted_anew_and_the_rest_stays_alone() -> None:
    def count(gpus: int) -> Counts:
        counts = Counts()
        counts.flops["products", torch.bfloat16] = (
            math.prod(scale.SHARES["products", torch.bfloat16]) * 3600 / gpus
        )
        return counts

    for kind, expected in (("step", [2, 0.25]), ("pieces", [2, 0.25]), ("alone", [2, 2])):
        work = Work("stage", "work", 2, count, kind)
        assert [work.hours(gpus)[0] for gpus in (1, 8)] == pytest.approx(expected), kind
    assert scale.on_disk("stage", "work", scale.DISK * 7200).hours(8) == (pytest.approx(2), "disk")


def test_every_stage_of_the_pipeline_is_counted_or_named(stages: Stages) -> None:
    known = set(YAML(typ="safe").load(Path("dvc.yaml"))["stages"])
    counted = {work.stage for work in stages.works()} - {scale.PRETRAINING}
    assert counted | NOT_COUNTED == known
    assert not counted & NOT_COUNTED


def test_the_works_are_the_profiles(stages: Stages) -> None:
    times = {(work.stage, work.name): work.times for work in stages.works()}
    # UMT 5.1: 200,000 iterations, half of them captions; 100,000 of each task
    assert times["train_token", "caption step"] == times["train_token", "paint step"] == 100_000
    assert times["train_sequence", "SCST step"] == times["train_sequence", "CLIP step"] == 100_000
    assert times["extract", "batch"] * stages.profile.extract.batch_size == 123_287
    assert times["generate", "captions"] * stages.profile.generate.batch_size == 5_000
    assert times["generate", "paintings"] * stages.profile.generate.batch_size == 30_000
    # the judge looks at five blurs of three kinds, the scorer at none
    assert times["evaluate", "pictures by the judge"] == 5 * times["evaluate", "pictures by the scorer"]


def test_captions_are_as_long_as_said() -> None:
    words = caption_words(4000)
    assert sum(words) / len(words) == pytest.approx(10.5, abs=0.1)
    assert min(words) >= 6
    assert max(words) <= 16


def test_a_pass_for_each_word_until_all_captions_are_done(stages: Stages) -> None:
    """Captions of one picture and of two take as many passes as the longest has words, with fewer rows each time."""
    few, many = stages.written(1, 1, 12), stages.written(2, 1, 12)
    assert few.total < many.total < 3 * few.total
    whole, words_alone = many, stages.written(2, 1, 12, see=False)
    assert whole.total > words_alone.total


def test_a_pretraining_step_is_the_mean_of_its_tasks_as_often_as_they_are_drawn(stages: Stages, monkeypatch) -> None:
    taken = []

    def counted(shapes, pieces, network) -> Counts:
        taken.append(pieces[0].loss.__qualname__)
        counts = Counts()
        counts.flops["products", torch.bfloat16] = {"cell": 9.0, "word": 3.0, "matching": 6.0}[kind(taken[-1])]
        return counts

    def kind(name: str) -> str:
        return next(each for each in ("cell", "word", "matching") if f"{each}_pieces" in name)

    monkeypatch.setattr(scale, "counted_step", counted)
    found = stages.pretraining_step(8)
    assert sorted(map(kind, taken)) == ["cell", "matching", "word"]
    assert found.flops["products", torch.bfloat16] == pytest.approx(6.0), "a third of the steps each"
