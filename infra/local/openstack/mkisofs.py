"""Make an ISO 9660 image as genisoimage does, as far as Nova needs it: mkisofs.py -o IMAGE -V LABEL [OPTION...] FOLDER.

Nova calls such a program for the config drives of machines that are no virtual ones. Names keep their length and case
(Rock Ridge and Joliet) whatever the other options say.
"""

import os
import sys
from pathlib import Path

import pycdlib

_WITH_VALUE = {"-o", "-V", "-publisher"}


def main() -> None:
    """Read the arguments and make the image."""
    arguments = iter(sys.argv[1:])
    values: dict[str, str] = {}
    folders: list[str] = []
    for argument in arguments:
        if argument in _WITH_VALUE:
            values[argument] = next(arguments)
        elif not argument.startswith("-"):
            folders.append(argument)
    (folder,) = folders
    write(Path(folder), Path(values["-o"]), label=values["-V"])


def write(folder: Path, image: Path, *, label: str) -> None:
    """Everything below a folder as an image."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=4, rock_ridge="1.09", joliet=3, vol_ident=label)
    for root, folders, files in os.walk(folder):
        inside = Path("/") / Path(root).relative_to(folder)
        for name in folders:
            iso.add_directory(str(inside / name), rr_name=name, joliet_path=str(inside / name))
        for name in files:
            iso.add_file(str(Path(root, name)), str(inside / name), rr_name=name, joliet_path=str(inside / name))
    iso.write(str(image))
    iso.close()


if __name__ == "__main__":
    main()
