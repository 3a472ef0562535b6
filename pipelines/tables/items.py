"""The items of a table, and what each of them needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runner.items import Item, read_items, within
from pipelines.runner.params import ParameterError
from pipelines.tables.table import FOLDER, Table, table_names

SHARED = Path("dvc.yaml")
# pipelines of other systems, of which items may read outputs
SYSTEMS = "pipelines/*/dvc.yaml"


@dataclass(frozen=True)
class TableItems:
    """All items of a table and some seeds.

    work: what is the same for all seeds and some of them need; then seed by seed, so that the first ones are
    whole early, each after those that it needs; then the rest that is the same for all seeds. last: the stage that makes the page. shared: stages of the pipeline and
    of other systems' that make what all these read, as `dvc repro` takes them.
    """

    work: list[Item]
    last: Item
    shared: list[str]

    def needs(self, item: Item) -> list[str]:
        """Names of the items that have to be up to date before."""
        return [other.name for other in self.work if other != item and any(map(other.makes, item.deps))]

    def shown(self, item: Item) -> list[str]:
        """What the page reads of an item."""
        return [out for out in item.outs if any(within(out, dep) for dep in self.last.deps)]


def table_items(table: Table, params: Mapping[str, Any], seeds: Iterable[int]) -> TableItems:
    """The items of a table for these seeds. Its own are all that its dvc.yaml names; of other tables those
    that make what it needs. Raises ParameterError where a reference leads nowhere."""
    own = read_items(table.pipeline, params)
    last = next((item for item in own if item.name == table.name), None)
    if last is None:
        raise ParameterError(f"{table.pipeline}: no stage {table.name}, which makes the page")
    sharing = [
        item
        for other in table_names()
        if other != table.name
        for item in read_items(FOLDER / other / "dvc.yaml", params)
        if item.name != other
    ]
    found, wanted = list[Item](), [item for item in own if item is not last]
    while wanted:
        found = wanted + found
        missing = [item for item in sharing if item not in found]
        wanted = [item for item in missing if any(item.makes(dep) for each in wanted for dep in each.deps)]
    of_seeds = [item for seed in seeds for item in found if item.seed == seed]
    of_all = [item for item in found if item.seed is None]
    first = [item for item in of_all if any(item.makes(dep) for each in of_seeds for dep in each.deps)]
    work = [*first, *of_seeds, *(item for item in of_all if item not in first)]
    read = [dep for item in [*work, last] for dep in item.deps]
    shared = [
        stage.name if stage.pipeline == SHARED else stage.target
        for stage in shared_stages(params)
        if any(map(stage.makes, read))
    ]
    return TableItems(work, last, shared)


def shared_stages(params: Mapping[str, Any]) -> list[Item]:
    """All stages of the pipeline, then of other systems', whatever of them a table reads."""
    return [stage for path in (SHARED, *sorted(Path().glob(SYSTEMS))) for stage in read_items(path, params)]
