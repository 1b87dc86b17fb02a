"""`python -m refusal_lens` is the command `refusal-lens`."""

from __future__ import annotations

from refusal_lens.cli import main

if __name__ == "__main__":
    main()
