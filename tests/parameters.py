"""The README's table of parameters, from the parameters: ``python -m tests.parameters`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pyramid_core.params import PyramidParams

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- parameters: written by python -m tests.parameters -->\n"
END = "<!-- parameters: end -->\n"


def table() -> str:
    """Return a row for each field: its name, its default, and what its help says."""
    lines = ["| parameter | default | |", "|---|---|---|"]
    for name, field in PyramidParams.model_fields.items():
        default = field.default
        text = "" if field.is_required() or default in (None, "", []) else default
        shown = ",".join(map(str, text)) if isinstance(text, list) else str(text)
        choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
        says = (
            f"{field.description or ''}{' One of ' + ', '.join(choices) + '.' if choices else ''}"
        )
        lines.append(f"| `{name}` | {f'`{shown}`' if shown else ''} | {says.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table into the README."""
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
