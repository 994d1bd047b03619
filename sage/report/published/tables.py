"""Published tables: a source with its tables, figures, and what their dimensionless groups follow from."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from sage.predict.dimensionless import Groups, groups
from sage.validate import Range

Status = Literal["verified", "second-hand", "recalled"]
"""`verified`: read in the primary text, code or log, or computed from it; `second-hand`: read in a text about
it; `recalled`: from memory. Figures that are not verified are printed only with this word next to them."""

Ours = Literal["final", "best", "seconds", "step_seconds", "density", "payload_bytes", "wire_bytes"]
"""The figure of a run of SAGE with the same meaning as a published one."""

Positive = Annotated[float, Range(0, open="(")]
Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published figure."""

    table: str
    method: str
    metric: str
    value: float
    high: float | None = None
    """The upper end where the source gives a range; `value` is the lower end."""
    bound: Literal["", ">", "<", "≈", "up to"] = ""
    unit: str = ""
    baseline: str | None = None
    """The method of another row of this table with the same metric."""
    reducer: str | None = None
    """The reducer of SAGE that implements the method; None if none does."""
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of a run's configuration that belong to the method, such as the batch size."""
    ours: Ours | None = None
    source: str
    status: Status
    note: str = ""
    ratio: float | None = None
    """`value` divided by the baseline's; None without a baseline, and where either of them is a range."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Table, metric and method, which identify the row."""
        return self.table, self.metric, self.method

    @property
    def spec(self) -> str:
        """The reducer with its options and settings as text; "" if there is none."""
        words = [f"{name}={value}" for name, value in {**self.options, **self.settings}.items()]
        return " ".join([self.reducer, *words]) if self.reducer else ""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A set-up whose dimensionless groups follow from published figures."""

    table: str
    method: str
    world_size: Count
    dense_bytes: Positive
    """Bytes of the baseline's gradient, S0."""
    bits_per_second: Positive
    backward_seconds: Positive
    encode_decode_seconds: Positive | None = None
    received_bytes: Positive | None = None
    """Bytes per step that a rank receives under this method."""
    latency_seconds: Positive | None = None
    num_buckets: Count | None = None
    source: str
    status: Status

    @property
    def groups(self) -> Groups:
        """The dimensionless groups."""
        return groups(
            world_size=self.world_size,
            dense_bytes=self.dense_bytes,
            bits_per_second=self.bits_per_second,
            backward_seconds=self.backward_seconds,
            encode_decode_seconds=self.encode_decode_seconds,
            received_bytes=self.received_bytes,
            latency_seconds=self.latency_seconds,
            num_buckets=self.num_buckets,
        )


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A published table: its title, its setting and its rows."""

    name: str
    title: str
    workloads: tuple[str, ...] = ()
    """The workloads of SAGE that redo it; those after the first are its reduced forms."""
    model: str = ""
    data: str = ""
    nodes: str = ""
    gpus: str = ""
    link: str = ""
    batch: str = ""
    epochs: str = ""
    lr: str = ""
    note: str = ""
    rows: tuple[Row, ...] = ()
    scales: tuple[Scale, ...] = ()

    @property
    def setting(self) -> str:
        """The setting in one line."""
        names = ("model", "data", "nodes", "gpus", "link", "batch", "epochs", "lr")
        return "; ".join(f"{name} {value}" for name in names if (value := getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of published figures, such as a paper with its repository."""

    name: str
    """The stem of its file."""
    title: str
    authors: str = ""
    year: int | None = None
    where: str
    url: str = ""
    repository: str = ""
    commit: str = ""
    note: str = ""
    tables: tuple[PublishedTable, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for table in self.tables for row in table.rows]

    def verified(self) -> "Source":
        """This source with its verified figures only, and without the tables that have none of those."""
        tables = [
            replace(
                table,
                rows=tuple(row for row in table.rows if row.status == "verified"),
                scales=tuple(scale for scale in table.scales if scale.status == "verified"),
            )
            for table in self.tables
            if not table.rows or any(row.status == "verified" for row in table.rows)
        ]
        return replace(self, tables=tuple(tables))


def with_ratios(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with their ratios to their baselines, which must be among them."""
    known = {row.key: row for row in rows}
    return [
        row if row.baseline is None else replace(row, ratio=_ratio(row, known[*row.key[:2], row.baseline]))
        for row in known.values()
    ]


def _ratio(row: Row, base: Row) -> float | None:
    return row.value / base.value if row.high is None and base.high is None and base.value else None
