"""Open-i: images meet their reports, reports are never divided, nothing is lost."""

from collections import Counter, defaultdict

import pytest

from medjax.data.datasets.openi import survey_openi
from medjax.data.datasets.openi_reports import parse_report, read_reports
from medjax.data.datasets.openi_source import complete_source
from medjax.data.prepared import PreparedSource
from medjax.data.roots import find_dataset
from medjax.data.splits import SPLITS, split_of
from medjax.data.tokens import tokenize
from medjax.errors import UserError
from medjax.prepare import prepare, summary
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.pretrained.tokenizer import find_tokenizer, save_tokenizer
from tests.images import write_image
from tests.openi import PAIR, few_words, write_pairs, write_report

# As counted in the published archive without this package.
PUBLISHED = {
    "reports_found": 3955,
    "reports_without_text": 28,
    "reports_without_impression": 34,
    "reports_without_findings": 530,
    "reports_without_images": 104,
}


@pytest.fixture
def words(tmp_path_factory):
    """A folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(tiny_tokenizer(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def real_reports(shared_data, tmp_path_factory):
    """A folder with the published archive, unpacked, and an image of no report."""
    folder = tmp_path_factory.mktemp("openi")
    archive = shared_data / "openi" / "NLMCXR_reports.tgz"
    (folder / archive.name).symlink_to(archive)
    write_image(folder / "image" / "CXR0_IM-0001-1001.png", 2, 2)
    (note,) = complete_source(folder)
    assert "1,112,632 bytes, sha256 8fb6de7eec73d8c3" in note
    return folder


def test_images_meet_their_reports_in_any_folder(tmp_path):
    write_report(tmp_path / "texts", 1, images=("1_IM-0001-3001", "1_IM-0001-4001"))
    write_report(tmp_path / "texts", 2)
    write_image(tmp_path / "a/b/CXR1_1_IM-0001-3001.png")
    write_image(tmp_path / "1_IM-0001-4001.dcm.png")
    write_image(tmp_path / "CXR2_IM-0001-1001.jpg")
    survey = survey_openi(tmp_path, few_words)
    assert [(entry.id, entry.group) for entry in survey.entries] == [
        ("CXR1_1_IM-0001-3001", "CXR1"),
        ("CXR1_1_IM-0001-4001", "CXR1"),
        ("CXR2_IM-0001-1001", "CXR2"),
    ]
    assert [one.name for one in survey.skipped] == ["CXR2_IM-0001-2001"]


def test_what_has_no_partner_is_counted_and_named(tmp_path):
    write_pairs(tmp_path, [1])
    write_report(tmp_path, 2, impression="", findings=" ", images=PAIR[:1])
    write_image(tmp_path / "CXR2_IM-0001-1001.png")
    write_report(tmp_path, 3, images=())
    write_report(tmp_path, 4)
    write_image(tmp_path / "CXR9_IM-0001-1001.png")
    write_image(tmp_path / "copy/CXR1_IM-0001-1001.jpg")
    write_image(tmp_path / "photo.png")
    (tmp_path / "x.xml").write_text("not XML")
    survey = survey_openi(tmp_path, few_words)
    reasons = {one.name: one.reason for one in survey.skipped}
    assert reasons == {
        # Of two the first by its path is kept.
        "png/CXR1_IM-0001-1001.png": "another file has this name: "
        "copy/CXR1_IM-0001-1001.jpg",
        "CXR2": "has neither findings nor impression",
        "CXR2_IM-0001-1001": "its report CXR2 has neither findings nor impression",
        "CXR3": "names no image",
        "CXR4_IM-0001-1001": "its file is missing; named by report CXR4",
        "CXR4_IM-0001-2001": "its file is missing; named by report CXR4",
        "CXR9_IM-0001-1001.png": "no report names it",
        "photo.png": "no report names it",
    }
    assert [one.name for one in survey.damaged] == ["x.xml"]
    assert survey.counts == {
        "images_found": 6,
        "images_missing": 2,
        "images_of_known_view": 0,
        "reports_found": 5,
        "reports_without_text": 1,
        "reports_without_impression": 1,
        "reports_without_findings": 1,
        "reports_without_images": 1,
        "captions_shortened": 0,
        "sentences_left_off": 0,
        "captions_cut_in_a_sentence": 0,
    }
    assert len(survey.entries) == 2


def test_an_image_of_two_reports_stays_with_the_first(tmp_path):
    write_pairs(tmp_path, [1])
    text = write_report(tmp_path, 2, images=PAIR[:1]).read_text()
    (tmp_path / "ecgen-radiology/2.xml").write_text(
        text.replace("CXR2_IM", "CXR1_IM"), encoding="utf-8"
    )
    survey = survey_openi(tmp_path, few_words)
    assert Counter(entry.group for entry in survey.entries) == {"CXR1": 2}
    assert survey.skipped[0].reason == "also named by report CXR2, but kept with CXR1"


def test_captions_tell_the_view_where_it_is_known(tmp_path):
    write_pairs(tmp_path, [1])
    write_report(tmp_path, 2, images=PAIR[:1], caption="AP portable chest")
    write_image(tmp_path / "CXR2_IM-0001-1001.png")
    (tmp_path / "indiana_projections.csv").write_text(
        "filename,projection\n1_IM-0001-2001.dcm.png,Lateral\n"
    )
    survey = survey_openi(tmp_path, few_words)
    views = [entry.attributes["view"] for entry in survey.entries]
    assert views == ["", "lateral", "AP"]
    assert survey.entries[0].text.endswith("lungs are clear.")
    assert survey.entries[1].text.endswith("lungs are clear. Lateral view.")
    assert survey.entries[2].text.endswith("AP view.")
    assert survey.counts["images_of_known_view"] == 2
    published = survey_openi(tmp_path, few_words, "published").entries
    assert {entry.text[:32] for entry in published} == {
        "Chest X-ray, radiology scan. Dx:"
    }


def test_nothing_that_fits_together_is_an_error(tmp_path):
    write_report(tmp_path, 1)
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"none of 1 images .*1 reports .*got a\.png"):
        survey_openi(tmp_path, few_words)


def test_no_report_is_on_two_sides(tmp_path, words):
    numbers = range(1, 41)
    write_pairs(tmp_path / "source", numbers)
    report = prepare("openi", tmp_path / "source", tmp_path / "out", tokenizer=words)
    assert set(report["splits"]) == set(SPLITS)
    assert report["settings"]["caption_style"] == "report"
    assert "tokenizer" not in report["settings"]
    folder = find_dataset(tmp_path / "out")
    held = []
    for split in SPLITS:
        source = PreparedSource(folder, split)
        parameters = [source[i]["parameters"] for i in range(len(source))]
        held.append({one["report"] for one in parameters})
        assert len(parameters) == 2 * len(held[-1])
        assert report["splits"][split]["groups"] == len(held[-1])
    assert sum(map(len, held)) == len(set().union(*held)) == len(numbers)
    said = summary(report, tmp_path / "out")
    assert "does not identify patients" in said
    assert "captions shortened: " in said


def test_captions_that_are_stored_fit(tmp_path, words):
    write_pairs(tmp_path / "source", [1, 2])
    write_report(tmp_path / "source", 2, findings="Opacity of the lung base. " * 3)
    long = " ".join(f"Nodule {n} in the lung." for n in range(30))
    write_report(tmp_path / "source", 1, findings=long)
    report = prepare("openi", tmp_path / "source", tmp_path / "out", tokenizer=words)
    assert report["counts"]["captions_shortened"] == 2
    assert report["counts"]["sentences_left_off"] > 2
    folder = find_dataset(tmp_path / "out")
    clip = find_tokenizer(words)
    for split in report["splits"]:
        source = PreparedSource(folder, split)
        for number in range(len(source)):
            assert tokenize(clip, source[number]["text"])[1] == ""


@pytest.mark.release
def test_real_reports_parse_and_are_never_divided(real_reports):
    read = read_reports(real_reports)
    assert not (*read.damaged, *read.skipped)
    named = [name for report in read.reports for name in report.images]
    assert len(set(named)) == len(named) == 7470
    (image,) = (real_reports / "image").iterdir()
    for name in named:
        (real_reports / "image" / f"{name}.png").hardlink_to(image)
    survey = survey_openi(real_reports, few_words)
    assert PUBLISHED.items() <= survey.counts.items()
    assert survey.counts["images_missing"] == 0
    assert survey.counts["captions_cut_in_a_sentence"] == 0
    assert survey.counts["images_of_known_view"] == 22
    # Forty images belong to reports without a word.
    assert len(survey.entries) == 7470 - 40
    sides = defaultdict(set)
    for entry in survey.entries:
        assert few_words(entry.text)
        sides[entry.id.split("_")[0]].add(split_of(entry.group))
    assert {len(splits) for splits in sides.values()} == {1}
    sizes = Counter(side for splits in sides.values() for side in splits)
    assert sizes["train"] / len(sides) == pytest.approx(0.8, abs=0.03)


@pytest.mark.ci
def test_real_captions_fit_clip(shared_data, real_reports, tmp_path):
    for number in range(1, 61):
        (file,) = real_reports.glob(f"NLMCXR_reports/*/{number}.xml")
        (tmp_path / file.name).symlink_to(file)
        for name in parse_report(file.read_bytes()).images:
            write_image(tmp_path / f"{name}.png", 2, 2)
    clip = find_tokenizer(str(shared_data / "clip_tokenizer"))

    def fits(text):
        return not tokenize(clip, text)[1]

    survey = survey_openi(tmp_path, fits)
    assert survey.counts["captions_shortened"] > 0
    assert all(fits(entry.text) for entry in survey.entries)
    published = survey_openi(tmp_path, fits, "published")
    cut = sum(not fits(entry.text) for entry in published.entries)
    assert published.counts["captions_over_77_tokens"] == cut > 0
