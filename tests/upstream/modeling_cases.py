"""Our classes for transformers' own model tests. `tests/test_upstream.py` copies this file beside those tests, where the
relative imports below resolve, and runs it there; it is not collected here."""

import math
import unittest

import torch
from ctfm import (
    CTFMBackbone,
    CTFMConfig,
    CTFMForImageClassification,
    CTFMForSemanticSegmentation,
    CTFMGlobalConfig,
    CTFMModel,
    CTFMVisionConfig,
    CTFMVisionModel,
)
from ctfm.modeling_ctfm import CTFMGlobalModel, CTFMLocalModel
from transformers.models.auto import modeling_auto

from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

# The tests learn from these tables which class is a bare model without a loss and which are heads with labels.
modeling_auto.MODEL_MAPPING_NAMES |= {
    "ctfm": "CTFMModel",
    "ctfm_vision": "CTFMVisionModel",
    "ctfm_global": "CTFMGlobalModel",
    "ctfm_local": "CTFMLocalModel",
}
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["ctfm_vision"] = "CTFMBackbone"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["ctfm"] = "CTFMForImageClassification"

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "layerscale_value": 1.0}
GLOBAL = LAYERS | {"hidden_size": 36}
VISION = LAYERS | {"hidden_size": 24, "patch_size": [2, 4, 4], "num_register_tokens": 1, "global_config": GLOBAL}
TEXT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DUAL = {
    "vision_config": VISION,
    "text_config": TEXT,
    "projection_hidden_size": 32,
    "projection_bottleneck_size": 16,
    "projection_dim": 24,
    "logit_scale_init_value": 0.0,  # with the defaults, logits around -10: half precision resolves less there
    "logit_bias_init_value": 0.0,  # than what is compared
    "num_labels": 3,
}


class VisionTester:
    """Scans of two crops, each of 2 x 2 x 2 patches."""

    batch_size = 7  # what the comparison of attention back ends wants; with fewer it makes up crop grids of its own
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 24
    seq_length = 2 + 8  # class token, register, patches
    mask_length = 8  # patches that can be hidden
    num_masks = 3

    def get_config(self) -> CTFMVisionConfig:
        return CTFMVisionConfig(**VISION)

    def prepare_config_and_inputs_for_common(self) -> tuple[CTFMVisionConfig, dict[str, torch.Tensor]]:
        grid = torch.tensor([[1, 1, 2]]).repeat(self.batch_size, 1)
        crops = floats_tensor([self.batch_size, 2, 1, 4, 8, 8])
        return self.get_config(), {"pixel_values": crops, "crop_grid": grid}


class CropTester(VisionTester):
    def prepare_config_and_inputs_for_common(self) -> tuple[CTFMVisionConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 1, 4, 8, 8])}


class GlobalTester:
    batch_size = 7
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 36
    seq_length = 1 + 6  # class token, descriptors

    def get_config(self) -> CTFMGlobalConfig:
        return CTFMGlobalConfig(**GLOBAL, input_size=48)

    def prepare_config_and_inputs_for_common(self) -> tuple[CTFMGlobalConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {
            "descriptors": floats_tensor([self.batch_size, 6, 48]),
            "coordinates": floats_tensor([self.batch_size, 6, 3]) - 0.5,
            "descriptor_mask": torch.arange(6)[None] < torch.arange(self.batch_size)[:, None] + 1,
        }


class HeadTester(VisionTester):
    def get_config(self) -> CTFMConfig:
        return CTFMConfig(**DUAL, problem_type="single_label_classification")  # one label a scan is what the tests make


class TextTester:
    batch_size = 7
    num_hidden_layers = 2
    seq_length = 6

    def prepare_config_and_inputs_for_common(self) -> tuple[None, dict[str, torch.Tensor]]:
        ids = ids_tensor([self.batch_size, self.seq_length], TEXT["vocab_size"])
        mask = torch.arange(self.seq_length)[None] < torch.arange(self.batch_size)[:, None] + 1
        return None, {"input_ids": ids, "attention_mask": mask.long()}


class DualTester(HeadTester):
    def __init__(self) -> None:
        self.text_model_tester = TextTester()
        self.vision_model_tester = VisionTester()

    def prepare_config_and_inputs_for_common(self) -> tuple[CTFMConfig, dict[str, torch.Tensor]]:
        _, images = self.vision_model_tester.prepare_config_and_inputs_for_common()
        _, texts = self.text_model_tester.prepare_config_and_inputs_for_common()
        return self.get_config(), images | texts


class CTFMTests(ModelTesterMixin):
    """What all our models have in common, against what the tests expect of a text model."""

    test_resize_embeddings = (
        False  # no tokens go into a vision model, and the dual model shares its embedding with none
    )
    test_can_init_all_missing_weights_before_2023 = True  # run it, though our files bear no year for it to read

    def test_model_get_set_embeddings(self) -> None:
        """Instead of the original, which wants `nn.Embedding`: voxels and descriptors go through a linear layer."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            embeddings = model_class(config).get_input_embeddings()
            assert isinstance(embeddings, (torch.nn.Linear, torch.nn.Embedding))


class CTFMGridTests(CTFMTests):
    """Models that take a grid of crops."""

    additional_model_inputs = ["crop_grid"]
    test_all_params_have_gradient = False  # the mask token has none: only CTFMLocalModel hides patches

    @unittest.skip(
        "What flows on are hidden states by crop; the output holds a view of them by scan. See CTFMLocalModel."
    )
    def test_retain_grad_hidden_states_attentions(self) -> None: ...


class CTFMVisionModelTest(CTFMGridTests, unittest.TestCase):
    all_model_classes = (CTFMVisionModel,)

    def setUp(self) -> None:
        self.model_tester = VisionTester()
        self.config_tester = ConfigTester(self, CTFMVisionConfig, has_text_modality=False, hidden_size=48)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class CTFMLocalModelTest(CTFMTests, unittest.TestCase):
    all_model_classes = (CTFMLocalModel,)

    def setUp(self) -> None:
        self.model_tester = CropTester()


class CTFMBackboneTest(BackboneTesterMixin, CTFMTests, unittest.TestCase):
    all_model_classes = (CTFMBackbone,)
    config_class = CTFMVisionConfig

    def setUp(self) -> None:
        self.model_tester = CropTester()

    @unittest.skip("Takes the first output for a tensor; a backbone's is a tuple of maps.")
    def test_retain_grad_hidden_states_attentions(self) -> None: ...


class CTFMGlobalModelTest(CTFMTests, unittest.TestCase):
    all_model_classes = (CTFMGlobalModel,)
    additional_model_inputs = ["coordinates"]

    def setUp(self) -> None:
        self.model_tester = GlobalTester()
        self.config_tester = ConfigTester(self, CTFMGlobalConfig, has_text_modality=False, hidden_size=48)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class CTFMModelTest(CTFMGridTests, unittest.TestCase):
    all_model_classes = (CTFMModel,)
    additional_model_inputs = ["crop_grid", "input_ids"]
    _is_composite = True
    skip_test_image_features_output_shape = (
        True  # expects a scan's features as wide as vision_config; ours as global_config
    )

    def setUp(self) -> None:
        self.model_tester = DualTester()
        self.config_tester = ConfigTester(self, CTFMConfig, has_text_modality=False, projection_dim=24)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @unittest.skip("A dual model has no attentions of its own; the towers' are looked at in get_{text,image}_features.")
    def test_attention_outputs(self) -> None: ...

    @unittest.skip(
        "A dual model has no hidden states of its own; the towers' are looked at in get_{text,image}_features."
    )
    def test_hidden_states_output(self) -> None: ...


class CTFMForImageClassificationTest(CTFMGridTests, unittest.TestCase):
    all_model_classes = (CTFMForImageClassification,)
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = HeadTester()


class CTFMForSemanticSegmentationTest(CTFMGridTests, unittest.TestCase):
    all_model_classes = (CTFMForSemanticSegmentation,)
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = HeadTester()

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            b, g, _, *voxels = inputs["pixel_values"].shape
            inputs["labels"] = torch.arange(math.prod(voxels)).view(1, 1, *voxels).expand(b, g, *voxels) % 3
        return inputs
