"""The trackers of `sage run --track`: one file each, as `sage.records.tracking` describes them."""
