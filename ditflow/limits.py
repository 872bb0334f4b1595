"""Limits on what is read from other people's files, so that no file can exhaust memory.

Each is far above what a run can use, and is checked before memory is allocated.
"""

from fractions import Fraction

SETTINGS_BYTES = 1 << 18  # in a YAML or JSON file about a run or a model
BATCH_BYTES = 1 << 24  # in a file of jobs
BATCH_JOBS = 10_000
VOCABULARY_BYTES = 1 << 26  # in a file of a tokenizer; published ones have some megabytes
PROMPT_CHARACTERS = 10_000  # CogVideoX reads 226 tokens
SIDE = 8192  # largest width and height of the new video, pixels
PICTURE_PIXELS = 1 << 26  # in one frame or image, 8192 x 8192: twice an 8K frame
CLIP_BYTES = 1 << 32  # 4 GiB of frames, after resizing
SOURCE_FRAMES = 200_000  # in a video or folder, up to the last one used: almost two hours at 30 a second
SLOWEST, FASTEST = Fraction(1, 100), Fraction(1000)  # frames a second that every video format can store
RECORD_BYTES = 1 << 25  # in run.json, which holds every loss
TENSOR_BYTES = 1 << 34  # in a run's file of tensors; 50 embeddings of CogVideoX-2B at 49 frames take 5 GB
VIDEO_BYTES = 1 << 30  # in a video file that a report holds
