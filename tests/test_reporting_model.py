"""The sentence labeller: equality of paths, truncation, saving and loading."""

import json

import pytest
import torch
from ctfm.reporting import TrialReportConfig, TrialReportForSentenceLabels, TrialReportProcessor
from ctfm.reporting.build import VIEWS, Member, mix, predict, read_article, reset, share_table, start_consort
from ctfm.reporting.check import DEFAULT_CHECKPOINT
from ctfm.reporting.corpora import Article
from ctfm.reporting.processing_trialreport import SECTION_KINDS, section_kind
from ctfm.reporting.train import learning_rate_scale, load_bert
from huggingface_hub.errors import StrictDataclassClassValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    ".",
    ">",
    "walk",
    "rest",
    "knee",
    "pain",
    "list",
    "trial",
    "random",
    "blind",
]
WORDS += ["made", "kept", "by", "the", "of", "methods"]
SENTENCES = ["walk the knee .", "pain of the trial .", "list made by random .", "kept blind .", "rest ."] * 4
SECTIONS = [["methods"]] * 8 + [["methods", "blind"]] * 4 + [["results"]] * 8


@pytest.fixture(scope="module")
def processor():
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    return TrialReportProcessor(tokenizer, window_tokens=24, sentence_tokens=8, header_tokens=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = TrialReportConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        sentence_intermediate_size=32,
        sentence_context=4,
        initializer_range=0.2,
        id2label={0: "consort:2b", 1: "consort:3a", 2: "spirit:7_Objectives"},
        label2id={"consort:2b": 0, "consort:3a": 1, "spirit:7_Objectives": 2},
    )
    return TrialReportForSentenceLabels(config).eval()


@pytest.fixture
def views(model, processor):
    """A model with every view of a release, and its processor."""
    torch.manual_seed(1)
    config = TrialReportConfig(**{**model.config.to_dict(), "num_sentence_encoders": 2, "lexical_buckets": 64})
    seeing = TrialReportForSentenceLabels(config).eval()
    torch.nn.init.normal_(seeing.lexical.table.scale, std=0.05)
    seeing.lexical.table.values.random_(-127, 128)
    return seeing, TrialReportProcessor(processor.tokenizer, window_tokens=24, sentence_tokens=8, lexical_buckets=64)


def run(model, processor, sentences, sections):
    batch = processor(sentences, sections)
    with torch.no_grad():
        return model(**{name: batch[name] for name in processor.model_input_names}).logits


def test_a_report_gets_the_same_logits_alone_and_in_a_batch(model, processor):
    alone = run(model, processor, SENTENCES, SECTIONS)[0]
    short = (["pain .", "rest ."], [[], []])
    both = run(model, processor, [SENTENCES, short[0]], [SECTIONS, short[1]])
    torch.testing.assert_close(both[0], alone)
    torch.testing.assert_close(both[1, :2], run(model, processor, *short)[0])


def test_chunks_of_windows_change_nothing(model, processor):
    expected = run(model, processor, SENTENCES, SECTIONS)
    model.config.windows_per_chunk = 1
    torch.testing.assert_close(run(model, processor, SENTENCES, SECTIONS), expected)
    model.config.windows_per_chunk = 16


def test_gradients_do_not_change_the_logits(model, processor):
    batch = processor(SENTENCES, SECTIONS)
    inputs = {name: batch[name] for name in processor.model_input_names}
    torch.testing.assert_close(model(**inputs).logits.detach(), run(model, processor, SENTENCES, SECTIONS))


def test_eager_and_sdpa_attention_agree(model, processor):
    expected = run(model, processor, SENTENCES, SECTIONS)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(run(model, processor, SENTENCES, SECTIONS), expected)
    model.set_attn_implementation("sdpa")


def test_a_sentence_sees_only_its_neighbourhood(model, processor):
    changed = SENTENCES.copy()
    changed[0] = "blind blind blind"
    expected, found = (run(model, processor, text, SECTIONS)[0] for text in (SENTENCES, changed))
    reach = model.config.num_sentence_layers * model.config.sentence_context + 4  # and at most a window of tokens
    torch.testing.assert_close(found[reach + 1 :], expected[reach + 1 :])
    assert not torch.allclose(found[0], expected[0])


def test_the_loss_counts_only_annotated_labels(model, processor):
    batch = processor(SENTENCES, SECTIONS)
    inputs = {name: batch[name] for name in processor.model_input_names}
    labels = torch.full((1, len(SENTENCES), 3), -100)
    labels[0, :, 0] = 1
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    expected = torch.nn.functional.softplus(-output.logits[0, :, 0]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_an_item_is_the_mean_of_the_views_by_the_shares_of_its_corpus(views, tmp_path):
    model, processor = views
    names = ["consort:2b", "consort:3a", "spirit:7_Objectives"]
    article = Article(
        pmcid="PMC1",
        corpus="consort",
        kind="Results",
        sentences=tuple(SENTENCES),
        sections=tuple(map(tuple, SECTIONS)),
        items=(frozenset(),) * len(SENTENCES),
    )
    model.view_shares.copy_(share_table(names))
    read = read_article(article, model, processor, tmp_path, names, frozenset())
    expected = mix([{"PMC1": predict(model, read, view)} for view in VIEWS], names)["PMC1"]
    found = run(model, processor, SENTENCES, SECTIONS)[0].sigmoid()
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=2e-3, rtol=0)  # kept vectors are float16
    alone = [predict(model, read, view)[:, 2] for view in VIEWS]
    torch.testing.assert_close(found[:, 2], torch.tensor(0.6 * alone[0] + 0.4 * alone[2]), atol=2e-3, rtol=0)


def test_the_shares_of_every_label_sum_to_one():
    table = share_table(["consort:2b", "spirit:7_Objectives"])
    torch.testing.assert_close(table.sum(0), torch.ones(2))


def test_the_view_of_consort_starts_from_the_labels_that_correspond(views, monkeypatch):
    names = ["consort:2b", "consort:3a", "spirit:7_Objectives"]
    monkeypatch.setattr("ctfm.reporting.build.CONSORT_FROM_SPIRIT", {"2b": ("7_Objectives",)})
    member = Member(views[0], 1)
    reset(member, 0)
    before = member.classifier.weight[1].clone()
    start_consort(member, names)
    assert torch.equal(member.classifier.weight[0], member.classifier.weight[2])
    assert torch.equal(member.classifier.weight[1], before)


def test_a_model_with_a_lexical_view_wants_its_inputs(views):
    model, processor = views
    batch = processor(SENTENCES, SECTIONS)
    with pytest.raises(ValueError, match="has a lexical view; pass all that TrialReportProcessor gives"):
        model(**{name: batch[name] for name in batch if not name.startswith(("lexical", "cut"))})


def test_every_token_of_a_sentence_points_to_it_and_headers_to_none(processor):
    batch = processor(SENTENCES, SECTIONS)
    owners = batch["token_sentences"]
    assert owners[:, 0].eq(-1).all()
    assert set(owners[owners >= 0].tolist()) == set(range(len(SENTENCES)))
    assert (batch["attention_mask"].sum(1) <= processor.window_tokens).all()
    assert owners[batch["attention_mask"] == 0].eq(-1).all()


def test_a_long_sentence_is_cut_and_counted(processor):
    assert processor(["walk " * 50], [["methods"]])["cut_sentences"] == 1
    assert processor(["walk ."], [["methods"]])["cut_sentences"] == 0


@pytest.mark.parametrize("sentences", [[], None])
def test_no_sentence_is_refused(processor, sentences):
    with pytest.raises(ValueError, match="No sentence was given"):
        processor(sentences, [])


def test_a_sentence_without_a_section_path_is_refused(processor):
    with pytest.raises(ValueError, match="Every sentence needs a section path"):
        processor(["walk .", "rest ."], [["methods"]])


def test_saved_and_loaded_it_gives_the_same_logits(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processing = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert (processing.window_tokens, processing.sentence_tokens) == (24, 8)
    torch.testing.assert_close(
        run(again.eval(), processing, SENTENCES, SECTIONS), run(model, processor, SENTENCES, SECTIONS)
    )


def test_the_token_transformer_is_bert(tmp_path):
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    bert = BertModel(config, add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path)
    ours = load_bert(tmp_path, ["consort:2b"]).eval()
    ids = torch.randint(1, 50, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    with torch.no_grad():
        found = ours.encode_tokens(ours.embeddings(ids), mask)
        expected = bert(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_head_sizes_that_cannot_turn_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="384 over 12 does"):
        TrialReportConfig(hidden_size=36, num_attention_heads=12)


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [learning_rate_scale(step / 100, 0.1) for step in range(101)]
    assert max(rates) == pytest.approx(1, abs=0.06)
    assert rates[-1] == 0
    assert rates[0] < rates[5] < rates[9]


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (["Patients and methods", "Results of screening"], "methods"),
        (["2. Methods"], "methods"),
        (["Background"], "introduction"),
        (["Summary", "Methods"], "abstract"),
        (["Competing interests"], "back matter"),
        (["Walking"], "other"),
        ([], "other"),
    ],
)
def test_the_outermost_known_header_names_the_kind(section, kind):
    assert section_kind(section) == kind
    assert kind in SECTION_KINDS


@pytest.mark.skipif(not (DEFAULT_CHECKPOINT / "model.safetensors").is_file(), reason="no default checkpoint")
def test_the_default_checkpoint_is_small_and_calibrated_for_every_label():
    assert sum(path.stat().st_size for path in DEFAULT_CHECKPOINT.iterdir()) <= 50_000_000
    config = json.loads((DEFAULT_CHECKPOINT / "config.json").read_text())
    calibration = json.loads((DEFAULT_CHECKPOINT / "calibration.json").read_text())
    names = set(config["id2label"].values())
    assert set(calibration["sentence_thresholds"]) == names
    assert names <= set(calibration["items"])
