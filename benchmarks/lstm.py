"""LSTM against torch.nn.LSTM with the same weights: python -m benchmarks.lstm."""

from torch import nn

from benchmarks.paired import save
from benchmarks.rnn import cases

if __name__ == "__main__":
    variant = "lstm_cell_100_128"
    rows = cases(variant, nn.LSTM, rounds=14) + cases(variant, nn.LSTM, rounds=8, hidden=1024, scan=False)
    save(rows, "lstm.json")
