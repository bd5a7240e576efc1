"""The common test mixins of the installed transformers release, fetched when they are first needed.

They are part of the source distribution only. Its `tests` folder is unpacked, with our stand-ins for the modules that it
lacks, into the git-ignored folder `tests/.transformers_tests`, and imported as `transformers_tests`. `TRANSFORMERS_SDIST`
names a source distribution on disk. Where none can be had, the tests that import this module are skipped with a reason.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import transformers
from filelock import FileLock

HERE = Path(__file__).parent
FOLDER = HERE.parent / ".transformers_tests" / transformers.__version__
# place among the unpacked files -> our stand-in
STAND_INS = {
    "transformers_tests/generation/test_utils.py": "generation_mixin.py",
    "transformers_tests/exporters/test_export.py": "export_mixin.py",
    "transformers_tests/utils/test_configuration_utils.py": "configuration_values.py",
    "transformers_tests/distributed_testing_utils.py": "distributed_testing_utils.py",
    "fetch_hub_objects_for_ci.py": "fetch_hub_objects_for_ci.py",
}


def download(folder: Path) -> Path:
    """The source distribution of the installed release, in `folder`."""
    requirement = f"transformers=={transformers.__version__}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "transformers",
        "--retries",
        "1",
    ]
    done = subprocess.run([*command, "--dest", folder, requirement], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise OSError(f"pip download {requirement}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return next(folder.glob("transformers-*.tar.gz"))


def unpack() -> None:
    """Make `FOLDER` hold the package `transformers_tests`."""
    FOLDER.parent.mkdir(exist_ok=True)
    with FileLock(f"{FOLDER}.lock"):
        if not FOLDER.is_dir():
            with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
                given = os.environ.get("TRANSFORMERS_SDIST")
                archive = Path(given) if given else download(Path(temporary))
                with tarfile.open(archive) as tar:
                    tests = [member for member in tar.getmembers() if member.name.split("/")[1:2] == ["tests"]]
                    tar.extractall(temporary, tests, filter="data")
                (unpacked,) = Path(temporary).glob("transformers-*/tests")
                unpacked.rename(unpacked.parent / "transformers_tests")
                unpacked.parent.rename(FOLDER)
        for place, name in STAND_INS.items():
            (FOLDER / place).parent.mkdir(exist_ok=True)
            (FOLDER / place).parent.joinpath("__init__.py").touch()
            shutil.copyfile(HERE / "stand_ins" / name, FOLDER / place)


try:
    unpack()
except (OSError, subprocess.TimeoutExpired, StopIteration, tarfile.TarError) as error:
    pytest.skip(f"the test mixins of transformers cannot be fetched: {error}", allow_module_level=True)

sys.path.insert(0, str(FOLDER))

from transformers_tests import test_fsdp_mixin, test_tensor_parallel_mixin  # noqa: E402
from transformers_tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_fsdp_mixin import FSDPTesterMixin  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor  # noqa: E402
from transformers_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402
from transformers_tests.test_sequence_feature_extraction_common import (  # noqa: E402
    SequenceFeatureExtractionTestMixin,
)
from transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin  # noqa: E402
from transformers_tests.test_training_mixin import TrainingTesterMixin  # noqa: E402

# these tests run on the model types that the sets name; `None` stands for all
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None

__all__ = [
    "ConfigTester",
    "FSDPTesterMixin",
    "GenerationTesterMixin",
    "ModelTesterMixin",
    "ProcessorTesterMixin",
    "SequenceFeatureExtractionTestMixin",
    "TensorParallelTesterMixin",
    "TrainingTesterMixin",
    "floats_tensor",
    "ids_tensor",
]
