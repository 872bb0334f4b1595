"""Workers of a batch in this process, instead of Ray's: they take turns, message by message."""

from ditflow.batch.messages import Ended, Ending
from ditflow.batch.worker import Worker


def count_encodings(file, patch=setattr):
    """From now on this process adds a line to the file whenever it encodes a text or a clip.

    Returns what reads the lines.
    """
    from ditflow.jobs import job
    from ditflow.models.loading import ModelFolder

    encode_texts, encode_clip = job.encode_texts, ModelFolder.encoded

    def note(what, encode):
        def noted(*given):
            with open(file, "a") as lines:
                lines.write(f"{what}\n" * len(given[0] if given else " "))
            return encode(*given)

        return noted

    patch(
        job, "encode_texts", lambda folder, tokens, encode: encode_texts(folder, tokens, note("text", encode))
    )
    patch(
        ModelFolder, "encoded", lambda folder, clip, encode: encode_clip(folder, clip, note("clip", encode))
    )
    return lambda: file.read_text().split()


class InProcess:
    """`lose`: how many messages each of the first tries sends before its worker is lost."""

    def __init__(self, folder, count=1, lose=()):
        self.folder, self.count, self.lose = folder, count, list(lose)
        self.given, self.starts, self.talks, self.workers = [], [], {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.talks.clear()

    def start(self, worker):
        self.starts.append(worker)
        self.workers[worker] = made = Worker()
        self.talks[worker] = iter([made.ready(str(self.folder), threads=1)])

    def give(self, worker, settings):
        self.given.append((worker, settings))
        self.talks[worker] = self.run(self.workers[worker], settings)

    def run(self, worker, settings):
        left = self.lose.pop(0) if self.lose else None
        for number, message in enumerate(worker.run(settings)):
            if number == left:
                yield Ended(Ending.AGAIN, "its worker died", worker_lost=True)
                return
            yield message

    def stop(self):
        for worker, talk in self.talks.items():
            self.workers[worker].stopping.set()
            assert not [message for message in talk if isinstance(message, Ended)]

    def messages(self, seconds):
        for worker, talk in list(self.talks.items()):
            message = next(talk, None)
            if message is not None:
                yield worker, message
