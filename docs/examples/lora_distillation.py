"""LoRA of peft with distillation: one cross-entropy is on the labels, the other on the teacher's distribution. Only the
adapters and the head train. Run it with

    python docs/examples/lora_distillation.py
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, set_seed

import mtopt


def make_bert() -> BertForSequenceClassification:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=8, max_position_embeddings=12, num_labels=4, **sizes))


def make_student() -> nn.Module:
    adapters = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"], lora_dropout=0.0)
    student: nn.Module = get_peft_model(make_bert(), adapters)
    return student


def losses_of(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    labels = tokens[:, 1] // 2  # which pair of tokens comes second
    found: Any = student(input_ids=tokens).logits
    with torch.no_grad():
        wanted = teacher(input_ids=tokens).logits.softmax(1)
    return {"labels": F.cross_entropy(found, labels), "teacher": F.cross_entropy(found, wanted)}


def main() -> None:
    set_seed(0)
    teacher = make_bert()
    adam = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(150):  # a teacher that knows something
        tokens = torch.randint(8, (64, 12))
        adam.zero_grad()
        F.cross_entropy(teacher(input_ids=tokens).logits, tokens[:, 1] // 2).backward()
        adam.step()
    student, teacher = make_student(), teacher.eval()
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = mtopt.MultiLossOptimizer(torch.optim.AdamW(trained, lr=1e-2), mtopt.UPGrad(), at="parameters")
    test = torch.randint(8, (256, 12))
    with torch.no_grad():
        first = losses_of(student, teacher, test)
    for _ in range(300):
        losses = losses_of(student, teacher, torch.randint(8, (64, 12)))
        optimizer.zero_grad()
        optimizer.step(losses)
    with torch.no_grad():
        last = losses_of(student, teacher, test)
    for name in first:
        print(f"{name}: {first[name]:.4f} -> {last[name]:.4f}")


if __name__ == "__main__":
    main()
