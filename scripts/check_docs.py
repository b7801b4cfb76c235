"""Checks that the documents hold: links and files that they name exist, and their commands and config keys are real."""

import re
import subprocess
import sys
from pathlib import Path

from naysay.config.load import dotted_keys
from naysay.config.objectives import OBJECTIVES
from naysay.config.run import RunConfig
from naysay.config.stages import STAGES

ROOT = Path(__file__).parent.parent
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")]
DOCUMENTS = TOP + sorted((ROOT / "docs").glob("*.md"))
COMMANDS = {"align", "capability", "compare", "config", "inspect", "judge", "lab", *STAGES}


def problems(document: Path) -> list[str]:
    """What in this document is not so."""
    text = document.read_text(encoding="utf-8")
    found = []
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://", "mailto:")) and not (document.parent / target).exists():
            found.append(f"link to {target}, which does not exist")
    for command in re.findall(r"(?:^|`|\s)naysay ([a-z]+)\b(?=[ `\n])", text, flags=re.MULTILINE):
        if f"`naysay {command}" in text and command not in COMMANDS:
            found.append(f"command `naysay {command}`, which does not exist")
    keys = set(dotted_keys(RunConfig))
    for key in re.findall(r"--set ([a-z_]+(?:\.[a-z_]+)+)=", text):
        if key not in keys:
            found.append(f"config key {key}, which does not exist")
    for target in re.findall(r"`make ([a-z-]+)`", text):
        if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE):
            found.append(f"`make {target}`, which does not exist")
    return [f"{document.relative_to(ROOT)}: {problem}" for problem in found]


def missing_objectives() -> list[str]:
    """Objectives that the table does not have, with all their own keys."""
    rows = [line for line in (ROOT / "docs" / "objectives.md").read_text().splitlines() if line.startswith("| `")]
    table = {row.split("`")[1]: row for row in rows}
    return [
        f"docs/objectives.md: no row for {name} with {', '.join(cls().objective_args) or 'no key'}"
        for name, cls in OBJECTIVES.items()
        if name not in table or not all(f"`{key}`" in table[name] for key in cls().objective_args)
    ]


def main() -> int:
    found = [problem for document in DOCUMENTS for problem in problems(document)] + missing_objectives()
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split():
        if name.endswith(".py") and len((ROOT / name).read_text(encoding="utf-8").splitlines()) > 400:
            found.append(f"{name}: more than 400 lines")
    print("\n".join(found) or f"{len(DOCUMENTS)} documents hold")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
