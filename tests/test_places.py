"""Where things lie: outputs behind links to another disk, and a temporary folder whose name is too long for Ray."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from pipeline_clone import Clone, make_clone

from pipelines.commands.doctor import clone as of_clone
from pipelines.commands.doctor.installation import check_ray as doctors_check_ray
from pipelines.runner.check import check_ray
from pipelines.runner.check import main as main_check
from pipelines.runner.params import ParameterError
from pipelines.runner.places import check_places

PIPELINE = """
stages:
  one:
    cmd: "true"
    deps: [data/coco]
    outs: [data/dataset/images, models/one: {cache: false}]
    metrics: [metrics/one.json: {cache: false}]
"""
TABLE = """
stages:
  two:
    wdir: ../../..
    cmd: "true"
    outs: ["ablations/models/two_${item.row}/net"]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two pipeline files, and a disk beside their folder."""
    folder = tmp_path / "clone"
    (folder / "pipelines/tables/table1").mkdir(parents=True)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "pipelines/tables/table1/dvc.yaml").write_text(TABLE)
    (tmp_path / "disk/things").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "name", ["data", "data/dataset", "models", "metrics", "ablations", "ablations/models"]
)
@pytest.mark.parametrize("target", ["things", "unmounted/things"])
def test_a_link_out_of_the_clone_above_an_output(small: Path, name: str, target: str) -> None:
    link, target_path = small / name, small.parent / "disk" / target
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target_path)
    with pytest.raises(ParameterError) as caught:
        check_places(small)
    message = str(caught.value)
    assert message.startswith(f"{name} is a link to {target_path}, ") and "\n" not in message
    assert f"rm {name} && mkdir {name}" in message
    assert f"make team-cache DIRECTORY={target_path.parent}/diptych" in message
    finding = of_clone.check_places(small)
    assert (finding.level, finding.text) == ("problem", message)


def test_links_that_do_no_harm(small: Path) -> None:
    """Within the clone, beside outputs, an output itself (DVC's cache.type symlink), and the clone reached by a link."""
    disk = small.parent / "disk/things"
    (small / "elsewhere").mkdir()
    (small / "data").symlink_to("elsewhere")
    (small / "data/dataset").mkdir()
    (small / "models").mkdir()
    for name in ("data/coco", "data/dataset/images", "models/one", "notes"):
        (small / name).symlink_to(disk)
    (small.parent / "way").symlink_to(small)
    check_places(small)
    check_places(small.parent / "way")
    assert of_clone.check_places(small).level == "ok"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("linked") / "clone")
    made.set_params("machine.workers=0")
    return made


def test_it_is_found_before_work_starts_and_the_mend_helps(clone: Clone, run_here) -> None:
    """`make run`'s check, the first stage, any stage, and the doctor say the same; what they say to do makes DVC work."""
    disk = clone.folder.parent / "disk"
    (disk / "data/coco").mkdir(parents=True)
    (clone.folder / "data").symlink_to(disk / "data")
    said = set()
    checked = run_here(clone.folder, main_check)
    assert checked.status == 1 and checked.stderr.count("\n") == 1
    said.add(checked.stderr.strip())
    for module in ("code", "cluster"):
        done = clone.run("python", "-m", f"pipelines.{module}")
        assert done.returncode == 1 and done.stdout == "", done
        (line,) = done.stderr.strip().splitlines()
        said.add(line.removeprefix(f"{module}: "))
    (message,) = said
    assert message == of_clone.check_places(clone.folder).text
    refused = clone.run("dvc", "repro", "dataset")
    assert refused.returncode != 0 and message in refused.stderr
    assert [path.name for path in (disk / "data").iterdir()] == ["coco"], "nothing was written"

    make_folder = re.search(r"\((rm data .*?)\)", message)
    directory = re.search(r"make team-cache DIRECTORY=(\S+)`", message)
    link_own = re.search(r"\((ln -s .*?)\)", message)
    assert make_folder and directory and link_own
    subprocess.run(make_folder[1], shell=True, cwd=clone.folder, check=True)
    subprocess.run(link_own[1].replace("NAME", "coco"), shell=True, cwd=clone.folder, check=True)
    shared = clone.run("python", "-m", "pipelines.commands.team_cache", directory[1])
    assert shared.returncode == 0, shared.stderr
    assert run_here(clone.folder, main_check).status == 0
    assert clone.repro("dataset") == ["code", "dataset"]
    assert (clone.folder / "data/coco").is_symlink() and list((disk / "diptych/dvc/files").rglob("*.dir"))


# --- a temporary folder with a long name


def with_params(**machine: object) -> dict:
    return {"machine": {"workers": "auto", **machine}, "extract": {"source": "models/detector"}}


def test_a_long_temporary_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(
        ParameterError, match=r"^TMPDIR=/.*`export RAY_TMPDIR=/tmp`.*machine.workers to 0"
    ) as caught:
        check_ray(with_params())
    finding = doctors_check_ray()
    assert (finding.level, finding.text) == ("problem", str(caught.value))
    # who starts no Ray here does not mind
    check_ray(with_params(workers=0))
    check_ray(with_params(ray_address="head:6379"))
    check_ray({**with_params(), "extract": {"source": "data/xlxmert"}})
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_ray(with_params())


def test_make_run_says_so(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here) -> None:
    other = clone.copy(tmp_path / "other")
    (other.folder / "data").unlink() if (other.folder / "data").is_symlink() else None
    other.set_params()
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    done = run_here(other.folder, main_check)
    assert done.status == 1 and done.stderr.startswith("TMPDIR=") and done.stderr.count("\n") == 1
