"""LoRA on findings with your own loop: PEFT, the Trainer of transformers, and a table that `datasets` reads.

    python docs/guides/lora.py checkpoints/default guide

Without a loop of your own: ctfm finetune findings TABLE --out OUT --trunk lora
"""

import sys
from pathlib import Path

import torch
from ctfm import CTFMForImageClassification, CTFMImageProcessor, collate_scans
from ctfm.phantom.dataset import PhantomDataset, write_dataset
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

checkpoint, out = sys.argv[1], Path(sys.argv[2])
size = tuple(int(n) for n in (sys.argv[3] if len(sys.argv) > 3 else "96,160,160").split(","))  # voxels of a phantom
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 100

table = write_dataset(PhantomDataset(folder=out / "scans", num_train=24, num_test=0, shape=size))
findings = ["Pleural effusion", "Cardiomegaly"]

# 1. The checkpoint under a new head, and LoRA on the attention of its trunk. The head is trained whole.
labels = {"num_labels": len(findings), "id2label": dict(enumerate(findings)), "token_scores": False}
model = CTFMForImageClassification.from_pretrained(checkpoint, dtype=torch.float32, **labels)
adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["qkv", "out"], modules_to_save=["classifier"])
model = get_peft_model(model, adapters)
model.print_trainable_parameters()

# 2. Scans are read as they are asked for. collate_scans puts scans of unlike size into one batch.
processor = CTFMImageProcessor.from_pretrained(checkpoint)


def read(rows: dict) -> dict:
    scans = processor([str(table.parent / path) for path in rows["path"]])
    stated = torch.tensor([rows[name] for name in findings], dtype=torch.float32).T  # NaN is not stated
    return {**scans, "labels": stated}


data = load_dataset("csv", data_files=str(table), split="train").with_transform(read)

# 3. Trainer, as ever. remove_unused_columns would take away what `read` needs.
settings = TrainingArguments(
    output_dir=str(out / "trainer"),
    max_steps=steps,
    per_device_train_batch_size=2,
    learning_rate=5e-4,
    remove_unused_columns=False,
    report_to="none",
    save_strategy="no",
)
Trainer(model=model, args=settings, train_dataset=data, data_collator=collate_scans).train()

# 4. Adapters merged into the weights: a folder that from_pretrained and pipelines open.
model.merge_and_unload().save_pretrained(out / "lora")
processor.save_pretrained(out / "lora")
