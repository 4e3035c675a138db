"""Integrity: the check that stands between a file of weights and its use, and their release.

Weights are safetensors and nothing else, because a pickle runs code when it is read. A file is read
once: what was hashed is what is loaded.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hrm.manifest import (
    MANIFEST_NAME,
    SUFFIX,
    IntegrityError,
    Manifest,
    ModelCard,
    ModelEntry,
    check_name,
    read_manifest,
    verified_bytes,
)
from hrm.model import HierarchicalReasoningModel
from hrm.weights import check_fit

MAX_FILE_BYTES = 100_000_000  # the most that a fresh clone should have to carry


@dataclass(frozen=True)
class Release:
    """Hold a verified model, in eval mode and float32 on the CPU, and what the manifest says."""

    model: HierarchicalReasoningModel
    manifest: Manifest
    name: str

    @property
    def entry(self) -> ModelEntry:
        """Return the manifest's entry of this model."""
        return self.manifest.models[self.name]


def load_release(directory: Path, name: str | None = None) -> Release:
    """Verify and load a model; name: a file listed in the manifest, None for the released one."""
    manifest = read_manifest(directory)
    name = manifest.released if name is None else name
    data = verified_bytes(directory, name, manifest)
    config = manifest.models[name].config
    path = directory / name
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise IntegrityError(
            f"{path} has the right digest but is no safetensors file ({error}): release it again "
            "with hrm-train"
        ) from error
    model = HierarchicalReasoningModel(config)
    check_fit(path, tensors, config)
    model.load_state_dict({key: value.float() for key, value in tensors.items()})
    return Release(model.eval(), manifest, name)


def save_release(
    directory: Path, model: HierarchicalReasoningModel, card: ModelCard, *, name: str | None = None
) -> ModelEntry:
    """Write weights and manifest so that a crash at any point leaves the old or the new release.

    name: the file's, by default made of its digest; models released earlier stay listed. Weights
    are stored in float32 if that fits the size limit, else in float16: score what `load_release`
    gives back, not the model handed in.
    """
    if card.config != model.config:
        raise IntegrityError(
            "the card's config is not the model's: use ModelCard(config=model.config, ...)"
        )
    data = _stored(model)
    digest = hashlib.sha256(data).hexdigest()
    name = f"hrm-{digest[:12]}{SUFFIX}" if name is None else name
    check_name(directory, name)
    directory.mkdir(parents=True, exist_ok=True)
    entry = ModelEntry(**dict(card), sha256=digest)
    has_manifest = (directory / MANIFEST_NAME).exists()
    known = dict(read_manifest(directory).models) if has_manifest else {}
    if name in known and known[name].sha256 != digest:
        # Overwriting would leave a manifest that contradicts the file until the next rename.
        raise IntegrityError(
            f"{directory / name} is already released with other weights: choose another name"
        )
    manifest = Manifest(released=name, models=known | {name: entry})
    _write_atomically(directory / name, data)
    _write_atomically(directory / MANIFEST_NAME, manifest.model_dump_json(indent=2).encode())
    return entry


def _stored(model: HierarchicalReasoningModel) -> bytes:
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise IntegrityError(f"{key} is not finite: a model like that is not released")
    data = save(tensors)
    if len(data) > MAX_FILE_BYTES:
        data = save({key: value.half() for key, value in tensors.items()})
    if len(data) > MAX_FILE_BYTES:
        raise IntegrityError(
            f"the weights take {len(data)} bytes in float16, more than the {MAX_FILE_BYTES} that a "
            "release may: use a smaller config"
        )
    return data


def _write_atomically(path: Path, data: bytes) -> None:
    # Written beside its place: a rename is atomic only within one file system.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself last
    finally:
        os.close(folder)
