"""Run a service of OpenStack that is no API: run_service.py MODULE [ARGUMENT...], as its console script would.

Nova's compute service also learns where the virt driver of the embedded stack is: Nova loads drivers from its own
package only, and machines are made by `infra/local/farm`.
"""

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Run until the service ends."""
    module, *arguments = sys.argv[1:]
    sys.argv = [module.rpartition(".")[2], *arguments]
    service = importlib.import_module(module)  # first of all: it chooses its kind of threads
    importlib.import_module("sqlite_writes").begin_immediate()
    if module == "nova.cmd.compute":
        sys.path.append(str(Path(__file__).parent.parent / "farm"))
        import nova.virt  # noqa: PLC0415 - of this one service

        nova.virt.compute_drivers = importlib.import_module("compute_drivers.gpu_host")
        sys.modules["nova.virt.compute_drivers"] = nova.virt.compute_drivers
    service.main()


if __name__ == "__main__":
    main()
