"""The dense counterparts: the same method where every pixel has a class."""
