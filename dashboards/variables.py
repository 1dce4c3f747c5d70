"""Variables of the dashboards: the data source, and labels of containers, each narrowed by those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from grafanalib import core

from collector.catalogue import container, hyper
from dashboards.panels import SOURCE

if TYPE_CHECKING:
    from collections.abc import Sequence

_LABELS: Final = {
    "instance": "Host", "namespace": "Tenant", "pod": "Pod", "container": "Container", "image": "Image",
}  # fmt: skip


def datasource() -> Any:
    """Which Prometheus."""
    return core.Template(name="datasource", label="Data source", query="prometheus", type="datasource", default=None)


def chain(names: Sequence[str], *, single: bool = False) -> list[Any]:
    """The data source, then a variable for each label: of several values or all, or of one value each if `single`."""
    variables = [datasource()]
    for index, name in enumerate(names):
        before = ", ".join(f'{one}=~"${one}"' for one in names[:index])
        metric = hyper.CONTAINERS if name == "instance" else container.INFO
        variables.append(of_label(name, _LABELS[name], metric.name + (f"{{{before}}}" if before else ""), name, single))
    return variables


def of_label(name: str, title: str, selector: str, label: str, single: bool) -> Any:
    """One variable, of the values of a label of what is selected."""
    several: dict[str, Any] = {"multi": True, "includeAll": True, "allValue": ".*", "default": "$__all"}
    return core.Template(
        name=name,
        label=title,
        query=f"label_values({selector}, {label})",
        dataSource=SOURCE,
        type="query",
        refresh=2,
        **({} if single else several),
    )
