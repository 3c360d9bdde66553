"""PPO of Stable-Baselines3, with policy, value and entropy as three losses. Its own `train` adds them up, so this file
rewrites it, without the logs. By default, as here, policy and value have separate networks, so only policy and entropy
meet. With a features extractor that has parameters, all three do. Run it with

    python docs/examples/stable_baselines3_ppo.py
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn
from torch.nn import functional as F

import mtopt


class MultiLossPPO(PPO):
    """PPO without `clip_range_vf` and `target_kl`. `transforms` combine the gradients of the shared layers."""

    def __init__(self, *arguments: Any, transforms: Any = None, **settings: Any) -> None:
        self.transforms = transforms  # which `save` keeps, too
        super().__init__(*arguments, **settings)

    def _setup_model(self) -> None:
        super()._setup_model()
        inner = self.policy.optimizer
        self.policy.optimizer = mtopt.MultiLossOptimizer(inner, self.transforms, at="parameters")

    def train(self) -> None:
        self.policy.set_training_mode(True)
        optimizer: Any = self.policy.optimizer
        self._update_learning_rate(optimizer)
        clip: float = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        for _ in range(self.n_epochs):
            for data in self.rollout_buffer.get(self.batch_size):
                discrete = isinstance(self.action_space, spaces.Discrete)
                actions = data.actions.long().flatten() if discrete else data.actions
                values, log_prob, entropy = self.policy.evaluate_actions(data.observations, actions)
                advantages = data.advantages
                if self.normalize_advantage and len(advantages) > 1:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                ratio = torch.exp(log_prob - data.old_log_prob)
                surrogate = torch.min(advantages * ratio, advantages * torch.clamp(ratio, 1 - clip, 1 + clip))
                losses = {
                    "policy": -surrogate.mean(),
                    "entropy": -self.ent_coef * (-log_prob if entropy is None else entropy).mean(),
                    "value": self.vf_coef * F.mse_loss(data.returns, values.flatten()),
                }
                optimizer.zero_grad()
                optimizer.backward(losses)
                nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                optimizer.step()
            self._n_updates += 1


def make_agent(transforms: Any, *, ppo: type[PPO] = MultiLossPPO) -> PPO:
    shared = {"net_arch": [64, 64], "share_features_extractor": True}
    settings = {"n_steps": 512, "batch_size": 64, "ent_coef": 0.01, "policy_kwargs": shared, "seed": 0, "device": "cpu"}
    more = {} if ppo is PPO else {"transforms": transforms}
    return ppo("MlpPolicy", gym.make("CartPole-v1"), **settings, **more)


def main() -> None:
    torch.set_num_threads(1)
    agent = make_agent(mtopt.PCGrad(seed=0))
    test = gym.make("CartPole-v1")

    def steps_lost() -> float:
        agent.set_random_seed(0)
        reward, _ = evaluate_policy(agent, test, n_eval_episodes=10, warn=False)
        return 501 - float(reward)  # of the 500 that can be had

    first = steps_lost()
    agent.learn(12_000)
    print(f"steps lost: {first:.0f} -> {steps_lost():.0f}")


if __name__ == "__main__":
    main()
