"""Deep supervision: a step per segment, every head learns, an edge is found, a false one is not."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from training_builders import a_table, a_trainable_model, a_training, some_candles

from hrm.config import Action
from hrm.training.deep_supervision import (
    DeepSupervision,
    SupervisionSettings,
    TrainingDivergedError,
)
from hrm.training.evaluation import direction_auc, growth_on, scores
from hrm.training.market_table import MarketTable, split_by_date
from hrm.training.samples import draw_samples


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(training: DeepSupervision) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def test_each_segment_is_one_optimiser_step_on_a_detached_state() -> None:
    training = a_training()
    before = weights(training)

    training.step()
    between = training.state_tensors()
    training.step()

    after = weights(training)
    assert not between["slots.z_h"].requires_grad
    assert not torch.equal(before["action_head.weight"], between["model.action_head.weight"])
    assert not torch.equal(between["model.action_head.weight"], after["action_head.weight"])
    assert training.steps_done == 2


def test_every_parameter_learns_once_all_terms_are_on() -> None:
    training = a_training(imitation_share=0.0, full_depth_share=1.0, weight_decay=0.0)
    before = weights(training)

    for _ in range(12):
        training.step()

    unchanged = [
        name
        for name, value in weights(training).items()
        if torch.equal(value, before[name]) and not name.endswith("_start")
    ]
    assert unchanged == []


def test_the_fixed_start_of_thought_is_never_trained() -> None:
    training = a_training()
    before = weights(training)

    training.step()

    assert torch.equal(training.model.core.z_h_start, before["core.z_h_start"])


def test_the_first_steps_only_imitate_the_barriers() -> None:
    training = a_training(imitation_share=0.5, steps=4)

    reports = [training.step() for _ in range(3)]

    assert [report.value for report in reports[:2]] == [0.0, 0.0]
    assert reports[2].value > 0.0


def test_slots_that_halt_get_a_new_sample_while_the_others_think_on() -> None:
    training = a_training(full_depth_share=0.0)
    training.step()
    slots = training.state_tensors()
    halted = slots["slots.segment"] == 0
    halted[3] = True
    tensors = slots | {"slots.segment": torch.where(halted, 0, slots["slots.segment"])}
    training.load_state_tensors(tensors)

    report = training.step()

    after = training.state_tensors()
    assert report.refilled == int(halted.sum())
    assert not torch.equal(after["slots.bars"][3], slots["slots.bars"][3])
    for row in np.flatnonzero(~halted.numpy()):
        assert torch.equal(after["slots.bars"][row], slots["slots.bars"][row])


def test_no_sample_outlasts_the_greatest_depth() -> None:
    training = a_training(full_depth_share=1.0)

    refilled = [training.step().refilled for _ in range(9)]

    # 16 slots, m_max 4, all forced to full depth: every fourth step starts them all anew.
    assert refilled == [16, 0, 0, 0, 16, 0, 0, 0, 16]


def test_the_q_head_learns_that_thinking_on_does_not_change_a_settled_answer() -> None:
    training = a_training(full_depth_share=0.5, learning_rate=1e-2, steps=400)
    first = training.step().mean_segment

    for _ in range(250):
        report = training.step()

    bias = training.model.q_head.bias.detach()
    assert bias[0] > -5.0  # the deep start has been unlearned
    assert report.mean_segment < 3.5
    assert first == 1.0  # every slot had thought one segment


def test_serving_weights_are_an_average_that_lags_behind() -> None:
    training = a_training()
    for _ in range(5):
        training.step()
    trained = training.model.action_head.weight.detach()
    served = training.serving.action_head.weight.detach()

    assert not torch.equal(trained, served)
    assert torch.allclose(trained, served, atol=0.05)
    assert not any(p.requires_grad for p in training.serving.parameters())


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    training = a_training(steps=40, warmup_steps=10, learning_rate=1e-3)

    rates = [training.step().learning_rate for _ in range(40)]

    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=0.1)


def test_restored_training_goes_on_bit_by_bit() -> None:
    whole = a_training()
    for _ in range(4):
        whole.step()
    kept = whole.state_tensors()
    drawn, torch_drawn = whole.generator.bit_generator.state, torch.get_rng_state()
    for _ in range(4):
        whole.step()

    again = a_training(seed=9)
    again.load_state_tensors(kept)
    again.generator.bit_generator.state = drawn
    torch.set_rng_state(torch_drawn)
    for _ in range(4):
        again.step()

    expected, actual = whole.state_tensors(), again.state_tensors()
    assert expected.keys() == actual.keys()
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


def test_numbers_that_are_not_finite_stop_the_training() -> None:
    training = a_training()
    training.step()
    with torch.no_grad():
        training.model.action_head.weight.fill_(math.nan)

    with pytest.raises(TrainingDivergedError, match=r"loss nan .* at step 2"):
        training.step()


def test_a_loss_that_runs_away_stops_the_training() -> None:
    training = a_training()
    training.step()
    tensors = training.state_tensors()
    tensors["progress"][2] = -10.0  # the lowest average so far
    training.load_state_tensors(tensors)

    with pytest.raises(TrainingDivergedError, match=r"average loss rose from -10\.000"):
        training.step()


def _trained(table: MarketTable, steps: int = 1000) -> DeepSupervision:
    training = a_training(
        table,
        steps=steps,
        imitation_share=0.15,
        full_depth_share=0.05,
        ema_decay=0.98,
        temperature=0.1,
    )
    for _ in range(steps):
        training.step()
    return training


@pytest.mark.slow
def test_a_market_whose_moves_follow_each_other_is_learned_and_traded_at_a_profit() -> None:
    table = a_table(some_candles(3000, persistence=0.7), cost_bps=0.5, commit_bars=2, prior="none")

    training = _trained(table)

    result = scores(training.serving, table, split_by_date(table).test, cost_bps=0.5)
    auc = result["direction_auc"]
    assert isinstance(auc, float)
    assert auc > 0.6
    assert result["shows_an_edge"] is True


@pytest.mark.slow
def test_in_a_market_with_nothing_in_it_nothing_is_found() -> None:
    table = a_table(some_candles(3000), cost_bps=0.5, commit_bars=2, prior="none")
    split = split_by_date(table)

    training = _trained(table)

    auc, error = direction_auc(training.serving, table, split.test)
    result = scores(training.serving, table, split.test, cost_bps=2.0)
    assert abs(auc - 0.5) < 3 * error
    assert result["shows_an_edge"] is False


def test_costs_above_every_hope_teach_to_hold() -> None:
    table = a_table(cost_bps=200.0, prior="none")
    training = a_training(table, steps=120, imitation_share=0.0, learning_rate=1e-2, ema_decay=0.9)

    for _ in range(120):
        training.step()

    result = scores(training.serving, table, split_by_date(table).test, cost_bps=200.0)
    shares = result["action_shares"]
    assert isinstance(shares, dict)
    assert shares[Action.HOLD.name] == 1.0


def test_the_utility_of_an_action_adds_what_its_position_is_worth_later() -> None:
    table = a_table()
    samples = draw_samples(table, split_by_date(table).train, 8, np.random.default_rng(0))
    settings = SupervisionSettings(steps=1, learning_rate=1e-3, discount=0.5, commit_bars=4)
    training = DeepSupervision(
        a_trainable_model(), settings, lambda count, generator: samples, np.random.default_rng(0)
    )
    with torch.no_grad():
        training.serving.value_head.weight.zero_()

    plain = training._utility(samples)

    assert torch.equal(plain, torch.from_numpy(samples.reward))


def _growth_after(steps: int, contraction_weight: float) -> tuple[float, float]:
    """Return the growth of perturbations before and after training a core that is wild at first."""
    table = a_table()
    rows = split_by_date(table).test
    training = a_training(table, steps=steps, contraction_weight=contraction_weight)
    with torch.no_grad():
        for stack in (training.model.core.h_module.stack, training.model.core.l_module.stack):
            for parameter in stack.parameters():
                parameter.mul_(3.0)
    before = growth_on(training.model.eval(), table, rows)
    training.model.train()
    for _ in range(steps):
        training.step()
    return before, growth_on(training.model.eval(), table, rows)


def test_the_penalty_makes_a_core_forget_perturbations_that_it_would_let_grow() -> None:
    wild, without = _growth_after(60, contraction_weight=0.0)
    same, with_penalty = _growth_after(60, contraction_weight=1.0)

    assert same == wild > 2.0
    assert with_penalty < 1.0 < without


def test_a_core_that_contracts_enough_is_left_alone() -> None:
    table = a_table()
    light, heavy = (
        a_training(table, contraction_target=1e9, contraction_weight=weight)
        for weight in (0.5, 2.0)
    )

    reports = []
    for training in (light, heavy):
        torch.manual_seed(7)
        reports += [training.step() for _ in range(3)]

    assert all(report.contraction == 0.0 < report.growth for report in reports)
    assert torch.equal(light.model.action_head.weight, heavy.model.action_head.weight)


def test_growth_is_reported_each_step_and_its_excess_is_part_of_the_loss() -> None:
    free, bound = a_training(contraction_weight=0.0), a_training(contraction_target=1e-6)

    plain, report = free.step(), bound.step()

    assert (plain.growth, plain.contraction) == (0.0, 0.0)
    # One logarithm per slot: their mean is that of the geometric mean, while all exceed the target.
    assert report.contraction == pytest.approx(math.log(report.growth / 1e-6), rel=1e-4)
    assert report.loss > report.contraction


def test_activations_computed_twice_change_no_weight() -> None:
    table = a_table()
    trainings = [a_training(table), a_training(table, recompute=True)]

    for training in trainings:
        torch.manual_seed(7)
        for _ in range(3):
            training.step()

    one, other = (weights(training) for training in trainings)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_bfloat16_learns_in_float32_weights_and_states() -> None:
    exact, rough = a_training(), a_training(precision="bfloat16")

    for training in (exact, rough):
        torch.manual_seed(7)
        reports = [training.step() for _ in range(3)]

    kept = rough.state_tensors()
    assert {value.dtype for name, value in kept.items() if name.startswith("model.")} == {
        torch.float32
    }
    assert kept["slots.z_h"].dtype == torch.float32
    assert math.isfinite(reports[-1].loss)
    exact_weight, rough_weight = exact.model.action_head.weight, rough.model.action_head.weight
    assert not torch.equal(exact_weight, rough_weight)
    assert torch.allclose(exact_weight, rough_weight, atol=0.05)
