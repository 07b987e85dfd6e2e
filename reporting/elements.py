"""Sentences of an item -> the elements that the checklist asks for and that nobody wrote.

An element is a small fact inside an item: the allocation ratio, who was blinded, how attrition entered the sample size.
Each is one documented pattern, looked for in the item's evidence and in the sections where it belongs; what is not found
is worded as not found, not as absent. Every element has a sentence that states it and one that does not in
`tests/test_reporting_elements.py`. `evaluate.py` measures those that SPIRIT-CONSORT-TM annotates apart from their item.
"""

# ruff: noqa: E501 -- a pattern is read more easily in one piece

import re
from dataclasses import dataclass

from .markdown_tables import markdown_table

_NUMBER = r"(\d+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|single|multi)"
_TIME = r"(minutes?|hours?|days?|weeks?|months?|years?)"


@dataclass(frozen=True, kw_only=True)
class Element:
    """`only_if` is a pattern that the item's evidence must hold for the element to be asked for."""

    item: str
    name: str
    pattern: re.Pattern[str]
    only_if: re.Pattern[str] | None = None

    @property
    def key(self) -> str:
        return f"{self.item}: {self.name}"


def _element(item: str, name: str, pattern: str, only_if: str | None = None) -> Element:
    return Element(
        item=item,
        name=name,
        pattern=re.compile(pattern, re.IGNORECASE),
        only_if=re.compile(only_if, re.IGNORECASE) if only_if else None,
    )


ELEMENTS = (
    _element("3a", "type of design", r"\b(parallel|factorial|cross-?over|cluster|n-of-1|adaptive|stepped[- ]wedge|split[- ](mouth|body))\b"),
    _element("3a", "allocation ratio", r"\b\d ?[:∶] ?\d( ?[:∶] ?\d)*\b|\b(equal(ly)?|one[- ]to[- ]one|two[- ]to[- ]one)\b|\b\d+ (\w+ ){0,2}(in|per|to) (each|both|every) (\w+ )?(groups?|arms?)\b|\b\d+ (\w+ ){0,2}per (group|arm)\b"),
    _element("4a", "inclusion criteria", r"\b(eligible|eligib\w+|includ\w+ (if|criteri\w+|were)|inclusion|were enrol\w+|recruited)\b"),
    _element("4a", "exclusion criteria", r"\b(exclu\w+|ineligible|not eligible)\b"),
    _element("4b", "kind or number of places", rf"\b{_NUMBER}[- ]?(\w+[- ]){{0,3}}(cent(re|er)s?|sites?|hospitals?|clinics?|practices?|units?|schools?|villages?)\b|\b(outpatient|inpatient|primary care|community|tertiary|university hospital)\b"),
    _element("5", "dose, intensity or frequency", rf"\b\d+([.·,]\d+)? ?(mg|g|µg|μg|mcg|ml|iu|units?|kcal|%|minutes?|sessions?)\b|\b(once|twice|three times|daily|weekly|monthly|every {_NUMBER})\b"),
    _element("5", "duration", rf"\b(for|over|during|lasting|of) (the )?(\w+ )?{_NUMBER}[- ]?{_TIME}\b|\b{_NUMBER}[- ]{_TIME}\b"),
    _element("5", "what the comparison group received", r"\b(placebo|control(s| group| arm)?|usual care|standard (care|treatment)|comparator|comparison group|sham|no (treatment|intervention)|waiting list)\b"),
    _element("6a", "a named primary outcome", r"\b(primary|main|principal) (\w+ ){0,2}(outcome|end[ -]?point|measure|variable)s?\b"),
    _element("6a", "time point of the primary outcome", rf"\b(at|after|from|over|within|by|until|between|during)\b[^.;]{{0,40}}\b({_NUMBER}[- ]?{_TIME}|{_TIME} {_NUMBER}|baseline|discharge|birth|delivery|end of)\b"),
    _element("6a", "how it was measured", r"\b(measured|assessed|defined as|scale|score|questionnaire|index|recorded|determined|evaluated|quantified|diary)\b"),
    _element("7a", "expected difference or effect", r"\b(detect|difference of|reduction (of|in|from)|increase (of|in|from)|effect size|odds ratio of|hazard ratio of|margin of|from \d+([.·]\d+)? ?% to)\b"),
    _element("7a", "power", r"\bpower(ed)?\b"),
    _element("7a", "significance level", r"\b(alpha|α|type (i|1) error|significance level|two-sided|one-sided|2-sided|1-sided|significance of|p ?[<=] ?0?[.·]0\d)"),
    _element("7a", "allowance for attrition", r"\b(drop-?outs?|attrition|loss(es)? to follow-?up|lost to follow-?up|withdrawals?|non-?compliance|non-?adherence|missing data|non-?evaluable)\b"),
    _element("8a", "method of generating the sequence", r"\b(computer\w*|random number|software|random[- ]?list|random(i[sz]ation)? (list|table|code|schedule)|minimi[sz]ation|coin|dice|shuffl\w+|web[- ]based|interactive (voice|web)|random\.org|draw\w* (of )?lots|lotter(y|ies))\b|\b(random\w+|allocation|sequence)\b[^.;]{0,80}\b(stata|sas|spss|excel|nquery|lots)\b"),
    _element("8b", "type of restriction", r"\b(block\w*|stratif\w+|minimi[sz]ation|simple randomi[sz]ation|unrestricted|permuted|matched pairs?|urn)\b"),
    _element("8b", "block size", r"\bblocks?\b[^.;]{0,40}\b(\d+|two|four|six|eight|ten|twelve)\b|\b(\d+|two|four|six|eight|ten)[- ](person |patient )?blocks?\b|\b(var(ying|ied|iable)|unequal|random|different|mixed)([- ]sized)? blocks? ?(sizes?|lengths?)?\b|\bblocks? (with|of) (varying|varied|variable|unequal|random|different)( block)? (sizes?|lengths?)\b", r"\bblock"),
    _element("8b", "stratification factors", r"\bstratif\w+\b[^.;]{0,80}\b(by|for|according to|on|with|per|into|sex|gender|age|sites?|cent(re|er)s?)\b|\bstrata? (\w+ )?(by|were|was|included)\b|\bstratification factors?\b|\bstrata:", r"\bstratif"),
    _element("9", "mechanism of concealment", r"\b(sealed|opaque|envelopes?|central(ly|i[sz]ed)?|telephone|web[- ]based|interactive (voice|web)|pharmacy|numbered (containers?|bottles?|kits?|packs?)|conceal\w+)\b"),
    _element("10", "who generated the sequence", r"\b(statistician|biostatistic\w+|pharmac\w+|independent \w+|data (centre|center|manager)|coordinating (centre|center)|trials? unit|computer (system|program)|sponsor|company|investigator|researcher)\b[^.;]{0,80}\b(generat\w+|prepar\w+|produc\w+|creat\w+|devis\w+|list|sequence|schedule|code|randomi[sz]ation)\b|\b(generated|prepared|produced|created) by\b|\b(randomi[sz]ation|allocation|sequence|schedule|lists?|program(me)?)\b[^.;]{0,80}\b(made|designed|developed|performed|done|conducted|managed|written|computeri[sz]ed|carried out)( \w+){0,2} (by|at) (an?|the|our)\b"),
    _element("10", "who enrolled participants", r"\b(enrol\w+|recruit\w+|screened|consent\w*|approached|invited|assessed for (study )?(inclusion|eligibility))\b[^.;]{0,60}\bby\b|\b(investigators?|nurses?|physicians?|doctors?|staff|coordinators?|clinicians?|practitioners?|researchers?|assistants?|workers?|volunteers?|enumerators?|teams?|team members?|leader|designee)\b[^.;]{0,50}\b(enrol\w*|recruit\w*|approach\w*|screen\w*|invit\w*|inform (the )?\w+|identif\w+|contact\w*|check\w* (for )?(\w+ )?(eligib\w+|criteria|that)|obtain\w* [^.;]{0,30}consent)\b"),
    _element("10", "who assigned participants", r"\b(assign\w+|allocat\w+|randomi[sz]\w+)\b[^.;]{0,80}\bby\b|\b(investigators?|nurses?|physicians?|doctors?|staff|pharmacists?|coordinators?|system|practitioners?|researchers?)\b[^.;]{0,90}\b(assign\w*|allocat\w+|dispens\w+)\b"),
    _element("11a", "who was blinded", r"\b(participants?|patients?|subjects?|women|men|children|parents|physicians?|doctors?|clinicians?|investigators?|nurses?|staff|personnel|assessors?|evaluators?|statisticians?|analysts?|readers?|carers?|caregivers?|therapists?|raters?|adjudicat\w+|everyone|all parties)\b[^.;]{0,80}\b(blind\w*|mask\w*|unaware|not (told|informed))\b|\b(blind\w*|mask\w*|unaware)\b[^.;]{0,80}\b(participants?|patients?|subjects?|women|men|children|parents|physicians?|doctors?|clinicians?|investigators?|nurses?|staff|personnel|assessors?|evaluators?|statisticians?|analysts?|readers?|carers?|caregivers?|therapists?|raters?)\b|\bopen[- ]label\b"),
    _element("12a", "test or model", r"\b(regression|(co)?variance|an(c)?ova|t[- ]tests?|chi-?squared?|χ2|fisher\w*|wilcoxon|mann[- ]whitney|log-?rank|kaplan|cox|mixed[- ]\w+|mixed models?|generali[sz]ed (linear|estimating)|poisson|mcnemar|kruskal|mantel|bayes\w+)\b"),
    _element("12a", "analysis population", r"\b(intention[- ]to[- ]treat|intent[- ]to[- ]treat|itt|per[- ]protocol|as[- ]treated|full analysis set|modified intention|all randomi[sz]ed|analysis (set|population)|completers)\b"),
    _element("12a", "handling of missing data", r"\b(missing|imput\w+|last[- ]observation|complete[- ]cases?|locf)\b"),
    _element("13a", "number randomised in each group", r"\b(random\w+|assigned|allocated)\b[^.;]{0,120}\b\d+\b|\b\d+\b[^.;]{0,80}\b(random\w+|assigned|allocated)\b"),
    _element("13a", "flow diagram", r"\b(flow ?(chart|diagram)?|trial profile|consort (diagram|flow\w*)|fig(ure|\.)? ?\d+)\b"),
    _element("13b", "number lost or excluded", r"\b(\d+|no|none|one|two|three|four|five|six|seven|eight|nine|ten)\b[^.;]{0,80}\b(withdr\w+|discontinu\w+|lost|dropped|drop-?outs?|exclu\w+|did not complete|left)\b|\b(withdr\w+|discontinu\w+|lost|dropped|drop-?outs?|exclu\w+)\b[^.;]{0,80}\b\d+\b"),
    _element("13b", "reasons", r"\b(because|due to|owing to|reasons?|adverse events?|withdrew consent|protocol violation|moved|died|lack of)\b"),
    _element("14a", "dates of recruitment", r"\b((19|20)\d\d)\b"),
    _element("14a", "length of follow-up", rf"\b(follow(ed)?[- ]?up)\b[^.;]{{0,60}}\b{_NUMBER}?[- ]?{_TIME}\b|\b{_NUMBER}[- ]?{_TIME}\b[^.;]{{0,40}}\bfollow(ed)?[- ]?up\b"),
    _element("15", "table of baseline data", r"\btable ?\d*\b|\bbaseline (characteristics|demographic\w*|data)\b"),
    _element("16", "numbers analysed", r"\b\d+\b[^.;]{0,80}\b(analy[sz]\w+|included|population|evaluable)\b|\b(analy[sz]\w+|included|population)\b[^.;]{0,80}\b\d+\b|\bn ?= ?\d+"),
    _element("17a", "size of the effect", r"\b(difference|ratio|reduction|change|mean|median|odds|hazard|risk|%|percentage points?)\b|\d ?%"),
    _element("17a", "confidence interval", r"\b(confidence (interval|limit)s?|95 ?% ?(ci|cri)|ci[:,]? ?[-−–]?\d|credible interval)\b"),
    _element("17b", "relative effect", r"\b(odds ratios?|risk ratios?|relative risks?|hazard ratios?|rate ratios?|relative reduction|\b(or|rr|hr) ?[=:,]? ?\d)"),
    _element("17b", "absolute effect", r"\b(absolute (risk )?(difference|reduction|effect)|risk difference|percentage points?|number needed)\b|\b\d+(/| of )\d+\b|\d+ ?\(\d+([.·]\d+)? ?%\)"),
    _element("19", "number or absence of harms", r"\b(\d+|no|none|one|two|three|four|five|six)\b[^.;]{0,100}\b(adverse|harms?|side[- ]effects?|deaths?|died|complications?|toxicit\w+)\b|\b(adverse|harms?|side[- ]effects?|deaths?|died|complications?|toxicit\w+)\b[^.;]{0,100}\b(\d+|no|none|not)\b"),
    _element("20", "sources of bias or imprecision", r"\b(bias\w*|imprecis\w+|small (sample|number)|underpowered|lack of (power|blinding)|not blinded|short (follow|duration)|attrition|missing|single[- ](cent(re|er)|site)|confound\w+|multiplicity|limited)\b"),
    _element("23", "registration number", r"\b(nct ?\d{6,8}|isrctn ?\d{6,}|actrn ?\d{6,}|chictr[-\w]*\d+|ctri/\d+|eudract\D{0,20}\d{4}-\d+|umin\d+|drks\d+|irct\w*\d+|kct\d+|ntr ?\d+|pactr ?\d+|jprn\w*\d+|tctr\d+)\b"),
    _element("24", "where the protocol is", r"\b(https?://|www\.|doi|supplement\w*|appendix|published|available|online|\[\d+\]|clinicaltrials\.gov)"),
    _element("25", "source of funding", r"\b(fund(ed|ing)|supported by|grants?|sponsor\w*|financed|no (specific )?(funding|grant|support))\b"),
    _element("25", "role of the funders", r"\b(funder|sponsor|funding (source|body|agency|organi[sz]ation)s?|company|manufacturer)s?\b[^.;]{0,80}\b(role|involve\w+|particip\w+|had no|design|influence|responsible)\b|\bno (role|involvement|influence|part)\b"),
)  # fmt: skip


def elements_of(key: str) -> tuple[Element, ...]:
    """The elements of an item of CONSORT 2010, in order: `"7a"`; or one of them: `"7a: power"`."""
    item, _, name = key.partition(": ")
    return tuple(element for element in ELEMENTS if element.item == item and name in ("", element.name))


def find_element(element: Element, evidence: list[str], home: list[str]) -> bool | None:
    """Whether the element is stated in the item's evidence or else its home sections; None if it is not asked for.

    Example:
        >>> ratio = next(element for element in ELEMENTS if element.name == "allocation ratio")
        >>> find_element(ratio, ["Patients were assigned 1:1 to rest or walking."], [])
        True
    """
    if element.only_if is not None and not any(element.only_if.search(text) for text in evidence):
        return None
    return any(element.pattern.search(text) for text in (*evidence, *home))


def elements_table() -> str:
    """Every element, in Markdown; `docs/report_check.md` holds it."""
    rows = list[tuple[str, str]]()
    for item in dict.fromkeys(element.item for element in ELEMENTS):
        names = [f"{element.name}{' (if there are any)' if element.only_if else ''}" for element in elements_of(item)]
        rows.append((item, ", ".join(names)))
    return markdown_table(["CONSORT 2010", "Elements"], rows)
