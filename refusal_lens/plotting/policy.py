"""What a page allows the browser: its own scripts and nothing from anywhere, as a second defence."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence


def content_policy(scripts: Sequence[str], *, beside: bool = False) -> str:
    """A Content-Security-Policy element that lets these inline scripts run, by hash, and no other.

    beside: also scripts that lie where the page does.
    """
    allowed = ["'self'"] * beside + [f"'sha256-{_sha256(script)}'" for script in scripts]
    rules = (
        f"default-src 'none'; script-src {' '.join(allowed)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
