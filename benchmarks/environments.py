"""A virtual environment for every peer, made once in a folder and kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent / "constraints.txt"
# What each peer needs beside the numpy and torch of constraints.txt; h5py and zarr are those of mmbuild itself.
REQUIREMENTS = {
    "litdata_raw": ("litdata",),
    "litdata_blosc": ("litdata",),
    "mosaicml_raw": ("mosaicml-streaming",),
    "webdataset_blosc": ("webdataset",),
    "hdf5": ("h5py",),
    "mmearth": ("h5py",),
    "zarr_python": ("zarr", "numcodecs"),
    "tensorstore_cube": ("tensorstore",),
    "lmdb_blosc": ("lmdb",),
    "memmap": (),
    "limit": (),
}
# Those whose newest release does not fit the constraints of mmbuild get only torch and numpy from them.
LOOSE = {"mosaicml_raw", "litdata_raw", "litdata_blosc"}


def environment(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment, made if it is not there; peers with equal needs share one."""
    if peer == "ours":
        return Path(sys.executable)
    name = "-".join(REQUIREMENTS[peer]) or "plain"
    place = folder / "environments" / name
    python = place / "bin" / "python"
    if (place / "ready").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    constraints = CONSTRAINTS
    if peer in LOOSE:
        constraints = place / "constraints.txt"
        kept = [line for line in CONSTRAINTS.read_text().splitlines() if line.split("==")[0] in ("torch", "numpy")]
        constraints.write_text("\n".join(kept))
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
    subprocess.run([*install, "torch", "numpy", "numcodecs", "psutil", *REQUIREMENTS[peer]], check=True)
    if peer == "mosaicml_raw":
        _without_torchvision(python)
    (place / "ready").touch()
    return python


def _without_torchvision(python: Path) -> None:
    """Put two empty names in torchvision's place: its wheel cannot be imported beside the CPU build of torch.

    Streaming imports it for image datasets only, which are not measured here.
    """
    subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "-y", "torchvision"], check=True)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    package = Path(done.stdout.strip()) / "torchvision"
    (package / "transforms").mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "datasets.py").write_text("class VisionDataset:\n    pass\n")
    (package / "transforms" / "__init__.py").touch()
    (package / "transforms" / "functional.py").write_text("to_tensor = None\n")
