"""Whether the packages that lmdali needs are here, new enough, and can be imported; and which extras are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import requires

from lmdali.pipeline.errors import install_line
from lmdali.pipeline.release import installed_version
from lmdali.tools.finding import Finding, first_line

EXTRAS = {
    "train": "loaders, training, evaluation, profiles",
    "report": "learning curves and plots",
    "imagenet": "the class table of the ILSVRC development kits",
    "remote": "datasets at s3://",
    "gcs": "datasets at gs://",
    "dask": "`lmdali convert --executor dask`",
    "faiss": "`lmdali search --index faiss`",
    "tensorboard": "`lmdali train --tensorboard`",
}
"""What the extras are for that anybody may want; those of DALI go with a GPU."""

_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
_MODULES = {"opencv-python-headless": "cv2"}
_NEEDS = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?\s*>=\s*([\d.]+)")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")

Needs = dict[str, str]
"""Package -> the lowest version."""


def package_findings() -> Iterator[Finding]:
    """Packages that every command needs, then extras."""
    needs = needed_packages()
    yield from _base(needs[""])
    yield from _opencv()
    for extra, purpose in EXTRAS.items():
        yield _extra(extra, purpose, needs[extra])


def needed_packages() -> dict[str, Needs]:
    """Extra -> packages, as the installed lmdali declares them; those of the extra "" are always needed."""
    needs: dict[str, Needs] = defaultdict(dict)
    for line in requires("lmdali") or []:
        package, extra = _NEEDS.match(line), _EXTRA.search(line)
        if package is not None:
            needs[extra[1] if extra else ""][package[1]] = package[2]
    return needs


def _base(needs: Needs) -> Iterator[Finding]:
    sound = []
    for package, lowest in needs.items():
        problem = _shortcoming(package, lowest) or _import_problem(package)
        if problem is None:
            sound.append(f"{package} {installed_version(package)}")
        else:
            advice = f"pip install --force-reinstall '{package}>={lowest}'"
            yield Finding(package, problem, "problem", advice)
    yield Finding("always needed", ", ".join(sound))


def _opencv() -> Iterator[Finding]:
    """Each of OpenCV's builds writes the same folder: with two of them it is made of pieces of both."""
    found = [package for package in _OPENCV if installed_version(package) is not None]
    if len(found) > 1:
        yield Finding(
            "OpenCV",
            f"{' and '.join(found)} write the same folder cv2",
            "problem",
            f"pip uninstall -y {' '.join(found)}, then pip install opencv-python-headless",
        )


def _extra(extra: str, purpose: str, needs: Needs) -> Finding:
    what = f"extra {extra}"
    missing = [package for package in needs if installed_version(package) is None]
    if missing:
        return Finding(what, f"no {', '.join(missing)}: for {purpose}", "note", install_line(extra))
    old = [problem for package, lowest in needs.items() if (problem := _shortcoming(package, lowest))]
    if old:
        return Finding(what, "; ".join(old), "problem", install_line(extra))
    return Finding(what, ", ".join(f"{package} {installed_version(package)}" for package in needs))


def _shortcoming(package: str, lowest: str) -> str | None:
    """Why what is installed of a package does not do; None where it does."""
    found = installed_version(package)
    if found is None:
        return f"{package} is not installed"
    return f"{package} {found} is older than {lowest}" if _release(found) < _release(lowest) else None


def _import_problem(package: str) -> str | None:
    try:
        import_module(_MODULES.get(package, package))
    except Exception as error:  # whatever a broken build raises
        return f"cannot be imported: {first_line(error)}"
    return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with, without zeros at their end: 2.10.0rc1 is (2, 10), which is enough for what
    setup.py asks."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    release = [int(number) for number in numbers[0].split(".")] if numbers else []
    while release and not release[-1]:
        release.pop()
    return tuple(release)
