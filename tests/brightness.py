"""A condition of one's own, as in docs/architecture.md: how bright a picture is."""

import torch


class Brightness:
    """The mean of an image's pixels, from 0 to 1; -1 means that it is hidden."""

    name, has_null = "brightness", True

    def __init__(self, hidden: float = 0.1):
        self.hidden = hidden

    def of_rows(self, batch):
        return {"brightness": batch["images"].float().mean((1, 2, 3)) / 255}

    def of_words(self, words, device):
        if not all(0 <= word <= 1 for word in words):
            raise ValueError(f"`brightness` must be {self.choices()}, got {words}.")
        return {"brightness": torch.tensor(words, dtype=torch.float32, device=device)}

    def null(self, told):
        return {"brightness": torch.full_like(told["brightness"], -1)}

    def usual(self):
        return [0.2, 0.5, 0.8]

    def choices(self):
        return "from 0 to 1"

    def table(self, words):
        return {"brightness": list(words)}

    def rows(self, count):
        return [self.usual()[k % 3] for k in range(count)], None

    def of_data(self, data):
        return self
