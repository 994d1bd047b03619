"""Finds parts by name and reads their options."""

from .composition import reducers_in as reducers_in
from .parts import ALIASES as ALIASES
from .parts import EXPORTS as EXPORTS
from .parts import KINDS as KINDS
from .parts import check_name as check_name
from .parts import check_options as check_options
from .parts import hashed_options as hashed_options
from .parts import identity as identity
from .parts import is_file as is_file
from .parts import load as load
from .parts import located as located
from .parts import names as names
from .parts import options_of as options_of
from .parts import recorded_options as recorded_options
from .parts import short as short
from .parts import summary as summary
from .signature import ALLOCATION_OPTIONS as ALLOCATION_OPTIONS
from .signature import FACTS as FACTS
from .signature import Option as Option
from .signature import PartKind as PartKind
from .signature import composed_options as composed_options
from .signature import options as options
from .signature import served_options as served_options
from .workloads import workloads as workloads
