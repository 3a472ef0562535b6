"""Both dvc.yaml list for every stage exactly the package modules that the stage runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"]
ABLATIONS = YAML(typ="safe").load(REPOSITORY / "pipelines/tables/dvc.yaml")["stages"]
TOYBOX = YAML(typ="safe").load(REPOSITORY / "pipelines/conf/profile/toybox.yaml")
PACKAGES = {
    f"diptych.{name}": REPOSITORY / f"packages/{name}/src/diptych/{name}"
    for name in ("features", "eval", "model")
}
# The runner reads parameters and catches errors for all stages; dvc.yaml leaves it out on purpose.
RUNNER = {
    "pipelines.runner.stage", "pipelines.runner.params", "pipelines.runner.profile", "pipelines", "pipelines.tables.item",
    "pipelines.tables",
}  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Imports of all our modules, those inside functions included."""
    return grimp.build_graph("pipelines", *PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def file_of(module: str) -> Path:
    """The source file of one of our modules."""
    for package, folder in {**PACKAGES, "pipelines": REPOSITORY / "pipelines"}.items():
        if module == package or module.startswith(package + "."):
            path = folder.joinpath(*module[len(package) :].strip(".").split("."))
            return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    raise AssertionError(f"{module} is none of our modules")


def modules_run_by(module: str, graph: grimp.ImportGraph) -> set[str]:
    """All modules that `import module` runs, also the packages that contain them."""
    found, open_modules = set(), {module}
    while open_modules:
        current = open_modules.pop()
        if current in found or current in RUNNER or current not in graph.modules:
            continue
        found.add(current)
        parent = current.rpartition(".")[0]
        open_modules |= graph.find_modules_directly_imported_by(current) | ({parent} if parent else set())
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_modules_a_stage_runs(stage: str, graph: grimp.ImportGraph) -> None:
    assert STAGES[stage]["cmd"] == f"python -m pipelines.{stage}"
    check_dependencies(stage, STAGES[stage], f"pipelines.{stage}", graph)


@pytest.mark.parametrize("stage", ABLATIONS)
def test_dependencies_are_the_modules_an_ablation_runs(stage: str, graph: grimp.ImportGraph) -> None:
    entry = ABLATIONS[stage]
    keys = " ".join(f"${{item.{key}}}" for key in entry.get("matrix", ()))
    assert entry["cmd"] == f"python -m pipelines.tables.{stage} {keys}".strip()
    check_dependencies(stage, entry, f"pipelines.tables.{stage}", graph)


def check_dependencies(stage: str, entry: dict, module: str, graph: grimp.ImportGraph) -> None:
    """The stage lists the modules that `module` runs, and no others."""
    needed = {file_of(name) for name in modules_run_by(module, graph)}
    needed = {path for path in needed if path.exists() and path.stat().st_size}  # no or empty __init__.py

    listed: set[Path] = set()
    for dep in entry["deps"]:
        if dep.startswith("ablations/"):
            continue
        dep = re.sub(r"\$\{(\w+)\.(\w+)\}", lambda key: TOYBOX[key[1]][key[2]], dep)
        if not dep.startswith(("packages/", "pipelines/")):
            continue
        path = REPOSITORY / dep
        assert path.exists(), f"{stage} depends on {dep}, which does not exist"
        listed |= set(path.rglob("*.py")) if path.is_dir() else {path}
    listed = {path for path in listed if path.suffix == ".py" and path.stat().st_size}

    def names(paths: set[Path]) -> list[str]:
        return sorted(str(path.relative_to(REPOSITORY)) for path in paths)

    assert names(needed - listed) == [], f"dvc.yaml: {stage} runs these, but does not list them"
    assert names(listed - needed) == [], f"dvc.yaml: {stage} lists these, but does not run them"


@pytest.mark.parametrize(
    ("item", "stages", "own"),
    [
        ("token", ["train_token"], set()),
        # no evaluation meanwhile, which alone reads the detector
        ("sequence", ["train_sequence"], {"models/token", "models/detector"}),
        ("features", ["train_sequence"], {"models/token", "models/detector"}),
        ("measured", ["generate", "evaluate"], {"models/sequence", "data/generated"}),
        ("sampler", ["generate", "evaluate"], {"data/generated"}),
    ],
)
def test_an_ablation_lists_the_files_that_its_stages_read(
    item: str, stages: list[str], own: set[str]
) -> None:
    """What is no module: data, models and the sizes of networks, but those that the item has made itself or does not read."""
    files = {dep for stage in stages for dep in STAGES[stage]["deps"] if not dep.endswith(".py")}
    assert own <= files
    assert files - own <= set(ABLATIONS[item]["deps"])
    params = {param for stage in stages for param in STAGES[stage]["params"]}
    assert params - {"seed"} <= set(ABLATIONS[item]["params"])


def test_no_output_persists() -> None:
    """DVC accepts old content of a persisting output as new (docs: side stores replace it)."""
    for stage, entry in [*STAGES.items(), *ABLATIONS.items()]:
        for out in [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]:
            assert not (isinstance(out, dict) and any(o.get("persist") for o in out.values())), stage


def test_a_forward_pass_needs_no_heavy_library() -> None:
    """`diptych.model` decodes on a machine with only torch, numpy, safetensors, tqdm and transformers."""
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "faiss", "pyarrow", "webdataset", "open_clip", "dvc", "pycocoevalcap", "torchvision"}:
            raise ModuleNotFoundError(f"{name} is absent on this machine", name=name)
sys.meta_path.insert(0, Absent())
import diptych.model.decoding.caption, diptych.model.decoding.paint
import diptych.model.networks.image_generator, diptych.model.pretrained, diptych.model.networks.two_streams
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
