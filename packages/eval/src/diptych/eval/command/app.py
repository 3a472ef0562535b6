"""The command `diptych-eval`: the papers' metrics on plain files and folders."""

from __future__ import annotations

import argparse
import functools
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diptych.eval.command.answers import add_answers
from diptych.eval.command.coco import FORMS, ids_of_files, read_captions, read_predictions
from diptych.eval.errors import UserError
from diptych.eval.figures import RESAMPLES, Figure, figures_json, table
from diptych.eval.option_values import (
    check_output,
    check_seed,
    check_whole,
    quiet_when_closed,
    resolve_device,
)
from diptych.eval.processor import fit_torch_threads, usable_cores
from diptych.eval.whole_files import write_output

INCEPTION_VARIABLE = "DIPTYCH_INCEPTION"
# diptych.eval.images.inception's, which --help should not load torch for
_FID_PROTOCOLS = ("diptych", "pytorch-fid")
# as `diptych paint --size`; a batch ends with its file of the store (diptych.eval.images.embeddings.CHUNK)
MOST = {"image_size": 8192, "batch_size": 256}
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # in torch's RuntimeErrors
_EPILOG = """\
exit status: 0 measured (what could not be run stands in the table with the reason), 1 an error that its
one line says how to mend, 2 wrong arguments, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    # as an exception, so that Java processes and partial files go
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check_output(options.output)
        figures = options.measure(options)
        try:
            with quiet_when_closed():
                print(table(figures))
        finally:  # also where nobody reads the table
            if options.output is not None:
                write_output(options.output, figures_json(figures).encode())
            options.when_written()
    except UserError as error:
        print(f"diptych-eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"diptych-eval: interrupted{options.after_interrupt}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        mend = "smaller --resamples, --batch-size or --image-size need less"
        reason = str(error).partition("\n")[0]
        print(f"diptych-eval: not enough memory ({reason}); {mend}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"diptych-eval: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diptych-eval",
        description="Measure captions, pictures and answers as the papers do. Every number comes with a 95% bootstrap interval.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(when_written=lambda: None)
    commands = parser.add_subparsers(required=True, metavar="captions | images | answers")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write the figures there, as a JSON list"
    )
    shared.add_argument("--seed", type=int, default=0, help="of every drawing (default 0)")
    shared.add_argument(
        "--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default {RESAMPLES})"
    )

    captions = commands.add_parser(
        "captions",
        parents=[shared],
        help="BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE and statistics of captions",
        description="BLEU-1..4, METEOR, ROUGE-L, CIDEr-D, SPICE, length, vocabulary, Div-1, Div-2, repeated words.",
        epilog=f"Files are {FORMS}.\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    captions.add_argument("predictions", type=Path, help="one caption per picture")
    captions.add_argument("references", type=Path, help="the human captions of at least these pictures")
    captions.add_argument(
        "--training", type=Path, metavar="FILE", help="training captions, for the share of novel ones"
    )
    captions.add_argument(
        "--java",
        choices=("auto", "needed", "never"),
        default="auto",
        help="the PTB tokenizer, METEOR and SPICE are Java programs. auto: without Java METEOR and SPICE are not run and "
        "words are counted by our own rules; needed: that is an error; never: as if there were none (default auto)",
    )
    captions.add_argument(
        "--corenlp", type=Path, metavar="FOLDER", help="with the two jars of Stanford CoreNLP 3.6.0, for SPICE (or DIPTYCH_CORENLP)"
    )  # fmt: skip
    captions.set_defaults(measure=_captions, after_interrupt="")

    images = commands.add_parser(
        "images",
        parents=[shared],
        help="FID, FID-k, IS, CLIPScore, R-precision of pictures",
        description="FID-k and IS by Inception; CLIPScore, R-precision easy and hard and the Frechet distance by any CLIP.",
        epilog=f"""\
A CLIP is a folder of Diptych's (models/judge), or a model of open_clip with a file of weights; the part before = is
its name in the results:
  --clip judge=models/judge --clip b32=ViT-B-32-quickgelu:ViT-B-32.pt
A model of open_clip gets pictures in their own size and prepares them as open_clip does for its published weights. Few
have weights of two kinds; a tag of open_clip's says which: --clip ViT-L-14@laion2b_s32b_b82k:weights.safetensors
FID by the protocol diptych (fid) is of pictures made squares of one size first; by pytorch-fid (fid_pytorch) of pictures
in their own size, as the papers' FID: only that one may be compared with a paper's.
Pictures are jpg, png, webp, ... in the folder and below. Captions are found by the file names that their file gives,
or by the picture's number at the end of its name: 000000000139.jpg is picture 139. A picture was painted from
the first caption in the file. The caption file is {FORMS}.
A run that was stopped goes on where it was: the same command again.

{_EPILOG}""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    images.add_argument("generated", type=Path, help="folder of generated pictures")
    images.add_argument("real", type=Path, help="folder of real pictures")
    images.add_argument("--captions", type=Path, metavar="FILE", help="what the pictures should show")
    images.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a CLIP, see below; may be repeated",
    )
    images.add_argument(
        "--inception", type=Path, metavar="FILE", default=os.environ.get(INCEPTION_VARIABLE),
        help=f"torch-fidelity's Inception weights, for FID and IS (or {INCEPTION_VARIABLE})",
    )  # fmt: skip
    images.add_argument(
        "--words",
        default="coco",
        metavar="LISTS",
        help="of R-precision-hard: coco, toybox or a JSON file (default coco)",
    )
    images.add_argument(
        "--image-size",
        type=int,
        default=256,
        help="pictures become squares of so many pixels first, except for what takes them in their own size (default 256)",
    )
    images.add_argument(
        "--resize",
        choices=("stretch", "crop"),
        default="stretch",
        help="the whole picture or its middle (default stretch)",
    )
    images.add_argument(
        "--blur-radii",
        type=float,
        nargs="+",
        default=[0, 1, 2, 4, 8],
        metavar="K",
        help="of FID-k (default 0 1 2 4 8)",
    )
    images.add_argument(
        "--fid-protocols",
        nargs="+",
        choices=_FID_PROTOCOLS,
        default=["diptych"],
        metavar="PROTOCOL",
        help="of FID: diptych, pytorch-fid (the papers') or both, see below (default diptych)",
    )
    images.add_argument("--negatives", type=int, default=99, help="of R-precision-easy (default 99)")
    images.add_argument("--folds", type=int, default=10, help="of R-precision-easy (default 10)")
    images.add_argument(
        "--frechet-resamples", type=int, default=100, help="of the bootstrap of FID, each as slow as FID; 0 is no interval (default 100)"
    )  # fmt: skip
    images.add_argument(
        "--max-damaged",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of pictures that may be unreadable and are left out (default 0)",
    )
    images.add_argument(
        "--batch-size", type=int, default=64, help="pictures at a time, 256 at most (default 64)"
    )
    images.add_argument(
        "--threads",
        type=int,
        default=None,
        help="that decode pictures (default: one a core that a container's quota allows, at most 16)",
    )
    images.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")
    images.add_argument(
        "--store",
        type=Path,
        metavar="FOLDER",
        help="keep what the networks made of the pictures there, for the next run with them; by default it goes when a run ends",
    )
    images.set_defaults(
        measure=_images, after_interrupt="; the same command goes on with the pictures that are left"
    )
    add_answers(commands, shared, _EPILOG)
    return parser


def _captions(options: argparse.Namespace) -> list[Figure]:
    from diptych.eval.captions.metrics import measure_captions

    check_seed(options.seed)
    _check(options, "resamples", least=1)
    predictions, references = (
        read_predictions(options.predictions),
        read_captions(options.references).captions,
    )
    strangers = [image_id for image_id in predictions if image_id not in references]
    if strangers:
        raise UserError(
            f"{options.references}: no caption of {len(strangers)} predicted pictures (first: {strangers[0]})"
        )
    left = len(references) - len(predictions)
    if left:
        print(f"{left} pictures of {options.references} have no prediction and are left out", file=sys.stderr)
    training = None
    if options.training:
        training = [text for several in read_captions(options.training).captions.values() for text in several]
    return measure_captions(
        predictions,
        references,
        java=options.java,
        corenlp=options.corenlp,
        training=training,
        seed=options.seed,
        resamples=options.resamples,
    )


def _images(options: argparse.Namespace) -> list[Figure]:
    from diptych.eval.command.shared_store import SharedStore
    from diptych.eval.images.embeddings import FolderPictures
    from diptych.eval.images.inception import Inception
    from diptych.eval.images.metrics import ImageSettings, measure_images
    from diptych.eval.words import read_words

    check_seed(options.seed)
    for name in ("resamples", "image_size", "negatives", "folds", "batch_size"):
        _check(options, name, least=1)
    if options.threads is not None:
        _check(options, "threads", least=1)
    _check(options, "frechet_resamples", least=0)
    if not 0 <= options.max_damaged <= 1:
        raise UserError(f"--max-damaged: a share from 0 to 1, is {options.max_damaged}")
    if not all(0 <= radius < math.inf for radius in options.blur_radii):
        raise UserError(
            f"--blur-radii: must be 0 or more pixels, is {' '.join(map(str, options.blur_radii))}"
        )
    device = resolve_device(options.device)
    fit_torch_threads()
    words = read_words(options.words)
    kinds = {"generated": FolderPictures(options.generated), "real": FolderPictures(options.real)}
    for pictures in kinds.values():
        if pictures.remark:
            print(f"{pictures.folder}: {pictures.remark}", file=sys.stderr)
    captions: dict[str, list[str | None]] = {}
    if options.captions:
        file = read_captions(options.captions)
        for kind, pictures in kinds.items():
            of_files = ids_of_files(pictures.names, file)
            found = [file.captions.get(image_id, []) for image_id in of_files]
            captions[kind] = [texts[0] if texts else None for texts in found]
            without, several = sum(not texts for texts in found), sum(len(texts) > 1 for texts in found)
            if without and kind == "generated":
                first = next(name for name, texts in zip(pictures.names, found, strict=True) if not texts)
                print(
                    f"{without} generated pictures have no caption in {options.captions} (first: {first})",
                    file=sys.stderr,
                )
            shared = Counter(image_id for image_id in of_files if image_id)
            if twice := [image_id for image_id, count in shared.items() if count > 1]:
                one, other = [
                    name
                    for name, found_id in zip(pictures.names, of_files, strict=True)
                    if found_id == twice[0]
                ][:2]
                print(
                    f"{len(twice)} captions belong to several {kind} pictures each (first: {one} and {other} are both "
                    f"picture {twice[0]})",
                    file=sys.stderr,
                )
            if several:
                print(f"{several} {kind} pictures have several captions; the first counts", file=sys.stderr)
    clips = {}
    for spec in options.clip:
        name, clip = _read_clip(spec, device)
        if name in clips:
            raise UserError(f"--clip {spec}: two CLIPs are called {name}; name them: --clip NAME={spec}")
        clips[name] = clip
    inception = Inception(Path(options.inception), device) if options.inception else None
    settings = ImageSettings(
        image_size=options.image_size,
        resize=options.resize,
        batch_size=options.batch_size,
        threads=options.threads or min(16, usable_cores()),
        max_damaged=options.max_damaged,
        negatives=options.negatives,
        folds=options.folds,
        blur_radii=tuple(options.blur_radii),
        fid_protocols=tuple(options.fid_protocols),
        seed=options.seed,
        resamples=options.resamples,
        frechet_resamples=options.frechet_resamples,
    )
    store, shared_store = options.store, None
    if store is None:
        store = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych-eval"
        shared_store = SharedStore(store)
    figures, embedded = measure_images(kinds, captions, clips, words, settings, store, inception=inception)
    for kind, each in embedded.items():
        for name, problem in each.damaged.items():
            print(f"left out: {kind} {name}: {problem}", file=sys.stderr)
    if shared_store is not None:
        parts = [part for each in embedded.values() for several in each.parts.values() for part in several]
        options.when_written = functools.partial(shared_store.forget, parts)
    return figures


def _read_clip(spec: str, device: str):
    """Name and CLIP of NAME=FOLDER or NAME=ARCHITECTURE:WEIGHTS, the name being optional; a path may hold a "=" of its own."""
    from diptych.eval.scorers.clip import load_clip, load_pretrained_clip

    name, equals, model = spec.partition("=")
    if Path(spec).is_dir() or not equals or ":" in name or "/" in name:
        name, model = "", spec
    if Path(model).is_dir():
        return name or Path(model).resolve().name, load_clip(model, device)
    architecture, _, weights = model.partition(":")
    if not weights:
        raise UserError(
            f"--clip {spec}: no such folder; give a folder, or ARCHITECTURE:WEIGHTS of an open_clip model"
        )
    return name or "clip", load_pretrained_clip(architecture, weights, device)


def _check(options: argparse.Namespace, name: str, least: int) -> None:
    check_whole(name, getattr(options, name), least, MOST.get(name, 2**31 - 1))


if __name__ == "__main__":
    sys.exit(main())
