"""In which order the programs of a product take its tiles."""

import triton
import triton.language as tl


@triton.jit
def grouped_tile(row_tiles, column_tiles, GROUP_M: tl.constexpr):
    """This program's (row tile, column tile): GROUP_M row tiles share a column tile while L2 holds it."""
    program = tl.program_id(0)
    group = program // (GROUP_M * column_tiles)
    first_tile = group * GROUP_M
    height = tl.minimum(row_tiles - first_tile, GROUP_M)
    in_group = program - group * GROUP_M * column_tiles
    return first_tile + in_group % height, in_group // height
