"""Numbers to figures, nothing else: a function takes a table of a run folder, returns plotly.

Nothing here computes a measurement, reads a file or saves one. Views of attention patterns
(circuitsvis) belong in this room too, in a module of their own.
"""

from __future__ import annotations

from refusal_lens.plotting.cosine import cosine_by_layer
from refusal_lens.plotting.distributions import pca_by_layer, score_histograms
from refusal_lens.plotting.labels import Labels, capital
from refusal_lens.plotting.rates import rates_by_condition, top_tokens
from refusal_lens.plotting.sweeps import candidate_map, layer_sweep
from refusal_lens.plotting.theme import TEMPLATE, label, visible

__all__ = [
    "TEMPLATE",
    "Labels",
    "candidate_map",
    "capital",
    "cosine_by_layer",
    "label",
    "layer_sweep",
    "pca_by_layer",
    "rates_by_condition",
    "score_histograms",
    "top_tokens",
    "visible",
]
