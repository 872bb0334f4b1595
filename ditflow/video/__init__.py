"""Read videos and image folders as arrays of frames, and write arrays as videos."""

from ditflow.video.clip import Clip, side_by_side
from ditflow.video.reading import read_clip
from ditflow.video.writing import read_metadata, without_metadata, write_clip

__all__ = ["Clip", "read_clip", "read_metadata", "side_by_side", "without_metadata", "write_clip"]
