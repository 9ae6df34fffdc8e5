"""Sizes of MOP on T5-pegasus base: the bank of the paper and its ablations, in both readings."""

BACKBONE = 275_029_248
# MOP, w/o LoRL, w/o LoRE, w/o both, w/o low-rank
ABLATIONS = [
    {},
    {"share_lorl": False},
    {"share_lore": False},
    {"share_lorl": False, "share_lore": False},
    {"rule": "full"},
]
# (reading, terms_down, terms_up): parameters of the bank at rank 1 with X', and trained per cent of the backbone, for
# each of ABLATIONS
SIZES_OF_MOP = {
    ("A", 16, 8): (1_900_416, 2.5140, 2.5217, 2.5207, 2.5284, 2.5135),
    ("A", 8, 8): (2_265_792, 2.6468, 2.6507, 2.6502, 2.6540, 2.6462),
    ("A", 4, 4): (4_475_184, 3.4502, 3.4511, 3.4510, 3.4520, 3.4499),
    ("B", 8, 8): (167_936, 1.8841, 1.9045, 1.9131, 1.9336, 1.8883),
    ("B", 16, 8): (382_976, 1.9622, 1.9827, 1.9913, 2.0118, 1.9643),
    ("B", 16, 16): (813_056, 2.1186, 2.1391, 2.1477, 2.1681, 2.1162),
    ("B", 32, 32): (5_974_016, 3.9951, 4.0156, 4.0242, 4.0446, 3.9894),
}
