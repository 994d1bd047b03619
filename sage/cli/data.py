"""`sage data`: list data sets, and prepare one."""

from .group import Group

command = Group(
    "data",
    {"list": ".data_list", "prepare": ".data_prepare"},
    help="List the data sets, or prepare one.",
)
