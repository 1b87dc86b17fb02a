"""Numbers to figures, nothing else: a function takes a table of a run folder, returns plotly.

Nothing here computes a measurement, reads a file or saves one. Views of attention patterns
(circuitsvis) belong in this room too, in a module of their own.
"""

from __future__ import annotations

from refusal_lens.plotting.cosine import cosine_by_layer
from refusal_lens.plotting.distributions import metric_histograms, pca_by_layer
from refusal_lens.plotting.rates import refusal_rates, top_tokens
from refusal_lens.plotting.sweeps import candidate_map, layer_sweep
from refusal_lens.plotting.theme import TEMPLATE, label, visible

__all__ = [
    "TEMPLATE",
    "candidate_map",
    "cosine_by_layer",
    "label",
    "layer_sweep",
    "metric_histograms",
    "pca_by_layer",
    "refusal_rates",
    "top_tokens",
    "visible",
]
