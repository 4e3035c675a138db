"""Compile the native kernel: `python -m hrm.native_build`. Without a compiler there is no kernel.

Nothing of ours is imported but `hrm.native_library`, so that installing can run it as well.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hrm.native_library import ABI, BUILT, LIBRARY_NAME, RECORD_NAME, SOURCES, sources_digest

TIMEOUT_SECONDS = 120
# A product and a sum are rounded together only where the source says so: on every processor alike.
FLAGS = ("-O3", "-std=c11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (
    *AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-DHRM_AVX512"),
)
OBJECTS = {
    "core_avx2": ("core.c", AVX2),
    "core_avx512": ("core.c", AVX512),
    "dispatch": ("dispatch.c", ("-fvisibility=default",)),
}


class BuildFailed(Exception):
    """The kernel could not be compiled; the text says why."""


class NoCompiler(BuildFailed):
    """There is nothing to compile the kernel with."""


def build(folder: Path = BUILT) -> Path:
    """Compile the kernel into a folder, beside a record of it; raise BuildFailed or NoCompiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("no C compiler was found: install gcc, or set CC")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as name:
        scratch = Path(name)
        objects = []
        for stem, (source, flags) in OBJECTS.items():
            objects.append(scratch / f"{stem}.o")
            _run(compiler, *FLAGS, *flags, "-c", str(SOURCES / source), "-o", str(objects[-1]))
        library = scratch / LIBRARY_NAME
        _run(compiler, "-shared", *map(str, objects), "-lm", "-o", str(library))
        record = {
            "abi": ABI,
            "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
            "sources": sources_digest(),
            "compiler": _run(compiler, "--version").splitlines()[0],
        }
        (scratch / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n")
        # The library first: a record of another library is refused, and nothing is taken for it.
        for part in (LIBRARY_NAME, RECORD_NAME):
            (scratch / part).replace(folder / part)
    return folder / LIBRARY_NAME


def _run(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a compiler from PATH, and names of our own files
            command, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        output = (getattr(error, "stderr", "") or "").strip()
        raise BuildFailed(f"{' '.join(command[:1])}: {error}\n{output}".strip()) from error
    return done.stdout


def main() -> None:
    """Build; say on stderr when it cannot be done, which is no failure of the installation."""
    try:
        print(f"built {build()}", file=sys.stderr)
    except BuildFailed as error:
        print(f"the native engine is not built, another one serves: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
