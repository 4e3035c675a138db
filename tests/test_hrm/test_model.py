"""The model: sizes, what flows where, what is refused."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from model_builders import a_config, a_model, some_inputs
from torch import Tensor

from hrm.config import HRMConfig, PresetName
from hrm.layers import RotaryPositions, rms_norm, truncated_normal_
from hrm.model import HierarchicalReasoningModel, ModelInputs

WITH_TOKENS = {"tokens_in_loop": 3}


@cache
def counts(config: HRMConfig) -> dict[str, int]:
    with torch.device("meta"):  # sizes without the memory
        return HierarchicalReasoningModel(config).parameter_counts()


def test_the_default_has_27_million_parameters_and_a_small_looped_core() -> None:
    parts = counts(HRMConfig())

    assert 26e6 <= parts["total"] <= 28e6
    assert parts["encoder"] > 0.85 * parts["total"]
    assert parts["h_module"] + parts["l_module"] == 3_014_656


@pytest.mark.parametrize(
    ("name", "total"),
    [("production", 27_163_906), ("medium", 4_507_522), ("small", 666_818)],
)
def test_each_preset_has_an_exact_size(name: PresetName, total: int) -> None:
    parts = counts(HRMConfig.preset(name))

    assert parts["total"] == total == sum(parts.values()) - parts["total"]


def test_the_same_budget_can_be_spent_on_twelve_tokens_and_a_wide_loop() -> None:
    wide = HRMConfig().changed(
        architecture={
            "tokens_in_loop": 12,
            "h_module": {"feed_forward": 1536},
            "l_module": {"feed_forward": 768},
            "encoder": {"num_layers": 1, "feed_forward": 1024},
        }
    )

    parts = counts(wide)

    assert 26e6 <= parts["total"] <= 28e6
    assert parts["h_module"] == 6 * 3_407_872 + 256 * 512
    assert parts["l_module"] == 4 * 851_968 + 512 * 256


@pytest.mark.parametrize("tokens", [1, 3])
def test_shapes_follow_the_tokens_in_the_loop(tokens: int) -> None:
    model = a_model(a_config(architecture={"tokens_in_loop": tokens}))

    encoded = model.encode(some_inputs(batch=5))
    state = model.segment(model.initial_state(5), encoded)
    heads = model.heads(state)

    assert encoded.shape == state[0].shape == (5, tokens, 16)
    assert state[1].shape == (5, tokens, 8)
    assert heads.action_logits.shape == heads.l_logits.shape == (5, 5)
    assert heads.size.shape == heads.value.shape == (5,)
    assert heads.q.shape == (5, 2)
    assert bool(((heads.size > 0) & (heads.size < 1)).all())


@pytest.mark.parametrize("architecture", [{}, WITH_TOKENS])
@pytest.mark.parametrize("gradient", ["one_step", "last_cycle", "bptt"])
def test_a_loss_on_every_head_reaches_every_parameter(
    architecture: dict[str, int], gradient: Any
) -> None:
    model = a_model(a_config(architecture=architecture))
    torch.nn.init.normal_(model.q_head.weight)  # starts at zero, which hides what is behind it

    _, heads = model(some_inputs(), gradient=gradient)
    weighted = [value * torch.randn_like(value) for value in vars(heads).values()]
    torch.autograd.backward(torch.stack([value.sum() for value in weighted]).sum())

    silent = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    }
    assert silent == set()


def test_the_next_state_depends_on_both_previous_states() -> None:
    model = a_model()
    encoded = model.encode(some_inputs())
    z_h, z_l = model.initial_state(3)

    base = model.cycle((z_h, z_l), encoded)
    other_h = model.cycle((-z_h, z_l), encoded)
    other_l = model.cycle((z_h, -z_l), encoded)

    for other in (other_h, other_l):
        assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(base, other, strict=True))


def test_two_cycles_of_a_segment_are_two_single_cycles() -> None:
    model = a_model()
    encoded = model.encode(some_inputs())
    start = model.initial_state(3)

    by_segment = model.segment(start, encoded)
    by_cycle = model.cycle(model.cycle(start, encoded), encoded)

    assert all(torch.equal(a, b) for a, b in zip(by_segment, by_cycle, strict=True))


def test_a_segment_can_be_cut_short_but_not_empty() -> None:
    model = a_model()
    encoded = model.encode(some_inputs())
    start = model.initial_state(3)

    cut = model.segment(start, encoded, cycles=1)

    assert torch.equal(cut[0], model.cycle(start, encoded)[0])
    with pytest.raises(ValueError, match="at least one cycle, was 0"):
        model.segment(start, encoded, cycles=0)


def test_an_untrained_model_thinks_to_the_maximum() -> None:
    model = a_model()

    _, heads = model(some_inputs())

    assert torch.equal(heads.q, torch.full((3, 2), -5.0))


def test_the_start_is_fixed_saved_and_not_trained() -> None:
    model, other = a_model(seed=1), a_model(seed=2)
    assert not torch.equal(model.initial_state(2)[0], other.initial_state(2)[0])

    other.load_state_dict(model.state_dict())

    for mine, theirs in zip(model.initial_state(2), other.initial_state(2), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(mine[0], mine[1])
        assert 0.3 < float(mine.square().mean()) < 3.0
    assert "core.z_h_start" not in dict(model.named_parameters())


def test_what_stands_in_absent_bars_is_not_read() -> None:
    model = a_model()
    inputs = some_inputs(batch=2)
    mask = inputs.bars_mask.clone()
    mask[0, :5] = False  # one whole patch of four, and a bar of the next
    inputs = replace(inputs, bars_mask=mask)
    garbage = inputs.bars.clone()
    garbage[0, :5] = 1e6

    assert torch.equal(model.encode(inputs), model.encode(replace(inputs, bars=garbage)))


def test_a_bar_of_zeros_is_not_the_same_as_an_absent_bar() -> None:
    model = a_model()
    inputs = some_inputs(batch=1)
    zeros = replace(inputs, bars=inputs.bars.index_fill(1, torch.tensor([7]), 0.0))
    mask = inputs.bars_mask.clone()
    mask[0, 7] = False

    absent = replace(zeros, bars_mask=mask)

    assert not torch.allclose(model.encode(zeros), model.encode(absent), atol=1e-4)


@pytest.mark.parametrize("name", ["bars", "instrument", "timeframe", "account", "context"])
def test_every_input_matters(name: str) -> None:
    model = a_model()
    inputs = some_inputs(batch=1)
    value: Tensor = getattr(inputs, name)
    moved = (value + 1) % 3 if value.dtype == torch.int64 else value + 1.0

    other = replace(inputs, **{name: moved})

    assert not torch.allclose(model.encode(inputs), model.encode(other), atol=1e-3)


def test_the_order_of_bars_matters() -> None:
    model = a_model()
    inputs = some_inputs(batch=1)
    swapped = inputs.bars[:, [4, 5, 6, 7, 0, 1, 2, 3]]  # whole patches, so only positions differ

    other = replace(inputs, bars=swapped)

    assert not torch.allclose(model.encode(inputs), model.encode(other), atol=1e-4)


def test_a_row_does_not_see_the_rest_of_its_batch() -> None:
    model = a_model()
    inputs = some_inputs(batch=4)

    together, _ = model(inputs)
    alone, _ = model(inputs.rows(torch.tensor([2])))

    assert torch.allclose(together[0][2], alone[0][0], atol=1e-5)


def test_dropout_draws_one_mask_a_segment_for_all_its_updates() -> None:
    config = a_config(architecture={m: {"dropout": 0.5} for m in ("h_module", "l_module")})
    model = a_model(config).train()
    seen: dict[str, list[Tensor]] = {"h": [], "l": []}
    model.core.h_module.register_forward_pre_hook(lambda _, args: seen["h"].append(args[2]))
    model.core.l_module.register_forward_pre_hook(lambda _, args: seen["l"].append(args[2]))
    encoded = model.encode(some_inputs(batch=8))
    state = model.initial_state(8)

    model.segment(model.segment(state, encoded), encoded)

    assert len(seen["h"]) == 4
    assert len(seen["l"]) == 8
    for masks in seen.values():
        half = len(masks) // 2
        assert all(mask is masks[0] for mask in masks[:half])
        assert all(mask is masks[half] for mask in masks[half:])
        assert not torch.equal(masks[0], masks[half])
        assert set(masks[0].flatten().tolist()) == {0.0, 2.0}


def test_there_is_no_noise_outside_training() -> None:
    model = a_model()
    inputs = some_inputs()

    assert torch.equal(model(inputs)[0][0], model(inputs)[0][0])


def test_a_grown_vocabulary_keeps_what_was_known_and_starts_new_names_as_unknown() -> None:
    model = a_model()
    inputs = some_inputs(batch=1)
    before = model.encode(replace(inputs, instrument=torch.tensor([3])))
    unknown = model.encode(replace(inputs, instrument=torch.tensor([0])))

    model.grow_vocabulary(instruments=6)

    assert model.config.inputs.instruments == 6
    assert model.config.inputs.timeframes == 3
    assert torch.equal(before, model.encode(replace(inputs, instrument=torch.tensor([3]))))
    assert torch.equal(unknown, model.encode(replace(inputs, instrument=torch.tensor([5]))))
    assert HierarchicalReasoningModel(model.config).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="timeframes 2 is fewer than the 3 rows"):
        model.grow_vocabulary(timeframes=2)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bars", torch.zeros(3, 9, 3), r"bars must be .* shape \[3, 8, 3\].* \[3, 9, 3\]"),
        ("bars", torch.zeros(3, 8, 3, dtype=torch.float64), "bars must be torch.float32"),
        ("bars_mask", torch.ones(3, 8), "bars_mask must be torch.bool"),
        ("account", torch.zeros(3, 5), r"account must be .* shape \[3, 6\]"),
        ("instrument", torch.zeros(2, dtype=torch.int64), r"instrument must be .* shape \[3\]"),
        ("context", torch.zeros(3, 8, device="meta"), "context is on meta but the model is on cpu"),
    ],
)
def test_an_input_of_the_wrong_form_is_refused_by_name(name: str, value: Tensor, text: str) -> None:
    model = a_model()

    with pytest.raises(ValueError, match=text):
        model.encode(replace(some_inputs(), **{name: value}))


@pytest.mark.parametrize(
    ("name", "place", "value", "text"),
    [
        ("bars", (1, 2, 0), float("nan"), r"bars\[1, 2, 0\] is nan"),
        ("account", (2, 5), float("inf"), r"account\[2, 5\] is inf"),
        ("context", (0, 0), float("-inf"), r"context\[0, 0\] is -inf"),
        ("instrument", (1,), 4, "instrument 4 is outside the vocabulary 0..3.*grow_vocabulary"),
        ("timeframe", (0,), -1, "timeframe -1 is outside the vocabulary 0..2"),
    ],
)
def test_an_input_of_a_wrong_value_is_refused_by_name(
    name: str, place: tuple[int, ...], value: float, text: str
) -> None:
    inputs = some_inputs()
    getattr(inputs, name)[place] = value

    with pytest.raises(ValueError, match=text):
        inputs.check(a_config())


def test_inputs_move_and_split_as_one() -> None:
    inputs = some_inputs(batch=3)

    moved = inputs.to("meta")
    picked = inputs.rows(torch.tensor([True, False, True]))

    assert {value.device.type for value in vars(moved).values()} == {"meta"}
    assert len(picked) == 2
    assert isinstance(picked, ModelInputs)
    assert torch.equal(picked.account[1], inputs.account[2])


def test_the_norm_gives_unit_size_and_positions_keep_it() -> None:
    x = torch.randn(2, 4, 5, 8) * 7.0

    normed = rms_norm(x)
    turned = RotaryPositions(5, 8)(x)

    assert torch.allclose(normed.square().mean(-1), torch.ones(2, 4, 5), atol=1e-4)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_rotary_products_depend_on_distance_alone() -> None:
    rotary = RotaryPositions(8, 4)
    query, key = torch.randn(4), torch.randn(4)

    scores = rotary(query.expand(8, 4)) @ rotary(key.expand(8, 4)).T

    assert torch.allclose(scores[0, 3], scores[4, 7], atol=1e-5)
    assert not torch.allclose(scores[0, 3], scores[0, 4], atol=1e-3)


def test_the_initial_weights_have_the_deviation_asked_for_and_no_tails() -> None:
    torch.manual_seed(0)

    drawn = truncated_normal_(torch.empty(200_000), 0.5)

    assert float(drawn.std()) == pytest.approx(0.5, rel=0.01)
    assert float(drawn.abs().max()) <= 2.0 * 0.5 / 0.8796
