"""What a command's exit code says."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
UNMET = 3
INTERRUPTED = 130

EPILOG = (
    f"Exit codes: {DONE} done; {FAILED} failed, with one line that says why; {USAGE} bad usage; "
    f"{UNMET} measured, but a requirement does not hold (no candidate passes, or files do not equal "
    f"the hooks); {INTERRUPTED} interrupted."
)
