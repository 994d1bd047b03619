"""The configuration of a run: its fields, its TOML files and the options of its parts."""

from .field_types import NOT_HASHED as NOT_HASHED
from .field_types import Count as Count
from .field_types import Option as Option
from .field_types import Options as Options
from .files import load as load
from .files import workloads as workloads
from .local_presets import with_preset as with_preset
from .local_updates import is_streaming as is_streaming
from .optimization import EXCHANGING as EXCHANGING
from .options import part_options as part_options
from .options import recorded as recorded
from .options import resolve as resolve
from .reference import DENSE as DENSE
from .reference import REFERENCES as REFERENCES
from .reference import is_local as is_local
from .reference import is_overlapped as is_overlapped
from .reference import is_reference as is_reference
from .reference import reduces_gradients as reduces_gradients
from .run_config import Config as Config
from .run_config import annotations as annotations
from .shards import check_ranks as check_ranks
from .shards import neighbours as neighbours
