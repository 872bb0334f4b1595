"""How much is read of what somebody else made: no file can make the program ask for more than this.

Each is far beyond what a run can use, and is checked before the memory is asked for.
"""

SETTINGS_BYTES = 1 << 18  # of a YAML or JSON file about a run or a model
PROMPT_CHARACTERS = 10_000  # a model reads 226 tokens
SIDE = 8192  # pixels of the new video
PICTURE_PIXELS = 1 << 26  # of one frame or image, 8192 x 8192: 8K video has half of that
CLIP_BYTES = 1 << 32  # of the frames that are kept, once they have their size: 4 GiB
SOURCE_FRAMES = 200_000  # of a video or a folder, up to the last one used: almost two hours at 30 a second
MODEL_LAYERS = 1000  # 5B has 42
RECORD_BYTES = 1 << 25  # of run.json, which holds every loss
