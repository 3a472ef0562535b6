"""What a call is given besides pictures: captions, seeds, codes and cells, checked."""

from __future__ import annotations

import operator
import secrets
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.packaged.pictures import Picture, Pictures, listed
from diptych.model.tokenizer import whole_characters


def listed_captions(captions: str | Sequence[str], what: str = "captions") -> list[str]:
    """One caption or several as a list, called ``what`` in warnings. Halves of characters, which can be neither printed nor sent, become U+FFFD."""
    texts = [captions] if isinstance(captions, str) else list(captions)
    whole = [whole_characters(text) if isinstance(text, str) else text for text in texts]
    if broken := [text for text, kept in zip(texts, whole, strict=True) if text is not kept]:
        warnings.warn(
            f"halves of characters are left out of {len(broken)} of {len(whole)} {what}, such as {broken[0]!a}",
            stacklevel=2,
        )
    return whole


def pairs(pictures: Pictures, captions: str | Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Return pictures and captions as lists that go together.

    Raises:
        UserError: not as many captions as pictures.
    """
    items, texts = listed(pictures), listed_captions(captions)
    if len(items) != len(texts):
        raise UserError(f"{len(texts)} captions for {len(items)} pictures; give one caption for each")
    return items, texts


def seed_list(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one seed per item: the given ones, or the same for all; None draws one. NumPy's whole numbers are some too.

    Raises:
        UserError: not one per item, or one is no whole number from 0 to 2**63 - 1.
    """
    if seed is None:
        seed = secrets.randbelow(2**31)
    try:
        seeds: list[Any] = list(seed)  # type: ignore[arg-type]
    except TypeError:  # one number, whatever kind of number
        seeds = [seed] * count
    if len(seeds) != count:
        raise UserError(f"seed: {len(seeds)} seeds for {count} items; give one for all, or one each")
    return [_seed(number) for number in seeds]


def _seed(number: Any) -> int:
    """One seed as Python's int; a UserError where it is something else."""
    try:
        whole = operator.index(number)
    except TypeError:
        whole = -1
    truth = isinstance(number, bool) or (isinstance(number, Tensor) and number.dtype == torch.bool)
    if truth or not 0 <= whole < 2**63:
        raise UserError(f"seed: {number!r} is no whole number from 0 to 2**63 - 1")
    return whole


def whole_numbers(values: Any, what: str) -> Tensor:
    """Return an array of whole numbers as int64, one of bools as it is.

    Raises:
        UserError: it is something else; the message calls it ``what``.
    """
    try:
        array = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{what}: not an array of whole numbers ({error})") from None
    if array.numel() and (array.is_floating_point() or array.is_complex()):  # an empty list is one of floats
        raise UserError(f"{what}: whole numbers are wanted, these are {array.dtype} {list(array.shape)}")
    return array if array.dtype == torch.bool else array.long()


def code_rows(
    codes: Tensor | Sequence[Sequence[int]], cells: int, codebook_size: int, least: int = 0
) -> Tensor:
    """Return codes as int64 ``[n, cells]``.

    Raises:
        UserError: another shape or type, or a code that is not from ``least`` to ``codebook_size`` - 1.
    """
    rows = whole_numbers(codes, "codes")
    if rows.ndim != 2 or rows.shape[1] != cells or rows.dtype != torch.int64:
        raise UserError(
            f"codes: whole numbers of shape [n, {cells}] ({cells} of one painting), "
            f"these are {rows.dtype} {list(rows.shape)}"
        )
    if rows.numel() and not least <= int(rows.min()) <= int(rows.max()) < codebook_size:
        raise UserError(
            f"codes: from {least} to {codebook_size - 1}, these are {int(rows.min())} to {int(rows.max())}"
        )
    return rows


def cell_mask(cells: Sequence[int] | Tensor | None, count: int, what: str) -> Tensor:
    """Return cells, given by number or as bool ``[count]``, as bool ``[count]``.

    Raises:
        UserError: there is no such cell, or they are something else, called ``what``.
    """
    chosen = whole_numbers(cells, what)
    if chosen.dtype == torch.bool:
        if chosen.shape != (count,):
            raise UserError(f"{what}: a mask of shape {list(chosen.shape)}, the grid has {count} cells")
        return chosen.cpu()
    mask = torch.zeros(count, dtype=torch.bool)
    if chosen.numel():
        if chosen.ndim != 1:
            raise UserError(f"{what}: a list of whole numbers, or a mask of bool")
        if not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
            raise UserError(
                f"{what}: from 0 (top left) to {count - 1}, "
                f"these are {int(chosen.min())} to {int(chosen.max())}"
            )
        mask[chosen.cpu()] = True
    return mask
