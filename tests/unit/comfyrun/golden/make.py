"""Makes the golden files and docs/running.md's table of settings anew, and the tables of flags from real ComfyUI trees.

python tests/unit/comfyrun/golden/make.py [TREE ...]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
for folder in ("build", "entrypoint", "tests/unit/comfyrun"):
    sys.path.insert(0, str(ROOT / folder))

from comfyrun import flags, flagtable, settings  # noqa: E402

RUNNING = ROOT / "docs" / "running.md"
_BEGIN = "<!-- settings: begin (python tests/unit/comfyrun/golden/make.py) -->\n"
_END = "<!-- settings: end -->\n"


def table_text(tree: Path) -> str:
    """flags.json with one flag a line."""
    value = flagtable.to_json(flags.read_table(tree))
    lines = ",\n".join(json.dumps(flag) for flag in value["flags"])
    groups = ",\n".join(json.dumps(group) for group in value["exclusive"])
    text = f'{{"schema": {value["schema"]}, "flags": [\n{lines}\n], "exclusive": [\n{groups}\n]}}\n'
    return text.replace(str(tree), "/opt/comfyui")


def settings_table() -> str:
    rows = ["| variable | takes | default | what it does |", "| --- | --- | --- | --- |"]
    for name, setting in settings.SETTINGS.items():
        default = getattr(settings.Settings, name, ())
        match default:
            case bool():
                default = "on" if default else "off"
            case None | ():
                default = ""
        rows.append(f"| `{settings.variable(name)}` | {setting.takes} | {default} | {setting.about} |")
    return "\n".join(rows) + "\n"


def with_settings(text: str) -> str:
    """docs/running.md with its table."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{settings_table()}{_END}{after}"


def version(tree: Path) -> str:
    found = re.search(r'__version__ = "([^"]+)"', (tree / "comfyui_version.py").read_text())
    assert found
    return found[1]


def main(trees: list[str]) -> None:
    for tree in map(Path, trees):
        (HERE / f"flags-{version(tree)}.json").write_text(table_text(tree))
    RUNNING.write_text(with_settings(RUNNING.read_text()))
    import test_comfyrun_golden as golden

    for case in golden.CASES:
        (HERE / case.file).write_text(golden.shown(case))


if __name__ == "__main__":
    main(sys.argv[1:])
