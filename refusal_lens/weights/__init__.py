"""Edits of weights that equal the hooks: writers, edits in memory and in files, exports, proofs.

Edited weights are for research on models that one may modify; nothing here uploads anything.
"""

from ..model.stream.writers import Writer, Writers, writers_of, writers_of_config
from .checkpoint import Job, prepare
from .compare import FilesProof, verify_files
from .edits import Orthogonalise, Shift, WeightEdit, orthogonalise, shift
from .export import write_checkpoint
from .measure import Proof, prove, verify
from .memory import Edited, apply, edited

__all__ = [
    "Edited",
    "FilesProof",
    "Job",
    "Orthogonalise",
    "Proof",
    "Shift",
    "WeightEdit",
    "Writer",
    "Writers",
    "apply",
    "edited",
    "orthogonalise",
    "prepare",
    "prove",
    "shift",
    "verify",
    "verify_files",
    "write_checkpoint",
    "writers_of",
    "writers_of_config",
]
