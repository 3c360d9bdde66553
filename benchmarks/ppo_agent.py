"""Proximal policy optimization of several agents: they act together, and each learns alone. Knows no methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ppo_tasks import LIMIT, Array, Task
from torch import Tensor, nn

import mtopt

ENVIRONMENTS, STEPS = 16, 64  # of an agent, and in each of them between two updates
EPOCHS, BATCH = 4, 512
DISCOUNT, TRACE, CLIP = 0.99, 0.95, 0.2
SCALE = 1 - DISCOUNT  # of the rewards that are learned from: no value is beyond 1
WIDTH, EPISODES = 64, 32  # of the trunk's layers; in the evaluation

Losses = dict[str, Tensor]


class Agent(nn.Module):
    """A trunk of two tanh layers with a head for the policy and one for the value."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(task.observed, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.policy, self.value = nn.Linear(WIDTH, task.actions), nn.Linear(WIDTH, 1)
        gains = {self.trunk[0]: math.sqrt(2), self.trunk[2]: math.sqrt(2), self.policy: 0.01, self.value: 1.0}
        for layer, gain in gains.items():
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(observations)
        return self.policy(features), self.value(features).squeeze(-1)


@dataclass
class Learner:
    """An agent, and how it is trained.

    Attributes:
        agent: Its network.
        optimizer: Of all its parameters.
        handed: From the losses of the policy, of the value and of the entropy to those that the optimizer is given.
        longest: To what length the gradient is clipped.
        seed: Of its batches, its actions and its episodes.
    """

    agent: Agent
    optimizer: mtopt.MultiLossOptimizer
    handed: Callable[[Losses], Losses]
    longest: float
    seed: int


@dataclass
class Batch:
    """What an agent did, and what came of it, each of shape `(N, ...)`."""

    observations: Tensor
    actions: Tensor
    logs: Tensor  # of the actions' probabilities when they were taken
    advantages: Tensor
    returns: Tensor

    def take(self, chosen: Tensor) -> Batch:
        return Batch(*(part[chosen] for part in vars(self).values()))


def losses_of(agent: Agent, batch: Batch) -> Losses:
    """The three losses of a batch, each with coefficient 1."""
    logits, values = agent(batch.observations)
    logs = logits.log_softmax(1)
    ratio = (logs.gather(1, batch.actions[:, None]).squeeze(1) - batch.logs).exp()
    gain = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    return {
        "policy": -torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean(),
        "value": (values - batch.returns).square().mean(),
        "entropy": (logs.exp() * logs).sum(1).mean(),
    }


def advantages(rewards: Array, values: Array, following: Array, terminated: Array, ended: Array) -> Array:
    """Generalized advantages, each of shape `(steps, *S)`: `following` are the values of the states that came of the
    actions. An episode that was cut off, `ended` and not `terminated`, would have gone on."""
    errors = rewards + DISCOUNT * np.where(terminated, 0.0, following) - values
    found, later = np.empty_like(errors), np.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        later = errors[t] + DISCOUNT * TRACE * np.where(ended[t], 0.0, later)
        found[t] = later
    return found


class Policies:
    """The policies of several agents as they are now, in one pass: arrays of shape `(agents, N, ...)`."""

    def __init__(self, agents: Sequence[Agent]) -> None:
        layers = zip(*([agent.trunk[0], agent.trunk[2], agent.policy] for agent in agents), strict=True)
        self.layers = [_stacked([layer for layer in of_all if isinstance(layer, nn.Linear)]) for of_all in layers]

    def logits(self, observations: Array) -> Array:
        (first, second, last), features = self.layers, observations
        for weight, bias in (first, second):
            features = np.tanh(features @ weight + bias)
        return np.asarray(features @ last[0] + last[1])

    def draw(self, observations: Array, chances: Array) -> Array:
        """Actions, by numbers that are uniform in [0, 1)."""
        logits = self.logits(observations)
        shares = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
        return np.asarray((shares[..., :-1] <= (chances[..., None] * shares[..., -1:])).sum(-1))


def _stacked(layers: Sequence[nn.Linear]) -> tuple[Array, Array]:
    weights = np.stack([layer.weight.detach().numpy().T for layer in layers])  # (agents, in, out)
    return weights, np.stack([layer.bias.detach().numpy()[None] for layer in layers])  # (agents, 1, out)


class Trainings:
    """Agents in one task. All that is random of one comes from its own seed, so its company changes nothing.

    Args:
        task: What they learn.
        learners: Of each agent.
        rollouts: How often they act for `STEPS` steps and then learn; the learning rate falls to 0 within them.
    """

    def __init__(self, task: Task, learners: Sequence[Learner], rollouts: int) -> None:
        self.task, self.learners, self.rollouts = task, learners, rollouts
        self.chances = [np.random.default_rng(learner.seed) for learner in learners]
        self.orders = [torch.Generator().manual_seed(learner.seed) for learner in learners]
        self.rates = [learner.optimizer.param_groups[0]["lr"] for learner in learners]
        shape = (len(learners), ENVIRONMENTS)
        self.states = self._begun(np.stack([rng.random((4, ENVIRONMENTS)) for rng in self.chances], axis=1))
        self.ages, self.returns, self.latest = np.zeros(shape), np.zeros(shape), np.full(shape, task.lowest)
        self.curves: list[Array] = []  # after each rollout, the mean return of the last episode of each environment

    def run(self) -> None:
        for i in range(self.rollouts):
            batches = self._act()
            for learner, rate, order, batch in zip(self.learners, self.rates, self.orders, batches, strict=True):
                for group in learner.optimizer.param_groups:
                    group["lr"] = rate * (1 - i / self.rollouts)
                learn(learner, batch, order)
            self.curves.append(self.latest.mean(1))

    def areas(self) -> Array:
        """The mean of each learning curve."""
        return np.asarray(np.mean(self.curves, axis=0))

    def finals(self) -> Array:
        """The mean return of each agent, as it is now, in new episodes with the action that it holds best."""
        rngs = [np.random.default_rng([learner.seed, 1]) for learner in self.learners]
        states = self._begun(np.stack([rng.random((4, EPISODES)) for rng in rngs], axis=1))
        policies = Policies([learner.agent for learner in self.learners])
        returns, running = np.zeros(states.shape[1:]), np.ones(states.shape[1:], bool)
        for _ in range(LIMIT):
            states, rewards, terminated = self.task.step(states, policies.logits(self.task.observe(states)).argmax(-1))
            returns += rewards * running
            running &= ~terminated
            states[:, ~running] = 0.0  # an end may run away
            if not running.any():
                break
        return np.asarray(returns.mean(1))

    def _begun(self, chances: Array) -> Array:
        return self.task.start * (2 * chances - 1)

    def _act(self) -> list[Batch]:
        """What each agent learns from next."""
        policies = Policies([learner.agent for learner in self.learners])
        drawn = np.stack([rng.random((STEPS, 5, ENVIRONMENTS)) for rng in self.chances], axis=2)
        seen, following, actions, rewards, terminated, ended = [], [], [], [], [], []
        for chances in drawn:  # (5, agents, environments)
            seen.append(self.task.observe(self.states))
            actions.append(policies.draw(seen[-1], chances[0]))
            self.states, reward, end = self.task.step(self.states, actions[-1])
            following.append(self.task.observe(self.states))
            rewards.append(SCALE * reward)
            terminated.append(end)
            self.ages += 1
            self.returns += reward
            ended.append(end | (self.ages >= LIMIT))
            self.latest = np.where(ended[-1], self.returns, self.latest)
            self.states = np.where(ended[-1], self._begun(chances[1:]), self.states)
            self.ages, self.returns = (np.where(ended[-1], 0.0, kept) for kept in (self.ages, self.returns))
        parts = [np.stack(part) for part in (seen, following, actions, rewards, terminated, ended)]
        return [_batch(learner.agent, *(part[:, i] for part in parts)) for i, learner in enumerate(self.learners)]


def _batch(
    agent: Agent, seen: Array, following: Array, actions: Array, rewards: Array, terminated: Array, ended: Array
) -> Batch:
    observations = torch.from_numpy(seen).flatten(0, 1)
    taken = torch.from_numpy(actions).flatten()
    with torch.no_grad():
        logits, values = agent(observations)
        _, after = agent(torch.from_numpy(following).flatten(0, 1))
    logs = logits.log_softmax(1).gather(1, taken[:, None]).squeeze(1)
    valued = values.numpy().reshape(rewards.shape)
    gains = advantages(rewards, valued, after.numpy().reshape(rewards.shape), terminated, ended)
    gain, returns = (torch.from_numpy(part.astype(np.float32)).flatten() for part in (gains, gains + valued))
    return Batch(observations, taken, logs, gain, returns)


def learn(learner: Learner, batch: Batch, order: torch.Generator) -> None:
    """Some epochs on one batch, in parts."""
    for _ in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(batch.actions), generator=order), BATCH):
            losses = learner.handed(losses_of(learner.agent, batch.take(chosen)))
            learner.optimizer.zero_grad()
            learner.optimizer.backward(losses)
            nn.utils.clip_grad_norm_(learner.agent.parameters(), learner.longest)
            learner.optimizer.step()
