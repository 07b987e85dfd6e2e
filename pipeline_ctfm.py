"""Scan -> how likely each finding is present, as transformers pipelines: of findings by name, and of those trained for.

from transformers import pipeline
grade = pipeline("zero-shot-image-classification", model=repo, trust_remote_code=True)
grade("study.zip", candidate_labels=["Pleural effusion", "Lung nodule"])
classify = pipeline("image-classification", model=fine_tuned, trust_remote_code=True)
classify("study.zip")
"""

# pyright: reportArgumentType=false, reportOptionalCall=false, reportCallIssue=false, reportReturnType=false
# transformers declares a pipeline's parts as optional and its image processors as takers of pictures.

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline

from .image_processing_ctfm import CTFMBatchFeature
from .modeling_ctfm import CTFMVisionOutput
from .volume_ctfm import Source


def finding_prompts(finding: str) -> tuple[str, str]:
    """What a report says when a finding is there and when it is not: "Pleural effusion.", "No pleural effusion."."""
    starts_like_a_word = finding[1:2].islower()
    return f"{finding}.", f"No {finding[0].lower() + finding[1:] if starts_like_a_word else finding}."


def calibrate(logit: float, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Logit of present over absent -> probability, its 95 % interval, and "present", "absent" or "not sure".

    Args:
        logit: of the softmax over the present and the absent prompt.
        numbers: of the finding, see `CTFMConfig.calibration`.
    """

    def probability(log_odds: float) -> float:
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, log_odds))))

    log_odds = numbers["slope"] * logit + numbers["intercept"]
    variance = numbers["intercept_variance"] + logit * (2 * numbers["covariance"] + logit * numbers["slope_variance"])
    reach = 1.96 * math.sqrt(max(variance, 0.0))
    found = probability(log_odds)
    is_unsure = numbers["unsure_low"] < found < numbers["unsure_high"]
    return {
        "probability": found,
        "interval": [probability(log_odds - reach), probability(log_odds + reach)],
        "verdict": "not sure" if is_unsure else "present" if found >= numbers["unsure_high"] else "absent",
    }


class CTFMPipeline(Pipeline):
    """What both pipelines share: scans come in whatever form `CTFMImageProcessor.preprocess` takes."""

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def preprocess(self, scan: Source, **reading: Any) -> CTFMBatchFeature:
        return self.image_processor(scan, return_tensors="pt", **reading)


def chosen(**settings: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in settings.items() if value is not None}


class CTFMImageClassificationPipeline(CTFMPipeline):
    """Grades the findings that a `CTFMForImageClassification` was trained for, named in `config.id2label`."""

    def _sanitize_parameters(
        self, spacing: Sequence[float] | str | None = None, series_uid: str | None = None, top_k: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return chosen(spacing=spacing, series_uid=series_uid), {}, chosen(top_k=top_k)

    def _forward(self, inputs: CTFMBatchFeature) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**inputs).logits}

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: int | None = None) -> list[dict[str, Any]]:
        """The `top_k` likeliest findings, all by default: `[{"label": str, "score": float}, ...]`.

        The score is a sigmoid for every finding; with `config.problem_type` "single_label_classification" the softmax over all;
        with "regression" the number itself. Findings that the head is calibrated for also have `probability`, `interval` and
        `verdict`.
        """
        logits, config = outputs["logits"][0].float(), self.model.config
        graded = grade_labels(logits, config.id2label or {}, config.problem_type, config.calibration or {})
        return sorted(graded, key=lambda row: -row["score"])[:top_k]


def grade_labels(
    logits: torch.Tensor,
    id2label: Mapping[int, str],
    problem_type: str | None,
    calibration: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Logits `(labels,)` of a trained head -> label, score and, where it is calibrated, probability, interval and verdict."""
    if problem_type == "regression":
        scores = logits
    else:
        scores = logits.softmax(0) if problem_type == "single_label_classification" else logits.sigmoid()
    graded = []
    for number, name in id2label.items():
        logit, score = float(logits[int(number)]), float(scores[int(number)])
        known = calibrate(logit, calibration[name]) if name in calibration else {}
        graded.append({"label": name, "score": score} | known)
    return graded


class CTFMZeroShotPipeline(CTFMPipeline):
    """Grades findings that the model was never told about, by comparing the scan with a present and an absent prompt of each.

    The score is the softmax over the two: it orders scans. Of the findings that the checkpoint is calibrated for, a
    probability with its interval and a verdict stand beside it.

    Raises:
        ValueError: the weights are of a model without a joint space of scans and texts, a fine-tuned one for instance.
    """

    _load_tokenizer = True

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        saved_as = self.model.config.architectures or ["CTFMModel"]
        if "CTFMModel" not in saved_as:
            raise ValueError(
                f"The checkpoint holds {', '.join(saved_as)}, which has no joint space of scans and texts, so findings cannot "
                'be graded by name. For the findings that it was trained for: pipeline("image-classification", ...).'
            )

    def _sanitize_parameters(
        self,
        candidate_labels: str | Sequence[str] | None = None,
        spacing: Sequence[float] | str | None = None,
        series_uid: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if isinstance(candidate_labels, str):
            candidate_labels = [candidate_labels]
        labels = {} if candidate_labels is None else {"candidate_labels": list(candidate_labels)}
        return chosen(spacing=spacing, series_uid=series_uid), {}, labels

    def _forward(self, inputs: CTFMBatchFeature) -> dict[str, torch.Tensor]:
        return self.keep(self.model.get_image_features(**inputs, output_dense_features=self.model.config.token_scores))

    @staticmethod
    def keep(output: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `postprocess` needs of `CTFMModel.get_image_features`."""
        wanted = ("pooler_output", "last_hidden_state", "dense_features", "occupied")
        return {name: output[name] for name in wanted if output.get(name) is not None}

    def postprocess(
        self, outputs: dict[str, torch.Tensor], candidate_labels: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Findings by falling score: `[{"label": str, "score": float}, ...]`, calibrated ones with what `calibrate` says."""
        if not candidate_labels or not all(isinstance(label, str) and label.strip() for label in candidate_labels):
            raise ValueError(
                f'candidate_labels {list(candidate_labels)} must name the findings to grade: "Pleural effusion", or '
                f'["Pleural effusion", "Lung nodule"].'
            )
        calibration = self.model.config.calibration or {}
        spelt = {
            name.casefold(): name for name in calibration
        }  # a calibration holds for the prompts it was fitted with
        findings = [spelt.get(label.strip().casefold(), label) for label in candidate_labels]
        prompts = [prompt for finding in findings for prompt in finding_prompts(finding)]
        tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            text = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
            present, absent = torch.nn.functional.normalize(text, dim=-1).view(len(findings), 2, -1).unbind(1)
            image = CTFMVisionOutput(**{name: tensor.to(text.device) for name, tensor in outputs.items()})
            differences = self.model.score_texts(image, present - absent)[0][0].float()
        graded = []
        for label, finding, logit, score in zip(
            candidate_labels, findings, differences.tolist(), differences.sigmoid().tolist(), strict=True
        ):
            known = calibrate(logit, calibration[finding]) if finding in calibration else {}
            graded.append({"label": label, "score": score} | known)
        return sorted(graded, key=lambda row: -row["score"])


__all__ = ["CTFMImageClassificationPipeline", "CTFMZeroShotPipeline", "calibrate", "finding_prompts"]
