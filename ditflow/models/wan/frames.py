"""Wan's frame rule: the first frame alone, then groups of four."""

GROUP = 4  # video frames per latent frame, but for the first


def encoded_frames(frames: int) -> int:
    """How many frames to encode so that at least `frames` come back: the next 4k + 1."""
    return frames + (1 - frames) % GROUP


def latent_spans(frames: int) -> list[range]:
    """The encoded frames of each latent frame."""
    later = range(1, encoded_frames(frames), GROUP)
    return [range(1), *(range(first, first + GROUP) for first in later)]
