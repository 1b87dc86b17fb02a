"""Where prompts lie along and around a direction, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from ..activations import cache_residuals
from ..conversations import Prompt
from ..direction import Direction
from ..door import checked
from ..errors import InputError
from ..interventions import Edit, applied
from ..metrics import cosine_similarity
from ..model import ChatModel
from ..progress import Progress
from ..shapes import PromptActivations, as_float64


@checked
def cosine_by_layer(
    model: ChatModel,
    direction: Direction,
    *,
    prompts: Mapping[str, Sequence[Prompt]],
    edits: Mapping[str, Mapping[str, Edit | None]],
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Cosine of resid_pre at the last position with r, per kind of prompt, condition and layer.

    prompts: kind -> prompts. edits: kind -> condition -> edit or None. One row per kind, condition and layer: mean
    and population SD over prompts, as in the paper's Figs. 5, 22 and 24. Raises InputError for edits of a kind that
    has no prompts.
    """
    unknown = sorted(set(edits) - set(prompts))
    if unknown:
        raise InputError(f"edits: got kind {unknown[0]!r}, need one of {', '.join(prompts)}")
    rows = []
    total = sum(len(conditions) for conditions in edits.values())
    for kind, conditions in edits.items():
        for condition, edit in conditions.items():
            with applied(model, [] if edit is None else edit):
                streams = cache_residuals(
                    model, prompts[kind], places=["post[-1]"], batch_size=batch_size
                )
            cosines = cosine_similarity(streams[:, 0], direction.vector)
            mean, sd = cosines.mean(0), cosines.std(0, unbiased=False)
            rows += [
                {
                    "quantity": "cosine",
                    "kind": kind,
                    "condition": condition,
                    "layer": layer,
                    "position": -1,
                    "mean": float(mean[layer]),
                    "sd": float(sd[layer]),
                    "n": len(cosines),
                }
                for layer in range(model.n_layers)
            ]
            if on_progress is not None:
                on_progress("cosines", sum(1 for row in rows if row["layer"] == 0), total)
    return pd.DataFrame(rows)


@checked
def principal_components(streams: Mapping[str, PromptActivations]) -> pd.DataFrame:
    """First two principal components per layer over the prompts of all kinds, last kept position.

    streams: kind -> [prompt position layer d_model]. Columns layer, kind, pc1, pc2 and the shares of variance
    explained1, explained2. The sign makes the first kind's mean pc1 positive. Raises InputError for no streams, or a
    kind without prompts.
    """
    if not streams or any(0 in stream.shape for stream in streams.values()):
        raise InputError("streams: got none, or a kind without prompts; need one or more of each")
    rows = []
    stacked = torch.cat([as_float64(stream[:, -1]) for stream in streams.values()])
    labels = [kind for kind, stream in streams.items() for _ in range(len(stream))]
    first = torch.tensor([label == labels[0] for label in labels])
    for layer in range(stacked.shape[1]):
        centred = stacked[:, layer] - stacked[:, layer].mean(0)
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        scores = u[:, :2] * s[:2]
        scores = scores * torch.where(scores[first].mean(0) < 0, -1.0, 1.0)
        shares = s.square() / s.square().sum().clamp_min(1e-30)
        rows += [
            {
                "layer": layer,
                "kind": label,
                "pc1": float(point[0]),
                "pc2": float(point[1]),
                "explained1": float(shares[0]),
                "explained2": float(shares[1]),
            }
            for label, point in zip(labels, scores, strict=True)
        ]
    return pd.DataFrame(rows)
