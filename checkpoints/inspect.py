"""What is in a weight file, in words: the text of --mode=inspect."""

import json
from typing import Any

import numpy as np

from checkpoints.base import Checkpoint, Part, Tensors
from checkpoints.names import BUFFERS, PARALLEL


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts as plain values; reads every tensor once (for the difference between EMA and raw weights)."""
    raw = checkpoint.raw
    parameters = {name: tensor for name, tensor in raw.items() if not name.endswith(BUFFERS)}
    dtypes = sorted({tensor.dtype.name for tensor in raw.values()})
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256(),
        "format": checkpoint.format,
        "tensors": len(raw),
        "parameters": sum(tensor.size for tensor in parameters.values()),
        "dtypes": dtypes,
        "step": checkpoint.step,
        "ema": checkpoint.ema is not None,
        "ema_distance": None if checkpoint.ema is None else _distance(checkpoint.ema, parameters),
        "not_finite": [name for name, tensor in parameters.items() if not np.isfinite(tensor.astype(np.float32)).all()],
        "config": checkpoint.config,
        "parts": {name: _counted(part) for name, part in checkpoint.extra.get("parts", {}).items()},
        "extra": {name: _plain(value) for name, value in checkpoint.extra.items() if name != "parts"},
        "notes": list(checkpoint.notes),
    }


def describe(checkpoint: Checkpoint) -> str:
    """The summary as text, with a table of the modules: tensors, numbers, and the shape of the largest tensor."""
    facts = summary(checkpoint)
    ema = "no: one set of weights"
    if facts["ema"]:
        ema = f"yes, {facts['ema_distance']:.1%} away from the raw weights (norm of the difference over norm)"
    lines = [
        f"file        {facts['path']}",
        f"sha256      {facts['sha256']}",
        f"format      {facts['format']}",
        f"parameters  {facts['parameters']:,} in {facts['tensors']} tensors ({', '.join(facts['dtypes'])})",
        f"step        {'not stored' if facts['step'] is None else facts['step']}",
        f"EMA         {ema}",
    ]
    if facts["not_finite"]:
        lines.append(f"WARNING     NaN or infinite values in {', '.join(facts['not_finite'][:10])}")
    lines += [f"{name:<11} {count}" for name, count in facts["parts"].items()]
    for title in ("config", "extra"):
        if facts[title]:
            lines.append(f"{title:<11} {json.dumps(facts[title], default=str)}")
    lines += [f"note        {note}" for note in facts["notes"]]
    return "\n".join([*lines, "", *_table(checkpoint.raw)])


def _counted(part: Part) -> str:
    return f"{sum(tensor.size for tensor in part.tensors.values()):,} in {len(part.tensors)} tensors"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return float(value) if value.ndim == 0 else f"{value.size} values, {value.min():.6g} to {value.max():.6g}"
    return list(value) if isinstance(value, tuple) else value


def _distance(ema: Tensors, raw: Tensors) -> float:
    """|ema - raw| / |raw| over all parameters."""
    gap, norm = 0.0, 0.0
    for name, tensor in raw.items():
        values = tensor.astype(np.float64)
        gap += float(np.sum((ema[name].astype(np.float64) - values) ** 2))
        norm += float(np.sum(values**2))
    return (gap / norm) ** 0.5 if norm else 0.0


def _table(tensors: Tensors) -> list[str]:
    modules: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        parts = name.removeprefix(PARALLEL).removeprefix("model.").replace(".", "/").split("/")
        counted = any(map(str.isdecimal, parts[0]))  # a module; a name without a number is a list of modules
        depth = 1 if counted or len(parts) < 3 else 2
        modules.setdefault("/".join(parts[:depth]), []).append(tensor)
    width = max(map(len, modules), default=6)
    rows = [f"{'module':<{width}}  tensors     numbers  largest"]
    for module, group in modules.items():
        largest = max(group, key=lambda tensor: tensor.size)
        rows.append(f"{module:<{width}}  {len(group):>7}  {sum(t.size for t in group):>10,}  {largest.shape}")
    return rows
