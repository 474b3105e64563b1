"""What "fast" is measured and made with.

Reading order: `paired` (two ways of the same work, timed side by side), `peak` (what the machine can do at most),
`references` (other libraries' networks), `case` (`jingdu bench`), `fold` (batch norms into convolutions), `inference`
(`jingdu.optimize_for_inference`), `decoding` (`jingdu.optimize_for_decoding`). Importing this package imports no torch.
"""
