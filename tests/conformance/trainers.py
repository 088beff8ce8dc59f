"""Trainers as people use them, each on a tiny model and its own kind of data, and their FLOPs."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
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
from tests.conformance.families import build
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
    make: the model and what else it is given, in a folder; a tiny Llama by default.
    """

    trainer: Any
    settings: Any
    data: list[dict[str, Any]]
    options: dict[str, Any]
    given: dict[str, Any]
    rho: float = 0.7
    scores: bool = False
    make: Callable[[Path], tuple[Any, dict[str, Any]]] | None = None


def summariser(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A tiny T5 and its collator."""
    torch.manual_seed(0)
    model, made = build("t5"), tokenizer()
    collator = tf.DataCollatorForSeq2Seq(made, model=model, pad_to_multiple_of=8)
    return model, {"processing_class": made, "data_collator": collator}


def embedder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A tiny BERT that is taught which sentences belong together."""
    torch.manual_seed(0)
    tf.BertModel(
        tf.BertConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
            num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer().save_pretrained(folder)
    reads = st_modules.Transformer(str(folder), max_seq_length=32)
    model = st.SentenceTransformer(modules=[reads, st_modules.Pooling(32)], device="cpu")
    return model, {"loss": st_losses.MultipleNegativesRankingLoss(model)}


def translated() -> list[dict[str, Any]]:
    """Rows of token ids, for an encoder and a decoder."""
    rows = []
    for i in range(32):
        said_, answered = (tokenizer()(text)["input_ids"] for text in (f"say {i}" * 2, f"it {i}"))
        rows.append({"input_ids": said_, "labels": answered})
    return rows


SENTENCES = [{"anchor": f"say {i} " + "so " * (i % 5), "positive": f"it is {i}"} for i in range(32)]
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
    "seq2seq": Kind(
        tf.Seq2SeqTrainer, tf.Seq2SeqTrainingArguments, translated(), {}, {}, make=summariser
    ),
    "rloo": Kind(trl.RLOOTrainer, trl.RLOOConfig, PROMPTS, GENERATED, REWARDED, 0.95),
}
if find_spec("sentence_transformers"):
    import sentence_transformers as st
    from sentence_transformers.sentence_transformer import losses as st_losses
    from sentence_transformers.sentence_transformer import modules as st_modules

    KINDS["sentences"] = Kind(
        st.SentenceTransformerTrainer, st.SentenceTransformerTrainingArguments, SENTENCES,
        {"num_train_epochs": 4}, {}, make=embedder,
    )  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "bfloat16": {"bf16": True},
    "not checkpointed": {"gradient_checkpointing": False},
    "lora": {},
}


def model_in(folder: Path, scores: bool = False) -> tuple[Any, dict[str, Any]]:
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
    given = {"processing_class": tokenizer()}
    if scores:
        return tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1), given
    return tf.AutoModelForCausalLM.from_pretrained(folder), given


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
    model, given = (
        kind.make(folder / "model") if kind.make else model_in(folder / "model", kind.scores)
    )
    given = {**given, **kind.given}
    if mode == "lora":
        given["peft_config"] = LoraConfig(r=4, target_modules="all-linear")
    if rho is not None:
        given["green"] = GreenConfig(rho=rho)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (kind.trainer if rho is None else mixed(kind.trainer))(
            model, args=kind.settings(str(folder / "run"), **settings),
            train_dataset=Dataset.from_list(kind.data), **given,
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
