"""The fast, exact scoring engine: bypass, induce and kl of every candidate, or of those that
matter.

Many candidates share one pass, rows go by length instead of padding, blocks under an addition
are not run again, tokens that all prompts begin with are computed once per candidate, and only
the logits that are read are made. The result is that of the hooks, which is checked on the model at
hand before the fast passes are used.
"""

from .state import Stats, SweepCheckpoint
from .sweeping import Sweep, score_candidates, sweep

__all__ = ["Stats", "Sweep", "SweepCheckpoint", "score_candidates", "sweep"]
