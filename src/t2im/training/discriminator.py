"""What can judge a picture where pixel errors cannot? A second network that learns to tell redrawn from real.

An autoencoder trained on pixel errors alone draws the mean of all it is unsure of, which is a blur. A discriminator that
looks at overlapping patches (Isola et al. 2017, arXiv 1611.07004) punishes blur, because real patches have none.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from t2im.shapes import Images


class PatchDiscriminator(nn.Module):
    """Three strided convolutions and a verdict for each patch: positive is real."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, stride=1, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def forward(self, images: Images) -> Float[Tensor, "batch 1 rows columns"]:
        """Return a verdict for each patch."""
        verdicts: Tensor = self.layers(images)
        return verdicts


class Judge:
    """A discriminator with its own optimizer; it learns from the very pictures it judges.

        L_D = mean(max(0, 1 - D(x))) / 2 + mean(max(0, 1 + D(x'))) / 2,    L_G = -mean(D(x'))

    The hinge loss of Lim and Ye 2017, arXiv 1705.02894, as used for autoencoders by Esser et al. 2021.
    """

    def __init__(self, learning_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = PatchDiscriminator()
        self._optimizer = torch.optim.AdamW(self.network.parameters(), learning_rate, betas=(0.5, 0.9))

    def learn(self, real: Images, redrawn: Images) -> Tensor:
        """Take one step towards telling the two apart; return the loss before it."""
        self.network.to(real.device).requires_grad_(True)
        loss = (F.relu(1 - self.network(real)).mean() + F.relu(1 + self.network(redrawn.detach())).mean()) / 2
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.detach()

    def objection(self, redrawn: Images) -> Tensor:
        """Return L_G: how far the redrawn pictures are from being taken for real."""
        self.network.to(redrawn.device).requires_grad_(False)
        loss: Tensor = -self.network(redrawn).mean()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimizer state."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
