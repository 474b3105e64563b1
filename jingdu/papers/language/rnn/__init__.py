"""Finding Structure in Time. Elman. 1990. https://doi.org/10.1207/s15516709cog1402_1

Reading order: `generation` (one token after the other: the contract and the loop).
"""

from .generation import Choose, Generator, State, generate, greedy, sample

__all__ = ["Choose", "Generator", "State", "generate", "greedy", "sample"]
