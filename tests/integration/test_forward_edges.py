"""Shortened forward passes where something is odd: the store is full, a mask has holes, Ctrl-C."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import AdaptiveBackprop
from greentrainer.forward import ForwardOptions, signature
from greentrainer.model import blocks
from greentrainer.select import by_rule

KEEP = ForwardOptions(keep="memory", keep_bytes=10**8, examples=64)
WIDTH, VOCABULARY, CUT = 32, 64, 2


def decoder(**more: Any) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, initializer_range=0.2, **more,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()


def batch(rows: int = 2, length: int = 16, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def engine_of(
    model: Any, sample: Any, forward: ForwardOptions = KEEP, **more: Any
) -> AdaptiveBackprop:
    """An engine that trains the upper half of the blocks, with steps of size 0."""
    idle = {id(p) for block in list(blocks(model))[:CUT] for p in block.parameters()}
    idle.add(id(model.get_input_embeddings().weight))
    names = [name for name, p in model.named_parameters() if id(p) not in idle]
    engine = AdaptiveBackprop(
        model, torch.optim.SGD(model.parameters(), lr=0.0), sample, rho=1.0, total_batches=99,
        every=99, selector=by_rule(lambda _turn: names), forward=forward, **more,
    )  # fmt: skip
    engine.reselect([sample])
    return engine


def losses(batches: list[Any], forward: ForwardOptions, **more: Any) -> tuple[list[float], float]:
    """Of training on the batches in turn; and the FLOPs that were skipped."""
    model = decoder(**more)
    engine = engine_of(model, batches[0], forward)
    found = [engine.loss(one).item() for one in batches]
    skipped = engine.ledger.total("skipped_flops")
    engine.close()
    return found, skipped


def assert_like_whole(batches: list[Any], **more: Any) -> None:
    """Kept activations were used, and no loss is another for it."""
    plain, _ = losses(batches, ForwardOptions(), **more)
    short, skipped = losses(batches, KEEP, **more)
    assert short == pytest.approx(plain, rel=1e-5)
    assert skipped > 0


def test_a_newcomer_may_take_the_place_of_one_in_its_own_batch() -> None:
    room = ForwardOptions(keep="memory", keep_bytes=8 * WIDTH * 4 + 100, examples=64)
    model, short, other = decoder(), batch(1, 8, 1), batch(1, 8, 2)
    engine = engine_of(model, batch(2, 8), room)
    engine.loss(short)
    longer = {  # padding makes a token worth more
        name: nn.functional.pad(
            torch.cat([short[name], other[name]]), (0, 8), value=-100 if name == "labels" else 0
        )
        for name in short
    }
    assert engine.loss(longer).item() == pytest.approx(decoder()(**longer).loss.item(), rel=1e-5)


def test_labels_at_masked_positions_count() -> None:
    padded = batch()
    padded["attention_mask"][1, 9:] = 0
    assert_like_whole([padded, padded])


def test_a_mask_with_a_hole_is_another_example() -> None:
    ids = torch.arange(3, 13)[None]
    holes = []
    for hole in (3, 5):
        row = torch.cat([ids[:, :hole], torch.zeros(1, 1, dtype=torch.long), ids[:, hole:]], 1)
        mask = torch.ones_like(row)
        mask[:, hole] = 0
        holes.append({"input_ids": row, "attention_mask": mask, "labels": row.clone()})
    assert_like_whole([*holes, *holes])


def test_a_plain_argument_tells_batches_apart() -> None:
    with pytest.warns(UserWarning, match="an argument is of type object"):
        found, _ = losses([batch() | {"unheard_of": object()}] * 2, KEEP)
    assert found[0] == found[1]


@pytest.mark.parametrize("evaluating", [False, True])
def test_ctrl_c_in_a_forward_pass_leaves_nothing(evaluating: bool) -> None:
    def loss_after(interrupted: bool) -> float:
        model, one, other = decoder(), batch(seed=1), batch(seed=2)
        engine = engine_of(model, one, ForwardOptions(True, "memory", None, 10**8))
        engine.loss(one)
        if interrupted:

            def stop(*_: Any) -> None:
                raise KeyboardInterrupt

            handle = model.model.norm.register_forward_hook(stop)
            with pytest.raises(KeyboardInterrupt):
                engine.loss(one)
            handle.remove()
        if evaluating:
            with torch.no_grad():
                return float(model.eval()(**other).loss)
        return float(engine.loss(other).detach())

    assert loss_after(interrupted=True) == loss_after(interrupted=False)


def test_what_was_kept_less_deep_does_not_draw_the_next_choice_down() -> None:
    """Examples kept at two depths: what may be trained lies above the deeper of them."""
    model, one, other = decoder(), batch(seed=1), batch(seed=2)
    engine = engine_of(model, one, ForwardOptions(True, "memory", None, 10**8, examples=4))
    kept = engine._savings.kept
    assert kept is not None
    engine.loss(one)
    kept.go_to(CUT + 1)
    engine.loss(other)
    assert engine._savings.depth == CUT + 1
    lasting = engine._savings.lasting(engine.graph)
    assert lasting == engine.graph.above(CUT + 1)
    kept.go_to(CUT + 1)
    assert len(kept.store) == 4


def test_a_forward_of_a_modules_own_comes_back() -> None:
    model, calls = decoder(), []
    for layer in model.model.layers:
        inner = layer.forward

        def wrapped(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
            calls.append(1)
            return inner(*args, **kwargs)

        layer.forward = wrapped
    engine = engine_of(model, batch())
    engine.loss(batch())
    engine.loss(batch())
    engine.close()
    calls.clear()
    model(**batch())
    assert len(calls) == 4


def test_a_parameter_put_in_the_place_of_another_is_noticed() -> None:
    model, one = decoder(), batch()
    engine = engine_of(model, one)
    engine.loss(one)
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = nn.Parameter(2 * layer.weight.detach(), requires_grad=False)
    with pytest.warns(UserWarning, match="a frozen weight was changed"):
        found = engine.loss(one).item()
    engine.close()
    assert found == pytest.approx(model(**one).loss.item(), rel=1e-5)


def test_what_belongs_to_rows_is_cut_with_them() -> None:
    def weighted(model: Any, given: Any) -> Any:
        inputs = {k: v for k, v in given.items() if k != "weights"}
        return (model(**inputs).loss * given["weights"]).mean()

    model, one = decoder(), batch(4, 40) | {"weights": torch.rand(4)}
    engine = engine_of(model, one, loss_fn=weighted)
    assert torch.isfinite(engine.loss(one))


def test_a_loss_that_takes_from_every_stage_keeps_nothing() -> None:
    import transformers as tf

    config = tf.MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        output_router_logits=True,
    )  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(config).train()
    with pytest.warns(UserWarning, match=r"no keeping activations: .*router"):
        engine_of(model, batch()).close()


def test_an_engine_that_cannot_be_made_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    forward = ForwardOptions(labelled_head=True, keep="disk", keep_folder=tmp_path / "file" / "x")
    model, one = decoder(), batch()
    with pytest.raises(ValueError, match="cannot keep activations"):
        engine_of(model, one, forward)
    assert model(**one).logits.shape == (2, 16, VOCABULARY)
    engine_of(model, one).close()


def test_too_few_bytes_are_known_beforehand() -> None:
    few = ForwardOptions(True, "memory", None, 2_000, examples=4)
    model = decoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match="choose it between"):
        AdaptiveBackprop(model, optimizer, batch(), rho=0.25, total_batches=8, forward=few)


def test_lengths_met_while_tracing_are_forgotten() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    more = {"max_position_embeddings": 12, "rope_parameters": rope}
    own = decoder(**more)(**batch(length=30)).loss.item()
    model = decoder(**more)
    engine_of(model, batch(length=30), ForwardOptions()).close()
    assert model(**batch(length=30)).loss.item() == own


def test_texts_beside_tensors_tell_nothing_apart_and_flags_do() -> None:
    ids = torch.ones(2, 3)
    one, two = ({"ids": ids, "prompt": [f"say {i}", "so"], "kind": "plain"} for i in range(2))
    assert signature(one) == signature(two)
    assert signature(one) != signature(one | {"kind": "other"})
    assert signature(one) != signature(one | {"cached": True})
    assert signature(((ids, "mean"), {})) != signature(((ids, "sum"), {}))
    assert signature(["say 1"]) != signature(["say 2"])  # all that there is
