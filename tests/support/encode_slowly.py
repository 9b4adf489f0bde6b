"""pipelines/encode_latents.py, of which every entry takes a moment to be written: time to kill it while it writes."""

import time

import webdataset as wds

from ldm.commands.encode_latents import main

write = wds.TarWriter.write


def write_slowly(self, entry):
    time.sleep(0.05)
    return write(self, entry)


if __name__ == "__main__":
    wds.TarWriter.write = write_slowly
    main()
