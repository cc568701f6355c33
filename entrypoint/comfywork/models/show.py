"""Tables and JSON of the models commands. Data goes to standard output."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from comfywork.models import budget as sums
from comfywork.models.folder import Kind
from comfywork.models.modellist import shipped
from comfywork.quantities import human

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from comfywork.models.budget import Fit, Need
    from comfywork.models.locking import Change
    from comfywork.models.modellist import Loaded, Model, ModelFile
    from comfywork.models.outcome import Outcome
    from comfywork.models.verify import Verdict

SCHEMA = 1
_WIDE = 150
"""Columns where standard output is no terminal: nothing there has to be folded."""

_COLOURS = {
    Kind.RIGHT: "green",
    Kind.PRESENT: "green",
    Kind.PARTIAL: "yellow",
    Kind.MISSING: "yellow",
    Kind.WRONG_SIZE: "red",
    Kind.WRONG_HASH: "red",
}
UNLOCKED = (
    "not locked: no commit, size and hash say what the right bytes are, and pull refuses without --unlocked; "
    "lock with: comfyrun models lock"
)


def out() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)


def as_json(value: Mapping[str, Any]) -> None:
    print(json.dumps({"schema": SCHEMA, **value}, indent=1))


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _state(kind: Kind) -> str:
    return f"[{_COLOURS[kind]}]{kind}[/]"


def _size(file: ModelFile) -> str:
    if file.size is not None:
        return human(file.size)
    return f"~{human(file.estimate)}" if file.estimate else "?"


def lists(found: Sequence[tuple[Loaded, Sequence[Verdict]]], models: Path) -> None:
    table = _table(
        "list", "models", "files", "size", "locked", "here", "for", right=("models", "files", "size")
    )
    for loaded, verdicts in found:
        files = [verdict.file for verdict in verdicts]
        here = sum(v.found.kind in (Kind.PRESENT, Kind.RIGHT) for v in verdicts)
        table.add_row(
            loaded.name,
            str(len(loaded.models)),
            str(len(files)),
            total(files),
            "yes" if loaded.locked else "no",
            f"{here} of {len(files)}",
            escape(loaded.content.title),
        )
    console = out()
    console.print(table)
    console.print(f"models lie in {escape(str(models))}; one list: comfyrun models list NAME")


def total(files: Sequence[ModelFile]) -> str:
    known = [file.estimate for file in files if file.estimate is not None]
    about = "" if all(file.size is not None for file in files) else "~"
    more = f" + {len(files) - len(known)} unknown" if len(known) < len(files) else ""
    return f"{about}{human(sum(known))}{more}"


def one_list(loaded: Loaded, models: Sequence[Model], verdicts: Mapping[str, Verdict]) -> None:
    console = out()
    console.print(
        f"[bold]{loaded.name}[/] {escape(loaded.content.title)}, from {escape(loaded.content.source)}"
    )
    for model in models:
        vram = f"; {model.vram.gb:g} GB of GPU memory, says {model.vram.by}" if model.vram else ""
        gated = "; gated" if model.gated else ""
        console.print(
            f"\n[bold]{model.name}[/] {escape(f'{model.title}; {model.licence}{gated}{vram}')}",
            soft_wrap=True,
        )
        if model.note:
            console.print(f"  {escape(model.note)}", soft_wrap=True)
        table = _table("  state", "size", "path", "from", right=("size",))
        for file in model.files:
            found = verdicts[file.path].found
            table.add_row(f"  {_state(found.kind)}", _size(file), escape(file.path), escape(file.source))
        console.print(table)
    if loaded.content.left_out:
        console.print("\n[bold]left out[/]")
        for left in loaded.content.left_out:
            console.print(f"  {escape(f'{left.name}: {left.why}')}", soft_wrap=True)


def list_json(found: Sequence[tuple[Loaded, Sequence[Model], Mapping[str, Verdict]]], models: Path) -> None:
    as_json(
        {
            "models_path": str(models),
            "lists": [
                {
                    "name": loaded.name,
                    "path": str(loaded.path),
                    "shipped": loaded.name in shipped() and loaded.shipped,
                    "title": loaded.content.title,
                    "locked": loaded.locked,
                    "models": [_model(model, verdicts) for model in chosen],
                    "left_out": [left.model_dump() for left in loaded.content.left_out],
                }
                for loaded, chosen, verdicts in found
            ],
        }
    )


def _model(model: Model, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    value = model.model_dump(exclude={"files"})
    value["locked"] = model.locked
    value["files"] = [_verdict(verdicts[file.path]) for file in model.files]
    return value


def _verdict(verdict: Verdict) -> dict[str, Any]:
    file, found = verdict.file, verdict.found
    return {
        "path": file.path,
        "source": file.source,
        "locked": file.locked,
        "size": file.size,
        "about": file.estimate,
        "sha256": file.sha256,
        "state": found.kind.value,
        "bytes_here": found.size,
        "sha256_here": verdict.sha256,
        "detail": found.detail,
    }


def verify(verdicts: Sequence[Verdict], *, quick: bool) -> None:
    table = _table("state", "size", "path", "what", right=("size",))
    for verdict in verdicts:
        found = verdict.found
        size = human(found.size) if found.size else ""
        table.add_row(_state(found.kind), size, escape(verdict.file.path), escape(found.detail))
    console = out()
    console.print(table)
    if quick:
        console.print("by size and earlier records only; without --quick every byte is read")


def verify_json(verdicts: Sequence[Verdict], models: Path, *, quick: bool) -> None:
    as_json({"models_path": str(models), "quick": quick, "files": [_verdict(v) for v in verdicts]})


def pulled(outcomes: Sequence[Outcome], models: Path) -> None:
    table = _table("outcome", "size", "path", "hash stated by", "notes", right=("size",))
    for one in outcomes:
        notes = [one.message] if one.message else []
        if one.taken_up:
            notes.append(f"{human(one.taken_up)} were here already")
        if one.failures:
            notes.append(f"{one.failures} interruption{'s' if one.failures > 1 else ''}")
        colour = {"refused": "red", "failed": "red", "stopped": "yellow"}.get(one.outcome, "green")
        table.add_row(
            f"[{colour}]{one.outcome}[/]",
            human(one.size) if one.size is not None else "",
            escape(one.path),
            (one.evidence or "") if not one.exit_code else "",
            escape("; ".join(notes)),
        )
    console = out()
    console.print(table)
    console.print(f"in {escape(str(models))}")


def pulled_json(outcomes: Sequence[Outcome], models: Path) -> None:
    as_json({"models_path": str(models), "files": [asdict(outcome) for outcome in outcomes]})


def locked(changes: Sequence[Change]) -> None:
    table = _table("path", "commit", "size", "sha256", "", right=("size",))
    for change in changes:
        table.add_row(
            escape(change.path),
            (change.revision or "")[:12],
            f"{change.size:,}" if change.size else "",
            (change.sha256 or "")[:16],
            f"[red]{escape(change.problem)}[/]"
            if change.problem
            else ", ".join(change.values) or "as it stands",
        )
    out().print(table)


def budget(needs: Sequence[Need], fits: Sequence[Fit], here: str | None, disk: tuple[str, str]) -> None:
    console = out()
    numbers = ("declared", "weights", "counted", "all files")
    table = _table("", "model", *numbers, "declared by", right=numbers)
    letters = _letters(needs)
    for need in needs:
        table.add_row(
            letters[need.name],
            need.name,
            f"{need.declared:g} GB" if need.declared is not None else "?",
            f"{need.largest:.1f} GB" if need.largest is not None else "?",
            f"{need.counted:.3g} GB" if need.counted is not None else "?",
            f"{need.files:.1f} GB{' +' if need.unknown else ''}",
            escape(need.by or "nobody"),
        )
    console.print(table)
    console.print()
    table = _table("target", "memory", "kept", "at once", "", "", right=("memory", "kept", "at once"))
    for fit in fits:
        mark = " *" if here and (fit.target.name == here or fit.target.name.startswith(f"{here}-")) else ""
        table.add_row(
            f"{fit.target.name}{mark}",
            f"{fit.target.memory:g} GB",
            f"{fit.target.kept:g} GB",
            f"{fit.used:g} GB",
            escape(f"|{sums.bar(fit, letters)}|"),
            escape(_left(fit)),
        )
    console.print(table)
    console.print(f"disk: {disk[0]} in all, {disk[1]}")
    if here:
        console.print(f"* this image's target ({here})")
    for line in _caveats(needs):
        console.print(line, soft_wrap=True)


def _letters(needs: Sequence[Need]) -> dict[str, str]:
    return {need.name: chr(ord("A") + i % 26) for i, need in enumerate(needs)}


def _left(fit: Fit) -> str:
    parts = []
    if fit.left:
        parts.append(f"not beside them: {', '.join(need.name for need in fit.left)}")
    if fit.never:
        parts.append(f"not even alone: {', '.join(need.name for need in fit.never)}")
    return "; ".join(parts) or "all of them"


def _caveats(needs: Sequence[Need]) -> list[str]:
    said = (
        "Nothing here was measured. 'declared' is what the named source says, 'weights' the largest file that is loaded by "
        "size; the larger of the two counts, unless --declared. Kept in the list's order; one after the other, more is "
        "possible: ComfyUI moves out what it does not need, and parts of what does not fit."
    )
    lines = [said]
    if doubtful := [need.name for need in needs if need.doubtful]:
        lines.append(f"weights larger than what is declared: {', '.join(doubtful)}")
    if unknown := [need.name for need in needs if need.counted is None]:
        lines.append(f"not counted, since nothing is known of their need: {', '.join(unknown)}")
    return lines


def budget_json(
    needs: Sequence[Need], fits: Sequence[Fit], here: str | None, disk: Mapping[str, Any]
) -> None:
    as_json(
        {
            "image_target": here,
            "measured": False,
            "models": [{**asdict(need), "doubtful": need.doubtful} for need in needs],
            "targets": [
                {
                    **asdict(fit.target),
                    "usable": fit.target.usable,
                    "used": fit.used,
                    "held": [need.name for need in fit.held],
                    "not_beside": [need.name for need in fit.left],
                    "not_alone": [need.name for need in fit.never],
                }
                for fit in fits
            ],
            "disk": disk,
        }
    )
