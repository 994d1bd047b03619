"""Plans: clusters that do not exist, read strictly."""

import re
from pathlib import Path

import pytest
from made_up_calibration import calibration

from sage.predict.collectives import NCCL_INTRA, NCCL_NETWORK, NCCL_NOTE
from sage.predict.plan import of_flags, read
from sage.predict.prediction import make

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "predict.md"

FULL = """
[[cluster]]
name = "planned"
nodes = [2, 1250]
gpus_per_node = 8
bits_per_second = [1e10, 4e11]
latency_seconds = 2e-5
intra_bits_per_second = 2e12
intra_latency_seconds = 1e-6
collectives = "hierarchical"
speedup = 3.5
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_each_number_of_nodes_is_a_setup_with_the_ranks_of_its_gpus(tmp_path: Path) -> None:
    found = read(written(tmp_path, FULL))
    assert [(each.ranks, each.ranks_per_node) for each in found] == [(16, 8), (10_000, 8)]
    assert {each.speedup for each in found} == {3.5}
    link = found[0].link
    assert link.bytes_per_second == (1.25e9, 5e10)
    assert (link.latency, link.intra_latency, link.intra_bytes_per_second) == (2e-5, 1e-6, 2.5e11)
    assert (link.layout, found[0].name, found[0].notes) == ("hierarchical", "planned", ())


def test_a_latency_that_is_not_given_is_nccls_and_has_a_note(tmp_path: Path) -> None:
    found = read(written(tmp_path, "[[cluster]]\nnodes = 4\nbits_per_second = 1e10\n"))
    assert (found[0].link.latency, found[0].notes, found[0].name) == (
        NCCL_NETWORK,
        (NCCL_NOTE,),
        "cluster 1",
    )
    two = "[[cluster]]\nnodes = 4\ngpus_per_node = 2\nbits_per_second = 1e10\nlatency_seconds = 1e-5\n"
    (within,) = read(written(tmp_path, two + 'intra_bits_per_second = 1e12\nintra = "pci"\n'))
    assert (within.link.intra_latency, within.notes) == (NCCL_INTRA["pci"], (NCCL_NOTE,))


def test_the_prediction_of_a_plan_names_its_clusters_and_its_assumptions(tmp_path: Path) -> None:
    plan = "[[cluster]]\nname = 'a'\nnodes = [2, 2500]\ngpus_per_node = 4\nbits_per_second = [1e10]\n"
    found = make(calibration(), read(written(tmp_path, plan + "intra_bits_per_second = 1e12\n")), None)
    assert {(row.cluster, row.ranks, row.is_model) for row in found.rows} == {
        ("a", 8, False),
        ("a", 10_000, True),
    }
    assert all(NCCL_NOTE in row.notes for row in found.rows)


def test_a_hierarchy_sends_less_through_the_network_than_a_gather_over_all_ranks(tmp_path: Path) -> None:
    layouts = {}
    for layout in ("flat", "hierarchical"):
        text = FULL.replace('"hierarchical"', f'"{layout}"').replace("[2, 1250]", "16")
        rows = make(calibration(), read(written(tmp_path, text)), None).rows
        layouts[layout] = {
            row.label: row.communication_seconds for row in rows if row.bits_per_second == 1e10
        }
    gathered = "topk(density=0.01) × whole"
    assert layouts["hierarchical"][gathered] < layouts["flat"][gathered]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cluster.toml has no cluster; allowed are tables written as [[cluster]]"),
        ("cluster = 3\n", "has no cluster"),
        (
            "[[clusters]]\nnodes = 2\n",
            "no key (in cluster.toml) is called 'clusters'; did you mean 'cluster'?",
        ),
        ("[[cluster]]\nnode = 2\n", "no key (in cluster.toml, cluster 1) is called 'node'; did you mean"),
        ("[[cluster]]\nnodes = 2\n", "bits_per_second (in cluster.toml, cluster 1) is missing"),
        ("[[cluster]]\nbits_per_second = 1e9\n", "nodes (in cluster.toml, cluster 1) is missing"),
        ("[[cluster]]\nnodes = []\nbits_per_second = 1e9\n", "nodes (in cluster.toml, cluster 1) is missing"),
        (
            "[[cluster]]\nnodes = 0\nbits_per_second = 1e9\n",
            "nodes (in cluster.toml, cluster 1) is 0; allowed",
        ),
        ("[[cluster]]\nnodes = 2.5\nbits_per_second = 1e9\n", "is 2.5; allowed is a whole number"),
        (
            "[[cluster]]\nnodes = 2\nbits_per_second = '1 Gbit'\n",
            "bits_per_second (in cluster.toml, cluster 1) is",
        ),
        (
            "[[cluster]]\nnodes = 2\nbits_per_second = 1e9\nlatency_seconds = -1\n",
            "allowed is a number in [0, 10]",
        ),
        ("[[cluster]]\nnodes = 2\nbits_per_second = 1e9\nintra = 'ib'\n", "one of 'nvlink', 'pci'"),
        ("[[cluster]]\nnodes = 2\nbits_per_second = 1e9\ngpus_per_node = 2\n", "intra_bits_per_second (in"),
        (
            "[[cluster]]\nnodes = 2000\nbits_per_second = 1e9\ngpus_per_node = 8\n"
            "intra_bits_per_second = 1e12\n",
            "is 16000; allowed are up to 10000 ranks",
        ),
        (f"[[cluster]]\nnodes = {list(range(1, 202))}\nbits_per_second = 1e9\n", "has 201 combinations"),
        ("[[cluster]\n", "is not valid TOML"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match="cluster.toml") as error:
        read(written(tmp_path, text))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file .*; --plan needs a TOML file"):
        read(tmp_path / "nowhere.toml")


def test_flags_are_checked_as_a_plan_is() -> None:
    found = of_flags((2, 4), (1e9, 1e10), burst=None, latency=None, ranks_per_node=2)
    assert [each.ranks for each in found] == [2, 4]
    assert found[0].link.bytes_per_second == (1.25e8, 1.25e9)
    assert of_flags((2,), (), burst=None, latency=1e-5, ranks_per_node=1)[0].link.bytes_per_second is None
    for ranks, bits, burst, latency, per_node, says in (
        ((0,), (), None, None, 1, "--world-size"),
        ((10_001,), (), None, None, 1, "--world-size"),
        ((2,), (0.0,), None, None, 1, "--bandwidth"),
        ((2,), (1e9,), -1.0, None, 1, "--burst"),
        ((2,), (), 1e5, None, 1, "--burst .* add --bandwidth"),
        ((2,), (), None, -1.0, 1, "--latency"),
        ((2,), (), None, None, 0, "--ranks-per-node"),
    ):
        with pytest.raises(ValueError, match=says):
            of_flags(ranks, bits, burst=burst, latency=latency, ranks_per_node=per_node)


def test_the_example_of_the_documentation_is_a_plan(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert max(each.ranks for each in read(written(tmp_path, text))) == 10_000
