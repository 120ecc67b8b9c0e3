"""A loader in float64, for runs that are compared to the last digits."""


class Doubled:
    """A loader whose views are float64; what it fetches may be views alone, or a batch."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def load(self, epoch, step):
        return _double(self.loader.load(epoch, step))

    def fetch(self, *asked):
        fetched = self.loader.fetch(*asked)
        return _double(fetched) if hasattr(fetched, "views") else fetched.double()


def _double(batch):
    batch.views = {name: view.double() for name, view in batch.views.items()}
    return batch
