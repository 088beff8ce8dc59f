"""The reference of commands, configuration and API, out of the code itself, as Markdown.

The site's pages in `docs/reference` hold a line `<!-- reference: NAME -->`; `filled` puts what
`NAME` stands for in its place when the site is built, so that nothing is written down twice.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tools.docstrings import described

MARK = re.compile(r"^<!-- reference: (\w+) -->$", re.MULTILINE)

MAIN = (
    "GreenConfig", "GreenTrainer", "GreenSeq2SeqTrainer", "Green", "GreenCallback", "load",
    "save_delta", "load_delta", "compile_blocks",
)  # fmt: skip
"""Names of `greentrainer.hf` that come first; the others are parts of it."""

GROUPS = {
    "Model and data": "model revision task tasks data_dir prompt_format prompt_column "
    "completion_column messages_column turns chat_template test_path max_length pad_multiple "
    "packing train_limit test_limit validation_limit data_seed",
    "What may be spent": "rho hours kwh co2_grams flops cost carbon_schedule memory",
    "Method": "method published selections probe_batches metric positions steps prompts passes "
    "stop_early optimizer_state lora_rank lora_targets virtual_tokens top_blocks",
    "Training": "epochs learning_rate weight_decay warmup batch_size accumulate seed bf16 compile "
    "training",
    "Memory and the forward pass": "weights fewer updates load_in_4bit load_in_8bit "
    "activation_checkpointing labelled_head keep_activations keep_bytes keep_folder keep_bfloat16",
    "Several processes": "processes parallel",
    "Evaluation, checkpoints, the folder": "generate decoding evaluate_every patience save_every "
    "keep output_dir resume overwrite license",
    "Energy": "meter watts carbon_intensity",
}
"""Keys of a run by what they are about; one that stands nowhere comes last, by itself."""


def filled(text: str) -> str:
    """A page with what its marks stand for."""
    return MARK.sub(lambda found: PARTS[found[1]](), text)


def commands() -> str:
    """Every command, with its arguments and options."""
    import typer

    from greentrainer.cli.shell import app

    order = [one.__name__ for one in import_module("greentrainer.cli.main").COMMANDS]
    group: Any = typer.main.get_command(app)
    asked: list[Any] = [one.callback for one in app.registered_commands]
    functions = {
        one.__name__: one for one in sorted(asked, key=lambda f: order.index(f.__module__))
    }
    return "\n".join(
        line
        for name, function in functions.items()
        for line in _command(name, group.commands[name].params, function)
    )


def _command(name: str, options: list[Any], function: Any) -> Iterator[str]:
    """A command's section."""
    kinds = get_type_hints(function)
    arguments = [one for one in options if one.param_type_name == "argument"]
    words = [one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments]
    yield f"## {name}\n"
    yield f"{' '.join((function.__doc__ or '').split())}\n"
    yield f"```text\n{' '.join(['greentrainer', name, *words, '[OPTIONS]'])}\n```\n"
    yield "| | takes | what it is |\n| --- | --- | --- |"
    for one in options:
        if one.name in kinds:
            given = [one.name.upper()] if one in arguments else [*one.opts, *one.secondary_opts]
            shown = ", ".join(f"`{word}`" for word in given)
            kind = "" if kinds[one.name] in (bool, bool | None) else _type(kinds[one.name])
            yield f"| {shown} | {kind} | {_cell(one.help or '')}{_default(one.default)} |"
    yield ""


def _default(value: Any) -> str:
    told = isinstance(value, int | float | str | Path) and not isinstance(value, bool)
    return f" (default `{value}`)" if told else ""


def configuration() -> str:
    """Every key of a run, by group, with its type, default and description."""
    from greentrainer.config import RunConfig

    told = described(inspect.getdoc(RunConfig) or "")
    groups = {title: names.split() for title, names in GROUPS.items()}
    listed = {name for names in groups.values() for name in names}
    groups["Others"] = [name for name in RunConfig.model_fields if name not in listed]
    lines = []
    for title, names in groups.items():
        if not names:
            continue
        lines += [f"## {title}\n", "| key | type | default | what it is |", "|---|---|---|---|"]
        for name in names:
            field = RunConfig.model_fields[name]
            kind = _cell(_type(field.annotation))
            default = field.get_default(call_default_factory=True)
            shown = "" if default is None else f"`{default}`"
            lines.append(f"| `{name}` | {kind} | {shown} | {_cell(told.get(name, ''))} |")
        lines.append("")
    return "\n".join(lines)


def _type(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Annotated:
        return _type(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_type(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is list:
        return f"{_type(get_args(kind)[0])}, more than once"
    names = {"str": "text", "float": "number", "int": "whole number", "bool": "yes or no",
             "Path": "path", "tuple": "list of path, weight and limit", "dict": "names and values",
             "NoneType": ""}  # fmt: skip
    name = getattr(get_origin(kind) or kind, "__name__", str(kind))
    return names.get(name, name)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def package() -> str:
    """The names of `greentrainer`."""
    return _names("greentrainer", import_module("greentrainer").__all__)


def trainers() -> str:
    """The names of `greentrainer.hf` that most will use."""
    return _names("greentrainer.hf", MAIN)


def parts() -> str:
    """The other names of `greentrainer.hf`."""
    names = import_module("greentrainer.hf").__all__
    return _names("greentrainer.hf", [name for name in names if name not in MAIN])


def _names(module: str, names: Any) -> str:
    return "\n".join(_directive(module, name) for name in names)


def _directive(module: str, name: str) -> str:
    """What documents a name; Sphinx reads the docstring."""
    value = getattr(import_module(module), name)
    if inspect.ismodule(value):
        kind, full, members = "automodule", f"{module}.{name}", f"   :members: {_own(value)}"
    elif inspect.isclass(value):
        kind, full, members = "autoclass", f"{module}.{name}", "   :members:"
    elif callable(value):
        kind, full, members = "autofunction", f"{module}.{name}", ""
    else:
        return f"### {name}\n\n`{value!r}`: {told(name)}\n"
    return f"### {name}\n\n```{{eval-rst}}\n.. {kind}:: {full}\n{members}\n```\n"


def _own(module: Any) -> str:
    """The functions that a module defines itself."""
    return ", ".join(
        name
        for name, value in vars(module).items()
        if name[0] != "_" and inspect.isfunction(value) and value.__module__ == module.__name__
    )


def told(name: str) -> str:
    """What the text below a constant of `greentrainer.hf` says."""
    for module in {"greentrainer.hf.sharded", "greentrainer.hf.smollm2"}:
        body = ast.parse(inspect.getsource(import_module(module))).body
        for line, after in pairwise(body):
            targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", 0)]
            named = name in {getattr(target, "id", None) for target in targets}
            if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return " ".join(str(after.value.value).split())
    return ""


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "configuration": configuration,
    "package": package,
    "trainers": trainers,
    "parts": parts,
}
"""What a mark may stand for."""
