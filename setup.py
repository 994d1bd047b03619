"""Build the native extension `sage._C`, and nothing else: the rest is in pyproject.toml.

It needs a C++ compiler and torch's headers, found without importing torch. The CUDA side is built where torch
has CUDA and a toolkit of the same major version is found. What is missing never fails an installation: sage
then runs on its plain-torch references, and says so.

    SAGE_NATIVE=0         build nothing
    SAGE_CUDA=0           build the CPU side alone
    TORCH_CUDA_ARCH_LIST  for which GPUs, "9.0" or "8.0;9.0+PTX"; by default all that CUDA 13 knows of
    CUDA_HOME             the toolkit's folder, which holds bin/nvcc and include/cuda_runtime_api.h
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

CSRC = Path("csrc")
NVCC_OPTIONS = CSRC / "cuda/nvcc.options"
"""What the code of kernels depends on; benchmarks/kernel_resources.py reads the same file."""
ARCHITECTURES = "7.5;8.0;8.6;9.0;10.0;12.0+PTX"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
"""Torch 2.10's stable ABI: what is built runs with that torch and every later one. Older ones lack parts."""
OLDEST_TORCH = 2, 10


def torch_folder() -> Path | None:
    """Where torch is installed; a build in isolation finds it in the environment that it installs into."""
    spec = importlib.util.find_spec("torch")
    found = spec and spec.origin and Path(spec.origin).parent
    folder = found or Path(sysconfig.get_path("purelib"), "torch")
    return folder if (folder / "include/torch/csrc/stable/library.h").is_file() else None


def torch_version(torch: Path) -> str:
    """The version of the torch in a folder, read without importing it."""
    found = re.search(r"^__version__ = '(.+)'", (torch / "version.py").read_text(), re.MULTILINE)
    return found[1] if found else "0.0"


def cuda_home(torch: Path) -> Path | None:
    """The toolkit of the CUDA that torch was built with, if both are there."""
    built_for = re.search(r"^cuda\b.*= '(\d+)", (torch / "version.py").read_text(), re.MULTILINE)
    if built_for is None or os.environ.get("SAGE_CUDA") == "0":
        return None
    nvcc = shutil.which("nvcc")
    # nvcc on the path may be a script, whose folder has no headers: so it is the headers that are looked for.
    places = [os.environ.get("CUDA_HOME"), f"/usr/local/cuda-{built_for[1]}.0", "/usr/local/cuda"]
    places += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    places += [str(torch.parent / "nvidia" / f"cu{built_for[1]}")]
    for place in map(Path, filter(None, places)):
        if (place / "bin/nvcc").is_file() and (place / "include/cuda_runtime_api.h").is_file():
            version = subprocess.check_output([place / "bin/nvcc", "--version"], text=True)
            if f"release {built_for[1]}." in version:
                return place
    return None


def gencode(architectures: str) -> list[str]:
    """The flags of nvcc for a list as in TORCH_CUDA_ARCH_LIST."""
    flags = []
    for entry in architectures.replace(" ", ";").split(";"):
        number = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def merged(sources: list[Path], count: int, folder: Path) -> list[Path]:
    """Write at most `count` files that include the sources, each one once, and return them.

    nvcc reads the headers of CUDA and of the standard library for every file and architecture again. The
    sources define no name twice: tests/csrc/emulated.cpp includes all of them.
    """
    shares: list[list[Path]] = [[] for _ in range(min(count, len(sources)))]
    # The largest first, each to the share that is the smallest by then.
    for source in sorted(sources, key=lambda source: -source.stat().st_size):
        min(shares, key=lambda share: sum(each.stat().st_size for each in share)).append(source)
    units = [folder / f"unit{number}{sources[0].suffix}" for number in range(len(shares))]
    for unit, share in zip(units, shares, strict=True):
        unit.write_text("".join(f'#include "{source.resolve()}"\n' for source in sorted(share)))
    return units


class Build(build_ext):
    """Compile every source side by side, C++ by the C++ compiler and CUDA by nvcc, and link them."""

    def build_extension(self, ext: Extension) -> None:
        start = time.monotonic()
        torch = torch_folder()
        if torch is None:
            raise BaseError("no native extension: torch 2.10 or later is to be installed before sage")
        version = torch_version(torch)
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
            raise BaseError(f"no native extension: it needs torch 2.10 or later, and {version} is installed")
        cuda = cuda_home(torch)
        compiler = os.environ.get("CXX", "c++")
        headers = ["-isystem", str(torch / "include"), STABLE_ABI]
        # A product and a sum are rounded one after the other, as in the references.
        plain = ["-std=c++20", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-fPIC"]
        plain += ["-fvisibility=hidden", *headers]
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        link = [compiler, "-shared", "-o", output, f"-L{torch / 'lib'}"]
        libraries = ["-ltorch", "-ltorch_cpu"]
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
            code: list[str] = []
            commands: list[list[str | Path]] = [[compiler, *plain, "-c", source] for source in ext.sources]
            if cuda is not None:
                nvcc: list[str | Path] = [
                    cuda / "bin/nvcc",
                    "--options-file",
                    NVCC_OPTIONS,
                    "-Xcompiler=-fPIC,-fvisibility=hidden",
                ]
                code = gencode(os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES)
                nvcc += code
                # The slowest first, so that nobody waits for them alone.
                units = merged(sorted(CSRC.glob("cuda/*.cu")), os.cpu_count() or 1, Path(folder))
                commands[:0] = [[*nvcc, "-c", unit] for unit in units]
                plain += ["-isystem", str(cuda / "include"), "-DUSE_CUDA"]
                commands += [[compiler, *plain, "-c", source] for source in sorted(CSRC.glob("cuda/*.cpp"))]
                libraries += ["-ltorch_cuda", f"-L{cuda / 'lib64'}", f"-L{cuda / 'lib'}", "-lcudart"]
            objects = [Path(folder, f"{number}.o") for number in range(len(commands))]
            commands = [[*command, "-o", object] for command, object in zip(commands, objects, strict=True)]
            for _ in pool.map(self._run, commands):
                pass
            self._run([*link, *objects, *libraries])
        devices = "the CPU"
        if cuda is not None:
            devices += f" and CUDA ({', '.join(flag.rpartition('=')[2] for flag in code)})"
        print(f"native extension: {output.name}, linked for {devices} in {time.monotonic() - start:.0f} s")

    def _run(self, command: list[str | Path]) -> None:
        try:
            subprocess.run([str(part) for part in command], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BaseError(f"no native extension: {command[0]} failed ({error})") from error


sources = sorted(map(str, [CSRC / "ops.cpp", *CSRC.glob("cpu/*.cpp")]))
headers = sorted(map(str, [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), *CSRC.rglob("*.cu"), NVCC_OPTIONS]))
# The limited API: no symbol of Python's is used, so neither is the file's name bound to one version of it.
extension = Extension("sage._C", sources, depends=headers, optional=True, py_limited_api=True)
setup(
    ext_modules=[] if os.environ.get("SAGE_NATIVE") == "0" else [extension],
    cmdclass={"build_ext": Build},
)
