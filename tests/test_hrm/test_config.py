"""HRMConfig: the design document's section is a complete configuration, and nonsense is refused."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from hrm.config import Action, HRMConfig

DOCUMENT_SECTION = """
architecture:
  h_module: {hidden_size: 512, num_layers: 6, dropout: 0.1}
  l_module: {hidden_size: 256, num_layers: 4, dropout: 0.1}
convergence: {n_cycles: 8, t_timesteps: 4, convergence_thresh: 1e-6}
adaptive_computation: {m_max: 16, m_min_prob: 0.8, epsilon: 0.1}
training:
  deep_supervision: true
  one_step_gradient: true
  segment_batch_size: 32
  learning_rate: 0.0001
performance: {max_inference_time_ms: 50, memory_limit_gb: 4, enable_profiling: true}
"""


def test_the_documents_section_alone_is_the_default_configuration() -> None:
    section = yaml.safe_load(DOCUMENT_SECTION)

    config = HRMConfig.model_validate(section)

    assert config == HRMConfig() == HRMConfig.preset("production")


def test_a_configuration_survives_being_written_and_read() -> None:
    config = HRMConfig.preset("small").changed(training={"learning_rate": 0.002})

    assert HRMConfig.model_validate_json(config.model_dump_json()) == config


def test_changing_one_key_keeps_its_neighbours() -> None:
    changed = HRMConfig().changed(architecture={"h_module": {"feed_forward": 512}})

    assert changed.architecture.h_module.feed_forward == 512
    assert changed.architecture.h_module.hidden_size == 512
    assert changed.architecture.l_module == HRMConfig().architecture.l_module


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        HRMConfig().convergence.n_cycles = 3


@pytest.mark.parametrize(
    ("blocks", "texts"),
    [
        (
            {"architecture": {"h_module": {"num_heads": 7}}},
            ("h_module", "num_heads 7", "hidden_size 512", "use one of 1, 2, 4, 8"),
        ),
        (
            {"architecture": {"l_module": {"hidden_size": 9, "num_heads": 1}}},
            ("l_module", "hidden_size 9", "make hidden_size even"),
        ),
        (
            {"inputs": {"window_bars": 60}},
            ("window_bars 60", "patch_bars 8", "64 bars"),
        ),
        (
            {"training": {"one_step_gradient": False}},
            ("one_step_gradient is false", "gradient: last_cycle"),
        ),
        (
            {"training": {"deep_supervision": False}},
            ("deep_supervision is false", "set it to true"),
        ),
        (
            {"training": {"gradient": "last_cycle"}},
            ("one_step_gradient is true", "one_step_gradient: false"),
        ),
        ({"adaptive_computation": {"m_max": 0}}, ("m_max", "greater than or equal to 1")),
        ({"convergence": {"t_timesteps": 0}}, ("t_timesteps", "greater than or equal to 1")),
        ({"convergence": {"convergence_thresh": 0.0}}, ("convergence_thresh", "greater than 0")),
        ({"training": {"learning_rate": float("nan")}}, ("learning_rate", "finite number")),
        ({"architecture": {"h_module": {"dropout": 1.0}}}, ("dropout", "less than 1")),
        ({"architecture": {"tokens": 4}}, ("architecture.tokens", "not permitted")),
    ],
)
def test_an_impossible_setting_is_refused_by_key_value_and_remedy(
    blocks: dict[str, Any], texts: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as refusal:
        HRMConfig().changed(**blocks)

    assert all(text in str(refusal.value) for text in texts)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'huge'.*production, medium, small"):
        HRMConfig.preset("huge")  # type: ignore[arg-type]  # what the test is about


def test_the_action_codes_are_the_ones_stored_with_every_decision() -> None:
    assert [(action.value, action.name) for action in Action] == [
        (0, "BUY_LONG"),
        (1, "SELL_SHORT"),
        (2, "CLOSE_LONG"),
        (3, "CLOSE_SHORT"),
        (4, "HOLD"),
    ]
