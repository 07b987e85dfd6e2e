"""Hub folder or id -> what a machine gets from it that has the libraries and not this package. A script, run by its path.

    python -I release/load_check.py FOLDER_OR_ID REVISION SCAN OUT

Loads with `trust_remote_code=True` and leaves OUT/tensors.safetensors and OUT/answers.json. SCAN is any file that CTFM reads;
for the trial-report model it is a text with a sentence a line.
"""

import json
import sys
from pathlib import Path
from typing import Any


def load_complete(source: str, loading: dict[str, Any]) -> Any:
    """The model; a weight that would be drawn at random is an error."""
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(source, output_loading_info=True, **loading)
    if report["missing_keys"]:
        raise ValueError(f"{source} lacks weights: {sorted(report['missing_keys'])}.")
    return model


def try_scans(source: str, scan: str, loading: dict[str, Any]) -> tuple[dict, Any]:
    """A scan's features, and the zero-shot answer for every finding that the checkpoint is calibrated for."""
    import torch
    from transformers import AutoProcessor, pipeline

    processor = AutoProcessor.from_pretrained(source, **loading)
    model = load_complete(source, loading)
    grade: Any = pipeline("zero-shot-image-classification", model=source, **loading)
    findings = list(getattr(model.config, "calibration", None) or ["Pleural effusion", "Lung nodule"])
    with torch.no_grad():
        output = model(**processor(images=scan, text=[f"{finding}." for finding in findings]))
    answers = grade(scan, candidate_labels=findings)
    if sorted(answer["label"] for answer in answers) != sorted(findings):
        raise ValueError(f"The pipeline was asked for {findings} and answered {answers}.")
    return {name: output[name] for name in ("image_embeds", "text_embeds", "logits_per_image")}, answers


def try_sentences(source: str, text: str, loading: dict[str, Any]) -> tuple[dict, Any]:
    """Logits of every sentence, and the name of its likeliest item."""
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(source, **loading)
    model = load_complete(source, loading)
    sentences = Path(text).read_text().splitlines()
    inputs = processor(sentences, [["Methods"]] * len(sentences))
    inputs.pop("cut_sentences")
    with torch.no_grad():
        logits = model(**inputs).logits
    return {"logits": logits}, [model.config.id2label[index] for index in logits[0].argmax(-1).tolist()]


def main() -> None:
    source, revision, scan, out = sys.argv[1:]
    sys.modules["ctfm"] = None  # type: ignore[assignment]  # not to be found, whatever is installed
    from safetensors.torch import save_file
    from transformers import AutoConfig

    loading = {"revision": revision, "trust_remote_code": True}
    kind = AutoConfig.from_pretrained(source, **loading).model_type
    tensors, answers = (try_sentences if kind == "trialreport" else try_scans)(source, scan, loading)
    wrong = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if wrong:
        raise ValueError(f"{wrong} of {source} are not finite.")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(out, "tensors.safetensors"))
    Path(out, "answers.json").write_text(json.dumps(answers, indent=1))


if __name__ == "__main__":
    main()
