"""Reading a drawn motion: the format, and one clear line for everything that is not of it."""

import numpy as np
import pytest

from ditflow.errors import SettingsError
from ditflow.limits import SETTINGS_BYTES
from ditflow.motion.motion_file import read_drawing

FULL = """
camera:
  - {time: 0, pan: [0, 0], zoom: 1, rotate: 0}
  - {time: 1, pan: [0.2, -0.1], zoom: 1.1, rotate: 30}
objects:
  - shape: ellipse
    path:
      - {time: 0, center: [0.2, 0.5], size: [0.2, 0.3]}
      - {time: 0.5, center: [0.4, 0.5], size: [0.4, 0.3]}
      - {time: 1, center: [0.8, 0.5], size: [0.2, 0.3]}
  - shape: box
    path: [{time: 0.5, center: [-1, 2], size: [1, 1]}]
"""
POINT = "{time: 0, center: [0.5, 0.5], size: [0.2, 0.3]}"


def read(tmp_path, text):
    path = tmp_path / "motion.yaml"
    path.write_text(text, encoding="utf-8")
    return read_drawing(path)


def path_of(*points):
    return f"objects: [{{shape: box, path: [{', '.join(points)}]}}]"


def test_the_whole_format(tmp_path):
    drawing = read(tmp_path, FULL)
    pan, zoom, rotation = drawing.camera.at(np.array([0, 0.5, 1]))
    assert pan.tolist() == [[0, 0], [0.1, -0.05], [0.2, -0.1]]
    assert zoom.tolist() == [1, 1.05, 1.1] and np.rad2deg(rotation) == pytest.approx([0, 15, 30])
    ellipse, box = drawing.figures
    assert (ellipse.shape, box.shape) == ("ellipse", "box")
    center, size = ellipse.at(np.array([0.25, 0.75]))
    assert center == pytest.approx(np.array([[0.3, 0.5], [0.6, 0.5]]))
    assert size == pytest.approx(np.array([[0.3, 0.3], [0.3, 0.3]]))


def test_before_the_first_point_and_after_the_last_nothing_changes(tmp_path):
    points = [
        f"{{time: {time}, center: [{x}, 0.5], size: [0.2, 0.2]}}" for time, x in ((0.2, 0.1), (0.6, 0.9))
    ]
    (figure,) = read(tmp_path, path_of(*points)).figures
    assert figure.at(np.array([0, 0.2, 0.4, 0.6, 1]))[0][:, 0] == pytest.approx([0.1, 0.1, 0.5, 0.9, 0.9])


def test_what_the_camera_does_not_do_may_be_left_out(tmp_path):
    drawing = read(tmp_path, "camera: [{time: 0}, {time: 1, zoom: 2}]")
    pan, zoom, rotation = drawing.camera.at(np.array([0, 1]))
    assert not pan.any() and not rotation.any() and zoom.tolist() == [1, 2]
    assert drawing.figures == ()
    assert read(tmp_path, path_of(POINT)).camera is None


REFUSED = {
    "no_name_is_known": ("paths: []", "unknown key 'paths': accepted: camera, objects"),
    "near_name": ("camra: []", "unknown key 'camra': did you mean 'camera'?"),
    "near_name_of_a_point": (
        "camera: [{time: 0, zoon: 2}]",
        "camera, point 1: unknown key 'zoon': did you mean 'zoom'?",
    ),
    "near_name_of_an_object": (
        "objects: [{shape: box, pth: []}]",
        "object 1: unknown key 'pth': did you mean 'path'?",
    ),
    "number_for_a_name": ("camera: [{1: 0}]", "camera, point 1: unknown key 1: accepted: time, pan, zoom"),
    "nothing": ("{}", "nothing given; give camera, objects or both"),
    "no_points": ("camera: []", "camera: no points given; give at least one"),
    "no_path": (path_of(), "object 1, path: no points given"),
    "no_objects": ("objects: []", "objects: no objects given"),
    "no_list": ("camera: {time: 0}", "camera: {'time': 0} given, a list of points accepted"),
    "null": ("camera:", "camera: None given, a list of points accepted"),
    "no_mapping": ("camera: [3]", "camera, point 1: 3 given, accepted: {time: ..., pan: ..., zoom: ..."),
    "no_time": ("camera: [{zoom: 2}]", "camera, point 1: no time given; give time"),
    "no_size": (
        path_of("{time: 0, center: [0, 0]}"),
        "object 1, path, point 1: no size given; give time, center, size",
    ),
    "no_shape": ("objects: [{path: [" + POINT + "]}]", "object 1: no shape given; give shape, path"),
    "shape": (
        "objects: [{shape: star, path: [" + POINT + "]}]",
        "object 1: shape 'star' given, accepted: box, ellipse",
    ),
    "order": (
        path_of(POINT.replace("0,", "0.5,", 1), POINT.replace("0,", "0.25,", 1)),
        "object 1, path, point 2: time 0.25 is not after 0.5, that of the point before: put the points in",
    ),
    "twice": ("camera: [{time: 0.5}, {time: 0.5}]", "camera, point 2: time 0.5 is not after 0.5"),
    "before": ("camera: [{time: -0.1}]", "camera, point 1: time: -0.1 given, a number from 0 to 1 accepted"),
    "after": ("camera: [{time: 24}]", "camera, point 1: time: 24 given, a number from 0 to 1 accepted"),
    "nan": ("camera: [{time: .nan}]", "time: nan given, a number from 0 to 1 accepted"),
    "text": ("camera: [{time: soon}]", "time: 'soon' given, a number from 0 to 1 accepted"),
    "boolean": ("camera: [{time: true}]", "time: True given, a number from 0 to 1 accepted"),
    "zoom": ("camera: [{time: 0, zoom: 0}]", "zoom: 0 given, a number from 0.01 to 100 accepted"),
    "infinite": ("camera: [{time: 0, zoom: .inf}]", "zoom: inf given, a number from 0.01 to 100 accepted"),
    "huge": (f"camera: [{{time: 0, rotate: 1{'0' * 400}}}]", "rotate: 1000"),
    "one_of_two": (
        "camera: [{time: 0, pan: 0.5}]",
        r"pan: 0.5 given, two numbers, [x, y], from -100 to 100 accepted",
    ),
    "three": ("camera: [{time: 0, pan: [1, 2, 3]}]", "pan: [1, 2, 3] given, two numbers"),
    "list_of_one": ("camera: [{time: [0]}]", "time: [0] given, a number from 0 to 1 accepted"),
    "negative_size": (
        path_of("{time: 0, center: [0, 0], size: [0.2, -0.2]}"),
        "size: [0.2, -0.2] given, two numbers, [x, y], from 0.001 to 100 accepted",
    ),
    "list": ("[1, 2]", "expected lines of `name: value`"),
    "alias": ("camera: &a [{time: 0}]\nobjects: *a", "line 2: *a is an alias"),
    "tag": ("camera: !!python/object:os.system []", "is a tag; remove it"),
    "repeated": ("camera: [{time: 0, time: 1}]", "'time' is given 2 times; give it once"),
    "not_yaml": ("camera: [", "is not YAML"),
    "large": ("# " + "x" * SETTINGS_BYTES, f"is larger than {SETTINGS_BYTES} bytes"),
    "deep": ("[" * 3000, "is nested too deeply"),
}


@pytest.mark.parametrize("text, said", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(text, said, tmp_path):
    with pytest.raises(SettingsError) as found:
        read(tmp_path, text)
    message = str(found.value)
    assert said in message and "\n" not in message and len(message) < 400
    assert message.startswith(f"motion file {tmp_path / 'motion.yaml'}") and "setting" not in message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"motion file .*none\.yaml: No such file"):
        read_drawing(tmp_path / "none.yaml")
