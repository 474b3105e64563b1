"""LSTM against torch.nn.LSTM with the same weights: python -m benchmarks.lstm."""

from torch import nn

from benchmarks.paired import save
from benchmarks.rnn import cases

if __name__ == "__main__":
    save(cases("lstm_cell_100_128", nn.LSTM, rounds=12), "lstm.json")
