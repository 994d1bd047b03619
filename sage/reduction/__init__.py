"""How gradients are reduced. A reducer's author imports everything from here.

- Contract (`reducer`, `layout`): `Reducer`, `Reduced`, `AllReduce`, `Memory`, `Layout`, `Span`
- Communication and helpers: `Wire`, `ops` (fused operations), `generator` and `seed_at` (seeded random
  numbers), `phase` (timing), `add` (sum of rows in a fixed order)
- Sparsifiers (`reducer`, `exclusive`, `exchange`): `Sparsifier`, `SparsifierOptions`, `check_fraction`,
  `ExclusiveSparsifier`, `Exclusive`, `mean_at`, `mean_of`, `exchange`
- Density and thresholds (`density_schedule`, `controllers`, `first_threshold`): `density_schedule`,
  `CONTROLLERS`, `Published`, `Agree`, `local_only`, `signal_dtype`, `Start`, `check_start`,
  `common_quantile`, `dutta_threshold`, `estimated_quantile`
- Quantisers (`quantise`, `sign_quantiser`, `two_way`): `Quantiser`, `FusedQuantiser`, `LevelQuantiser`,
  `SignQuantiser`, `RandomQuantiser`, `RoundingOptions`, `Parts`, `gather_parts`, `keep_error`, `per_group`,
  `counts_of`, `reduce_two_way`, `payload_two_way`
- Formats of codes (`ops`): `elias`
- Transforms before a quantiser (`transform`): `Transform`
- Selection in chunks (`chunks`): `Chunks`, `pack_positions`, `unpack_positions`
- A setting for each layer (`allocated`): `Allocated`, `AllocationOptions`, `ALLOCATION`, `Setting`,
  `uniform_first`
- Low-rank methods (`lowrank`, `randomised_svd`): `Matrices`, `Matrix`, `by_shape`, `orthonormalise`,
  `randomised_svd`, `tail_energy`, `unflatten`, `in_float32`, `check_rank`, `check_min_rate`

`error_feedback` applies the residual around a reducer, and `hybrid` composes a sparsifier and a quantiser; a
reducer needs neither.
"""

from sage import ops as ops
from sage.comm.packing import add as add
from sage.comm.wire import Wire as Wire
from sage.ops import elias as elias
from sage.ops import keep_error as keep_error
from sage.rng import generator as generator
from sage.rng import seed_at as seed_at
from sage.timing import phase as phase

from . import density_schedule as density_schedule
from . import exchange as exchange
from .allocated import ALLOCATION as ALLOCATION
from .allocated import Allocated as Allocated
from .allocated import AllocationOptions as AllocationOptions
from .allocated import Setting as Setting
from .allocated import uniform_first as uniform_first
from .chunks import Chunks as Chunks
from .chunks import pack_positions as pack_positions
from .chunks import unpack_positions as unpack_positions
from .controllers import CONTROLLERS as CONTROLLERS
from .controllers import Agree as Agree
from .controllers import Published as Published
from .controllers import local_only as local_only
from .controllers import signal_dtype as signal_dtype
from .exchange import Exclusive as Exclusive
from .exchange import mean_at as mean_at
from .exchange import mean_of as mean_of
from .exclusive import ExclusiveSparsifier as ExclusiveSparsifier
from .first_threshold import Start as Start
from .first_threshold import check_start as check_start
from .first_threshold import common_quantile as common_quantile
from .first_threshold import dutta_threshold as dutta_threshold
from .first_threshold import estimated_quantile as estimated_quantile
from .layout import Layout as Layout
from .layout import Span as Span
from .lowrank import Matrices as Matrices
from .lowrank import Matrix as Matrix
from .lowrank import by_shape as by_shape
from .lowrank import check_min_rate as check_min_rate
from .lowrank import check_rank as check_rank
from .lowrank import in_float32 as in_float32
from .lowrank import orthonormalise as orthonormalise
from .lowrank import tail_energy as tail_energy
from .lowrank import unflatten as unflatten
from .quantise import FusedQuantiser as FusedQuantiser
from .quantise import LevelQuantiser as LevelQuantiser
from .quantise import Parts as Parts
from .quantise import Quantiser as Quantiser
from .quantise import RandomQuantiser as RandomQuantiser
from .quantise import RoundingOptions as RoundingOptions
from .quantise import counts_of as counts_of
from .quantise import gather_parts as gather_parts
from .quantise import per_group as per_group
from .randomised_svd import randomised_svd as randomised_svd
from .reducer import AllReduce as AllReduce
from .reducer import Memory as Memory
from .reducer import Reduced as Reduced
from .reducer import Reducer as Reducer
from .reducer import Sparsifier as Sparsifier
from .reducer import SparsifierOptions as SparsifierOptions
from .reducer import check_fraction as check_fraction
from .sign_quantiser import SignQuantiser as SignQuantiser
from .transform import Transform as Transform
from .two_way import payload_two_way as payload_two_way
from .two_way import reduce_two_way as reduce_two_way
