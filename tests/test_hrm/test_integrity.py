"""Weights and manifest: what is written is what is loaded, and nothing else is."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import a_card, a_config, a_model, some_inputs
from pydantic import ValidationError
from safetensors.torch import save

from hrm import integrity
from hrm.config import HRMConfig
from hrm.integrity import load_release, save_release
from hrm.manifest import DataRecord, IntegrityError, Vocabularies, read_manifest, verify
from hrm.model import HierarchicalReasoningModel


def rewrite(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest as a careless hand would."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_file(directory: Path, data: bytes) -> str:
    """Put other bytes in the released file, and their digest in the manifest."""
    name = read_manifest(directory).released
    (directory / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    rewrite(directory, lambda manifest: manifest["models"][name].update(sha256=digest))
    return name


def test_a_release_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    model = a_model(seed=1)
    data = DataRecord(name="candles", sha256="a" * 64, rows=5, first="2024", last="2025")
    card = a_card(data=(data,), scores={"net": 0.1, "by_year": [1, 2]}, training={"seed": 3})

    entry = save_release(tmp_path, model, card)
    release = load_release(tmp_path)

    assert release.entry == entry
    assert entry.data == (data,)
    assert release.name == f"hrm-{entry.sha256[:12]}.safetensors"
    assert not release.model.training
    inputs = some_inputs()
    assert torch.equal(release.model(inputs)[0][0], model(inputs)[0][0])
    assert verify(tmp_path, release.name) == tmp_path / release.name


def test_the_manifest_has_the_documented_form(tmp_path: Path) -> None:
    save_release(tmp_path, a_model(), a_card(), name="first.safetensors")

    manifest = json.loads((tmp_path / "manifest.json").read_text())

    assert list(manifest) == ["format", "released", "models"]
    assert manifest["format"] == 1
    entry = manifest["models"]["first.safetensors"]
    assert set(entry) == {
        "sha256", "config", "features", "vocabularies", "data", "training", "scores", "versions",
        "created",
    }  # fmt: skip
    assert entry["vocabularies"] == {
        "instruments": {"NIFTY": 1, "SBIN": 2},
        "timeframes": {"5m": 1},
    }
    assert HRMConfig.model_validate(entry["config"]) == a_config()


def test_an_older_release_stays_listed_and_loadable(tmp_path: Path) -> None:
    save_release(tmp_path, a_model(seed=1), a_card(), name="old.safetensors")

    save_release(tmp_path, a_model(seed=2), a_card(), name="new.safetensors")

    assert read_manifest(tmp_path).released == "new.safetensors"
    assert load_release(tmp_path).name == "new.safetensors"
    assert load_release(tmp_path, "old.safetensors").name == "old.safetensors"


def test_weights_too_large_in_float32_are_stored_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_model()
    size = len(save(model.state_dict()))
    monkeypatch.setattr(integrity, "MAX_FILE_BYTES", size - 1)

    entry = save_release(tmp_path, model, a_card(), name="half.safetensors")

    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * size
    loaded = load_release(tmp_path).model
    assert entry.sha256 == hashlib.sha256((tmp_path / "half.safetensors").read_bytes()).hexdigest()
    for mine, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-6)
    monkeypatch.setattr(integrity, "MAX_FILE_BYTES", 100)
    with pytest.raises(IntegrityError, match="more than the 100 that a release may: use a smaller"):
        save_release(tmp_path, model, a_card(), name="big.safetensors")


def test_the_production_model_fits_the_size_limit_in_half_precision() -> None:
    with torch.device("meta"):
        model = HierarchicalReasoningModel(HRMConfig())

    numbers = sum(value.numel() for value in model.state_dict().values())

    assert 4 * numbers > integrity.MAX_FILE_BYTES
    assert 2 * numbers < 0.6 * integrity.MAX_FILE_BYTES


@pytest.mark.parametrize("failing_sync", [1, 2, 3, 4])
def test_a_crash_while_saving_leaves_the_old_or_the_new_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_sync: int
) -> None:
    save_release(tmp_path, a_model(seed=1), a_card(), name="old.safetensors")
    calls = 0
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_sync:
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_release(tmp_path, a_model(seed=2), a_card(), name="new.safetensors")

    assert load_release(tmp_path).name == (
        "new.safetensors" if failing_sync == 4 else "old.safetensors"
    )
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    assert not list(tmp_path.glob(".*"))


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    entry = save_release(tmp_path, a_model(), a_card(), name="m.safetensors")
    path = tmp_path / "m.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))

    with pytest.raises(IntegrityError, match=rf"m.safetensors has SHA-256 .* says {entry.sha256}"):
        load_release(tmp_path)
    with pytest.raises(IntegrityError, match="restore the file from the release"):
        verify(tmp_path, "m.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    save_release(tmp_path, a_model(), a_card(), name="m.safetensors")
    (tmp_path / "m.safetensors").unlink()

    with pytest.raises(IntegrityError, match=r"m.safetensors cannot be read \(No such file"):
        load_release(tmp_path)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"manifest.json cannot be read.*restore it"):
        load_release(tmp_path)


def test_a_file_that_is_not_listed_is_not_used(tmp_path: Path) -> None:
    save_release(tmp_path, a_model(), a_card(), name="m.safetensors")

    with pytest.raises(IntegrityError, match=r"other.safetensors is not in manifest.json"):
        load_release(tmp_path, "other.safetensors")


@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.pkl", "../m.safetensors", "a/m.safetensors"])
def test_only_safetensors_directly_in_the_folder_are_considered(tmp_path: Path, name: str) -> None:
    save_release(tmp_path, a_model(), a_card(), name="m.safetensors")

    with pytest.raises(IntegrityError, match=r"is refused: a model is a .safetensors file"):
        verify(tmp_path, name)
    with pytest.raises(IntegrityError, match=r"is refused"):
        save_release(tmp_path, a_model(), a_card(), name=name)


class Payload:
    """Leave a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._mark,))


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path: Path, archive: bool) -> None:
    save_release(tmp_path, a_model(), a_card(), name="m.safetensors")
    mark = tmp_path / "ran"
    if archive:
        torch.save({"payload": Payload(mark)}, tmp_path / "payload")
        data = (tmp_path / "payload").read_bytes()
    else:
        data = pickle.dumps(Payload(mark))
    replace_file(tmp_path, data)

    with pytest.raises(IntegrityError, match=r"holds a pickle under a .safetensors name"):
        load_release(tmp_path)

    assert not mark.exists()


def test_a_header_of_any_length_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    save_release(tmp_path, a_model(), a_card())
    good = next(tmp_path.glob("*.safetensors")).read_bytes()
    length = int.from_bytes(good[:8], "little")
    firsts = set()
    for spaces in range(256):
        # The format allows spaces behind the header; they take its length through every first byte.
        padded = (length + spaces).to_bytes(8, "little") + good[8 : 8 + length] + b" " * spaces
        name = replace_file(tmp_path, padded + good[8 + length :])

        assert verify(tmp_path, name).exists()
        firsts.add(padded[0])

    assert len(firsts) == 256


def test_a_file_that_is_no_safetensors_is_refused_though_its_digest_is_right(
    tmp_path: Path,
) -> None:
    save_release(tmp_path, a_model(), a_card())
    name = replace_file(tmp_path, b"not tensors at all")

    with pytest.raises(IntegrityError, match=rf"{name} has the right digest but is no safetensors"):
        load_release(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("q_head.bias"), "q_head.bias has nothing, the config asks for shape"),
        (lambda t: t.update(extra=torch.zeros(2)), r"extra has shape \[2\].*asks for nothing"),
        (
            lambda t: t.update({"value_head.weight": torch.zeros(1, 9)}),
            r"value_head.weight has shape \[1, 9\], the config asks for shape \[1, 16\]",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused_by_tensor(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], text: str
) -> None:
    save_release(tmp_path, a_model(), a_card())
    tensors = dict(a_model().state_dict())
    change(tensors)
    replace_file(tmp_path, save(tensors))

    with pytest.raises(IntegrityError, match=text):
        load_release(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(released="gone.safetensors"), "'gone.safetensors' is not among"),
        (lambda m: m["models"]["m.safetensors"].update(sha256="xyz"), "sha256"),
        (lambda m: m["models"]["m.safetensors"].update(note="hello"), "note"),
        (
            lambda m: m["models"]["m.safetensors"]["config"]["convergence"].update(n_cycles=0),
            "n_cycles",
        ),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_path_and_the_fault(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    save_release(tmp_path, a_model(), a_card(), name="m.safetensors")
    rewrite(tmp_path, change)

    with pytest.raises(IntegrityError, match=rf"manifest.json is no manifest[\s\S]*{text}"):
        load_release(tmp_path)


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")

    with pytest.raises(IntegrityError, match=r"manifest.json is no manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"features": {"names": ("a",), "schema_sha256": "0" * 64}}, "has 1 names.* is 3"),
        ({"vocabularies": Vocabularies(instruments={"A": 0})}, r"row of its own in 1..3.*'A': 0"),
        ({"vocabularies": Vocabularies(instruments={"A": 4})}, r"wrong: \{'A': 4\}"),
        ({"vocabularies": Vocabularies(timeframes={"1m": 1, "5m": 1})}, "rows given twice"),
    ],
)
def test_a_card_whose_parts_disagree_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        a_card(**changes)


def test_a_card_of_another_model_is_refused(tmp_path: Path) -> None:
    other = a_config(convergence={"n_cycles": 5})

    with pytest.raises(IntegrityError, match="the card's config is not the model's"):
        save_release(tmp_path, a_model(), a_card(other))


def test_a_released_name_is_not_given_to_other_weights(tmp_path: Path) -> None:
    save_release(tmp_path, a_model(seed=1), a_card(), name="m.safetensors")

    with pytest.raises(IntegrityError, match="already released with other weights"):
        save_release(tmp_path, a_model(seed=2), a_card(), name="m.safetensors")

    assert load_release(tmp_path).name == "m.safetensors"


def test_weights_that_are_not_finite_are_not_released(tmp_path: Path) -> None:
    model = a_model()
    torch.nn.init.constant_(model.value_head.weight, float("nan"))

    with pytest.raises(IntegrityError, match=r"value_head.weight is not finite"):
        save_release(tmp_path, model, a_card())


def test_names_are_found_in_any_case_and_a_day_by_either_name() -> None:
    vocabularies = Vocabularies(
        instruments={"nifty": 1, "Bank_Nifty": 2}, timeframes={"5": 1, "1440": 2}
    )

    assert [vocabularies.instrument_row(n) for n in ("Nifty", "Bank_Nifty", "Sensex", "")] == [
        1,
        2,
        0,
        0,
    ]
    assert [vocabularies.timeframe_row(n) for n in ("5", "D", "1440", "15")] == [1, 2, 2, 0]
