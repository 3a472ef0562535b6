"""diptych-study: from two folders of pictures and their captions to links, answers and the plot."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diptych.eval.errors import UserError
from diptych.eval.option_values import check_output, check_seed, quiet_when_closed
from diptych.eval.study.captions import match_pictures, read_captions
from diptych.eval.study.plan import KINDS, Plan, make_plan
from diptych.eval.study.vocabulary import read_vocabulary
from diptych.eval.text_files import whole_characters
from diptych.eval.whole_files import write_output


def make_parser() -> argparse.ArgumentParser:
    """The command's options: `create`, `serve`, `links` and `results`."""
    parser = argparse.ArgumentParser(prog="diptych-study", description=__doc__)
    commands = parser.add_subparsers(dest="study_command", required=True, metavar="COMMAND")

    create = commands.add_parser("create", help="make a study from folders of pictures and their captions")
    create.add_argument("study", type=Path, help="the file to write, such as study.db")
    create.add_argument(
        "--captions",
        type=Path,
        required=True,
        help="CSV with columns image and caption (separated by comma, semicolon, tab or |), or JSON: "
        '{"image": "caption"} or [{"image_id": ..., "caption": ...}]; an image is a file name without or with its suffix',
    )
    create.add_argument(
        "--encoding", help="of a CSV, such as cp1252 (default: UTF-8, or UTF-16 with a byte order mark)"
    )
    create.add_argument(
        "--system",
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="repeat: the first is compared with each other one; annotators never see the names",
    )
    create.add_argument("--questions", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    create.add_argument("--items", type=int, default=300, help="captions for each comparison (default: 300)")
    create.add_argument(
        "--masked", type=int, default=100, help="hidden words per category and system (default: 100)"
    )
    create.add_argument("--annotators", type=int, default=10, help="personal links (default: 10)")
    create.add_argument("--answers", type=int, default=5, help="annotators per question (default: 5)")
    create.add_argument(
        "--checks",
        type=int,
        default=2,
        help="attention checks per annotator and kind of question (default: 2)",
    )
    create.add_argument(
        "--words", type=Path, help="JSON of words to hide (default: COCO's nouns, verbs, colours)"
    )
    create.add_argument("--title", default="Picture study", help="what annotators read at the top")
    create.add_argument("--seed", type=int, default=0, help="draws captions, orders and sides (default: 0)")
    create.set_defaults(run=_create)

    serve = commands.add_parser("serve", help="serve the study's pages; ends with Ctrl-C")
    serve.add_argument("study", type=Path)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1); 0.0.0.0 lets other machines in by IPv4, :: by IPv6 alone (not by IPv4)",
    )
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument(
        "--root-path",
        default="",
        help="path that a proxy leaves before all addresses, such as /study; none is needed where it takes it away",
    )
    serve.set_defaults(run=_serve)

    links = commands.add_parser("links", help="print the admin's and the annotators' links")
    links.add_argument("study", type=Path)
    links.add_argument(
        "--url", default="http://127.0.0.1:8000", help="where the study is served, with the path of a proxy"
    )
    links.set_defaults(run=_links)

    results = commands.add_parser("results", help="tallies with intervals; the study may be running")
    results.add_argument("study", type=Path)
    results.add_argument("--json", type=Path, help="write the tallies to this file")
    results.add_argument("--csv", type=Path, help="write all answers to this file")
    results.add_argument("--plot", type=Path, help="draw the figure: .png or .svg")
    results.add_argument(
        "--resample",
        choices=("items", "annotators"),
        default="items",
        help="what intervals draw anew (default: items)",
    )
    results.add_argument(
        "--without-flagged", action="store_true", help="leave out annotators who fail the attention checks"
    )
    results.set_defaults(run=_results)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """`diptych-study` and `python -m diptych.eval.study`: 0, or 1 with one line on stderr, or 130 where it is interrupted."""
    options = make_parser().parse_args(arguments)
    try:
        with quiet_when_closed():
            options.run(options)
    except UserError as error:
        print(f"diptych-study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("diptych-study: interrupted", file=sys.stderr)
        return 130
    return 0


def _create(options: argparse.Namespace) -> None:
    from diptych.eval.study.pictures import find_pictures
    from diptych.eval.study.store import create_study

    check_seed(options.seed)
    folders: dict[str, Path] = {}
    for entry in options.system:
        name, equals, folder = entry.partition("=")
        if not equals or not name.strip() or not folder:
            raise UserError(f"--system {entry}: wanted NAME=FOLDER")
        if name in (*folders, "tie"):
            raise UserError(f"--system {entry}: the name {name} is taken")
        folders[name] = Path(folder)
    captions = read_captions(options.captions, options.encoding)
    in_folders = {name: find_pictures(folder) for name, folder in folders.items()}
    found = {name: match_pictures(captions, in_folders[name], folder) for name, folder in folders.items()}
    shared = {
        key: text for key, text in captions.items() if all(key in pictures for pictures in found.values())
    }
    if not shared:
        counts = ", ".join(f"{len(found[name])} in {folders[name]}" for name in found)
        raise UserError(f"{options.captions}: no caption names a picture of every system ({counts})")
    plan = make_plan(
        shared,
        list(folders),
        read_vocabulary(options.words),
        kinds=options.questions,
        captions_per_pair=options.items,
        captions_per_category=options.masked,
        answers_per_item=options.answers,
        annotators=options.annotators,
        checks_per_kind=options.checks,
        seed=options.seed,
    )
    create_study(options.study, plan, found, title=whole_characters(options.title), seed=options.seed)
    print(f"{options.study}: {len(shared)} of {len(captions)} captions have a picture of every system")
    print_counts(plan)
    lengths = [len(order) for order in plan.orders]
    print(f"{len(lengths)} annotators with {min(lengths)} to {max(lengths)} questions each. Next:")
    print(f"  diptych-study serve {options.study}")
    print(f"  diptych-study links {options.study}")


def print_counts(plan: Plan) -> None:
    """Per kind and pair of systems, or system and category: how many questions, answered by how many."""
    answers = Counter(question.item for order in plan.orders for question in order)
    groups: dict[tuple[str, str], list[int]] = {}
    for number, item in enumerate(plan.items):
        if not item.check:
            group = f"{item.system} / {item.other}" if item.other else f"{item.system}, {item.category}"
            groups.setdefault((item.kind, group), []).append(answers[number])
    for (kind, group), counts in groups.items():
        print(f"  {kind}: {group}: {len(counts)} by {min(counts)} annotators each")


def _serve(options: argparse.Namespace) -> None:
    from diptych.eval.study.store import Study

    study = Study(options.study)
    try:
        import uvicorn

        from diptych.eval.path_prefix import checked_prefix
        from diptych.eval.study.app import make_app
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'diptych-eval[study]'") from None

    prefix = checked_prefix(options.root_path)
    # no access log: its lines would hold the links
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(study, prefix),
            access_log=False,
            server_header=False,
            log_level="warning",
            limit_concurrency=200,
            timeout_graceful_shutdown=5,
        )
    )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {options.host} --port {options.port}: cannot listen there ({error}); choose another"
        ) from None
    with listener:
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"Admin: http://{host}:{listener.getsockname()[1]}{prefix}/a/{study.admin_token}", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn has ended the server, and raises the signal once more
            server.run(sockets=[listener])


def _links(options: argparse.Namespace) -> None:
    from diptych.eval.study.store import Study

    study, url = Study(options.study), options.url.rstrip("/")
    print(f"admin  {url}/a/{study.admin_token}")
    for annotator in study.annotators():
        print(f"{annotator.name:<6} {url}/s/{annotator.token}")


def _results(options: argparse.Namespace) -> None:
    from diptych.eval.study.figure import draw_figure
    from diptych.eval.study.results import answers_csv, tally
    from diptych.eval.study.store import Study

    if options.plot is not None and options.plot.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"--plot {options.plot}: the name has to end in .png or .svg")
    for path in (options.json, options.csv, options.plot):
        check_output(path)
    study = Study(options.study)
    results = tally(study, resample=options.resample, without_flagged=options.without_flagged)
    for row in results.preferences:
        shares = " | ".join(
            f"{name} {100 * share.value:.0f}% [{100 * share.low:.0f}, {100 * share.high:.0f}]"
            for name, share in (
                (row.system, row.system_share),
                ("tie", row.tie_share),
                (row.other, row.other_share),
            )
        )
        print(f"{row.kind}: {shares} ({row.answers} answers, {row.items} pairs)")
    for entry in results.hummus:
        score = entry.score
        print(
            f"hummus: {entry.system}, {entry.category}: {score.value:.2f} [{score.low:.2f}, {score.high:.2f}] "
            f"({entry.answers} answers, {entry.items} pictures)"
        )
    answered, asked = (
        sum(getattr(one, name) for one in results.attendance) for name in ("answered", "questions")
    )
    print(f"{answered} of {asked} answers; intervals: {results.interval}")
    flagged = [one.annotator for one in results.attendance if one.flagged]
    if flagged:
        print(f"fail the attention checks: {', '.join(flagged)}" + " (left out)" * options.without_flagged)
    if options.json is not None:
        write_output(options.json, json.dumps(results.as_json(), indent=1).encode())
    if options.csv is not None:
        write_output(options.csv, answers_csv(study).encode())
    if options.plot is not None:
        write_output(options.plot, draw_figure(results, options.plot.suffix[1:].lower()))
