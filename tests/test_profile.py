"""`python -m pipelines.runner.profile`: as the pages show it, and what it says where an override is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_clone import REPOSITORY

from pipelines.runner.check import check_params, stages_with_sections
from pipelines.runner.params import read_params
from pipelines.runner.profile import main

COMMAND = "pipelines.runner.profile"
STAGES = stages_with_sections(REPOSITORY / "dvc.yaml")


def shown(page: str) -> list[list[str]]:
    """The arguments of every profile command in a page's shell blocks, as bash reads the blocks."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if COMMAND in block]
    told = "dvc() { :; }; make() { :; }; python() { printf '%s\\0' \"$@\" END; }\n"
    command = [shutil.which("bash") or "bash", "-euc", told + "".join(blocks)]
    read = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": ""})
    commands = [words.split("\0")[:-1] for words in read.stdout.split("END\0")[:-1]]
    assert all(words[:2] == ["-m", COMMAND] for words in commands)
    return [words[2:] for words in commands]


def composed(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> dict[str, Any]:
    """What the command writes with these arguments, which is right for every stage."""
    monkeypatch.chdir(folder)
    main(arguments)
    params = read_params(folder / "params.yaml")
    check_params(params, STAGES)
    return params


def test_photographs_by_every_profile_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = shown("docs/your-photographs.md")
    assert [words[0] for words in commands] == ["smoke", "toybox", "coco"]
    for words in commands:
        params = composed(tmp_path, monkeypatch, words)
        dataset = params["dataset"]
        assert dataset["toybox"] is None and dataset["coco"]["karpathy"] is None
        assert [source["split"] for source in dataset["coco"]["sources"]] == ["train", "val/test"]
        assert dataset["coco"]["sources"][1]["instances"] == "data/photos/annotations/instances_val2017.json"
        for samples in params["generate"]["sets"].values():  # restval would end the run after all trainings
            assert {split for sample in samples.values() if sample for split in sample["splits"]} <= {"val", "test"}


def test_a_trained_detector_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors of others have their own sizes and schedule: the page's three overrides in the place of one."""
    page = (REPOSITORY / "docs/your-photographs.md").read_text(encoding="utf-8")
    (overrides,) = re.findall(r"`(detector\.source=FILE\.pth [^`]*)`", page)
    command = [word for word in shown("docs/your-photographs.md")[0] if "grid_attribute_weight" not in word]
    params = composed(tmp_path, monkeypatch, [*command, *overrides.split()])
    assert params["detector"] == {"source": "FILE.pth", "network": None, "training": None}


def test_a_detector_of_coco_s_sizes_as_its_comment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comment = (REPOSITORY / "pipelines/conf/profile/coco.yaml").read_text(encoding="utf-8").replace("\n#", "")
    (network,) = re.findall(r"network (\{image_size: [^}]*\})", comment)
    training = "{steps: 9, batch_size: 8, learning_rate: 0.1, weight_decay: 0.0, grid_class_weight: 1.0,"
    training += " grid_attribute_weight: 0, grid_box_weight: 1.0, grid_size_weight: 1.0}"
    overrides = ["detector.source=code/sources/detector.json", f"detector.network={network}", f"detector.training={training}"]
    assert composed(tmp_path, monkeypatch, ["coco", *overrides])["detector"]["network"]["feature_dim"] == 2048


def test_x_lxmert_on_nlvr2_s_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/x-lxmert.md has it: with the files listed and the task added, coco fine-tunes on statements."""
    files = "x_lxmert.questions.files.nlvr2=[{form: nlvr2, questions: data/coco/questions/train.json}]"
    params = composed(tmp_path, monkeypatch, ["coco", files, "x_lxmert.tasks=[vqa,gqa,nlvr2]"])
    training = params["x_lxmert"]["fine_tuning"]["nlvr2"]["training"]
    epochs = training["steps"] * training["batch_size"] / 86_373
    assert (round(epochs), training["learning_rate"]) == (4, 5e-5), "LXMERT's"


def test_x_lxmert_s_weights_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = shown("docs/x-lxmert.md")
    assert composed(tmp_path, monkeypatch, command)["train_token"]["initial"] == "models/x_lxmert/pretrained"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cluster.size=3", "profile: smoke: Could not override 'cluster.size'"),
        ("cluster.k", "profile: smoke: cluster.k: Error parsing override"),
        ("cluster.k=[1,", "profile: smoke: cluster.k=[1,: no viable alternative"),
        ("~generate.sets.train", "profile: smoke: Could not delete"),
        ("cluster.k=${cluster.size}", "profile: smoke: Interpolation key"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, run_here, override: str, words: str) -> None:
    done = run_here(tmp_path, lambda: main(["smoke", override]))
    said = done.stderr.strip()
    assert done.status == 1 and said.startswith(words) and "\n" not in said
    assert not (tmp_path / "params.yaml").exists()


def test_a_full_disk_leaves_the_parameters_that_there_are(tmp_path: Path) -> None:
    """A limit to the size of a file in the place of a full disk."""
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096,) * 2)\n"
        "from pipelines.runner.profile import main; main(['toybox'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
