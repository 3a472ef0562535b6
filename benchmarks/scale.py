"""Hours and money of the profile coco on one H100 and on eight, counted and not run, and what grows how with more pictures.

`python -m benchmarks.scale [--price 2.5] [--only STAGE] [--parts]`. A step of each training and a batch of pictures of each other stage
run on tensors without numbers (:mod:`diptych.model.training.memory`), as large and as often as pipelines/conf/profile/coco.yaml says.
Counted are the FLOPs, by torch's own formulas (those of its FlopCounterMode, here by kind of arithmetic), the bytes that operations read
and write, and the operations. A step takes as long as the slowest of three:

| floor | is |
| --- | --- |
| arithmetic | FLOPs at a share of the GPU's peak that is stated for their kind |
| memory | bytes that all operations read and write, one after the other as PyTorch runs them, at a share of the GPU's bandwidth |
| host | operations, as fast as Python hands them to a GPU |

Besides ("weights"), a training step reads and writes weights, gradients and the optimizer's means, and of several processes each sums
its gradients with the others'. A step on eight GPUs is counted anew, with an eighth of the batch. What is reached is stated at the head of this file
and printed; these are assumptions that no GPU has confirmed. Figures are in `benchmarks/results/scale.json`. It takes about two minutes
on one core. `--parts` shows what each stage consists of.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks.figures import record
from benchmarks.memory import Pictures, judge, numbered_tokenizer, on_meta
from diptych.eval.images.metrics import BLUR_RADII, ImageSettings
from diptych.eval.scorers.clip import Clip
from diptych.eval.scorers.preprocessing import architecture_of, preprocessing_of
from diptych.eval.words import CATEGORIES
from diptych.features.detector import visual_genome
from diptych.features.detector.visual_genome import VisualGenomeConfig, VisualGenomeDetector
from diptych.features.grid import CELLS
from diptych.model.decoding.caption import next_word_of, word_log_probabilities
from diptych.model.decoding.decode import paint_captions
from diptych.model.devices import Texts
from diptych.model.networks import image_generator
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import named_config
from diptych.model.networks.discriminator import Discriminator
from diptych.model.networks.image_generator import ImageGenerator
from diptych.model.objectives.perceptual import ResNetEncoder
from diptych.model.objectives.scst import UnifiedPolicy
from diptych.model.precision import autocast_context
from diptych.model.training.contracts import Piece
from diptych.model.training.image_generator import ImageGeneratorSteps
from diptych.model.training.memory import Shapes, like_a_gpu
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.pretraining import PretrainingSteps
from diptych.model.training.sequence import SequenceSteps, Task
from diptych.model.training.sequence_evaluation import BATCH_SIZE as EVALUATION_BATCH
from diptych.model.training.token import TokenSteps
from pipelines.cluster import ClusterParams
from pipelines.extract import ExtractParams
from pipelines.image_generator import BATCH_SIZE as REPAINTED_BATCH
from pipelines.image_generator import ImageGeneratorParams
from pipelines.judge import JudgeParams
from pipelines.measuring.drawn import Sample
from pipelines.measuring.figures import FRECHET_CLIPS, KINDS, EvaluateParams
from pipelines.measuring.generate_params import GenerateParams
from pipelines.runner.params import Machine, provided_by, read_params, read_section
from pipelines.runner.profile import write_profile
from pipelines.scorer import ScorerParams
from pipelines.train_sequence import TrainSequenceParams
from pipelines.train_token import TrainTokenParams
from pipelines.x_lxmert.params import Params as XLXMERTParams

T = TypeVar("T")

# An H100 (SXM) by its data sheet: FLOP/s without sparsity, bytes a second, and bytes a second to other GPUs in one direction.
BFLOAT16, TF32, FLOAT32, BANDWIDTH, LINK = 989e12, 495e12, 67e12, 3.35e12, 450e9
# What of it is reached. Grouped convolutions have few channels to multiply at a time. torch multiplies float32 matrices in float32
# and convolves in TF32, where nothing else is asked for.
SHARES: dict[tuple[str, torch.dtype], tuple[float, float]] = {
    ("products", torch.bfloat16): (0.40, BFLOAT16),
    ("convolutions", torch.bfloat16): (0.20, BFLOAT16),
    ("grouped convolutions", torch.bfloat16): (0.05, BFLOAT16),
    ("products", torch.float32): (0.60, FLOAT32),
    ("convolutions", torch.float32): (0.20, TF32),
    ("grouped convolutions", torch.float32): (0.05, TF32),
}
MEMORY_SHARE = LINK_SHARE = 0.6
# Seconds between two operations that Python hands over, and bytes a second of a disk.
HANDING, DISK = 5e-6, 2e9
# AdamW reads a weight, its gradient and two means and writes three of them, all float32; the gradients' norm reads them once more.
UPDATE_BYTES = 32
# Gradients are laid side by side before they are summed, and laid back.
SUM_BYTES = 16
AVERAGE_BYTES = 12
GPUS = 8

# COCO 2014 by Karpathy's splits; nearly all pictures are of this size, or as high as this is wide.
SPLITS = {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000}
PICTURE = (640, 480)
PICTURE_BYTES = 19e9 / 123_287  # train2014.zip has 13 GB, val2014.zip 6
CAPTIONS_PER_PICTURE = 5
# Words of a caption: mean, standard deviation, fewest, most.
WORDS = (10.5, 2.4, 6, 16)
PRETRAINING = "X-LXMERT's pretraining"
GROWTH = (1, 10, 100)
MANY = 100_000_000
TOKENS_BYTES = 2 * 32 * 32  # L-Verse's, as its store keeps them


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(query_shape: Any, key_shape: Any, value_shape: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(gradient_shape: Any, query_shape: Any, key_shape: Any, value_shape: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient_shape, query_shape, key_shape, value_shape)


@dataclass
class Counts:
    """Of a piece of work on one GPU.

    Attributes:
        flops: by kind and dtype. memory: bytes read and written. operations: how many. trained: weights that get gradients.
        averaged: weights of which an average is kept.
    """

    flops: dict[tuple[str, torch.dtype], float] = field(default_factory=lambda: defaultdict(float))
    memory: float = 0.0
    operations: int = 0
    trained: int = 0
    averaged: int = 0

    @property
    def total(self) -> float:
        """FLOPs of all kinds."""
        return sum(self.flops.values())

    def forget(self) -> None:
        """Begin again."""
        self.flops.clear()
        self.memory, self.operations = 0.0, 0

    def floors(self) -> dict[str, float]:
        """Seconds."""
        arithmetic = sum(number / math.prod(SHARES[kind]) for kind, number in self.flops.items())
        return {
            "arithmetic": arithmetic,
            "memory": self.memory / (BANDWIDTH * MEMORY_SHARE),
            "host": self.operations * HANDING,
        }

    def seconds(self, processes: int) -> float:
        """Of one of so many processes."""
        update = self.trained * UPDATE_BYTES + self.averaged * AVERAGE_BYTES
        summing = 0.0
        if processes > 1:
            update += self.trained * SUM_BYTES
            summing = self.trained * 4 * 2 * (processes - 1) / processes / (LINK * LINK_SHARE)
        return max(self.floors().values()) + update / (BANDWIDTH * MEMORY_SHARE) + summing


class Counter(TorchDispatchMode):
    """Counts what runs inside it."""

    # They read of a table as much as they write.
    LOOK_UPS = (torch.ops.aten.index, torch.ops.aten.index_select, torch.ops.aten.gather, torch.ops.aten.embedding)

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        packet = function._overloadpacket
        name = packet.__name__
        if function.is_view or not made or name == "detach" or "empty" in name:
            return result
        written, read = sum(map(_bytes, made)), sum(map(_bytes, given))
        if packet in self.LOOK_UPS:
            read = written
        elif name.startswith("new_") or name.endswith("_like"):  # of another tensor they take the shape
            read = 0
        self.counts.memory += written + read
        self.counts.operations += 1
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=result)
            self.counts.flops[self._kind(packet, args), given[0].dtype] += flops
        return result

    @staticmethod
    def _kind(packet: Any, args: Any) -> str:
        if packet is torch.ops.aten.convolution:
            groups = args[8]
        elif packet is torch.ops.aten.convolution_backward:
            groups = args[9]
        else:
            return "products"
        return "grouped convolutions" if groups > 1 else "convolutions"


def _bytes(tensor: Tensor) -> int:
    """An expanded tensor has no more than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextmanager
def counting(shapes: Shapes | None, gradients: bool = False, precision: str = "bfloat16") -> Iterator[Counts]:
    """Count what runs inside, in autocast to ``precision`` where no gradients are taken; steps of trainings bring their own. Without
    ``shapes`` tensors that are made inside have numbers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused layers of nn.TransformerEncoder have no formula
    try:
        with shapes or nullcontext(), like_a_gpu(), Counter() as counter:
            if gradients:
                yield counter.counts
            else:
                with torch.no_grad(), autocast_context("cpu", precision):
                    yield counter.counts
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def counted_step(shapes: Shapes, pieces: Sequence[Piece], *networks: nn.Module, averaged: nn.Module | None = None) -> Counts:
    """A training step of networks that learn."""
    with counting(shapes, gradients=True) as counts:
        add_gradients(pieces)
    for network in networks:
        for weight in network.parameters():
            if weight.grad is not None:
                counts.trained += weight.numel()
                weight.grad = None
    if averaged is not None:
        counts.averaged = sum(weight.numel() for weight in averaged.parameters())
    return counts


@dataclass(frozen=True)
class Work:
    """A part of a stage.

    Attributes:
        times: how often it is done. count: of once, on one of so many GPUs.
        divided: step: several GPUs share each; pieces: they share them out; alone: it stays on one.
        disk: bytes read and written on a disk, instead of what is counted.
    """

    stage: str
    name: str
    times: float
    count: Callable[[int], Counts]
    divided: str
    disk: float = 0.0

    def hours(self, gpus: int) -> tuple[float, str]:
        """And what decides them."""
        if self.disk:
            return self.disk / DISK / 3600, "disk"
        counts = self.count(gpus if self.divided == "step" else 1)
        repeated = self.times / gpus if self.divided == "pieces" else self.times
        floors = counts.floors()
        seconds = counts.seconds(gpus if self.divided == "step" else 1)
        parts = {**floors, "weights": seconds - max(floors.values())}
        return repeated * seconds / 3600, max(parts, key=lambda name: parts[name])

    @property
    def flops(self) -> float:
        """Of all, on one GPU."""
        return 0.0 if self.disk else self.times * self.count(1).total


def on_disk(stage: str, name: str, size: float) -> Work:
    """Reading and writing so many bytes."""
    return Work(stage, name, 1, lambda gpus: Counts(), "alone", size)


class Captioned(Pictures):
    """As many pictures as a batch has, with captions as long as COCO's."""

    def __init__(self, count: int, cells: int, codes: int, width: int) -> None:
        super().__init__(count, cells, codes, width)
        self.lengths = caption_words(count)

    def captions(self, index: int) -> list[str]:
        return [" ".join(f"w{word}" for word in range(self.lengths[index])) + "."]


def caption_words(count: int) -> list[int]:
    """How many words each caption has, full stop not counted."""
    mean, deviation, fewest, most = WORDS
    drawn = mean + deviation * torch.randn(count, generator=torch.Generator().manual_seed(0))
    return drawn.round().clamp(fewest, most).long().tolist()


class Profile:
    """The sections of coco.yaml, as the stages read them."""

    def __init__(self, name: str = "coco") -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.file = Path(folder) / "params.yaml"
            write_profile(name, self.file)
            self.values = read_params(self.file)
        machine = self.section(Machine, "machine", {})
        self.provided = provided_by(machine, self.values["seed"])
        # what `auto` is on a GPU
        self.provided["precision"] = "bfloat16"
        self.extract = self.section(ExtractParams, "extract")
        self.cluster = self.section(ClusterParams, "cluster")
        self.image_generator = self.section(ImageGeneratorParams, "image_generator")
        self.scorer = self.section(ScorerParams, "scorer")
        self.judge = self.section(JudgeParams, "judge")
        self.token = self.section(TrainTokenParams, "train_token")
        self.sequence = self.section(TrainSequenceParams, "train_sequence")
        self.generate = self.section(GenerateParams, "generate")
        self.evaluate = self.section(EvaluateParams, "evaluate")
        self.x_lxmert = self.section(XLXMERTParams, "x_lxmert")
        self.shard_size = self.values["shard"]["shard_size"]
        self.splits = dict(SPLITS)
        if self.values["dataset"]["coco"]["restval"]:
            self.splits["train"] += self.splits.pop("restval")

    def section(self, kind: type[T], key: str, provided: Mapping[str, Any] | None = None) -> T:
        return read_section(kind, key, self.values, self.file, self.provided if provided is None else provided)

    @property
    def pictures(self) -> int:
        """Of all splits."""
        return sum(self.splits.values())

    def count(self, sample: Sample) -> int:
        """Pictures of a sample."""
        known = sum(self.splits.get(split, 0) for split in sample.splits)
        return known if sample.limit is None else min(known, sample.limit)


class Stages:
    """The works of all stages; each network is built once."""

    def __init__(self, profile: Profile) -> None:
        self.profile, self.shapes = profile, Shapes()
        self.detector_config = VisualGenomeConfig()
        self.width = self.detector_config.feature_dim
        self.codes = profile.cluster.k

    # Networks

    def frozen(self, build: Callable[[], nn.Module]) -> Any:
        return self.shapes.network(on_meta(build)).eval().requires_grad_(False)

    @cached_property
    def detector(self) -> VisualGenomeDetector:
        return self.frozen(lambda: VisualGenomeDetector(self.detector_config))

    @cached_property
    def codebook(self) -> Tensor:
        return self.shapes.tensor(self.codes, self.width)

    def transformer(self, network: str, architecture: str, attention: str, **changes: Any) -> Any:
        config = named_config(network, architecture, codebook_size=self.codes, feature_dim=self.width)
        config = replace(config, caption_attention=attention, **changes)
        return self.shapes.network(on_meta(lambda: build_transformer(config)))

    @cached_property
    def model(self) -> Any:
        """The transformer of both trainings."""
        token = self.profile.token
        return self.transformer(
            token.network, token.architecture, token.caption_attention, image_features=token.image_features
        )

    @cached_property
    def tokenizer(self) -> Any:
        return numbered_tokenizer(self.model.config.vocab_size)

    @cached_property
    def painter(self) -> Any:
        """The trained image generator."""
        return self.frozen(lambda: ImageGenerator(self.generator_config))

    @property
    def generator_config(self) -> Any:
        return image_generator.named_config(self.profile.image_generator.network, feature_dim=self.width)

    @cached_property
    def clips(self) -> dict[str, Clip]:
        """Scorer and judge."""
        return {name: self.clip(getattr(self.profile, name).network.model_name) for name in ("scorer", "judge")}

    def clip(self, name: str) -> Clip:
        import open_clip

        logging.disable(logging.WARNING)  # that it has no weights
        try:
            with torch.device("meta"):
                model = open_clip.create_model(architecture_of(name), device="meta", pretrained=None)
        finally:
            logging.disable(logging.NOTSET)
        size = model.visual.image_size
        prepared = preprocessing_of(name, size)

        def tokenize(texts: list[str]) -> Tensor:
            return torch.zeros(len(texts), model.context_length, dtype=torch.int64)

        side = size if isinstance(size, int) else size[0]
        clip = Clip(model, tokenize, side, prepared.mean, prepared.std, preprocessing=prepared)
        self.shapes.network(clip.to("meta"))
        return clip.eval().requires_grad_(False)

    def pictures(self, batch: int) -> Captioned:
        return Captioned(batch, CELLS, self.codes, self.width)

    # Works

    def works(self) -> list[Work]:
        """In the order of the pipeline; X-LXMERT's pretraining at the end."""
        return [
            *self.data(), *self.extraction(), *self.clustering(), *self.shards(), *self.generator_training(),
            *self.token_training(), *self.sequence_training(), *self.generation(), *self.evaluation(), *self.pretraining(),
        ]  # fmt: skip

    def data(self) -> list[Work]:
        return [on_disk("dataset", "pictures, read", self.profile.pictures * PICTURE_BYTES)]

    def extraction(self) -> list[Work]:
        batch = self.profile.extract.batch_size
        return [
            Work("extract", "batch", self.profile.pictures / batch, lambda gpus: self.grid_features(batch, PICTURE), "pieces"),
            on_disk("extract", "features, written", self.profile.pictures * self.picture_bytes),
        ]

    @property
    def picture_bytes(self) -> int:
        """Of grid features, float16."""
        return CELLS * self.width * 2

    def grid_features(self, batch: int, picture: tuple[int, int], precision: str = "bfloat16") -> Counts:
        """Of pictures of (width, height)."""
        detector = self.detector
        height, width = detector.input_size(*picture)
        config = self.detector_config
        # what is kept of sizes is to be real
        visual_genome._shifted_bins(height >> visual_genome.grid_level(height, width), config.bins)
        visual_genome._shifted_bins(width >> visual_genome.grid_level(height, width), config.bins)
        seen = self.shapes.tensor(batch, 3, height, width)
        with counting(self.shapes, precision=precision) as counts:
            detector.grid_features(seen)
        return counts

    def clustering(self) -> list[Work]:
        """By FAISS on GPUs: float32."""
        cluster = self.profile.cluster
        sample = min(self.profile.splits["train"] * CELLS, cluster.k * cluster.points_per_centroid)

        def nearest(cells: int) -> Counts:
            counts = Counts(operations=1)
            counts.flops["products", torch.float32] = cells * cluster.k * 2 * self.width
            counts.memory = cells * (self.width + 2 * cluster.k) * 4
            return counts

        features = self.profile.pictures * self.picture_bytes
        return [
            Work("cluster", "iteration", cluster.iterations, lambda gpus: nearest(sample), "pieces"),
            Work("cluster", "codes", 1, lambda gpus: nearest(self.profile.pictures * CELLS), "pieces"),
            on_disk("cluster", "features, read twice", 2 * features),
        ]

    def shards(self) -> list[Work]:
        size = self.profile.pictures * (self.picture_bytes + PICTURE_BYTES)
        return [on_disk("shard", "features and pictures, read and written", 2 * size)]

    def generator_training(self) -> list[Work]:
        params = self.profile.image_generator
        repainted = math.ceil(min(params.val_images, self.profile.splits["val"]) / REPAINTED_BATCH)
        side = self.generator_config.image_size
        return [
            Work("image_generator", "step", params.training.steps, self.generator_step, "step"),
            Work("image_generator", "val pictures", repainted, lambda gpus: self.drawn(REPAINTED_BATCH, "float32"), "alone"),
            # real ones and repainted ones
            Work("image_generator", "their features", 2 * repainted,
                 lambda gpus: self.grid_features(REPAINTED_BATCH, (side, side), "float32"), "alone"),
        ]  # fmt: skip

    def generator_step(self, gpus: int) -> Counts:
        params, network = self.profile.image_generator, self.generator_config
        batch = math.ceil(params.training.batch_size / gpus)
        config = replace(params.training, batch_size=batch)
        generator: Any = self.shapes.network(on_meta(lambda: ImageGenerator(network)).train())
        encoder: Any = self.frozen(lambda: judge(ResNetEncoder))
        discriminator = None
        if config.game is not None:
            wanted, codebook = config.game.discriminator, torch.empty(self.codes, self.width, device="meta")
            discriminator = self.shapes.network(
                on_meta(lambda: Discriminator(wanted, network.image_size, codebook)).train()
            )
        train: Any = self.pictures(batch)
        steps = ImageGeneratorSteps(config, generator, self.codebook, train, encoder, discriminator)
        learning = [generator, *([discriminator] if discriminator else [])]
        step = config.game.warm_start_steps if config.game else 0
        pieces = steps.pieces(step, steps.read(0))
        return counted_step(self.shapes, pieces, *learning, averaged=generator if config.ema_decay else None)

    def drawn(self, batch: int, precision: str = "bfloat16") -> Counts:
        """Pictures from codes."""
        painter, grid = self.painter, self.shapes.tensor(batch, CELLS, self.width)
        with counting(self.shapes, precision=precision) as counts:
            painter(grid)
        return counts

    def token_training(self) -> list[Work]:
        config = self.profile.token.training
        return [
            Work("train_token", "caption step", config.steps * config.caption_share, partial(self.token_step, 1.0), "step"),
            Work("train_token", "paint step", config.steps * (1 - config.caption_share), partial(self.token_step, 0.0), "step"),
        ]  # fmt: skip

    def token_step(self, caption_share: float, gpus: int) -> Counts:
        config = self.profile.token.training
        batches = {name: math.ceil(getattr(config, name) / gpus) for name in ("caption_batch_size", "paint_batch_size")}
        config = replace(config, caption_share=caption_share, questions=None, evaluation=None, **batches)
        train = self.pictures(batches["caption_batch_size" if caption_share else "paint_batch_size"])
        steps = TokenSteps(config, self.model.train(), self.tokenizer, self.codebook, train)
        torch.manual_seed(0)
        return counted_step(self.shapes, steps.pieces(0, steps.read(0)), self.model)

    def sequence_training(self) -> list[Work]:
        config = self.profile.sequence.training
        each = {task: sum(task in turn for turn in config.turns) * config.steps / len(config.turns) for task in config.cycle}
        works = []
        if "scst" in each:
            works += [
                Work("train_sequence", "captions, sampled", each["scst"], self.sampled, "step"),
                Work("train_sequence", "SCST step", each["scst"], self.scst_step, "step"),
            ]
        if "clip" in each:
            works.append(Work("train_sequence", "CLIP step", each["clip"], partial(self.sequence_step, "clip"), "step"))
        if "paint" in each:
            works.append(Work("train_sequence", "paint step", each["paint"], partial(self.sequence_step, "paint"), "step"))
        if config.evaluation is not None:
            batches = (config.steps // config.evaluation.every + 1) * math.ceil(config.evaluation.images / EVALUATION_BATCH)
            works.append(Work("train_sequence", "evaluations", batches, lambda gpus: self.evaluated(), "alone"))
        return works

    def sequence_steps(self, gpus: int) -> tuple[SequenceSteps, list[int], dict[Task, int]]:
        config = self.profile.sequence.training
        tasks: tuple[Task, ...] = ("scst", "clip", "paint")
        batches = {task: math.ceil(getattr(config, f"{task}_batch_size") / gpus) for task in tasks}
        config = replace(config, evaluation=None, **{f"{task}_batch_size": size for task, size in batches.items()})
        train = self.pictures(max(batches.values()))
        # captions are rewarded on the CPU
        judges: Any = None, self.painter, self.clips["scorer"]
        steps = SequenceSteps(config, self.model.train(), self.tokenizer, self.codebook, train, *judges)
        return steps, list(range(max(batches.values()))), batches

    def sequence_step(self, task: Task, gpus: int) -> Counts:
        steps, indices, batches = self.sequence_steps(gpus)
        indices = indices[: batches[task]]
        torch.manual_seed(0)
        return counted_step(self.shapes, steps.task_pieces(task, indices, steps.read_batch(task, indices)), self.model)

    def scst_step(self, gpus: int) -> Counts:
        """The pass that improves the sampled captions, and their picture's."""
        _, _, batches = self.sequence_steps(gpus)
        config, batch = self.profile.sequence.training, batches["scst"]
        samples = config.samples_per_image
        texts = [self.pictures(batch * samples).captions(row)[0] for row in range(batch * samples)]
        ids = self.tokenizer.encode(texts, config.caption_length)
        seen, paid = self.shapes.tensor(batch, CELLS, self.width), self.shapes.tensor(len(ids))
        policy = UnifiedPolicy(self.model.eval(), self.tokenizer)

        def loss() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            with autocast_context("cpu", config.precision), torch.set_grad_enabled(config.scst_vision):
                images = policy.read(seen)
            for compute in policy.losses(images, ids, paid, config.sample_temperature):
                with autocast_context("cpu", config.precision):
                    part = compute()
                yield part, {}

        return counted_step(self.shapes, [Piece(1.0, batch, loss)], self.model)

    def sampled(self, gpus: int) -> Counts:
        """The captions of an SCST step: what is sampled and, for its reward, the greedy one."""
        config = self.profile.sequence.training
        rows = config.samples_per_image + (config.baseline == "greedy")
        batch = math.ceil(config.scst_batch_size / gpus)
        return self.written(batch, rows, config.caption_length, see=False)

    def written(self, batch: int, rows: int, length: int, see: bool = True) -> Counts:
        """Captions of a batch of pictures, so many of each, word by word; those that are done leave the batch. see: what sees the
        picture runs, too."""
        model, tokenizer = self.model.eval(), self.tokenizer
        ends = torch.tensor([min(words + 1, length - 2) for words in caption_words(batch * rows)])
        seen = self.shapes.tensor(batch, CELLS, self.width)
        # which captions are done is looked up in numbers
        with counting(None) as counts:
            with torch.enable_grad():  # without, features are searched for what is not finite
                images = [states.detach() for states in UnifiedPolicy(model, tokenizer).read(seen)]
            if not see:
                counts.forget()
            next_word = next_word_of(model, tokenizer, images, length)
            if rows > 1:
                next_word.keep(torch.arange(batch).repeat_interleave(rows))
            for position in range(1, int(ends.max()) + 1):
                still = (ends >= position).nonzero()[:, 0]
                before = ends >= position - 1 if position > 1 else torch.ones_like(ends, dtype=torch.bool)
                if len(still) < int(before.sum()):
                    next_word.keep((ends[before] >= position).nonzero()[:, 0])
                ids = self.shapes.tensor(len(still), position, dtype=torch.int64)
                word_log_probabilities(next_word.logits(ids), tokenizer).argmax(-1)
        return counts

    def painted(self, batch: int, options: Any, length: int) -> Counts:
        """Codes of captions."""
        ids = self.tokenizer.encode([self.pictures(batch).captions(row)[0] for row in range(batch)], length)
        texts, seeds = Texts.of(ids, self.tokenizer.pad), list(range(batch))
        model, codebook = self.model.eval(), self.codebook
        with counting(self.shapes) as counts:
            paint_captions(model, self.tokenizer, codebook, texts, options, seeds, keep_steps=True)
        return counts

    def scored(self, name: str, batch: int, precision: str = "float32") -> Counts:
        """Pictures by a CLIP."""
        clip = self.clips[name]
        seen = self.shapes.tensor(batch, 3, clip.image_size, clip.image_size)
        with counting(self.shapes, precision=precision) as counts:
            clip.encode_images(seen)
        return counts

    def read_texts(self, name: str, batch: int) -> Counts:
        """Texts by a CLIP."""
        model: Any = self.clips[name].model
        tokens = self.shapes.tensor(batch, model.context_length, dtype=torch.int64)
        with counting(self.shapes, precision="float32") as counts:
            model.encode_text(tokens)
        return counts

    def evaluated(self) -> Counts:
        """A batch of stage 2's evaluations."""
        training = self.profile.sequence.training
        assert training.evaluation is not None
        options = replace(
            self.profile.generate.paint, method="mask_predict", steps=training.evaluation.mask_predict_steps,
            guidance=training.evaluation.guidance, samples=1,
        )  # fmt: skip
        return summed(
            self.written(EVALUATION_BATCH, 1, training.caption_length),
            self.painted(EVALUATION_BATCH, options, training.caption_length),
            self.drawn(EVALUATION_BATCH),
            self.scored("scorer", EVALUATION_BATCH, "bfloat16"),
        )

    def generation(self) -> list[Work]:
        params, batch = self.profile.generate, self.profile.generate.batch_size
        if params.caption.method == "beam":
            raise SystemExit("captions by beam search are not counted")
        captions = sum(self.profile.count(wanted.caption) for wanted in params.sets.values())
        paintings = sum(self.profile.count(wanted.paint) for wanted in params.sets.values())
        written, painted = params.caption.samples, params.paint.samples
        works = [
            Work("generate", "captions", captions / batch,
                 lambda gpus: self.written(batch, written, params.caption.length), "pieces"),
            Work("generate", "paintings", paintings / batch,
                 lambda gpus: self.painted(batch, params.paint, params.caption.length), "pieces"),
            # painted ones, of all samples that are ranked, and real ones from their codes
            Work("generate", "pictures", paintings / batch * (2 + (painted if painted > 1 else 0)),
                 lambda gpus: self.drawn(batch), "pieces"),
        ]  # fmt: skip
        ranked = (written > 1) * captions + (painted > 1) * painted * paintings
        if ranked:
            works.append(Work("generate", "scorer", ranked / batch, lambda gpus: self.scored("scorer", batch, "bfloat16"), "pieces"))
        return works

    def evaluation(self) -> list[Work]:
        """The Visual Genome detector looks at no picture here: it makes features and finds no objects."""
        params = self.profile.evaluate
        settings = ImageSettings(image_size=params.image_size, batch_size=params.batch_size, threads=1)
        batch, paintings = params.batch_size, self.profile.count(self.profile.generate.sets["test"].paint)
        seen = {name: len(KINDS) * (len(BLUR_RADII) if name in FRECHET_CLIPS else 1) for name in ("scorer", "judge")}
        # at most: a caption with each other word
        texts = paintings + len(CATEGORIES) * settings.hard_captions * settings.hard_negatives
        return [
            *(
                Work("evaluate", f"pictures by the {name}", paintings * times / batch, partial(self._seen, name, batch), "pieces")
                for name, times in seen.items()
            ),
            *(
                Work("evaluate", f"texts by the {name}", texts / batch, partial(self._read, name, batch), "alone")
                for name in seen
            ),
        ]  # fmt: skip

    def _seen(self, name: str, batch: int, gpus: int) -> Counts:
        return self.scored(name, batch)

    def _read(self, name: str, batch: int, gpus: int) -> Counts:
        return self.read_texts(name, batch)

    def pretraining(self) -> list[Work]:
        training = self.profile.x_lxmert.pretraining.training
        return [Work(PRETRAINING, "step", training.steps, self.pretraining_step, "step")]

    def pretraining_step(self, gpus: int) -> Counts:
        """The mean of a step of each task, weighed by how often it is drawn."""
        params = self.profile.x_lxmert
        network = self.transformer(
            params.network, params.architecture, params.pretraining.attention, answers=9500, matching=True
        ).train()  # fmt: skip
        batch = math.ceil(params.pretraining.training.batch_size / gpus)
        config = replace(params.pretraining.training, batch_size=batch)
        steps = PretrainingSteps(config, network, self.tokenizer, self.codebook, self.pictures(batch), None)
        cells = config.cells_share
        means = []
        for masked, share in (("cells", cells), ("words", (1 - cells) / 2), ("nothing", (1 - cells) / 2)):
            step = next(step for step in itertools.count() if steps.plan(step)[0] == masked)
            counts = counted_step(self.shapes, steps.pieces(step, steps.read(step)), network)
            means.append(summed(counts, times=share))
        return summed(*means)


def summed(*several: Counts, times: float = 1.0) -> Counts:
    """One after the other."""
    total = Counts()
    for counts in several:
        for kind, flops in counts.flops.items():
            total.flops[kind] += flops * times
    total.memory = sum(counts.memory for counts in several) * times
    total.operations = round(sum(counts.operations for counts in several) * times)
    total.trained = round(sum(counts.trained for counts in several) * times)
    return total


@dataclass(frozen=True)
class Row:
    """Of the table. hours: on one GPU and on several. decides: what most of the hours on one, and on several, are for."""

    stage: str
    tflop: float
    hours: tuple[float, float]
    decides: tuple[str, str]


def rows_of(works: Sequence[Work]) -> list[Row]:
    """A row for each stage."""
    rows = []
    for stage in dict.fromkeys(work.stage for work in works):
        own = [work for work in works if work.stage == stage]
        hours, decides = [], []
        for gpus in (1, GPUS):
            found = [work.hours(gpus) for work in own]
            by: dict[str, float] = defaultdict(float)
            for length, name in found:
                by[name] += length
            hours.append(sum(length for length, _ in found))
            decides.append(max(by, key=lambda name: by[name]))
        rows.append(Row(stage, sum(work.flops for work in own) / 1e12, (hours[0], hours[1]), (decides[0], decides[1])))
    return rows


def remembered(work: Work) -> Work:
    """A work that counts once for each number of GPUs."""
    known: dict[int, Counts] = {}

    def count(gpus: int) -> Counts:
        if gpus not in known:
            known[gpus] = work.count(gpus)
        return known[gpus]

    return replace(work, count=count)


def assumptions(price: float) -> list[str]:
    """What the table stands on, a line each."""
    dtypes = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
    shares = [
        f"{name} in {'TF32' if peak == TF32 else dtypes[dtype]} {share:.0%} of {peak / 1e12:.0f} TFLOP/s"
        for (name, dtype), (share, peak) in SHARES.items()
    ]
    return [
        "reached: " + ", ".join(shares),
        f"memory at {MEMORY_SHARE:.0%} of {BANDWIDTH / 1e12} TB/s; an operation every {HANDING * 1e6:.0f} microseconds",
        f"between GPUs {LINK_SHARE:.0%} of {LINK / 1e9:.0f} GB/s; disk {DISK / 1e9:.0f} GB/s",
        "several GPUs share each step of a training (machine.processes) and the pictures to extract and cluster (FAISS for GPUs)",
        "and, where machine.ray_address names a cluster, those to generate and evaluate",
        f"{price} dollars for an hour of a GPU; of a machine with {GPUS} all are paid for as long as a stage runs",
        f"pictures of {PICTURE[0]} x {PICTURE[1]} pixels, captions of {WORDS[0]} words; the paper's vocabulary",
        "not counted: decoding of pictures, CIDEr-D and Frechet distances on the CPU, the start of stages, checkpoints",
        "not counted: evaluations of stage 1 and of the image generator; package, report; Inception, whose file the profile does not name",
    ]


def together(rows: Sequence[Row]) -> Row:
    """All stages of the main pipeline."""
    main = [row for row in rows if row.stage != PRETRAINING]
    hours = [sum(row.hours[place] for row in main) for place in range(2)]
    return Row("together", sum(row.tflop for row in main), (hours[0], hours[1]), ("", ""))


def print_table(rows: Sequence[Row], price: float) -> None:
    """Markdown."""
    print(f"| stage | TFLOP | one GPU, hours | decided by | {GPUS} GPUs, hours | decided by | one GPU, dollars | {GPUS} GPUs, dollars |")
    print("| --- " * 8 + "|")
    for row in rows:
        dollars = [row.hours[0] * price, row.hours[1] * price * GPUS]
        print(
            f"| {row.stage} | {row.tflop:,.0f} | {row.hours[0]:.2f} | {row.decides[0]} | {row.hours[1]:.2f} | {row.decides[1]} | "
            f"{dollars[0]:.2f} | {dollars[1]:.2f} |"
        )


def print_reading(profile: Profile, works: Sequence[Work], width: int) -> None:
    """What steps ask of disks and cores."""
    named = {(work.stage, work.name): work for work in works}
    for what, key, each, unit in (
        ("captioning steps read features", ("train_token", "caption step"),
         profile.token.training.caption_batch_size * CELLS * width * 2 / 1e9, "GB/s"),
        ("the image generator's steps read pictures", ("image_generator", "step"), profile.image_generator.training.batch_size, "a second"),
        ("extraction reads pictures", ("extract", "batch"), profile.extract.batch_size, "a second"),
    ):  # fmt: skip
        work = named[key]
        rates = [each * work.times / (work.hours(gpus)[0] * 3600) for gpus in (1, GPUS)]
        print(f"- {what}: {rates[0]:,.4g} {unit} on one GPU, {rates[1]:,.4g} on {GPUS}")


def print_growth(profile: Profile, rows: Sequence[Row], width: int) -> None:
    """What grows with the number of pictures."""
    extract = next(row for row in rows if row.stage == "extract")
    each = {
        "features, GB": CELLS * width * 2 / 1e9, "codes, GB": CELLS * 2 / 1e9,
        "tokens of L-Verse, GB": TOKENS_BYTES / 1e9, "shards": 1 / profile.shard_size,
        "extraction on one GPU, hours": extract.hours[0] / profile.pictures,
        f"extraction on {GPUS}, hours": extract.hours[1] / profile.pictures,
        # their ids, int64, which a training holds
        "captions in memory, GB": CAPTIONS_PER_PICTURE * profile.token.training.caption_length * 8 / 1e9,
    }  # fmt: skip
    counts = [*(profile.pictures * times for times in GROWTH), MANY]
    print(f"| | {' | '.join(f'{count:,}' for count in counts)} |")
    print("| --- " * (len(counts) + 1) + "|")
    for name, size in each.items():
        print(f"| {name} | {' | '.join(shown(size * count) for count in counts)} |")


def shown(number: float) -> str:
    """Rounded to three digits or to whole ones."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def figures_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """For `benchmarks/results`."""
    figures: dict[str, float | None] = {}
    for row in rows:
        name = row.stage.replace("'", "").replace(" ", "_").replace("-", "_").lower()
        figures |= {
            f"scale.{name}.tflop": round(row.tflop, 1), f"scale.{name}.hours_1": round(row.hours[0], 4),
            f"scale.{name}.hours_{GPUS}": round(row.hours[1], 4),
        }  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=2.5, help="dollars for an hour of a GPU")
    parser.add_argument("--only", default="", help="stages whose names begin so")
    parser.add_argument("--parts", action="store_true", help="also what each stage consists of")
    arguments = parser.parse_args()
    profile = Profile()
    stages = Stages(profile)
    works = [remembered(work) for work in stages.works() if work.stage.startswith(arguments.only)]
    if arguments.parts:
        print_parts(works)
    rows = rows_of(works)
    if not arguments.only:
        rows.insert(-1, together(rows))
    print_table(rows, arguments.price)
    for line in assumptions(arguments.price):
        print(f"- {line}")
    if not arguments.only:
        print_reading(profile, works, stages.width)
        print_growth(profile, rows, stages.width)
        record("scale", figures_of(rows))


def print_parts(works: Sequence[Work]) -> None:
    """A line for each part of a stage and number of GPUs: times, GFLOP, GB, operations of one, and the milliseconds that each floor has
    and all takes."""
    for work in works:
        if work.disk:
            print(f"{work.stage}: {work.name}: {work.disk / 1e9:,.1f} GB", flush=True)
            continue
        for gpus in (1, GPUS) if work.divided == "step" else (1,):
            counts = work.count(gpus)
            floors = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in counts.floors().items())
            print(
                f"{work.stage}: {work.name} x {work.times:,.0f} on {gpus}: {counts.total / 1e9:,.0f} GFLOP, {counts.memory / 1e9:,.1f} GB, "
                f"{counts.operations} operations; ms: {floors}; {counts.seconds(gpus) * 1e3:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
