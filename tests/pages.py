"""The code on README's and the site's pages, and a place where it can run.

A block of Python runs, those of a page one after the other with the same names; unless `<!-- not
run: REASON -->` stands above it.  Of a block of shell each line is held against the commands and
options there are; below `<!-- run -->` its `greentrainer` commands run too.  Blocks of YAML are
read as what they are.

Whatever runs, runs in a folder of its own with `mine.jsonl` in it, and `smollm2-135m` is a tiny
model.  Pages whose code begins in the middle of a reader's own program have names given (`GIVEN`).
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHAT = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
_MARK = re.compile(r"<!-- (run|not run): ?(.*?) ?-->|<!-- (run) -->")


@dataclass(frozen=True)
class Block:
    """Code on a page.  mark: run, not run, or nothing; reason: why not; line: of the file."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    reason: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, fenced or indented; the latter are shell."""
    found: list[Block] = []
    mark, reason = "", ""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block" and (said := _MARK.match(token.content.strip())):
            mark, reason = said[1] or said[3], said[2] or ""
            continue
        if token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.strip() else ""
            language = language if token.type == "fence" else "indented"
            line = (token.map or [0])[0] + 1
            found.append(Block(page, line, language, token.content, mark, reason))
        mark, reason = "", ""
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each line of shell, without comments; lines that go on are one."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def rows(folder: Path) -> Path:
    """`mine.jsonl`, of letters and digits that the tiny model's tokenizer knows."""
    path = folder / "mine.jsonl"
    lines = [
        f'{{"prompt": "add {i} and {i}", "completion": "it is {2 * i}"}}\n' for i in range(100)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def stand_in(folder: Path) -> Path:
    """A tiny model with room for the pages' rows, whose tokens are characters."""
    import transformers as tf

    from tests.tiny import characters

    tf.utils.logging.disable_progress_bar()
    config = tf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=512, eos_token_id=1, pad_token_id=0,
        bos_token_id=3,
    )  # fmt: skip
    model: Any = tf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer = characters()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def _loop(model: Path) -> dict[str, Any]:
    """A loop of one's own: a model, its optimizer and batches."""
    import torch
    import transformers as tf

    from tests.conformance.families import batch_for

    network: Any = tf.AutoModelForCausalLM.from_pretrained(model)
    batches = [batch_for("", rows=2, length=12, seed=i) for i in range(12)]
    args = tf.TrainingArguments("out", use_cpu=True, report_to=[], disable_tqdm=True)
    return {
        "model": network.train(),
        "optimizer": torch.optim.AdamW(network.parameters(), lr=1e-3),
        "batches": batches,
        "batch": batches[0],
        "probe_batches": batches[:1],
        "args": args,
        "data": [{key: value[0] for key, value in batch.items()} for batch in batches],
    }


def _trl(model: Path) -> dict[str, Any]:
    """A script for TRL: data sets of chats and of pairs."""
    from functools import partial

    import transformers as tf
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    turn = [{"role": "user", "content": "add 1 and 1"}]
    answer = [[{"role": "assistant", "content": f"it is {i}"}] for i in (2, 3)]
    pairs = [{"prompt": turn, "chosen": answer[0], "rejected": answer[1]}] * 4
    return {
        **_loop(model),
        "model": tf.AutoModelForCausalLM.from_pretrained(model),
        "DPOTrainer": DPOTrainer,
        "SFTTrainer": partial(SFTTrainer, args=SFTConfig("out", report_to=[], bf16=False)),
        "args": DPOConfig("out", report_to=[], bf16=False, use_cpu=True, max_length=64),
        "pairs": Dataset.from_list(pairs),
        "chats": Dataset.from_list([{"messages": [*turn, *answer[0]]}] * 4),
    }


def _readme(model: Path) -> dict[str, Any]:
    from transformers import Trainer  # TRL takes ten seconds to import, for a class without a body

    return {**_loop(model), "DPOTrainer": Trainer}


def _config(model: Path) -> dict[str, Any]:
    from greentrainer.hf import GreenConfig

    return {"GreenConfig": GreenConfig}


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "README.md": _readme,
    "docs/huggingface.md": _trl,
    "docs/forward.md": _config,
}
"""What a page takes for granted."""
