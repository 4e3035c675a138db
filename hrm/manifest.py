"""The manifest of models/: what each file is, where it came from, and the check of its digest.

Nothing here loads weights or imports torch, so that the daemon can name its model without it.
"""

import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from hrm.config import HRMConfig

MANIFEST_NAME = "manifest.json"
SUFFIX = ".safetensors"
# How a zip archive (torch.save) and a bare pickle of protocol 2 or later begin.
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class IntegrityError(Exception):
    """Weights or manifest are not what they should be; the message names file and remedy."""


class EngineRefused(IntegrityError):
    """The engine that was demanded may not serve this model here."""


class Record(BaseModel):
    """Refuse unknown keys and later changes, in every part of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeatureRecord(Record):
    """Name the columns the model was trained on, in order, and the digest of their definition."""

    names: tuple[str, ...]
    schema_sha256: str = Sha256


class Vocabularies(Record):
    """Map names to rows of the embedding tables; row 0 is for names that are not here."""

    instruments: dict[str, int] = Field(default_factory=dict)
    timeframes: dict[str, int] = Field(default_factory=dict)

    def instrument_row(self, name: str) -> int:
        """Return the row of an instrument, in any case: files say nifty where messages say Nifty.

        An exact spelling wins; 0 for a name that was not trained.
        """
        if name in self.instruments:
            return self.instruments[name]
        folded = {known.casefold(): row for known, row in self.instruments.items()}
        return folded.get(name.casefold(), 0)

    def timeframe_row(self, name: str) -> int:
        """Return the row of a timeframe, 0 if it was not trained; a day is D or 1440 minutes."""
        same = {"D": "1440", "1440": "D"}
        return self.timeframes.get(name, self.timeframes.get(same.get(name, name), 0))


class DataRecord(Record):
    """Name one data set the model has seen; first and last: its first and last bar, as text."""

    name: str
    sha256: str = Sha256
    rows: int = Field(ge=1)
    first: str
    last: str


class ModelCard(Record):
    """Say what a model is and where it came from: everything but the digest of its file."""

    config: HRMConfig
    features: FeatureRecord
    vocabularies: Vocabularies = Vocabularies()
    data: tuple[DataRecord, ...] = ()
    training: dict[str, JsonValue] = Field(default_factory=dict)
    scores: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        inputs = self.config.inputs
        if len(self.features.names) != inputs.n_features:
            raise ValueError(
                f"features.names has {len(self.features.names)} names but config.inputs.n_features "
                f"is {inputs.n_features}"
            )
        _check_vocabulary("instruments", self.vocabularies.instruments, inputs.instruments)
        _check_vocabulary("timeframes", self.vocabularies.timeframes, inputs.timeframes)
        return self


class ModelEntry(ModelCard):
    """A card with the SHA-256 of the file it describes."""

    sha256: str = Sha256


class Manifest(Record):
    """List the models of a folder by file name, and say which one is released."""

    format: Literal[1] = 1
    released: str
    models: dict[str, ModelEntry]

    @model_validator(mode="after")
    def _released_is_listed(self) -> Self:
        if self.released not in self.models:
            raise ValueError(f"released {self.released!r} is not among models: {list(self.models)}")
        return self


def read_manifest(directory: Path) -> Manifest:
    """Read directory/manifest.json; raise IntegrityError if it is missing or malformed."""
    path = directory / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"{path} cannot be read ({error.strerror}): restore it from the release, or write one "
            "with hrm-train"
        ) from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise IntegrityError(
            f"{path} is no manifest, restore it from the release: {error}"
        ) from error


def verify(directory: Path, name: str) -> Path:
    """Return the path of a file whose content is what the manifest says; raise IntegrityError.

    Do not open that path to load it: the file may change in between. `load_release` reads once.
    """
    verified_bytes(directory, name, read_manifest(directory))
    return directory / name


def verified_bytes(directory: Path, name: str, manifest: Manifest) -> bytes:
    """Read a file once and return what was read; raise IntegrityError unless the digest fits."""
    check_name(directory, name)
    path = directory / name
    if name not in manifest.models:
        raise IntegrityError(
            f"{path} is not in {MANIFEST_NAME}, which lists {list(manifest.models)}: release it "
            "with hrm-train"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"{path} cannot be read ({error.strerror}): restore it from the release"
        ) from error
    # A safetensors header opens with { after its length, whose bytes may begin like anything.
    if data.startswith(PICKLE_STARTS) and data[8:9] != b"{":
        raise IntegrityError(
            f"{path} holds a pickle under a {SUFFIX} name, which can run code: delete it and "
            "restore the file from the release"
        )
    digest, expected = hashlib.sha256(data).hexdigest(), manifest.models[name].sha256
    if digest != expected:
        raise IntegrityError(
            f"{path} has SHA-256 {digest} but {MANIFEST_NAME} says {expected}: restore the file "
            "from the release"
        )
    return data


def check_name(directory: Path, name: str) -> None:
    """Raise IntegrityError unless this is the name of a safetensors file in the folder."""
    if Path(name).name != name or not name.endswith(SUFFIX):
        raise IntegrityError(
            f"{directory / name} is refused: a model is a {SUFFIX} file directly in that folder "
            "(a .pt, .pth or pickle file can run code when read; convert it with hrm-train)"
        )


def _check_vocabulary(kind: str, vocabulary: dict[str, int], size: int) -> None:
    rows = list(vocabulary.values())
    wrong = {name: row for name, row in vocabulary.items() if not 0 < row < size}
    if wrong or len(set(rows)) != len(rows):
        raise ValueError(
            f"vocabularies.{kind} must give each name a row of its own in 1..{size - 1} (row 0 is "
            f"for unknown names), wrong: {wrong or 'rows given twice'}"
        )
