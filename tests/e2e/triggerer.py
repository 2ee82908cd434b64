"""A triggerer that a test kills: runs one trigger, made from its row, and says what it logs.

triggerer.py CLASS_PATH JSON_ARGUMENTS
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from airflow.sdk.module_loading import import_string


async def main(path: str, arguments: str) -> None:
    """Run until the event, or killed."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    async for event in import_string(path)(**json.loads(arguments)).run():
        sys.stdout.write(f"event {json.dumps(event.payload)}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
