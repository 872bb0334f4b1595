"""Numbers, prompts, settings files and options: the command line accepts them or refuses them in one line."""

from dataclasses import fields

import pytest
import yaml
from command_line import answer, assert_begins, assert_refused, begun_and_read, case, transfer_words

from ditflow.jobs import transfer as jobs
from ditflow.limits import SETTINGS_BYTES
from ditflow.models.families import family_of
from ditflow.settings import Settings

CONFIG = ["transfer", "--model", "small", "--print-config"]
NUMBERS = {item.name: item.metadata for item in fields(Settings) if item.metadata["least"] is not None}
LISTS = {  # appended to the number
    **{"learning_rate": ["0.1"], "motion_shift": ["0.1"]},
    **{"guidance_blocks": [], "injection_blocks": []},
}
NOT_NUMBERS = ("", "ten", "nan", "inf", "1e999", "9" * 5000)


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def settings_with(name: str, value: object) -> list[str]:
    """A command that gives a setting this value and prints the resulting settings."""
    # so that no block is both guided and injected, and guidance is on where a value needs it
    guided = name in ("guidance_blocks", "reference_noise")
    apart = ["--set", "injection=off" if guided else "guidance=off"]
    if name == "gradients":
        apart += ["--set", "optimisation_steps=1000"]
    if name in ("mask_invert", "camera_from"):
        apart += ["--set", "mask=auto"]
    values = [str(value), *LISTS.get(name, [])]
    words = ["transfer", "--print-config"] if name == "model" else CONFIG
    return [*words, *apart, "--set", f"{name}={','.join(values)}"]


def test_every_number_has_two_limits():
    assert all(metadata["most"] is not None for metadata in NUMBERS.values())
    assert len(NUMBERS) == 19


@pytest.mark.parametrize(
    "name", [case(f"--{name.replace('_', '-')} at and beyond its limits", name) for name in NUMBERS]
)
def test_numbers(name, capfd):
    least, most = NUMBERS[name]["least"], NUMBERS[name]["most"]
    if name == "frames":
        least = family_of("small").least_frames
    for end in (least, most):
        given = yaml.safe_load(answer(capfd, settings_with(name, end)).output)[name]
        assert (given[0] if isinstance(given, list) else given) == end
    assert_refused(capfd, settings_with(name, least - 1), 2, f"{name}: ", "given, at least", str(least))
    assert_refused(capfd, settings_with(name, 2 * most), 2, f"{name}: ", "given, at most", str(most))
    for value in NOT_NUMBERS:
        if value or name not in ("guidance_blocks", "injection_blocks"):  # these may be empty
            assert_refused(capfd, settings_with(name, value), 2, f"{name}: ", "number", "accepted")


LONG, DEEP = "x" * 256, "x/" * 2500
CONTROL = "a\x1b[2J"
YES_OR_NO = (("on", "off"), ("maybe", "", "2", "[on]"))
PROSE = (("", "a red circle"), (CONTROL, "x" * 10_001))
PATH = (("some/file",), (CONTROL, f"some/{LONG}", DEEP, "a\0b"))
CHOSEN = ("own", "", CONTROL)
WORDS = {  # a setting that is not a number: values that are accepted, and values that are not
    "video": PATH,
    "fps": (("auto", "24", "30000/1001", "0.01"), ("0", "nan", "1/0", "1e3", "-1", "1001", "")),
    "size": (("32x16", "16 X 16".replace(" ", "")), ("0x16", "32", "32x16x8", "-16x16", "1e2x16", "nanx16")),
    "fit": (("crop", "pad", "stretch"), CHOSEN),
    "model": (("small", "small-sincos"), (CONTROL, LONG, DEEP)),
    "lora": (("a.safetensors", "a.safetensors:0.5,b"), (CONTROL, LONG, DEEP)),
    "dtype": (("bfloat16", "float16", "float32"), CHOSEN),
    "device": (("auto", "cpu", "cuda:1"), (CONTROL, LONG, DEEP)),
    "deterministic": YES_OR_NO,
    "memory": (("auto", "8", "7.5", "8gb"), ("", "lots", "-8", "nan", "1e9", "99999")),
    "preset": (("auto", "8gb"), CHOSEN),
    "weights": (("full", "fp8", "int8", "nf4", "a.gguf"), (CONTROL, LONG, DEEP)),
    "decode_tile": (("auto", "none", "144x96"), CHOSEN),
    "speed": (("exact", "fast", "faster"), CHOSEN),
    "attention": (("sdpa", "flash", "sage"), CHOSEN),
    "attention_forward": (("same", "auto", "sage"), CHOSEN),
    "compile": (("auto", "on", "off"), CHOSEN),
    "engine": (("torch", "tensorrt"), CHOSEN),
    "compute": (("bf16", "int8", "int8-forward", "fp16-sums"), CHOSEN),
    "step_cache": (("off", "0.1", "1"), ("", "on", "0", "1.5", "-0.1", "nan", "1e-1", CONTROL)),
    "negative": (("every", "alternate"), CHOSEN),
    "prompt": PROSE,
    "negative_prompt": PROSE,
    "source_prompt": PROSE,
    "guidance": YES_OR_NO,
    "loss": (("flow", "moft", "smm", "smm-release", "x0"), CHOSEN),
    "optimise": (("latent", "embedding"), CHOSEN),
    "rows": (("moving", "all"), CHOSEN),
    "reference": (("hard", "soft"), CHOSEN),
    "reference_noise": (("clean", "step"), CHOSEN),
    "saved_embedding": PATH,
    "injection": YES_OR_NO,
    "initial_latents": (
        ("noise", "clip:1", "clip:0.6"),
        ("", "clip", "clip:", "clip:0", "clip:2", "clip:-1", "clip:nan", "clip:1e-1", "0.6", CONTROL),
    ),
    "mask": PATH,
    "mask_invert": YES_OR_NO,
    "transfer": (("all", "object", "camera"), CHOSEN),
    "camera_from": PATH,
    "flip": (("none", "horizontal", "vertical"), CHOSEN),
    "reverse_motion": YES_OR_NO,
    "motion": PATH,
    "dynamic_scale": YES_OR_NO,
    "scheduler": (("ddim", "dpm"), CHOSEN),
    "output": PATH,
    "format": (("mp4", "gif", "frames"), CHOSEN),
    "keep_precision": YES_OR_NO,
}


def test_every_setting_is_tried():
    assert {*NUMBERS, *WORDS} == {item.name for item in fields(Settings)}


@pytest.mark.fault("a wrong value for a setting that is not a number")
@pytest.mark.parametrize("name", WORDS)
def test_settings_that_are_not_numbers(name, capfd, tmp_path):
    accepted, refused = WORDS[name]
    for value in accepted:
        found = answer(capfd, settings_with(name, value))
        assert found.code == 0 and yaml.safe_load(found.output).keys() >= {name}, found.error
    for value in refused:
        assert_refused(capfd, settings_with(name, value), 2, f"{name}: ")


@pytest.mark.fault("a value of another kind for each setting, in a settings file")
@pytest.mark.parametrize("name", [*NUMBERS, *WORDS])
def test_values_of_another_kind(name, capfd, tmp_path):
    path = tmp_path / "bad.yaml"
    for value in ("{a: 1}", "[[1, 2], [3]]", "[{a: 1}]", "2026-10-18", "!!binary YQ==", "0x1" + "f" * 3000):
        if value.startswith("0x") and WORDS.get(name) == PROSE:
            continue  # a number is a text too
        path.write_text(f"{name}: {value}\nmodel: small\n" if name != "model" else f"model: {value}\n")
        words = ["transfer", "--config", str(path), "--print-config"]
        assert_refused(capfd, words, 2, "tag" if value.startswith("!!") else name)


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        case(
            "a size that is not a multiple of 16", "720x479", ["multiples of 16 accepted; nearest: 720x480"]
        ),
        case("a size of 0x0", "0x0", ["nearest: 16x16"]),
        case("a size of three numbers", "720x480x3", ["WIDTHxHEIGHT accepted"]),
        case("a size above the limit", "8208x16", ["at most 8192 accepted"]),
    ],
)
def test_sizes(size, parts, capfd):
    assert_refused(capfd, [*CONFIG, "--size", size], 2, "size: ", *parts)


@pytest.mark.fault("a size at its limits")
def test_sizes_at_their_limits(capfd):
    for size in ("16x16", "8192x8192"):
        assert yaml.safe_load(answer(capfd, [*CONFIG, "--size", size]).output)["size"] == size


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        case("an empty prompt", "", ["prompt: nothing given; use --prompt"]),
        case("a prompt of spaces", " \t ", ["prompt: nothing given; use --prompt"]),
        case(
            "a prompt of 10,001 characters", "x" * 10_001, ["10001 characters given, at most 10000 accepted"]
        ),
        case(
            "a prompt with control characters",
            "a \x1b[31mred\x07 dog",
            [r"contains '\x1b'", "remove it"],
        ),
        case("a prompt that is not UTF-8", "na\udcefve", [r"contains '\udcef'", "remove it"]),
        case("a prompt of emoji", "🐻‍❄️🏔️", ["knows none of the prompt's words"]),
        case("a prompt of 10,000 unknown letters", "ñ" * 10_000, ["knows none of the prompt's words"]),
        case("a prompt in an unknown alphabet", "一只猫在跑", ["words, '一只猫在跑': write it in English"]),
    ],
)
def test_prompts_refused(prompt, parts, small_folder, clip, capfd):
    assert_refused(capfd, transfer_words(small_folder, clip, prompt), 2, "prompt", *parts)


@pytest.mark.parametrize(
    ("prompt", "warning"),
    [
        case(
            "a prompt of 10,000 characters",
            "a red circle " * 769 + "end",
            "the model's 16 tokens; left out: ",
        ),
        case("a prompt of one word of 10,000 letters", "y" * 10_000, "the model's 16 tokens; left out: "),
        case("a prompt with emoji", "circle 🐻‍❄️", "unknown to the model's text encoder, and left out: '🐻"),
        case("a prompt of several lines", "a red\r\n\tcircle\n", ""),
        case("a prompt like a path", "../etc", ""),
    ],
)
def test_prompts_accepted(prompt, warning, small_folder, clip, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "transfer", begun_and_read)
    assert_begins(capfd, transfer_words(small_folder, clip, prompt), warning)
    (run,) = (tmp_path / "here" / "runs").iterdir()
    assert yaml.safe_load((run / "settings.yaml").read_text())["prompt"] == prompt


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        case("YAML with an anchor bomb", f"{BOMB}prompt: *i\n", ["line 2: *a is an alias; write out"]),
        case("YAML that contains itself", "lora: &a [*a]\n", ["line 1: *a is an alias; write out"]),
        case(
            "YAML with a tag", "prompt: !!python/object/apply:os.getcwd []\n", ["os.getcwd is a tag; remove"]
        ),
        case("YAML with an unknown key", "stepz: 4\n", ["unknown setting 'stepz': did you mean 'steps'?"]),
        case(
            "YAML with a duplicate key",
            "seed: 1\nsteps: 4\nseed: 2\n",
            ["'seed' is given 2 times; give it once"],
        ),
        case(
            "YAML with a list where text belongs",
            "prompt: [a, b]\n",
            ["prompt: ['a', 'b'] given, a text accepted"],
        ),
        case(
            "YAML with a mapping where a number belongs",
            "steps: {a: 1}\n",
            ["steps: {'a': 1} given, a whole number"],
        ),
        case("YAML with an impossible date", "prompt: 2026-13-45\n", ["is not YAML: month must be in 1..12"]),
        case("YAML that is a list", "- a\n- b\n", ["expected lines of `name: value`"]),
        case("an empty settings file", "", ["bad.yaml is empty: give a regular file"]),
        case("YAML nested five thousand times", "lora: " + "[" * 5_000, ["nested too deeply"]),
        case("a settings file of megabytes", "# long\n" * 500_000, [f"larger than {SETTINGS_BYTES} bytes"]),
        case("a settings file that is not UTF-8", b"prompt: na\xefve\n", ["is not YAML: 'utf-8' codec"]),
        case("a settings file of NUL bytes", bytes(64), ["is not YAML: unacceptable character"]),
        case("a video as the settings file", b"\0\0\0\x20ftypisom" + bytes(range(256)), ["is not YAML"]),
    ],
)
def test_settings_files(content, parts, tmp_path, capfd):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert_refused(capfd, ["transfer", "--config", str(path)], 2, *parts)


@pytest.mark.fault("an endless device or a folder as the settings file")
def test_settings_that_are_not_a_file(tmp_path, capfd):
    assert_refused(capfd, ["transfer", "--config", "/dev/zero"], 2, "/dev/zero is a device: give")
    assert_refused(capfd, ["transfer", "--config", str(tmp_path)], 2, "is a folder: give a regular file")


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        case("an unknown option", "transfer --stepz 4", 2, ["unknown flag --stepz", "did you mean --steps?"]),
        case("an option without its value", "transfer --steps", 2, ["--steps: expected one argument"]),
        case("an unknown command", "transform", 2, ["unknown command transform", "did you mean transfer?"]),
        case(
            "a --memory that is not a size",
            "transfer --memory lots",
            2,
            ["memory: 'lots' given; accepted: auto"],
        ),
        case("an unknown device", "transfer --video {clip} --prompt x --device toaster", 2, ["auto, cpu"]),
        case(
            "the home folder of an unknown user",
            "transfer --video ~nobody-here/a.mp4 --prompt x",
            1,
            ["does not exist"],
        ),
        case(
            "a name of 300 letters",
            f"transfer --prompt x --video {'a' * 300}.mp4",
            2,
            ["more than 255 bytes; shorten"],
        ),
        case("a run folder of 300 letters", f"report {'a' * 300}", 2, ["not a possible path; shorten it"]),
        case("a path of 5000 letters", f"evaluate {'a/' * 2500}", 2, ["not a possible path; shorten it"]),
        case("a settings file of 300 letters", f"flow --config {'a' * 300}", 2, ["not a possible path"]),
        case(
            "a block that the model does not have",
            "transfer --video {clip} --prompt x --guidance-blocks 7",
            1,
            ["0 to 5"],
        ),
        case(
            "a LoRA with a scale of nan",
            "transfer --video {clip} --prompt x --lora {clip}:nan",
            1,
            ["the scale nan is not a finite number"],
        ),
    ],
)
def test_words(words, code, parts, clip, small_folder, capfd):
    given = [word.format(clip=clip) for word in words.split()]
    model = (
        ["--model", str(small_folder), "--frames", "9", "--size", "48x32"] if given[0] == "transfer" else []
    )
    assert_refused(capfd, given[:1] + model + given[1:], code, *parts)


@pytest.mark.fault("an unexpected error")
def test_unexpected_error(capfd, monkeypatch, tmp_path):
    def broken(*_):
        raise LookupError("first line\nsecond \x1b[31mline")

    monkeypatch.setattr(jobs, "transfer", broken)
    told = r"unexpected LookupError: first line second \x1b[31mline; run again with --debug and report it"
    words = ["transfer", "--model", "small", "--video", str(tmp_path), "--prompt", "x", "--quiet"]
    assert_refused(capfd, words, 1, told)
    found = answer(capfd, [*words, "--debug"])
    assert found.code == 1 and "Traceback" in found.error and "in broken" in found.error
    assert "report it" not in found.error


@pytest.mark.fault("a path that the system refuses to use")
def test_a_path_that_cannot_be_used(capfd, monkeypatch, tmp_path):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "/mine/\x1b[2J/run")

    monkeypatch.setattr(jobs, "resume", denied)
    told = r"/mine/\x1b[2J/run cannot be used (Permission denied): change that, or give another path"
    (tmp_path / "settings.yaml").touch()
    assert_refused(capfd, ["resume", str(tmp_path)], 1, told)


@pytest.mark.parametrize("command", ["transfer", "inject", "flow", "plan", "evaluate", "report"])
def test_debug_shows_where_a_refusal_came_from(command, capfd, monkeypatch):
    words = {"inject": ["--from", "absent"], "evaluate": ["absent"], "report": ["absent"]}
    found = answer(capfd, [command, *words.get(command, ["--set", "steps=0"]), "--debug"])
    last = found.error.splitlines()[-1]
    assert "Traceback" in found.error and last.startswith("ditflow: ")
    assert found.code == (1 if command in ("evaluate", "report") else 2)
