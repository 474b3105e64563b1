"""How close translations are to a reference: BLEU and chrF, as sacrebleu has them (extra `text`)."""

from collections.abc import Sequence

from jingdu.errors import Refused, need_extra

__all__ = ["TranslationScores"]


class TranslationScores:
    """Corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015), both from 0 to 100, over all that it was shown.

    Texts are cut into words as sacrebleu does by default (13a), or as `tokenize` says ("zh", "ja-mecab", "char");
    chrF looks at characters and needs no words.
    """

    def __init__(self, tokenize: str | None = None):
        self.tokenize = tokenize
        self.reset()

    def reset(self) -> None:
        """Forget all texts."""
        self.hypotheses: list[str] = []
        self.references: list[str] = []

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Take translations into account, with one reference for each."""
        if len(hypotheses) != len(references):
            raise ValueError(f"{len(hypotheses)} translations and {len(references)} references")
        self.hypotheses += hypotheses
        self.references += references

    def compute(self) -> dict[str, float]:
        """bleu and chrf; then forgets. Raises Refused where there was nothing, Missing without sacrebleu."""
        try:
            from sacrebleu.metrics import BLEU, CHRF
        except ImportError:
            raise need_extra("sacrebleu", "text", "BLEU and chrF") from None
        if not self.hypotheses:
            raise Refused("nothing to evaluate: there are no translations")
        found = {
            "bleu": BLEU(tokenize=self.tokenize).corpus_score(self.hypotheses, [self.references]).score,
            "chrf": CHRF().corpus_score(self.hypotheses, [self.references]).score,
        }
        self.reset()
        return found
