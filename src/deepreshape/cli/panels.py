"""Help in groups: the options of a command that has many, by what they are about."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperOption

__all__ = ["MANY", "PANELS", "PanelCommand"]

MANY = 8
"""A command with more options than these shows them in groups."""

PANELS = {
    "Network": "activation base baseline block bounds classes fix init input max_pool model networks order phi stages "
    "strides teacher",
    "Data": "data data_dir images row samples subsample target test_share",
    "Training": "epochs gates keep lam reduced_epochs seed seeds settings threads tol views",
    "Removal": "budget budgets granularity method methods price",
    "Search": "evidence max_bytes max_seconds train trials",
    "Protocol": "cot garbler max_loss protocol relu slots workers",
    "Link and machines": "arrivals link profile storage",
    "Parties": "count host keys name pin port program store",
    "Service": "pending sessions status_port until",
    "Quotas of each client": "batch_days batches_each queries_day_each queries_hour_each sessions_each",
    "Output": "as_json page plot private to",
}
"""By heading, the parameters under it, in the order in which help shows the headings."""


class PanelCommand(TyperCommand):
    """A command whose help groups its options, if they are more than :data:`MANY`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        options = [param for param in self.params if isinstance(param, TyperOption)]
        if len(options) > MANY:
            headings = {name: heading for heading, names in PANELS.items() for name in names.split()}
            for option in options:
                option.rich_help_panel = option.rich_help_panel or headings.get(option.name or "")
            places = list(PANELS)
            self.params.sort(key=lambda param: places.index(heading) if (heading := _heading(param)) in places else -1)


def _heading(param: Any) -> str:
    return getattr(param, "rich_help_panel", None) or ""
