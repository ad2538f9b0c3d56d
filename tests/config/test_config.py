"""Settings: all faults at once, unknown keys with a suggestion, every recipe valid."""

from pathlib import Path

import pytest

from slmrec.config import Config, DecoderStudent, SasRecStudent
from slmrec.config.load import load_config, vary
from slmrec.errors import ConfigError
from slmrec.pipeline.stage import dump


def student_of(config: Config) -> DecoderStudent:
    assert isinstance(config.distill.student, DecoderStudent)
    return config.distill.student


SEVERAL = """
item_text: {llm: {source: any, num_components: 2}, other: {source: any, layer: 3}}
pretrain:
  small: {hidden_size: 8, low_pass: {frequencies: 3}, max_history_items: 20}
  small_2: {hidden_size: 8, max_history_items: 20, seed: 7}
  text: {kind: decoder, item_text: llm, item_text_side: score, max_history_items: 20, item_dim: 8}
finetune:
  backbone: any
  item_vectors: small_2
  item_text: other
  ensemble: [small, text]
  prompt: {prefix: "Items: "}
  max_history_items: 20
  layers: [0, 2, 4]
distill:
  student: {kind: sasrec, hidden_size: 16}
  weights: {ce: 1, cosine: 0, norm: 0, multiple: 0, kl: 1}
"""


def test_a_configuration_with_several_models_is_written_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SEVERAL, encoding="utf-8")
    config = load_config(tmp_path / "recipe.yaml", [])
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    again = load_config(tmp_path / "config.yaml", [])
    assert again == config and dump(again) == dump(config)
    assert [type(model).__name__ for model in again.pretrain.values()] == ["SasRecModel", "SasRecModel", "DecoderModel"]
    assert vary(again, {"distill.student.hidden_size": 8}, "here").distill.student == SasRecStudent(hidden_size=8)


def test_defaults_are_those_of_the_paper() -> None:
    config = Config()
    lora = config.finetune.lora
    assert lora is not None
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (16, 16, 0.05)
    assert set(lora.target_modules) == {"gate_proj", "up_proj", "down_proj"}
    assert (config.finetune.num_layers, student_of(config).num_layers, config.distill.num_blocks) == (8, 4, 4)
    assert (config.distill.weights.cosine, config.distill.weights.norm) == (1.0, 0.1)
    assert config.evaluate.sampled == (999,)


def test_overrides_reach_any_depth_and_keep_the_other_defaults() -> None:
    overrides = ["distill.train.learning_rate=1e-4", "finetune.lora.r=4", "finetune.layers=[0, 1, 5, 6]"]
    config = load_config(None, overrides)
    assert config.distill.train.learning_rate == 1e-4
    assert config.distill.train.num_train_epochs == 5
    assert config.finetune.lora is not None and (config.finetune.lora.r, config.finetune.lora.lora_alpha) == (4, 16)
    assert config.finetune.layers == (0, 1, 5, 6)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["distil.num_blocks=2", "finetune.lora.rr=2", "finetune.num_layers=0"])
    message = str(caught.value)
    assert "unknown key 'distil' (did you mean 'distill'?)" in message
    assert "unknown key 'finetune.lora.rr' (did you mean 'r'?)" in message
    assert "finetune.num_layers is 0" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["finetune.supervision=every_position"], "the prompt must have no response"),
        (["finetune.backbone=random"], "backbone is 'random' and backbone_config is None; backbone: random needs"),
        (["finetune.backbone_config={model_type: llama}"], "and no other backbone uses it"),
        (["finetune.backbone=random", "finetune.backbone_config={model_type: llama}"], "LoRA on random weights"),
        (["pretrain.sasrec={item_side: both}"], "item_side is both, but item_text is null"),
        (["distill.student={kind: text}"], "kind is 'text'; choose from sasrec, decoder"),
        (
            ["item_text.w={source: words}", "pretrain.sasrec.item_text=w"],
            "item_side is ids, so item vectors start .* whitening: zca does not keep; set item_text.w.whitening=pca",
        ),
        (
            ["pretrain.sasrec={low_pass: {frequencies: 11}, max_history_items: 20}"],
            "low_pass.frequencies is 11, but a window of max_history_items 20 has 11 frequencies, so the filter would",
        ),
        (
            ["pretrain.sasrec.low_pass.weight=1"],
            r"sasrec\.low_pass\.weight is 1: Input should be less than 1",
        ),
        (
            ["pretrain.sasrec.num_attention_heads=3"],
            r"pretrain\.sasrec: num_attention_heads is 3, which does not divide hidden_size 64",
        ),
        (["pretrain.teacher.hidden_size=8"], "pretrain has 'teacher', which is reserved for another model"),
        (["pretrain.popularity.hidden_size=8"], "pretrain has 'popularity', which is reserved for another model"),
        (["pretrain={a/b: {}}"], "pretrain has 'a/b': names are folders; use letters, digits"),
        (["pretrain.text.kind=rnn"], r"pretrain\.text: kind is 'rnn'; choose from sasrec, text, decoder"),
        (["pretrain.text=8"], r"pretrain\.text: got 8, expected settings such as \{kind: sasrec\}"),
        (["finetune.item_vectors=text"], "'text', which is neither a base model .sasrec. nor a file"),
        (["finetune.item_text=llm"], "finetune.item_text is 'llm', which is not a key of item_text .none."),
        (["pretrain.text={kind: decoder, item_text: llm}"], "pretrain.text.item_text is 'llm', which is not a key"),
        (["distill.weights={ce: 0, cosine: 0, norm: 0, multiple: 0}"], "all weights are 0"),
        (["distill.num_blocks=1"], r"num_blocks is 1, so .*; set distill\.weights\.multiple=0, or num_blocks to 2"),
        (["distill.num_blocks=3"], r"^the command line: distill\.num_blocks is 3, but the student has 4 layers"),
        (["finetune.layers=[0, 1, 2, 3, 4, 5]"], r"num_blocks is 4, .* 4 layers and the teacher 6; choose a number th"),
        (["finetune.layers=[0, 3]", "finetune.num_layers=3"], "lists 2 layers but num_layers is 3"),
        (["finetune.layers=[0"], "is not a YAML value"),
        (["finetune.backbone=null"], "backbone is null and ensemble is empty, so the teacher would have no model"),
        (["seed"], "expected key.path=value"),
        (["seed.x=1", "seed.y=2"], "seed"),
        (["finetune.train.eval_steps=3"], "unknown key 'finetune.train.eval_steps'"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(None, overrides)


def test_blocks_are_not_compared_with_an_unknown_teacher() -> None:
    assert load_config(None, ["distill.num_blocks=3", "distill.teacher=FOLDER"]).distill.num_blocks == 3


KL_ONLY = "distill.weights={ce: 0, cosine: 0, norm: 0, multiple: 0, kl: 1}"
SASREC = "distill.student.kind=sasrec"
NO_DECODER = ["finetune.backbone=null", "finetune.ensemble=[sasrec]"]
WITH_ENSEMBLE = ["finetune.ensemble=[sasrec]", "distill.keep_ensemble=true"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([SASREC], "cosine, norm and multiple read hidden states, but distill.student.kind is 'sasrec', which has non"),
        ([SASREC, "distill.teacher=FOLDER"], "which has none to compare; set these weights to 0"),
        ([SASREC, KL_ONLY, *WITH_ENSEMBLE], "distill.student.kind is 'sasrec', which cannot replace the teacher's dec"),
        (NO_DECODER, "distill.student.kind is 'decoder', but finetune.backbone is null, so the teacher has no decoder"),
        (
            [*NO_DECODER, SASREC, KL_ONLY, "distill.mode=online"],
            "no decoder that could keep learning; set distill",
        ),
        ([*NO_DECODER, KL_ONLY, "distill.keep_ensemble=true"], "finetune.backbone is None and finetune.ensemble .'sas"),
        ([SASREC, KL_ONLY, "distill.student.max_history_items=20"], "is 20, but the teacher reads 50 items; leave di"),
        ([SASREC, KL_ONLY, "distill.student.low_pass.frequencies=26"], "a window of max_history_items 50 has 26 freq"),
    ],
)
def test_a_student_must_fit_its_teacher(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(None, overrides)


def test_a_teacher_without_decoder_teaches_a_student_without_states() -> None:
    config = load_config(None, [*NO_DECODER, SASREC, KL_ONLY, "finetune.supervision=every_position"])
    assert config.trains_teacher and config.base_model_of_teacher is None


def test_a_fault_names_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("sed: 1\nfinetune: {num_layer: 2}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["distill.num_block=1", "distill.num_blocks=1", "prepare={imput: x}", "seed=2"])
    assert str(caught.value).split("; ") == [
        "override 'prepare={imput: x}': unknown key 'prepare.imput' (did you mean 'input'?)",
        f"{path}: unknown key 'finetune.num_layer' (did you mean 'num_layers'?)",
        "unknown key 'sed' (did you mean 'seed'?)",
        "override 'distill.num_block=1': unknown key 'distill.num_block' (did you mean 'num_blocks'?)",
    ]
    path.write_text("distill: {weights: {multiple: 1}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.yaml and the command line: distill: num_blocks is 1, so"):
        load_config(path, ["distill.num_blocks=1"])


def test_a_section_that_the_recipe_leaves_out_is_begun_by_its_first_setting(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("finetune: {lora: null}", encoding="utf-8")
    lora = load_config(path, ["finetune.lora.r=8"]).finetune.lora
    assert lora is not None and (lora.r, lora.lora_alpha) == (8, 16)
    with pytest.raises(ConfigError, match=r"override 'seed\.x=1': 'seed' is 42, which has no settings of its own"):
        path.write_text("seed: 42", encoding="utf-8")
        load_config(path, ["seed.x=1"])


def test_a_brought_teacher_needs_no_sasrec_of_its_own() -> None:
    brought = ["pretrain={}", "distill.teacher=out/finetune"]
    assert load_config(None, [*brought, "finetune.ensemble=[sasrec]"]).finetune.ensemble == ("sasrec",)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain.sasrec.train.loss=sampled_softmax"], "loss is sampled_softmax and num_sampled is None"),
        (["finetune.train.num_sampled=8"], "loss is ce and num_sampled is 8; loss: sampled_softmax needs num_sampled"),
        (
            ["finetune.train.per_device_train_batch_size=auto"],
            "is auto and reference_batch_size is not set; give the",
        ),
        (
            [
                "finetune.train.per_device_train_batch_size=auto",
                "finetune.train.reference_batch_size=8",
                "finetune.train.gradient_accumulation_steps=2",
            ],
            "gradient_accumulation_steps is 2; auto divides a step itself",
        ),
        (["distill.train.per_device_train_batch_size=0"], "got 0, expected a whole number from 1, or auto"),
        (["distill.train.per_device_train_batch_size=large"], "got 'large', expected a whole number from 1, or auto"),
        (["distill.train.per_device_train_batch_size=1.5"], "got 1.5, expected a whole number from 1, or auto"),
        (["finetune.ensemble=[text]"], "finetune.ensemble has 'text', which is not a base model of pretrain .sasrec."),
        (["finetune.ensemble=[sasrec, sasrec]"], r"ensemble is \['sasrec', 'sasrec'\]; name each model once"),
        (
            [
                "finetune={ensemble: [text], item_vectors: null}",
                "pretrain.text={kind: decoder, lora: {r: 2}, backbone: x, backbone_config: null}",
            ],
            "adapters of a base model cannot be saved in an ensemble; set pretrain.text.lora=null",
        ),
        (["evaluate.models=[text]"], "evaluate.models has 'text', which is not a model of the run; choose from"),
        (
            ["distill.keep_ensemble=true"],
            "distill.keep_ensemble is true, but finetune.backbone is 'smollm2-135m'",
        ),
        (
            ["finetune.ensemble=[sasrec]", "pretrain.sasrec.max_history_items=20"],
            "max_history_items is 50 and pretrain.sasrec.max_history_items is 20; the models of an ensemble read hist",
        ),
        (
            ["evaluate.protocols=[full, sample]", "evaluate.primary_protocol=full"],
            "protocols has 'sample'; choose",
        ),
        (["evaluate.protocols=[full]"], "primary_protocol is 'full_history_excluded', which is not one of protocols"),
        (["evaluate.num_negatives=20"], "num_negatives is 20, which disagrees with protocols"),
        (
            ["distill.student.layers=middle"],
            r"layers=middle.*Input should be 'first', 'evenly_spaced' or 'influence'",
        ),
        (
            ["pretrain.sasrec.train.gradient_checkpointing=true"],
            "unknown key 'pretrain.sasrec.train.gradient_checkpointing'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize("setting", ["finetune.num_layers=2", "distill.num_blocks=2", "evaluate.models=[student]"])
def test_a_run_without_student_refuses_settings_of_one(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"have no effect|is not a model of the run"):
        load_config(None, ["distill.teacher=null", setting])
    assert not load_config(None, ["distill.teacher=null"]).trains_student
