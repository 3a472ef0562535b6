"""What a table is, as data. Each is a folder beside this module: table.py names its TABLE, dvc.yaml says what
is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.runner.params import ParameterError

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams

FOLDER = Path("pipelines/tables")
# the row that all others of a table are compared with
OURS = "ours"


@dataclass(frozen=True)
class Row:
    """A row of the table. title: in the paper. models: of each seed, by what they do, which is the first part
    of the names of the figures that they are measured by: {"caption": "sequence_ours", "painted":
    "sequence_ours"}. What no model of a row does is not measured of it."""

    title: str
    models: Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A figure of `evaluate`. scale: the table shows value x scale, as the papers do.

    over: "pictures", a mean over pictures, or "set", a figure of all pictures together. parts: the figures
    whose mean it is, where those and not it are means over pictures.
    """

    title: str
    scale: float = 100.0
    higher_is_better: bool = True
    over: Literal["pictures", "set"] = "pictures"
    parts: tuple[str, ...] = ()
    digits: int = 1

    @property
    def heading(self) -> str:
        """Above the column, with the direction that is better."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True)
class Comparison:
    """Ours, or the row `of`, against another row in one column.

    wanted: "not worse" by more than `margin`, a share of the other row's mean, or by more than `points`, in the
    figure's own unit; or "better". counts: whether the claim's verdict depends on it; the page shows the others
    beside.
    """

    column: str
    row: str
    wanted: Literal["not worse", "better"]
    margin: float = 0.0
    counts: bool = True
    points: float = 0.0
    of: str = OURS


@dataclass(frozen=True)
class Claim:
    """text: the paper's claim. likely: why it may not hold in miniature, by the column and row of a
    comparison."""

    text: str
    comparisons: tuple[Comparison, ...]
    likely: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """The same table as the paper prints it. columns: a format for the numbers of each. rows: by the name of
    ours; None where it prints none."""

    title: str
    note: str
    columns: Mapping[str, str]
    rows: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Samplers:
    """A second table, of a model of the pipeline painting by different samplers. titles: by the name of the
    item. metrics: the file that has its figures as `samplers.NAME.FIGURE`."""

    title: str
    note: str
    titles: Mapping[str, str]
    columns: Mapping[str, Column]
    metrics: str


@dataclass(frozen=True)
class Texts:
    """Texts about pictures that the page shows. file: in the table's folder, with `{seed}` in its name, a Parquet table of `image_id`,
    `real` and a column of texts for each heading."""

    title: str
    note: str
    file: str


@dataclass(frozen=True)
class Table:
    """A table and all that its page says.

    name: of its folder, its section of params.yaml, its last stage and its `make` target. section: the type
    of that section. folder: of what its items make, `ablations/NAME` if nothing speaks for another. Items of one table may start
    from what items of another have made. The page is ablations/NAME/index.html, the metrics metrics/NAME.json.

    title, introduction, caveat: the page's heading, and its text before and after the rule of the verdicts.
    note: what stands above the table besides how it was measured. done: what was done with pictures, by the
    first part of figures' names: {"caption": "captioned"}. gallery: the one of these whose models' examples
    the page shows; none if empty. counted: those whose models' parameters a row has; all, if empty. texts: shown
    below the gallery, of the first seed.

    weights: how long items of a stage take compared with others', until some have run; 1 if not named. timed:
    stages whose items measure time, and so have a GPU for themselves.
    """

    name: str
    section: type[TableParams]
    folder: str
    title: str
    introduction: str
    rows: Mapping[str, Row]
    columns: Mapping[str, Column]
    done: Mapping[str, str]
    claims: Mapping[str, Claim] = field(default_factory=dict)
    caveat: str = ""
    note: str = ""
    paper: PaperTable | None = None
    samplers: Samplers | None = None
    gallery: str = ""
    counted: tuple[str, ...] = ()
    texts: Texts | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    timed: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        """The module that says all this."""
        return FOLDER / self.name / "table.py"

    @property
    def pipeline(self) -> Path:
        """The stages that make it."""
        return FOLDER / self.name / "dvc.yaml"

    @property
    def command(self) -> str:
        """Makes it, or goes on."""
        return f"make {self.name.replace('_', '-')}"

    @property
    def page(self) -> str:
        """Where its page is."""
        return f"ablations/{self.name}/index.html"

    @property
    def metrics(self) -> str:
        """Where its figures and verdicts are."""
        return f"metrics/{self.name}.json"

    @property
    def measured(self) -> Path:
        """A folder MODEL-SEED for each model and seed that was measured."""
        return Path(self.folder) / "measured"

    @property
    def models(self) -> list[str]:
        """All models that the table shows."""
        return list(dict.fromkeys(model for row in self.rows.values() for model in row.models.values()))


def table_names() -> list[str]:
    """All tables that there are."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/table.py"))


def read_table(name: str) -> Table:
    """A table by its name. Raises ParameterError where there is none, or where its module calls it something
    else."""
    if name not in (known := table_names()):
        raise ParameterError(f"{name}: no such table (known: {', '.join(known)})")
    table: Table = data_of(name).TABLE
    if table.name != name:
        raise ParameterError(f"{FOLDER / name / 'table.py'}: its table is called {table.name}")
    return table


def data_of(name: str) -> Any:
    """The module of a table's data. It is named by what is run and not imported by what runs it, so that no
    training depends on the data of all tables."""
    return importlib.import_module(f"pipelines.tables.{name}.table")
