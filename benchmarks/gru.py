"""GRU against torch.nn.GRU with the same weights: python -m benchmarks.gru."""

from torch import nn

from benchmarks.paired import save
from benchmarks.rnn import cases

if __name__ == "__main__":
    save(cases("gru_cell_100_128", nn.GRU, rounds=12), "gru.json")
