"""The program that an export brings along: answers without incrlt and torch, in forty lines."""

from __future__ import annotations

from typing import Final

EXAMPLE: Final = r'''"""Answers with onnxruntime and NumPy: example.py a.jpg b.png, or a .npy of uint8 [N, H, W, C]."""
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime

HERE = Path(__file__).parent
LABELS = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
HOW = json.loads((HERE / "preparation.json").read_text(encoding="utf-8"))

def session(name):
    return onnxruntime.InferenceSession(str(HERE / name), providers=["CPUExecutionProvider"])

def read(path):  # needs Pillow; from elsewhere bring pixels of this size, uint8
    from PIL import Image, ImageOps
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB").convert(HOW["colour"])
    pixels = np.asarray(ImageOps.fit(picture, (HOW["width"], HOW["height"]), Image.Resampling.BILINEAR))
    return pixels.reshape(HOW["height"], HOW["width"], HOW["channels"])

def answer(pixels):
    """uint8 [N, C, H, W] to probabilities [N, classes] and experts used [N]; later experts see only what is left."""
    if not HOW["experts"]:
        probabilities, _, used = session(HOW["all"]).run(None, {"pixels": pixels})
        return probabilities, used
    first, *later = map(session, HOW["experts"])
    logits, answers, score, *maps = first.run(None, {"pixels": pixels})
    used, left, before = np.ones(len(pixels), int), np.arange(len(pixels)), logits[:, None]
    for k, expert in enumerate(later):
        go = np.ones(len(left), bool) if HOW["threshold"] is None else score > HOW["threshold"]
        left, before, maps = left[go], before[go], [m[go] for m in maps]
        if not len(left):
            break
        inputs = {"before": before, **{f"map_{i}": m for i, m in enumerate(maps)}}
        logits, answers[left], score = expert.run(None, inputs)
        used[left], before = k + 2, np.concatenate([before, logits[:, None]], 1)
    exponents = np.exp(answers - answers.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True), used

if __name__ == "__main__":
    files = sys.argv[1:]
    pictures = np.load(files[0]) if files[0].endswith(".npy") else np.stack([read(f) for f in files])
    for row, experts in zip(*answer(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))):
        print(LABELS[row.argmax()], f"{row.max():.4f}", experts)
'''
"""Its text."""
