"""Every Triton kernel becomes machine code of an H100, without one: the interpreter takes what no compiler would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def launched_kernels() -> set[str]:
    """Names of what is launched, with their modules: whatever has a grid, or is given to a function that has one."""
    found = set()
    for file in [*ROOT.glob("pipeline/*_kernel.py"), *ROOT.glob("model/*_kernel.py")]:
        text = file.read_text()
        if "@triton.jit" in text:
            module = f"lmdali.{file.parent.name}.{file.stem}"
            plain = text[: text.index("@triton.jit")]
            names = re.findall(r"^@triton\.jit.*\ndef (\w+)", text, re.MULTILINE)
            found |= {f"{module}.{name}" for name in names if re.search(rf"\b{name}\b", plain)}
    return found


def test_every_kernel_is_compiled_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(ROOT / "tests" / "compile_kernels.py")],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = launched_kernels()
    assert len(wanted) > 10 and set(json.loads(done.stdout.splitlines()[-1])) == wanted
