"""Ways from one dashboard to another; each carries the variables and the time range along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from grafanalib import core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FLEET: Final = "hyper-fleet"
HOST: Final = "hyper-host"
CONTAINER: Final = "hyper-container"
IMAGES: Final = "hyper-images"
REMEDIATION: Final = "hyper-remediation"
SLO: Final = "hyper-slo"

TITLES: Final = {
    FLEET: "Fleet", HOST: "Host", CONTAINER: "Container", IMAGES: "Images", REMEDIATION: "Remediation", SLO: "SLO",
}  # fmt: skip
"""Every dashboard by its uid, in the order in which they stand in the bar of links."""

_CARRIED: Final = "${datasource:queryparam}&${__url_time_range}"
_OF_CONTAINER: Final = ("instance", "namespace", "pod", "container")


def bar(here: str) -> list[Any]:
    """The links at the top of the dashboard with this uid, to all others."""
    return [
        core.DashboardLink(
            title=title,
            uri=f"/d/{uid}",
            type="link",
            icon="dashboard",
            tooltip=f"{title}, with the same choice and time range",
            includeVars=True,
            keepTime=True,
        )
        for uid, title in TITLES.items()
        if uid != here
    ]


def from_series(uid: str, labels: Sequence[str]) -> dict[str, Any]:
    """A link from a series to what its labels name."""
    return _link(uid, {label: f"${{__field.labels.{label}:percentencode}}" for label in labels})


def from_row(uid: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """A link from a row of a table, whose columns are headed as given by label."""
    return _link(uid, {label: f"${{__data.fields.{heading}:percentencode}}" for label, heading in columns.items()})


def from_choice(uid: str, variables: Sequence[str]) -> dict[str, Any]:
    """A link that carries the values of the dashboard's own variables."""
    return _link(uid, {}, variables)


def to_container() -> list[dict[str, Any]]:
    """Links of a series that has the labels of one container."""
    return [from_series(CONTAINER, _OF_CONTAINER), from_series(HOST, ("instance",))]


def to_host() -> list[dict[str, Any]]:
    """Links of a series that has the label of one host."""
    return [from_series(HOST, ("instance",)), from_series(FLEET, ("instance",))]


def _link(uid: str, values: Mapping[str, str], variables: Sequence[str] = ()) -> dict[str, Any]:
    chosen = "".join(f"&var-{label}={value}" for label, value in values.items())
    chosen += "".join(f"&${{{name}:queryparam}}" for name in variables)
    return {"title": f"Open {TITLES[uid]}", "url": f"/d/{uid}?{_CARRIED}{chosen}", "targetBlank": False}
