"""Configuration files of models with missing, wrong or gigantic values: refused in one line."""

import json
import shutil

import pytest
from command_line import assert_refused, begun, transfer_words

from ditflow.files import shipped, shipped_names
from ditflow.jobs import transfer as jobs
from ditflow.models.families import FAMILIES

FILES = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "text": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "index": "model_index.json",
}
HUGE = 10**10
MISSING = object()

REFUSED = [
    ("scheduler", "num_train_timesteps", 1e10, "a whole number from 1 to 10000"),
    ("scheduler", "num_train_timesteps", HUGE, "a whole number from 1 to 10000"),
    ("scheduler", "num_train_timesteps", 0, "a whole number from 1 to 10000"),
    ("scheduler", "num_train_timesteps", "1000", "a whole number from 1 to 10000"),
    ("scheduler", "num_train_timesteps", None, "a whole number from 1 to 10000"),
    ("scheduler", "beta_end", float("nan"), "a number from 1e-09 to 0.999"),
    ("scheduler", "beta_schedule", "own", '"scaled_linear" or "linear"'),
    ("scheduler", "prediction_type", ["v_prediction"], '"v_prediction" or "epsilon"'),
    ("scheduler", "rescale_betas_zero_snr", "yes", "true or false"),
    ("scheduler", "snr_shift_scale", 0, "a number from 0.001 to 1000"),
    ("scheduler", "trained_betas", [0.1, "x"], "a number from 1e-09 to 0.999"),
    ("scheduler", "_class_name", "EulerDiscreteScheduler", '"CogVideoXDDIMScheduler"'),
    ("transformer", "max_text_seq_length", 10**9, "a whole number from 1 to 4096"),
    ("transformer", "max_text_seq_length", MISSING, "a whole number from 1 to 4096"),
    ("transformer", "num_attention_heads", 10**6, "a whole number from 1 to 256"),
    ("transformer", "num_layers", MISSING, "a whole number from 1 to 100"),
    ("transformer", "num_layers", True, "a whole number from 1 to 100"),
    ("transformer", "num_layers", -3, "a whole number from 1 to 100"),
    ("transformer", "sample_width", HUGE, "a whole number from 1 to 1024"),
    ("transformer", "patch_size", 0, "a whole number from 1 to 16"),
    ("transformer", "patch_size_t", 2, "null"),
    ("transformer", "ofs_embed_dim", 512, "null"),
    ("transformer", "use_rotary_positional_embeddings", 1, "true or false"),
    ("transformer", "temporal_compression_ratio", 8, "4"),
    ("transformer", "activation_fn", {}, "a text of at most 100 characters"),
    ("transformer", "quantization_config", {"quant_method": "bitsandbytes"}, "null"),
    ("text", "quantization_config", {"quant_method": "gptq"}, "null"),
    ("vae", "scaling_factor", 0, "a number from 0.001 to 1000"),
    ("vae", "scaling_factor", float("nan"), "a number from 0.001 to 1000"),
    ("vae", "scaling_factor", float("inf"), "a number from 0.001 to 1000"),
    ("vae", "scaling_factor", MISSING, "a number from 0.001 to 1000"),
    ("vae", "scaling_factor", "1.18", "a number from 0.001 to 1000"),
    ("vae", "block_out_channels", MISSING, "a list of 1 to 8 entries"),
    ("vae", "block_out_channels", 16, "a list of 1 to 8 entries"),
    ("vae", "block_out_channels", [HUGE] * 3, "a whole number from 1 to 8192"),
    ("vae", "block_out_channels", [16] * 40, "a list of 1 to 8 entries"),
    ("vae", "latent_channels", None, "a whole number from 1 to 1024"),
    ("vae", "layers_per_block", HUGE, "a whole number from 1 to 16"),
    ("vae", "latents_mean", [0.5], "null"),
    ("text", "num_layers", 1000, "a whole number from 1 to 100"),
    ("text", "d_ff", HUGE, "a whole number from 1 to 131072"),
    ("text", "vocab_size", HUGE, "a whole number from 1 to 1000000"),
    ("text", "relative_attention_num_buckets", "32", "a whole number from 4 to 4096"),
    ("text", "model_type", "umt5", '"t5"'),
    ("tokenizer", "extra_ids", HUGE, "a whole number from 0 to 10000"),
    ("tokenizer", "model_max_length", "long", "a number from 1 to 1e+31"),
    ("index", "_class_name", ["CogVideoXPipeline"], "a text of at most 100 characters"),
    ("index", "_class_name", MISSING, "a text of at most 100 characters"),
]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "transfer", begun)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def changed(small_folder, tmp_path, part, **values):
    model = shutil.copytree(small_folder, tmp_path / "model")
    path = model / FILES[part]
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not MISSING}))
    return model


@pytest.mark.parametrize(
    ("part", "key", "value", "expected"),
    [
        pytest.param(*row, marks=pytest.mark.fault(f"a bad or missing value in a model's {FILES[row[0]]}"))
        for row in REFUSED
    ],
)
def test_values(part, key, value, expected, small_folder, clip, tmp_path, capfd):
    model = changed(small_folder, tmp_path, part, **{key: value})
    found = f"it lacks {key}" if value is MISSING else f": {key}"
    parts = (FILES[part].split("/")[-1], found, f"expected {expected}")
    assert_refused(capfd, transfer_words(model, clip), 1, *parts)


@pytest.mark.fault("a model whose sizes are possible alone, and not together")
def test_products(small_folder, clip, tmp_path, capfd):
    sides = {name: 1000 for name in ("sample_frames", "sample_width", "sample_height")}
    model = changed(small_folder, tmp_path, "transformer", **sides)
    assert_refused(capfd, transfer_words(model, clip), 1, "the product of sample_frames, sample_height")


@pytest.mark.fault("a model with a value that only its library refuses")
@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("vae", {"norm_num_groups": 5}),
        ("vae", {"down_block_types": ["Own"] * 3}),
        ("transformer", {"activation_fn": "own"}),
        ("text", {"feed_forward_proj": "a-b-c"}),
        ("text", {"dense_act_fn": "a" * 100_000}),
        ("text", {"relative_attention_max_distance": 7}),
    ],
)
def test_values_that_only_the_library_knows(part, values, small_folder, clip, tmp_path, capfd):
    model = changed(small_folder, tmp_path, part, **values)
    assert_refused(capfd, transfer_words(model, clip), 1, f"{FILES[part].split('/')[0]}/ cannot be loaded")


def test_published_models_are_within_their_limits():
    left_out = {"transformer": {"max_text_seq_length": 226}}  # the YAML files leave diffusers' defaults out
    checked = 0
    for name in shipped_names("models"):
        facts = shipped(f"models/{name}.yaml")
        for part in {"transformer", "vae", "text_encoder"} & facts.keys():
            config = left_out.get(part, {}) | facts[part]
            FAMILIES[facts["family"]].config_schema(part).check(name, config)
            checked += 1
    assert checked == 18
