"""`sage data`: list data sets, and prepare one."""

from .group import Group

command = Group(
    "data",
    {
        "list": (".data_list", "List the data sets."),
        "prepare": (".data_prepare", "Download a data set, and check and convert its files."),
    },
    help="List the data sets, or prepare one.",
)
