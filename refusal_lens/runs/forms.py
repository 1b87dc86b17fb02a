"""What each file of a run must hold, by its name in the run's folder: columns, or the form of JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from refusal_lens.runs import files
from refusal_lens.runs.opening import place_in
from refusal_lens.runs.schema import Mark, StepFile, Whole
from refusal_lens.runs.tables import Table

Form = Any
"""A `Table` for a .csv file, a msgspec type for a .json file or for each line of a .jsonl file."""

OF_EVERY_RUN: Mapping[str, Form] = {
    "run.json": Mark,
    "manifest.json": Whole,
    "steps/*.json": StepFile,
}


@dataclass(frozen=True)
class Forms:
    """Files by name, or by a pattern such as "completions/*.jsonl", and the form of each."""

    files: Mapping[str, Form]

    def of(self, name: str) -> Form | None:
        """The form of a file; None where nothing is known of it."""
        forms = {**OF_EVERY_RUN, **self.files}
        matching = (form for pattern, form in forms.items() if fnmatchcase(name, pattern))
        return forms.get(name) or next(matching, None)

    def tables(self) -> Iterator[str]:
        """Names of the tables, without patterns."""
        yield from (name for name, form in self.files.items() if isinstance(form, Table) and "*" not in name)

    def read(self, folder: Path, name: str) -> Any:
        """A file's contents when they have its form: a DataFrame, a JSON value, or a list of rows.

        Raises:
            InputError: the file is missing, lies outside of the folder, is damaged or of another form.

        """
        path, form = place_in(folder, name), self.of(name)
        if name.endswith(".csv"):
            return files.read_csv(path, form)
        return (files.read_jsonl if name.endswith(".jsonl") else files.read_json)(path, form)
