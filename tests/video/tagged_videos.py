"""Writes videos whose streams say how they are to be shown."""

import av


def written(path, pictures, *, codec="ffv1", pixels="yuv420p", options=None, sar=None, prepare=None, **tags):
    """A video of these planar frames; `tags` are colour properties of the stream and its frames."""
    height, width = pictures[0].height, pictures[0].width
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if sar:
            stream.codec_context.sample_aspect_ratio = sar
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, picture in enumerate(pictures):
            picture.pts = index
            for name in {"colorspace", "color_range"} & set(tags):
                setattr(picture, name, tags[name])
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def frames_of(arrays, layout="rgb24", pixels="yuv420p"):
    return [av.VideoFrame.from_ndarray(array, format=layout).reformat(format=pixels) for array in arrays]


def said(caplog):
    (message,) = caplog.messages
    return message.partition(" is read as players show it: ")[2]
