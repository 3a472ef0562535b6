"""The adversarial game that is played beside a reconstruction, after a warm start of that alone (X-LXMERT D.5): hinge loss, AC-GAN over
the codes where they stay what they are, and feature matching. The discriminator learns along, in the same steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.parametrize import cached

from diptych.model.errors import UserError
from diptych.model.networks.discriminator import Discriminator, DiscriminatorConfig, Judgement
from diptych.model.objectives.perceptual import feature_distance, shifted
from diptych.model.training.optimisation import Opponent
from diptych.model.training.schedules import SCHEDULES

# A history row shows collapse where a loss is so many times its best, or the hinge loss is so close to 0.
COLLAPSED_LOSS = 3.0
COLLAPSED_HINGE = 0.01


@dataclass(frozen=True, kw_only=True)
class GameConfig:
    """The adversarial game; X-LXMERT's values (D.2, D.4, D.5) in brackets.

    warm_start_steps: steps of reconstruction before it [0].
    discriminator: its widths.
    learning_rate: of the discriminator, the peak [1e-4; the generator's is 4e-4].
    adversarial_weight, code_weight: of the hinge and the AC-GAN loss, for both networks [1, 1]; 0 where the codes
        move while the network learns: then the discriminator has no head for them.
    feature_weight: of feature matching [10].
    shift: as perceptual_shift, before the discriminator, whose strides paint a grid too [0].
    restart: the rate of who paints when the game begins, as a share of its peak, from which it follows its schedule
        anew, having ended that of the warm start; 0: one schedule for both [0].
    """

    warm_start_steps: int
    discriminator: DiscriminatorConfig
    learning_rate: float
    adversarial_weight: float
    code_weight: float
    feature_weight: float
    shift: int = 0
    restart: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise UserError(f"game.shift must be at least 0, is {self.shift}")
        if not 0 <= self.restart <= 1:
            raise UserError(f"game.restart must be from 0 to 1, is {self.restart}")


def check_game(game: GameConfig | None, steps: int) -> None:
    """Raise UserError where the game of a training of so many `steps` would never begin."""
    if game is not None and not 0 <= game.warm_start_steps < steps:
        raise UserError(
            f"game.warm_start_steps must be from 0 to below steps ({steps}), is {game.warm_start_steps}"
        )


def is_on(game: GameConfig | None, step: int) -> bool:
    """Whether the game is played in `step`."""
    return game is not None and step >= game.warm_start_steps


def painter_rate(
    game: GameConfig | None, schedule: str, step: int, steps: int, peak: float, warmup_share: float
) -> float:
    """The learning rate in `step` of the network that paints, with or without a game."""
    rate = SCHEDULES[schedule]
    if game is None or not game.restart:
        return rate(step, steps, peak, warmup_share)
    if not is_on(game, step):
        return rate(step, game.warm_start_steps, peak, warmup_share)
    return rate_in_game(game, schedule, step, steps, game.restart * peak)


def rate_in_game(game: GameConfig, schedule: str, step: int, steps: int, peak: float) -> float:
    """A learning rate that follows a schedule from the start of the game on, without warm-up."""
    start = game.warm_start_steps
    return SCHEDULES[schedule](step - start, steps - start, peak, 0.0)


def opponent_of(
    game: GameConfig,
    discriminator: Discriminator,
    device: torch.device,
    schedule: str,
    steps: int,
    betas: tuple[float, float],
) -> Opponent:
    """The discriminator as a training's opponent, on its device. Its learning rate follows the training's schedule from the start of
    the game on, without warm-up."""

    def rate(step: int) -> float:
        return rate_in_game(game, schedule, step, steps, game.learning_rate)

    discriminator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Opponent(discriminator, rate, betas)


def play(
    config: GameConfig, discriminator: Discriminator, painted: Tensor, real: Tensor, codes: Tensor | None
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """One round of the game (D.5, equations 1 to 4, 6 and 7): the unweighted terms by name, and both players' losses.

    The generator's loss reaches `painted` alone, the discriminator's its own weights alone.
    painted and real: float [n, 3, S, S] in -1..1; codes: int64 [n, 64], of both; None: the discriminator
    reads none.
    """
    painted, canvas = painted.detach().requires_grad_(), painted
    seen, seen_real = shifted(config.shift, painted, real)
    with cached():  # one power iteration, and the same weights for both
        of_real, judged = discriminator(seen_real), discriminator(seen)
    terms = {"adversarial": -judged.verdicts.mean()}
    if codes is not None:
        terms["code"] = code_loss(judged, codes)
    terms["feature_matching"] = feature_distance(
        judged.features, [maps.detach() for maps in of_real.features]
    )
    weights = {
        "adversarial": config.adversarial_weight,
        "code": config.code_weight,
        "feature_matching": config.feature_weight,
    }
    generator_loss = weighted_sum(terms, weights)
    # taken here, so that one pass over the painted pictures serves both players
    (gradient,) = torch.autograd.grad(generator_loss, painted, retain_graph=True)
    hinge = functional.relu(1 - of_real.verdicts).mean() + functional.relu(1 + judged.verdicts).mean()
    own = {"discriminator_hinge": hinge}
    discriminator_loss = config.adversarial_weight * hinge
    if codes is not None:
        own["discriminator_code"] = code_loss(of_real, codes) + terms["code"]
        discriminator_loss = discriminator_loss + config.code_weight * own["discriminator_code"]
    players = (WithGradient.apply(canvas, generator_loss.detach(), gradient), discriminator_loss)
    return {**terms, **own}, players


class WithGradient(torch.autograd.Function):
    """A scalar `value` whose gradient with respect to `source` is known already."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return outer * ctx.saved_tensors[0], None, None


def code_loss(judgement: Judgement, codes: Tensor) -> Tensor:
    """Cross-entropy of the codes int64 [n, 64], a mean over cells (D.5, equation 3)."""
    assert judgement.code_logits is not None
    return functional.cross_entropy(judgement.code_logits.flatten(0, 1), codes.flatten())


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum of `losses`, each times its weight."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


def collapse(history: list[dict[str, float]], since: int = -1) -> str | None:
    """What the last history row shows of a collapse of the game, or None.

    Painted pictures that fall apart or become alike no longer resemble their own real ones: then a loss is 3 times
    its best. A discriminator whose hinge loss is below 0.01 finds every picture out, and neither network learns on.
    since: rows up to this step are of other losses.
    """
    last = history[-1]
    if last.get("discriminator_hinge", 1.0) < COLLAPSED_HINGE:
        return f"the discriminator has won (its hinge loss is {last['discriminator_hinge']:.3g})"
    for name in ("reconstruction", "perceptual"):
        best = min(
            (row.get(name, math.inf) for row in history if row.get("step", 0) > since), default=math.inf
        )
        if "discriminator_hinge" in last and last.get(name, 0.0) > COLLAPSED_LOSS * best:
            return f"the painted pictures have collapsed (the {name} loss is {last[name]:.3g}, its best {best:.3g})"
    return None
