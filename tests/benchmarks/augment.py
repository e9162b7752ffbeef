"""How many variants a second `Synonym` makes, beside nlpaug's own, on one core, in one run.

    NLTK_DATA=… python -m tests.benchmarks.augment            (about 3 minutes)

Needs WordNet. The stock augmenter is given the tokenizer and the stopwords that keep tweets whole;
it is warm, and its tagger is loaded. Then the whole of a data set, four variants a row, on all
cores, as a run makes it; and the same again, read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from kd.data.synonyms import Synonym
from kd.data.variants import Augmentation, make_variants
from kd.types import Row
from tests.benchmarks.speed import LABELS, tweets

VARIANTS = 4
KEPT = r"^(@\w+|#\w+|https?://\S+|not|no|never|\w+n't)$"


def stock(texts: list[str]) -> float:
    """Return the variants a second of nlpaug's augmenter."""
    from nlpaug.augmenter.word import SynonymAug

    augmenter = SynonymAug(
        tokenizer=str.split, reverse_tokenizer=" ".join, aug_p=0.2, stopwords_regex=KEPT
    )
    augmenter.augment(texts[0])
    started = time.perf_counter()
    for text in texts:
        augmenter.augment(text)
    return len(texts) / (time.perf_counter() - started)


def ours(texts: list[str], variants: int, processes: int | None = 1) -> dict[str, float]:
    """Return how many variants of texts a run makes, and how fast it makes and reads them."""
    rows = [Row(i, text, i % len(LABELS)) for i, text in enumerate(texts)]
    plan = Augmentation([Synonym(0.2)], variants=variants, processes=processes)
    plan.augmenters[0].prepare()
    make_variants([Row(0, "a good film", 0)], plan, LABELS)
    with tempfile.TemporaryDirectory() as folder:
        made, again = (make_variants(rows, plan, LABELS, folder=Path(folder)) for _ in range(2))
    assert again.is_known
    assert again.rows == made.rows
    return {
        "rows": len(rows), "variants": made.made, "kept": len(made.rows),
        "seconds": round(made.seconds, 1), "seconds_read": round(again.seconds, 1),
        "variants_per_second": round(made.made / made.seconds),
    }  # fmt: skip


def main() -> None:
    """Print a line of JSON for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=45_585)
    rows = parser.parse_args().rows
    texts = tweets(rows)[0]["text"].tolist()
    few = texts[: min(rows, 5000)]
    theirs = stock(few[:1000])
    print(json.dumps({"nlpaug": {"variants_per_second": round(theirs)}}))
    for variants in (1, VARIANTS):
        found = ours(few, variants)
        found["ratio"] = round(found["variants_per_second"] / theirs, 1)
        print(json.dumps({f"kd, {variants} a row, 1 process": found}))
    print(json.dumps({f"kd, {VARIANTS} a row, all cores": ours(texts, VARIANTS, processes=None)}))


if __name__ == "__main__":
    main()
