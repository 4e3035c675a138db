"""Demo data: found without being imported, or refused with a remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.demo_data import demo_candles
from daemon.errors import DataError


def test_the_demo_candles_are_found_with_their_label_and_licence() -> None:
    demo = demo_candles()

    assert demo.path.is_file()
    assert (demo.instrument, demo.timeframe) == ("EURUSD", "60")
    assert "EUR/USD" in demo.label
    assert "MIT" in demo.licence


def test_finding_them_does_not_import_the_package() -> None:
    program = (
        "import sys; from daemon.demo_data import demo_candles; demo_candles();"
        " sys.exit('gym_anytrading' in sys.modules)"
    )

    finished = subprocess.run([sys.executable, "-c", program], check=False, timeout=240)

    assert finished.returncode == 0


def test_an_absent_package_is_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match="not installed; pip install gym-anytrading"):
        demo_candles("no_such_package")


def test_a_package_without_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hollow_package").mkdir()
    (tmp_path / "hollow_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(DataError, match=r"FOREX_EURUSD_1H_ASK.csv is missing; pip install"):
        demo_candles("hollow_package")
