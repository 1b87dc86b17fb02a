"""Edits of weights that equal the hooks: writers, edits in memory and in files, exports, comparisons.

Edited weights are for research on models that one may modify; nothing here uploads anything.
"""

from ..model.stream.mapping import writers_of, writers_of_config
from ..model.stream.writers import Writer, Writers
from .checkpoint import ExportPlan, prepare
from .compare import FilesEquivalence, verify_files
from .edits import AddBias, Orthogonalise, WeightEdit, add_bias, orthogonalise
from .export import write_checkpoint
from .measure import Equivalence, equivalence, verify
from .memory import Edited, apply, edited

__all__ = [
    "AddBias",
    "Edited",
    "Equivalence",
    "ExportPlan",
    "FilesEquivalence",
    "Orthogonalise",
    "WeightEdit",
    "Writer",
    "Writers",
    "add_bias",
    "apply",
    "edited",
    "equivalence",
    "orthogonalise",
    "prepare",
    "verify",
    "verify_files",
    "write_checkpoint",
    "writers_of",
    "writers_of_config",
]
