"""Whether ranks can be divided into replicas of a number of shards."""


def check_ranks(shards: int, world_size: int) -> None:
    """Refuse a number of shards that does not divide the number of ranks.

    Raises:
        ValueError: The shards do not divide the ranks.
    """
    if world_size % shards:
        allowed = ", ".join(str(count) for count in range(1, world_size + 1) if world_size % count == 0)
        raise ValueError(
            f"shards is {shards}, but {world_size} ranks cannot be divided into replicas of {shards} ranks: "
            f"allowed are {allowed}"
        )
