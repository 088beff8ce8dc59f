"""Commands on trained models: what changed, and back."""

from pathlib import Path
from typing import Annotated

import typer

from greentrainer.cli.options import BaseModel, Folder
from greentrainer.cli.shell import app, quiet_console


@app.command()
def delta(
    base: BaseModel,
    model: Annotated[str, typer.Argument(help="the trained model's folder")],
    folder: Folder,
) -> None:
    """Save what training changed: base and delta give the model back bit for bit."""
    console = quiet_console()
    from greentrainer.hf import load, save_delta

    trained, _ = load(model)
    written = save_delta(trained, load(base)[0], folder)
    console.print(
        f"{len(written.tensors)} tensors changed: {written.bytes / 1e6:.1f} MB in {written.path}, "
        f"{written.share:.1%} of a full checkpoint"
    )


@app.command()
def merge(
    base: BaseModel,
    folder: Annotated[Path, typer.Argument(help="the delta's folder, or the adapter's")],
    output: Annotated[Path, typer.Argument(help="where the whole model is written")],
) -> None:
    """Rebuild a whole model from its base and a delta or an adapter; refuses another base."""
    console = quiet_console()
    from greentrainer.hf import base_dtype, is_adapter, load, load_delta, put_on

    if is_adapter(folder):
        model, tokenizer = load(base)
        put_on(model, folder).save_pretrained(output)
        tokenizer.save_pretrained(output)
        console.print(f"the adapter is added to the weights of {base}; the model is in {output}")
        return
    model, tokenizer = load(base, dtype=base_dtype(folder))
    changed = load_delta(model, folder)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    console.print(f"{len(changed)} tensors of {base} replaced; the model is in {output}")
