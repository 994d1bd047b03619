"""Lists the compiler's figures for every CUDA kernel: registers, spills, shared memory, 16-byte accesses.

    python benchmarks/kernel_resources.py [--arch 90] [--output benchmarks/results/kernel_resources.md]

No GPU is needed. The options are those of the build, csrc/cuda/nvcc.options. ptxas reports registers, spills
and shared memory (-Xptxas -v). The accesses are the vectorised loads and stores of global memory in the PTX:
`v4` of 4 bytes or `v2` of 8, which become LDG.E.128 and STG.E.128.
The exit status is 1 if a kernel spills.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
ACCESS = re.compile(r"\b(ld|st)\.(?:\w+\.)*?global(?:\.\w+)*")
WIDE = re.compile(r"\.v4\.\w32\b|\.v2\.\w64\b")


@dataclass(frozen=True)
class Kernel:
    """The resources of one kernel on one architecture."""

    file: str
    name: str
    registers: int
    spilled: int
    """Bytes of spill stores and loads."""
    shared: int
    """Bytes of static shared memory."""
    wide: int
    """16-byte accesses of global memory in the code."""
    accesses: int
    """All accesses of global memory in the code."""


def parse(file: str, output: str, ptx: str) -> list[Kernel]:
    """Return the kernels of a file.

    Args:
        file: Name of the file.
        output: The output of ptxas -v.
        ptx: The PTX of the same file.

    >>> output = "Compiling entry function 'f' for 'sm_90'\\n 0 bytes stack frame, 8 bytes spill stores, "
    >>> output += "4 bytes spill loads\\nptxas info : Used 12 registers, 64 bytes smem"
    >>> ptx = ".visible .entry f(\\n)\\n{\\n ld.global.nc.v4.f32 {%a};\\n st.global.u32 [%b];\\n}\\n"
    >>> parse("a.cu", output, ptx)
    [Kernel(file='a.cu', name='f', registers=12, spilled=12, shared=64, wide=1, accesses=2)]
    """
    bodies = dict(re.findall(r"\.entry (\w+)\(.*?\n\{\n(.*?)\n\}", ptx, re.DOTALL))
    kernels = []
    for part in output.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        spills, used = SPILLS.search(part), USED.search(part)
        if used is None:
            continue
        lines = [line for line in bodies.get(name, "").splitlines() if ACCESS.search(line)]
        kernels.append(
            Kernel(
                file,
                name,
                int(used[1]),
                sum(map(int, spills.groups())) if spills else 0,
                int(used[2] or 0),
                sum(bool(WIDE.search(line)) for line in lines),
                len(lines),
            )
        )
    return kernels


def compile_one(nvcc: str, arch: str, source: Path) -> list[Kernel]:
    """Compile one file for one architecture, and return its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "--options-file", str(SOURCES / "nvcc.options")]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(source)]
        # The PTX is a step on the way, which is kept.
        command += ["-cubin", "-Xptxas=-v", "-o", f"{folder}/a.cubin", "--keep", f"--keep-dir={folder}"]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        ptx = Path(folder, source.with_suffix(".ptx").name).read_text()
        return parse(source.name, output.stdout + output.stderr, ptx)


def plain(name: str) -> str:
    """Return a mangled name without namespaces and parameters, with its template arguments."""
    filter_ = shutil.which("c++filt")
    if filter_ is None:
        return name
    output = subprocess.run([filter_, name], capture_output=True, text=True, check=True).stdout.strip()
    output = output.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\b\w+::", "", without_parameters(output)).replace("|", "/")


def without_parameters(name: str) -> str:
    """Return a demangled name up to its last parenthesis that is not within another one.

    >>> without_parameters("f<Of<(Sum)1> >(float*, void (*)(int))")
    'f<Of<(Sum)1> >'
    """
    depth = 0
    for i in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[i], 0)
        if depth == 0:
            return name[:i] if name[i] == "(" else name
    return name


def table(kernels: list[Kernel], arch: str) -> str:
    """Return the Markdown table."""
    lines = [
        f"| file | kernel (sm_{arch}) | registers | spilled, B | shared, B | 16-byte accesses |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {k.file} | {plain(k.name)} | {k.registers} | {k.spilled} | {k.shared} "
        f"| {k.wide} of {k.accesses} |"
        for k in kernels
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compile every file, print the table, and name the kernels that spill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", default="90", help="compute capability without its point")
    parser.add_argument("--output", type=Path, help="file to which the table is also written")
    arguments = parser.parse_args()
    places = [os.environ.get("CUDA_HOME", "") + "/bin/nvcc", "/usr/local/cuda/bin/nvcc", shutil.which("nvcc")]
    nvcc = next((place for place in places if place and os.access(place, os.X_OK)), None)
    if nvcc is None:
        print("no nvcc: install a CUDA toolkit, or set CUDA_HOME to its folder", file=sys.stderr)
        return 2
    with ThreadPoolExecutor() as pool:
        files = pool.map(partial(compile_one, nvcc, arguments.arch), sorted(SOURCES.glob("*.cu")))
        kernels = [kernel for listed in files for kernel in listed]
    shown = table(kernels, arguments.arch)
    print(shown, end="")
    if arguments.output:
        arguments.output.write_text(shown)
    spilling = [plain(kernel.name) for kernel in kernels if kernel.spilled]
    if spilling:
        print(f"registers are spilled by {', '.join(spilling)}", file=sys.stderr)
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
