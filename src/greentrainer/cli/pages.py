"""Commands that draw: methods side by side, and reports."""

from pathlib import Path
from typing import Annotated, Any

import typer

from greentrainer.cli.shell import app, quiet_console


@app.command()
def compare(
    spec: Annotated[Path, typer.Argument(help="a YAML file: name, run, seeds and methods")],
    output_dir: Annotated[Path | None, typer.Option(help="default: runs/NAME")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of a key of all runs")
    ] = None,
    retry: Annotated[bool, typer.Option(help="make failed runs again")] = False,
    keep_models: Annotated[bool, typer.Option(help="save every trained model")] = False,
    jobs: Annotated[int, typer.Option(help="runs made at a time, each slower for it")] = 1,
    draw: Annotated[bool, typer.Option(help="only draw what is recorded")] = False,
    dry_run: Annotated[bool, typer.Option(help="print the rows, and what is recorded")] = False,
) -> None:
    """Run methods side by side on one task; print the table, and draw it as a page."""
    console = quiet_console()
    from greentrainer.compare import Study, read
    from greentrainer.config import settings

    changes: dict[str, Any] = {"run": settings(set_ or [])}
    asked = read(spec, changes | ({"output_dir": output_dir} if output_dir else {}))
    made = {"dry-run": dry_run, "retry": retry, "keep-models": keep_models, "jobs": jobs != 1}
    if draw and (given := [name for name, value in made.items() if value]):
        raise ValueError(f"give --draw or --{given[0]}, not both: drawing makes no runs")
    study = Study(asked, console, retry, keep_models, jobs)
    if dry_run:
        for line in study.plan():
            console.print(line, markup=False)
        return
    results = study.results() if draw else study.execute()
    from greentrainer.report import draw_comparison

    written = draw_comparison(results, asked.folder)
    console.print(written.table, soft_wrap=False)
    for line in [*written.unfinished, *written.remarks, *results["verdicts"]]:
        console.print(line, markup=False)
    console.print(f"records in {asked.folder / 'runs'}, page in {written.page}", markup=False)
    if not any("loss" in row for row in results["rows"]):
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="of a run or of a comparison")],
) -> None:
    """Draw report.html anew from what a folder holds, also while the run goes on."""
    from greentrainer.report import draw

    print(draw(folder))
