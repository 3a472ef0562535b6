"""``diptych COMMAND``: one module for each command, one way to end for all.

Status 0: all is done. 1: something could not be done; one line on stderr says what and how to mend it. 2: a wrong option or
argument. 130: interrupted. Results go to stdout as they come, everything else to stderr.

Another command is a function in a module of its own that is registered here.
"""

from __future__ import annotations

import sys

import typer

from diptych.model.command.ask import ask
from diptych.model.command.caption import caption
from diptych.model.command.doctor import doctor
from diptych.model.command.import_checkpoint import import_checkpoint
from diptych.model.command.paint import paint
from diptych.model.command.serve import serve
from diptych.model.command.verify import verify
from diptych.model.errors import UserError

app = typer.Typer(
    name="diptych",
    help="One model that captions pictures, paints captions and answers questions about pictures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(caption)
app.command()(paint)
app.command()(ask)
app.command()(verify)
app.command("import-checkpoint")(import_checkpoint)
app.command()(doctor)
app.command()(serve)


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and end the process with its status."""
    try:
        app(arguments)
    except UserError as error:
        print(f"diptych: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
