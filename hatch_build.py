"""Compile the native kernel while the package is built; without a compiler the wheel has none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNEL = Path("hrm", "native", "build", "kernel.so")


class KernelHook(BuildHookInterface[Any]):
    """Run `python -m hrm.native_build`, which needs nothing that is not in the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile before the files are collected; a wheel with a kernel is for this platform."""
        root = Path(self.root)
        subprocess.run([sys.executable, "-m", "hrm.native_build"], cwd=root, check=True)
        if self.target_name == "wheel" and (root / KERNEL).exists():
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
