"""The machine: processor, memory, GPU, Java, encoding."""

from __future__ import annotations

import contextlib
import locale
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.commands.doctor.finding import Finding, note, ok, one_line, problem

PEAK_MEMORY = {"smoke": 2.0, "toybox": 3.1}  # GiB of a whole run, measured (metrics/stages.json)


def check_processor(threads: int | str, cores: int, quota: float | None) -> Finding:
    """machine.threads fits the cores this process may run on, and a container's share of their time."""
    fitting = cores if quota is None else max(1, min(cores, int(quota)))
    said = f"{cores} cores" if quota is None else f"{cores} cores, {quota:g} cores' time for this container"
    wanted = fitting if threads == "auto" else int(threads)
    if wanted > fitting:
        return note(f"{said}, and machine.threads is {wanted}: set it to auto in params.yaml, here {fitting}")
    return ok(f"{said}, {wanted} threads for a stage")


def check_memory(profile: str | None, total: float, available: float) -> Finding:
    """total, available: GiB. What a run of the profile took where it was measured is there."""
    said = f"{available:.1f} of {total:.1f} GiB free"
    peak = PEAK_MEMORY.get(profile or "")
    if peak is not None and total < peak:
        return problem(
            f"{said}, and {profile} needs {peak:g}: a larger machine, or make profile PROFILE=smoke"
        )
    if peak is not None and available < peak:
        return note(f"{said}, and {profile} needs {peak:g}: close other programs, or lower machine.workers")
    return ok(said if peak is None else f"{said}; {profile} needs {peak:g}")


def check_gpu(device: str, cuda: Sequence[str], build: str | None, driver: str | None) -> Finding:
    """cuda: names of the devices that torch sees. build: torch's CUDA version. driver: NVIDIA's, None if there is none."""
    wanted = device.startswith("cuda")
    if cuda:
        names = ", ".join(f"{count} x {name}" for name, count in Counter(cuda).items())
        return ok(f"{names}; driver {driver or 'unknown'}, torch built for CUDA {build}")
    level = problem if wanted else note
    if driver is not None and build is None:
        return level(
            f"driver {driver} is there, but torch is a build without CUDA: install torch's CUDA build"
        )
    if driver is not None:
        return level(
            f"driver {driver} is there, but torch (CUDA {build}) sees no device: is CUDA_VISIBLE_DEVICES empty, "
            "or the driver older than that CUDA?"
        )
    if wanted:
        return problem(f"machine.device is {device}, and there is no GPU: set it to auto in params.yaml")
    return ok("none: everything runs on the processor")


def find_gpus() -> tuple[list[str], str | None, str | None]:
    """What check_gpu wants to know of this machine."""
    import torch

    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    driver = None
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        driver = found[0] if (found := re.search(r"\d+\.\d+(\.\d+)?", text)) else "unknown"
    return names, torch.version.cuda, driver


def check_java(wanted: bool = False) -> Finding:
    """Only some caption metrics of other projects need Java. wanted: the parameters do (`evaluate.java`)."""
    from diptych.eval.captions.java import NotRun, find_java

    uses = "METEOR and SPICE of pycocoevalcap need it, nothing else"
    try:
        return ok(f"{find_java()} ({uses})")
    except NotRun as error:
        if wanted:
            return problem(f"{one_line(error)}; or set evaluate.java to false in params.yaml")
        return note(f"{one_line(error)} ({uses})")


def check_encoding(preferred: str | None = None) -> Finding:
    """Texts are UTF-8: captions, manifests, logs."""
    found = preferred or locale.getpreferredencoding(False)
    if re.sub(r"[-_.]+", "", found).lower() != "utf8":
        return note(
            f"this locale's encoding is {found}: export LC_ALL=C.UTF-8, or texts beyond ASCII may fail to print"
        )
    return ok("UTF-8")
