"""Edits of weights that equal the hooks: writers, edits in memory and in files, exports, proofs.

Edited weights are for research on models that one may modify; nothing here uploads anything.
"""

from ..model.stream.writers import Writer, Writers, writers_of, writers_of_config
from .adapter import write_adapter
from .checkpoint import Job, prepare
from .compare import FilesProof, verify_files
from .edits import Orthogonalise, Shift, WeightEdit, orthogonalise, shift
from .export import write_checkpoint
from .measure import Proof, prove, verify
from .memory import Edited, apply, edited
from .vectors import read_gguf, read_reference, write_gguf, write_reference, write_steered

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
    "read_gguf",
    "read_reference",
    "shift",
    "verify",
    "verify_files",
    "write_adapter",
    "write_checkpoint",
    "write_gguf",
    "write_reference",
    "write_steered",
    "writers_of",
    "writers_of_config",
]
