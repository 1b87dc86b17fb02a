"""A run's results to one self-contained page: sections, claims and how they are written."""
