"""GRU against torch.nn.GRU with the same weights: python -m benchmarks.gru."""

from torch import nn

from benchmarks.paired import save
from benchmarks.rnn import cases

if __name__ == "__main__":
    variant = "gru_cell_100_128"
    rows = cases(variant, nn.GRU, rounds=14) + cases(variant, nn.GRU, rounds=8, hidden=1024, scan=False)
    save(rows, "gru.json")
