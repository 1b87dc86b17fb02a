"""The sections of the page, a module each: `render` makes a `Section` of a run's folder, None without its data."""
