"""Reads and writes all files that SAGE keeps on disk.

Files are written atomically: under a temporary name, synced, then renamed. Content is validated against the
schema of its kind when it is read. A file that cannot be used raises `Unreadable`, with a one-line message
that names the file, the fault and the remedy. docs/reference/records.md lists the kinds and their formats.
"""

from sage.storage.errors import Damaged as Damaged
from sage.storage.errors import NotWritten as NotWritten
from sage.storage.errors import OtherVersion as OtherVersion
from sage.storage.errors import Unreadable as Unreadable
from sage.storage.kinds import CHECKPOINT as CHECKPOINT
from sage.storage.kinds import CONFIG as CONFIG
from sage.storage.kinds import FAILURE as FAILURE
from sage.storage.kinds import MANIFEST as MANIFEST
from sage.storage.kinds import METRICS as METRICS
from sage.storage.kinds import NO_RUNS as NO_RUNS
from sage.storage.kinds import OWN as OWN
from sage.storage.kinds import RERUN as RERUN
from sage.storage.kinds import RESULT as RESULT
from sage.storage.kinds import SHARED as SHARED
from sage.storage.kinds import TOKENS as TOKENS
from sage.storage.kinds import TRACE as TRACE
from sage.storage.kinds import VOCABULARY as VOCABULARY
from sage.storage.private import check_private as check_private
from sage.storage.private import read_private as read_private
from sage.storage.read import checked as checked
from sage.storage.read import is_there as is_there
from sage.storage.read import open_regular as open_regular
from sage.storage.read import parse_json as parse_json
from sage.storage.read import read_bytes as read_bytes
from sage.storage.read import read_json as read_json
from sage.storage.read import read_json_lines as read_json_lines
from sage.storage.read import read_text as read_text
from sage.storage.read import read_toml as read_toml
from sage.storage.read import what_it_is as what_it_is
from sage.storage.schema import Kind as Kind
from sage.storage.tensors import read_tensors as read_tensors
from sage.storage.tensors import write_tensors as write_tensors
from sage.storage.write import Lines as Lines
from sage.storage.write import append_json_lines as append_json_lines
from sage.storage.write import check_writable as check_writable
from sage.storage.write import json_text as json_text
from sage.storage.write import remove as remove
from sage.storage.write import sync_folder as sync_folder
from sage.storage.write import write_bytes as write_bytes
from sage.storage.write import write_csv as write_csv
from sage.storage.write import write_first as write_first
from sage.storage.write import write_json as write_json
from sage.storage.write import write_text as write_text
from sage.storage.write import writing as writing
