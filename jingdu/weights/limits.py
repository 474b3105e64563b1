"""The numbers that bound what weights may cost before they are believed."""

DEADLINE = 15.0
"""Seconds without progress after which a server is given up."""
PROGRESS_BYTES = 64 << 10
"""Bytes that count as progress: a server that trickles less in `DEADLINE` seconds is given up."""
ATTEMPTS = 3
"""Connections that may be cut, each after some progress, before a download stops (it can be resumed)."""
JSON_BYTES = 32 << 20
"""Largest config.json or index of shards."""
HEADER_BYTES = 25_000_000
"""Largest header of a safetensors file (the hub's own limit)."""
PICKLE_BYTES = 4 << 20
"""Largest pickle stream beside the tensors of a .pth file; 10,000 tensors need about 2 MB."""
PICKLE_OPCODES = 500_000
"""Most instructions in that stream; a tensor takes about 40. Each can make an object of some 200 bytes."""
DIRECTORY_BYTES = 4 << 20
"""Largest central directory of a .pth archive: about 90,000 entries."""
