"""What is sent to the serving host is all that the profiler needs there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mlops_sdk.drift.on_host import prompt_profiler
from mlops_sdk.drift.profile import Profile
from support_drift import reference


def test_it_counts_with_nothing_but_the_standard_library_and_the_files_sent(tmp_path: Path) -> None:
    sent = prompt_profiler(reference("python"))
    for name, content in sent.files.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_bytes(content)
    module, _, name = sent.path.rpartition(".")
    program = f"""
import sys
from {module} import {name}
profiler = {name}(None)
assert sys.modules["mlops_sdk"].__file__.startswith({str(tmp_path)!r})
assert not any("site-packages" in (m.__file__ or "") for m in sys.modules.values() if hasattr(m, "__file__"))
profiler._recorder._flush_soon = lambda: None
profiler._recorder.add(["import os"])
profiler._recorder.flush()
"""
    environment = {
        **sent.environment,
        "PYTHONPATH": str(tmp_path / "lib"),
        "MLOPS_PROFILE_DIR": str(tmp_path / "profiles"),
        "MLOPS_MODEL_VERSION": "3",
        "PATH": os.environ["PATH"],
    }
    subprocess.run([sys.executable, "-S", "-c", program], env=environment, check=True, cwd="/", timeout=30)
    (written,) = (tmp_path / "profiles").glob("*.json")
    found = Profile.parse(written.read_bytes())
    assert (found.model_version, found.counts) == ("3", reference("python").count(["import os"]))
