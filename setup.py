"""Packaging of lmdali: three top-level folders imported as one namespace, `lmdali.*`.

There is no `lmdali/` folder on purpose: `pipeline/`, `model/` and `tools/` are generic names, so they are mapped below
`lmdali.` at install time and nothing is importable without an install.
"""

from pathlib import Path

from setuptools import setup

ROOMS = ["pipeline", "model", "tools"]

CORE = [
    "numpy>=2.0",
    # The headless build is the same cv2 without GUI libraries; never install it beside `opencv-python`.
    "opencv-python-headless>=4.12",  # older ones read no GIF
    "lmdb>=2.3",  # older ones: double-open crashes, false MDB_CORRUPTED, CVE-2019-16224 to -16228
    "click>=8.2.1",
    "rich>=13",
    "simplejpeg>=1.8",
    "crc32c>=2.7",
    "pyarrow>=17",
]
# numba compiles the one pass that crops, flips, subtracts and reorders a decoded image on the CPU.
TRAIN = ["torch>=2.10", "numba>=0.61"]
REPORT = ["matplotlib>=3.9"]
IMAGENET = ["scipy>=1.13"]  # reads the class table of the development kits, a MATLAB file
FAISS = ["faiss-cpu>=1.14.2"]  # `lmdali search --index faiss`
# s3://; http(s):// and file:// need nothing. s3fs leaves out what an older botocore does not know: the condition that
# makes a lock one.
REMOTE = ["fsspec>=2025.7", "s3fs>=2025.7", "aiobotocore>=2.16"]
DASK = ["dask>=2024.8", "distributed>=2024.8"]  # shards made by many machines
DEV = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "pillow>=10"]
DEV += ["mypy>=1.11", "ruff>=0.6"]
DEV += [*FAISS, "moto[server]>=5.1"]  # so that searches by faiss are tested, and S3, in the test process
# torch brings it wherever there is a GPU; its interpreter runs the GPU kernels in the tests where there is none.
DEV += ["triton>=3.7; platform_system == 'Linux'"]

setup(
    name="lmdali",
    version="0.1.0",
    description="LMDB shards and DALI loaders: from image files to batches to an AlexNet, in one ledger",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[f"lmdali.{room}" for room in ROOMS],
    package_dir={f"lmdali.{room}": room for room in ROOMS},
    package_data={f"lmdali.{room}": ["py.typed"] for room in ROOMS},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "report": REPORT,
        "imagenet": IMAGENET,
        "tensorboard": ["tensorboard>=2.17"],
        # `pip install nvidia-dali` is a placeholder package; the real ones are named by CUDA major version. Older ones
        # turn pictures as their EXIF says, and cannot be told not to.
        "dali-cuda12": ["nvidia-dali-cuda120>=2.2"],
        "dali-cuda13": ["nvidia-dali-cuda130>=2.2"],
        "faiss": FAISS,
        "dask": DASK,
        "remote": REMOTE,
        "gcs": ["fsspec>=2025.7", "gcsfs>=2025.7"],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["lmdali = lmdali.tools.cli:main"]},
)
