"""On sizes, on the host: triton's own cdiv and next_power_of_2 cost a call some microseconds each."""


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def power_of_2(size: int) -> int:
    """The least power of two that is not below `size`; 1 for 0."""
    return 1 << max(0, size - 1).bit_length()
