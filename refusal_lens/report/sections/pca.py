"""Principal components of the last token by layer."""

from __future__ import annotations

from refusal_lens.plotting import pca_by_layer
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section

_CAPTION = (
    "Residual stream at the last token, a point per test prompt; each layer has its own "
    "axes, and a component's sign is arbitrary. Percentages: variance explained by PC 1 and PC "
    "2. {shown}"
)


def render(run: RunFolder) -> Section | None:
    """Small multiples from pca.csv, the selected layer among them."""
    points = run.table("pca.csv")
    if points is None:
        return None
    layer = run.selected.layer if run.selected is not None else None
    n = points["layer"].nunique()
    figure = pca_by_layer(points, labels=run.labels, selected_layer=layer)
    drawn = sum(1 for trace in figure.data) // max(1, points["kind"].nunique())
    shown = f"{drawn} of {n} layers." if drawn < n else "Every layer."
    if layer is not None:
        shown += " Star: the layer r was taken from."
    plot = Plot("pca", figure, _CAPTION.format(shown=shown))
    return Section("pca", "Principal components by layer", (plot,))
