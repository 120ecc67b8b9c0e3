"""What a user reads: one line that a terminal shows and does not obey."""

import pytest

from longtail.errors import UserError, counted, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é and 猫", "plain, é and 猫"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("half \udce9", r"half \udce9"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown  # a sentence inside a sentence
    assert str(UserError(text)) == shown


def test_a_file_name_cannot_write_a_second_line(desk, make_photos):
    make_photos(desk.folder / "photos", {"ant": 3, "bee": 2})
    (desk.folder / "photos" / "ant" / "a\nb.png").write_bytes(b"no image")
    desk.refuse("train", "photos", "--backbone", "small_net", naming=[r"ant/a\nb.png"])


def test_counted():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
