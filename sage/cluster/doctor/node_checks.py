"""Checks of what is on the nodes: versions, the extension, the runs folder and GPUs."""

from collections import Counter

from sage.cluster.doctor.findings import Check, Complaint, Seen
from sage.cluster.doctor.node_facts import Facts


def _version(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    own, usual = _versions(seen, rank), _usual_versions(seen)
    if own["torch"] is None:
        return Complaint("torch is not installed in its Python", "install it there, or say which --python")
    differing = [
        f"{name} {version}, not {usual[name]}"
        for name, version in own.items()
        if version is not None and version != usual[name]
    ]
    fix = "have one environment and one checkout on a folder that all nodes share, or update this node's"
    return Complaint(", ".join(differing), fix) if differing else None


def _same_versions(seen: Seen, passing: dict[int, Facts]) -> str:
    return ", ".join(f"{name} {version}" for name, version in _usual_versions(seen).items() if version)


def _versions(seen: Seen, rank: int) -> dict[str, str | None]:
    """By name; what this rank cannot tell is None or left out."""
    facts = seen.facts[rank]
    found = {name: facts["software"][name] for name in ("python", "sage", "torch", "numpy")}
    loaded = facts.get("torch", {}).get("versions", {})
    found |= {"torch's build": loaded.get("torch"), "nccl": loaded.get("nccl"), "cuda": loaded.get("cuda")}
    return found | {"commit": (loaded.get("commit") or "")[:9] or None}


def _usual_versions(seen: Seen) -> dict[str, str | None]:
    """What most ranks have; rank 0's, where as many have another."""
    everybody = [_versions(seen, rank) for rank in seen.of("software")]
    usual: dict[str, str | None] = {}
    for name in everybody[0]:
        counts = Counter(found[name] for found in everybody if found[name] is not None)
        usual[name] = counts.most_common(1)[0][0] if counts else None
    return usual


def _folder(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    fix = "give a folder that all nodes share and may write to: --runs DIR"
    if "error" in facts:
        return Complaint(f"cannot write to {facts['path']}: {facts['error']}", fix)
    others = {other for other, found in seen.of("folder").items() if "error" not in found}
    if hidden := others - set(facts["seen"]):
        return Complaint(f"{facts['path']} is another one than on {seen.where(hidden)}", fix)
    return None


def _folders(seen: Seen, passing: dict[int, Facts]) -> str:
    return f"{', '.join({facts['path']: 0 for facts in passing.values()})} is writable, and the same on all"


def _gpu(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    if "error" in facts:
        return Complaint(f"torch does not load: {facts['error']}", "reinstall it in that Python")
    software = seen.facts[rank]["software"]
    if "uuid" in facts:
        beside = [
            other
            for other, found in seen.of("torch").items()
            if other != rank and found.get("uuid") == facts["uuid"] and seen.nodes[other] == seen.nodes[rank]
        ]
        said = f"rank {rank} has the same GPU as rank {beside[0]}" if beside else ""
        return (
            Complaint(said, "ask for one GPU a rank: --gpus-per-node=K --ntasks-per-node=K") if said else None
        )
    elsewhere = any("uuid" in found for found in seen.of("torch").values())
    if not (elsewhere or software["gpu_files"] or software["visible"]):
        return None
    visible = "not set" if software["visible"] is None else repr(software["visible"])
    said = f"torch sees no GPU: {software['gpu_files']} in /dev, CUDA_VISIBLE_DEVICES is {visible}"
    if facts["versions"]["cuda"] is None:
        fix = "this torch is built for CPUs only: install one built for CUDA"
    elif software["visible"]:
        fix = "does nvidia-smi work there, and is the driver new enough for this torch?"
    else:
        fix = "ask for one GPU a rank: --gpus-per-node=1"
    # A job that asked for none may well be meant for the CPU.
    return Complaint(said, fix, "failed" if elsewhere or software["visible"] else "note")


def _gpus(seen: Seen, passing: dict[int, Facts]) -> str:
    models = Counter(facts["gpu"] for facts in passing.values() if "gpu" in facts)
    return ", ".join(f"{count} × {model}, one a rank" for model, count in models.items()) or "none: CPU only"


def _extensions(seen: Seen, passing: dict[int, Facts]) -> str:
    built = {rank for rank, facts in passing.items() if facts["extension"]}
    return f"sage._C on {seen.where(built)}" if built else "not built: the operations run in plain torch"


SOFTWARE = [
    Check("versions", "software", _version, _same_versions),
    Check("csrc", "software", lambda seen, rank, facts: None, _extensions),
]

FOLDER = Check("runs folder", "folder", _folder, _folders)

GPUS = Check("GPUs", "torch", _gpu, _gpus)
