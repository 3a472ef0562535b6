"""How templates become self-contained pages: the report's, and that of claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diptych.eval.report.pictures import data_uri
from diptych.eval.whole_files import written_whole


def write_page(
    path: Path, package: str, template: str, filters: Mapping[str, Callable[..., Any]], **values: Any
) -> None:
    """Write the page that `template` beside `package`'s modules makes of `values` to `path`, whole or not at all.

    All text from outside is escaped. filters: besides `data_uri`.
    """
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, **filters}
    text = environment.get_template(template).render(**values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(text.encode())
