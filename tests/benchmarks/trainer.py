"""What one would write instead: a Hugging Face Trainer whose loss asks the teacher in every step.

``--pad max`` pads every text to the limit, as notebooks do; ``--pad longest`` pads to the longest
of a batch and groups texts by length. Prints one line of JSON.
"""

import argparse
import json
import tempfile
import time

import torch
from datasets import load_dataset
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


class Distillation(Trainer):
    teacher = None

    def compute_loss(self, model, inputs, return_outputs=False, **rest):
        answer = model(**inputs)
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            soft = self.teacher(**asked).logits
        divergence = functional.kl_div(
            functional.log_softmax(answer.logits / 2, dim=-1),
            functional.softmax(soft / 2, dim=-1),
            reduction="batchmean",
        )
        loss = 0.5 * answer.loss + 0.5 * 4 * divergence
        return (loss, answer) if return_outputs else loss


def main():
    parser = argparse.ArgumentParser()
    for name in ("teacher", "student", "train"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pad", choices=["max", "longest"], required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(options.student)
    rows = load_dataset("parquet", data_files=options.train, split="train")
    rows = rows.shuffle(seed=0).select(range(options.rows))
    padding = "max_length" if options.pad == "max" else False
    rows = rows.map(
        lambda some: tokenizer(
            some["text"], truncation=True, max_length=options.max_length, padding=padding
        ),
        batched=True,
        remove_columns=[name for name in rows.column_names if name != "label"],
        load_from_cache_file=False,
    )
    load = AutoModelForSequenceClassification.from_pretrained
    settings = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        learning_rate=2e-5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=options.device == "cpu",
        logging_steps=10**6,
        **({"train_sampling_strategy": "group_by_length"} if options.pad == "longest" else {}),
    )
    trainer = Distillation(
        model=load(options.student),
        args=settings,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.teacher = load(options.teacher).eval().requires_grad_(False).to(options.device)
    started = time.perf_counter()
    trainer.train()
    print(json.dumps({"train_s": time.perf_counter() - started, "rows": len(rows)}))


if __name__ == "__main__":
    main()
