"""Models that see and hear, and modules of one's own: exact graphs, runs within their budget."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from greentrainer.engine.graph_cache import GraphCache
from greentrainer.hf import GreenConfig, GreenTrainer
from tests.conformance.test_cost import counted
from tests.conformance.trainers import counting
from tests.trainer import arguments

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 128}  # fmt: skip
WORDS, IMAGE = 200, 199
Made = tuple[Any, dict[str, torch.Tensor]]


def words(rows: int = 2, length: int = 24, images: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 190, (rows, length))
    ids[:, 2 : 2 + images] = IMAGE
    labels = ids.clone()
    labels[:, :10] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def llava() -> Made:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(image_size=16, patch_size=8, **SIZES),
        text_config=tf.LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **SIZES),
        image_token_index=IMAGE, vision_feature_layer=-1, image_seq_length=4,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    batch = words() | {"pixel_values": torch.randn(2, 3, 16, 16)}
    return tf.LlavaForConditionalGeneration(config), batch


def paligemma() -> Made:
    seeing = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8,
              "projection_dim": 64, **SIZES}  # fmt: skip
    speaking = {"model_type": "gemma", "vocab_size": WORDS, "num_key_value_heads": 1,
                "head_dim": 16, **SIZES}  # fmt: skip
    config = tf.PaliGemmaConfig(
        vision_config=seeing, text_config=speaking, image_token_index=IMAGE, projection_dim=64,
        hidden_size=64,
    )  # fmt: skip
    batch = words() | {"pixel_values": torch.randn(2, 3, 16, 16)}
    batch["token_type_ids"] = (batch["labels"] != -100).long()
    return tf.PaliGemmaForConditionalGeneration(config), batch


def smolvlm() -> Made:
    speaking = {"model_type": "llama", "vocab_size": WORDS, "num_key_value_heads": 2, **SIZES}
    config = tf.SmolVLMConfig(
        text_config=speaking, vision_config={"image_size": 32, "patch_size": 8, **SIZES},
        image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip
    batch = words() | {"pixel_values": torch.randn(2, 1, 3, 32, 32)}
    return tf.SmolVLMForConditionalGeneration(config), batch


def whisper() -> Made:
    config = tf.WhisperConfig(
        vocab_size=WORDS, d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_ffn_dim=128, num_mel_bins=8, max_source_positions=30, max_target_positions=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    batch = {"input_features": torch.randn(2, 8, 60), "labels": torch.randint(3, 190, (2, 12))}
    return tf.WhisperForConditionalGeneration(config), batch


def qwen2vl() -> Made:
    """Its images are one row of patches, and its rows know their images by number."""
    turned = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    seeing = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2,
              "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}  # fmt: skip
    speaking = {"vocab_size": WORDS, "num_key_value_heads": 2, "rope_parameters": turned,
                "max_position_embeddings": 64, **ends, **SIZES}  # fmt: skip
    config = tf.Qwen2VLConfig(
        text_config=speaking, vision_config=seeing, image_token_id=IMAGE,
        vision_start_token_id=197, vision_end_token_id=198, video_token_id=196, **ends,
    )  # fmt: skip
    batch = words() | {"pixel_values": torch.randn(32, 48)}
    batch["image_grid_thw"] = torch.tensor([[1, 4, 4], [1, 4, 4]])
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).int()
    return tf.Qwen2VLForConditionalGeneration(config), batch


def wav2vec2() -> Made:
    config = tf.Wav2Vec2Config(
        vocab_size=40, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3),
        num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0, layerdrop=0.0, pad_token_id=0, **SIZES,
    )  # fmt: skip
    batch = {"input_values": torch.randn(2, 800), "labels": torch.randint(1, 39, (2, 6))}
    return tf.Wav2Vec2ForCTC(config), batch


def vit() -> Made:
    config = tf.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZES)
    batch = {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 0])}
    return tf.ViTForImageClassification(config), batch


class Plain(nn.Module):
    """No config; outputs of a kind of its own."""

    def __init__(self, kind: Callable[[Any, Any], Any] | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 3)
        self.kind = kind or (lambda loss, out: {"loss": loss, "logits": out})

    def forward(self, x: Any, labels: Any = None) -> Any:
        out = self.second(torch.relu(self.first(x)))
        return self.kind(nn.functional.cross_entropy(out, labels), out)


MODELS = [llava, paligemma, smolvlm, qwen2vl, whisper, wav2vec2, vit]


def ready(make: Callable[[], Made]) -> Made:
    torch.manual_seed(0)
    model, batch = make()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(), batch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MODELS)
def test_every_set_costs_what_is_counted(make: Callable[[], Made]) -> None:
    model, batch = ready(make)
    graph = GraphCache(model, list(model.parameters()), None).of_batch(batch)
    assert graph.uncounted_ops == ()
    chance = random.Random(0)
    for _ in range(8):
        names = set(chance.sample(graph.tensors, chance.randint(1, len(graph.tensors))))
        told = graph.forward_flops + graph.backward_flops(names)
        assert told == sum(counted(model, batch, names))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "tower frozen"])
@pytest.mark.parametrize("make", [llava, smolvlm, whisper])
def test_a_run_keeps_to_its_budget(make: Callable[[], Made], frozen: bool, tmp_path: Path) -> None:
    model, batch = ready(make)
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("vision" not in name and "encoder" not in name)
    rows = [{key: value[i % 2] for key, value in batch.items()} for i in range(24)]
    trainer = GreenTrainer(
        model, arguments(tmp_path), train_dataset=rows, green=GreenConfig(rho=0.75)
    )
    trainer.train()
    assert trainer.ledger.verified >= 2
    assert trainer.ledger.worst_deviation == 0
    assert 0.6 <= trainer.ledger.rho_spent <= 0.75


def together(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch, its images' patches one behind the other."""
    joined = ("pixel_values", "image_grid_thw")
    return {
        key: (torch.cat if key in joined else torch.stack)([row[key] for row in rows])
        for key in rows[0]
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("asked", [{"positions": "choose"}, {"steps": "choose"}], ids=str)
def test_patches_of_images_are_of_no_row(asked: dict[str, Any], tmp_path: Path) -> None:
    """Rows of such a batch cannot be taken out of it: it is not split, and judged by the next."""
    model, batch = ready(qwen2vl)
    rows = [
        {k: v[:1] if k == "image_grid_thw" else v[:16] if k == "pixel_values" else v[i % 2]
         for k, v in batch.items()}
        for i in range(96)
    ]  # fmt: skip
    settings = arguments(tmp_path, remove_unused_columns=False, per_device_train_batch_size=4)
    trainer = GreenTrainer(
        model, settings, train_dataset=rows, data_collator=together,
        green=GreenConfig(rho=0.75, probe_batches=2, **asked),
    )  # fmt: skip
    trainer.train()
    assert trainer.ledger.verified >= 2
    assert trainer.ledger.worst_deviation == 0
    assert trainer.ledger.rho_spent <= 0.75 or "steps" in asked


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [qwen2vl, wav2vec2])
def test_real_steps_execute_what_the_books_say(make: Callable[[], Made], tmp_path: Path) -> None:
    def trained(trainer: Any, **more: Any) -> tuple[Any, list[int]]:
        model, batch = ready(make)
        counts = {key: len(value) // 2 for key, value in batch.items()}
        images = ("pixel_values", "image_grid_thw") if make is qwen2vl else ()
        rows = [
            {k: v[i % 2 * n :][:n] if k in images else v[i % 2]
             for (k, v), n in zip(batch.items(), counts.values(), strict=True)}
            for i in range(192)
        ]  # fmt: skip
        settings = arguments(tmp_path, remove_unused_columns=False)
        made = trainer(model, settings, train_dataset=rows, data_collator=together, **more)
        return made, counting(made)

    _, full = trained(tf.Trainer)
    trainer, executed = trained(GreenTrainer, green=GreenConfig(rho=0.7, probe_batches=1))
    ledger = trainer.ledger
    assert ledger.full_flops == sum(full)
    steps = sum(entry.flops for entry in ledger if entry.kind == "train")
    assert sum(executed) == pytest.approx(steps, rel=1e-3)
    assert 0.5 * sum(full) < ledger.spent_flops <= 0.7 * sum(full)
    assert ledger.verified >= 2
    assert ledger.worst_deviation <= 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [lambda loss, out: {"loss": loss, "logits": out}, lambda loss, out: (loss, out)],
    ids=["dict", "tuple"],
)
def test_a_module_without_a_config_is_trained(kind: Any, tmp_path: Path) -> None:
    rows = [{"x": torch.randn(16), "labels": torch.tensor(i % 3)} for i in range(64)]
    trainer = GreenTrainer(
        Plain(kind), arguments(tmp_path), train_dataset=rows, green=GreenConfig(rho=0.9)
    )
    trainer.train()
    assert 0 < trainer.ledger.rho_spent <= 0.9
    assert trainer.ledger.worst_deviation == 0


class Stream(torch.utils.data.IterableDataset[Any]):
    """Notes which of its rows were read in each pass."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.passes = rows, list[list[int]]()

    def __iter__(self) -> Any:
        self.passes.append([])
        for number, row in enumerate(self.rows):
            self.passes[-1].append(number)
            yield row


@pytest.mark.filterwarnings("ignore")
def test_a_stream_loses_no_row(tmp_path: Path) -> None:
    rows = [{"x": torch.randn(16), "labels": torch.tensor(i % 3)} for i in range(64)]
    stream, seen = Stream(rows), list[int]()

    class Watched(GreenTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.extend(
                next(i for i, row in enumerate(rows) if torch.equal(row["x"], one))
                for one in inputs["x"]
            )
            return super().training_step(model, inputs, *args, **kwargs)

    settings = arguments(tmp_path, max_steps=24)
    trainer = Watched(Plain(), settings, train_dataset=stream, green=GreenConfig(rho=0.9))
    trainer.train()
    assert seen == list(range(48))
    assert stream.passes[0] == list(range(16))  # of which probes were made
    assert trainer.ledger.batches == 24
    assert trainer.ledger.rho_spent <= 0.9
