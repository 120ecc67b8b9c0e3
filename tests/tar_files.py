"""Tar shards made byte by byte of members: what WebDataset's writer and tar(1) leave, and what they should not."""

import io
import json
import tarfile


def write_tar(file, members):
    """Write ``{name: bytes}``, or pairs where a name occurs twice, as an ordinary tar file; return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def pack(folder, out, shards=3, label="cls", start="data"):
    """Write the images of ``folder/CLASS/*`` in turn into ``out/START-000000.tar`` ...; labels are the classes."""
    members = [{} for _ in range(shards)]
    for number, image in enumerate(sorted(folder.rglob("*.png"))):
        key = image.relative_to(folder).as_posix().removesuffix(".png")
        text = image.parent.name if label == "cls" else json.dumps({"label": image.parent.name, "width": 1})
        members[number % shards] |= {f"{key}.png": image.read_bytes(), f"{key}.{label}": text.encode()}
    return [write_tar(out / f"{start}-{number:06d}.tar", part) for number, part in enumerate(members)]
