"""Sequence-level training, stage 2 (UMT 4.1.2, 4.2.2, 5.1): SCST captions, CLIP-loss painting, token-level painting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diptych.features.order import batch_indices
from diptych.model.devices import Texts
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input, caption_rows
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.scst import UnifiedPolicy
from diptych.model.objectives.sequence import (
    GumbelSoftmax,
    Scorer,
    clip_loss,
    feature_loss,
    relaxed_painting,
)
from diptych.model.precision import autocast_context
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.config import LoopConfig, check_at_least_one, check_masking, check_share
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.data import CaptionTable, TrainingShards, on_device, read_rows
from diptych.model.training.loop import run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable, answer_pieces
from diptych.model.training.schedules import SCHEDULES
from diptych.model.training.scst import CaptionReward, scst_pieces
from diptych.model.training.sequence_evaluation import SequenceEvaluation, SequenceEvaluationConfig
from diptych.model.training.state import fingerprint
from diptych.model.training.token import check_data, paint_pieces, read_to_paint

Task = Literal["scst", "clip", "paint", "answer"]


@dataclass(frozen=True, kw_only=True)
class SequenceTrainingConfig(LoopConfig):
    """Settings of sequence-level training; the paper's (UMT 4.2.2, 5.1) in brackets, where it says something.

    Attributes:
        steps: steps of all tasks together [300,000].
        scst_steps, clip_steps, paint_steps: how many steps of each task a cycle has, in this order [1, 1, 1].
        answer_steps: how many steps of answering end a cycle, so that it is not forgotten [0].
        joint_tasks: tasks that train in common steps instead of turns [none]: such a step takes a batch of each, the
            gradients of their weighted losses add up, and AdamW moves once. Their numbers of steps are equal, or 0 for
            a task that does not train.
        scst_batch_size, clip_batch_size, paint_batch_size: images, or captions to paint, in a step [160].
        answer_batch_size, questions_per_image, question_length: as batch_size, questions_per_image and length of
            :class:`diptych.model.training.questions.QuestionSettings`.
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included [17 words].
        learning_rate: the peak [1e-6].
        schedule: after the warm-up, ``constant`` [constant] or ``cosine`` to 0. A short training at a rate that gets it
            anywhere ends amid the noise of its steps unless the rate falls.
        warmup_share: of the steps, over which the learning rate rises from 0 [0]. AdamW knows nothing of the gradients'
            sizes at first, and its first steps at the full rate undo some of what stage 1 has learned.
        label_smoothing, least_masked, all_masked, text_drop: as in
            :class:`diptych.model.training.token.TokenTrainingConfig`.
        sample_temperature: of the captions that SCST samples and of the policy it improves [1].
        samples_per_image: captions that SCST samples of each image [1].
        scst_vision: whether SCST trains what sees the image alone, too [true]. Without, it trains the words' side, of two
            streams for two thirds of the cost; a single stream's layers serve both, and only the image's own passes through
            them are left out.
        baseline: of a sample's reward: ``greedy``, the reward of the greedy caption [greedy], or ``mean``, that of the
            image's other samples.
        scst_weight, clip_weight: of the losses of captions and of whole pictures [1, 1: equations 2 and 4 as they stand;
            the released code has 1, 250]. All tasks share AdamW's estimate of the gradients' sizes: a task whose
            gradient is smaller than the others' takes shorter steps.
        painting_loss: of whole pictures: ``clip`` [clip], or ``features``, the mean squared error to the real picture's
            ``feature_target`` ("w/o CLIP-based loss" in UMT table 1).
        feature_target: of ``painting_loss: features``: ``grid``, the real picture's grid features ["grid feature
            similarity"], or ``codebook``, the codebook vectors of its codes, as in the released code.
        mask_predict_steps: k of painting [4].
        guidance: classifier-free guidance in painting [none is mentioned: 1].
        gumbel_softmax: where painting takes the soft samples that carry its gradient: ``each_step``, while it samples
            its codes, or ``end``, once, of a painting that was painted greedily, as in the released code. The paper has
            "a Gumbel-Softmax approximation" and does not say where.
        fresh_confidence: rank cells as the released code does, by ``fresh_confidence`` of
            :class:`diptych.model.decoding.decisions.Decisions`.
        paint_temperature: of the distributions that painting samples its codes from; 1 is those of the model. A painter
            trained with label smoothing gives every code some chance: at 1 a fifth of the sampled cells show anything,
            while paintings are decoded greedily in the end. The paper does not mention one.
        gumbel_temperature: of the relaxed codes. The paper gives none.
        straight_through: paint with the codes themselves instead of their mixtures. The paper says nothing of it.
        recompute: whether painting keeps the graph of one mask-predict step at a time and computes it twice, for memory.
        evaluation: what is measured on the val split meanwhile, and when it ends the training; None: nothing.
        weight_decay, clip_norm, ema_decay, accumulation, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`.
    """

    scst_steps: int
    clip_steps: int
    paint_steps: int
    answer_steps: int = 0
    answer_batch_size: int = 1
    questions_per_image: int = 1
    question_length: int = 20
    joint_tasks: tuple[Task, ...] = ()
    scst_batch_size: int
    clip_batch_size: int
    paint_batch_size: int
    caption_length: int
    label_smoothing: float
    least_masked: float
    text_drop: float
    sample_temperature: float
    all_masked: float = 0.0
    samples_per_image: int = 1
    scst_vision: bool = True
    baseline: Literal["greedy", "mean"] = "greedy"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_share: float = 0.0
    scst_weight: float = 1.0
    clip_weight: float = 1.0
    painting_loss: Literal["clip", "features"] = "clip"
    feature_target: Literal["grid", "codebook"] = "grid"
    mask_predict_steps: int
    guidance: float
    gumbel_softmax: GumbelSoftmax = "each_step"
    fresh_confidence: bool = False
    paint_temperature: float = 1.0
    gumbel_temperature: float
    straight_through: bool = False
    recompute: bool = True
    evaluation: SequenceEvaluationConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(
            self,
            "scst_batch_size",
            "clip_batch_size",
            "paint_batch_size",
            "answer_batch_size",
            "questions_per_image",
            "mask_predict_steps",
            "samples_per_image",
        )
        check_masking(self)
        check_share(self, "warmup_share")
        for name in ("scst_weight", "clip_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, is {getattr(self, name)}")
        for name in ("sample_temperature", "paint_temperature", "gumbel_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, is {getattr(self, name)}")
        if self.baseline == "mean" and self.samples_per_image < 2:
            raise UserError(
                "baseline mean is that of an image's other samples: set samples_per_image to 2 or more"
            )
        if not self.cycle:
            raise UserError("the steps of all tasks are 0; at least one task must train")
        if len(self.joint_tasks) == 1 or len(set(self.joint_tasks)) < len(self.joint_tasks):
            raise UserError(
                f"joint_tasks must be two or three different tasks, or none ([]), is {list(self.joint_tasks)}"
            )
        batches = {task: self.cycle.count(task) for task in self.joint_tasks}
        if len(set(batches.values()) - {0}) > 1:
            raise UserError(
                f"joint_tasks {list(self.joint_tasks)} train in common steps, so "
                f"{' and '.join(f'{task}_steps' for task in batches)} must be equal, are "
                f"{' and '.join(map(str, batches.values()))}; batch sizes and weights say what each counts"
            )

    @property
    def cycle(self) -> list[Task]:
        """The tasks of consecutive batches: ``scst``, ``clip``, ``paint``, ``answer``."""
        tasks: list[Task] = ["scst", "clip", "paint", "answer"]
        return [task for task in tasks for _ in range(getattr(self, f"{task}_steps"))]

    @property
    def turns(self) -> list[tuple[Task, ...]]:
        """The tasks of consecutive steps: one each, or all ``joint_tasks`` that train."""
        joint = tuple(task for task in dict.fromkeys(self.cycle) if task in self.joint_tasks)
        turns: list[tuple[Task, ...]] = []
        for task in self.cycle:
            if task not in joint:
                turns.append((task,))
            elif task == joint[0]:
                turns.append(joint)
        return turns


class SequenceSteps:
    """The steps of sequence-level training (:class:`diptych.model.training.contracts.Steps`): SCST, CLIP loss,
    token-level painting and answering in turns, or those of ``joint_tasks`` together."""

    def __init__(
        self,
        config: SequenceTrainingConfig,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        train: TrainingShards,
        reward: CaptionReward,
        generator: nn.Module,
        scorer: Scorer,
        questions: QuestionTable | None = None,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.questions = questions
        self.codebook, self.train = codebook, train
        self.reward, self.generator, self.scorer = reward, generator, scorer
        self.captions = CaptionTable(train, tokenizer, config.caption_length)
        self.turns = config.turns
        self.batch_sizes: dict[Task, int] = {
            "scst": config.scst_batch_size,
            "clip": config.clip_batch_size,
            "paint": config.paint_batch_size,
            "answer": config.answer_batch_size,
        }
        self.rows = {
            task: current_processes().own_pieces(self.batch_sizes[task], config.accumulation)
            for task in dict.fromkeys(config.cycle)
        }

    def plan(self, step: int) -> list[tuple[Task, list[int]]]:
        """Return the tasks of ``step`` and the images of their batches."""
        rounds, place = divmod(step, len(self.turns))
        batches: list[tuple[Task, list[int]]] = []
        for task in self.turns[place]:
            of_task = [task in tasks for tasks in self.turns]
            task_step = rounds * sum(of_task) + sum(of_task[:place])
            # Each task walks the epochs in an order of its own.
            seed = self.config.seed + list(self.batch_sizes).index(task)
            known = self.questions.images if task == "answer" and self.questions else range(len(self.train))
            images = batch_indices(len(known), self.batch_sizes[task], seed, task_step).tolist()
            batches.append((task, [known[image] for image in images]))
        return batches

    def read(self, step: int) -> list[list[Tensor]]:
        """Read each batch: what captioning sees for SCST and answers, what token-level painting does, the real pictures' features or
        codes for the loss on features and nothing for the CLIP loss."""
        return [self.read_batch(task, indices) for task, indices in self.plan(step)]

    def read_batch(self, task: Task, indices: list[int]) -> list[Tensor]:
        """What this process reads of a task's batch of images, a tensor for each of its pieces."""
        rows, device = self.rows[task], self.codebook.device
        if task in ("scst", "answer"):
            return read_rows(caption_rows(self.model.config, self.train), indices, rows, device)
        if task == "paint":
            return read_to_paint(self.model, self.train, indices, rows, device)
        if self.config.painting_loss == "clip":
            return []
        target = self.train.grid if self.config.feature_target == "grid" else self.train.codes
        return read_rows(target, indices, rows, device)

    def pieces(self, step: int, data: list[list[Tensor]]) -> list[Piece]:
        """Draw captions, masks and the seeds of sampled captions. The pieces of several tasks run one after the other,
        and their gradients add up."""
        batches = zip(self.plan(step), data, strict=True)
        return [piece for (task, indices), rows in batches for piece in self.task_pieces(task, indices, rows)]

    def task_pieces(self, task: Task, indices: list[int], data: list[Tensor]) -> list[Piece]:
        """The pieces of one task's batch of images, from what :meth:`read_batch` has read."""
        if task == "scst":
            return self.scst_pieces(indices, data)
        if task == "clip":
            return self.picture_pieces(indices, data)
        config, shared, rows = self.config, (self.model, self.tokenizer, self.codebook), self.rows[task]
        if task == "answer":
            assert self.questions
            per_image = config.questions_per_image
            return answer_pieces(*shared, self.questions, indices, per_image, rows, data, config.precision)
        return paint_pieces(config, *shared, self.captions, indices, rows, data)

    def scst_pieces(self, indices: list[int], features: list[Tensor]) -> list[Piece]:
        """An SCST step; its loss is the mean over sampled captions."""

        def seen(rows: Tensor) -> Tensor:
            return caption_input(self.model.config, self.codebook, on_device(rows, self.codebook.device))

        policy = UnifiedPolicy(self.model, self.tokenizer)
        rows = self.rows["scst"]
        return scst_pieces(self.config, policy, self.tokenizer, self.reward, indices, rows, features, seen)

    def picture_pieces(self, indices: list[int], features: list[Tensor]) -> list[Piece]:
        """A step of painting whole pictures; its loss is the mean over them. ``features`` are the real pictures' grid
        features or codes, for ``painting_loss: features``."""
        config, codebook = self.config, self.codebook
        ids, texts = self.captions.choose(indices, 1)

        def piece(rows: slice, features: Tensor | None) -> Piece:
            prompts = Texts.of(ids[rows, 0], self.tokenizer.pad)

            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                with autocast_context(codebook.device, config.precision):
                    vectors = relaxed_painting(
                        self.model,
                        self.tokenizer,
                        codebook,
                        prompts.to(codebook.device),
                        config.mask_predict_steps,
                        config.guidance,
                        config.gumbel_temperature,
                        config.straight_through,
                        config.paint_temperature,
                        config.recompute,
                        config.gumbel_softmax,
                        config.fresh_confidence,
                    )
                    if features is None:
                        mean = clip_loss(vectors, texts[rows], self.generator, self.scorer)
                    else:
                        target = on_device(features, codebook.device)
                        if config.feature_target == "codebook":
                            target = codebook[target]
                        mean = feature_loss(vectors, target, codebook)
                return config.clip_weight * mean, {f"{config.painting_loss}_loss": mean.detach()}

            return Piece(len(texts[rows]) / len(texts), len(texts[rows]), loss)

        parts = features or [None] * len(self.rows["clip"])
        return [piece(rows, part) for rows, part in zip(self.rows["clip"], parts, strict=True)]


def train_sequence(
    config: SequenceTrainingConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    train: TrainingShards,
    reward: CaptionReward,
    generator: nn.Module,
    scorer: Scorer,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
    evaluation: SequenceEvaluation | None = None,
    questions: QuestionTable | None = None,
) -> Record:
    """Train ``model`` in place, alone or as one of several processes; the image generator and the scorer are frozen and
    put in eval mode.

    Args:
        codebook: float32 ``[K, D]``.
        reward: built on :func:`reference_words` of the same ``train``.
        evaluation: what ``config.evaluation`` measures.
        questions: about the images of ``train``, where a cycle has steps that answer.

    Returns:
        History rows: step, learning_rate, scst_reward, greedy_reward or mean_reward (CIDEr-D of sampled training captions
        and of their baseline), clip_loss or features_loss, paint_loss, answer_loss, gradient_norm; and what ``evaluation`` measured.
    """
    check_codebook(model, codebook, "codebook")
    check_data(model, train, config.caption_length)
    if (evaluation is None) != (config.evaluation is None):
        raise ValueError("evaluation and config.evaluation go together")
    if config.answer_steps and questions is None:
        raise ValueError("steps that answer need questions")
    model.to(device)
    codebook = codebook.to(device)
    for module in (generator, scorer):
        if isinstance(module, nn.Module):
            module.to(device).eval().requires_grad_(False)
    steps = SequenceSteps(config, model, tokenizer, codebook, train, reward, generator, scorer, questions)
    judges = [m.state_dict() for m in (generator, scorer) if isinstance(m, nn.Module)]
    frozen = [tensor for state in judges for tensor in state.values()]
    return run_training(
        model,
        "sequence-level training",
        config,
        steps,
        learning_rate=lambda step: SCHEDULES[config.schedule](
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        started_from=fingerprint(
            model,
            model.config,
            config.determining(),
            train.keys,
            steps.captions.texts,
            codebook,
            *frozen,
            *(questions.contents() if questions and config.answer_steps else ()),
        ),
        checkpoints=checkpoints,
        evaluation=evaluation,
        stopping=config.evaluation.stopping if config.evaluation else None,
    )
