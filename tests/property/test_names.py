"""Names of files as text: any bytes come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leokit.images.scan import escape, unescape


@given(st.binary())
def test_escaping_is_reversible(name):
    text = escape(name)
    assert unescape(text) == name
    text.encode("utf-8")  # text that can be stored


@given(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"])))
def test_ordinary_names_stay_as_they_are(name):
    assert escape(name.encode("utf-8")) == name


@given(st.lists(st.binary(), unique=True))
def test_different_names_stay_different(names):
    assert len({escape(name) for name in names}) == len(names)


@pytest.mark.parametrize("text", ["\\", "a\\b", "\\xg0", "\\x1"])
def test_what_escaping_never_makes_is_refused(text):
    with pytest.raises(ValueError, match="backslash"):
        unescape(text)
