"""Workers of a batch in this process, instead of Ray's: they take turns, message by message."""

from ditflow.batch.messages import Ended, Ending, Ready
from ditflow.batch.worker import Worker
from ditflow.jobs.session import Session


class InProcess:
    """`lose`: how many messages each of the first tries sends before its worker is lost."""

    def __init__(self, count=1, lose=()):
        self.count, self.lose = count, list(lose)
        self.given, self.starts, self.talks = [], [], {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.talks.clear()

    def start(self, worker):
        self.starts.append(worker)
        self.talks[worker] = iter([Ready("here")])

    def give(self, worker, settings):
        self.given.append((worker, settings))
        self.talks[worker] = self.run(settings)

    def run(self, settings):
        worker = Worker()
        worker.session = Session()
        left = self.lose.pop(0) if self.lose else None
        for number, message in enumerate(worker.run(settings)):
            if number == left:
                yield Ended(Ending.AGAIN, "its worker died", worker_lost=True)
                return
            yield message

    def messages(self, seconds):
        for worker, talk in list(self.talks.items()):
            message = next(talk, None)
            if message is not None:
                yield worker, message
