"""Trainers as people use them, each on a tiny model and its own kind of data, and their FLOPs."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers as tf
import trl
from datasets import Dataset
from peft import LoraConfig

from greentrainer.cost import flop_counter
from greentrainer.hf import Green, GreenConfig
from tests.tiny import characters

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # they may change
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

datasets.disable_progress_bars()
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def tokenizer() -> Any:
    made = characters()
    made.chat_template = TEMPLATE
    return made


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


CHATS = [
    {"messages": [*said("user", f"say {i} " + "so " * (i % 5)),
                  *said("assistant", "it is " * (1 + i % 3))]}
    for i in range(32)
]  # fmt: skip
PAIRS = [
    {"prompt": said("user", f"say {i} " + "so " * (i % 5)),
     "chosen": said("assistant", "fine " * (1 + i % 4)), "rejected": said("assistant", "no")}
    for i in range(32)
]  # fmt: skip
JUDGED = [
    {"prompt": said("user", f"say {i}"), "completion": said("assistant", f"fine {i}"),
     "label": bool(i % 2)}
    for i in range(32)
]  # fmt: skip
PROMPTS = [{"prompt": said("user", f"say {i}")} for i in range(16)]


def length(completions: Any, **_: Any) -> list[float]:
    """A reward: how long what was written is."""
    return [float(len(one[0]["content"])) for one in completions]


@dataclass(frozen=True)
class Kind:
    """A Trainer, its settings' class, data, and what it is given besides.

    rho: to spend; a smaller one is refused where little of what it executes is training.
    """

    trainer: Any
    settings: Any
    data: list[dict[str, Any]]
    options: dict[str, Any]
    given: dict[str, Any]
    rho: float = 0.7
    scores: bool = False


SFT = (trl.SFTTrainer, trl.SFTConfig, CHATS)
REWARDED = {"reward_funcs": length}
GENERATED = {"max_completion_length": 8, "num_generations": 4}
KINDS = {
    "sft": Kind(*SFT, {"max_length": 64}, {}),
    "sft, dft": Kind(*SFT, {"max_length": 64, "loss_type": "dft"}, {}),
    "sft, packed": Kind(*SFT, {"max_length": 96, "packing": True}, {}),
    "sft, packed and wrapped": Kind(
        *SFT, {"max_length": 96, "packing": True, "packing_strategy": "wrapped"}, {}
    ),
    "sft, no padding": Kind(*SFT, {"max_length": None, "padding_free": True}, {}),
    "sft, completions": Kind(*SFT, {"max_length": 64, "assistant_only_loss": False}, {}),
    "sft, smoothed": Kind(*SFT, {"max_length": 64, "label_smoothing_factor": 0.1}, {}, 0.8),
    "dpo": Kind(trl.DPOTrainer, trl.DPOConfig, PAIRS, {"max_length": 64}, {}, 0.75),
    "dpo, ipo": Kind(
        trl.DPOTrainer, trl.DPOConfig, PAIRS, {"max_length": 64, "loss_type": ["ipo"]}, {}, 0.75
    ),
    "kto": Kind(trl.KTOTrainer, trl.KTOConfig, JUDGED, {"max_length": 64}, {}, 0.85),
    "reward": Kind(trl.RewardTrainer, trl.RewardConfig, PAIRS, {"max_length": 64}, {}, 0.7, True),
    "orpo": Kind(ORPOTrainer, ORPOConfig, PAIRS, {"max_length": 64}, {}),
    "cpo": Kind(CPOTrainer, CPOConfig, PAIRS, {"max_length": 64}, {}),
    "grpo": Kind(trl.GRPOTrainer, trl.GRPOConfig, PROMPTS, GENERATED, REWARDED, 0.9),
    "rloo": Kind(trl.RLOOTrainer, trl.RLOOConfig, PROMPTS, GENERATED, REWARDED, 0.95),
}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "bfloat16": {"bf16": True},
    "not checkpointed": {"gradient_checkpointing": False},
    "lora": {},
}


def model_in(folder: Path, scores: bool = False) -> Any:
    """A tiny Llama that has a folder, as Trainers that load it again need it."""
    torch.manual_seed(0)
    made = tokenizer()
    config = tf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=made.pad_token_id,
        bos_token_id=made.eos_token_id, eos_token_id=made.eos_token_id,
    )  # fmt: skip
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    if scores:
        return tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    return tf.AutoModelForCausalLM.from_pretrained(folder)


def mixed(trainer: Any) -> Any:
    """The Trainer with `Green` mixed in."""
    return type(f"Green{trainer.__name__}", (Green, trainer), {})


def trainer_of(
    kind: Kind, folder: Path, mode: str = "plain", rho: float | None = None, **more: Any
) -> Any:
    """The Trainer, ready to train; with `Green` mixed in where a rho is given."""
    settings = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "bf16": False, "dataloader_pin_memory": False,
        **kind.options, **MODES[mode], **more,
    }  # fmt: skip
    given = dict(kind.given)
    if mode == "lora":
        given["peft_config"] = LoraConfig(r=4, target_modules="all-linear")
    if rho is not None:
        given["green"] = GreenConfig(rho=rho)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (kind.trainer if rho is None else mixed(kind.trainer))(
            model_in(folder / "model", kind.scores),
            args=kind.settings(str(folder / "run"), **settings),
            train_dataset=Dataset.from_list(kind.data), processing_class=tokenizer(), **given,
        )  # fmt: skip


def counting(trainer: Any) -> list[int]:
    """Train; FLOPs executed in each of the Trainer's steps."""
    spent: list[int] = []
    step: Callable[..., Any] = trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        with flop_counter() as count:
            loss = step(*args, **kwargs)
        spent.append(int(count.get_total_flops()))
        return loss

    trainer.training_step = counted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return spent
