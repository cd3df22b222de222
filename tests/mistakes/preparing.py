"""Mistakes in `python -m medjax.prepare`."""

from medjax.pretrained.tiny import tiny_tokenizer
from medjax.pretrained.tokenizer import save_tokenizer
from tests.images import write_image
from tests.mistakes import prep

MISTAKES = [
    prep("flag of prepare", "--overwrit", says=("--overwrit;", "'overwrite'?")),
    prep("argument of prepare", "x", says=("unexpected 'x'", "--name=value")),
    prep(
        "bool", "--overwrite=maybe", says=("--overwrite=maybe: Expected true or false",)
    ),
    prep("file of flags", "--flagfile={dir}/x", says=("Unable to open flagfile",)),
    prep(
        "data set",
        "--dataset=fodler",
        says=("fodler", "did you mean 'folder'?"),
        apart=True,
    ),
    prep("no source", "--source=", says=("--source= is empty",)),
    prep("missing source", "--source={dir}/x", says=("{dir}/x: no such folder",)),
    prep("file as source", "--source={raw}/0.png", says=("is a file, expected a f",)),
    prep(
        "no image",
        "--source={dir}",
        says=("--source={dir}: no image found", ".jpeg"),
        setup=lambda folder: (folder / "a.txt").write_text("x"),
    ),
    prep("shares", "--split_percent=80,30", says=("80,30", "80,10,10")),
    prep("shares of text", "--split_percent=a,b,c", says=("a,b,c", "80,10,10")),
    prep(
        "option that applies nowhere",
        "--dataset=nih_cxr",
        "--group_column=patient",
        says=("--group_column applies only to --dataset=folder",),
    ),
    prep(
        "column", "--group_column=x", says=("has no metadata.csv", "with this column")
    ),
    prep(
        "option of a folder for brains",
        "--dataset=adni",
        "--classes_from_folders",
        says=("--classes_from_folders applies only to --dataset=folder, not to adni",),
    ),
    prep(
        "one class",
        "--classes_from_folders",
        says=("fewer than two classes: no folder", "CLASSES/NAME/*.png"),
    ),
    prep(
        "knees without subjects",
        "--dataset=oai_akoa",
        says=("none of 24 names contains the subject; got 0.png", "OAI9062645_"),
    ),
    prep(
        "brains in no layout",
        "--dataset=adni",
        says=(
            "none of 24 images has a path like ",
            "{{train,test}}/{{AD,NC}}/<subject>_<slice>",
        ),
    ),
    prep(
        "published test alone",
        "--dataset=adni",
        "--source={dir}",
        "--split_percent=0,0,100",
        says=("no share for train or validation",),
        setup=lambda folder: write_image(folder / "AD_NC/train/AD/1_1.png"),
    ),
    prep(
        "download",
        "--download",
        says=("--download applies only to --dataset=openi, not",),
    ),
    prep(
        "style of another data set",
        "--dataset=openi",
        "--caption_style=findings",
        says=("--caption_style=findings: expected report or published",),
    ),
    prep(
        "folder without a tokenizer",
        "--dataset=openi",
        "--tokenizer={raw}",
        says=("CLIP's 77 tokens: {raw} contains no tokenizer", "--tokenizer=FOLDER"),
    ),
    prep(
        "radiographs without reports",
        "--dataset=openi",
        "--tokenizer={dir}",
        says=("neither reports (", "nor NLMCXR_reports.tgz; --download fetches it"),
        setup=lambda folder: save_tokenizer(tiny_tokenizer(), folder),
    ),
    prep("no table", "--dataset=nih_cxr", says=("no Data_Entry_2017*.csv found",)),
    prep(
        "table without its columns",
        "--source={dir}",
        says=("metadata.csv: has no column 'text', only file_name, txt", "mean 'txt'?"),
        setup=lambda folder: (
            write_image(folder / "a.png"),
            (folder / "metadata.csv").write_text("file_name,txt\na.png,x\n"),
        ),
    ),
    prep(
        "nothing but damage",
        "--source={dir}",
        says=("none of 1 images can be read", "a.png: not a readable image"),
        setup=lambda folder: (folder / "a.png").write_bytes(b"no image"),
        apart=True,
    ),
    prep("out that is a file", "--out={raw}/0.png", says=("0.png is not a folder",)),
    prep("no out", "--out=", says=("--out= is empty",)),
    prep(
        "data set that is there",
        "--out={data}",
        says=("already has folder/1.0.0, complete: train (", "set --overwrite"),
    ),
    prep(
        "other data set that is there",
        "--out={data}/folder",
        "--overwrite",
        says=("has another data set", "set --out to another folder"),
    ),
]
