"""Settings of the model, one frozen class per block of hierarchical_reasoning_model in the YAML.

The keys and defaults of the design document come first in every class; what follows them has a
default, so that the document's section alone is a complete configuration. Nothing here imports
torch, so that the daemon can check settings without loading it.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ACCOUNT_WIDTH = 6  # numbers in ModelInputs.account

ServingEngine = Literal["eager", "onnx", "onnx8", "native", "native16", "native8"]
EngineName = Literal["auto", "eager", "onnx", "onnx8", "native", "native16", "native8"]
PresetName = Literal["production", "medium", "small"]


class Action(IntEnum):
    """Name the five actions by their place in the action head."""

    BUY_LONG = 0
    SELL_SHORT = 1
    CLOSE_LONG = 2
    CLOSE_SHORT = 3
    HOLD = 4


class Block(BaseModel):
    """Refuse unknown keys and later changes, in every block."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_heads(width: int, heads: int) -> None:
    if width % (2 * heads):
        fitting = [n for n in range(1, width // 2 + 1) if width % (2 * n) == 0]
        choice = ", ".join(map(str, fitting[:8])) or "none: make hidden_size even"
        raise ValueError(
            f"num_heads {heads} does not split hidden_size {width} into heads of an even width "
            f"(rotary positions turn pairs): use one of {choice}"
        )


class ModuleConfig(Block):
    """Size one looped module.

    feed_forward is the inner width of the SwiGLU. It is narrow inside the loop because the loop
    reads every weight up to n_cycles x m_max times a decision; num_heads counts only where more
    than one token is in the loop (attention over one token is a linear map, so there is none).
    """

    hidden_size: int = Field(ge=2)
    num_layers: int = Field(ge=1)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    feed_forward: int = Field(ge=1)
    num_heads: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        _check_heads(self.hidden_size, self.num_heads)
        return self


class HighLevelConfig(ModuleConfig):
    """Size the slow module."""

    hidden_size: int = Field(default=512, ge=2)
    num_layers: int = Field(default=6, ge=1)
    feed_forward: int = Field(default=256, ge=1)


class LowLevelConfig(ModuleConfig):
    """Size the fast module."""

    hidden_size: int = Field(default=256, ge=2)
    num_layers: int = Field(default=4, ge=1)
    feed_forward: int = Field(default=128, ge=1)


class EncoderConfig(ModuleConfig):
    """Size the market encoder, which runs once per bar and holds most of the parameters."""

    hidden_size: int = Field(default=512, ge=2)
    num_layers: int = Field(default=7, ge=1)
    feed_forward: int = Field(default=1536, ge=1)
    patch_bars: int = Field(default=8, ge=1)


class ArchitectureConfig(Block):
    """Compose encoder, H and L; tokens_in_loop is how many state vectors each of H and L carries.

    With 1 the loop holds no attention and is cheapest. More tokens are registers that read the
    market in the encoder and then think side by side; they multiply the compute of every cycle.
    """

    h_module: HighLevelConfig = HighLevelConfig()
    l_module: LowLevelConfig = LowLevelConfig()
    encoder: EncoderConfig = EncoderConfig()
    tokens_in_loop: int = Field(default=1, ge=1)


class ConvergenceConfig(Block):
    """Set the depth of one segment and the relative residual at which it may end early."""

    n_cycles: int = Field(default=8, ge=1)
    t_timesteps: int = Field(default=4, ge=1)
    convergence_thresh: float = Field(default=1e-6, gt=0.0)


class AdaptiveComputationConfig(Block):
    """Set how many segments a decision may take, and how training explores that number.

    m_min_prob is the probability that an episode's minimum is 1 (else it is uniform in 2..m_max);
    epsilon is the probability, per segment, that training ignores a halt.
    """

    m_max: int = Field(default=16, ge=1)
    m_min_prob: float = Field(default=0.8, ge=0.0, le=1.0)
    epsilon: float = Field(default=0.1, ge=0.0, le=1.0)


class TrainingConfig(Block):
    """Set what training must know about the model: which steps carry gradients, and the batch.

    gradient `one_step` follows the last L and the last H update, `last_cycle` the whole last
    cycle. Both keep memory flat in n_cycles. one_step_gradient must agree with it. One optimiser
    step a segment is the only way to train, so deep_supervision can only be true.
    """

    deep_supervision: bool = True
    one_step_gradient: bool = True
    segment_batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0.0)
    gradient: Literal["one_step", "last_cycle"] = "one_step"

    @model_validator(mode="after")
    def _supervision_is_deep(self) -> Self:
        if not self.deep_supervision:
            raise ValueError(
                "deep_supervision is false: the model is trained segment by segment only, set it "
                "to true"
            )
        return self

    @model_validator(mode="after")
    def _gradient_keys_agree(self) -> Self:
        if self.one_step_gradient != (self.gradient == "one_step"):
            raise ValueError(
                f"one_step_gradient is {str(self.one_step_gradient).lower()} but gradient is "
                f"{self.gradient}: set one_step_gradient: true with gradient: one_step, or "
                "one_step_gradient: false with gradient: last_cycle"
            )
        return self


class PerformanceConfig(Block):
    """Set the limits that the daemon and the trainer hold, and what runs the model.

    engine: `auto` is the finest one that reaches full depth with time to spare, else a faster one;
    `native16` and `native8` have coarser weights and must pass the gate (hrm.gate).
    """

    max_inference_time_ms: float = Field(default=50.0, gt=0.0)
    memory_limit_gb: float = Field(default=4.0, gt=0.0)
    enable_profiling: bool = True
    engine: EngineName = "auto"


class InputsConfig(Block):
    """Say what one observation holds: window_bars x n_features, and the rest.

    n_features must be the number of features that hrm.features makes. The vocabularies count rows
    of the embedding tables, row 0 (unknown) included. depth: the model was trained on spreads and
    imbalances of order books; where it was not, they are hidden from it.
    """

    window_bars: int = Field(default=64, ge=1)
    n_features: int = Field(default=54, ge=1)
    n_context: int = Field(default=8, ge=1)
    instruments: int = Field(default=64, ge=1)
    timeframes: int = Field(default=16, ge=1)
    instrument_width: int = Field(default=64, ge=1)
    timeframe_width: int = Field(default=32, ge=1)
    depth: bool = False


class HRMConfig(Block):
    """Hold the whole section hierarchical_reasoning_model; the defaults are the production size."""

    architecture: ArchitectureConfig = ArchitectureConfig()
    convergence: ConvergenceConfig = ConvergenceConfig()
    adaptive_computation: AdaptiveComputationConfig = AdaptiveComputationConfig()
    training: TrainingConfig = TrainingConfig()
    performance: PerformanceConfig = PerformanceConfig()
    inputs: InputsConfig = InputsConfig()

    @model_validator(mode="after")
    def _patches_fill_the_window(self) -> Self:
        window, patch = self.inputs.window_bars, self.architecture.encoder.patch_bars
        if window % patch:
            above = window - window % patch + patch
            raise ValueError(
                f"inputs.window_bars {window} is not a multiple of architecture.encoder.patch_bars "
                f"{patch}: use a window of {above} bars, or a patch that divides {window}"
            )
        return self

    @classmethod
    def preset(cls, name: PresetName) -> Self:
        """Build a named size: production (27 M parameters), medium (4.5 M) or small (0.7 M)."""
        if name not in _PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(_PRESETS)}")
        return cls.model_validate(_PRESETS[name])

    def changed(self, **blocks: Mapping[str, Any]) -> Self:
        """Return a copy with some keys replaced, checked again as if read from a file.

        Blocks nest as in YAML: changed(training={"learning_rate": 0.001}).
        """
        return self.model_validate(_merged(self.model_dump(), blocks))


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(before, value)
        else:
            result[key] = value
    return result


_PRESETS: dict[str, dict[str, Any]] = {
    "production": {},
    "medium": {
        "architecture": {
            "h_module": {"hidden_size": 256, "num_layers": 4, "feed_forward": 256},
            "l_module": {"hidden_size": 128, "num_layers": 2, "feed_forward": 128},
            "encoder": {"hidden_size": 256, "num_layers": 4, "feed_forward": 768},
        },
        "convergence": {"n_cycles": 4, "t_timesteps": 2},
    },
    "small": {
        "architecture": {
            "h_module": {"hidden_size": 128, "num_layers": 2, "feed_forward": 256},
            "l_module": {"hidden_size": 64, "num_layers": 2, "feed_forward": 128},
            "encoder": {"hidden_size": 128, "num_layers": 2, "feed_forward": 256},
        },
        "convergence": {"n_cycles": 2, "t_timesteps": 2},
    },
}
