"""MNIST: a small convolutional network reads handwritten digits, 99 % of them correctly after two epochs.

    python examples/mnist.py --epochs 2

The whole training step below (forward, loss, backward, optimizer) is one pure function; `fgrad.jit` makes one native
program of it.
"""

import time

import common

import fgrad
import fgrad.numpy as fnp
import fgrad_nn as nn
from fgrad import random
from fgrad_nn.data import MNIST, Compose, DataLoader, Normalize, ToFloat


class Net(nn.Module):
    """Describes the network. It holds no weights: those are `params`, a dict that is passed in."""

    def __init__(self):
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * 5 * 5, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, p, x):
        x = self.pool(nn.relu(self.conv1(p["conv1"], x)))  # (N, 1, 28, 28) -> (N, 32, 13, 13)
        x = self.pool(nn.relu(self.conv2(p["conv2"], x)))  # -> (N, 64, 5, 5)
        x = nn.relu(self.fc1(p["fc1"], x.reshape(len(x), -1)))
        return self.fc2(p["fc2"], x)


net = Net()
optimizer = nn.adam(1e-3)


def loss_of(params, x, y):
    return nn.cross_entropy(net(params, x), y)


# Donated arguments lend their memory to the results: the new weights are written over the old ones.
@fgrad.jit(donate=(0, 1))
def step(params, opt_state, x, y):
    loss, grads = fgrad.value_and_grad(loss_of)(params, x, y)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return nn.apply_updates(params, updates), opt_state, loss


@fgrad.jit
def predict(params, x):
    return fnp.argmax(net(params, x), axis=1)


def main():
    args = common.command_line(__doc__, epochs=2, name="mnist", batch=64).parse_args()
    init_key, data_key = random.split(random.key(args.seed))
    prepare = Compose([ToFloat(), Normalize(0.1307, 0.3081)])  # mean and deviation of the training pixels
    how = {"transform": prepare, "device": args.device}
    train = DataLoader(MNIST(args.data_dir), args.batch_size or 64, shuffle=True, key=data_key, **how)
    test = DataLoader(MNIST(args.data_dir, train=False), args.batch_size or 1000, **how)

    params = net.init(init_key)
    params, opt_state = fgrad.device_put((params, optimizer.init(params)), args.device)
    print(net)
    for epoch in range(1, args.epochs + 1):
        begun, losses = time.perf_counter(), []
        for x, y in (bar := common.progress(train, f"epoch {epoch}", args.limit)):
            params, opt_state, loss = step(params, opt_state, x, y)
            losses.append(loss)
            if (
                bar.n % 50 == 0
            ):  # reading a number waits for a GPU, which else goes on while Python prepares the next step
                bar.set_postfix_str(f"loss {float(loss):.3f}", refresh=False)
        losses = [float(loss) for loss in losses]
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}, {time.perf_counter() - begun:.1f} s")

    params = common.saved_and_loaded(args.save, params, args.device)
    predicted, true = common.predictions(predict, params, common.progress(test, "test", args.limit))
    print(f"test accuracy: {100 * (predicted == true).mean():.2f} %")


if __name__ == "__main__":
    main()
