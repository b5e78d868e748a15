"""`python -m hfpretrain.data.worker`: encodes the batches of texts that come over stdin, for workers.py.

It knows the tokenizer from the first thing that it reads, and nothing else of the run; it imports nothing heavy, writes
nothing but its answers, and ends when stdin does, which is also when the process that started it is gone.
"""

import contextlib
import os
import signal
import sys

from hfpretrain.data.encoded import TextEncoder, pack_encoded, read_texts


def main() -> None:
    """Answers each batch of texts with what they are encoded to; the tokenizer, with an empty batch."""
    for each in (signal.SIGINT, signal.SIGTERM):  # they mean the process that started this one, which then ends it
        signal.signal(each, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, os.fdopen(sys.stdout.fileno(), "wb")  # buffered under PYTHONUNBUFFERED as well
    beginning = read_texts(source.read)
    if beginning is None:
        return
    typecode, specification = (each.decode() for each in beginning)
    encoder = TextEncoder(specification, typecode)
    answer = pack_encoded(encoder.encode([]))
    while True:
        sink.write(answer)
        sink.flush()
        texts = read_texts(source.read)
        if texts is None:
            return
        answer = pack_encoded(encoder.encode(texts))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the process that started this one is gone
        main()
    os._exit(0)  # at once: there is nothing to clear away
