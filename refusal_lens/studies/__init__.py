"""One paper's question each, composed from the rooms above; studies never import each other."""
