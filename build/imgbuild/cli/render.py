from __future__ import annotations

from pathlib import Path

import click

from imgbuild.cli.app import App, targets_argument


@click.command("render")
@targets_argument
@click.option("--check", is_flag=True, help="Change nothing; fail with a diff when something has drifted.")
@click.option("--diff", "show_diff", is_flag=True, help="Change nothing; print what would change.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write to another folder."
)
@click.pass_obj
def command(app: App, targets: tuple[str, ...], check: bool, show_diff: bool, output: Path | None) -> None:
    """Write the Dockerfiles and everything else that follows from the matrix."""
    from imgbuild import projections, render
    from imgbuild.errors import ConfigError, DriftError
    from imgbuild.lint import refuse_findings
    from imgbuild.plan import make_plans
    from imgbuild.report import say

    project, matrix = app.project(), app.matrix()
    selected = matrix.select(targets, everything=True)
    whole = len(selected) == len(matrix.targets)
    plans = make_plans(project, matrix, selected)
    renderer = render.Renderer(project.templates)
    files = projections.target_files(plans, renderer) | projections.compose_projection(plans, renderer)
    if whole:
        files.update(projections.shared_files(project, matrix, plans, renderer))
    refuse_findings(files)
    folder = output or project.root
    owned = projections.owned_paths(folder, files, None if whole else [t.name for t in selected])
    if check or show_diff:
        found = render.difference(files, folder, owned=owned)
        if found:
            click.echo(found, nl=False)
        if found and check:
            raise DriftError(
                f"{sum(x.startswith('+++ ') for x in found.splitlines())} rendered files are not what the matrix gives",
                hint=" ".join(["imgbuild render", *targets]),
            )
        if not found:
            say("nothing has drifted")
        return
    if output is None and not project.writable:
        raise ConfigError("the tool's own data cannot be written to", hint="imgbuild render -o DIR")
    changed = render.write(files, folder)
    gone = () if output else render.remove_leftovers(files, folder, owned=owned)
    for verb, names in (("wrote", changed), ("removed", gone)):
        for name in names:
            say(f"{verb} {folder / name}")
    if not changed and not gone:
        say("nothing has changed")
