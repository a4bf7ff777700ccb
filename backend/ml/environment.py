"""Finds the project's environment from anywhere and goes on in it; needs Python's own library alone."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NEEDED = ("sklearn", "cramjam", "isal", "safetensors", "blake3")
_MARK = "DWCP_ML_ENVIRONMENT"
# One thread and one kernel: the same table then gives the same bits on any x86-64 processor with AVX2.
_FIXED = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Haswell",
    "PYTHONHASHSEED": "0",
}


def enter(module):
    """Runs `module` of `backend/ml` in the project's interpreter, unless this is it already."""
    if os.environ.get(_MARK) == "1":
        return
    python = CHECKOUT / ".venv" / "bin" / "python"
    if has_all(sys.executable):
        python = Path(sys.executable)
    elif not (python.exists() and has_all(python)):
        print("making the project's environment first: scripts/bootstrap --dev", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(CHECKOUT / "scripts" / "bootstrap"), "--dev"], check=False)
        if done.returncode or not has_all(python):
            sys.exit("the environment lacks " + ", ".join(NEEDED) + ": run `make environment-dev`")
    paths = [str(CHECKOUT / "src"), str(CHECKOUT / "backend" / "ml"), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, **_FIXED, _MARK: "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    os.execve(python, [str(python), "-m", module, *sys.argv[1:]], variables)


def has_all(python):
    """Whether an interpreter has what training needs; asked in a process, nothing is imported here."""
    check = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))"
    return (
        subprocess.run([str(python), "-c", check, *NEEDED], check=False, capture_output=True).returncode == 0
    )
