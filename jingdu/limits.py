"""Every limit that protects a user, in one place; `jingdu doctor` prints them."""

MAX_PIXELS = 50_000_000
"""Pixels of an image, width x height, checked on its header before it is decoded (and after enlarging it).

Pillow holds 4 bytes a pixel and needs two copies to convert one: 400 MB at the limit.
"""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are decoded, by content and not by name. The fewer decoders, the fewer holes."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""File names, in lower case, that count as images when a folder is searched."""
DECODE_THREADS = 4
"""Threads that decode images, at most; fewer where there are fewer processors."""
HUB_SECONDS = 15.0
"""Time within which a hub must have begun to answer, and after which a server without progress is given up."""
PROGRESS_BYTES = 64 << 10
"""Bytes that count as progress: a server that trickles less in `HUB_SECONDS` is given up."""
ATTEMPTS = 3
"""Connections that may be cut, each after some progress, before a download stops (it can be resumed)."""
JSON_BYTES = 16 << 20
"""Largest config.json or index of shards; an index has some 100 bytes a tensor."""
HEADER_BYTES = 25_000_000
"""Largest header of a safetensors file (the hub's own limit)."""
PICKLE_BYTES = 4 << 20
"""Largest pickle stream beside the tensors of a .pth file; 10,000 tensors need about 2 MB."""
PICKLE_OPCODES = 500_000
"""Most instructions in that stream; a tensor takes about 40. Each can make an object of some 200 bytes."""
LARGE_NUMBERS = 1000
"""Most numbers of more than 60 bits in it; a seed is one."""
DIRECTORY_BYTES = 4 << 20
"""Largest central directory of a .pth archive: about 90,000 entries."""
GROUP_SECONDS = 60.0
"""Time after which processes that train together give up on one that does not answer."""
SAVE_SECONDS = 1800.0
"""Time that they give the first one to write a checkpoint."""
FREE_SPACE = 1.2
"""Room on the disk before a checkpoint is written, times its size."""
MANIFEST_BYTES = 4 << 20
"""Largest manifest of a checkpoint that is read."""
PARITY_BYTES = 4 << 20
"""Largest input of a network that a checkpoint keeps, to compare outputs when its weights are loaded."""
PARITY_VALUES = 64
"""Values of each output that are kept and compared."""
PARITY_INSIDE = 16
"""The same, of each layer inside the network."""
PARITY_TOLERANCE = 2e-3
"""Largest difference of one, over the largest value of the output: TF32 has 1e-3."""
MEMORY_SHARE = 0.8
"""How much of the free memory a smaller batch is tried with after memory ran out."""
TROUBLE_KEPT = 2
"""Steps that failed, and are kept to be done again, of a run."""
