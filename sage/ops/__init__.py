"""The operations on which reducers spend their time: accumulate, select, compact, scatter, pack.

Every op compares magnitudes as the integer bits of |x|. For floats these have the order of the values, all
zeros are equal, and NaN is the largest, so that NaN is selected and sent instead of staying in the residual.
Of equal magnitudes the lower index is selected first, so results are bitwise identical everywhere.

Each op runs natively if the extension is built (`sage.ops.native`) and the vectors are contiguous float32,
and otherwise in plain torch (`sage.ops.reference` and `reference_*`), with the same result.
"""

from . import elias as elias
from . import native as native
from . import reference as reference
from .bins import decode_bins as decode_bins
from .bins import encode_bins as encode_bins
from .bins import take_near as take_near
from .casts import cast_share as cast_share
from .casts import sum_casts as sum_casts
from .casts import widen as widen
from .chunks import CHUNK_ROW as CHUNK_ROW
from .chunks import MOST_IN_CHUNK as MOST_IN_CHUNK
from .chunks import chunk_table as chunk_table
from .chunks import largest_of_chunks as largest_of_chunks
from .codecs import Codec as Codec
from .codecs import Coding as Coding
from .error import keep_error as keep_error
from .gather import draw_indices as draw_indices
from .gather import is_among as is_among
from .gather import union as union
from .gather import unite as unite
from .hadamard import HADAMARD_BLOCKS as HADAMARD_BLOCKS
from .hadamard import hadamard as hadamard
from .indices import decode_bitmap as decode_bitmap
from .indices import decode_gaps as decode_gaps
from .indices import decode_indices as decode_indices
from .indices import encode_bitmap as encode_bitmap
from .indices import encode_gaps as encode_gaps
from .indices import encode_indices as encode_indices
from .integers import average_integers as average_integers
from .integers import quantise_integers as quantise_integers
from .integers import sum_integers as sum_integers
from .levels import average as average
from .levels import quantise as quantise
from .levels import quantise_mean as quantise_mean
from .levels import quantise_to as quantise_to
from .microscales import decode_tensor_scales as decode_tensor_scales
from .microscales import encode_tensor_scales as encode_tensor_scales
from .microscales import largest_of_blocks as largest_of_blocks
from .moments import Excess as Excess
from .moments import Moments as Moments
from .moments import excess as excess
from .moments import moments as moments
from .moments import moments_above as moments_above
from .moments import sampled as sampled
from .packing import pack as pack
from .packing import unpack as unpack
from .philox import Positions as Positions
from .philox import random_bits as random_bits
from .product import thin_product as thin_product
from .product import write_product as write_product
from .reference import NUM_BINS as NUM_BINS
from .reference import magnitude_bits as magnitude_bits
from .reference_bins import Bins as Bins
from .reference_bins import layer_of as layer_of
from .reference_integers import bytes_of_sums as bytes_of_sums
from .reference_integers import pack_sums as pack_sums
from .scatter import clear as clear
from .scatter import scatter_mean as scatter_mean
from .select import accumulate as accumulate
from .select import count_above as count_above
from .select import least_magnitude as least_magnitude
from .select import magnitude as magnitude
from .select import rounded as rounded
from .select import select_above as select_above
from .select import select_top as select_top
from .select import take as take
from .select import take_above as take_above
from .select import take_above_each as take_above_each
from .select import take_at as take_at
from .select import take_top as take_top
from .select import threshold_in as threshold_in
from .signs import mean_signs as mean_signs
from .signs import momentum_signs as momentum_signs
from .signs import num_words as num_words
from .signs import sign_bits as sign_bits
from .signs import sign_bytes as sign_bytes
from .signs import sign_words as sign_words
from .sums import Kind as Kind
from .sums import bounds_of as bounds_of
from .sums import statistics as statistics
from .thresholds import histogram as histogram
from .thresholds import sample as sample
from .thresholds import threshold_from_histogram as threshold_from_histogram
from .thresholds import threshold_from_sample as threshold_from_sample
