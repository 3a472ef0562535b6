"""What a stage depends on: its code, by code/, is what it imports; files are those that it reads."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

from pipelines.runner.code import BY_SOURCE, NAMED_AS_SOURCE, Code, entries

REPOSITORY = Path(__file__).resolve().parents[1]
PIPELINES = {
    path.relative_to(REPOSITORY).as_posix(): YAML(typ="safe").load(path)["stages"]
    for path in (REPOSITORY / "dvc.yaml", *sorted((REPOSITORY / "pipelines").rglob("dvc.yaml")))
}
STAGES = PIPELINES["dvc.yaml"]
TABLE1 = PIPELINES["pipelines/tables/table1/dvc.yaml"]
TABLE_X_LXMERT = PIPELINES["pipelines/tables/table_x_lxmert/dvc.yaml"]
PACKAGES = {
    f"diptych.{name}": REPOSITORY / f"packages/{name}/src/diptych/{name}"
    for name in ("features", "eval", "model")
}
# sizes of networks by name, which parameters choose: dvc.yaml names the chosen one
CONFIGS = "packages/model/src/diptych/model/networks/configs/"
ENTRIES = sorted(set(entries().values()))


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Imports of all our modules, those inside functions included."""
    return grimp.build_graph("pipelines", *PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def modules_run_by(module: str, graph: grimp.ImportGraph) -> set[str]:
    """All modules that `import module` runs, also the packages that contain them, but for those that do not count."""
    found, open_modules = set(), {module}
    while open_modules:
        current = open_modules.pop()
        runner = current.startswith("pipelines.runner.") and current != "pipelines.runner.processes"
        runner |= current == "pipelines.tables.item"
        by_source = module not in BY_SOURCE and f"{current}.".startswith(f"{BY_SOURCE[0]}.")
        if current in found or runner or by_source or current not in graph.modules:
            continue
        found.add(current)
        parent = current.rpartition(".")[0]
        open_modules |= graph.find_modules_directly_imported_by(current) | ({parent} if parent else set())
    return found


def says_more(module: str) -> bool:
    """Whether one of our modules has more than a docstring; folders that are no packages have nothing."""
    package = next(name for name in ("pipelines", *PACKAGES) if f"{module}.".startswith(f"{name}."))
    folder = PACKAGES.get(package, REPOSITORY / "pipelines")
    path = folder.joinpath(*module.removeprefix(package).strip(".").split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    statements = ast.parse(file.read_text()).body if file.exists() else []
    return any(not isinstance(getattr(each, "value", None), ast.Constant) for each in statements)


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(REPOSITORY)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_code_of_an_entry_is_what_it_imports(entry: str, graph: grimp.ImportGraph, code: Code) -> None:
    """Compared with another reader of imports."""
    digests = code.of(entry)
    found = {name for name in digests if "/" not in name}
    assert sorted(found) == sorted(name for name in modules_run_by(entry, graph) if says_more(name))


@pytest.mark.parametrize(("file", "stage"), [(file, stage) for file in PIPELINES for stage in PIPELINES[file]])
def test_a_stage_depends_on_its_own_code_in_one_line(file: str, stage: str) -> None:
    entry = PIPELINES[file][stage]
    if stage == "code":
        assert entry["cmd"] == "python -m pipelines.code"
        return
    module = entry["cmd"].split()[2]
    if file == "dvc.yaml":
        assert entry["cmd"] == f"python -m pipelines.{stage}"
    own = [dep for dep in entry["deps"] if dep.startswith("code/")]
    assert own[0] == f"code/{'/'.join(module.split('.')[1:])}.json"
    assert all(dep in entries() for dep in own)
    sources = [dep for dep in entry["deps"] if dep.startswith(("packages/", "pipelines/"))]
    assert all(dep.startswith(CONFIGS) for dep in sources), "code is a dependency by code/"


def test_the_code_stage_reads_all_code() -> None:
    assert set(STAGES["code"]["deps"]) == {
        "pipelines", *(str(folder.parents[1].relative_to(REPOSITORY)) for folder in PACKAGES.values())
    }  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of four modules and a data file."""
    package = tmp_path / "packages/model/src/diptych/model"
    package.mkdir(parents=True)
    (tmp_path / "pipelines/runner").mkdir(parents=True)
    files = {
        "pipelines/__init__.py": '"""Stages."""\n',
        "pipelines/one.py": "from diptych.model import a\nfrom pipelines.runner import stage\n\nprint(a.f(1))\n",
        "pipelines/two.py": "def g():\n    from diptych.model.b import X\n    return X\n",
        "pipelines/runner/__init__.py": "",
        "pipelines/runner/stage.py": "RUN = 1\n",
        "packages/model/src/diptych/model/__init__.py": "",
        "packages/model/src/diptych/model/words.json": "{}",
        "packages/model/src/diptych/model/a.py": (
            '"""A."""\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from diptych.model.b import X\n\n\n'
            'def f(x: int) -> "X":\n    """F."""\n    return x + 1\n'
        ),
        "packages/model/src/diptych/model/b.py": "X = 1.0\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def changed(root: Path, name: str, text: str) -> list[str]:
    """Which of the two entries another content of a file changes; the file is put back."""
    path, modules = root / name, ("pipelines.one", "pipelines.two")
    before = {module: Code(root).of(module) for module in modules}
    old = path.read_text()
    path.write_text(text)
    after = {module: Code(root).of(module) for module in modules}
    path.write_text(old)
    return [module.rpartition(".")[2] for module in modules if before[module] != after[module]]


A, B = "packages/model/src/diptych/model/a.py", "packages/model/src/diptych/model/b.py"


@pytest.mark.parametrize(
    "text",
    [
        "# why\nfrom typing import TYPE_CHECKING\ndef f(x: int) -> 'X':\n  return (\n    x\n    + 1\n  )  # more\n",
        '"""B."""\nfrom typing import TYPE_CHECKING\n\n\ndef f(x: int,) -> "X":\n    """G.\n\n    H."""\n    return x + 1\n',
    ],
)
def test_comments_docstrings_and_layout_do_not_count(small: Path, text: str) -> None:
    assert changed(small, A, text) == []


def test_a_change_counts_for_those_that_run_it(small: Path) -> None:
    assert changed(small, A, (small / A).read_text().replace("+ 1", "+ 2")) == ["one"]
    assert changed(small, A, (small / A).read_text().replace("int", "float")) == ["one"], "dataclasses read annotations"
    assert changed(small, A, (small / A).read_text().replace("+ 1", '+ len("docstring")')) == ["one"]
    assert changed(small, B, "X = 1\n") == ["two"], "for the one that imports it inside a function"
    assert changed(small, B, "X = 1.0\n'text'\n") == ["two"], "no docstring: it comes second"
    assert changed(small, "packages/model/src/diptych/model/words.json", "[]") == ["one", "two"]
    assert changed(small, "pipelines/runner/stage.py", "RUN = 2\n") == []


@pytest.mark.parametrize("name", [".a.py.swp", ".DS_Store", ".#a.py", "#a.py#", "a.py~", "a.py.orig", "words.json.rej"])
def test_what_editors_leave_beside_modules_is_no_code(small: Path, name: str) -> None:
    before = Code(small).of("pipelines.one")
    (small / A).with_name(name).write_text("left")
    assert Code(small).of("pipelines.one") == before


def test_data_of_packages_counts_or_is_named(code: Code) -> None:
    """Files in folders below a package, which are no packages, are none of its code: no stage may read such a file that
    its pipeline does not name."""
    run = {name for entry in ENTRIES for name in code.of(entry) if "/" not in name}
    folders = {
        path.parent
        for folder in (REPOSITORY / "pipelines", *PACKAGES.values())
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and not (path.parent / "__init__.py").exists()
    }
    read = set()
    for folder in folders:
        owner = next(above for above in folder.parents if (above / "__init__.py").exists())
        parts = owner.parts[owner.parts.index("diptych" if "diptych" in owner.parts else "pipelines") :]
        if any(f"{name}.".startswith(f"{'.'.join(parts)}.") for name in run):
            read.add(folder.relative_to(REPOSITORY).as_posix())
    # the demo's and the study's pages are read by no stage; profiles are DVC's
    assert read <= {CONFIGS.rstrip("/"), "pipelines/conf", "pipelines/conf/profile"}


def test_sources_of_data_that_are_code() -> None:
    """Toybox and the training of its detector are sources as COCO's folder and a checkpoint are: of those who name them."""
    assert set(NAMED_AS_SOURCE) == {"code/sources/toybox.json", "code/sources/detector.json"}
    dataset = Code(REPOSITORY).of("pipelines.dataset")
    assert not any("toybox" in name for name in dataset) and "diptych.features.datasets.coco" in dataset
    drawn = Code(REPOSITORY).of(NAMED_AS_SOURCE["code/sources/toybox.json"])
    assert "diptych.features.datasets.toybox.drawing" in drawn


def test_digests_do_not_depend_on_the_python() -> None:
    """A team shares what it has made across versions; compared with the others that this machine has."""
    found = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13, 14)]
    pythons = [python for python in found if python and "shims" not in python]
    pythons += [str(path) for path in (Path.home() / ".pyenv/versions").glob("3.1[1-9].*/bin/python")]
    others = {path for python in pythons if (path := Path(python).resolve()) != Path(sys.executable).resolve()}
    if not others:
        pytest.skip("no other Python from 3.11 on is here")
    script = "import sys; sys.path.insert(0, '.'); from pipelines.runner.code import Code; print(Code().of('pipelines.report'))"
    expected = Code(REPOSITORY).of("pipelines.report")
    for python in sorted(others):
        done = subprocess.run([python, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == repr(expected), f"{python}: {done.stderr[-2000:]}"


QUESTIONS = "data/dataset/questions/vqa.parquet"


@pytest.mark.parametrize(
    ("item", "stages", "own"),
    [
        # no row of a paper's table asks questions
        ("token", ["train_token"], {QUESTIONS}),
        # no evaluation meanwhile, which alone reads the detector
        ("sequence", ["train_sequence"], {"models/token", "models/detector", QUESTIONS}),
        ("features", ["train_sequence"], {"models/token", "models/detector", QUESTIONS}),
        ("measured", ["generate", "evaluate"], {"models/sequence", "data/generated", QUESTIONS}),
        ("sampler", ["generate", "evaluate"], {"data/generated", QUESTIONS}),
    ],
)
def test_an_item_of_table1_lists_the_files_that_its_stages_read(
    item: str, stages: list[str], own: set[str]
) -> None:
    """What is no code: data, models and the sizes of networks, but those that the item has made itself or does not read."""
    files = {dep for stage in stages for dep in STAGES[stage]["deps"] if not dep.startswith("code/")}
    assert own <= files
    assert files - own <= set(TABLE1[item]["deps"])
    params = {param for stage in stages for param in STAGES[stage]["params"]}
    assert params - {"seed"} <= {param for param in TABLE1[item]["params"] if isinstance(param, str)}


@pytest.mark.parametrize(
    ("item", "stages", "own"),
    [
        # no figures of the val split, for which the detector is read
        ("features_generator", [STAGES["image_generator"]], {"models/detector"}),
        ("painted", [STAGES["generate"], STAGES["evaluate"]], {"models/sequence", "data/generated", QUESTIONS}),
        ("sampled", [STAGES["generate"], STAGES["evaluate"]], {"models/sequence", "data/generated", QUESTIONS}),
        # it has an image generator of its own
        (
            "regressed",
            [STAGES["generate"], STAGES["evaluate"]],
            {"models/sequence", "models/image_generator", "data/generated", QUESTIONS},
        ),
    ],
)
def test_an_item_of_x_lxmerts_tables_lists_the_files_that_its_stages_read(
    item: str, stages: list[dict], own: set[str]
) -> None:
    files = {dep for stage in stages for dep in stage["deps"] if not dep.startswith("code/")}
    assert own <= files
    assert files - own <= set(TABLE_X_LXMERT[item]["deps"])
    params = {param for stage in stages for param in stage["params"]}
    assert params <= {param for param in TABLE_X_LXMERT[item]["params"] if isinstance(param, str)}


def test_no_output_persists() -> None:
    """DVC accepts old content of a persisting output as new (docs: side stores replace it)."""
    for stages in PIPELINES.values():
        for stage, entry in stages.items():
            for out in [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]:
                assert not (isinstance(out, dict) and any(o.get("persist") for o in out.values())), stage


def test_a_forward_pass_needs_no_heavy_library(tmp_path: Path) -> None:
    """`diptych.model` decodes on a machine with only torch, numpy, safetensors, tqdm and transformers: what functions import when they
    are called, too."""
    script = """
import sys
from pathlib import Path
from importlib.machinery import PathFinder
absent, own = {"ray", "faiss", "pyarrow", "webdataset", "open_clip", "dvc", "pycocoevalcap", "torchvision"}, PathFinder.find_spec
# not there for those who only ask, too, as transformers does
PathFinder.find_spec = lambda name, path=None, target=None: None if name.split(".")[0] in absent else own(name, path, target)
import torch
from diptych.model.answer_table import AnswerTable, load_answer_table
from diptych.model.decoding.answer import answer_logits, rank_answers
from diptych.model.decoding.caption import encode_images
from diptych.model.decoding.decode import caption_images, paint_captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.image_generator import ImageGenerator, load_image_generator, named_config, save_image_generator
from diptych.model.pixels import to_image, to_uint8
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.tokenizer import build_tokenizer
folder, tokenizer = Path(sys.argv[1]), build_tokenizer(["a red kite."], 1)
save_image_generator(folder / "generator", ImageGenerator(named_config("smoke", feature_dim=12, image_size=16, block_channels=(16, 8))))
generator = load_image_generator(folder / "generator")
for attention in ("prefix", "masked"):
    config = TransformerConfig(
        vocab_size=len(tokenizer), codebook_size=16, feature_dim=12, hidden_size=24, attention_heads=3, intermediate_size=40,
        language_layers=1, visual_layers=1, cross_layers=1, grid_size=8, cell_positions=False, text_positions=20, dropout=0.0,
        code_head="linear", initial_std=0.02, caption_attention=attention, answers=1,
    )
    save_transformer(folder / attention, build_transformer(config), tokenizer, torch.rand(16, 12), AnswerTable(["yes"]))
    model, tokenizer, codebook = load_transformer(folder / attention)
    features, ids = torch.rand(2, 64, 12), tokenizer.encode(["a red kite."], 12)
    for method in ("greedy", "beam", "sample"):
        tokenizer.decode(caption_images(model, tokenizer, features, CaptionOptions(length=5, method=method), [1, 2]).ids[0])
    paint_captions(model, tokenizer, codebook, ids, PaintOptions(method="easiest", temperature=1.0), [1])
    codes = paint_captions(model, tokenizer, codebook, ids, PaintOptions(guidance=2.0)).codes
    with torch.inference_mode():
        to_image(to_uint8(generator(codebook[codes]))[0])
        asked = tokenizer.encode_questions(["red?"] * 2, 12)[:, None]
        logits = answer_logits(model, tokenizer, encode_images(model, features), asked)
    rank_answers(logits, load_answer_table(folder / attention, 1).answers, 1)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
