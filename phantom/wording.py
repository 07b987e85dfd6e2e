"""The words of a phantom's report: two sets of sentences that share none, one for training and one held out.

Syntax: `[a|b]` chooses one, nested as wanted; `<slot>` is filled from the finding: `<np>` noun phrase, `<n>` bare
noun, `<place>`, `<size>`, `<grade>`, `<kind>`, `<is>`. The two sets differ in their frames, so that no sentence of
one can be said by the other, while most nouns are known to both: held-out wording asks whether a sentence is
understood, not whether a word was ever seen.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Sentence frames that do not depend on the finding."""

    present: tuple[str, ...]
    present_sized: tuple[str, ...]
    several: tuple[str, ...]
    uncertain: tuple[str, ...]
    absent: tuple[str, ...]
    absent_list: tuple[str, ...]
    resolved: tuple[str, ...]
    concluded: tuple[str, ...]
    nothing: tuple[str, ...]
    normal: tuple[str, ...]
    history: tuple[str, ...]
    technique: tuple[str, ...]
    comparison: tuple[str, ...]
    size: tuple[str, ...]
    lobe: tuple[str, ...]
    lobe_of_both: tuple[str, ...]
    one_lung: tuple[str, ...]
    both_lungs: tuple[str, ...]
    one_side: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of one finding: noun phrases, a bare noun for negations, plurals, whole sentences."""

    phrases: tuple[str, ...]
    bare: tuple[str, ...]
    plural: tuple[str, ...] = ()
    held_out_phrases: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    held_out_sentences: tuple[str, ...] = ()
    negative_sentences: tuple[str, ...] = ()
    held_out_negative_sentences: tuple[str, ...] = ()


TRAIN_FRAMES = Frames(
    present=(
        "There <is> <np> <place>.",
        "[Note is made of|We note] <np> <place>.",
        "<np> <is> [seen|noted|identified|present|observed] <place>.",
        "<place>, there <is> <np>.",
        "<np> <place>.",
        "[Also noted <is>|There <is> also] <np> <place>.",
    ),
    present_sized=(
        "There <is> <np> <place>, <size>.",
        "<np> <size> <is> [seen|noted|identified] <place>.",
        "<np> <is> [seen|present] <place>, <size>.",
        "<place>, there <is> <np> <size>.",
        "<np> <place> <size>.",
    ),
    several=(
        "[Multiple|Several] <plural> are [seen|noted|present] <places>, the largest <size>.",
        "There are [multiple|several] <plural> <places>; the largest one <size>.",
        "[Multiple|Several] <plural> <places>, <size> at most.",
    ),
    uncertain=(
        "[Possible|Probable] <np> <place>.",
        "Findings [suggestive of|suspicious for|compatible with] <np> <place>.",
        "There <is> [likely|probably|possibly] <np> <place>.",
    ),
    absent=(
        "[No|There is no] [evidence of |]<n>.",
        "No <n> is [seen|identified|detected].",
        "<n> [is not seen|is not identified|was not detected].",
        "No [definite|obvious] <n>.",
    ),
    absent_list=("[No|There is no] [evidence of |]<list>.", "No <list> is [seen|identified].", "Negative for <list>."),
    resolved=(
        "The previously [described|noted] <n> has resolved.",
        "<n> known from the prior examination has cleared.",
    ),
    concluded=("<np> <place>.", "<np> <place>, as described.", "Findings consistent with <np> <place>."),
    nothing=(
        "No acute abnormality.",
        "[Normal|Unremarkable] CT of the chest and upper abdomen.",
        "No significant abnormality is detected.",
    ),
    normal=(
        "The thyroid is [unremarkable|normal].",
        "The trachea and the main bronchi are patent.",
        "The visualized [osseous structures|bones] show no [acute fracture|destructive lesion].",
        "The pancreas is [normal|unremarkable].",
        "The adrenal glands are [normal|unremarkable].",
        "The spleen is normal in size.",
        "The gallbladder is without calcified stones.",
        "Mild degenerative changes of the thoracic spine.",
        "The calibre of the thoracic aorta is within normal limits.",
        "The bowel loops are not dilated.",
    ),
    history=(
        "[Cough|Chest pain|Shortness of breath|Weight loss|Abdominal pain] for <number> [days|weeks].",
        "Status post [appendectomy|hysterectomy|right hip replacement|left knee replacement] in <year>.",
        "Evaluation for [pneumonia|pulmonary nodule|metastases|kidney stone|pleural effusion].",
        "History of [breast|colon|prostate|thyroid] cancer, treated in <year>.",
        "[Smoker|Former smoker], <number> pack-years.",
    ),
    technique=(
        "[Helical|Multidetector] CT of the chest and upper abdomen <contrast>, <thickness> mm slices.",
        "Axial images were [obtained|acquired] <contrast>; slice thickness <thickness> mm, <kernel> kernel.",
    ),
    comparison=(
        "None.",
        "CT of <month> <year>.",
        "No prior examination is available.",
        "Chest radiograph of <month> <year>.",
    ),
    size=("measuring <mm> mm", "measuring <cm> cm", "(<mm> mm)", "of <mm> mm", "up to <cm> cm [in diameter|in size]"),
    lobe=(
        "in the <side> <level> lobe",
        "within the <side> <level> lobe",
        "of the <side> <level> lobe",
        "in the <abbreviation>",
    ),
    lobe_of_both=("in both <level> lobes", "in the <level> lobes bilaterally"),
    one_lung=("in the <side> lung", "of the <side> lung"),
    both_lungs=("in both lungs", "bilaterally"),
    one_side=("on the <side>", "in the <side> hemithorax"),
)

HELD_OUT_FRAMES = Frames(
    present=(
        "The scan [demonstrates|depicts] <np> <place>.",
        "<np> can be [appreciated|recognized|made out] <place>.",
        "Imaging [reveals|discloses] <np> <place>.",
        "Attention is drawn to <np> <place>.",
        "One [observes|finds] <np> <place>.",
    ),
    present_sized=(
        "The scan [demonstrates|depicts] <np> <size> <place>.",
        "<np> can be [appreciated|recognized] <place>, <size>.",
        "Imaging [reveals|discloses] <np> <place> <size>.",
        "One [observes|finds] <np> <place>, <size>.",
    ),
    several=(
        "[Quite a few|A number of] <plural> can be [appreciated|recognized] <places>, the biggest <size>.",
        "Imaging [reveals|discloses] numerous <plural> <places>, the biggest <size>.",
    ),
    uncertain=(
        "<np> <place> [<is> suspected|must be considered].",
        "The appearance [raises the question of|favours] <np> <place>.",
    ),
    absent=(
        "<n> is [absent|not demonstrated|not apparent].",
        "[Without|Free of] <n>.",
        "<n> can be ruled out.",
        "The images show neither sign nor hint of <n>.",
    ),
    absent_list=("[Without|Free of] <list>.", "The study is without <list>.", "Signs of <list> are lacking."),
    resolved=("Formerly visible <n> is no longer present.", "<n> has disappeared in the interval."),
    concluded=(
        "[Picture|Appearance] of <np> <place>.",
        "Overall, <np> <place>.",
        "[In summary|To summarize], <np> <place>.",
    ),
    nothing=("The examination is within normal limits.", "[Nothing|No finding] of concern.", "A regular study."),
    normal=(
        "Thyroid gland of regular appearance.",
        "Central airways open throughout.",
        "Skeleton free of aggressive change.",
        "Pancreatic contour regular.",
        "Both adrenals slender.",
        "Splenic size regular.",
        "Intestinal loops of ordinary width.",
        "Age-appropriate wear of the vertebral column.",
    ),
    history=(
        "The patient [presents with|complains of] [dyspnoea|thoracic pain|fever|flank pain].",
        "Previous [tonsillectomy|Caesarean section|left shoulder surgery|right carpal tunnel release] (<year>).",
        "Question: [pneumonia|tumour|urolithiasis|fluid collection]?",
        "Oncological follow-up after [melanoma|lymphoma|ovarian carcinoma].",
    ),
    technique=(
        "Spiral acquisition <contrast>, reconstructed at <thickness> mm with a <kernel> algorithm.",
        "Thoraco-abdominal CT <contrast>. Section width <thickness> mm.",
    ),
    comparison=(
        "First examination here.",
        "Earlier study from <month> <year>.",
        "Outside images of <year> were consulted.",
    ),
    size=("with a diameter of <mm> mm", "about <cm> cm across", "sized <mm> mm", "with an extent of <cm> cm"),
    lobe=(
        "involving the <side> <level> lobe",
        "located in the <level> lobe of the <side> lung",
        "at the level of the <side> <level> lobe",
    ),
    lobe_of_both=("involving the <level> lobes of either lung", "located in the <level> lobes of both lungs"),
    one_lung=("involving the <side> lung", "throughout the <side> lung"),
    both_lungs=("throughout both lungs", "involving either lung"),
    one_side=("on the <side> side", "of the <side> side"),
)

WORDS: dict[str, Words] = {
    "Medical material": Words(
        phrases=("<device>",),
        bare=("medical device", "indwelling catheter or pacemaker", "implanted material", "foreign material"),
    ),
    "Arterial wall calcification": Words(
        phrases=(
            "<grade> atherosclerotic calcification",
            "calcified [atheromatous |]plaques",
            "<grade> arterial wall calcifications",
        ),
        bare=("arterial wall calcification", "aortic calcification", "atherosclerotic calcification"),
        held_out_phrases=("calcific atheromatosis", "<grade> mural calcium deposits"),
        sentences=("[Atherosclerotic|Calcific] wall changes <place>.",),
        held_out_sentences=("The vessel wall <place> carries <grade> calcium.",),
    ),
    "Cardiomegaly": Words(
        phrases=("<grade> cardiomegaly", "an enlarged heart", "<grade> cardiac enlargement"),
        bare=("cardiomegaly", "cardiac enlargement"),
        held_out_phrases=("increased heart dimensions", "an oversized heart"),
        sentences=(
            "The heart is [<grade> |]enlarged.",
            "[Heart|Cardiac] size is increased.",
            "The heart is enlarged, <cm> cm in width.",
        ),
        held_out_sentences=(
            "The heart is bigger than normal.",
            "Cardiac dimensions exceed the norm.",
            "Transverse heart diameter abnormal at <cm> cm.",
        ),
        negative_sentences=("[Heart|Cardiac] size is [normal|within normal limits].", "The heart is not enlarged."),
        held_out_negative_sentences=("Heart of regular dimensions.", "Cardiac dimensions are not increased."),
    ),
    "Pericardial effusion": Words(
        phrases=("a <grade> pericardial effusion", "<grade> pericardial fluid", "fluid in the pericardium"),
        bare=("pericardial effusion", "pericardial fluid"),
        held_out_phrases=("<grade> fluid around the heart", "an effusion of the pericardial sac"),
        sentences=("Pericardial effusion, up to <mm> mm thick.",),
        held_out_sentences=("The pericardial sac holds fluid, <mm> mm at its widest.",),
    ),
    "Coronary artery wall calcification": Words(
        phrases=(
            "<grade> coronary artery calcification",
            "coronary calcifications",
            "<grade> calcified coronary plaques",
        ),
        bare=("coronary artery calcification", "coronary calcification"),
        held_out_phrases=("coronary calcium", "<grade> coronary atheromatous calcium"),
        sentences=("The coronary arteries are calcified <place>.",),
        held_out_sentences=("<grade> calcium load of the coronary tree <place>.",),
    ),
    "Hiatal hernia": Words(
        phrases=("a <grade> hiatal hernia", "a [sliding |]hiatus hernia", "a hiatal hernia"),
        bare=("hiatal hernia", "hiatus hernia"),
        held_out_phrases=("a herniation of the stomach through the hiatus", "an axial hiatus hernia"),
        sentences=("Part of the stomach lies above the diaphragm, in keeping with a hiatal hernia <size>.",),
        held_out_sentences=("The gastric fundus has slipped into the thorax (hiatus hernia).",),
    ),
    "Lymphadenopathy": Words(
        phrases=("an enlarged lymph node", "lymphadenopathy", "a pathologically enlarged lymph node", "adenopathy"),
        bare=("lymphadenopathy", "enlarged lymph node", "pathologic lymph node", "adenopathy"),
        plural=("enlarged lymph nodes", "pathologic lymph nodes"),
        held_out_phrases=("nodal enlargement", "a bulky lymph node"),
        sentences=("Lymph node <size> in short axis <place>.",),
        held_out_sentences=("A node <place> exceeds the size limit, short axis <mm> mm.",),
        negative_sentences=("Lymph nodes are [not enlarged|within normal limits].",),
        held_out_negative_sentences=("No node exceeds the size limit.",),
    ),
    "Emphysema": Words(
        phrases=("<grade> emphysema", "<grade> <kind> emphysema", "emphysematous changes"),
        bare=("emphysema", "emphysematous change"),
        held_out_phrases=("emphysematous destruction", "<grade> <kind> emphysematous remodelling"),
        sentences=("[Emphysematous|<kind>] areas of low attenuation consistent with emphysema <place>.",),
        held_out_sentences=("Parenchymal rarefaction of <kind> emphysema type <place>.",),
    ),
    "Atelectasis": Words(
        phrases=("<kind> atelectasis", "a <kind> atelectasis", "atelectatic change", "<kind> atelectatic change"),
        bare=("atelectasis", "atelectatic change"),
        plural=("atelectatic bands", "areas of atelectasis"),
        held_out_phrases=("a zone of <kind> collapse (atelectasis)", "<kind> atelectatic volume loss"),
        sentences=("<kind> density <place>, consistent with atelectasis.",),
        held_out_sentences=("The parenchyma <place> is partly atelectatic.",),
    ),
    "Lung nodule": Words(
        phrases=(
            "a <kind> [pulmonary|lung] nodule",
            "a [pulmonary|lung] nodule",
            "a <kind> nodule",
            "a nodular lesion of the lung",
        ),
        bare=("pulmonary nodule", "lung nodule", "suspicious pulmonary nodule", "pulmonary mass or nodule"),
        plural=("pulmonary nodules", "lung nodules", "nodules"),
        held_out_phrases=("a rounded lung nodule of <kind> type", "a focal <kind> nodular lesion", "a nodular density"),
        sentences=("<mm> mm <kind> nodule <place>.", "<cm> cm [pulmonary |]nodule <place>."),
        held_out_sentences=("The lung <place> contains a nodule with a diameter of <mm> mm.",),
    ),
    "Lung opacity": Words(
        phrases=(
            "ground-glass opacity",
            "a ground-glass opacity",
            "<kind> ground-glass opacity",
            "a hazy [lung |]opacity",
        ),
        bare=("ground-glass opacity", "lung opacity", "parenchymal opacity"),
        plural=("ground-glass opacities", "lung opacities"),
        held_out_phrases=("ground-glass attenuation", "a veil-like opacity of the lung"),
        sentences=("Area of increased density with preserved vessels <place>, ground-glass opacity.",),
        held_out_sentences=("The parenchyma <place> is clouded in a ground-glass manner.",),
    ),
    "Pulmonary fibrotic sequela": Words(
        phrases=(
            "fibrotic sequela",
            "sequela fibrotic changes",
            "[linear |]fibrotic scarring",
            "fibrotic bands",
            "pleuroparenchymal sequela",
        ),
        bare=("fibrotic sequela", "fibrotic change", "scarring"),
        plural=("fibrotic sequela changes", "fibrotic bands"),
        held_out_phrases=("residual fibrotic scars", "post-inflammatory fibrosis"),
        sentences=("Irregular linear densities <place>, sequela of previous infection.",),
        held_out_sentences=("Scar formation of the parenchyma <place>.",),
    ),
    "Pleural effusion": Words(
        phrases=("a <grade> pleural effusion", "<grade> pleural fluid", "a pleural effusion"),
        bare=("pleural effusion", "pleural fluid"),
        plural=("pleural effusions",),
        held_out_phrases=("fluid in the pleural cavity", "a pleural fluid collection of <grade> amount"),
        sentences=("Pleural effusion <place>, <mm> mm thick.", "<grade> effusion in the pleural space <place>."),
        held_out_sentences=("The pleural cavity <place> holds fluid up to a depth of <mm> mm.",),
    ),
    "Mosaic attenuation pattern": Words(
        phrases=("a mosaic attenuation pattern", "mosaic attenuation", "<grade> mosaic attenuation of the parenchyma"),
        bare=("mosaic attenuation", "mosaic attenuation pattern"),
        held_out_phrases=("mosaic perfusion", "a patchwork of lighter and darker lung (mosaic pattern)"),
        sentences=("Lung attenuation is heterogeneous in a mosaic pattern <place>.",),
        held_out_sentences=("Lobules of differing density alternate <place>, mosaic type.",),
    ),
    "Peribronchial thickening": Words(
        phrases=("peribronchial thickening", "<grade> bronchial wall thickening", "<grade> peribronchial thickening"),
        bare=("peribronchial thickening", "bronchial wall thickening"),
        held_out_phrases=("thickened bronchial walls", "<grade> cuffing of the bronchi"),
        sentences=("The bronchial walls are thickened <place>.",),
        held_out_sentences=("Bronchial walls <place> appear thicker than normal.",),
    ),
    "Consolidation": Words(
        phrases=("a consolidation", "an area of consolidation", "airspace consolidation", "a consolidated area"),
        bare=("consolidation", "focal consolidation", "airspace consolidation"),
        plural=("consolidations", "areas of consolidation"),
        held_out_phrases=("a pneumonic infiltrate with consolidation", "dense consolidated parenchyma"),
        sentences=("Consolidation with air bronchograms <place>.",),
        held_out_sentences=("The parenchyma <place> is consolidated and airless.",),
    ),
    "Bronchiectasis": Words(
        phrases=(
            "<grade> bronchiectasis",
            "<kind> bronchiectasis",
            "bronchiectatic changes",
            "dilated bronchi (bronchiectasis)",
        ),
        bare=("bronchiectasis", "bronchiectatic change"),
        held_out_phrases=("<kind> widening of the bronchi", "bronchiectatic airways"),
        sentences=("The bronchi are dilated <place>.",),
        held_out_sentences=("Bronchi <place> fail to taper and are widened.",),
    ),
    "Interlobular septal thickening": Words(
        phrases=("interlobular septal thickening", "<grade> septal thickening", "thickened interlobular septa"),
        bare=("interlobular septal thickening", "septal thickening"),
        held_out_phrases=("a reticular pattern of thick septa", "prominent interlobular septa"),
        sentences=("The interlobular septa are thickened <place>.",),
        held_out_sentences=("Septal lines stand out <place>.",),
    ),
    "Kidney tumour": Words(
        phrases=(
            "a [solid |]renal mass",
            "a mass suspicious for renal cell carcinoma",
            "a kidney tumour",
            "a solid renal tumour",
        ),
        bare=("renal mass", "kidney tumour", "renal tumour"),
        held_out_phrases=("a neoplasm of the kidney", "a space-occupying renal lesion"),
        sentences=("<cm> cm [solid |]renal mass <place>.",),
        held_out_sentences=("A solid lesion arises <place>, <cm> cm across, tumour.",),
    ),
    "Kidney stone": Words(
        phrases=(
            "a [renal|kidney] stone",
            "a [renal|kidney] calculus",
            "nephrolithiasis",
            "a <mm> mm [renal|kidney] stone",
        ),
        bare=("kidney stone", "renal calculus", "nephrolithiasis"),
        plural=("kidney stones", "renal calculi"),
        held_out_phrases=("a calcified concrement", "a urinary stone"),
        sentences=("<mm> mm calculus <place>.",),
        held_out_sentences=("A concrement of <mm> mm lies <place>.",),
    ),
    "Liver lesion": Words(
        phrases=(
            "a hypodense [liver|hepatic] lesion",
            "a [liver|hepatic] lesion",
            "a focal hepatic lesion",
            "<lesion>",
        ),
        bare=("focal liver lesion", "hepatic lesion", "liver lesion"),
        plural=("liver lesions", "hypodense hepatic lesions"),
        held_out_phrases=("a low-density focus of the liver", "<lesion>, a hepatic focus"),
        sentences=("<mm> mm [hypodense |]lesion of the liver <place>.",),
        held_out_sentences=("The liver <place> harbours a focus of <mm> mm.",),
        negative_sentences=("The liver is [homogeneous|unremarkable].",),
        held_out_negative_sentences=("Hepatic parenchyma uniform.",),
    ),
    "Ascites": Words(
        phrases=("<grade> ascites", "free [abdominal |intraperitoneal ]fluid", "<grade> free fluid in the abdomen"),
        bare=("ascites", "free abdominal fluid", "free fluid"),
        held_out_phrases=("fluid in the peritoneal cavity", "<grade> peritoneal fluid"),
        sentences=("Perihepatic and perisplenic free fluid, ascites.",),
        held_out_sentences=("Liver and spleen are surrounded by fluid.",),
    ),
}

DEVICES: dict[str, tuple[str, ...]] = {
    "pacemaker": ("a <side>-sided pacemaker", "a pacemaker <in_chest>", "a cardiac pacing device <in_chest>"),
    "port catheter": ("a <side>-sided port catheter", "a port system <in_chest>", "an implanted port <in_chest>"),
    "central venous catheter": ("a <side> jugular central venous catheter", "a central line from the <side>"),
    "sternal wires": ("sternotomy wires", "sternal cerclage wires", "median sternotomy material"),
    "nasogastric tube": ("a nasogastric tube", "a gastric feeding tube"),
    "spinal screws": ("spinal fixation hardware", "pedicle screws and rods", "spinal fusion material"),
}
LESIONS: dict[str, tuple[str, ...]] = {
    "cyst": ("a hepatic cyst", "a simple liver cyst"),
    "hypodense mass": ("a hypodense hepatic mass", "a lesion suspicious for hepatic metastasis"),
    "haemangioma": ("a hepatic haemangioma", "a probable liver haemangioma"),
}
GRADES: dict[str, tuple[str, ...]] = {
    "mild": ("mild", "small", "minimal", "slight"),
    "moderate": ("moderate", ""),
    "severe": ("marked", "extensive", "severe", "large"),
}
