"""``diptych serve``."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from contextlib import suppress
from typing import Annotated

import typer

from diptych.model.command.options import Device, Model, Precision, load_model
from diptych.model.errors import UserError


def serve(
    model: Model = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; 0.0.0.0 lets other machines in by IPv4, :: by IPv6 alone (not by IPv4)."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; others are sent away.")] = 32,
    upload_mib: Annotated[float, typer.Option(min=0.01, help="MiB of an uploaded picture, at most.")] = 10.0,
    megapixels: Annotated[
        float, typer.Option(min=0.01, max=80, help="Million pixels of an uploaded picture, at most.")
    ] = 25.0,
    example: Annotated[
        list[str] | None,
        typer.Option(help="Sentence that the page offers to begin with; any number.", show_default=False),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            help="Path that a proxy leaves before all addresses, such as /diptych; none is needed where it takes it away.",
            show_default=False,
        ),
    ] = "",
    question: Annotated[
        list[str] | None,
        typer.Option(help="Question that the page offers to begin with; any number.", show_default=False),
    ] = None,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Serve a web page that paints and captions, and the same as a JSON API. Ends with Ctrl-C or SIGTERM."""
    try:
        import uvicorn

        from diptych.eval.errors import UserError as EvalError
        from diptych.eval.path_prefix import checked_prefix
        from diptych.model.serve.app import ServeOptions, make_app
        from diptych.model.serve.model_queue import THREAD
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed; `pip install 'diptych-model[use,serve]'`"
        ) from None
    from PIL import Image

    try:
        prefix = checked_prefix(root_path)
    except EvalError as error:
        raise UserError(str(error)) from None
    with listen(host, port) as listener:
        d = load_model(model, device, precision)
        # told to the browser instead
        warnings.filterwarnings("ignore", message=r"\d+ of \d+ captions")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        options = ServeOptions(
            queue=queue,
            upload_bytes=int(upload_mib * 2**20),
            pixels=int(megapixels * 1e6),
            examples=tuple(example or ()),
            root_path=prefix,
            questions=tuple(question or ()),
        )
        config = uvicorn.Config(
            make_app(d, options),
            access_log=False,
            server_header=False,
            log_level="warning",
            limit_concurrency=queue + 200,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
        )
        shown = f"[{host}]" if ":" in host else host
        place = f"{prefix}/" if prefix else ""
        # of all of a machine's addresses; another one is of one version anyhow
        only = "by IPv6 alone, not by IPv4; " if listener.getsockname()[0] == "::" else ""
        # as Ctrl-C does; containers and supervisors send it, and background jobs of a shell ignore SIGINT
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):  # which uvicorn raises when it has ended
            typer.echo(
                f"Diptych paints and captions at http://{shown}:{listener.getsockname()[1]}{place} ({only}Ctrl-C ends it)"
            )
            uvicorn.Server(config).run(sockets=[listener])
        typer.echo("Ended.")
        leave_work(THREAD)


def listen(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, which takes seconds. An IPv6 address, `::` too, is taken for IPv6 alone.

    Raises:
        UserError: it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({reason}); take another"
        ) from None


def leave_work(name: str) -> None:
    """End the process at once where the model is still at work for somebody who has been sent away: Python would wait for
    its thread, and there is nothing to save."""
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            thread.join(1)
            if thread.is_alive():
                sys.stdout.flush()
                os._exit(0)
