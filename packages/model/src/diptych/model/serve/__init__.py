"""``diptych serve``: the packaged model as a web page and a JSON API (docs/web-demo.md).

::

    messages.py      what requests and replies hold, and their limits
    model_queue.py   the one thread that uses the model, and who waits for it
    uploads.py       pictures that strangers send
    results.py       what the model does for a request
    failures.py      what cannot be answered, as one sentence
    app.py           pages and API; no request names a file, nothing is written
    static/          the pages: plain HTML, CSS and scripts that load nothing from elsewhere

:mod:`diptych.model.command.serve` starts it.
"""
