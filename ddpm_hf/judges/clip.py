"""How near a picture is to a caption, as a CLIP (Radford et al. 2021, arXiv 2103.00020) sees it."""

from math import comb

import numpy as np

from ..statistics.centroids import RESOLUTION, unit

_AT_ONCE = 256


def caption_scores(pictures: np.ndarray, captions: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
    """How near pictures are to their own captions, and whether others are nearer.

    Args:
        pictures: features (n, D).
        captions: features (N, D), a row for each distinct caption.
        own: which is whose, int (n,).

    Returns:
        For each picture, float64 (n,): "score", 100 max(cos, 0); "chance", its mean over all captions; "rank" of the
        own caption, from 1, of equally near captions the middle one; "first", 1 if none is nearer, which equally near
        captions share.
    """
    found = {name: [] for name in ("score", "chance", "rank", "first")}
    captions = unit(captions)
    for start in range(0, len(pictures), _AT_ONCE):
        cosine = unit(pictures[start : start + _AT_ONCE]) @ captions.T
        mine = np.take_along_axis(cosine, own[start : start + _AT_ONCE, None], axis=1)
        above, equal = (cosine > mine + RESOLUTION).sum(1), (np.abs(cosine - mine) <= RESOLUTION).sum(1)
        scores = 100 * cosine.clip(min=0)
        found["score"].append(100 * mine[:, 0].clip(min=0))
        found["chance"].append(scores.mean(1))
        found["rank"].append(above + (equal + 1) / 2)
        found["first"].append((above == 0) / equal)
    return {name: np.concatenate(values) for name, values in found.items()}


def picture_ranks(pictures: np.ndarray, captions: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The rank among all pictures of the nearest one that a caption is for, from 1, float64 (N,).

    Of equally near ones the middle rank.

    Args:
        pictures: features (n, D).
        captions: features (N, D), each of at least one picture.
        own: which is whose, int (n,).
    """
    pictures, captions, ranks = unit(pictures), unit(captions), []
    for number, caption in enumerate(captions):
        cosine, mine = pictures @ caption, own == number
        nearest = cosine[mine].max()
        equal = (np.abs(cosine - nearest) <= RESOLUTION) & ~mine
        ranks.append(1 + (cosine > nearest + RESOLUTION).sum() + equal.sum() / 2)
    return np.array(ranks)


def nearest_captions(pictures: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Which of the captions (N, D) is nearest to each picture, int (n,); features as in `caption_scores`."""
    captions, parts = unit(captions), range(0, len(pictures), _AT_ONCE)
    return np.concatenate([(unit(pictures[k : k + _AT_ONCE]) @ captions.T).argmax(1) for k in parts])


def chance_of_pictures(own: np.ndarray, first: int) -> float:
    """The share of captions of which chance has a picture among the `first`; `own` as in `picture_ranks`."""
    total, counts = len(own), np.bincount(own)
    return float(np.mean([1 - comb(total - count, first) / comb(total, first) for count in counts.tolist()]))
