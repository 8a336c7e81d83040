import random

import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import literal_strings


def test_whatever_python_writes_is_read():
    chance = random.Random(0)
    letters = [chr(i) for i in range(0xD800)] + ["'", '"', "\\", "\U0001f600"] * 10_000
    for _ in range(300):
        names = ["".join(chance.choices(letters, k=chance.randrange(12))) for _ in range(4)]
        assert literal_strings(repr(names), "m: f") == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        (" [ 'a' , \"b\" , ] ", ["a", "b"]),
        ('["a", "b\\/\\u00e9"]', ["a", "b/é"]),
        (r"['it\'s', 'tab\t', '\x41\u00e9\U0001f600']", ["it's", "tab\t", "Aé😀"]),
        ("['a',\n 'b']", ["a", "b"]),
    ],
)
def test_lists_of_strings(text, expected):
    assert literal_strings(text, "m: f") == expected


@pytest.mark.parametrize(
    "text",
    ["", "a", "'a'", "{}", "('a', 'b')", "{'a'}", "['a', 1]", '["a", null]', "[['a']]",
     "['a' 'b']", "['a' + 'b']", "['a',, 'b']", "[,]", "['a'", "['a'] * 9", "[b'a']",
     "[f'{1}']", "['\\d']", "['\\U00110000']", '["\\ud800"]', "['\\ud800']",
     "['a', __import__('os').system('touch owned')]", "[x for x in 'abc']", "__import__('os')",
     "exec('1')", "[" * 60_000, "[" * 30_000 + "]" * 30_000, "(" * 60_000, "-" * 60_000,
     "a." * 30_000, "[" + "'a'+" * 10_000 + "'a']", "[" + "9" * 60_000 + "]", "['a\0']",
     "['a\nb']"],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ProbexError, match=r"^m: f: expected a list of strings, got ") as caught:
        literal_strings(text, "m: f")
    assert len(str(caught.value)) < 300


def test_long_text_is_refused():
    with pytest.raises(ProbexError, match="m: f: 65537 characters"):
        literal_strings(" " * (64 * 1024 + 1), "m: f")
    names = ["class"] * 7_000
    assert literal_strings(repr(names), "m: f") == names


def test_random_damage_raises_nothing_but_probex_error():
    chance = random.Random(0)
    for _ in range(1000):
        text = list(repr(["apple", "sea's edge", "é\t\x00", 'a"b']))
        for _ in range(chance.randint(1, 3)):
            text[chance.randrange(len(text))] = chance.choice("[](){}'\"\\,+xuU0 \n\0a")
        try:
            names = literal_strings("".join(text), "m: f")
        except ProbexError:
            continue
        assert all(isinstance(name, str) for name in names)
