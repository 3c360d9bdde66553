"""CartPole-v1 and Acrobot-v1 of gymnasium, on arrays: a step of many at once. No episodes and no learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LIMIT = 500  # steps, after which an episode is cut off


class Task(ABC):
    """A task of gymnasium with the same numbers; its states are of shape `(4, *S)`.

    Attributes:
        observed: Numbers in an observation.
        actions: How many there are.
        start: A new episode's state is uniform within plus and minus this.
        lowest: The return of an episode in which all goes wrong.
    """

    observed: int
    actions: int
    start: float
    lowest: float

    @abstractmethod
    def observe(self, states: Array) -> Array:
        """Observations of shape `(*S, observed)`, float32."""

    @abstractmethod
    def step(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        """The states after actions of shape `S`, the rewards, and where the episode has reached its end."""


class CartPole(Task):
    """A pole on a cart, pushed to the left or to the right: 1 for each step in which it stands."""

    observed, actions, start, lowest = 4, 2, 0.05, 0.0
    gravity, half_length, pole, cart, push, seconds = 9.8, 0.5, 0.1, 1.0, 10.0, 0.02
    farthest, steepest = 2.4, 12 * 2 * np.pi / 360

    def observe(self, states: Array) -> Array:
        return np.moveaxis(states, 0, -1).astype(np.float32)

    def step(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        place, speed, angle, turning = states
        cos, sin, mass = np.cos(angle), np.sin(angle), self.pole + self.cart
        pushed = (self.push * (2 * actions - 1) + self.pole * self.half_length * turning**2 * sin) / mass
        turned = (self.gravity * sin - cos * pushed) / (self.half_length * (4 / 3 - self.pole * cos**2 / mass))
        moved = pushed - self.pole * self.half_length * turned * cos / mass
        after = states + self.seconds * np.stack([speed, moved, turning, turned])
        ended = (np.abs(after[0]) > self.farthest) | (np.abs(after[2]) > self.steepest)
        return after, np.ones_like(place), ended


class Acrobot(Task):
    """Two links that hang, turned at the joint between them: -1 for each step until the free end is high up."""

    observed, actions, start, lowest = 6, 3, 0.1, -500.0
    seconds, fastest = 0.2, (4 * np.pi, 9 * np.pi)

    def observe(self, states: Array) -> Array:
        first, second, *turning = states
        parts = [np.cos(first), np.sin(first), np.cos(second), np.sin(second), *turning]
        return np.stack(parts, axis=-1).astype(np.float32)

    def step(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        torque, h = actions - 1.0, self.seconds
        k1 = self._slope(states, torque)
        k2 = self._slope(states + h / 2 * k1, torque)
        k3 = self._slope(states + h / 2 * k2, torque)
        k4 = self._slope(states + h * k3, torque)
        after = states + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        after[:2] -= 2 * np.pi * np.round(after[:2] / (2 * np.pi))
        for turning, fastest in zip(after[2:], self.fastest, strict=True):
            np.clip(turning, -fastest, fastest, out=turning)
        ended = -np.cos(after[0]) - np.cos(after[0] + after[1]) > 1
        return after, np.where(ended, 0.0, -1.0), ended

    def _slope(self, states: Array, torque: Array) -> Array:
        """How fast a state changes: links of mass, length and inertia 1, with their centres in the middle."""
        first, second, turning, bending = states
        cos, sin = np.cos(second), np.sin(second)
        both, other = 3.5 + cos, 1.25 + 0.5 * cos
        falling = 4.9 * np.sin(first + second)
        pulled = -0.5 * sin * bending * (bending + 2 * turning) + 14.7 * np.sin(first) + falling
        bent = (torque + other / both * pulled - 0.5 * sin * turning**2 - falling) / (1.25 - other**2 / both)
        return np.stack([turning, bending, -(other * bent + pulled) / both, bent])


TASKS: dict[str, Task] = {"CartPole-v1": CartPole(), "Acrobot-v1": Acrobot()}
