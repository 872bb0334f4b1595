"""Motion that users choose as the target of guidance: drawn, the camera's, changed, or a part of a clip's.

A target is a tensor [frames (query), frames (key), height * width, 2]: for each cell of each latent frame,
where its content goes in each latent frame, (x, y) in latent patches, x to the right and y down. Rows that
are NaN are free: nothing is asked of them.
"""
