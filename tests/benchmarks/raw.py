"""The limit: distillation in raw PyTorch that does only what cannot be left out.

One teacher pass over the texts, sorted by length, in bfloat16; then epochs of the student over
batches of like length, cut from lists in memory. Prints one line of JSON.
"""

import argparse
import json
import random
import time

import pandas as pd
import torch
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
    set_seed,
)


def cut(lengths, size, shuffled):
    noise = random.random if shuffled else (lambda: 0.0)
    order = sorted(range(len(lengths)), key=lambda row: lengths[row] + noise())
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if shuffled:
        random.shuffle(batches)
    return batches


def padded(ids, rows):
    longest = max(len(ids[row]) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(ids[row])] = torch.tensor(ids[row])
        mask[place, : len(ids[row])] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def answers(model, ids, device, lowered):
    model.eval()
    found = torch.empty(len(ids), model.config.num_labels)
    kind = torch.device(device).type
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=lowered):
        for rows in cut([len(row) for row in ids], 96, shuffled=False):
            inputs = {name: value.to(device) for name, value in padded(ids, rows).items()}
            found[rows] = model(**inputs).logits.float().cpu()
    return found


def main():
    parser = argparse.ArgumentParser()
    for name in ("teacher", "student", "train", "val"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    set_seed(42)
    device = options.device
    train, val = pd.read_parquet(options.train), pd.read_parquet(options.val)
    tokenizer = AutoTokenizer.from_pretrained(options.student)

    def encode(frame):
        texts = frame.text.tolist()
        return tokenizer(texts, truncation=True, max_length=options.max_length)["input_ids"]

    ids, val_ids = encode(train), encode(val)
    labels, val_labels = torch.tensor(train.label.tolist()), torch.tensor(val.label.tolist())
    load = AutoModelForSequenceClassification.from_pretrained
    student = load(options.student).to(device)
    started = time.perf_counter()
    teacher = load(options.teacher).to(device)
    soft = answers(teacher, ids, device, lowered=True)
    answers(teacher, val_ids, device, lowered=True)
    teacher_done = time.perf_counter()
    steps = options.epochs * -(-len(ids) // options.batch)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=options.lr, weight_decay=0.01, fused=True
    )
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    for _ in range(options.epochs):
        student.train()
        for rows in cut([len(row) for row in ids], options.batch, shuffled=True):
            inputs = {name: value.to(device) for name, value in padded(ids, rows).items()}
            logits = student(**inputs).logits
            hard = functional.cross_entropy(logits, labels[rows].to(device))
            soft_loss = functional.kl_div(
                functional.log_softmax(logits / 2, dim=-1),
                functional.log_softmax(soft[rows].to(device) / 2, dim=-1),
                reduction="batchmean",
                log_target=True,
            )
            (0.5 * hard + 0.5 * 4 * soft_loss).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        right = answers(student, val_ids, device, lowered=False).argmax(-1) == val_labels
    done = time.perf_counter()
    figures = {"teacher_s": teacher_done - started, "student_s": done - teacher_done}
    print(
        json.dumps({**figures, "total_s": done - started, "accuracy": right.float().mean().item()})
    )


if __name__ == "__main__":
    main()
