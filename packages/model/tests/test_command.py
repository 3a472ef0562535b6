"""The command `diptych`: what it prints and writes, how it ends, what it says when something is wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from waiting import HANG_SECONDS

from diptych.model import Caption, Diptych
from diptych.model.command import app, doctor
from diptych.model.errors import UserError
from diptych.model.importers.detect import detect_format

DATA = Path(__file__).parent / "data"


@pytest.fixture
def run(capsys, monkeypatch, package: Path, tmp_path: Path):
    """Run a command line in an empty folder: (status, lines of stdout, stderr)."""
    monkeypatch.setenv("DIPTYCH_MODEL", str(package))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, stdin: str = "") -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        # as the fixture `diptych`: "auto" is bfloat16 on some processors
        if arguments[0] in ("caption", "paint"):
            arguments = (*arguments, "--precision", "float32")
        with pytest.raises(SystemExit) as ended:
            app.main(list(arguments))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.splitlines(), err

    return call


@pytest.fixture
def photos(tmp_path: Path, pictures) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, image in enumerate(pictures[:3]):
        image.save(folder / f"{number}.png")
    pictures[3].save(folder / "below" / "3.JPG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_captions_of_files_and_folders(run, photos: Path, diptych: Diptych) -> None:
    files = [f"photos/{name}" for name in ("0.png", "1.png", "2.png", "below/3.JPG")]
    expected = [f"{file}\t{caption}" for file, caption in zip(files, diptych.caption(files), strict=True)]
    status, lines, err = run("caption", "photos", "photos/0.png", "--batch-size", "2")
    assert status == 0 and lines == [*expected, expected[0]] and err == "diptych: photos: left out 1 .txt\n"


def test_captions_as_json(run, photos: Path, diptych: Diptych) -> None:
    status, lines, _ = run(
        "caption", "photos/1.png", "--json", "--samples", "3", "--temperature", "1.5", "--seed", "4"
    )
    answer = json.loads(lines[0])
    expected = diptych.caption("photos/1.png", samples=3, temperature=1.5, seed=4)
    assert status == 0 and answer["image"] == "photos/1.png" and len(lines) == 1
    assert [caption["text"] for caption in answer["captions"]] == [caption.text for caption in expected]
    best = run("caption", "photos/1.png", "--json", "--samples", "3", "--rerank")[1]
    assert 0 <= json.loads(best[0])["captions"][0]["score"] <= 2.5


def test_a_bad_picture_does_not_stop_the_others(run, photos: Path) -> None:
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:60])
    status, lines, err = run("caption", "photos", "nowhere.png")
    assert status == 1 and [line.split("\t")[0] for line in lines] == [
        "photos/0.png",
        "photos/2.png",
        "photos/below/3.JPG",
    ]
    assert "photos/1.png: the image is damaged" in err and "nowhere.png: no such image file" in err
    status, lines, err = run("caption", "photos/1.png", "photos/0.png", "--json")
    assert status == 1 and "damaged" in json.loads(lines[0])["error"] and "captions" in json.loads(lines[1])


def test_captions_stream_from_stdin(package: Path, photos: Path) -> None:
    """An answer comes before the next question is asked."""
    command = [sys.executable, "-m", "diptych.model.command.app", "caption", "-", "--model", str(package)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for name in ("0.png", "2.png"):
            process.stdin.write(f"{photos / name}\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"{photos / name}\t")
        process.stdin.close()
        assert process.wait(HANG_SECONDS) == 0


def test_paintings(run, diptych: Diptych) -> None:
    status, lines, _ = run("paint", "a red kite floats.", "-o", "out.png")
    assert (status, lines) == (0, ["out.png"])
    expected = diptych.paint("a red kite floats.")[0]
    assert np.array_equal(np.asarray(Image.open("out.png")), np.asarray(expected.image))
    status, lines, _ = run("paint", "a red kite.", "two boats.", "--samples", "2", "--seed", "3", "--json")
    answers = [json.loads(line) for line in lines]
    assert [answer["file"] for answer in answers] == [f"painting-{n}.png" for n in (1, 2, 3, 4)]
    wanted = diptych.paint(["a red kite.", "two boats."], samples=2, seed=3)
    assert [answer["codes"] for answer in answers] == [one.codes.tolist() for one in wanted]
    assert sorted(path.name for path in Path().glob("*.png")) == [
        "out.png",
        *(f"painting-{number}.png" for number in (1, 2, 3, 4)),
    ]


def test_paintings_and_text_that_is_no_utf8(package: Path, tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    command = [sys.executable, "-m", "diptych.model.command.app", "paint", "-", "--model", str(package)]
    command += ["--json", "-o", os.fsdecode(b"caf\xe9.png")]
    done = subprocess.run(
        command, input=b"a red kite caf\xe9.\n\xe9\na boat.\n", capture_output=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    first, wrong, last = map(json.loads, done.stdout.decode("ascii").splitlines())
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert first["caption"] == "a red kite caf\ufffd." and last["caption"] == "a boat."
    assert wrong["caption"] == "\ufffd" and "has no word" in wrong["error"]
    assert (first["file"], last["file"]) == ("caf\ufffd-1.png", "caf\ufffd-2.png")
    assert (tmp_path / os.fsdecode(bytes.fromhex(last["file_bytes"]))).is_file()


def test_steps_sizes_and_stdin(run) -> None:
    status, lines, _ = run(
        "paint", "a kite.", "-o", "out.jpg", "--save-steps", "--steps", "2", "--size", "40"
    )
    assert (status, lines) == (0, ["out.jpg"])
    assert {path.name for path in Path().iterdir()} == {"out.jpg", "out-step-1.jpg", "out-step-2.jpg"}
    assert Image.open("out.jpg").size == (40, 40)
    status, lines, err = run("paint", "-", "-o", "s.png", stdin="a kite.\n\n風\ntwo boats.\n")
    assert (status, lines) == (1, ["s-1.png", "s-2.png"]) and "only characters" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["caption", "x.png", "--model", "nowhere"], 1, "nowhere: no such folder"),
        (["caption", "x.png", "--model", ""], 1, "no model is named"),
        (["caption"], 2, "Missing argument"),
        (["caption", "x.png", "--model", "~nobody-of-this-name/x"], 1, "no such folder"),
        (["caption", "a" * 300 + ".png"], 1, "cannot be read"),
        (["paint", "a kite", "-o", "a" * 300 + "/out.png"], 1, "no such folder; make it first"),
        (["caption", "."], 1, "no picture below this folder"),
        (["paint", "a kite", "--steps", "0"], 1, "steps must be at least 1"),
        (["paint", "a kite", "--stepz", "1"], 2, "No such option"),
        (["paint", "a kite", "-o", "out.doc"], 1, "no ending of a picture"),
        (["paint", "a kite", "-o", "nowhere/out.png"], 1, "nowhere: no such folder"),
        (["paint", "a kite", "--device", "cuda:77"], 1, "device cuda:77: not there"),
        (["paint", "."], 1, "has no word"),
        (["import-checkpoint", "x.pth", "out"], 1, "x.pth: no such checkpoint"),
        (["import-checkpoint", "x.pth", "out", "--format", "x"], 1, "format 'x' is unknown"),
        (["teach"], 2, "No such command"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments: list[str], status: int, message: str) -> None:
    found, lines, err = run(*arguments)
    assert found == status and message in err and "Traceback" not in err and lines == []
    assert status == 2 or len(err.splitlines()) == 1


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys\nfrom diptych.model.command.app import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("caption", "paint", "import-checkpoint", "doctor"))


def test_shell_completion(tmp_path: Path) -> None:
    """What bash asks for after `diptych pa`."""
    environment = {
        **os.environ,
        "_DIPTYCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "diptych pa",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv = ['diptych']; from diptych.model.command.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["paint"]


def test_results_may_be_cut_off(package: Path, photos: Path) -> None:
    """As by `diptych caption photos | head -1`."""
    command = f"{sys.executable} -m diptych.model.command.app caption {photos} --batch-size 1 | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "DIPTYCH_MODEL": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1) and done.stderr == f"diptych: {photos}: left out 1 .txt\n"


def test_doctor(run, package: Path, answering_package: Path, tmp_path: Path) -> None:
    status, lines, _ = run("doctor", "--device", "cpu")
    assert status == 0 and lines[-1].startswith("ok") and "complete, loaded in" in lines[-1]
    assert "no answer head" in lines[-1] and "answers in" not in lines[-1]
    status, lines, _ = run("doctor", "--model", str(answering_package), "--device", "cpu")
    assert status == 0 and "answers in" in lines[-1] and "no answer head" not in lines[-1]
    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    (broken / "model.safetensors").write_bytes(b"")
    status, lines, _ = run("doctor", "--model", str(broken), "--json")
    last = json.loads(lines[-1])
    assert status == 1 and last["state"] == "problem" and "model.safetensors: its sha256" in last["message"]
    status, lines, _ = run("doctor", "--model", "")
    assert status == 0 and "none is named" in lines[-1]


def test_names_that_are_no_utf8(package: Path, tmp_path: Path) -> None:
    """Are printed as the bytes that they are, or as U+FFFD in JSON."""
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")

    def run(*command: str) -> tuple[int, bytes, bytes]:
        strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, cwd=tmp_path, check=False, env=strict
        )
        assert b"Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    diptych = ("-m", "diptych.model.command.app")
    status, out, _ = run(*diptych, "doctor", "--model", name, "--device", "cpu")
    assert status == 1 and b"model: caf\xe9: a file; give the folder" in out
    status, out, _ = run(*diptych, "doctor", "--model", name, "--device", "cpu", "--json")
    assert status == 1 and json.loads(out.splitlines()[-1])["message"].startswith("caf\ufffd: a file")
    imported = (
        "import sys; from diptych.model.command import app; from diptych.model.importers import convert;"
        "convert.import_into = lambda request: 'done'; app.main(['import-checkpoint', *sys.argv[1:]])"
    )
    assert run("-c", imported, "x", name, "--format", "bert") == (0, b"caf\xe9: done\n", b"")
    # no tokenizer can be written there
    status, _, err = run(*diptych, "import-checkpoint", str(package), f"{name}-out", "--format", "to-lxmert")
    assert status == 1 and b"-out: cannot be made (" in err and err.count(b"\n") == 1
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9"]


def test_doctor_where_the_caption_has_no_word(run, monkeypatch) -> None:
    painted: list[str] = []
    own = Diptych.paint
    monkeypatch.setattr(Diptych, "caption", lambda self, image: [Caption("", 0.0, 0)])
    monkeypatch.setattr(Diptych, "paint", lambda self, text: painted.append(text) or own(self, text))
    status, lines, _ = run("doctor", "--device", "cpu")
    assert (status, painted) == (0, ["a"]) and "paints in" in lines[-1]


def test_doctor_without_packages(monkeypatch) -> None:
    def version(name: str) -> str:
        if name in ("torchvision", "diptych-eval", "open_clip_torch"):
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    found = {finding.subject: finding for finding in doctor.findings(None, None, "auto")}
    assert (
        found["torchvision"].state == "problem" and "pip install torchvision" in found["torchvision"].message
    )
    assert found["diptych-eval"].state == "problem"  # a packaged model is not even imported without it
    assert found["open_clip_torch"].state == "note" and "reranking" in found["open_clip_torch"].message
    assert "packages are missing" in found["model"].message and "device" not in found
    assert doctor.guarded("x", lambda: 1 / 0).state == "problem"  # type: ignore[arg-type, return-value]


def released(file: str) -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of a released checkpoint."""
    torch.manual_seed(0)
    lines = (DATA / file).read_text().splitlines()
    return {name: torch.randn([int(size) for size in shape]) for name, *shape in map(str.split, lines)}


@pytest.mark.parametrize("origin", ["generate-it", "x-lxmert", "image-generator"])
def test_the_format_of_a_checkpoint_is_found_out(origin: str, tmp_path: Path) -> None:
    tensors = released(f"{origin.replace('-', '_')}_names.txt")
    torch.save(tensors, tmp_path / "some.pth")
    assert detect_format(tmp_path / "some.pth") == origin
    torch.save({"model": {f"module.{name}": one for name, one in tensors.items()}}, tmp_path / "some.pth")
    assert detect_format(tmp_path / "some.pth") == origin
    torch.save({"other.weight": torch.ones(1)}, tmp_path / "some.pth")
    with pytest.raises(UserError, match="of no known origin"):
        detect_format(tmp_path / "some.pth")


def test_importing(run, package: Path, parts, tmp_path: Path) -> None:
    """To Hugging Face's LXMERT, and from there back without naming the format."""
    status, lines, err = run("import-checkpoint", str(package), "exported", "--format", "to-lxmert")
    assert status == 0 and "LxmertModel" in lines[0], err
    assert run("import-checkpoint", "exported", "back")[0] == 0
    assert {"config.json", "model.safetensors", "import.json"} <= {
        path.name for path in Path("back").iterdir()
    }
    status, _, err = run("import-checkpoint", "exported", "back")
    assert status == 1 and "back: exists already" in err
    status, _, err = run("import-checkpoint", str(package), "other")
    assert status == 1 and "model_type is 'diptych'" in err and not Path("other").exists()
