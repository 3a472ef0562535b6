"""``diptych doctor``: what this machine lacks to use a model, and how to mend it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import typer

from diptych.model.command.options import MODEL_VARIABLE, Device, Json, Model, Precision
from diptych.model.command.pictures import as_their_bytes, json_line, readable_name
from diptych.model.errors import UserError

if TYPE_CHECKING:
    from diptych.model import Diptych

OLDEST_PYTHON = (3, 11)
NEEDED = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "diptych-features",
    "diptych-eval",
)
# What works without each of these, and what does not.
OPTIONAL = {
    "open_clip_torch": "reranking and scores",
    "huggingface_hub": "models of the Hugging Face Hub",
    "transformers": "saving tokenizers and importing checkpoints",
    "fastapi": "web demo",
    "uvicorn": "web demo",
}


@dataclass(frozen=True)
class Finding:
    """``state``: ``ok``, ``note`` (works, but) or ``problem``; ``message``: what was found, and the mend."""

    subject: str
    state: Literal["ok", "note", "problem"]
    message: str


def doctor(
    model: Model = None, device: Device = None, precision: Precision = "auto", as_json: Json = False
) -> None:
    """Tell what this machine lacks to use a model; the status is 1 if anything."""
    as_their_bytes()
    problems = False
    for finding in findings(model, device, precision):
        problems |= finding.state == "problem"
        if as_json:
            print(json_line({**asdict(finding), "message": readable_name(finding.message)})[0])
        else:
            mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[finding.state]
            print(f"{mark}  {finding.subject}: {finding.message}")
    if problems:
        raise typer.Exit(1)


def findings(model: str | None, device: str | None, precision: str) -> Iterator[Finding]:
    """All findings, one after the other; the model's only where the packages that it needs are there."""
    yield check_python()
    missing = []
    for name in (*NEEDED, *OPTIONAL):
        finding = check_package(name)
        missing += [name] if finding.state == "problem" else []
        yield finding
    if missing:
        yield Finding("model", "note", "not looked at, because packages are missing")
        return
    yield guarded("torch", check_torch)
    yield guarded("device", lambda: check_device(device, precision))
    yield guarded("model", lambda: check_model(model, device, precision))


def guarded(subject: str, check: Callable[[], Finding]) -> Finding:
    """What ``check`` finds; a problem where it fails itself."""
    try:
        return check()
    except UserError as error:
        return Finding(subject, "problem", str(error))
    except Exception as error:  # noqa: BLE001 - whatever breaks on this machine is the finding
        return Finding(subject, "problem", f"{type(error).__name__}: {error}")


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Finding("python", "problem", f"{version}; install Python 3.11 or newer")
    return Finding("python", "ok", version)


def check_package(name: str) -> Finding:
    """Whether a package is installed; its import is not tried."""
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        mend = f"`pip install {name}`"
        if name in OPTIONAL:
            return Finding(name, "note", f"not installed: no {OPTIONAL[name]}; {mend}")
        return Finding(name, "problem", f"not installed; {mend}")


def check_torch() -> Finding:
    """A compiled operator of torchvision runs: both are builds that go together."""
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return Finding("torch", "ok", f"{torch.__version__} and torchvision's operators work")


def check_device(device: str | None, precision: str) -> Finding:
    import torch

    from diptych.features.processor import cpu_quota, fit_torch_threads, seen_cores
    from diptych.model.packaged.machine import resolve_device
    from diptych.model.precision import resolve_precision

    fit_torch_threads()
    place = resolve_device(device)
    dtype = str(resolve_precision(place, precision)).removeprefix("torch.")
    if place.type == "cuda":
        free, total = (count / 2**30 for count in torch.cuda.mem_get_info(place))
        name = torch.cuda.get_device_name(place)
        return Finding("device", "ok", f"{place}: {name}, {free:.1f} of {total:.1f} GiB free, {dtype}")
    cores, quota = seen_cores(), cpu_quota()
    share = "" if quota is None else f", of which this container gets the time of {quota:g}"
    return Finding(
        "device", "ok", f"{place}: {torch.get_num_threads()} threads on {cores} cores{share}, {dtype}"
    )


def check_model(model: str | None, device: str | None, precision: str) -> Finding:
    """The model loads, paints, captions what it painted, and answers where it has a head for that."""
    if not model:
        return Finding("model", "note", f"none is named; give --model, or set {MODEL_VARIABLE}")
    from diptych.model import Diptych

    start = time.perf_counter()
    d = Diptych.from_pretrained(model, device, precision)
    loaded = time.perf_counter() - start
    image = d.draw([[0] * d.grid_size**2])[0]
    caption = d.caption(image)[0].text
    # a model that has learned little may write no word, and paint all the same
    if not any(map(str.isalnum, caption)):
        caption = min(word for word in d.tokenizer.vocabulary if word.isalpha())
    timed = {"captions": lambda: d.caption(image), "paints": lambda: d.paint(caption)}
    if d.can_answer and (word := known_word(d, caption)):
        d.answer(image, word)
        timed["answers"] = lambda: d.answer(image, word)
    done = [f"{what} in {seconds_of(work):.2f} s" for what, work in timed.items()]
    there = {
        "answer head": d.can_answer,
        "head for pairs of pictures": d.can_verify,
        "scorer": d.has_scorer,
        "examples": d.has_examples,
    }
    without = [name for name, has in there.items() if not has]
    lacks = f"; it has no {' and no '.join(without)}" if without else ""
    return Finding("model", "ok", f"{d.folder}: complete, loaded in {loaded:.1f} s, {', '.join(done)}{lacks}")


def known_word(d: Diptych, caption: str) -> str | None:
    """A word that the model takes for a question, which is enough to see it answer; None where the caption has none."""
    for word in caption.split():
        with contextlib.suppress(UserError):
            d.check_question(word)
            return word
    return None


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
