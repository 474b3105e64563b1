"""Speed against references: each paper's module of this folder runs ours and theirs in one paired run (`paired`)."""
