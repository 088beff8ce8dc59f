"""Using what was trained: one answer as it is written, or a file of them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from greentrainer.config import RunConfig, read_mapping
from greentrainer.hf import models
from greentrainer.records import visible, write_lines
from greentrainer.run.evaluation import DECODINGS
from greentrainer.run.inputs import load_task, sample, with_template
from greentrainer.tasks import (
    Message,
    metrics,
    position_limit,
    rendered,
    stop_ids,
    virtual_config,
)

Turn = dict[str, str]
DATA = (
    "task", "tasks", "data_dir", "prompt_format", "prompt_column", "completion_column",
    "messages_column", "test_path", "data_seed", "max_length",
)  # fmt: skip
"""Keys that say what a run was trained on."""


def model_of(name: str) -> str:
    """The model that a name stands for: of a run's folder the model in it."""
    inside = Path(name).expanduser() / "model"
    return str(inside) if inside.is_dir() else name


def of_run(name: str) -> dict[str, Any]:
    """What a run was told of its data, of a run's folder; nothing of anything else."""
    path = Path(name).expanduser() / "config.yaml"
    if not path.is_file():
        return {}
    known = read_mapping(path)
    return {key: known[key] for key in DATA if known.get(key) is not None}


def ready(config: RunConfig, console: Console) -> tuple[Any, Any]:
    """Model and tokenizer, ready to answer."""
    model, tokenizer = models.load(
        model_of(config.model), notify=console.print, revision=config.revision
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return model, with_template(tokenizer, config.chat_template)


def answer(
    model: Any, tokenizer: Any, turns: Sequence[Turn], new_tokens: int, temperature: float
) -> str:
    """The model's answer to a chat, written to the terminal as it comes.

    Without a chat template the last turn is continued as it is.
    """
    if tokenizer.chat_template:
        text = rendered(tokenizer, [Message(t["role"], t["content"]) for t in turns], asks=True)
        given: Any = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        given = tokenizer(turns[-1]["content"], return_tensors="pt")
    given = {name: tensor.to(model.device) for name, tensor in given.items()}
    if not model.config.is_encoder_decoder:
        new_tokens = min(new_tokens, _positions_left(model, given["input_ids"].shape[1]))
    stream = None
    if not model.config.is_encoder_decoder:
        stream = _stream(tokenizer)
    sampled = {"do_sample": True, "temperature": temperature} if temperature else {
        "do_sample": False, "temperature": None, "top_p": None, "top_k": None,
    }  # fmt: skip
    with torch.no_grad():
        tokens = model.generate(
            **given,
            max_new_tokens=new_tokens,
            eos_token_id=stop_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            streamer=stream,
            **sampled,
        )
    start = 0 if model.config.is_encoder_decoder else given["input_ids"].shape[1]
    text = str(tokenizer.decode(tokens[0, start:], skip_special_tokens=True))
    if stream is None:
        print(visible(text))
    return text


def _stream(tokenizer: Any) -> Any:
    """What writes an answer to the terminal as it comes."""
    import transformers

    class Visible(transformers.TextStreamer):
        """Writes nothing that a terminal takes for an order."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            """As of all."""
            super().on_finalized_text(visible(text), stream_end)

    return Visible(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _positions_left(model: Any, given: int) -> int:
    """Tokens that may be written behind so many.  Raises ValueError where that is none."""
    most = position_limit(model)
    if most is None:
        return sys.maxsize
    virtual = virtual_config(model)
    left = most - given - (virtual.num_virtual_tokens if virtual else 0)
    if left < 1:
        raise ValueError(
            f"the chat has {given} tokens, and the model's {most} positions leave room for no "
            "answer: begin anew, or say less"
        )
    return left


def write_answers(
    config: RunConfig, split: str, out: Path, console: Console, new_tokens: int | None = None
) -> int:
    """Write what the model answers to each example of a split, as JSON lines; gives their number.

    new_tokens: where an answer is cut off, if not where the configured decoding does.
    Raises ValueError for a split without examples that ask for anything.
    """
    model, tokenizer = ready(config, console)
    task = load_task(config, tokenizer)
    limit = config.test_limit
    examples = [
        one for one in sample(task.examples(split), limit, config.data_seed) if not one.text
    ]
    if not examples:
        raise ValueError(f"{task.name} asks for no answer in {split}: it holds texts only")
    console.print(f"{task.name}: {len(examples)} examples to answer", markup=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.open("a").close()  # what cannot be written is told before it is made
    decoding = DECODINGS[config.decoding]
    if new_tokens is not None:
        decoding = replace(decoding, max_new_tokens=new_tokens)
    texts = metrics.answers(
        model, tokenizer, examples, decoding, max_length=config.max_length,
        batch_size=config.batch_size,
    )  # fmt: skip
    rows = zip(examples, texts, strict=True)
    write_lines(
        out,
        [{"prompt": one.prompt + one.cue, "references": list(one.answers), "prediction": text}
         for one, text in rows],
    )  # fmt: skip
    return len(examples)
