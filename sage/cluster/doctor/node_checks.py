"""Checks of each node: versions, the compiled extension, the runs folder and GPUs."""

from collections import Counter

from sage.cluster.doctor.findings import Check, Observations, Problem
from sage.cluster.doctor.node_facts import Facts


def _version(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    own, usual = _versions(observed, rank), _usual_versions(observed)
    if own["torch"] is None:
        return Problem("torch is not installed in its Python", "install it there, or give another --python")
    differing = [
        f"{name} {version}, not {usual[name]}"
        for name, version in own.items()
        if version is not None and version != usual[name]
    ]
    fix = "use one environment and one checkout in a folder that all nodes share, or update this node's"
    return Problem(", ".join(differing), fix) if differing else None


def _same_versions(observed: Observations, passed: dict[int, Facts]) -> str:
    return ", ".join(f"{name} {version}" for name, version in _usual_versions(observed).items() if version)


def _versions(observed: Observations, rank: int) -> dict[str, str | None]:
    """Versions by name; those that this rank does not know are None or left out."""
    facts = observed.facts[rank]
    found = {name: facts["software"][name] for name in ("python", "sage", "torch", "numpy")}
    loaded = facts.get("torch", {}).get("versions", {})
    found |= {"torch's build": loaded.get("torch"), "nccl": loaded.get("nccl"), "cuda": loaded.get("cuda")}
    return found | {"commit": (loaded.get("commit") or "")[:9] or None}


def _usual_versions(observed: Observations) -> dict[str, str | None]:
    """The most frequent versions; in a tie, those of the lower rank."""
    everybody = [_versions(observed, rank) for rank in observed.of("software")]
    usual: dict[str, str | None] = {}
    for name in everybody[0]:
        counts = Counter(found[name] for found in everybody if found[name] is not None)
        usual[name] = counts.most_common(1)[0][0] if counts else None
    return usual


def _folder(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    fix = "give a folder that all nodes share and can write to: --runs DIR"
    if "error" in facts:
        return Problem(f"cannot write to {facts['path']}: {facts['error']}", fix)
    others = {other for other, found in observed.of("folder").items() if "error" not in found}
    if hidden := others - set(facts["seen"]):
        return Problem(f"{facts['path']} is not the same folder as on {observed.where(hidden)}", fix)
    return None


def _folders(observed: Observations, passed: dict[int, Facts]) -> str:
    return f"{', '.join({facts['path']: 0 for facts in passed.values()})} is writable and shared by all"


def _gpu(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    if "error" in facts:
        return Problem(f"torch does not load: {facts['error']}", "reinstall it in that Python")
    software = observed.facts[rank]["software"]
    if "uuid" in facts:
        beside = [
            other
            for other, found in observed.of("torch").items()
            if other != rank
            and found.get("uuid") == facts["uuid"]
            and observed.nodes[other] == observed.nodes[rank]
        ]
        text = f"rank {rank} has the same GPU as rank {beside[0]}" if beside else ""
        fix = "request one GPU per rank: --gpus-per-node=K --ntasks-per-node=K"
        return Problem(text, fix) if text else None
    elsewhere = any("uuid" in found for found in observed.of("torch").values())
    if not (elsewhere or software["gpu_files"] or software["visible"]):
        return None
    visible = "not set" if software["visible"] is None else repr(software["visible"])
    text = f"torch sees no GPU: {software['gpu_files']} in /dev, CUDA_VISIBLE_DEVICES is {visible}"
    if facts["versions"]["cuda"] is None:
        fix = "this torch is built for CPUs only: install one built for CUDA"
    elif software["visible"]:
        fix = "check that nvidia-smi works there, and that the driver is new enough for this torch"
    else:
        fix = "request one GPU per rank: --gpus-per-node=1"
    # A job that requested no GPU may be meant for the CPU.
    return Problem(text, fix, "failed" if elsewhere or software["visible"] else "note")


def _gpus(observed: Observations, passed: dict[int, Facts]) -> str:
    models = Counter(facts["gpu"] for facts in passed.values() if "gpu" in facts)
    return (
        ", ".join(f"{count} × {model}, one per rank" for model, count in models.items()) or "none: CPU only"
    )


def _extensions(observed: Observations, passed: dict[int, Facts]) -> str:
    built = {rank for rank, facts in passed.items() if facts["extension"]}
    return f"sage._C on {observed.where(built)}" if built else "not built: the operations run in pure PyTorch"


SOFTWARE = [
    Check("versions", "software", _version, _same_versions),
    Check("csrc", "software", lambda observed, rank, facts: None, _extensions),
]

FOLDER = Check("runs folder", "folder", _folder, _folders)

GPUS = Check("GPUs", "torch", _gpu, _gpus)
