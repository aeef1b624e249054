"""What is printed at 80 columns: no word, path or number is cut."""

import os
import re

import pytest

from leokit.cli.render import Common, Output, TableData, wrapped

PATH = "leokit-work/uncertainty/a-run-with-a-long-name-of-its-own-5way-1shot-seed12345"


@pytest.fixture
def printed(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")

    def show(*tables, sentences=()):
        Output(Common()).result({}, tables, sentences)
        return capsys.readouterr().out

    return show


EVAL = [["own-images", "51.20 ± 12.48", "-12.28 ± 12.07", "2255", "one of many words that may be on further lines"]]
MANY = [["deterministic", *["10.2 (7.5–13.8)"] * 3, "0.597", "anchored-5way-1shot-seed1"]]


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (["method", "accuracy", "run - method", "episodes/s", "about"], EVAL),
        (["predictive", "a", "b", "c", "Brier", "run"], MANY),
        (["", "id", "now", "path"], [["run", "0f6838c7d398", "there, not compared, as it is none of ours", PATH]]),
        (["", ""], [["episodes_per_second.centred-class-mean", PATH]]),
        (["", ""], [["command", f"leokit eval {PATH} --methods class-mean,centred-class-mean,ridge,logistic"]]),
        (["類別", "数"], [["漢字" * 20, "1"], ["字", "2"]]),
    ],
)
def test_a_table_is_cut_nowhere(printed, columns, rows):
    out = printed(TableData("A title of which a word is " + PATH, columns, rows))
    for row in rows:
        for word in " ".join(row).split():
            assert re.search(rf"(^|\s){re.escape(word)}($|\s)", out, re.MULTILINE), word
        for cell in row[1:]:
            assert cell[:1] not in "0123456789-" or cell in out
    for line in out.splitlines():
        assert line == line.rstrip()
        assert len(line) <= 80 or any(len(word) > 60 for word in line.split())


def test_a_path_that_has_no_room_is_put_below(printed):
    lines = printed(TableData("Verified", ["is", "artifact"], [["right", PATH], ["2 wrong", "a"]])).splitlines()
    row = lines.index("  right")
    assert lines[row + 1] == f"      {PATH}"
    assert lines[row + 2] == "  2 wrong   a"


def test_sentences_are_wrapped_by_words(printed):
    out = printed(sentences=[f"In {PATH}{os.sep}summary.json and some more words, so that the line is a long one."])
    assert f"{PATH}{os.sep}summary.json" in out
    assert wrapped("  as it is", 80) == ["  as it is"]
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert wrapped("a-word-without-end b", 5) == ["a-word-without-end", "b"]
