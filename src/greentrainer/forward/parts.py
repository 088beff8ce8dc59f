"""Which part of a prompt is read, where it is not read whole.

What a step costs beside its tail is the forward pass of the prompt before it.  A part of that is
read in its place: its beginning, its end, both, or the passages that share most with the completion
(`grounds`), those words counting more that are rare in the batch.  Completions and tails are never
cut.  Positions are numbered as if the part were all that the prompt says.
"""

import torch

from greentrainer.types import IGNORED, Part

PASSAGE = 16
"""Positions of a passage."""


def reads(
    part: Part,
    begin: torch.Tensor,
    start: torch.Tensor,
    ids: torch.Tensor | None,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Which positions of a batch are read before its tails, (B, T).

    begin, start: (B,), where prompts begin and where their tails do.  ids, labels: (B, T).  Raises
    ValueError where passages are to be found by their words and there are no ids.
    """
    at = torch.arange(labels.shape[1], device=labels.device)
    begin, start = begin[:, None], start[:, None]
    count = ((start - begin) * part.share).ceil().long()
    prompt = (at >= begin) & (at < start)
    if part.which == "last":
        return prompt & (at >= start - count)
    if part.which == "first":
        return prompt & (at < begin + count)
    if part.which == "ends":
        return prompt & ((at < begin + count // 2) | (at >= start - (count - count // 2)))
    if ids is None:
        raise ValueError("parts by grounds are found by token ids, and the batch has none")
    return _grounds(begin, count, prompt, ids, labels)


def _grounds(
    begin: torch.Tensor,
    count: torch.Tensor,
    prompt: torch.Tensor,
    ids: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """The passages that share most with the completion: so many whole ones as hold `count`."""
    length = ids.shape[1]
    said = torch.stack(
        [torch.isin(row, own[own != IGNORED]) for row, own in zip(ids, labels, strict=True)]
    )
    words = ids.unique(return_inverse=True)[1]
    seen = torch.bincount(words.flatten(), weights=prompt.flatten().float())
    worth = torch.where(said & prompt, 1.0 / seen[words].clamp(min=1), 0.0)
    at = torch.arange(length, device=ids.device)
    passage = ((at - begin).clamp(min=0) // PASSAGE).expand_as(ids)
    blank = worth.new_zeros(len(ids), -(-length // PASSAGE))
    later = 1e-6 * torch.arange(1, blank.shape[1] + 1, device=ids.device)  # of equal ones
    there = blank.scatter_add(1, passage, prompt.to(worth)) > 0
    score = torch.where(there, blank.scatter_add(1, passage, worth) + later, -1.0)
    rank = score.argsort(1, descending=True).argsort(1)
    return prompt & (rank.gather(1, passage) < -(-count // PASSAGE))
