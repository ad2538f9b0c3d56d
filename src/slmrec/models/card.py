"""Model cards: the description of a model for people and hubs, in README.md of its folder."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from slmrec.config.item_text import MINILM
from slmrec.config.yaml_text import dump_yaml
from slmrec.errors import ConfigError
from slmrec.models.model import Model
from slmrec.packaged import GEMMA, SMOLLM2

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_IDS = {
    SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct",
    MINILM: "sentence-transformers/all-MiniLM-L6-v2",
    GEMMA: "google/gemma-3-270m",
}
_LICENSES = dict.fromkeys(_HUB_IDS.values(), "apache-2.0") | {_HUB_IDS[GEMMA]: "gemma"}
_NOTICES = {
    _HUB_IDS[
        GEMMA
    ]: "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; "
    "whoever passes this folder on passes them on too"
}
"""Notices that a licence asks for wherever weights that were made from a model are passed on."""
_LICENSE, _LANGUAGE = re.compile(r"[a-z0-9][a-z0-9.-]*"), re.compile(r"[a-z]{2,3}|code|multilingual")
_TASK = {"type": "sequential-recommendation", "name": "Sequential recommendation"}


@dataclass(frozen=True)
class Measured:
    """Result of an evaluation of a model under one protocol."""

    protocol: str
    settings: Mapping[str, Any]
    """Settings of the protocol: `split`, `eval_mode`, `exclude_history`, `num_negatives`, `ties`, `seed`."""
    metrics: Mapping[str, float]
    num_users: int
    num_items: int
    """Size of the catalogue at the time of the evaluation."""
    command: str
    """Command that ran the evaluation."""


@dataclass(frozen=True)
class About:
    """Metadata of a model, besides what its folder shows."""

    title: str = "SLMRec"
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics on the validation split."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Preparation of the data: `rules`, and the `sources` with their checksums."""
    measured: tuple[Measured, ...] = ()
    """Results of `evaluate`, the primary protocol first."""
    protocol: str = ""
    """Protocol of `metrics`; empty if it is not known."""
    license: str | None = None
    """Identifier of the licence on hubs; None: none has been chosen."""
    language: Sequence[str] = ()
    """Codes of the languages of the item texts."""

    def published_as(self, license: str | None, language: str | Sequence[str] | None) -> "About":
        """Return the metadata with a licence and languages; None keeps what is there.

        Raises:
            ConfigError: The licence or a language is not written as hubs expect it.

        Example:
            >>> About().published_as("mit", "en").language
            ('en',)
        """
        codes = self.language if language is None else (language,) if isinstance(language, str) else tuple(language)
        if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
            raise ConfigError(
                f"license is {license!r}, expected an identifier such as mit, apache-2.0, cc-by-nc-4.0 or other "
                "(https://huggingface.co/docs/hub/repositories-licenses)"
            )
        for code in codes:
            if not (isinstance(code, str) and _LANGUAGE.fullmatch(code)):
                raise ConfigError(f"language has {code!r}, expected ISO 639 codes such as en or deu, or multilingual")
        return replace(self, license=license or self.license, language=codes)


def check_card(about: About) -> None:
    """Check that the metadata of a model makes a card.

    Raises:
        ValueError: An entry is missing, or of another form.
    """
    for measured in about.measured:
        absent = {"split", "exclude_history", "num_negatives", "ties", "seed"} - measured.settings.keys()
        if absent:
            raise ValueError(f"the settings of {measured.protocol} lack {', '.join(sorted(absent))}")
    sources = about.preprocessing.get("sources", ())
    if not isinstance(sources, Sequence) or not all(isinstance(source, Mapping) for source in sources):
        raise ValueError("the sources of preprocessing are no list of objects")


def card(model: Model, about: About, item_id: str | int, vocabulary_file: str) -> str:
    """Return the text of a card, which begins with the metadata that hubs read.

    Args:
        model: The model.
        about: Its metadata.
        item_id: An item, for the example.
        vocabulary_file: Name of the file of its items.
    """
    unit = model.timestamp_unit
    asked = f"[[{item_id!r}]]" if unit is None else f"[[{item_id!r}]], timestamps=[[0]]"
    use = f'from slmrec import Recommender\n\nRecommender.from_pretrained("this folder").recommend({asked})'
    copied = json.loads(json.dumps(_metadata(model, about)))  # YAML writes repeated objects as references
    metadata = dump_yaml(copied)
    text = (
        f"---\n{metadata}---\n\n# {about.title}\n\n"
        f"Next-item recommendation for {model.num_items} items, {model.num_parameters():,} parameters.\n\n"
        f"```python\n{use}\n```\n\n"
        f"A history is a list of item ids, oldest first, of which the newest {model.max_history_items} are read. Items "
        f"that are not in `{vocabulary_file}` are ignored; without a known item, the most popular items are returned.\n"
    )
    if unit is not None:
        text += f"\nThe model reads the times of the items too: `timestamps`, in {unit} since 1970-01-01 UTC.\n"
    for measured in about.measured:
        text += f"\n{_described(measured)}\n\n{_table(measured.metrics)}"
    if about.metrics:
        protocol = f", protocol `{about.protocol}`" if about.protocol else ""
        text += f"\nValidation split{protocol}:\n\n{_table(about.metrics)}"
    rules = about.preprocessing.get("rules")
    text += f"\nThe data was prepared with `{json.dumps(rules)}`.\n" if rules else ""
    return f"{text}\n## Licence\n\n{_licence(model, about)}\n"


def _licence(model: Model, about: About) -> str:
    """Return sentences about the licence of a model, and about those of the pretrained models in it."""
    chosen = (
        f"The licence of this model is `{about.license}`."
        if about.license
        else "No licence has been chosen for this model: whoever publishes it chooses one, by `license=` of "
        "`save_pretrained` or `push_to_hub`."
    )
    parts = []
    if (backbone := _backbone(model)) is not None:
        assert model.decoder_part is not None
        needs = "adapters on top of" if model.decoder_part.config.adapts_backbone else "layers of"
        parts.append(f"It holds {needs} {_origin(backbone)}.")
        parts += [f"{notice}." for notice in (_NOTICES.get(_HUB_IDS.get(backbone, backbone)),) if notice]
    texts = [text.reader.settings for text in model.text_maps().values() if text.reader is not None]
    readers = dict.fromkeys(s.source for s in texts if s.reads_language_model and not s.random_weights)
    parts += [f"Its vectors of item texts were computed by {_origin(source)}." for source in readers]
    return " ".join([chosen, *parts])


def _origin(source: str) -> str:
    """Return name and licence of a pretrained model; of a local one the name alone."""
    hub_id = _HUB_IDS.get(source, source)
    if not HUB_ID.fullmatch(hub_id):
        return f"`{PurePath(source).name}`, under the licence of that model"
    licence = f"licence `{_LICENSES[hub_id]}`" if hub_id in _LICENSES else "under the licence named there"
    return f"[{hub_id}](https://huggingface.co/{hub_id}), {licence}"


def _backbone(model: Model) -> str | None:
    """Return the source of the pretrained decoder of a model; None if it has none."""
    decoder = model.decoder_part
    source = None if decoder is None else decoder.config.backbone or decoder.config.base_model
    return None if source in (None, "random") else str(source)


def _described(measured: Measured) -> str:
    settings = measured.settings
    sampled, history = settings["num_negatives"], "excluded" if settings["exclude_history"] else "not excluded"
    against = f"{sampled} sampled items" if sampled else f"all {measured.num_items:,} items"
    return (
        f"Protocol `{measured.protocol}`: split `{settings['split']}`, {measured.num_users:,} users, ranked against "
        f"{against}, history {history}, ties {settings['ties']}, seed {settings['seed']}; measured by "
        f"`{measured.command}`:"
    )


def _table(metrics: Mapping[str, float]) -> str:
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    return f"| metric | value |\n|---|---|\n{rows}\n"


def _metadata(model: Model, about: About) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "slmrec", "pipeline_tag": "other"}
    metadata |= {"license": about.license} if about.license else {}
    metadata |= {"language": list(about.language)} if about.language else {}
    backbone = _backbone(model) or ""
    hub_id = _HUB_IDS.get(backbone, backbone)
    if HUB_ID.fullmatch(hub_id):
        metadata["base_model"] = hub_id
    metadata["tags"] = ["sequential-recommendation"]
    results = _results(about)
    if results:
        metadata["model-index"] = [{"name": about.title, "results": results}]
    return metadata


def _results(about: About) -> list[dict[str, Any]]:
    """Return the entries of the model index: each protocol on the test split, and the validation split."""
    files = [str(source.get("file")) for source in about.preprocessing.get("sources", ())]
    data = {"name": files[0] if files else "unnamed", "type": files[0] if files else "unnamed"}
    results: list[dict[str, Any]] = []
    for measured in about.measured:
        settings = {"protocol": measured.protocol, **measured.settings}
        results.append(
            _result(data | {"config": measured.protocol, "split": "test", "args": settings}, measured.metrics)
        )
    if about.metrics:
        protocol = {"config": about.protocol} if about.protocol else {}
        results.append(_result(data | protocol | {"split": "validation"}, about.metrics))
    return results


def _result(data: dict[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    values = [{"type": name, "value": round(value, 6)} for name, value in metrics.items()]
    return {"task": _TASK, "dataset": data, "metrics": values}
