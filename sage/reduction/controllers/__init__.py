"""Controllers: rules that set a sparsifier's threshold so that the density stays near its target."""

from .base import Agree as Agree
from .base import Controller as Controller
from .base import local_only as local_only
from .base import signal_dtype as signal_dtype
from .feedback import Feedback as Feedback
from .published import Published as Published
from .quantile import Quantile as Quantile
from .table import CONTROLLERS as CONTROLLERS
