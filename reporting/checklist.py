"""Items of CONSORT 2010 and SPIRIT 2013: their numbers, where they belong, and which labels of the model speak for them.

CONSORT 2025 renumbered the items; `Item.consort_2025` is the number that holds most of the 2010 item. Descriptions are this
project's own short wording; the statements themselves are at www.consort-spirit.org.
"""

# ruff: noqa: E501 -- a row of the checklist is one line

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .documents import Sentence
from .markdown_tables import markdown_table
from .rules import (
    RuleFinding,
    abstract_is_structured,
    interests_are_declared,
    introduction_gives_background,
    title_is_randomised,
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of a checklist.

    `labels` are the model's labels that state it, `rule` decides it instead.
    `only_if` says when the item is asked for; if `trace`, a pattern of that, is nowhere in the report, an absent item is not
    applicable. `parts` are the kinds of section where its `elements` are looked for: items of CONSORT 2010, whole ("7a") or
    one element of them ("12a: test or model"). `rates` names the error rates in a checkpoint's calibration, where they are not
    those of the label.
    """

    number: str
    part: str
    text: str
    labels: tuple[str, ...] = ()
    rule: Callable[[Sequence[Sentence]], RuleFinding] | None = None
    only_if: str | None = None
    trace: str | None = None
    elements: tuple[str, ...] = ()
    rates: str | None = None
    parts: tuple[str, ...] = ("methods", "abstract", "other")
    consort_2025: str | None = None
    spirit: tuple[str, ...] = ()


# What SPIRIT-CONSORT-TM's labels say about an item of CONSORT 2010. Before CONSORT-TM is seen, a row of the classifier
# starts as the mean of these.
CONSORT_FROM_SPIRIT: dict[str, tuple[str, ...]] = {
    "2b": ("7_Objectives",),
    "3a": ("8a_Design_Type", "8d_Design_Ratio"),
    "4a": ("10a_Participants_inclusion",),
    "4b": ("9_Setting",),
    "5": ("11a_Intervention_Description",),
    "6a": ("12a_Outcomes_Definitions",),
    "6b": ("12b_Outcomes_Changes",),
    "7a": ("14b_Sample_Calculation",),
    "7b": ("21b_Interim_analyses", "21c_Stopping_guidelines"),
    "8a": ("16a_Randomization_Generation",),
    "8b": ("16b_Randomization_Type", "16c_Randomization_Block_size", "16d_Randomization_Strata"),
    "10": ("16g_Personnel_Sequence", "16h_Personnel_Enrollment"),
    "11a": ("17a_Masking_People_masked",),
    "11b": ("17e_Masking_Similarity",),
    "12a": ("20a_Statistical_methods_Outcomes",),
    "12b": ("20b_Statistical_methods_Other_Analyses",),
    "13a": ("34_Flow",),
    "13b": ("34_Flow",),
    "14a": ("35a_Recruitment_dates", "35b_Followup_dates"),
    "14b": ("35c_Stopping",),
    "15": ("36_Baseline_data",),
    "16": ("37a_Analysis_Numbers",),
    "17a": ("38a_Outcome_results",),
    "17b": ("38b_Binary_results",),
    "18": ("39_Ancillary_results",),
    "19": ("40_Harms_results",),
    "21": ("41_Generalizability",),
    "23": ("3a_Registry_number",),
    "24": ("3b_Protocol_access",),
    "25": ("4_Funding",),
}

_RESULTS = ("results", "abstract", "other")
_DISCUSSION = ("discussion", "other")
_ANYWHERE = ("methods", "results", "discussion", "back matter", "abstract", "introduction", "other")

# number, part, text, section kinds of its elements, CONSORT 2025, SPIRIT 2013, asked for only if
_CONSORT = (
    ("1a", "Title and abstract", "Called a randomised trial in the title", ("title",), "1a", ("1",), None),
    ("1b", "Title and abstract", "Structured summary of the trial", ("abstract",), "1b", (), None),
    ("2a", "Introduction", "Background and reasons for the trial", ("introduction",), "6", ("6a",), None),
    ("2b", "Introduction", "Objectives or hypotheses", ("introduction", "abstract"), "7", ("7",), None),
    ("3a", "Methods", "Trial design, with the allocation ratio", ("title", "abstract", "methods", "other"), "9", ("8",), None),
    ("3b", "Methods", "Changes to methods after the start", ("methods",), "10", ("25",), "methods were changed"),
    ("4a", "Methods", "Eligibility of participants", ("methods",), "12a", ("10",), None),
    ("4b", "Methods", "Settings and places", ("methods", "abstract"), "11", ("9",), None),
    ("5", "Methods", "Interventions, so that they can be repeated", ("methods",), "13", ("11a",), None),
    ("6a", "Methods", "Primary and secondary outcomes, how and when assessed", ("methods",), "14", ("12",), None),
    ("6b", "Methods", "Changes to outcomes after the start", ("methods",), "10", ("25",), "outcomes were changed"),
    ("7a", "Methods", "How the sample size was determined", ("methods",), "16a", ("14",), None),
    ("7b", "Methods", "Interim analyses and stopping guidelines", ("methods",), "16b", ("21b",), "interim analyses were planned"),
    ("8a", "Methods", "How the random sequence was generated", ("methods",), "17a", ("16a",), None),
    ("8b", "Methods", "Type of randomisation, blocks and strata", ("methods",), "17b", ("16a",), None),
    ("9", "Methods", "How the allocation was concealed until assignment", ("methods",), "18", ("16b",), None),
    ("10", "Methods", "Who generated, who enrolled, who assigned", ("methods",), "19", ("16c",), None),
    ("11a", "Methods", "Who was blinded, and how", ("methods", "abstract"), "20a", ("17a",), None),
    ("11b", "Methods", "Similarity of the interventions", ("methods",), "20b", ("17a",), "interventions were blinded"),
    ("12a", "Methods", "Statistical methods for the outcomes", ("methods",), "21a", ("20a",), None),
    ("12b", "Methods", "Methods for additional analyses", ("methods",), "21d", ("20b",), "additional analyses were made"),
    ("13a", "Results", "Participants assigned, treated and analysed, by group", _RESULTS, "22a", (), None),
    ("13b", "Results", "Losses and exclusions after randomisation, with reasons", _RESULTS, "22b", (), None),
    ("14a", "Results", "Dates of recruitment and follow-up", ("results", "methods", "abstract", "other"), "23a", (), None),
    ("14b", "Results", "Why the trial ended or was stopped", _RESULTS, "23b", (), "the trial was stopped early"),
    ("15", "Results", "Baseline data of each group", _RESULTS, "25", (), None),
    ("16", "Results", "Numbers in each analysis", _RESULTS, "26", (), None),
    ("17a", "Results", "Result of each group, effect and its precision", _RESULTS, "26", (), None),
    ("17b", "Results", "Absolute and relative effects of binary outcomes", _RESULTS, "26", (), "binary outcomes were analysed"),
    ("18", "Results", "Other analyses, told apart as planned or exploratory", _RESULTS, "28", (), "other analyses were made"),
    ("19", "Results", "Harms in each group", ("results", "discussion", "abstract", "other"), "27", ("22",), None),
    ("20", "Discussion", "Limitations", _DISCUSSION, "30", (), None),
    ("21", "Discussion", "Generalisability", _DISCUSSION, "30", (), None),
    ("22", "Discussion", "Interpretation in the light of the evidence", _DISCUSSION, "29", (), None),
    ("23", "Other information", "Registration number and registry", _ANYWHERE, "2", ("2a",), None),
    ("24", "Other information", "Where the protocol can be read", _ANYWHERE, "3", (), None),
    ("25", "Other information", "Funding and the role of funders", _ANYWHERE, "5a", ("4",), None),
)  # fmt: skip

_BY_RULE = {"1a": title_is_randomised, "1b": abstract_is_structured, "2a": introduction_gives_background}

_OTHER_ANALYSES = r"\b(subgroup|sensitivity|exploratory|adjusted|post[- ]hoc) analys[ie]s\b"
_CONSORT_TRACES = {
    "3b": r"\b(protocol (was |were )?(amend|chang|modif)\w+|amendments?)\b",
    "6b": r"\b(outcome|end[ -]?point)s? (was|were) (changed|amended|added)\b",
    "7b": r"\binterim analys[ie]s\b",
    "11b": r"\b(double|triple|single)[- ](blind|mask)\w*|\bplacebo\b",
    "12b": _OTHER_ANALYSES,
    "14b": r"\b(stopped|terminated|halted) (early|prematurely)\b|\bearly (stopping|termination)\b",
    "17b": r"\b(odds ratio|risk ratio|relative risk|proportion of)\b",
    "18": _OTHER_ANALYSES,
}

CONSORT = tuple(
    Item(
        number=number,
        part=part,
        text=text,
        labels=() if number in _BY_RULE else (f"consort:{number}",),
        rule=_BY_RULE.get(number),
        only_if=only_if,
        trace=_CONSORT_TRACES.get(number),
        elements=(number,),
        parts=parts,
        consort_2025=consort_2025,
        spirit=spirit,
    )
    for number, part, text, parts, consort_2025, spirit, only_if in _CONSORT
)

# CONSORT for abstracts (2008): its items in order, and the item of CONSORT 2010 that says the same of a whole report. Its items
# on the corresponding author and on the status of the trial have no label.
_ABSTRACTS = (
    ("Title", "1a"), ("Trial design", "3a"), ("Participants and settings", "4a"), ("Interventions", "5"), ("Objective", "2b"),
    ("Outcome", "6a"), ("Randomisation", "8a"), ("Blinding", "11a"), ("Numbers randomised", "13a"),
    ("Numbers analysed", "16"), ("Outcome, with effect and precision", "17a"), ("Harms", "19"), ("Conclusions", "22"),
    ("Trial registration", "23"), ("Funding", "25"),
)  # fmt: skip
CONSORT_ABSTRACTS = tuple(
    replace(item, text=text, elements=(), consort_2025=None, spirit=())
    for text, number in _ABSTRACTS
    for item in CONSORT
    if item.number == number
)
# Items of CONSORT for abstracts that no label speaks for.
ABSTRACTS_NOT_CHECKED = ("authors", "recruitment")

# number, part, text, labels of SPIRIT-CONSORT-TM, asked for only if
_SPIRIT = (
    ("1", "Administrative information", "Title: design, population, interventions", ("1a_Title_Randomized",), None),
    ("2a", "Administrative information", "Registration number and registry", ("3a_Registry_number",), None),
    ("4", "Administrative information", "Funding", ("4_Funding",), None),
    ("5a", "Administrative information", "Names and roles of contributors", ("5b_Contributors_roles",), None),
    ("5b", "Administrative information", "Sponsor", ("5a_Sponsor",), None),
    ("5d", "Administrative information", "Steering and other committees", ("5c_Oversight_committees",), None),
    ("7", "Introduction", "Objectives or hypotheses", ("7_Objectives",), None),
    ("8", "Methods", "Trial design, framework, ratio",
     ("8a_Design_Type", "8b_Design_Framework", "8d_Design_Ratio"), None),
    ("9", "Methods", "Study setting", ("9_Setting",), None),
    ("10", "Methods", "Eligibility of participants, centres, staff",
     ("10a_Participants_inclusion", "10b_Center_interventionist_inclusion"), None),
    ("11a", "Methods", "Interventions, so that they can be repeated", ("11a_Intervention_Description",), None),
    ("11b", "Methods", "When interventions are changed or stopped", ("11b_Intervention_Modification",), None),
    ("11c", "Methods", "How adherence is improved and monitored", ("11c_Intervention_Monitoring",), None),
    ("11d", "Methods", "Other care that is allowed or not", ("11d_Intervention_Concomitant",), None),
    ("12", "Methods", "Outcomes, how and when assessed", ("12a_Outcomes_Definitions",), None),
    ("13", "Methods", "Time schedule of participants", ("13_Participant_timeline",), None),
    ("14", "Methods", "Sample size and how it was determined", ("14a_Sample_size", "14b_Sample_Calculation"), None),
    ("15", "Methods", "How enough participants are recruited", ("15_Recruitment",), None),
    ("16a", "Methods", "How the random sequence is generated",
     ("16a_Randomization_Generation", "16b_Randomization_Type", "16c_Randomization_Block_size",
      "16d_Randomization_Strata"), None),
    ("16b", "Methods", "How the allocation is concealed until assignment", ("consort:9",), None),
    ("16c", "Methods", "Who generates, who enrols, who assigns",
     ("16g_Personnel_Sequence", "16h_Personnel_Enrollment"), None),
    ("17a", "Methods", "Who is blinded, and how",
     ("17a_Masking_People_masked", "17b_Masking_Not_masked", "17c_Masking_Type"), None),
    ("17b", "Methods", "When unblinding is allowed", ("17d_Masking_Unblinding",), "the trial is blinded"),
    ("18a", "Methods", "How data are collected", ("18a_Data_Collection",), None),
    ("18b", "Methods", "How participants are kept in follow-up", ("18b_Data_Retention",), None),
    ("19", "Methods", "Data management", ("19_Data_Management",), None),
    ("20a", "Methods", "Statistical methods for the outcomes", ("20a_Statistical_methods_Outcomes",), None),
    ("20b", "Methods", "Methods for additional analyses", ("20b_Statistical_methods_Other_Analyses",), None),
    ("20c", "Methods", "Analysis population and missing data",
     ("20c_Statistical_methods_Analysis_population", "20d_Statistical_methods_Missing_data"), None),
    ("21a", "Methods", "Data monitoring committee", ("21a_Data_monitoring_committee",), None),
    ("21b", "Methods", "Interim analyses and stopping guidelines",
     ("21b_Interim_analyses", "21c_Stopping_guidelines"), "interim analyses are planned"),
    ("22", "Methods", "How harms are collected and managed", ("22_Harms_non-systematic",), None),
    ("23", "Methods", "Auditing of trial conduct", ("23_Auditing",), None),
    ("24", "Ethics and dissemination", "Ethics approval", ("24_Ethics",), None),
    ("25", "Ethics and dissemination", "How amendments are communicated", ("25_Amendments",), None),
    ("26a", "Ethics and dissemination", "Who obtains consent, and how", ("26a_Consent_Obtaining",), None),
    ("27", "Ethics and dissemination", "Confidentiality", ("27_Confidentiality",), None),
    ("28", "Ethics and dissemination", "Declaration of interests", (), None),
    ("29", "Ethics and dissemination", "Who has access to the data", ("29_Data_access",), None),
    ("30", "Ethics and dissemination", "Care after the trial", ("30_Post_trial_care",), None),
    ("31a", "Ethics and dissemination", "How results are made known", ("31a_Dissemination",), None),
    ("31b", "Ethics and dissemination", "Authorship", ("31b_Authorship",), None),
    ("31c", "Ethics and dissemination", "Access to protocol, data, code",
     ("31c_Sharing_Materials", "31d_Sharing_Data", "31e_Sharing_Code"), None),
    ("33", "Appendices", "Biological specimens", ("33_Biological_specimens",), "specimens are kept"),
)  # fmt: skip

# Items of SPIRIT 2013 that no corpus annotates by sentence, or (26b) in four articles only; never called missing.
SPIRIT_NOT_CHECKED = ("2b", "3", "5c", "6a", "6b", "26b", "32")
# Items that CONSORT 2025 added to those of 2010; no corpus annotates them.
CONSORT_2025_NOT_CHECKED = ("4", "5b", "8", "12b", "15", "24a", "24b")

_SPIRIT_TRACES = {
    "17b": r"\b(blind|mask)(ed|ing)\b",
    "21b": r"\binterim analys[ie]s\b",
    "33": r"\b(biobank|samples? (will be|are) stored|specimens)\b",
}
_SPIRIT_ELEMENTS = {
    "2a": ("23",),
    "4": ("25: source of funding",),
    "8": ("3a",),
    "9": ("4b",),
    "10": ("4a",),
    "11a": ("5",),
    "12": ("6a",),
    "14": ("7a",),
    "16a": ("8a", "8b"),
    "16b": ("9",),
    "16c": ("10",),
    "17a": ("11a",),
    "20a": ("12a: test or model",),
    "20c": ("12a: analysis population", "12a: handling of missing data"),
}
_SPIRIT_BY_RULE = {"28": interests_are_declared}

SPIRIT = tuple(
    Item(
        number=number,
        part=part,
        text=text,
        labels=tuple(label if ":" in label else f"spirit:{label}" for label in labels),
        rule=_SPIRIT_BY_RULE.get(number),
        only_if=only_if,
        trace=_SPIRIT_TRACES.get(number),
        elements=_SPIRIT_ELEMENTS.get(number, ()),
        rates=f"item:SPIRIT {number}" if labels else None,
        parts=_ANYWHERE if part == "Administrative information" else Item.parts,
    )
    for number, part, text, labels, only_if in _SPIRIT
)


def mapping_table() -> str:
    """CONSORT 2010 beside CONSORT 2025 and SPIRIT 2013, in Markdown."""
    return markdown_table(
        ["CONSORT 2010", "CONSORT 2025", "SPIRIT 2013", "Item"],
        [(item.number, item.consort_2025 or "-", ", ".join(item.spirit) or "-", item.text) for item in CONSORT],
    )
