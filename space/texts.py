"""Key and language -> what the page says. English, Dutch; a finding's name in English is its name everywhere else."""

LANGUAGES = {"en": "English", "nl": "Nederlands"}

TEXTS: dict[str, tuple[str, str]] = {
    # page
    "title": ("What a foundation model sees in a CT scan", "Wat een foundation-model in een CT-scan ziet"),
    "notice": (
        "Research only. Not for diagnosis or any decision about a patient.",
        "Alleen voor onderzoek. Niet voor diagnose of enige beslissing over een patiënt.",
    ),
    "trained": ("The weights shown here", "De gewichten hier"),
    "trained_phantoms": (
        "were trained on synthetic phantoms only, and have never seen a patient. On a real scan their answers mean "
        "nothing yet; reading, geometry, viewer and downloads are real.",
        "zijn alleen op synthetische fantomen getraind en hebben nooit een patiënt gezien. Op een echte scan zeggen hun "
        "antwoorden nog niets; inlezen, geometrie, viewer en downloads zijn echt.",
    ),
    "trained_on": ("were trained on: {0}.", "zijn getraind op: {0}."),
    "trained_unknown": (
        "come without a record of their training: take no answer for true.",
        "hebben geen verslag van hun training: houd geen antwoord voor waar.",
    ),
    "full_size": (
        "The full-size model (397 M parameters) is SPECTRE-Large, which this package runs exactly: "
        "`ctfm convert-spectre`.",
        "Het model op volle grootte (397 M parameters) is SPECTRE-Large, dat dit pakket exact uitvoert: "
        "`ctfm convert-spectre`.",
    ),
    "privacy": (
        "An upload lives in a temporary folder and is deleted as soon as it is read. Nothing is logged. The scan itself stays "
        "in memory, under a hash, for a while; names and identifiers in headers are never shown, kept or put in a download.",
        "Een upload staat in een tijdelijke map en wordt verwijderd zodra hij gelezen is. Er wordt niets gelogd. De scan zelf "
        "blijft een tijdje in het geheugen, onder een hash; namen en nummers uit de kopregels worden nooit getoond, "
        "bewaard of in een download geschreven.",
    ),
    "language": ("Language", "Taal"),
    "tab_scan": ("One scan", "Eén scan"),
    "tab_compare": ("Two scans", "Twee scans"),
    "tab_report": ("Trial report", "Trialverslag"),
    "tab_about": ("About and API", "Over en API"),
    # input
    "files": ("CT: DICOM (zip or files), NIfTI, MHA, NRRD", "CT: DICOM (zip, bestanden), NIfTI, MHA, NRRD"),
    "folder": ("or a folder of DICOM files", "of een map met DICOM-bestanden"),
    "limits": (
        "At most 2 GiB and 1,000 files (a longer series as a zip), 450 million voxels; a pass of the model may take 3 minutes.",
        "Ten hoogste 2 GiB en 1.000 bestanden (een langere serie als zip), 450 miljoen voxels; een gang van het model mag "
        "3 minuten duren.",
    ),
    "purpose": (
        "Open a CT scan: the page says what was read and repaired, shows it, and tells what the model finds, where, and how "
        "sure it is, or why it says nothing. Drop files or a folder anywhere on the page.",
        "Open een CT-scan: de pagina zegt wat gelezen en hersteld is, toont de scan, en vertelt wat het model vindt, waar, en "
        "hoe zeker het is, of waarom het niets zegt. Bestanden of een map mag u overal op de pagina laten vallen.",
    ),
    "examples": ("Or look at an example", "Of bekijk een voorbeeld"),
    "case_effusion": ("Fluid beside the lung", "Vocht naast de long"),
    "case_earlier": ("The same patient, earlier", "Dezelfde patiënt, eerder"),
    "case_consolidation": ("Consolidated lung", "Verdichte long"),
    "case_emphysema": ("Emphysema", "Emfyseem"),
    "case_mosaic": ("Mosaic pattern", "Mozaïekpatroon"),
    "case_normal": ("Nothing drawn", "Niets getekend"),
    "a_scan": ("CT scan", "CT-scan"),
    "other": ("Open another scan", "Andere scan openen"),
    "num_warnings": ("{0} warnings", "{0} waarschuwingen"),
    "patient": ("Patient {0}", "Patiënt {0}"),
    "stage_draw_case": ("Opening the example", "Voorbeeld openen"),
    "error_not_drawn": (
        "This example is not drawn yet. `make space` draws the examples while the page is open.",
        "Dit voorbeeld is nog niet getekend. `make space` tekent de voorbeelden terwijl de pagina open is.",
    ),
    "series": ("Series", "Serie"),
    "choose_series": (
        "Several series can be read: choose one. Nothing was chosen for you.",
        "Er zijn meer series leesbaar: kies er een. Er is niets voor u gekozen.",
    ),
    "no_contrast": ("no contrast", "geen contrast"),
    "contrast": ("contrast", "contrast"),
    "slices": ("slices", "coupes"),
    "kernel": ("kernel", "kernel"),
    "readout": ("What was read", "Wat gelezen is"),
    "geometry": ("Geometry", "Geometrie"),
    "intensity": ("HU", "HU"),
    "acquisition": ("Acquisition", "Opname"),
    "left_out": ("Left out", "Weggelaten"),
    "checked": ("Checked", "Gecontroleerd"),
    "repaired": ("Repaired or suspicious", "Hersteld of verdacht"),
    "nothing_repaired": ("nothing", "niets"),
    "on_disk": ("on disk", "op schijf"),
    "voxels": ("voxels", "voxels"),
    "files_word": ("files", "bestanden"),
    "read_in": ("read in", "gelezen in"),
    "from_memory": ("seen before: from memory", "al eens gezien: uit het geheugen"),
    # stages
    "stage_receive": ("Receiving files", "Bestanden ontvangen"),
    "stage_read": ("Reading and checking", "Lezen en controleren"),
    "stage_view": ("Preparing the viewer", "Viewer voorbereiden"),
    "stage_resample": ("Resampling into crops", "Herbemonsteren in uitsneden"),
    "stage_encode": ("Encoding crops", "Uitsneden coderen"),
    "stage_findings": ("Grading findings", "Bevindingen beoordelen"),
    "stage_draw": ("Drawing", "Tekenen"),
    "stage_write": ("Writing the file", "Bestand schrijven"),
    # viewer
    "viewer": ("Viewer", "Viewer"),
    "window": ("Window", "Venster"),
    "window_lung": ("Lung", "Long"),
    "window_mediastinum": ("Soft tissue", "Weke delen"),
    "window_bone": ("Bone", "Bot"),
    "window_liver": ("Liver", "Lever"),
    "window_brain": ("Brain", "Hersenen"),
    "viewer_level": ("Level", "Niveau"),
    "viewer_width": ("Width", "Breedte"),
    "viewer_slice": ("Slice", "Coupe"),
    "viewer_opacity": ("Opacity", "Dekking"),
    "viewer_only_above": ("Only above", "Alleen boven"),
    "viewer_unit": ("the level of scans without it", "het niveau van scans zonder"),
    "viewer_keys": ("Keys and gestures", "Toetsen en gebaren"),
    "layout": ("Layout", "Indeling"),
    "layout_planes": ("Planes", "Vlakken"),
    "layout_axial": ("Axial", "Axiaal"),
    "layout_coronal": ("Coronal", "Coronaal"),
    "layout_sagittal": ("Sagittal", "Sagittaal"),
    "layout_render": ("3D", "3D"),
    "tool": ("Left button", "Linkerknop"),
    "tool_point": ("Point", "Punt"),
    "tool_pan": ("Move", "Schuif"),
    "tool_ruler": ("Ruler", "Liniaal"),
    "tool_region": ("HU of a region", "HU van een gebied"),
    "view": ("View", "Beeld"),
    "view_crosshair": ("Crosshair", "Kruisdraad"),
    "view_closer": ("Zoom in", "Dichterbij"),
    "view_further": ("Zoom out", "Verder weg"),
    "view_reset": ("Reset", "Herstel"),
    "surface": ("Surface in 3D", "Oppervlak in 3D"),
    "surface_bone": ("Bone surface", "Botoppervlak"),
    "surface_soft": ("Skin and organs", "Huid en organen"),
    "surface_lung": ("Lungs", "Longen"),
    "no_map": ("no map", "geen kaart"),
    "map_of": ("Map", "Kaart"),
    "viewer_help": (
        "Click or drag: crosshair. Wheel: slices. Right or middle button: move the picture. Two fingers: zoom. Keys, with "
        "the picture in focus: arrows and Page Up, Page Down move the crosshair; 1 to 5 choose a window; + and - zoom; 0 "
        "resets; C crosshair; M map; P point, H move, R ruler, G region.",
        "Klik of sleep: kruisdraad. Wiel: coupes. Rechter of middelste knop: beeld schuiven. Twee vingers: zoomen. Toetsen, "
        "met het beeld in focus: pijltjes en Page Up, Page Down verplaatsen de kruisdraad; 1 tot 5 kiezen een venster; + en - "
        "zoomen; 0 herstelt; C kruisdraad; M kaart; P punt, H schuif, R liniaal, G gebied.",
    ),
    "viewer_reduced": (
        "The viewer shows means of {0} voxels; maps, findings and downloads use the whole scan.",
        "De viewer toont gemiddelden van {0} voxels; kaarten, bevindingen en downloads gebruiken de hele scan.",
    ),
    "viewer_loading": ("Loading …", "Laden …"),
    "viewer_empty": ("Loading …", "Laden …"),
    "viewer_failed": ("The scan could not be shown", "De scan kon niet getoond worden"),
    "viewer_plain": ("plain slice viewer", "eenvoudige viewer"),
    # findings
    "findings": ("Findings", "Bevindingen"),
    "finding": ("Finding", "Bevinding"),
    "probability": ("Probability", "Kans"),
    "score": ("Score, not calibrated", "Score, niet gekalibreerd"),
    "interval": ("95 % interval", "95 %-interval"),
    "answer": ("Answer", "Antwoord"),
    "strongest": ("Strongest place", "Sterkste plek"),
    "measured": ("AUROC {0}", "AUROC {0}"),
    "on_phantoms": ("on phantoms", "op fantomen"),
    "thresholds": ("absent below {0}, present from {1}", "afwezig onder {0}, aanwezig vanaf {1}"),
    "all": ("all", "alle"),
    "filter": ("Answers to show", "Welke antwoorden"),
    "order": ("Sort by", "Sorteer op"),
    "by_probability": ("probability", "kans"),
    "by_name": ("name", "naam"),
    "by_level": ("height in the scan", "hoogte in de scan"),
    "near_chance": (
        "Findings that the model hardly tells from chance ({0})",
        "Bevindingen die het model nauwelijks van toeval onderscheidt ({0})",
    ),
    "near_chance_help": (
        "The 95 % interval of their AUROC begins below 0.6. Take none of these answers for information.",
        "Het 95 %-interval van hun AUROC begint onder 0,6. Geen van deze antwoorden is informatie.",
    ),
    "not_asked": (
        "Not asked, because these weights could never answer “present”:",
        "Niet gevraagd, omdat deze gewichten nooit “aanwezig” zouden kunnen antwoorden:",
    ),
    "truth": ("Known truth", "Bekende waarheid"),
    "drawn": ("there", "wel"),
    "not_drawn": ("not there", "niet"),
    "model_right": ("the model is right", "het model heeft gelijk"),
    "model_wrong": ("the model is wrong", "het model heeft ongelijk"),
    "about": ("about", "ongeveer"),
    # the gate
    "no_answers": ("No answers about this scan", "Geen antwoorden over deze scan"),
    "unlike_training": (
        "The scan is unlike the scans that these weights were trained on: what an answer would be worth is not known.",
        "De scan lijkt niet op de scans waarop deze gewichten zijn getraind: wat een antwoord waard zou zijn, is niet bekend.",
    ),
    "gate_unknown": (
        "How like the training scans this one is was never measured for these weights (space/measure_gate.py measures it).",
        "Hoe zeer deze scan op de trainingsscans lijkt, is voor deze gewichten nooit gemeten (space/measure_gate.py meet het).",
    ),
    "no_body": ("No body was found in the scan.", "In de scan is geen lichaam gevonden."),
    "gate_distance": (
        "Its features are {0} times as far from theirs as 19 of 20 such scans are.",
        "De kenmerken liggen {0} keer zo ver van die scans als bij 19 van 20 zulke scans.",
    ),
    "still_there": (
        "What was read, the viewer, the features and the embedding hold all the same.",
        "Wat gelezen is, de viewer, de kenmerken en de embedding gelden wel.",
    ),
    "would_ask": ("Of a scan like those it asks for:", "Bij een scan die daarop lijkt, vraagt het naar:"),
    "nothing": ("nothing", "niets"),
    "present": ("present", "aanwezig"),
    "absent": ("absent", "afwezig"),
    "not sure": ("not sure", "onzeker"),
    "not_calibrated": ("not calibrated", "niet gekalibreerd"),
    "no_place": ("no place stands out", "geen plek springt eruit"),
    "show_map": ("Show the map of", "Toon de kaart van"),
    "findings_help": (
        "Choose a finding: the viewer goes to its strongest place and shows its map. All maps share one scale: 1 is what 19 of "
        "20 scans without the finding stay below everywhere.",
        "Kies een bevinding: de viewer gaat naar de sterkste plek en toont de kaart. Alle kaarten hebben één schaal: 1 is waar "
        "19 van 20 scans zonder de bevinding overal onder blijven.",
    ),
    "computed_in": ("computed in", "berekend in"),
    "slice": ("slice", "coupe"),
    "right": ("right", "rechts"),
    "middle": ("middle", "midden"),
    "left": ("left", "links"),
    "front": ("at the front", "voor"),
    "centre": ("in the centre", "midden"),
    "back": ("at the back", "achter"),
    "lower": ("lower third", "onderste derde"),
    "middle_level": ("middle third", "middelste derde"),
    "upper": ("upper third", "bovenste derde"),
    # text, similar, components, downloads
    "query": ("Ask in your own words (English)", "Vraag in uw eigen woorden (Engels)"),
    "query_hint": ("e.g. fluid around the right lung", "bijv. fluid around the right lung"),
    "ask": ("Find it", "Zoek"),
    "similarity": ("Similarity (cosine)", "Gelijkenis (cosinus)"),
    "query_help": (
        "The reference sentences are from reports of the training scans. A sentence that fits is no diagnosis.",
        "De vergelijkingszinnen komen uit verslagen van de trainingsscans. Een zin die past, is geen diagnose.",
    ),
    "fits": ("fits this scan.", "past bij deze scan."),
    "does_not_fit": (
        "fits no better than sentences that have nothing to do with this scan.",
        "past niet beter dan zinnen die niets met deze scan te maken hebben.",
    ),
    "rank": (
        "It ranks {0} of {1} sentences, and fits better here than in {2} % of the reference scans.",
        "Hij staat op plaats {0} van {1} zinnen, en past hier beter dan in {2} % van de vergelijkingsscans.",
    ),
    "not_understood": (
        "not understood. No report in the training uses",
        "niet begrepen. Geen verslag in de training gebruikt",
    ),
    "not_understood_help": (
        "The model would place any sentence somewhere; of words that it never saw with a scan that means nothing.",
        "Het model geeft iedere zin een plaats; bij woorden die het nooit bij een scan zag, betekent dat niets.",
    ),
    "similar": ("Similar scans", "Gelijkende scans"),
    "similar_help": (
        "The nearest of {0} synthetic phantoms, with what was drawn into each.",
        "De dichtstbijzijnde van {0} synthetische fantomen, met wat in elk getekend is.",
    ),
    "no_gallery": (
        "There is no gallery of these weights yet: `make space` draws it while the page is open.",
        "Van deze gewichten is er nog geen galerij: `make space` tekent hem terwijl de pagina open is.",
    ),
    "no_findings": ("no finding", "geen bevinding"),
    "components": ("What the features tell apart", "Wat de kenmerken onderscheiden"),
    "components_help": (
        "The first three principal components of the patch features as red, green and blue.",
        "De eerste drie hoofdcomponenten van de kenmerken als rood, groen en blauw.",
    ),
    "draw_components": ("Draw the features", "Teken de kenmerken"),
    "downloads": ("Downloads", "Downloads"),
    "download_json": ("Findings, JSON", "Bevindingen, JSON"),
    "download_csv": ("Findings, CSV", "Bevindingen, CSV"),
    "download_embedding": ("Embedding, safetensors", "Embedding, safetensors"),
    "make_map": ("Heat map, NIfTI: make", "Kaart, NIfTI: maak"),
    "download_map": ("Heat map, NIfTI: save", "Kaart, NIfTI: bewaar"),
    # two scans
    "prior": ("Prior scan", "Eerdere scan"),
    "current": ("Current scan", "Huidige scan"),
    "compare": ("Compare", "Vergelijk"),
    "example_pair": ("Compare the example with its prior", "Vergelijk het voorbeeld met het eerdere"),
    "changes": ("What changed", "Wat er veranderde"),
    "change": ("Change", "Verandering"),
    "new": ("new", "nieuw"),
    "resolved": ("resolved", "verdwenen"),
    "more": ("more likely", "waarschijnlijker"),
    "less": ("less likely", "minder waarschijnlijk"),
    "same": ("no change", "geen verandering"),
    "unclear": ("unclear", "onduidelijk"),
    "compare_help": (
        "The scans are not registered: the crosshairs are linked by the scanner's millimetres. "
        "Embeddings agree by {0} (cosine).",
        "De scans zijn niet geregistreerd: de kruisdraden zijn gekoppeld via de millimeters van de scanner. De embeddings "
        "komen voor {0} overeen (cosinus).",
    ),
    # trial report
    "report_file": (
        "Report of a randomised trial: .docx, .pdf, .md, .txt or JATS .xml",
        "Verslag van een gerandomiseerde trial: .docx, .pdf, .md, .txt of JATS .xml",
    ),
    "report_protocol": ("It is a protocol (SPIRIT 2013)", "Het is een protocol (SPIRIT 2013)"),
    "report_check": ("Check the report", "Controleer het verslag"),
    "report_help": (
        "What does this draft leave out? A second, separate model reads the text against CONSORT 2010 or SPIRIT 2013. "
        "It finds statements and does not judge whether they are true.",
        "Wat ontbreekt er in dit concept? Een tweede, afzonderlijk model leest de tekst langs CONSORT 2010 of SPIRIT 2013. "
        "Het vindt uitspraken en oordeelt niet of zij waar zijn.",
    ),
    "report_sample": ("Check a sample report", "Controleer een voorbeeldverslag"),
    "report_notice": (
        "For authors and editors. It reads texts and no scans, and may overlook a statement: read again what it does not find.",
        "Voor auteurs en redacties. Het leest teksten en geen scans, en kan een uitspraak over het hoofd zien: lees na wat het "
        "niet vindt.",
    ),
    "report_page": ("Report, HTML", "Rapport, HTML"),
    "report_json": ("Report, JSON", "Rapport, JSON"),
    "report_absent": (
        "The checker is not installed here. On your own machine: `ctfm report-check draft.docx`.",
        "De controle is hier niet geïnstalleerd. Op uw eigen machine: `ctfm report-check draft.docx`.",
    ),
    # errors
    "error": ("That did not work", "Dat lukte niet"),
    "error_no_file": ("No file was given.", "Er is geen bestand gegeven."),
    "error_no_scan": (
        "There is no scan here any more. Upload it again.",
        "Er is hier geen scan meer. Upload hem opnieuw.",
    ),
    "error_no_analysis": ("Analyse the scan first.", "Analyseer eerst de scan."),
    "error_no_answers": (
        "This scan is unlike the training scans: nothing is answered about it.",
        "Deze scan lijkt niet op de trainingsscans: er wordt niets over geantwoord.",
    ),
    "error_not_understood": (
        "The sentence has words that no report in the training uses.",
        "De zin bevat woorden die geen verslag in de training gebruikt.",
    ),
    "error_no_map": ("Choose a finding first.", "Kies eerst een bevinding."),
    "error_argument": (
        "A value of the call is of another type than its function takes:",
        "Een waarde in de aanroep is van een ander type dan de functie verwacht:",
    ),
    "error_one_file": ("Pass one report. Number of files:", "Geef één verslag. Aantal bestanden:"),
    "error_internal": (
        "This could not be done. Check what was sent, or try another file; the kind of the error was noted, without a name.",
        "Dit lukte niet. Controleer wat is gestuurd, of probeer een ander bestand; het soort fout is genoteerd, zonder naam.",
    ),
    "error_upload_gone": (
        "The upload is no longer here. Upload it again.",
        "De upload is er niet meer. Upload opnieuw.",
    ),
    "error_too_many_files": (
        "Too many files at once. Send the series as one zip.",
        "Te veel bestanden tegelijk. Stuur de serie als één zip.",
    ),
    "error_too_large": ("The scan is too large for this Space.", "De scan is te groot voor deze Space."),
    "error_too_slow": ("This took too long and was given up.", "Dit duurde te lang en is afgebroken."),
    "error_no_such_series": ("There is no such series.", "Die serie is er niet."),
    "error_choose_series": ("Choose a series first.", "Kies eerst een serie."),
    "error_unreadable": ("This cannot be read as one CT scan.", "Dit is niet als één CT-scan te lezen."),
    "error_damaged": ("The file is damaged.", "Het bestand is beschadigd."),
    "error_unsafe": ("The file is not safe to open.", "Het bestand is niet veilig te openen."),
    "error_not_ct": ("This is no CT scan.", "Dit is geen CT-scan."),
    "error_geometry": (
        "The voxels cannot be placed in the patient.",
        "De voxels zijn niet in de patiënt te plaatsen.",
    ),
    "error_unsupported": ("No CT scan was found in this.", "Hierin is geen CT-scan gevonden."),
    "error_no_text": ("Write what to look for.", "Schrijf waarnaar gezocht moet worden."),
    "error_long_text": ("The question is too long.", "De vraag is te lang."),
    "error_no_such_finding": ("The model is not asked for this finding.", "Het model wordt niet naar deze bevinding gevraagd."),
    "error_report": ("The report cannot be checked.", "Het verslag kan niet gecontroleerd worden."),
}  # fmt: skip

FINDINGS_NL = {
    "Medical material": "Medisch materiaal",
    "Arterial wall calcification": "Verkalking van de slagaderwand",
    "Cardiomegaly": "Vergroot hart",
    "Pericardial effusion": "Pericardvocht",
    "Coronary artery wall calcification": "Verkalking van de kransslagaders",
    "Hiatal hernia": "Hernia diaphragmatica",
    "Lymphadenopathy": "Vergrote lymfeklieren",
    "Emphysema": "Emfyseem",
    "Atelectasis": "Atelectase",
    "Lung nodule": "Longnodus",
    "Lung opacity": "Longverdichting (matglas)",
    "Pulmonary fibrotic sequela": "Fibrotische restafwijking van de long",
    "Pleural effusion": "Pleuravocht",
    "Mosaic attenuation pattern": "Mozaïekpatroon",
    "Peribronchial thickening": "Peribronchiale verdikking",
    "Consolidation": "Consolidatie",
    "Bronchiectasis": "Bronchiëctasie",
    "Interlobular septal thickening": "Verdikte interlobulaire septa",
    "Kidney tumour": "Niertumor",
    "Kidney stone": "Niersteen",
    "Liver lesion": "Leverlaesie",
    "Ascites": "Ascites",
}


def say(language: str, key: str, *values: object) -> str:
    english, dutch = TEXTS[key]
    return (dutch if language == "nl" else english).format(*values)


def name_finding(language: str, label: str) -> str:
    return FINDINGS_NL.get(label, label) if language == "nl" else label
